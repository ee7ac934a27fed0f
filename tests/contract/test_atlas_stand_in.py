"""The stand-in for Atlas, held to what MongoDB documents and to what the sources of mongod and mongot say."""

import asyncio
import contextlib
import math
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson.binary import Binary, BinaryVectorDtype
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure

from tests.atlas.running import stand_in

Client = AsyncIOMotorClient[dict[str, Any]]

# One token an ideograph or kana, else runs of letters, digits and marks.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = rf"[{_IDEOGRAPH}]|(?:(?![{_IDEOGRAPH}])[\p{{L}}\p{{N}}\p{{M}}])+"
VECTORS: dict[str, list[dict[str, Any]]] = {
    "fields": [
        {"type": "vector", "path": "embedding", "numDimensions": 2, "similarity": "cosine"},
        {"type": "filter", "path": "user"},
        {"type": "filter", "path": "tags"},
    ]
}
TEXTS = {
    "analyzers": [
        {
            "name": "words",
            "charFilters": [],
            "tokenizer": {"type": "regexCaptureGroup", "pattern": _WORDS, "group": 0},
            "tokenFilters": [{"type": "icuFolding"}, {"type": "porterStemming"}],
        }
    ],
    "mappings": {
        "dynamic": False,
        "fields": {
            "text": {"type": "string", "analyzer": "words"},
            "user": [{"type": "token"}, {"type": "string", "analyzer": "lucene.keyword"}],
            "tags": {"type": "token"},
            "size": {"type": "number"},
            "at": {"type": "date"},
            "meta": {"type": "document", "fields": {"flag": {"type": "boolean"}}},
        },
    },
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with stand_in(tmp_path_factory.mktemp("atlas")) as uri:
        yield uri


@pytest.fixture
async def client(uri: str) -> AsyncIterator[Client]:
    client: Client = AsyncIOMotorClient(uri)
    yield client
    client.close()


@pytest.fixture
async def db(client: Client) -> AsyncIterator[Any]:
    """A database of its own with an indexed collection, `c`."""
    database = client[f"test_{uuid.uuid4().hex[:12]}"]
    await database.create_collection("c")
    await create(database, {"name": "vectors", "type": "vectorSearch", "definition": VECTORS})
    await create(database, {"name": "texts", "type": "search", "definition": TEXTS})
    await ready(database)
    yield database
    await client.drop_database(database.name)


async def create(db: Any, *indexes: dict[str, Any], on: str = "c") -> dict[str, Any]:
    made: dict[str, Any] = await db.command({"createSearchIndexes": on, "indexes": list(indexes)})
    return made


async def listed(db: Any, **by: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await run(db, {"$listSearchIndexes": by})
    return found


async def ready(db: Any) -> None:
    while any(index["status"] != "READY" for index in await listed(db)):
        await asyncio.sleep(0.01)


async def run(db: Any, *stages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await db.c.aggregate(list(stages)).to_list(None)
    return found


async def ids(db: Any, *stages: dict[str, Any]) -> list[Any]:
    return [found["_id"] for found in await run(db, *stages)]


@contextlib.contextmanager
def refused(code: int, words: str = "") -> Iterator[None]:
    with pytest.raises(OperationFailure) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)


def near(vector: list[float], **changes: Any) -> dict[str, Any]:
    spec = {"index": "vectors", "path": "embedding", "queryVector": vector, "numCandidates": 100, "limit": 10}
    return {"$vectorSearch": {name: value for name, value in (spec | changes).items() if value is not None}}


def search(**operator: Any) -> dict[str, Any]:
    return {"$search": {"index": "texts", **operator}}


def text(query: str | list[str], path: str | list[str] = "text", **options: Any) -> dict[str, Any]:
    return {"text": {"query": query, "path": path, **options}}


def equals(path: str, value: object) -> dict[str, Any]:
    return {"equals": {"path": path, "value": value}}


async def test_an_index_becomes_ready_and_is_listed(db: Any) -> None:
    made = await create(db, {"name": "other", "type": "vectorSearch", "definition": VECTORS})
    (index,) = await listed(db, name="other")
    assert (index["status"], index["queryable"]) == ("PENDING", False)
    assert made["indexesCreated"] == [{"id": index["id"], "name": "other"}]
    await ready(db)
    (index,) = await listed(db, id=index["id"])
    assert (index["type"], index["status"], index["queryable"]) == ("vectorSearch", "READY", True)
    assert index["latestDefinition"] == VECTORS
    assert index["latestDefinitionVersion"]["version"] == 0
    assert len(await listed(db)) == 3


async def test_an_update_leaves_the_old_definition_queryable(db: Any) -> None:
    await db.c.insert_one({"_id": 1, "embedding": [1, 0]})
    fields = [{**VECTORS["fields"][0], "numDimensions": 3}]
    await db.command({"updateSearchIndex": "c", "name": "vectors", "definition": {"fields": fields}})
    (index,) = await listed(db, name="vectors")
    assert (index["status"], index["queryable"]) == ("BUILDING", True)
    assert index["latestDefinitionVersion"]["version"] == 1
    assert await ids(db, near([1, 0])) == [1]
    await ready(db)
    assert await ids(db, near([1, 0, 0])) == []
    await db.command({"dropSearchIndex": "c", "name": "vectors"})
    assert await listed(db, name="vectors") == []


async def test_creating_an_index_again(db: Any) -> None:
    (before,) = await listed(db, name="texts")
    again = await create(db, {"name": "texts", "type": "search", "definition": TEXTS})
    assert again["indexesCreated"][0]["id"] == before["id"]
    with refused(68, "already exists with a different definition"):
        await create(db, {"name": "texts", "definition": {"mappings": {"dynamic": False}}})


async def test_indexes_that_are_not_there(db: Any) -> None:
    with refused(27, "No index with name nosuch exists in namespace"):
        await db.command({"dropSearchIndex": "c", "name": "nosuch"})
    with refused(27):
        await db.command({"updateSearchIndex": "c", "name": "nosuch", "definition": VECTORS})
    with refused(26, "does not exist"):
        await create(db, {"name": "x", "definition": TEXTS}, on="nosuch")
    with refused(26):
        await db.command({"dropSearchIndex": "nosuch", "name": "x"})
    await db.c.insert_one({"embedding": [1, 0], "text": "dogs"})
    assert await run(db, near([1, 0], index="nosuch")) == []
    assert await run(db, {"$search": {"index": "nosuch", **text("dogs")}}) == []


async def test_an_index_goes_with_its_collection(db: Any) -> None:
    await db.c.insert_one({"_id": 1, "embedding": [1, 0]})
    await db.c.drop()
    assert await listed(db) == []
    await db.c.insert_one({"_id": 2, "embedding": [1, 0]})
    assert await run(db, near([1, 0])) == []


async def test_an_index_that_builds_or_is_of_the_other_kind_cannot_be_asked(db: Any) -> None:
    await create(db, {"name": "new", "type": "vectorSearch", "definition": VECTORS})
    with refused(8, "cannot query vector index"):
        await run(db, near([1, 0], index="new"))
    with refused(8, "Cannot execute $vectorSearch over search index 'texts'"):
        await run(db, near([1, 0], index="texts"))
    with refused(8, "Cannot execute $search over vectorSearch index 'vectors'"):
        await run(db, {"$search": {"index": "vectors", **text("x")}})


def _field(**changes: Any) -> dict[str, Any]:
    field = {**VECTORS["fields"][0], **changes}
    return {"fields": [{name: value for name, value in field.items() if value is not None}]}


def _mapping(field: object, **top: Any) -> dict[str, Any]:
    return {"mappings": {"fields": {"x": field}}, **top}


def _analyzer(**changes: Any) -> dict[str, Any]:
    return {"analyzers": [{"name": "a", "tokenizer": {"type": "standard"}, **changes}], "mappings": {}}


@pytest.mark.parametrize(
    ("kind", "definition", "words"),
    [
        ("vectorSearch", {}, 'indexes[0].fields" is required'),
        ("vectorSearch", {"fields": [{"type": "filter", "path": "x"}]}, "vector"),
        ("vectorSearch", {"fields": [{"type": "other", "path": "x"}]}, "must be one of [vector, filter]"),
        ("vectorSearch", _field(numDimensions=None), 'numDimensions" is required'),
        ("vectorSearch", _field(numDimensions=8193), "must be within bounds [1, 8192]"),
        ("vectorSearch", _field(numDimensions=0), "must be within bounds"),
        ("vectorSearch", _field(similarity="other"), "must be one of"),
        ("vectorSearch", _field(quantization="other"), "must be one of"),
        (
            "vectorSearch",
            _field(compression="x"),
            '"userCommand.indexes[0].fields[0]" unrecognized field "compression"',
        ),
        ("search", {}, 'mappings" is required'),
        ("search", {"mappings": {}, "other": 1}, 'unrecognized field "other"'),
        ("search", _mapping({"type": "other"}), "must be one of"),
        ("search", _mapping({"type": "token", "analyzer": "x"}), 'unrecognized field "analyzer"'),
        ("search", _mapping({"type": "string", "analyzer": "nosuch"}), 'analyzer "nosuch" is not defined'),
        ("search", _analyzer(tokenizer={"type": "other"}), "must be one of"),
        ("search", _analyzer(tokenizer={"type": "regexCaptureGroup", "pattern": "a"}), 'group" is required'),
        ("search", _analyzer(tokenizer={"type": "regexCaptureGroup", "pattern": "a", "group": 1}), "invalid group"),
        ("search", _analyzer(tokenizer={"type": "regexCaptureGroup", "pattern": "(", "group": 0}), "tokenizer"),
        ("search", _analyzer(tokenFilters=[{"type": "icuFold"}]), "must be one of"),
        ("search", _analyzer(name="lucene.mine"), "lucene."),
        ("other", {}, "must be one of [search, vectorSearch]"),
    ],
)
async def test_definitions_that_are_refused(db: Any, kind: str, definition: dict[str, Any], words: str) -> None:
    with refused(8, words):
        await create(db, {"name": "new", "type": kind, "definition": definition})


async def test_vectors_are_ranked_by_cosine(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": "same", "embedding": [2, 0]},
            {"_id": "across", "embedding": Binary.from_vector([0.0, 3.0], BinaryVectorDtype.FLOAT32)},
            {"_id": "against", "embedding": [-1.0, 0.0]},
            {"_id": "between", "embedding": [1, 1]},
            {"_id": "none"},
            {"_id": "zero", "embedding": [0, 0]},
            {"_id": "longer", "embedding": [1, 0, 0]},
        ]
    )
    score = {"$project": {"score": {"$meta": "vectorSearchScore"}}}
    query = Binary.from_vector([1.0, 0.0], BinaryVectorDtype.FLOAT32)
    found = await run(db, near([1, 0], queryVector=query), score)
    assert [one["_id"] for one in found] == ["same", "between", "across", "against"]
    expected = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0.0]
    assert [one["score"] for one in found] == pytest.approx(expected, abs=1e-6)
    assert await ids(db, near([1, 0], exact=True, numCandidates=None, limit=2)) == ["same", "between"]
    await db.c.update_one({"_id": "against"}, {"$set": {"embedding": [1, 0.01]}})
    await db.c.delete_one({"_id": "same"})
    assert await ids(db, near([1, 0])) == ["against", "between", "across"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"user": "a"}, [1, 3]),
        ({"user": {"$in": ["b"]}}, [2]),
        ({"user": {"$nin": ["b"]}}, [1, 3, 4]),
        ({"user": {"$exists": False}}, [4]),
        ({"tags": "x"}, [1, 2]),
        ({"$and": [{"user": "a"}, {"tags": {"$ne": "x"}}]}, [3]),
        ({"$or": [{"user": "b"}, {"tags": {"$gte": "y", "$lt": "z"}}]}, [2]),
        ({"$nor": [{"user": "a"}]}, [2, 4]),
        ({"user": {"$not": {"$eq": "a"}}}, [2, 4]),
        ({}, [1, 2, 3, 4]),
    ],
)
async def test_filters_of_vectors(db: Any, condition: dict[str, Any], expected: list[int]) -> None:
    others: list[dict[str, Any]] = [
        {"user": "a", "tags": ["x"]},
        {"user": "b", "tags": ["x", "y"]},
        {"user": "a"},
        {"tags": []},
    ]
    await db.c.insert_many([{"_id": at, "embedding": [1, 0], **other} for at, other in enumerate(others, 1)])
    for _ in range(2):
        assert sorted(await ids(db, near([1, 0], filter=condition))) == expected
    await db.c.update_many({}, {"$set": {"user": "c", "tags": ["q"]}})
    assert await ids(db, near([1, 0], filter={"user": "a"})) == []


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"filter": {"size": 1}}, 8, "Path 'size' needs to be indexed as filter"),
        ({"filter": {"user": {"$regex": "a"}}}, 8, "$regex"),
        ({"filter": {"$expr": {"$eq": ["$user", "a"]}}}, 8, "$expr"),
        ({"queryVector": [1, 0, 0]}, 8, "vector field is indexed with 2 dimensions but queried with 3"),
        ({"queryVector": [0, 0]}, 8, "Cosine similarity cannot be calculated against a zero vector."),
        ({"queryVector": [math.nan, 0]}, 8, "non-finite value"),
        ({"queryVector": "x"}, 8, "queryVector"),
        ({"queryVector": None}, 8, "Exactly one and only one of query and queryVector can be present"),
        ({"path": "user"}, 8, "user is not indexed as vector"),
        ({"path": None}, 8, '"path" is required'),
        ({"index": None}, 8, '"index" is required'),
        ({"limit": None}, 8, '"limit" is required'),
        ({"limit": 0}, 7912700, "limit"),
        ({"limit": "x"}, 8575100, "limit"),
        ({"numCandidates": None}, 8, "numCandidates is required for approximate vector search"),
        ({"numCandidates": 9}, 8, "limit should be less than or equal to numCandidates"),
        ({"numCandidates": 10_001}, 8, '"numCandidates" must be within bounds [1, 10000]'),
        ({"exact": True}, 8, '"numCandidates" must be omitted when "exact" is set to true'),
        ({"other": 1}, 8, 'unrecognized field "other"'),
    ],
)
async def test_vector_searches_that_are_refused(db: Any, changes: dict[str, Any], code: int, words: str) -> None:
    with refused(code, words):
        await run(db, near([1, 0], **changes))


