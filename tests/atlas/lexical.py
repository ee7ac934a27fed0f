"""`$search`: an inverted index over one collection, and the operators that ask it.

Scores are BM25 as Lucene computes it (k1 = 1.2, b = 0.75, lengths kept in a byte), over the whole index. Operators on
values score 1 for each match.
"""

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

from bson import ObjectId

from tests.atlas.definitions import SearchDefinition
from tests.atlas.mirror import FollowingIndex, Key, Mirror, Record
from tests.atlas.paths import scalars, typed, values
from tests.atlas.refusals import from_mongot, refusal

STAGE = "$search"
K1, B = 1.2, 0.75
OPERATORS = {"compound", "text", "phrase", "equals", "in", "range", "exists"}
OPTIONS = {"index", "count", "concurrent", "returnStoredSource", "scoreDetails", "sort"}
KINDS: dict[object, str] = {
    str: "token",
    float: "number",
    bool: "boolean",
    datetime.datetime: "date",
    ObjectId: "objectId",
    type(None): "null",
}
# The order of kinds among each other, as MongoDB compares them.
BRACKETS: tuple[object, ...] = (float, str, ObjectId, bool, datetime.datetime)
Scores = dict[Key, float]
Evaluated = Callable[["SearchIndex"], Scores]


def short_length(length: int) -> int:
    """A field's length as Lucene keeps it: exact up to 40, with four significant bits above."""
    if length < 40:
        return length
    rest = length - 24
    shift = rest.bit_length() - 4
    return 24 + (rest >> shift << shift) if shift > 0 else length


class Terms:
    """The terms of the texts at one path."""

    def __init__(self) -> None:
        self.postings: dict[str, dict[Key, list[int]]] = {}
        self.lengths: dict[Key, int] = {}
        self.held: dict[Key, tuple[list[str], set[str]]] = {}
        self.total = 0
        self.norms: list[float] | None = None

    def put(self, key: Key, texts: list[str], analyze: Callable[[str], list[str]]) -> None:
        if key in self.held:
            if self.held[key][0] == texts:
                return
            self.norms = None
            for term in self.held.pop(key)[1]:
                postings = self.postings[term]
                del postings[key]
                if not postings:
                    del self.postings[term]
            self.total -= self.lengths.pop(key)
        if not texts:
            return
        position, length, terms = 0, 0, set[str]()
        for text in texts:
            for term in analyze(text):
                self.postings.setdefault(term, {}).setdefault(key, []).append(position)
                terms.add(term)
                position += 1
                length += 1
        if terms:
            self.norms = None
            self.held[key] = (texts, terms)
            self.lengths[key] = length
            self.total += length

    def idf(self, term: str) -> float:
        count = len(self.postings.get(term, ()))
        return math.log(1 + (len(self.lengths) - count + 0.5) / (count + 0.5))

    def _norms(self) -> list[float]:
        """What a length adds to a frequency to saturate it, by length."""
        if self.norms is None:
            mean = self.total / len(self.lengths)
            longest = max(self.lengths.values())
            self.norms = [K1 * (1 - B + B * short_length(length) / mean) for length in range(longest + 1)]
        return self.norms

    def text(self, terms: Iterable[str]) -> Scores:
        """The documents with any of the terms; a term that is asked for twice counts twice."""
        found: Scores = {}
        for term in terms:
            postings = self.postings.get(term)
            if postings:
                idf, norms, lengths = self.idf(term), self._norms(), self.lengths
                for key, positions in postings.items():
                    frequency = len(positions)
                    found[key] = found.get(key, 0.0) + idf * frequency / (frequency + norms[lengths[key]])
        return found

    def phrase(self, terms: list[str], slop: int) -> Scores:
        """The documents with the terms in their order, at most `slop` moves apart."""
        if not terms or any(term not in self.postings for term in terms):
            return {}
        idf = sum(self.idf(term) for term in terms)
        found: Scores = {}
        for key in set.intersection(*(set(self.postings[term]) for term in terms)):
            frequency = sum(self._occurrences(key, terms, slop))
            if frequency:
                found[key] = idf * frequency / (frequency + self._norms()[self.lengths[key]])
        return found

    def _occurrences(self, key: Key, terms: list[str], slop: int) -> Iterator[float]:
        shifted = [[at - place for at in self.postings[term][key]] for place, term in enumerate(terms)]
        for start in shifted[0]:
            nearest = [min(positions, key=lambda at: (abs(at - start), at)) for positions in shifted]
            distance = max(nearest) - min(nearest)
            if distance <= slop:
                yield 1 / (1 + distance)


