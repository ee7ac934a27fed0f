# mypy: disable-error-code="import-untyped"
"""Where SecantusDB differs from mongod in what this project asks of either."""

from collections.abc import Mapping
from typing import Any

from secantus import aggregate, commands
from secantus.storage import Storage

# The options that, with the key, make two indexes of one name different ones rather than one with other options.
SIGNATURE = {"unique", "sparse", "partialFilterExpression", "collation"}


def register() -> None:
    _sub_pipelines_are_no_expressions()
    _options_conflict()
    _writes_of_many_hold_nothing_while_they_wait()


def _sub_pipelines_are_no_expressions() -> None:
    """SecantusDB reads a `$count` stage in a sub-pipeline as an expression, and refuses it."""
    shape_problem = aggregate._expression_shape_problem

    def problem(spec: Any, stage: str = "") -> Any:
        if stage in ("$lookup", "$unionWith") and isinstance(spec, Mapping):
            spec = {name: value for name, value in spec.items() if name != "pipeline"}
        return None if stage == "$rankFusion" else shape_problem(spec, stage)

    aggregate._expression_shape_problem = problem


def _options_conflict() -> None:
    """An index of the same name and key with another `expireAfterSeconds` is IndexOptionsConflict (85) in mongod."""
    conflict = commands._index_conflict

    def found(existing: Any, spec: Any, name: str, key: Any, options: Any) -> Any:
        problem = conflict(existing, spec, name, key, options)
        if problem is None or problem["code"] != 86:
            return problem
        for index in existing:
            same = index.get("name") == name and list(index["key"].items()) == list(key.items())
            if same and all(index.get(one) == options.get(one) for one in SIGNATURE):
                return {
                    "ok": 0.0,
                    "errmsg": "An equivalent index already exists with the same name but different options. "
                    f"Requested index: {dict(spec)}, existing index: {dict(index)}",
                    "code": 85,
                    "codeName": "IndexOptionsConflict",
                }
        return problem

    commands._index_conflict = found


def _writes_of_many_hold_nothing_while_they_wait() -> None:
    """SecantusDB's updates and deletions of many wait for a transaction with their collection locked, and it for them.

    As one write of its own each lets go of the collection before it is tried again.
    """

    def update(self: Any, *args: Any, **options: Any) -> Any:
        return self._update_matching_single_txn(*args, multi=True, **options)

    Storage._update_matching_chunked = update
    Storage._delete_matching_chunked = Storage._delete_matching_single_txn