def bm25(frequency: int, length: int, mean: float, holding: int, documents: int) -> float:
    idf = math.log(1 + (documents - holding + 0.5) / (holding + 0.5))
    return idf * frequency / (frequency + 1.2 * (1 - 0.75 + 0.75 * length / mean))


async def test_texts_are_ranked_by_bm25(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": 1, "text": "Dogs run, dogs rest."},
            {"_id": 2, "text": "A cat sat by one dog today"},
            {"_id": 3, "text": ["Cafés", "日本語"]},
            {"_id": 4, "other": "dogs"},
        ]
    )
    mean = (4 + 7 + 4) / 3
    score = {"$project": {"score": {"$meta": "searchScore"}}}
    found = await run(db, search(**text("the dogs")), score)
    assert [one["_id"] for one in found] == [1, 2]
    assert [one["score"] for one in found] == pytest.approx([bm25(2, 4, mean, 2, 3), bm25(1, 7, mean, 2, 3)])
    (found_one,) = await run(db, search(**text(["running", "CAFE 本"])), score, {"$match": {"_id": 3}})
    assert found_one["score"] == pytest.approx(2 * bm25(1, 4, mean, 1, 3))
    assert await ids(db, search(**text("dogs cat", matchCriteria="all"))) == [2]
    assert await ids(db, search(phrase={"query": "dog rests", "path": "text"})) == [1]
    (phrase,) = await run(db, search(phrase={"query": "日本語", "path": "text"}), score)
    assert phrase["score"] == pytest.approx(3 * bm25(1, 4, mean, 1, 3))
    assert await ids(db, search(phrase={"query": "cat dog", "path": "text"})) == []
    assert await ids(db, search(phrase={"query": "cat dog", "path": "text", "slop": 3})) == [2]
    assert await ids(db, search(**text("dogs", "other"))) == []
    await db.c.delete_one({"_id": 1})
    (found_one,) = await run(db, search(**text("dogs")), score)
    assert found_one["score"] == pytest.approx(bm25(1, 7, 11 / 2, 1, 2))