class SearchIndex(FollowingIndex):
    """A search index over one collection, as of the last change it took in."""

    def __init__(self, definition: SearchDefinition, mirror: Mirror) -> None:
        self.definition = definition
        super().__init__(mirror)

    def _reset(self) -> None:
        self.terms = {path: Terms() for path in self.definition.texts}
        self.values: dict[str, dict[tuple[object, object], set[Key]]] = {path: {} for path in self.definition.values}

    def _take(self, key: Key, before: Record | None, record: Record | None) -> None:
        for path, places in self.values.items():
            for value in scalars(before, path) if before is not None else ():
                if value in places:
                    places[value].discard(key)
                    if not places[value]:
                        del places[value]
            for value in scalars(record, path) if record is not None else ():
                if value[0] is type(None) or KINDS[value[0]] in self.definition.values[path]:
                    places.setdefault(value, set()).add(key)
        for path, terms in self.terms.items():
            texts = [one for one in values(record, path) if isinstance(one, str)] if record is not None else []
            terms.put(key, texts, self.definition.texts[path].index)

    def search(self, asked: "Query") -> list[tuple[Key, float]]:
        """Every document that matches with its score, the best first, or as the query sorts them."""
        found = asked.evaluate(self)
        ranked = sorted(found.items(), key=lambda one: (-one[1], self.order[one[0]]))
        # From the last key of the sort to the first: each keeps the order of the one before among equals.
        for path, descending in reversed(asked.sort):
            if path is None:
                ranked.sort(key=itemgetter(1), reverse=descending)
            elif path not in self.definition.values:
                raise from_mongot(STAGE, f"{path} is not indexed as sortable")
            else:
                ranked.sort(key=partial(self._place, path, descending), reverse=descending)
        return ranked

    def _place(self, path: str, descending: bool, one: tuple[Key, float]) -> tuple[Any, ...]:
        """What a document is sorted by: no value comes lowest, an array goes by its lowest or its highest."""
        mapped = self.definition.values[path]
        held = [
            (BRACKETS.index(kind), value)
            for kind, value in scalars(self.documents[one[0]], path)
            if KINDS[kind] in mapped
        ]
        return (max if descending else min)(held, default=(-1,))

    def need(self, path: str, kind: object) -> dict[tuple[object, object], set[Key]]:
        """The values at a path, which must be mapped for the kind of value that is asked for."""
        wanted = KINDS[kind]
        if kind is type(None):
            return self.values.get(path, {})
        if wanted not in self.definition.values.get(path, set()):
            raise from_mongot(STAGE, f"Path '{path}' needs to be indexed as {wanted}")
        return self.values[path]


