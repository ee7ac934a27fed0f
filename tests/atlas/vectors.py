# mypy: disable-error-code="import-untyped"
"""`$vectorSearch`: vectors of a collection, compared one by one with a query's."""

import math
import struct
from collections.abc import Mapping
from typing import Any

import bson
import numpy as np
from bson.binary import VECTOR_SUBTYPE, Binary, BinaryVectorDtype
from secantus.query import matches

from tests.atlas.definitions import VectorDefinition, VectorField
from tests.atlas.mirror import FollowingIndex, Key, Mirror, Record
from tests.atlas.paths import scalars, value_at
from tests.atlas.refusals import from_mongot, refusal

STAGE = "$vectorSearch"
KEYS = {"index", "path", "queryVector", "numCandidates", "limit", "exact", "filter"}
MAX_CANDIDATES = 10_000
LOGICAL = {"$and", "$or", "$nor"}
COMPARISONS = {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not"}
Floats = np.ndarray[Any, np.dtype[np.float32]]


def floats(given: object) -> Floats | None:
    """The vector that a list of numbers or a BSON vector of float32s holds, or None."""
    if isinstance(given, Binary) and given.subtype == VECTOR_SUBTYPE:
        vector = given.as_vector()
        if vector.dtype is not BinaryVectorDtype.FLOAT32:
            return None
        return np.frombuffer(given, dtype="<f4", offset=2).astype(np.float32)
    if isinstance(given, list) and given:
        if any(isinstance(one, bool) or not isinstance(one, int | float) for one in given):
            return None
        return np.array(given, dtype=np.float32)
    return None


class Vectors:
    """The vectors at one path, in rows."""

    def __init__(self, field: VectorField) -> None:
        self.field = field
        self.rows: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.matrix: Floats = np.zeros((64, field.dimensions), dtype=np.float32)

    def put(self, key: Key, record: Record | None) -> None:
        vector = None if record is None else floats(value_at(record, self.field.path))
        if vector is not None and (len(vector) != self.field.dimensions or not np.isfinite(vector).all()):
            vector = None
        if vector is not None and self.field.similarity != "euclidean":
            length = float(np.linalg.norm(vector))
            if self.field.similarity == "cosine":
                vector = None if length == 0 else (vector / np.float32(length)).astype(np.float32)
        if vector is None:
            self._remove(key)
            return
        row = self.rows.get(key)
        if row is None:
            row = len(self.keys)
            self.rows[key] = row
            self.keys.append(key)
            if row == len(self.matrix):
                self.matrix = np.concatenate([self.matrix, np.zeros_like(self.matrix)])
        self.matrix[row] = vector

    def _remove(self, key: Key) -> None:
        row = self.rows.pop(key, None)
        if row is None:
            return
        last = self.keys.pop()
        if last != key:
            self.keys[row] = last
            self.rows[last] = row
            self.matrix[row] = self.matrix[len(self.keys)]

    def scores(self, query: Floats) -> Floats:
        """Every row's score, as Atlas normalises it to at most 1 (for cosine and euclidean)."""
        held = self.matrix[: len(self.keys)]
        if self.field.similarity == "euclidean":
            squares: Floats = ((held - query) ** 2).sum(axis=1)
            return (1 / (1 + squares)).astype(np.float32)
        asked = query / np.float32(np.linalg.norm(query)) if self.field.similarity == "cosine" else query
        return ((1 + held @ asked) / 2).astype(np.float32)


class VectorIndex(FollowingIndex):
    """A vector index over one collection, as of the last change it took in."""

    def __init__(self, definition: VectorDefinition, mirror: Mirror) -> None:
        self.definition = definition
        super().__init__(mirror)

    def _reset(self) -> None:
        self.vectors = {path: Vectors(one) for path, one in self.definition.vectors.items()}
        self.equal: dict[str, dict[object, set[Key]]] = {path: {} for path in self.definition.filters}
        self.passing: dict[bytes, set[Key]] = {}
        self.filters: dict[bytes, Mapping[str, Any]] = {}

    def _take(self, key: Key, before: Record | None, record: Record | None) -> None:
        for path, places in self.equal.items():
            for value in scalars(before, path) if before is not None else ():
                places.get(value, set()).discard(key)
            for value in scalars(record, path) if record is not None else ():
                places.setdefault(value, set()).add(key)
        for one in self.vectors.values():
            one.put(key, record)
        for name, passing in self.passing.items():
            passing.discard(key)
            if record is not None and matches(record, self.filters[name]):
                passing.add(key)

    def _narrowed(self, condition: Mapping[str, Any]) -> set[Key] | None:
        """A set with at least all the documents that meet the condition, or None where that is everything."""
        found: set[Key] | None = None
        for path, asked in condition.items():
            some: set[Key] | None = None
            if path == "$and":
                for one in asked:
                    part = self._narrowed(one)
                    some = part if some is None else some if part is None else some & part
            elif path in self.equal:
                places = self.equal[path]
                values = [asked]
                if isinstance(asked, Mapping):
                    values = [asked["$eq"]] if "$eq" in asked else list(asked["$in"]) if "$in" in asked else []
                    if not values:
                        continue
                if all(isinstance(value, str) for value in values):
                    some = set().union(*(places.get((str, value), set()) for value in values))
            if some is not None:
                found = some if found is None else found & some
        return found

    def _passing(self, condition: Mapping[str, Any]) -> set[Key]:
        name = bson.encode(condition)
        if name not in self.passing:
            narrowed = self._narrowed(condition)
            candidates = self.documents if narrowed is None else narrowed
            if len(self.passing) >= 256:
                self.passing.clear()
                self.filters.clear()
            self.passing[name] = {key for key in candidates if matches(self.documents[key], condition)}
            self.filters[name] = condition
        return self.passing[name]

    def search(self, asked: "Query") -> list[tuple[Key, float]]:
        """The best `limit` documents with their scores, the best first."""
        if asked.path not in self.vectors:
            raise from_mongot(STAGE, f"{asked.path} is not indexed as vector")
        held = self.vectors[asked.path]
        if len(asked.vector) != held.field.dimensions:
            raise from_mongot(
                STAGE,
                f"vector field is indexed with {held.field.dimensions} dimensions but queried with {len(asked.vector)}",
            )
        if held.field.similarity == "cosine" and not asked.vector.any():
            raise from_mongot(STAGE, "Cosine similarity cannot be calculated against a zero vector.")
        if asked.filter is not None:
            check_filter(asked.filter, self.definition.filters)
        if not held.keys:
            return []
        scores = held.scores(asked.vector)
        if asked.filter is None:
            rows = list(range(len(held.keys)))
        else:
            rows = [held.rows[key] for key in self._passing(asked.filter) if key in held.rows]
        best = sorted(rows, key=lambda row: (-scores[row], self.order[held.keys[row]]))[: asked.limit]
        return [(held.keys[row], float(scores[row])) for row in best]


class Query:
    """A `$vectorSearch`'s specification, checked as mongod and mongot check it."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise refusal(9, f"{STAGE} value must be an object.")
        limit = given.get("limit")
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise refusal(8575100, "Expected limit field to be a number in $vectorSearch")
            if limit <= 0:
                raise refusal(7912700, "Expected limit to be positive")
        for name in given:
            if name not in KEYS:
                raise from_mongot(STAGE, f'unrecognized field "{name}"')
        for name in ("index", "path", "limit"):
            if name not in given:
                raise from_mongot(STAGE, f'"{name}" is required')
        for name in ("index", "path"):
            if not isinstance(given[name], str):
                raise from_mongot(STAGE, f'"{name}" must be a string')
            if not given[name]:
                raise from_mongot(STAGE, f'"{name}" cannot be empty')
        exact = given.get("exact", False)
        if not isinstance(exact, bool):
            raise from_mongot(STAGE, '"exact" must be a boolean')
        candidates = given.get("numCandidates")
        if candidates is not None:
            if isinstance(candidates, bool) or not isinstance(candidates, int):
                raise from_mongot(STAGE, '"numCandidates" must be an integer')
            if not 1 <= candidates <= MAX_CANDIDATES:
                raise from_mongot(STAGE, f'"numCandidates" must be within bounds [1, {MAX_CANDIDATES}]')
        if exact and candidates is not None:
            raise from_mongot(STAGE, '"numCandidates" must be omitted when "exact" is set to true')
        if not exact and candidates is None:
            raise from_mongot(STAGE, "numCandidates is required for approximate vector search")
        if candidates is not None and given["limit"] > candidates:
            raise from_mongot(STAGE, "limit should be less than or equal to numCandidates")
        if "queryVector" not in given:
            raise from_mongot(STAGE, "Exactly one and only one of query and queryVector can be present")
        vector = floats(given["queryVector"])
        if vector is None:
            raise from_mongot(STAGE, '"queryVector" must be a vector')
        for place, value in enumerate(vector):
            if not math.isfinite(value):
                raise from_mongot(
                    STAGE,
                    f"'queryVector' contains a non-finite value (Infinity or NaN) at position [{place}]."
                    ' All values in "queryVector" must be finite.',
                )
        condition = given.get("filter")
        if condition is not None and not isinstance(condition, Mapping):
            raise refusal(10065, "invalid parameter: expected an object (filter)")
        self.index: str = given["index"]
        self.path: str = given["path"]
        self.vector = vector
        self.limit = int(given["limit"])
        self.filter: Mapping[str, Any] | None = condition


def check_filter(condition: Mapping[str, Any], declared: frozenset[str]) -> None:
    """Refuse operators that Atlas's filter lacks, and paths that the index does not have as filters."""
    for name, asked in condition.items():
        if name in LOGICAL:
            if not isinstance(asked, list) or not asked:
                raise refusal(2, f"{name} argument must be a non-empty array")
            for one in asked:
                check_filter(one, declared)
            continue
        if name.startswith("$"):
            raise from_mongot(STAGE, f'"filter" unrecognized operator "{name}"')
        _check_comparison(name, asked)
        if name not in declared:
            raise from_mongot(STAGE, f"Path '{name}' needs to be indexed as filter")


def _check_comparison(path: str, asked: object) -> None:
    if not isinstance(asked, Mapping):
        _check_value(path, asked)
        return
    for name, value in asked.items():
        if name not in COMPARISONS:
            raise from_mongot(STAGE, f'"filter.{path}" unrecognized operator "{name}"')
        if name == "$not":
            _check_comparison(path, value)
        elif name in ("$in", "$nin"):
            for one in value if isinstance(value, list) else [value]:
                _check_value(path, one)
        elif name != "$exists":
            _check_value(path, value)


def _check_value(path: str, value: object) -> None:
    if isinstance(value, Mapping | list | bson.Regex | bytes):
        raise from_mongot(STAGE, f'"filter.{path}" must be a boolean, objectId, number, string, date, uuid, or null')


def packed(vector: list[float]) -> Binary:
    """A BSON vector of float32s."""
    return Binary(bytes([BinaryVectorDtype.FLOAT32.value[0], 0]) + struct.pack(f"<{len(vector)}f", *vector), 9)