async def test_values_are_matched_whole(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": 1, "user": "Ann B", "tags": ["x", "y"], "size": 1, "meta": {"flag": True}},
            {"_id": 2, "user": "ann b", "tags": [], "size": 2.5, "meta": {"flag": False}},
            {"_id": 3, "user": "z", "tags": ["y"], "size": [7, 9]},
        ]
    )
    assert await ids(db, search(**equals("user", "Ann B"))) == [1]
    assert await ids(db, search(**equals("size", 1.0))) == [1]
    assert await ids(db, search(**equals("meta.flag", False))) == [2]
    assert await ids(db, search(**{"in": {"path": "tags", "value": ["x", "y"]}})) == [1, 3]
    assert await ids(db, search(range={"path": "size", "gt": 1, "lte": 7})) == [2, 3]
    assert await ids(db, search(range={"path": "user", "gte": "ann", "lt": "b"})) == [2]
    assert await ids(db, search(exists={"path": "tags"})) == [1, 3]
    (found,) = await run(db, search(**equals("size", 9)), {"$project": {"score": {"$meta": "searchScore"}}})
    assert found["score"] == 1.0


async def test_a_search_sorts_by_score_and_by_fields(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": 1, "text": "dog", "user": "b", "size": 5},
            {"_id": 2, "text": "dog", "user": "a"},
            {"_id": 3, "text": "dog dog", "user": "a", "size": [1, 9]},
            {"_id": 4, "text": "dog", "user": None, "size": 7},
        ]
    )

    async def by(**sort: Any) -> list[Any]:
        return await ids(db, search(**text("dog"), sort=sort))

    score = {"$meta": "searchScore"}
    assert await by(score=score, user=1) == [3, 4, 2, 1]
    assert await by(score={**score, "order": 1}, user=-1) == [1, 2, 4, 3]
    assert await by(size=1) == [2, 3, 1, 4]
    assert await by(size=-1) == [3, 4, 1, 2]
    assert await ids(db, search(**equals("user", None))) == [4]
    leg = [search(**text("dog"), sort={"score": score, "user": 1}), {"$limit": 2}]
    assert await ids(db, {"$rankFusion": {"input": {"pipelines": {"t": leg}}}}) == [3, 4]
    with refused(8, "text is not indexed as sortable"):
        await by(text=1)