class Query:
    """A `$search`'s specification, checked as mongot checks it."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise refusal(31067, "Search argument must be an object.")
        named = [name for name in given if name in OPERATORS]
        for name in given:
            if name not in OPERATORS | OPTIONS:
                raise from_mongot(STAGE, f'unrecognized field "{name}"')
        if len(named) != 1:
            listed = ", ".join(sorted(OPERATORS))
            many = "more than one of" if named else "one of"
            raise from_mongot(STAGE, f"{many} [{listed}] {'was' if named else 'must be'} present")
        index = given.get("index", "default")
        if not isinstance(index, str) or not index:
            raise from_mongot(STAGE, '"index" must be a non-empty string')
        self.index: str = index
        self.evaluate = _operator(given[named[0]], named[0], named[0])
        self.sort = _sort(given["sort"]) if "sort" in given else []


def _sort(given: object) -> list[tuple[str | None, bool]]:
    """The fields to sort by, None for the score, each with whether it descends."""
    if not isinstance(given, Mapping):
        raise from_mongot(STAGE, '"sort" must be a document')
    if not given:
        raise from_mongot(STAGE, '"sort" Sort spec must have at least one sort field defined')
    fields: list[tuple[str | None, bool]] = []
    for name, asked in given.items():
        scored = isinstance(asked, Mapping) and "$meta" in asked
        order = asked
        if isinstance(asked, Mapping):
            checked = _checked(asked, f"sort.{name}", set(), {"$meta", "order"})
            if scored and checked["$meta"] != "searchScore":
                raise from_mongot(STAGE, f'"sort.{name}.$meta" must be one of [searchScore]')
            order = checked.get("order", -1 if scored else 1)
        if isinstance(order, bool) or not isinstance(order, int | float):
            raise from_mongot(STAGE, f'"sort.{name}" must be a number')
        if order not in (1, -1):
            raise from_mongot(STAGE, f'"sort.{name}" sort order must be 1 or -1')
        fields.append((None if scored else str(name), order == -1))
    return fields


def _checked(given: object, where: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise from_mongot(STAGE, f'"{where}" must be a document')
    for name in given:
        if name not in required | optional:
            raise from_mongot(STAGE, f'"{where}" unrecognized field "{name}"')
    for name in sorted(required):
        if name not in given:
            raise from_mongot(STAGE, f'"{where}.{name}" is required')
    return given


def _strings(given: object, where: str) -> list[str]:
    listed: list[Any] = given if isinstance(given, list) else [given]
    if not listed:
        raise from_mongot(STAGE, f'"{where}" cannot be empty')
    for one in listed:
        if not isinstance(one, str):
            raise from_mongot(STAGE, f'"{where}" must be a string or strings')
        if not one:
            raise from_mongot(STAGE, f'"{where}" cannot be empty')
    return listed


def _scored(evaluate: Evaluated, score: object, where: str) -> Evaluated:
    """Apply an operator's `score` option: `{constant: {value}}` or `{boost: {value}}`."""
    if score is None:
        return evaluate
    checked = _checked(score, f"{where}.score", set(), {"constant", "boost"})
    if len(checked) != 1:
        raise from_mongot(STAGE, f'"{where}.score" must have exactly one of [boost, constant]')
    kind = next(iter(checked))
    value = _checked(checked[kind], f"{where}.score.{kind}", {"value"}, set())["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise from_mongot(STAGE, f'"{where}.score.{kind}.value" must be non-negative')
    if kind == "constant":
        return lambda index: dict.fromkeys(evaluate(index), float(value))
    return lambda index: {key: found * float(value) for key, found in evaluate(index).items()}


def _operator(given: object, name: str, where: str) -> Evaluated:
    make = {
        "compound": _compound,
        "text": _text,
        "phrase": _phrase,
        "equals": _equals,
        "in": _in,
        "range": _range,
        "exists": _exists,
    }[name]
    evaluate = make(given, where)
    return _scored(evaluate, given.get("score") if isinstance(given, Mapping) else None, where)


def _sum(found: Iterable[Scores]) -> Scores:
    total: Scores = {}
    for scores in found:
        for key, score in scores.items():
            total[key] = total.get(key, 0.0) + score
    return total


def _compound(given: object, where: str) -> Evaluated:
    clauses = ("must", "should", "filter", "mustNot")
    checked = _checked(given, where, set(), {*clauses, "minimumShouldMatch", "score"})
    parsed: dict[str, list[Evaluated]] = {}
    for clause in clauses:
        listed = checked.get(clause, [])
        parsed[clause] = []
        for place, one in enumerate(listed if isinstance(listed, list) else [listed]):
            here = f"{where}.{clause}[{place}]" if isinstance(listed, list) else f"{where}.{clause}"
            if not isinstance(one, Mapping) or len(one) != 1:
                raise from_mongot(STAGE, f'"{here}" must have exactly one operator')
            name = next(iter(one))
            if name not in OPERATORS:
                raise from_mongot(STAGE, f'"{here}" unrecognized field "{name}"')
            parsed[clause].append(_operator(one[name], name, f"{here}.{name}"))
    if not any(parsed.values()):
        raise from_mongot(STAGE, f'"{where}" must have at least one clause')
    minimum = checked.get("minimumShouldMatch", 0)
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 0:
        raise from_mongot(STAGE, f'"{where}.minimumShouldMatch" must be non-negative')
    if minimum > len(parsed["should"]):
        raise from_mongot(STAGE, f'"{where}" minimumShouldMatch cannot be greater than number of should clauses')
    must, should, kept, dropped = (parsed[clause] for clause in clauses)

    def evaluate(index: SearchIndex) -> Scores:
        musts = [one(index) for one in must]
        filters = [one(index) for one in kept]
        shoulds = [one(index) for one in should]
        required = [*musts, *filters]
        if required:
            matching = set.intersection(*(set(one) for one in required))
        elif should:
            matching = set().union(*shoulds)
        else:
            matching = set(index.documents)
        if minimum:
            matching = {key for key in matching if sum(key in one for one in shoulds) >= minimum}
        for one in dropped:
            matching -= one(index).keys()
        scores = _sum([*musts, *shoulds])
        return {key: scores.get(key, 0.0) for key in matching}

    return evaluate


def _text(given: object, where: str) -> Evaluated:
    checked = _checked(given, where, {"query", "path"}, {"matchCriteria", "score"})
    queries = _strings(checked["query"], f"{where}.query")
    paths = _strings(checked["path"], f"{where}.path")
    criteria = checked.get("matchCriteria", "any")
    if criteria not in ("any", "all"):
        raise from_mongot(STAGE, f'"{where}.matchCriteria" must be one of [all, any]')

    def one(index: SearchIndex, path: str, query: str) -> Scores:
        if path not in index.terms:
            return {}
        held, terms = index.terms[path], index.definition.texts[path].query(query)
        found = held.text(terms)
        if criteria == "all":
            found = {
                key: score for key, score in found.items() if all(key in held.postings.get(term, ()) for term in terms)
            }
        return found

    return lambda index: _sum(one(index, path, query) for path in paths for query in queries)


def _phrase(given: object, where: str) -> Evaluated:
    checked = _checked(given, where, {"query", "path"}, {"slop", "score"})
    queries = _strings(checked["query"], f"{where}.query")
    paths = _strings(checked["path"], f"{where}.path")
    slop = checked.get("slop", 0)
    if isinstance(slop, bool) or not isinstance(slop, int) or slop < 0:
        raise from_mongot(STAGE, f'"{where}.slop" must be non-negative')

    def one(index: SearchIndex, path: str, query: str) -> Scores:
        if path not in index.terms:
            return {}
        terms = index.definition.texts[path].query(query)
        return index.terms[path].text(terms) if len(terms) == 1 else index.terms[path].phrase(terms, slop)

    return lambda index: _sum(one(index, path, query) for path in paths for query in queries)


def _one(value: object, where: str) -> tuple[Any, Any]:
    kept = typed(value)
    if kept is None:
        raise from_mongot(STAGE, f'"{where}" must be a boolean, objectId, number, string, date, uuid, or null')
    return kept


def _equals(given: object, where: str) -> Evaluated:
    checked = _checked(given, where, {"path", "value"}, {"score"})
    (path,) = _strings(checked["path"], f"{where}.path")
    wanted = _one(checked["value"], f"{where}.value")
    return lambda index: dict.fromkeys(index.need(path, wanted[0]).get(wanted, ()), 1.0)


def _in(given: object, where: str) -> Evaluated:
    checked = _checked(given, where, {"path", "value"}, {"score"})
    paths = _strings(checked["path"], f"{where}.path")
    listed = checked["value"] if isinstance(checked["value"], list) else [checked["value"]]
    if not listed:
        raise from_mongot(STAGE, f'"{where}.value" cannot be empty')
    wanted = [_one(value, f"{where}.value") for value in listed]
    if any(value is None for _, value in wanted):
        raise from_mongot(STAGE, f'"{where}.value" must be a boolean, objectId, number, string, date, or uuid')
    if len({kind for kind, _ in wanted}) > 1:
        raise from_mongot(STAGE, f'"{where}.value" must have elements of the same type')

    def evaluate(index: SearchIndex) -> Scores:
        found: Scores = {}
        for path in paths:
            places = index.need(path, wanted[0][0])
            for value in wanted:
                found.update(dict.fromkeys(places.get(value, ()), 1.0))
        return found

    return evaluate


def _range(given: object, where: str) -> Evaluated:
    checked = _checked(given, where, {"path"}, {"gt", "gte", "lt", "lte", "score"})
    paths = _strings(checked["path"], f"{where}.path")
    for pair in (("gt", "gte"), ("lt", "lte")):
        if all(name in checked for name in pair):
            raise from_mongot(STAGE, f'"{where}" at most one of [{", ".join(pair)}] may be present')
    bounds = {name: _one(checked[name], f"{where}.{name}") for name in ("gt", "gte", "lt", "lte") if name in checked}
    if not bounds:
        raise from_mongot(STAGE, f'"{where}" must specify at least one of [lt, lte, gt, gte]')
    if len({kind for kind, _ in bounds.values()}) > 1:
        raise from_mongot(STAGE, f'"{where}" bounds must be of the same type')
    kind = next(iter(bounds.values()))[0]
    if kind is bool or kind is type(None):
        raise from_mongot(STAGE, f'"{where}" range operator does not support BOOLEAN point type')

    def within(value: Any) -> bool:
        return (
            ("gt" not in bounds or value > bounds["gt"][1])
            and ("gte" not in bounds or value >= bounds["gte"][1])
            and ("lt" not in bounds or value < bounds["lt"][1])
            and ("lte" not in bounds or value <= bounds["lte"][1])
        )

    def evaluate(index: SearchIndex) -> Scores:
        found: Scores = {}
        for path in paths:
            for value, keys in index.need(path, kind).items():
                if value[0] is kind and within(value[1]):
                    found.update(dict.fromkeys(keys, 1.0))
        return found

    return evaluate


def _exists(given: object, where: str) -> Evaluated:
    checked = _checked(given, where, {"path"}, {"score"})
    (path,) = _strings(checked["path"], f"{where}.path")

    def evaluate(index: SearchIndex) -> Scores:
        keys: set[Key] = set(index.terms[path].lengths) if path in index.terms else set()
        for value, held in index.values.get(path, {}).items():
            if value[1] is not None:
                keys |= held
        return dict.fromkeys(keys, 1.0)

    return evaluate
