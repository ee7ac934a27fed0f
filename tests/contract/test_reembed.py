"""A store that moves to another embedding model while it is in use, over each engine; then the embedded store's own."""

import asyncio
import hashlib
from array import array
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import apsw
import pytest
import sqlite_vec
from temporalio.exceptions import ApplicationError

from activities.models import (
    DEFAULT_COLLECTION,
    EMBEDDED,
    CacheEntry,
    EmbeddingModel,
    RecordEmbedding,
    RecordText,
    Reembedding,
    pack_vector,
)
from activities.store.base import Store
from activities.store.sqlite import SqliteStore
from tests.contract.records import (
    EAST,
    MODEL,
    NOON,
    NORTH,
    WEST,
    Engine,
    chunk,
    downgrade,
    entry,
    fails,
    found,
    memory,
    message,
    put,
    retrieval,
    search,
)

OTHER = EmbeddingModel(model_id="local.other", dimensions=3)
THIRD = EmbeddingModel(model_id="local.third", dimensions=2)

CHUNKS = {"c1": "plum", "c2": "cherry", "c3": "a tree of plums"}
MESSAGES = {"m1": "good morning", "m2": "good night", "m3": "good day"}
MEMORIES = {"n1": "likes plums", "n2": "lives in Oslo"}
QUERIES = {"e1": "which fruit?", "e2": "which town?"}
# Each message counts twice, its context being itself where nothing comes before it.
RECORDS = len(CHUNKS) + 2 * len(MESSAGES) + len(MEMORIES) + len(QUERIES)


@pytest.fixture
async def mover(engine: Engine) -> AsyncIterator[Store]:
    """Another store on the same records, never opened."""
    store = engine.store()
    yield store
    await store.close()


def by(model: EmbeddingModel, text: str) -> bytes:
    """What `model` makes of a text: some vector of its length."""
    return pack_vector([byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[: model.dimensions]])


def cosine(one: bytes, other: bytes) -> float:
    return sum(a * b for a, b in zip(array("f", one), array("f", other), strict=True))


async def fill(store: Store) -> None:
    """Records of each kind."""
    await put(store, *(chunk(name, text, by(MODEL, text)) for name, text in CHUNKS.items()))
    for name, text in MESSAGES.items():
        await store.put_message(message(name, text, by(MODEL, text)))
    for (name, text), source in zip(MEMORIES.items(), MESSAGES, strict=False):
        await store.form_memory(memory(name, by(MODEL, text), content=text, source_messages=[source]), 2.0)
    for name, text in QUERIES.items():
        await store.put_cache_entry(entry(name, name, by(MODEL, text), query=text))


def embedded(model: EmbeddingModel, records: list[RecordText]) -> list[RecordEmbedding]:
    return [RecordEmbedding(**record.model_dump(), embedding=by(model, record.text)) for record in records]


async def embed(store: Store, model: EmbeddingModel = OTHER, *collections: str) -> None:
    """Embed what some collections, or all, hold and isn't embedded yet."""
    for collection in collections or EMBEDDED:
        while records := await store.texts_to_embed(model, collection, 2):
            assert len(records) <= 2
            await store.put_embeddings(model, collection, embedded(model, records))


async def missing(store: Store, model: EmbeddingModel = OTHER) -> list[str]:
    """The texts that have no vector of `model` yet, sorted."""
    listed = [await store.texts_to_embed(model, collection, 1000) for collection in EMBEDDED]
    return sorted(record.text for records in listed for record in records)


async def move(engine: Engine, mover: Store, model: EmbeddingModel = OTHER) -> None:
    await mover.begin_reembedding(model)
    await embed(mover, model)
    await engine.prepare(model)
    assert await mover.finish_reembedding(model)


def at(records: int, embedded: int, filled_by: EmbeddingModel = MODEL) -> Reembedding:
    return Reembedding(filled_by=filled_by, records=records, embedded=embedded)


async def opened(engine: Engine, model: EmbeddingModel) -> Store:
    store = engine.store()
    await store.open(model)
    return store