async def test_documents_of_the_same_rank(db: Any) -> None:
    await db.c.insert_many([{"_id": at, "text": words} for at, words in enumerate(["dog", "dog", "dog cat"])])
    fusion = {"input": {"pipelines": {"t": [search(**text("dog"))]}}, "scoreDetails": True}
    found = await run(db, {"$rankFusion": fusion}, {"$set": {"d": {"$meta": "scoreDetails"}}})
    assert [one["d"]["details"][0]["rank"] for one in found] == [1, 1, 3]


async def test_compounds(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": 1, "text": "cats dogs", "user": "a"},
            {"_id": 2, "text": "cats", "user": "a"},
            {"_id": 3, "text": "fish", "user": "a"},
            {"_id": 4, "text": "cats dogs", "user": "b"},
        ]
    )
    mine = equals("user", "a")
    clauses = [text("cats"), text("dogs")]
    score = {"$project": {"score": {"$meta": "searchScore"}}}
    assert await ids(db, search(compound={"should": clauses})) == [1, 4, 2]
    assert sorted(await ids(db, search(compound={"should": clauses, "filter": [mine]}))) == [1, 2, 3]
    assert await ids(db, search(compound={"should": clauses, "filter": [mine], "minimumShouldMatch": 1})) == [1, 2]
    assert await ids(db, search(compound={"must": clauses, "mustNot": [mine]})) == [4]
    assert await ids(db, search(compound={"mustNot": mine})) == [4]
    filtered = await run(db, search(compound={"filter": [mine, text("fish")]}), score)
    assert filtered == [{"_id": 3, "score": 0.0}]
    (both,) = await run(db, search(compound={"must": [mine, text("fish")]}), score)
    assert both["score"] == pytest.approx(1 + bm25(1, 1, 6 / 4, 1, 4))


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (equals("text", "x"), "Path 'text' needs to be indexed as token"),
        (equals("user", 1), "Path 'user' needs to be indexed as number"),
        ({"in": {"path": "size", "value": ["x"]}}, "Path 'size' needs to be indexed as token"),
        ({"in": {"path": "tags", "value": []}}, "cannot be empty"),
        ({"in": {"path": "tags", "value": ["x", 1]}}, "must have elements of the same type"),
        ({"range": {"path": "text", "gt": "x"}}, "Path 'text' needs to be indexed as token"),
        ({"range": {"path": "size"}}, "must specify at least one of [lt, lte, gt, gte]"),
        (text("x", matchCriteria="most"), "must be one of"),
        (text(""), "cannot be empty"),
        (text("x", fuzz={}), 'unrecognized field "fuzz"'),
        ({"text": {"query": "x"}}, 'path" is required'),
        ({"regexp": {"query": "x", "path": "text"}}, 'unrecognized field "regexp"'),
        ({**text("x"), **equals("user", "a")}, "of ["),
        ({}, "of ["),
        ({"compound": {}}, '"compound"'),
        ({"compound": {"must": [{"other": {}}]}}, "other"),
        ({"compound": {"should": [text("x")], "minimumShouldMatch": 2}}, "minimumShouldMatch"),
    ],
)
async def test_text_searches_that_are_refused(db: Any, operator: dict[str, Any], words: str) -> None:
    await db.c.insert_one({"text": "x", "user": "a"})
    with refused(8, words):
        await run(db, search(**operator))


