"""Search in the Atlas store: words and filters to Atlas Search, pipelines, and what their rows mean. No driver here."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import mul
from typing import Any

from activities.store.base import RRF_K
from activities.store.filters import Condition, Node
from activities.store.fusion import candidates, check_search, fuse
from activities.store.words import matches, terms_of

Document = dict[str, Any]

CANDIDATES_PER_RESULT = 20
"""How many nearest neighbours the graph search looks at for each that it returns; Atlas's documentation advises 20."""
MAX_CANDIDATES = 10_000
"""The most that Atlas allows."""
SCORE_DIGITS = 6
"""Cosines come as (1 + cosine) / 2 in 32 bits: more digits than these are noise."""


@dataclass(frozen=True)
class Target:
    """A collection as a search sees it.

    Attributes:
        collection: Its name in the database.
        text_field: What is searched by keyword.
        vector_field: What is searched by vector.
        text_index: The full-text search index; None where the collection has none.
        vector_index: The vector search index.
        share: What every record found must have, by field: the user, and the collection where there is one. Part of
            the search itself, never applied to its results.
        ordered: Whether the full-text index holds `_id`, so that it can order records of the same score.
    """

    collection: str
    text_field: str
    vector_field: str
    text_index: str | None
    vector_index: str
    share: Mapping[str, str]
    ordered: bool = True


@dataclass
class Found:
    """What one aggregation found.

    Attributes:
        cosines: Cosine by record id, of the vector leg.
        keywords: BM25 score by record id, of the keyword leg.
        documents: The records by id: whole for the best ones, a few fields for the others.
    """

    cosines: dict[str, float] = field(default_factory=dict)
    keywords: dict[str, float] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)


def mql(node: Node, prefix: str = "") -> Document:
    """A filter in MongoDB's query language, over fields below `prefix`."""
    if isinstance(node, Condition):
        field = prefix + node.field
        if node.operator in ("$in", "$nin"):
            return {field: {node.operator: list(node.values)}}
        return {field: {node.operator: node.values[0]}}
    members = [mql(member, prefix) for member in node.members]
    if node.combinator == "$not":
        return {"$nor": members}
    return {node.combinator: members} if members else {}


def search_clause(node: Node) -> Document:
    """A filter as a clause of `$search`."""
    if not isinstance(node, Condition):
        members = [search_clause(member) for member in node.members]
        match node.combinator:
            case "$not":
                return {"compound": {"mustNot": members}}
            case "$or":
                return {"compound": {"should": members, "minimumShouldMatch": 1}}
            case _:
                return {"compound": {"filter": members}}
    path, value = node.field, node.values[0] if node.values else None
    match node.operator:
        case "$exists":
            clause: Document = {"exists": {"path": path}}
            return clause if value else {"compound": {"mustNot": [clause]}}
        case "$eq" | "$ne":
            clause = {"equals": {"path": path, "value": value}}
        case "$in" | "$nin":
            clause = {"in": {"path": path, "value": list(node.values)}}
        case _:
            return {"range": {"path": path, node.operator[1:]: value}}
    return {"compound": {"mustNot": [clause]}} if node.operator in ("$ne", "$nin") else clause