async def assert_found_by(store: Store, model: EmbeddingModel) -> None:
    """Every record of `fill` is found by the vectors that `model` makes, with their cosines."""
    for text in [*CHUNKS.values(), *MESSAGES.values(), *MEMORIES.values(), *QUERIES.values()]:
        vector = by(model, text)
        hits = await search(store, "", vector, weight=1)
        assert {hit.id: hit.vector_score for hit in hits} == pytest.approx(
            {name: cosine(vector, by(model, other)) for name, other in CHUNKS.items()}, abs=1e-6
        )
        recollection = await store.recall(retrieval("", vector))
        nearness = {name: cosine(vector, by(model, other)) for name, other in MESSAGES.items()}
        ranked = [one.message_id for one in recollection.related_conversation]
        assert ranked == sorted(nearness, key=lambda name: -nearness[name])
        assert {one.memory_id: one.similarity for one in recollection.similar_memories} == pytest.approx(
            {name: cosine(vector, by(model, other)) for name, other in MEMORIES.items()}, abs=1e-6
        )
        match, *_ = await store.nearest_cached("ann", vector, NOON)
        assert match.similarity == pytest.approx(max(cosine(vector, by(model, q)) for q in QUERIES.values()), abs=1e-6)


@pytest.mark.parametrize("model", [OTHER, EmbeddingModel(model_id="other", dimensions=4), THIRD], ids=str)
async def test_everything_is_found_by_the_new_model_after_the_switch(
    engine: Engine, store: Store, mover: Store, model: EmbeddingModel
) -> None:
    await fill(store)
    await mover.begin_reembedding(model)
    assert await mover.reembedding_progress(model) == at(RECORDS, 0)

    await move(engine, mover, model)

    assert await mover.reembedding_progress(model) == at(RECORDS, RECORDS, model)
    new = await opened(engine, model)
    await assert_found_by(new, model)
    assert await found(new, "tree", weight=0, embedding=by(model, "")) == ["c3"]
    for name, text in QUERIES.items():
        answer = await new.cached_answer("ann", name, NOON)
        assert answer is not None
        assert answer == CacheEntry(**{**entry(name, name, query=text).model_dump(), "embedding": by(model, text)})
    await put(new, chunk("later", "pear", by(model, "pear")))
    assert await found(new, "", by(model, "pear"), weight=1, limit=1) == ["later"]
    await new.close()


async def test_a_store_that_is_open_with_the_old_model_fails_from_the_switch_on(
    engine: Engine, store: Store, mover: Store
) -> None:
    await fill(store)
    await move(engine, mover)

    explained = ("local.other (3 dimensions)", "local.test (4 dimensions)", "durable-context reembed")
    with fails("model_mismatch", *explained):
        await search(store)
    with fails("model_mismatch", *explained):
        await store.put_message(message("late"))
    second = engine.store()
    with fails("model_mismatch", *explained, "EMBEDDING_MODEL_ID"):
        await second.open(MODEL)


async def test_the_old_vectors_serve_until_the_switch(engine: Engine, store: Store, mover: Store) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)
    await embed(mover, OTHER, "documents", "cache")

    await assert_found_by(store, MODEL)
    answer = await store.cached_answer("ann", "e1", NOON)
    assert answer is not None
    assert answer.embedding == by(MODEL, QUERIES["e1"])
    with fails("model_mismatch", "durable-context reembed"):
        await engine.store().open(OTHER)

    await put(store, chunk("c4", "pear", EAST))
    assert await found(store, "", EAST, weight=1, limit=1) == ["c4"]
    again = await opened(engine, MODEL)
    await again.put_message(message("m4", "hello"))
    await again.close()
    await embed(mover)
    assert not await missing(mover)
    assert await mover.reembedding_progress(OTHER) == at(RECORDS + 3, RECORDS + 3)