async def test_search_stages_come_first_and_outside_of_transactions(db: Any, client: Client) -> None:
    stages = [near([1, 0]), search(**text("x")), {"$listSearchIndexes": {}}]
    for stage in stages:
        (name,) = stage
        with refused(40602, f"{name} is only valid as the first stage in a pipeline"):
            await run(db, {"$match": {}}, stage)
        with refused(40600, "$facet"):
            await run(db, {"$facet": {"a": [stage]}})
        async with await client.start_session() as session:
            session.start_transaction()
            with refused(263, f"Stage not supported inside of a multi-document transaction: {name}"):
                await db.c.aggregate([stage], session=session).to_list(None)


async def test_metadata_is_carried_through_stages(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": 1, "embedding": [1, 0], "text": "dog", "user": "a"},
            {"_id": 2, "embedding": [1, 0], "text": "dog dog", "user": "b"},
            {"_id": 3, "embedding": [0, 1], "text": "cat", "user": "a"},
        ]
    )
    score = {"$meta": "vectorSearchScore"}
    ordered = [near([1, 0]), {"$sort": {"score": score, "_id": -1}}]
    assert await ids(db, *ordered) == [2, 1, 3]
    found = await run(db, *ordered, {"$set": {"x": 1}}, {"$project": {"x": 1, "s": score}}, {"$match": {"s": 1}})
    assert found == [{"_id": 2, "x": 1, "s": 1.0}, {"_id": 1, "x": 1, "s": 1.0}]
    (group,) = await run(db, *ordered, {"$group": {"_id": None, "s": {"$push": {"id": "$_id", "s": score}}}})
    assert group["s"] == [{"id": 2, "s": 1.0}, {"id": 1, "s": 1.0}, {"id": 3, "s": 0.5}]
    numbered = {"partitionBy": "$user", "sortBy": {"s": 1, "_id": 1}, "output": {"n": {"$documentNumber": {}}}}
    found = await run(db, *ordered, {"$set": {"s": score}}, {"$setWindowFields": numbered}, {"$set": {"again": score}})
    assert {one["_id"]: (one["n"], one["again"]) for one in found} == {1: (2, 1.0), 2: (1, 1.0), 3: (1, 0.5)}
    other = [search(**text("dog")), {"$set": {"t": {"$meta": "searchScore"}}}]
    found = await run(db, near([0, 1], limit=1), {"$unionWith": {"coll": "c", "pipeline": other}})
    assert [one["_id"] for one in found] == [3, 2, 1]
    assert all(one["t"] > 0 for one in found[1:])


