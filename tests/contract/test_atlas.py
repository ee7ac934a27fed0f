"""What is the Atlas store's alone: agreement with the embedded one, older servers, declared collections, indexes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from bson.binary import Binary, BinaryVectorDtype
from temporalio.exceptions import ApplicationError

from activities.bedrock import BedrockEmbeddings
from activities.chunking import split
from activities.formats import parse
from activities.models import (
    DEFAULT_COLLECTION,
    EMBEDDED,
    CacheScope,
    Chunk,
    DocumentQuery,
    EmbeddingModel,
    ExternalCollection,
    RecordEmbedding,
    SearchHit,
    pack_vector,
)
from activities.store.atlas import AtlasDatabase, AtlasStore
from activities.store.atlas_indexes import TEXT_INDEX, VECTOR_INDEX, IndexReport, compare_search, search_indexes
from activities.store.base import Store
from activities.store.sqlite import SqliteStore
from mcp_server.local.stack import Addresses
from mcp_server.settings import LOCAL_EMBEDDING_MODEL
from tests.atlas.running import stand_in
from tests.conftest import CORPUS
from tests.contract.records import (
    EAST,
    MODEL,
    NOON,
    NORTH,
    WEST,
    Engine,
    chunk,
    entry,
    fails,
    found,
    message,
    put,
    search,
)

QUESTIONS = (
    "How do I back up a database without stopping it?",
    "Why does a workflow have to be deterministic?",
    "vector search with a filter",
    "What happens when a worker crashes in the middle?",
    "cache time to live",
    "reciprocal rank fusion",
    "How are tokens counted by language models?",
    "retry policy with backoff",
    "full-text index and stemming",
    "Who may read another user's documents?",
    "streamable HTTP or stdio",
    "long-term memory of a conversation",
)


@asynccontextmanager
async def opened(store: Store, model: EmbeddingModel = MODEL) -> AsyncIterator[Store]:
    if isinstance(store, AtlasStore):
        await store.build_indexes(model, lambda reports: None)
    await store.open(model)
    try:
        yield store
    finally:
        await store.close()


def kendall_tau(left: list[str], right: list[str]) -> float:
    """Kendall's rank correlation of two rankings, from −1 to 1: (agreeing − disagreeing pairs) / pairs.

    What only one of them has comes after all that the other has, in no order of its own.
    """
    everything = list(dict.fromkeys([*left, *right]))
    if len(everything) < 2:
        return 1.0
    places = [[ranked.index(one) if one in ranked else len(ranked) for one in everything] for ranked in (left, right)]
    total = 0
    for first in range(len(everything)):
        for second in range(first):
            signs = [(places[n][first] > places[n][second]) - (places[n][first] < places[n][second]) for n in (0, 1)]
            total += signs[0] * signs[1]
    return total / (len(everything) * (len(everything) - 1) / 2)


async def test_both_engines_rank_a_shared_corpus_alike(stack: Addresses, atlas_target: str, tmp_path: Path) -> None:
    """By vector the same; by keyword as far as two BM25s agree (Lucene's idf is never negative, FTS5's is cut off)."""
    embeddings = BedrockEmbeddings(LOCAL_EMBEDDING_MODEL, None, None, stack.models)
    vectors = dict(zip(QUESTIONS, await embeddings.embed(QUESTIONS, "query"), strict=True))
    taus: dict[float, list[float]] = {0: [], 0.5: [], 1: []}
    sqlite, atlas = SqliteStore(tmp_path / "store.db"), Engine("atlas", atlas_target).atlas()
    async with opened(sqlite, embeddings.model) as one, opened(atlas, embeddings.model) as other:
        for path in sorted(CORPUS.glob("*.md")):
            pieces = [piece.text for piece in split(parse(path.read_bytes(), ".md"), 200, 20)]
            chunks = [
                chunk(f"{path.stem}-{position:02}", piece, embedding, source=path.name, position=position)
                for position, (piece, embedding) in enumerate(
                    zip(pieces, await embeddings.embed(pieces, "passage"), strict=True)
                )
            ]
            for store in (one, other):
                await store.replace_source("ann", DEFAULT_COLLECTION, path.name, chunks)
        for question, vector in vectors.items():
            for weight, measured in taus.items():
                query = DocumentQuery(user_id="ann", query=question, embedding=vector, weight=weight, limit=10)
                rankings = [[hit.id for hit in await store.search_documents(query)] for store in (one, other)]
                measured.append(kendall_tau(*rankings))

    average = {weight: sum(measured) / len(measured) for weight, measured in taus.items()}
    assert min(taus[1]) > 0.99, taus
    assert average[0] > 0.95, taus
    assert average[0.5] > 0.95, taus


# Servers without $rankFusion


@pytest.mark.parametrize("options", [("--version", "7.0.20"), ("--rank-fusion", "off"), ("--rank-fusion", "basic")])
async def test_a_server_without_rank_fusion_answers_the_same(
    options: tuple[str, ...], atlas_target: str, tmp_path: Path
) -> None:
    words = ("plum", "cherry plum", "pear tart", "plum tart plum", "apple")
    chunks = [
        chunk(f"{n:02}", f"{words[n % 5]} {n}", pack_vector([10, n, n % 3, 0]), source="s", position=n)
        for n in range(40)
    ]

    async def answers(store: Store) -> list[list[SearchHit]]:
        await store.replace_source("ann", DEFAULT_COLLECTION, "s", chunks)
        weights = (0, 0.3, 0.5, 1)
        return [await search(store, "plum tart", NORTH, weight=weight, limit=7) for weight in weights]

    async with opened(Engine("atlas", atlas_target).atlas()) as store:
        expected = await answers(store)
    with stand_in(tmp_path, *options) as uri:
        async with opened(AtlasStore(uri, "older")) as store:
            assert await answers(store) == expected
    assert [len(hits) for hits in expected] == [7] * 4


# Collections that others fill

TRIPS = ExternalCollection(
    name="travel_agency.trip_recommendation",
    text_field="about.description",
    vector_field="embedding",
    vector_index="vector_index",
    text_index="default",
    user_field="traveller",
    filter_fields=["country", "price"],
)
SHARED = TRIPS.model_copy(update={"name": "travel_agency.guides", "user_field": None})


def fill(client: pymongo.MongoClient[dict[str, Any]], external: ExternalCollection) -> None:
    """Make a collection as its owner would, with other names, types and analysers than ours."""
    database, _, name = external.name.partition(".")
    client.drop_database(database)
    db = client[database]
    places = {"Lisbon": ("Portugal", 700, [1, 0, 0, 0]), "Porto": ("Portugal", 500, [1, 1, 0, 0])}
    places |= {"Oslo": ("Norway", 1200, [0, 1, 0, 0])}
    for traveller in ("ann", "bob"):
        db[name].insert_many(
            [
                {
                    "traveller": traveller,
                    "about": {"title": place, "description": f"{place}: trams, tarts and a river walk for {traveller}"},
                    "country": country,
                    "price": price,
                    "embedding": Binary.from_vector([float(one) for one in vector], BinaryVectorDtype.FLOAT32),
                    "starts": datetime(2125, 6, 1, tzinfo=UTC),
                    "agent": ObjectId(),
                }
                for place, (country, price, vector) in places.items()
            ]
        )
    filters = [{"type": "filter", "path": path} for path in ("traveller", "country", "price")]
    vector = {"type": "vector", "path": "embedding", "numDimensions": 4, "similarity": "cosine"}
    tokens: dict[str, Any] = {"traveller": {"type": "token"}, "country": {"type": "token"}, "price": {"type": "number"}}
    about = {"type": "document", "fields": {"description": {"type": "string", "analyzer": "lucene.standard"}}}
    mappings = {"dynamic": False, "fields": tokens | {"about": about}}
    definitions = [
        {"name": "vector_index", "type": "vectorSearch", "definition": {"fields": [vector, *filters]}},
        {"name": "default", "type": "search", "definition": {"mappings": mappings}},
    ]
    db.command({"createSearchIndexes": name, "indexes": definitions})


async def wait_until_queryable(store: AtlasStore) -> None:
    while not all(report.state == "ready" for report in await store.reports(MODEL)):
        pass


@pytest.fixture
async def travel(atlas_target: str, mongodb: pymongo.MongoClient[dict[str, Any]]) -> AsyncIterator[AtlasStore]:
    for external in (SHARED, TRIPS):
        fill(mongodb, external)
    fill(mongodb, TRIPS)
    store = Engine("atlas", atlas_target).atlas(external=[TRIPS])
    async with opened(store):
        await wait_until_queryable(store)
        yield store
    mongodb.drop_database("travel_agency")


async def test_a_declared_collection_is_searched_as_it_is(travel: AtlasStore) -> None:
    hits = await search(travel, "tarts in Lisbon", EAST, collection=TRIPS.name)

    assert [hit.metadata["about"]["title"] for hit in hits] == ["Lisbon", "Porto", "Oslo"]
    assert hits[0].text == "Lisbon: trams, tarts and a river walk for ann"
    assert (hits[0].score, hits[0].vector_score) == (1, 1)
    assert hits[0].text_score is not None
    assert hits[0].metadata["starts"] == "2125-06-01T00:00:00+00:00"
    assert {"embedding", "_id", "traveller"}.isdisjoint(hits[0].metadata)
    assert ObjectId.is_valid(hits[0].id)


async def test_a_declared_collection_shows_each_user_their_own(travel: AtlasStore) -> None:
    for user in ("ann", "bob"):
        for weight in (0, 0.5, 1):
            hits = await search(travel, "tarts", EAST, collection=TRIPS.name, user_id=user, weight=weight)
            assert len(hits) == 3
            assert all(hit.text.endswith(user) for hit in hits)
    assert await search(travel, "tarts", EAST, collection=TRIPS.name, user_id="eve") == []


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"country": "Portugal"}, {"Lisbon", "Porto"}),
        ({"country": {"$ne": "Portugal"}}, {"Oslo"}),
        ({"country": {"$in": ["Norway", "Chile"]}}, {"Oslo"}),
        ({"country": {"$nin": ["Norway"]}}, {"Lisbon", "Porto"}),
        ({"price": {"$lt": 1000, "$gte": 700}}, {"Lisbon"}),
        ({"price": 500}, {"Porto"}),
        ({"$or": [{"price": {"$gt": 1000}}, {"price": {"$lte": 500}}]}, {"Oslo", "Porto"}),
        ({"$not": {"country": "Norway"}}, {"Lisbon", "Porto"}),
        ({"country": {"$not": {"$eq": "Norway"}}, "price": {"$exists": True}}, {"Lisbon", "Porto"}),
    ],
)
async def test_a_declared_collection_is_filtered_inside_both_legs(
    travel: AtlasStore, filter: dict[str, Any], expected: set[str]
) -> None:
    for weight in (0, 0.5, 1):
        hits = await search(travel, "tarts", EAST, collection=TRIPS.name, filter=filter, weight=weight)
        assert {hit.metadata["about"]["title"] for hit in hits} == expected, weight


async def test_only_what_is_declared_is_reachable(travel: AtlasStore) -> None:
    with fails("rejected", "doesn't exist for this user", TRIPS.name):
        await search(travel, "tarts", collection="travel_agency.guides")
    with fails("rejected", "field 'agent'", "allowed: country, price"):
        await search(travel, "tarts", collection=TRIPS.name, filter={"agent": "x"})
    with fails("rejected", "EXTERNAL_COLLECTIONS", "only read"):
        await put(travel, chunk("a", "plum", collection=TRIPS.name))


async def test_a_shared_collection_is_everybodys(atlas_target: str, mongodb: Any) -> None:
    fill(mongodb, SHARED)
    async with opened(store := Engine("atlas", atlas_target).atlas(external=[SHARED])):
        await wait_until_queryable(store)
        assert len(await search(store, "tarts", EAST, collection=SHARED.name, user_id="eve")) == 6
    mongodb.drop_database("travel_agency")


async def test_a_declared_collection_without_its_index_says_so(atlas_target: str, mongodb: Any) -> None:
    fill(mongodb, TRIPS)
    wrong = TRIPS.model_copy(update={"vector_index": "typo"})
    async with opened(store := Engine("atlas", atlas_target).atlas(external=[wrong])):
        with fails("not_configured", TRIPS.name, "'typo'", "EXTERNAL_COLLECTIONS"):
            await search(store, "", EAST, collection=TRIPS.name, weight=1)
        reports = {report.index.name: report.state for report in await store.reports(MODEL)}
        assert reports["typo"] == "missing"
    mongodb.drop_database("travel_agency")


@pytest.mark.parametrize(
    ("changes", "weight", "reason"),
    [
        ({"vector_index": "typo"}, 0.5, "has no search index 'typo'"),
        ({"text_index": "typo"}, 0.5, "has no search index 'typo'"),
        ({"vector_field": "emb"}, 1, "'emb' with 4 dimensions"),
        ({"user_field": "agent"}, 0.5, "must hold agent, country, price"),
    ],
)
async def test_a_wrong_declaration_never_gives_half_a_search(
    atlas_target: str, mongodb: Any, changes: dict[str, str], weight: float, reason: str
) -> None:
    fill(mongodb, TRIPS)
    wrong, right = TRIPS.model_copy(update=changes), Engine("atlas", atlas_target).atlas(external=[TRIPS])
    async with opened(right):
        await wait_until_queryable(right)
    async with opened(store := Engine("atlas", atlas_target).atlas(external=[wrong])):
        with fails("not_configured", TRIPS.name, "EXTERNAL_COLLECTIONS", reason):
            await search(store, "tarts", EAST, collection=TRIPS.name, weight=weight)
    mongodb.drop_database("travel_agency")


# Indexes


def states(reports: list[IndexReport]) -> dict[tuple[str, str], str]:
    return {(report.index.collection, report.index.name): report.state for report in reports}


async def test_indexes_are_created_once_and_then_left_alone(mongodb_uri: str, mongodb: Any) -> None:
    store = AtlasStore(mongodb_uri, "index_test")
    seen: list[list[IndexReport]] = []
    with fails("not_configured", "index_test", "durable-context index"):
        await store.open(MODEL)
    assert set(states(await store.reports(MODEL)).values()) == {"missing"}

    await store.build_indexes(MODEL, seen.append)

    assert set(states(seen[0]).values()) == {"missing"}
    assert set(states(seen[-1]).values()) == {"ready"}
    assert len(seen) > 1
    database = mongodb["index_test"]
    before = [list(database[name].list_indexes()) for name in ("documents", "cache", "memory_nodes")]
    seen.clear()
    await store.build_indexes(MODEL, seen.append)
    assert len(seen) == 1
    assert [
        list(mongodb["index_test"][name].list_indexes()) for name in ("documents", "cache", "memory_nodes")
    ] == before
    await store.close()
    mongodb.drop_database("index_test")


async def test_what_differs_is_reported_and_mended(atlas_engine: Engine, mongodb: Any) -> None:
    documents = mongodb[atlas_engine.target.partition(" ")[0]]["documents"]
    documents.drop_index("user_id_collection_source_position")
    documents.create_index([("user_id", 1)], name="user_id_collection_source_position")
    documents.drop_search_index(TEXT_INDEX)
    quantized = atlas_engine.atlas(quantization="scalar")

    reports = {report.index.name: report for report in await quantized.reports(MODEL) if report.state != "ready"}

    assert {name: report.state for name, report in reports.items()} == {
        "user_id_collection_source_position": "differs",
        TEXT_INDEX: "missing",
        VECTOR_INDEX: "differs",
    }
    assert reports["user_id_collection_source_position"].detail == "in key"
    assert "quantization" in reports[VECTOR_INDEX].detail
    with fails("not_configured", "documents", "durable-context index"):
        await quantized.open(MODEL)

    await quantized.build_indexes(MODEL, lambda reports: None)

    assert set(states(await quantized.reports(MODEL)).values()) == {"ready"}
    assert any(report.state == "differs" for report in await atlas_engine.atlas().reports(MODEL))
    async with opened(quantized) as store:
        await put(store, chunk("a", "plum"))
        assert await found(store, "plum") == ["a"]


async def test_an_index_of_before_cached_answers_had_scopes_is_refused_until_it_is_mended(
    atlas_engine: Engine, mongodb: Any
) -> None:
    cache = mongodb[atlas_engine.target.partition(" ")[0]]["cache"]
    [now] = cache.list_search_indexes(VECTOR_INDEX)
    fields = [one for one in now["latestDefinition"]["fields"] if one["path"] not in ("namespace", "model")]
    cache.update_search_index(VECTOR_INDEX, {"fields": fields})

    with fails("not_configured", "cache", "durable-context index"):
        await atlas_engine.atlas().open(MODEL)
    [report] = [
        one for one in await atlas_engine.atlas().reports(MODEL) if one.index.collection == "cache" and one.lacking
    ]
    assert (report.state, report.detail) == ("differs", "filter field 'namespace' isn't in it")
    await atlas_engine.prepare(MODEL)
    async with opened(atlas_engine.atlas()) as store:
        await store.put_cache_entry(entry("e", "h", namespace="work"))
        assert await store.nearest_cached("ann", EAST, NOON, CacheScope(namespace="work"))


async def test_an_index_that_is_dropped_while_serving_is_missed(
    atlas_engine: Engine, mongodb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.store.atlas.VERDICT_SECONDS", 0)
    database = atlas_engine.target.partition(" ")[0]
    async with opened(atlas_engine.atlas()) as store:
        assert await found(store, "plum") == []
        mongodb[database]["documents"].drop_search_index(VECTOR_INDEX)
        with fails("not_configured", "documents", "durable-context index"):
            await found(store, "plum")


async def test_a_record_beyond_16_megabytes_is_rejected_and_loses_nothing(atlas_engine: Engine) -> None:
    async with opened(atlas_engine.atlas()) as store:
        await put(store, chunk("a", "plum", source="s"))
        with fails("rejected", "too large", "16 MB"):
            await put(store, chunk("b", "x" * (17 * 2**20), source="s"))
        assert await found(store, "plum") == ["a"]


async def test_a_filter_that_leaves_too_much_says_so(atlas_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.store.atlas.MAX_FILTERED", 3)
    chunks: list[Chunk] = [chunk(f"{n}", "plum", source="s", position=n) for n in range(4)]
    async with opened(atlas_engine.atlas()) as store:
        await store.replace_source("ann", DEFAULT_COLLECTION, "s", chunks)
        assert await found(store, "plum", WEST, filter={"position": {"$lt": 3}}) == ["0", "1", "2"]
        with fails("over_limit", "filter", "more than 3"):
            await search(store, "plum", filter={"position": {"$lt": 4}})


async def test_mongodb_removes_expired_answers_by_itself(atlas_engine: Engine, mongodb: Any) -> None:
    long_ago = datetime(2024, 1, 1, tzinfo=UTC)
    async with opened(atlas_engine.atlas()) as store:
        await store.put_cache_entry(entry("old", "h", created_at=long_ago, expires_at=long_ago + timedelta(days=1)))
        await store.put_cache_entry(entry("new", "i"))
        cache = mongodb[atlas_engine.target.partition(" ")[0]]["cache"]
        while cache.find_one({"entry_id": "old"}):
            await asyncio.sleep(0.1)
        assert await store.cached_answer("ann", "i", NOON) == entry("new", "i")


async def test_collections_may_have_other_names(mongodb_uri: str, mongodb: Any) -> None:
    names = {"documents": "passages", "conversations": "chats", "memory_nodes": "memories", "cache": "answers"}
    async with opened(AtlasStore(mongodb_uri, "renamed", names=names)) as store:
        await put(store, chunk("a", "plum"))
        assert await found(store, "plum") == ["a"]
    kept = {name for name in mongodb["renamed"].list_collection_names() if not name.startswith("system.")}
    derived = {"passages_sources", "passages_staged", "passages_contents.files", "passages_contents.chunks"}
    derived |= {"chats_contexts", "chats_summaries", "memories_users", "durable_context_models"}
    assert kept == {*names.values(), *derived}
    mongodb.drop_database("renamed")


# Re-embedding

OTHER = EmbeddingModel(model_id="local.other", dimensions=2)


async def moved(store: AtlasStore) -> bool:
    """Embed all records with OTHER and switch, however long the indexes take."""
    await store.begin_reembedding(OTHER)
    while True:
        for collection in EMBEDDED:
            while records := await store.texts_to_embed(OTHER, collection, 10):
                vectors = [RecordEmbedding(**one.model_dump(), embedding=pack_vector([1, 0])) for one in records]
                await store.put_embeddings(OTHER, collection, vectors)
        try:
            return await store.finish_reembedding(OTHER)
        except ApplicationError as failed:
            if failed.type != "unavailable":
                raise


async def test_a_move_ends_and_can_be_run_again_whatever_indexes_others_lack(atlas_engine: Engine) -> None:
    missing = TRIPS.model_copy(update={"name": "nowhere.nothing"})
    mover = atlas_engine.atlas(external=[missing])
    async with opened(atlas_engine.atlas()) as store:
        await put(store, chunk("a", "plum"))
        assert await moved(mover)
        assert await mover.finish_reembedding(OTHER)
        assert await moved(mover)
    async with opened(atlas_engine.atlas(), OTHER) as store:
        assert await found(store, embedding=pack_vector([1, 0]), weight=1) == ["a"]
    await mover.close()


async def test_a_write_across_the_switch_fails_and_its_record_waits_for_a_vector(
    atlas_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, writer = atlas_engine.atlas(), atlas_engine.atlas()
    await writer.open(MODEL)
    await writer.put_message(message("before"))
    await mover.begin_reembedding(OTHER)
    checked = writer._filled
    stalled: list[bool] = []

    async def slow(collection: str, session: Any = None) -> Any:
        fields = await checked(collection, session)
        if not stalled:
            stalled.append(True)
            assert await moved(mover)
        return fields

    monkeypatch.setattr(writer, "_filled", slow)
    with fails("model_mismatch", "local.other (2 dimensions)", "durable-context reembed"):
        await writer.put_message(message("across"))

    await mover.build_indexes(OTHER, lambda reports: None)
    assert [one.record_id for one in await mover.texts_to_embed(OTHER, "conversations", 10)] == ["across"]
    assert await moved(mover)
    assert await mover.texts_to_embed(OTHER, "conversations", 10) == []
    await writer.close()
    await mover.close()


# What a hostile reading found


@pytest.mark.parametrize(
    ("options", "given", "missing"),
    [
        ("", {"timeoutMS": 10_000, "maxPoolSize": 64, "tls": True}, set()),
        ("?connectTimeoutMS=3000&wtimeoutMS=3", {"timeoutMS": 10_000}, {"connectTimeoutMS"}),
        ("?timeoutMS=77;maxPoolSize=5", {"serverSelectionTimeoutMS": 5000}, {"timeoutMS", "maxPoolSize"}),
        ("?tlsCAFile=x", {"tls": True}, set()),
        ("?tls=false", {}, {"tls"}),
        ("?ssl=true", {}, {"tls"}),
    ],
)
def test_the_connection_string_has_the_last_word(options: str, given: dict[str, Any], missing: set[str]) -> None:
    chosen = AtlasDatabase(f"mongodb://u:p@db.example.com/{options}", "x", {}, 64, 10.0)._options()
    assert {name: chosen.get(name) for name in given} == given
    assert missing.isdisjoint(chosen)
    assert (chosen["w"], chosen["retryWrites"], chosen["retryReads"]) == ("majority", False, False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("?tlsCAFile=/no/such/file", "file that MONGODB_URI names"),
        ("?authMechanism=MONGODB-X509&tlsCertificateKeyFile=/no/such/file", "MONGODB_URI"),
    ],
)
async def test_a_connection_string_that_names_no_file_says_so(options: str, reason: str) -> None:
    with fails("not_configured", reason):
        await AtlasStore(f"mongodb://db.example.com/{options}", "x").open(MODEL)


async def test_an_older_answer_never_replaces_a_newer_one_of_the_same_id(atlas_engine: Engine) -> None:
    older, newer = (
        entry("e", "h", response="old"),
        entry("e", "h", response="new", created_at=NOON + timedelta(hours=1)),
    )
    async with opened(atlas_engine.atlas()) as store:
        for one in (newer, older, newer):
            await store.put_cache_entry(one)
            assert await store.cached_answer("ann", "h", NOON) == newer


async def test_other_peoples_ids_may_be_anything(atlas_target: str, mongodb: Any) -> None:
    fill(mongodb, TRIPS)
    trips = mongodb["travel_agency"]["trip_recommendation"]
    (trip, *_) = trips.find({"traveller": "ann"})
    for record_id in ({"k": 1}, "text", 7, datetime(2125, 1, 1, tzinfo=UTC)):
        trips.insert_one({**trip, "_id": record_id, "weights": [0.5] * 100})
    async with opened(store := Engine("atlas", atlas_target).atlas(external=[TRIPS])):
        await wait_until_queryable(store)
        for limit in (1, 10):
            hits = await search(store, "tarts", EAST, collection=TRIPS.name, limit=limit)
            assert len(hits) == min(limit, 7)
        assert {hit.metadata.get("weights") for hit in hits} == {None}
    mongodb.drop_database("travel_agency")


@pytest.mark.parametrize(
    "filter",
    [{"price": {"$in": []}}, {"price": {"$in": [1, "x"]}}, {"price": None}, {"price": {"$gt": True}}, {"$not": {}}],
)
async def test_a_filter_that_only_a_query_language_knows_is_rejected(
    travel: AtlasStore, filter: dict[str, Any]
) -> None:
    with fails("rejected", "filter: "):
        await search(travel, "tarts", EAST, collection=TRIPS.name, filter=filter)


@pytest.mark.parametrize(
    ("status", "queryable", "state", "usable"),
    [
        ("FAILED", False, "failed", False),
        ("FAILED", True, "failed", True),
        ("STALE", True, "failed", True),
        ("BUILDING", True, "building", True),
        ("BUILDING", False, "building", False),
        ("DELETING", False, "building", False),
        ("READY", True, "ready", True),
    ],
)
def test_every_status_of_an_index_is_understood(status: str, queryable: bool, state: str, usable: bool) -> None:
    (index, *_) = search_indexes([MODEL], "none")
    there = {"type": index.kind, "status": status, "queryable": queryable, "latestDefinition": index.definition}
    report = compare_search(
        index, {**there, "statusDetail": [{"hostname": "h", "mainIndex": {"message": "disk full"}}]}
    )
    assert (report.state, report.queryable) == (state, usable)
    assert ("disk full" in report.detail) == (state == "failed")