async def test_what_changes_meanwhile_is_embedded_as_it_is_then(engine: Engine, store: Store, mover: Store) -> None:
    await fill(store)
    weak = memory("n3", by(MODEL, "weak"), content="weak", importance=0.01, source_messages=["m3"])
    await store.form_memory(weak, 2.0)
    await mover.begin_reembedding(OTHER)
    await embed(mover)
    assert not await missing(mover)

    # A new record may get the id or the place of one that is gone: the vector of that one must not become its own.
    await store.replace_source("ann", DEFAULT_COLLECTION, "c1", [chunk("c1", "apricot", EAST)])
    await store.replace_source("ann", DEFAULT_COLLECTION, "c3", [])
    await store.replace_source("ann", DEFAULT_COLLECTION, "c5", [chunk("c5", "quince", NORTH)])
    await store.put_message(message("m2", "good evening", WEST))
    assert await store.prune_memories("ann", 2, NOON) == 1
    cat = memory("n4", by(MODEL, "has a cat"), content="has a cat", source_messages=["m3"])
    await store.form_memory(cat, 2.0)
    later = NOON + timedelta(minutes=1)
    await store.put_cache_entry(entry("e1", "e1", EAST, query="which berry?", created_at=later))
    await store.put_cache_entry(entry("e3", "e3", NORTH, minutes=1, query="brief"))
    await store.purge_expired(NOON + timedelta(minutes=2))
    await store.put_cache_entry(entry("e4", "e4", NORTH, query="which sea?"))

    fresh = ["apricot", "good evening", "good evening", "has a cat", "quince", "which berry?", "which sea?"]
    assert await missing(mover) == fresh
    await engine.prepare(OTHER)
    assert not await mover.finish_reembedding(OTHER)
    assert await found(store, "", EAST, weight=1, limit=1) == ["c1"]

    await embed(mover)
    progress = await mover.reembedding_progress(OTHER)
    assert progress.records == progress.embedded
    assert await mover.finish_reembedding(OTHER)

    new = await opened(engine, OTHER)
    hits = await search(new, "", by(OTHER, "apricot"), weight=1)
    assert {hit.id for hit in hits} == {"c1", "c2", "c5"}
    assert hits[0].id == "c1"
    assert hits[0].vector_score == pytest.approx(1, abs=1e-6)
    assert await found(new, "", by(OTHER, "quince"), weight=1, limit=1) == ["c5"]
    recollection = await new.recall(retrieval("", by(OTHER, "good evening")))
    assert recollection.related_conversation[0].text == "good evening"
    assert len(recollection.related_conversation) == len(MESSAGES)
    assert {one.content for one in recollection.similar_memories} == {*MEMORIES.values(), "has a cat"}
    match, *_ = await new.nearest_cached("ann", by(OTHER, "which berry?"), NOON)
    assert (match.entry.query, match.entry.embedding) == ("which berry?", by(OTHER, "which berry?"))
    await new.close()


async def test_another_worker_goes_on_where_one_was(engine: Engine, store: Store) -> None:
    await fill(store)
    first = engine.store()
    await first.begin_reembedding(OTHER)
    records = await first.texts_to_embed(OTHER, "documents", 2)
    await first.put_embeddings(OTHER, "documents", embedded(OTHER, records))
    await first.close()

    second = engine.store()
    await second.begin_reembedding(OTHER)
    assert await second.reembedding_progress(OTHER) == at(RECORDS, 2)
    (last,) = await second.texts_to_embed(OTHER, "documents", 1000)
    assert last.record_id not in {record.record_id for record in records}
    await move(engine, second)
    await second.close()

    new = await opened(engine, OTHER)
    await assert_found_by(new, OTHER)
    await new.close()


async def test_workers_that_embed_the_same_records_at_once_store_them_once(
    engine: Engine, store: Store, mover: Store
) -> None:
    await fill(store)
    other = engine.store()
    await asyncio.gather(mover.begin_reembedding(OTHER), other.begin_reembedding(OTHER))
    for collection in EMBEDDED:
        vectors = embedded(OTHER, await mover.texts_to_embed(OTHER, collection, 1000))
        await asyncio.gather(*(one.put_embeddings(OTHER, collection, vectors) for one in (mover, other) * 2))

    assert await mover.reembedding_progress(OTHER) == at(RECORDS, RECORDS)
    await engine.prepare(OTHER)
    assert all(await asyncio.gather(mover.finish_reembedding(OTHER), other.finish_reembedding(OTHER)))
    await other.close()
    new = await opened(engine, OTHER)
    await assert_found_by(new, OTHER)
    await new.close()