async def test_rank_fusion(db: Any) -> None:
    await db.c.insert_many(
        [
            {"_id": 1, "embedding": [1, 0], "text": "cat"},
            {"_id": 2, "embedding": [1, 1], "text": "dog"},
            {"_id": 3, "embedding": [0, 1], "text": "dog dog"},
        ]
    )
    pipelines = {
        "v": [near([1, 0]), {"$sort": {"score": {"$meta": "vectorSearchScore"}, "_id": 1}}, {"$limit": 2}],
        "t": [search(**text("dogs"))],
    }
    fusion = {"input": {"pipelines": pipelines}, "combination": {"weights": {"v": 0.5}}, "scoreDetails": True}
    meta = {"$project": {"score": {"$meta": "score"}, "details": {"$meta": "scoreDetails"}}}
    found = await run(db, {"$rankFusion": fusion}, meta)
    assert [one["_id"] for one in found] == [2, 3, 1]
    assert [one["score"] for one in found] == pytest.approx([0.5 / 62 + 1 / 62, 1 / 61, 0.5 / 61])
    details = found[1]["details"]
    assert details["value"] == found[1]["score"]
    assert details["description"].startswith("value output by reciprocal rank fusion algorithm, computed as sum of")
    first, second = details["details"]
    assert first.pop("value") > 0
    assert first == {"inputPipelineName": "t", "rank": 1, "weight": 1.0, "details": []}
    assert second == {"inputPipelineName": "v", "rank": "NA", "weight": 0.5}
    assert "details" not in (await run(db, {"$rankFusion": {**fusion, "scoreDetails": False}}, meta))[0]
    ranked = [{"$match": {"_id": {"$gt": 1}}}, {"$sort": {"_id": -1}}]
    assert await ids(db, {"$rankFusion": {"input": {"pipelines": {"m": ranked}}}}) == [3, 2]


