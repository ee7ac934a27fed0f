# mypy: disable-error-code="import-untyped"
"""`$meta`: what search stages know of a document beside its fields, carried through the stages that follow."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from secantus import aggregate, expressions
from secantus.aggregate import PipelineContext

from tests.atlas.refusals import refusal

Documents = list[dict[str, Any]]
Handler = Callable[[Any, Documents, PipelineContext], Documents]

NAMES = {"score", "scoreDetails", "searchScore", "searchScoreDetails", "vectorSearchScore", "textScore", "randVal"}
SORTABLE = {"score", "searchScore", "vectorSearchScore", "textScore", "randVal"}
# A field that no document has: where a stage makes new documents of its own, it leads back to the old one.
_TAG = "\x01origin"
_ONE_FOR_ONE = ("$project", "$addFields", "$set", "$unset", "$replaceRoot", "$replaceWith", "$lookup")
_REORDERING = ("$setWindowFields", "$unwind", "$redact")


class Found(dict[str, Any]):
    """A document with its metadata; `$meta: "score"` is the score of whichever stage found it."""

    __slots__ = ("metadata",)

    def __init__(self, document: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.metadata = metadata

    def __deepcopy__(self, memo: dict[int, Any]) -> "Found":
        return Found({name: copy.deepcopy(value, memo) for name, value in self.items()}, self.metadata)


def of(document: object, name: str) -> Any:
    """One piece of a document's metadata, or None."""
    return document.metadata.get(name) if isinstance(document, Found) else None


def _evaluate(argument: Any, context: Any, _position: Any = None) -> Any:
    if argument not in NAMES:
        raise refusal(17308, f"Unsupported $meta field: {argument}")
    value = of(context.doc, argument)
    return expressions.MISSING if value is None else value


def _value(argument: Any, context: Any) -> Any:
    value = _evaluate(argument, context)
    return None if value is expressions.MISSING else value


def _one_for_one(handler: Handler) -> Handler:
    def carry(spec: Any, documents: Documents, context: PipelineContext) -> Documents:
        made = handler(spec, documents, context)
        return [
            Found(new, old.metadata) if isinstance(old, Found) else new
            for new, old in zip(made, documents, strict=True)
        ]

    return carry


def _reordering(handler: Handler) -> Handler:
    def carry(spec: Any, documents: Documents, context: PipelineContext) -> Documents:
        if not any(isinstance(one, Found) for one in documents):
            return handler(spec, documents, context)
        tagged: Documents = [Found({**one, _TAG: place}, _metadata(one)) for place, one in enumerate(documents)]
        made: Documents = []
        for one in handler(spec, tagged, context):
            kept = dict(one)
            origin = documents[kept.pop(_TAG)]
            made.append(Found(kept, _metadata(origin)))
        return made

    return carry


def _metadata(document: object) -> Mapping[str, Any]:
    return document.metadata if isinstance(document, Found) else {}


def _sorting(handler: Handler) -> Handler:
    """Sort by each key in turn, from the last to the first, where one of them is metadata: best first."""

    def sort(spec: Any, documents: Documents, context: PipelineContext) -> Documents:
        if not isinstance(spec, Mapping) or not any(isinstance(one, Mapping) for one in spec.values()):
            return handler(spec, documents, context)
        plain: dict[str, Any] = {}
        for name, key in spec.items():
            if isinstance(key, Mapping) and set(key) == {"$meta"}:
                if key["$meta"] not in SORTABLE:
                    raise refusal(31138, f"Illegal $meta sort: $meta: {key['$meta']!r}")
            else:
                plain[name] = key
        if plain:
            handler(plain, [], context)
        found = list(documents)
        for name, key in reversed(list(spec.items())):
            if name in plain:
                found = handler({name: key}, found, context)
            else:
                meta = key["$meta"]
                found.sort(key=functools.partial(_descending, meta))
        return found

    return sort


def _descending(meta: str, document: dict[str, Any]) -> float:
    return -float(of(document, meta) or 0.0)


def _windowing(handler: Handler) -> Handler:
    """Let `sortBy` name metadata: it is a field for as long as the stage runs."""

    def window(spec: Any, documents: Documents, context: PipelineContext) -> Documents:
        keys = spec.get("sortBy") if isinstance(spec, Mapping) else None
        metas = {
            name: one["$meta"] for name, one in (keys or {}).items() if isinstance(one, Mapping) and "$meta" in one
        }
        if not metas or not isinstance(keys, Mapping):
            return handler(spec, documents, context)
        hidden = {name: f"\x01sort{place}" for place, name in enumerate(metas)}
        given = [
            Found({**one, **{hidden[name]: of(one, meta) for name, meta in metas.items()}}, _metadata(one))
            for one in documents
        ]
        sort_by = {hidden.get(name, name): -1 if name in metas else key for name, key in keys.items()}
        made = handler({**spec, "sortBy": sort_by}, list(given), context)
        for one in made:
            for name in hidden.values():
                one.pop(name, None)
        return made

    return window


def register() -> None:
    """Teach SecantusDB's expressions and stages about metadata."""
    expressions._OPS["$meta"] = _value
    expressions._MISSING_PROPAGATING["$meta"] = _evaluate
    expressions._NEVER_FOLDED = expressions._NEVER_FOLDED | {"$meta"}
    stages = aggregate._STAGES
    for name in _ONE_FOR_ONE:
        stages[name] = _one_for_one(stages[name])
    for name in _REORDERING:
        stages[name] = _reordering(stages[name])
    stages["$setWindowFields"] = _windowing(stages["$setWindowFields"])
    stages["$sort"] = _sorting(stages["$sort"])