async def test_the_vector_of_a_text_that_has_changed_or_gone_is_left_out(store: Store, mover: Store) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)
    messages = embedded(OTHER, await mover.texts_to_embed(OTHER, "conversations", 1000))
    contexts = embedded(OTHER, await mover.texts_to_embed(OTHER, "contexts", 1000))
    chunks = embedded(OTHER, await mover.texts_to_embed(OTHER, "documents", 1000))
    await store.put_message(message("m1", "Good morning!"))
    await store.replace_source("ann", DEFAULT_COLLECTION, "c1", [])

    await mover.put_embeddings(OTHER, "conversations", messages)
    await mover.put_embeddings(OTHER, "contexts", contexts)
    await mover.put_embeddings(OTHER, "documents", chunks)

    assert await missing(mover) == sorted(2 * ["Good morning!"] + [*MEMORIES.values(), *QUERIES.values()])
    assert await mover.reembedding_progress(OTHER) == at(RECORDS - 1, 2 * (len(MESSAGES) - 1) + len(CHUNKS) - 1)


async def test_texts_in_any_script_are_told_apart_from_changed_ones(store: Store, mover: Store) -> None:
    texts = ["", " ", "plum\0tart", "é", "e\u0301", "PLUM", "plum", "東京", "😀", "%", "a\nb"]
    for number, text in enumerate(texts):
        await store.put_message(message(f"{number}", text))
    await mover.begin_reembedding(OTHER)

    records = await mover.texts_to_embed(OTHER, "conversations", 1000)
    assert sorted(record.text for record in records) == sorted(texts)
    await mover.put_embeddings(OTHER, "conversations", embedded(OTHER, records))
    assert await mover.texts_to_embed(OTHER, "conversations", 1000) == []


async def test_a_vector_of_zeros_is_a_vector_that_is_similar_to_nothing(
    engine: Engine, store: Store, mover: Store
) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)
    zeros = pack_vector([0, -0.0, 0])
    for collection in EMBEDDED:
        records = await mover.texts_to_embed(OTHER, collection, 1000)
        vectors = [RecordEmbedding(**record.model_dump(), embedding=zeros) for record in records]
        await mover.put_embeddings(OTHER, collection, vectors)
    assert await mover.reembedding_progress(OTHER) == at(RECORDS, RECORDS)
    await engine.prepare(OTHER)
    assert await mover.finish_reembedding(OTHER)

    new = await opened(engine, OTHER)
    assert await found(new, "", by(OTHER, "plum"), weight=1) == []
    assert await found(new, "cherry", by(OTHER, "plum")) == ["c2"]
    assert (await new.recall(retrieval("", by(OTHER, "plum")))).similar_memories == []
    assert await new.nearest_cached("ann", by(OTHER, "plum"), NOON) == []
    answer = await new.cached_answer("ann", "e1", NOON)
    assert answer is not None
    assert not any(array("f", answer.embedding))
    assert len(answer.embedding) == 4 * OTHER.dimensions
    await new.close()


@pytest.mark.parametrize("vector", [b"", EAST, b"\0\0\xc0\x7f" + EAST[:8]])
async def test_what_is_no_vector_of_the_model_is_rejected(store: Store, mover: Store, vector: bytes) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)

    with fails("rejected", "embedding"):
        broken = RecordEmbedding(record_id="c1", text=CHUNKS["c1"], embedding=vector)
        await mover.put_embeddings(OTHER, "documents", [broken])
    assert await mover.reembedding_progress(OTHER) == at(RECORDS, 0)


async def test_a_move_to_a_third_model_takes_the_place_of_an_unfinished_one(
    engine: Engine, store: Store, mover: Store
) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)
    await embed(mover)
    await mover.begin_reembedding(THIRD)
    assert await mover.reembedding_progress(THIRD) == at(RECORDS, 0)

    one = embedded(OTHER, [RecordText(record_id="c1", text=CHUNKS["c1"])])
    for step in (
        mover.texts_to_embed(OTHER, "documents", 1),
        mover.put_embeddings(OTHER, "documents", one),
        mover.reembedding_progress(OTHER),
        mover.finish_reembedding(OTHER),
    ):
        with fails("model_mismatch", "local.other (3 dimensions)", "local.third (2 dimensions)"):
            await step

    await move(engine, mover, THIRD)
    new = await opened(engine, THIRD)
    await assert_found_by(new, THIRD)
    await new.close()
    await mover.begin_reembedding(OTHER)
    assert await mover.reembedding_progress(OTHER) == at(RECORDS, 0, THIRD)