LEG = [{"$sort": {"_id": 1}}]


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"input": {"pipelines": {}}}, 2, "at least one pipeline"),
        ({"input": {"pipelines": {"a": []}}}, 9834300, "cannot be empty"),
        ({"input": {"pipelines": {"a": [{"$match": {}}]}}}, 9191100, "did not begin with a ranked stage"),
        ({"input": {"pipelines": {"a": [*LEG, {"$project": {"x": 1}}]}}}, 9191103, "$project is not a selection stage"),
        ({"input": {"pipelines": {"a": [*LEG, {"$set": {"x": 1}}]}}}, 9191103, "$set is not a selection stage"),
        ({"input": {"pipelines": {"a": [{"$rankFusion": {}}]}}}, 10473002, "nested hybrid search stage"),
        ({"input": {"pipelines": {"$a": LEG}}}, 16410, "may not start with '$'"),
        ({"input": {"pipelines": {"a.b": LEG}}}, 16412, "may not contain '.'"),
        ({"input": {"pipelines": {"": LEG}}}, 15998, "may not be empty"),
        ({"input": {"pipelines": {"a": LEG}}, "combination": {"weights": {"b": 1}}}, 9967500, "valid pipeline names"),
        ({"input": {"pipelines": {"a": LEG}}, "combination": {"weights": {"a": 1, "b": 1}}}, 9460301, "more weights"),
        ({"input": {"pipelines": {"a": LEG}}, "combination": {"weights": {"a": -1}}}, 9460300, "non-negative"),
        ({"input": {"pipelines": {"a": LEG}}, "other": 1}, 40415, "unknown field"),
        ({"combination": {"weights": {}}}, 40414, "missing but a required field"),
    ],
)
async def test_rank_fusions_that_are_refused(db: Any, spec: dict[str, Any], code: int, words: str) -> None:
    with refused(code, words):
        await run(db, {"$rankFusion": spec})


async def test_paused_indexing_ranks_by_what_it_knew(db: Any, client: Client) -> None:
    await db.c.insert_many([{"_id": at, "embedding": [1, 0], "text": "dog", "user": "a"} for at in (1, 2)])
    assert await ids(db, near([1, 0])) == [1, 2]
    await client.admin.command({"standIn": "indexing", "paused": True})
    try:
        await db.c.insert_one({"_id": 3, "embedding": [1, 0], "text": "dog", "user": "a"})
        await db.c.delete_one({"_id": 1})
        await db.c.update_one({"_id": 2}, {"$set": {"text": "cat", "user": "b"}})
        assert await run(db, search(**text("dog")), {"$project": {"text": 1}}) == [{"_id": 2, "text": "cat"}]
        (found,) = await run(db, near([1, 0], filter={"user": "a"}), {"$project": {"user": 1}})
        assert found == {"_id": 2, "user": "b"}
    finally:
        await client.admin.command({"standIn": "indexing", "paused": False})
    assert await ids(db, search(**text("dog"))) == [3]
    assert await ids(db, near([1, 0], filter={"user": "a"})) == [3]


async def test_what_a_transaction_writes_is_found_once_it_commits(db: Any, client: Client) -> None:
    await db.c.insert_one({"_id": 1, "text": "dog", "tags": ["x"]})
    async with await client.start_session() as session:
        session.start_transaction()
        await db.c.insert_one({"_id": 2, "text": "dog"}, session=session)
        await db.c.update_one({"_id": 1}, {"$push": {"tags": "y"}, "$set": {"text": "cat"}}, session=session)
        assert await ids(db, search(**text("dog"))) == [1]
        await session.commit_transaction()
    assert await ids(db, search(**text("dog"))) == [2]
    assert await run(db, search(**text("cat"))) == [{"_id": 1, "text": "cat", "tags": ["x", "y"]}]