@dataclass(frozen=True)
class Query:
    """One hybrid search of one target.

    Attributes:
        text: The query; its terms are looked up by keyword.
        vector: What the driver sends as the query's vector; None for one of zeros, which is near nothing.
        limit: How many results are wanted.
        weight: Of the vector leg; the keyword leg has the rest.
        ids: The only records that may be found; None for all.
        filter: More conditions, on fields that the search indexes hold.
        keeps_vectors: Whether the records found come with their vectors.
    """

    target: Target
    text: str
    vector: Any
    limit: int
    weight: float
    ids: Sequence[str] | None = None
    filter: Node | None = None
    keeps_vectors: bool = False

    def __post_init__(self) -> None:
        check_search(self.limit, self.weight)

    @property
    def candidates(self) -> int:
        """How many results each leg contributes."""
        return candidates(self.limit)

    @cached_property
    def terms(self) -> list[str]:
        return terms_of(self.text) if self.target.text_index else []

    @cached_property
    def legs(self) -> dict[str, tuple[list[Document], str, float]]:
        """The legs that have weight and something to look for: stages, name of their score, weight."""
        legs: dict[str, tuple[list[Document], str, float]] = {}
        if self.weight > 0 and self.vector is not None:
            legs["vector"] = (self._vector_stages(), "vectorSearchScore", self.weight)
        if self.weight < 1 and self.terms:
            legs["text"] = (self._text_stages(), "searchScore", 1 - self.weight)
        return legs

    def _vector_stages(self) -> list[Document]:
        conditions: list[Document] = [{path: {"$eq": value}} for path, value in self.target.share.items()]
        if self.ids is not None:
            conditions.append({"_id": {"$in": list(self.ids)}})
        if self.filter is not None and (extra := mql(self.filter)):
            conditions.append(extra)
        stage: Document = {
            "index": self.target.vector_index,
            "path": self.target.vector_field,
            "queryVector": self.vector,
            "numCandidates": min(MAX_CANDIDATES, CANDIDATES_PER_RESULT * self.candidates),
            "limit": self.candidates,
        }
        if conditions:
            stage["filter"] = {"$and": conditions}
        return [{"$vectorSearch": stage}, {"$sort": {"score": {"$meta": "vectorSearchScore"}, "_id": 1}}]

    def _text_stages(self) -> list[Document]:
        path = self.target.text_field
        words = [term for term in self.terms if " " not in term]
        clauses: list[Document] = [{"phrase": {"query": term, "path": path}} for term in self.terms if " " in term]
        if words:
            clauses.append({"text": {"query": words, "path": path}})
        filters: list[Document] = [
            {"equals": {"path": path, "value": value}} for path, value in self.target.share.items()
        ]
        if self.ids is not None:
            filters.append({"in": {"path": "_id", "value": list(self.ids)}})
        if self.filter is not None:
            filters.append(search_clause(self.filter))
        compound = {"should": clauses, "minimumShouldMatch": 1, "filter": filters}
        # Sorted by the search engine itself: a later stage would have to read every match.
        search: Document = {"index": self.target.text_index, "compound": compound}
        if self.target.ordered:
            search["sort"] = {"score": {"$meta": "searchScore"}, "_id": 1}
        return [{"$search": search}, {"$limit": self.candidates}]

    def pipeline(self, *, rank_fusion: bool) -> list[Document]:
        """The search as one aggregation.

        Args:
            rank_fusion: Whether the server has `$rankFusion` (8.0 and later); otherwise the same fusion is made of
                `$unionWith`. The rows are alike either way.

        Returns:
            Stages whose rows have `_id`, `legs` (a list of leg, rank and value for each leg that found it) and
            `record`: the whole record for the first `limit` rows, its source and revision for the others.
        """
        legs = self.legs
        if not legs:
            return []
        fusion = self._rank_fusion(legs) if rank_fusion and len(legs) > 1 else self._union(legs)
        return [
            *fusion,
            *([] if self.keeps_vectors else [{"$unset": f"record.{self.target.vector_field}"}]),
            {
                "$setWindowFields": {
                    "sortBy": {"score": -1, "_id": 1},
                    "output": {"place": {"$documentNumber": {}}},
                }
            },
            {
                "$project": {
                    "legs": 1,
                    "record": {
                        "$cond": [
                            {"$lte": ["$place", self.limit]},
                            "$record",
                            {
                                "_id": "$_id",
                                "source": "$record.source",
                                "revision": "$record.revision",
                                "partial": {"$literal": True},
                            },
                        ]
                    },
                }
            },
        ]

    @staticmethod
    def _rank_fusion(legs: dict[str, tuple[list[Document], str, float]]) -> list[Document]:
        return [
            {
                "$rankFusion": {
                    "input": {"pipelines": {name: stages for name, (stages, _, _) in legs.items()}},
                    "combination": {"weights": {name: weight for name, (_, _, weight) in legs.items()}},
                    "scoreDetails": True,
                }
            },
            {
                "$project": {
                    "record": "$$ROOT",
                    "score": {"$meta": "score"},
                    "details": {"$meta": "scoreDetails"},
                }
            },
            {
                "$set": {
                    "details": "$$REMOVE",
                    "legs": {
                        "$map": {
                            "input": "$details.details",
                            "in": {"leg": "$$this.inputPipelineName", "rank": "$$this.rank", "value": "$$this.value"},
                        }
                    },
                }
            },
        ]

    def _union(self, legs: dict[str, tuple[list[Document], str, float]]) -> list[Document]:
        """Reciprocal rank fusion of the legs by `$unionWith`, for servers without `$rankFusion`."""
        pipelines: list[list[Document]] = []
        for name, (stages, score, weight) in legs.items():
            pipelines.append(
                [
                    *stages,
                    {"$project": {"record": "$$ROOT", "value": {"$meta": score}}},
                    {
                        "$setWindowFields": {
                            "sortBy": {"value": -1, "_id": 1},
                            "output": {"rank": {"$documentNumber": {}}},
                        }
                    },
                    {"$set": {"leg": name, "part": {"$divide": [weight, {"$add": ["$rank", RRF_K]}]}}},
                ]
            )
        first, *others = pipelines
        unions = [{"$unionWith": {"coll": self.target.collection, "pipeline": other}} for other in others]
        return [
            *first,
            *unions,
            {
                "$group": {
                    "_id": "$_id",
                    "record": {"$first": "$record"},
                    "score": {"$sum": "$part"},
                    "legs": {"$push": {"leg": "$leg", "rank": "$rank", "value": "$value"}},
                }
            },
        ]

    def read(self, rows: Sequence[Document]) -> Found:
        """What the pipeline's rows say."""
        ranked: dict[str, list[tuple[int, str, float]]] = {"vector": [], "text": []}
        found = Found()
        for row in rows:
            key = key_of(row["_id"])
            found.documents[key] = row["record"]
            for leg in row["legs"]:
                # A leg that missed the record has the rank "NA".
                if isinstance(leg["rank"], int) and leg["rank"] > 0:
                    ranked[leg["leg"]].append((leg["rank"], key, leg["value"]))
        found.cosines = {one: cosine_of(value) for _, one, value in sorted(ranked["vector"], key=lambda item: item[0])}
        found.keywords = {one: float(value) for _, one, value in sorted(ranked["text"], key=lambda item: item[0])}
        return found

    def found_by(self, found: Found) -> list[dict[str, float]]:
        """What each leg that was run has found."""
        results = {"vector": found.cosines, "text": found.keywords}
        return [results[name] for name in self.legs]

    def unseen(self, found: Found, recent: Sequence[Document]) -> dict[str, int]:
        """Which of the user's newest records hold terms of the query but aren't in the keyword leg, and how many."""
        if "text" not in self.legs:
            return {}
        held = {
            one["_id"]: matches(self.terms, one.get(self.target.text_field, ""))
            for one in recent
            if one["_id"] not in found.keywords
        }
        return {record_id: terms for record_id, terms in held.items() if terms}

    def add_recent(
        self,
        found: Found,
        recent: Sequence[Document],
        cosine: Callable[[Document], float | None],
        late: Mapping[str, int],
    ) -> None:
        """Add records to `found` that the search indexes don't hold yet.

        Atlas Search follows the collections with a delay, about a second. Whoever stored something wants to find it at
        once, so each search also looks at the user's newest records: by their exact cosine, and by the terms of the
        query that they hold. The keyword score of one that the index lacks is the best one found times the share of
        the query's terms that it holds, since BM25 needs the index's statistics.

        Args:
            found: What the indexes have found, which is changed.
            recent: The newest records, whole.
            cosine: Of a record with the query; None where it has no vector.
            late: Those of `unseen` that the full-text index doesn't hold yet.
        """
        by_id = {one["_id"]: one for one in recent}
        if "vector" in self.legs:
            for record_id, one in by_id.items():
                if (exact := cosine(one)) is not None:
                    found.cosines[record_id] = exact
            found.cosines = self._best(found.cosines)
        top = max(found.keywords.values(), default=1.0)
        found.keywords |= {record_id: top * held / len(self.terms) for record_id, held in late.items()}
        found.keywords = self._best(found.keywords)
        found.documents |= {
            record_id: one for record_id, one in by_id.items() if record_id in found.cosines or record_id in late
        }

    def _best(self, scores: dict[str, float]) -> dict[str, float]:
        """As many of a leg's results as it contributes, best first."""
        return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[: self.candidates])

    def fused(self, found: Found) -> list[tuple[str, float]]:
        """Ids and fused scores of what was found, best first and at most `limit`."""
        return fuse([(self.weight, list(found.cosines)), (1 - self.weight, list(found.keywords))])[: self.limit]


def digest(*parts: str) -> str:
    """What stands for several texts, however long, in an id or an index."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def key_of(record_id: Any) -> str:
    """A record's `_id` as text; other people's may be of any type."""
    return record_id if isinstance(record_id, str) else f"{type(record_id).__name__} {record_id!r}"


def cosine_of(score: float) -> float:
    """The cosine that Atlas's score of a vector search stands for: score = (1 + cosine) / 2."""
    return round(2 * score - 1, SCORE_DIGITS)


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine of two vectors of unit length, to the digits that Atlas's have."""
    return round(float(sum(map(mul, left, right))), SCORE_DIGITS)