async def test_a_store_can_move_back(engine: Engine, store: Store, mover: Store) -> None:
    await fill(store)
    await move(engine, mover)
    await move(engine, mover, MODEL)

    await assert_found_by(store, MODEL)


async def test_a_move_that_was_not_begun_is_refused(store: Store, mover: Store) -> None:
    await fill(store)

    for step in (mover.texts_to_embed(OTHER, "cache", 1), mover.finish_reembedding(OTHER)):
        with fails("model_mismatch", "local.other (3 dimensions)", "durable-context reembed"):
            await step


async def test_there_is_nothing_to_do_where_the_model_fills_the_store(store: Store, mover: Store) -> None:
    await fill(store)
    await mover.begin_reembedding(MODEL)

    assert not await missing(mover, MODEL)
    await mover.put_embeddings(MODEL, "documents", [RecordEmbedding(record_id="c1", text="plum", embedding=WEST)])
    assert await mover.reembedding_progress(MODEL) == at(RECORDS, RECORDS)
    assert await mover.finish_reembedding(MODEL)
    await assert_found_by(store, MODEL)


async def test_beginning_leaves_an_unfinished_move_alone_where_there_is_nothing_to_do(
    store: Store, mover: Store
) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)
    await embed(mover)
    await mover.begin_reembedding(MODEL)

    assert await mover.reembedding_progress(OTHER) == at(RECORDS, RECORDS)


async def test_a_store_that_nobody_has_opened_is_the_models_from_the_start(engine: Engine, mover: Store) -> None:
    await engine.prepare(OTHER)
    await mover.begin_reembedding(OTHER)

    assert await mover.reembedding_progress(OTHER) == at(0, 0, OTHER)
    assert await mover.finish_reembedding(OTHER)
    new = await opened(engine, OTHER)
    await put(new, chunk("a", "plum", by(OTHER, "plum")))
    assert await found(new, "", by(OTHER, "plum"), weight=1) == ["a"]
    await new.close()


async def test_a_mover_is_not_an_open_store(store: Store, mover: Store) -> None:
    await fill(store)
    await mover.begin_reembedding(OTHER)

    with fails("unavailable", "isn't open"):
        await mover.collections("ann")
    await mover.close()
    assert await mover.reembedding_progress(OTHER) == at(RECORDS, 0)


async def test_a_search_sees_all_old_vectors_or_fails(engine: Engine, store: Store, mover: Store) -> None:
    await put(store, *(chunk(f"{n:02}", f"plum {n}", by(MODEL, f"plum {n}")) for n in range(50)))
    await mover.begin_reembedding(OTHER)
    await embed(mover)
    await engine.prepare(OTHER)

    async def search_on() -> list[int]:
        counts: list[int] = []
        with fails("model_mismatch"):
            while True:
                counts.append(len(await found(store, "", EAST, weight=1, limit=100)))
        return counts

    searching = [asyncio.create_task(search_on()) for _ in range(3)]
    assert await mover.finish_reembedding(OTHER)
    assert {count for counts in await asyncio.gather(*searching) for count in counts} <= {50}


async def test_what_is_written_until_the_switch_is_found_after_it(engine: Engine, store: Store, mover: Store) -> None:
    written: list[str] = []
    enough = asyncio.Event()

    async def write_on(writer: int) -> None:
        # A search counts 500 at most.
        while not enough.is_set() and len(written) < 400:
            name = f"{writer}.{len(written)}"
            await put(store, chunk(name, f"plum {name}", EAST))
            written.append(name)

    await mover.begin_reembedding(OTHER)
    await engine.prepare(OTHER)
    writing = [asyncio.create_task(write_on(writer)) for writer in range(2)]
    refused, switched = 0, False
    while not switched:
        # Writers that never rest can be faster than what embeds: it takes what has come, and doesn't wait for the last.
        records = await mover.texts_to_embed(OTHER, "documents", 1000)
        await mover.put_embeddings(OTHER, "documents", embedded(OTHER, records))
        switched = await mover.finish_reembedding(OTHER)
        refused += not switched
        if refused == 3:
            enough.set()
    enough.set()
    # A write that was under way either came before the switch or failed.
    for result in await asyncio.gather(*writing, return_exceptions=True):
        assert result is None or (isinstance(result, ApplicationError) and result.type == "model_mismatch")

    new = await opened(engine, OTHER)
    assert len(await found(new, "plum", by(OTHER, ""), weight=0, limit=500)) == len(written)
    for name in written:
        (hit,) = await search(new, "", by(OTHER, f"plum {name}"), weight=1, limit=1)
        assert hit.id == name
    await new.close()