@pytest.mark.parametrize("change", ["update", "delete"])
async def test_a_write_of_many_waits_for_a_transaction_and_not_the_other_way_round(
    db: Any, client: Client, change: str
) -> None:
    await db.c.insert_one({"_id": 0, "kind": "a"})

    async def write_many() -> None:
        if change == "update":
            await db.c.update_many({"kind": "a"}, {"$set": {"changed": True}})
        else:
            await db.c.delete_many({"kind": "a"})

    async with await client.start_session() as session, asyncio.timeout(60):
        session.start_transaction()
        await db.c.update_one({"_id": 0}, {"$set": {"seen": True}}, session=session)
        writing = asyncio.create_task(write_many())
        for number in range(1, 200):
            await db.c.insert_one({"_id": number, "kind": "b"}, session=session)
        await session.commit_transaction()
        await writing
    first = await db.c.find_one({"_id": 0})
    assert first == ({"_id": 0, "kind": "a", "seen": True, "changed": True} if change == "update" else None)
    assert await db.c.count_documents({"kind": "b"}) == 199


async def test_searches_beside_writers_see_whole_transactions(db: Any, client: Client) -> None:
    async def write(at: int) -> None:
        async with await client.start_session() as session:
            session.start_transaction()
            await db.c.insert_one({"_id": f"{at}a", "text": "pair"}, session=session)
            await db.c.insert_one({"_id": f"{at}b", "text": "pair"}, session=session)
            await session.commit_transaction()

    writers = asyncio.gather(*(write(at) for at in range(20)))
    for _ in range(20):
        assert len(await ids(db, search(**text("pairs")))) % 2 == 0
    await writers
    assert len(await ids(db, search(**text("pairs")))) == 40


async def test_sub_pipelines_may_count(db: Any) -> None:
    await db.c.insert_many([{"_id": at, "user": "a"} for at in range(3)])
    counted = {"from": "c", "localField": "user", "foreignField": "user", "pipeline": [{"$count": "n"}], "as": "x"}
    assert (await run(db, {"$lookup": counted}))[0]["x"] == [{"n": 3}]


async def test_ttl_that_differs_is_an_options_conflict(db: Any) -> None:
    await db.c.create_index("at", name="at", expireAfterSeconds=0)
    with refused(85):
        await db.c.create_index("at", name="at", expireAfterSeconds=9)


async def test_an_older_release_has_no_rank_fusion(tmp_path: Path) -> None:
    with stand_in(tmp_path, "--version", "7.0.20") as uri:
        client: Client = AsyncIOMotorClient(uri)
        assert (await client.server_info())["version"] == "7.0.20"
        await client["x"].create_collection("c")
        with refused(40324, "Unrecognized pipeline stage name: '$rankFusion'"):
            await client["x"].c.aggregate([{"$rankFusion": {}}]).to_list(None)
        client.close()


@pytest.mark.parametrize("flags", ["basic", "off"])
async def test_rank_fusion_by_feature_flag(tmp_path: Path, flags: str) -> None:
    with stand_in(tmp_path, "--rank-fusion", flags) as uri:
        client: Client = AsyncIOMotorClient(uri)
        await client["x"].c.insert_one({"_id": 1})
        fusion: dict[str, Any] = {"input": {"pipelines": {"a": LEG}}}
        with refused(224):
            await client["x"].c.aggregate([{"$rankFusion": {**fusion, "scoreDetails": True}}]).to_list(None)
        with refused(224) if flags == "off" else contextlib.nullcontext():
            await client["x"].c.aggregate([{"$rankFusion": fusion}]).to_list(None)
        client.close()


async def test_a_wrong_password_is_refused_as_atlas_refuses_it(tmp_path: Path) -> None:
    with stand_in(tmp_path, "--username", "ann", "--password", "right") as uri:
        client: Client = AsyncIOMotorClient(uri)
        await client["x"].c.insert_one({})
        client.close()
        client = AsyncIOMotorClient(uri.replace("right", "wrong"))
        with refused(8000, "bad auth : authentication failed"):
            await client["x"].c.insert_one({})
        client.close()
        client = AsyncIOMotorClient(re.sub(r"//.*@", "//", uri))
        with refused(13):
            await client["x"].c.insert_one({})
        client.close()
