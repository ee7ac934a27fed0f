# mypy: disable-error-code="import-untyped"
"""Definitions of search indexes, checked as Atlas checks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secantus.aggregate import AggregateError

from tests.atlas.analysis import BUILT_IN, Analyzer, InvalidAnalyzer, custom
from tests.atlas.refusals import refusal

SIMILARITIES = ("euclidean", "cosine", "dotProduct")
QUANTIZATIONS = ("none", "scalar", "binary")
MAX_DIMENSIONS = 8192
# What a field of a search index may be, and the options it may have (Atlas's documentation, "Define Field Mappings").
FIELD_OPTIONS: dict[str, set[str]] = {
    "autocomplete": {"analyzer", "maxGrams", "minGrams", "tokenization", "foldDiacritics", "similarity"},
    "boolean": set(),
    "date": set(),
    "dateFacet": set(),
    "document": {"dynamic", "fields", "storedSource"},
    "embeddedDocuments": {"dynamic", "fields", "storedSource"},
    "geo": {"indexShapes"},
    "number": {"representation", "indexIntegers", "indexDoubles"},
    "numberFacet": {"representation", "indexIntegers", "indexDoubles"},
    "objectId": set(),
    "string": {"analyzer", "searchAnalyzer", "indexOptions", "store", "ignoreAbove", "multi", "norms", "similarity"},
    "stringFacet": set(),
    "token": {"normalizer"},
    "uuid": set(),
}


@dataclass(frozen=True)
class VectorField:
    path: str
    dimensions: int
    similarity: str


@dataclass(frozen=True)
class VectorDefinition:
    vectors: Mapping[str, VectorField]
    filters: frozenset[str]


@dataclass(frozen=True)
class Text:
    """How the text at a path is analysed: when it is indexed, and when it is asked for."""

    index: Analyzer
    query: Analyzer


@dataclass
class SearchDefinition:
    texts: dict[str, Text] = field(default_factory=dict)
    values: dict[str, set[str]] = field(default_factory=dict)
    """The types, among token, number, boolean, date and objectId, that each path is indexed as."""


def _refused(message: str) -> AggregateError:
    """An invalid definition; the code is the one that mongot gives a command that fails to parse."""
    return refusal(8, message)


def _known(given: object, where: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise _refused(f'"{where}" must be a document')
    for name in sorted(required - set(given)):
        raise _refused(f'"{where}.{name}" is required')
    for name in given:
        if name not in required | optional:
            raise _refused(f'"{where}" unrecognized field "{name}"')
    return given


def _one_of(given: object, where: str, choices: tuple[str, ...]) -> str:
    if given not in choices:
        raise _refused(f'"{where}" must be one of [{", ".join(choices)}]')
    return str(given)


def _path(given: object, where: str) -> str:
    if not isinstance(given, str) or not given:
        raise _refused(f'"{where}" cannot be empty')
    return given


def vector_definition(given: object, where: str) -> VectorDefinition:
    """`{fields: [{type: "vector", path, numDimensions, similarity, quantization?} | {type: "filter", path}]}`."""
    fields = _known(given, where, {"fields"}, {"storedSource"})["fields"]
    if not isinstance(fields, list) or not fields:
        raise _refused(f'"{where}.fields" cannot be empty')
    vectors: dict[str, VectorField] = {}
    filters: set[str] = set()
    for place, one in enumerate(fields):
        here = f"{where}.fields[{place}]"
        kind = one.get("type") if isinstance(one, Mapping) else None
        if _one_of(kind, f"{here}.type", ("vector", "filter")) == "filter":
            path = _path(_known(one, here, {"type", "path"}, set())["path"], f"{here}.path")
            if path in filters or path in vectors:
                raise _refused(f'"{where}.fields" path "{path}" is defined more than once')
            filters.add(path)
            continue
        _known(one, here, {"type", "path", "numDimensions", "similarity"}, {"quantization", "hnswOptions"})
        path, dimensions = _path(one["path"], f"{here}.path"), one["numDimensions"]
        whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
        if not whole or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _refused(f'"{here}.numDimensions" must be within bounds [1, {MAX_DIMENSIONS}]')
        similarity = _one_of(one["similarity"], f"{here}.similarity", SIMILARITIES)
        _one_of(one.get("quantization", "none"), f"{here}.quantization", QUANTIZATIONS)
        if path in filters or path in vectors:
            raise _refused(f'"{where}.fields" path "{path}" is defined more than once')
        vectors[path] = VectorField(path, dimensions, similarity)
    if not vectors:
        raise _refused(f'"{where}.fields" must have at least one "vector" field')
    return VectorDefinition(vectors, frozenset(filters))


def search_definition(given: object, where: str) -> SearchDefinition:
    """`{analyzer?, searchAnalyzer?, analyzers?, mappings: {dynamic?, fields?}}`, with `dynamic` false."""
    top = _known(
        given,
        where,
        {"mappings"},
        {"analyzer", "searchAnalyzer", "analyzers", "synonyms", "storedSource", "numPartitions"},
    )
    known: dict[str, Analyzer] = dict(BUILT_IN)
    try:
        for place, one in enumerate(top.get("analyzers") or []):
            name, analyzer = custom(one, f"{where}.analyzers[{place}]")
            known[name] = analyzer
    except InvalidAnalyzer as error:
        raise _refused(str(error)) from error

    def named(given: object, where: str) -> Analyzer:
        if given not in known:
            raise _refused(f'"{where}" analyzer "{given}" is not defined')
        return known[str(given)]

    usual = top.get("analyzer", "lucene.standard")
    asked = top.get("searchAnalyzer", usual)
    named(usual, f"{where}.analyzer")
    named(asked, f"{where}.searchAnalyzer")
    found = SearchDefinition()

    def walk(mapping: object, prefix: str, here: str) -> None:
        checked = _known(mapping, here, set(), {"dynamic", "fields", "type", "storedSource"})
        if checked.get("dynamic", False) is not False:
            raise _refused(f'"{here}.dynamic" must be false: the stand-in has no dynamic mappings')
        fields = checked.get("fields", {})
        if not isinstance(fields, Mapping):
            raise _refused(f'"{here}.fields" must be a document')
        for name, types in fields.items():
            path, there = prefix + name, f"{here}.fields.{name}"
            for one in types if isinstance(types, list) else [types]:
                kind = one.get("type") if isinstance(one, Mapping) else None
                _one_of(kind, f"{there}.type", tuple(FIELD_OPTIONS))
                _known(one, there, {"type"}, FIELD_OPTIONS[str(kind)])
                if kind == "document":
                    walk(one, f"{path}.", there)
                elif kind == "string":
                    own = one.get("analyzer", usual)
                    sought = one.get("searchAnalyzer", one.get("analyzer", asked))
                    found.texts[path] = Text(named(own, f"{there}.analyzer"), named(sought, f"{there}.searchAnalyzer"))
                elif kind in ("token", "number", "boolean", "date", "objectId"):
                    found.values.setdefault(path, set()).add(str(kind))
                else:
                    raise _refused(f"the stand-in has no fields of type {kind!r}")

    walk(top["mappings"], "", f"{where}.mappings")
    return found