# The embedded store alone


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def rows(file: Path, table: str) -> int:
    db = apsw.Connection(str(file))
    try:
        return int(db.execute(f"select count(*) from {table}").get)
    finally:
        db.close()


@pytest.mark.parametrize("door", ["open", "begin"])
async def test_a_file_of_the_first_schema_is_upgraded_in_place(file: Path, door: str) -> None:
    store = SqliteStore(file)
    await store.open(MODEL)
    await fill(store)
    downgrade(file)
    db = apsw.Connection(str(file))
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    for (trigger,) in db.execute("select name from sqlite_schema where type = 'trigger'").fetchall():
        db.execute(f"drop trigger {trigger}")
    db.execute("drop table reembedding; drop table reembedded; pragma user_version = 1")
    db.close()

    engine, mover = Engine("sqlite", str(file)), SqliteStore(file)
    if door == "open":
        await (await opened(engine, MODEL)).close()
    await mover.begin_reembedding(OTHER)
    await embed(mover)
    # A process of the release that made it has had it open all the time.
    await store.put_message(message("m1", "changed", EAST))
    assert await missing(mover) == ["changed", "changed"]
    await store.put_message(message("m1", MESSAGES["m1"], EAST))
    await move(engine, mover)
    await mover.close()
    await store.close()

    new = await opened(engine, OTHER)
    await assert_found_by(new, OTHER)
    await new.close()


async def test_nothing_of_the_old_vectors_or_of_the_move_stays_in_the_file(file: Path) -> None:
    store = SqliteStore(file)
    await store.open(MODEL)
    secret = pack_vector([0.123, 0.456, 0.789, 0.321])
    await put(store, chunk("c", "plum", secret))
    await store.put_message(message("m", "plum", secret))
    await store.form_memory(memory("n", secret, source_messages=["m"]), 2.0)
    await store.put_cache_entry(entry("e", "h", secret))
    await store.close()
    engine, mover = Engine("sqlite", str(file)), SqliteStore(file)
    await mover.begin_reembedding(THIRD)
    await embed(mover, THIRD)
    await move(engine, mover)
    await mover.close()

    content = file.read_bytes()
    assert by(OTHER, "plum") in content
    assert secret not in content
    assert by(THIRD, "plum") not in content
    assert {table: rows(file, table) for table in ("reembedding", "reembedded")} == {"reembedding": 0, "reembedded": 0}
    assert [rows(file, f"{table}_vectors") for table in EMBEDDED if table != "cache"] == [1] * 4
    assert rows(file, "cache_vectors_rowids") == 1


async def test_a_locked_file_is_unavailable_until_it_is_free(file: Path) -> None:
    store = SqliteStore(file, busy_timeout=0.05)
    await store.open(MODEL)
    await fill(store)
    await store.begin_reembedding(OTHER)
    await embed(store, OTHER, "documents", "conversations", "contexts", "memory_nodes")
    vectors = embedded(OTHER, await store.texts_to_embed(OTHER, "cache", 1000))

    db = apsw.Connection(str(file))
    db.execute("begin immediate")
    for step in (
        store.begin_reembedding(OTHER),
        store.put_embeddings(OTHER, "cache", vectors),
        store.finish_reembedding(OTHER),
    ):
        with fails("unavailable", "locked by another process"):
            await step
    assert await store.reembedding_progress(OTHER) == at(RECORDS, RECORDS - len(QUERIES))
    db.close()

    await store.put_embeddings(OTHER, "cache", vectors)
    assert await store.finish_reembedding(OTHER)
    await store.close()
