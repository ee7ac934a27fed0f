"""What the re-embedding activities do with a model's answers; the store is the real one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.bedrock import BedrockEmbeddings
from activities.errors import Kind, failure
from activities.models import EMBEDDED, EmbeddingModel, ReembedCollectionParams, Side, pack_vector
from activities.reembed import RECORDS_AT_ONCE, ReembedActivities
from activities.store.sqlite import SqliteStore
from tests.contract.records import EAST, MODEL, chunk, entry, fails, found, memory, message, put

OTHER = EmbeddingModel(model_id="amazon.titan-embed-text-v2:0", dimensions=256)


class Embedder(BedrockEmbeddings):
    """Gives every text the same vector, and refuses what is blank or longer than it takes.

    Attributes:
        asked: The texts and sides of every call.
        refusal: The kind of failure that every call ends with, if any.
        allowed: Calls wait for it.
    """

    def __init__(self, longest: int = 100) -> None:
        super().__init__(OTHER.model_id, OTHER.dimensions, "eu-central-1", None)
        self.longest = longest
        self.asked: list[tuple[list[str], Side]] = []
        self.refusal: Kind | None = None
        self.allowed = asyncio.Event()
        self.allowed.set()

    async def embed(self, texts: Sequence[str], side: Side) -> list[bytes]:
        self.asked.append((list(texts), side))
        await self.allowed.wait()
        if self.refusal:
            raise failure(self.refusal, "no")
        if any(not text.strip() or len(text) > self.longest for text in texts):
            raise failure("rejected", "too long, or blank")
        return [pack_vector([1.0] * OTHER.dimensions) for _ in texts]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(MODEL)
    yield store
    await store.close()


async def embed(store: SqliteStore, embedder: Embedder, collection: str) -> None:
    activities, environment = ReembedActivities(store, embedder), ActivityEnvironment()
    await environment.run(activities.begin_reembedding, OTHER)
    params = ReembedCollectionParams(model=OTHER, collection=collection)
    await environment.run(activities.reembed_collection, params)


async def test_each_collection_is_embedded_as_it_was_when_it_was_stored(store: SqliteStore) -> None:
    await put(store, chunk("c", "a chunk"))
    await store.put_message(message("m", "a message"))
    await store.form_memory(memory("n", content="a memory", summary="not this", source_messages=["m"]), 2.0)
    await store.put_cache_entry(entry("e", "h", query="a query", response="nor this"))
    embedder = Embedder()
    for collection in EMBEDDED:
        await embed(store, embedder, collection)

    assert embedder.asked == [
        (["a chunk"], "passage"),
        (["a message"], "passage"),
        (["a message"], "passage"),
        (["a memory"], "passage"),
        (["a query"], "query"),
    ]


async def test_records_are_embedded_in_batches(store: SqliteStore) -> None:
    await put(store, *(chunk(f"{n}", f"plum {n}") for n in range(2 * RECORDS_AT_ONCE + 1)))
    embedder = Embedder()
    await embed(store, embedder, "documents")

    assert [len(texts) for texts, _ in embedder.asked] == [RECORDS_AT_ONCE, RECORDS_AT_ONCE, 1]


async def test_a_text_that_the_model_refuses_is_embedded_by_its_beginning_and_a_blank_one_as_zeros(
    store: SqliteStore,
) -> None:
    await put(store, chunk("long", "plum " * 100), chunk("blank", " \n"), chunk("good", "cherry"))
    embedder = Embedder(longest=70)
    await embed(store, embedder, "documents")

    assert (["plum " * 12 + "pl"], "passage") in embedder.asked
    assert await store.texts_to_embed(OTHER, "documents", 10) == []
    await embed(store, embedder, "cache")
    assert await store.finish_reembedding(OTHER)
    await store.close()
    await store.open(OTHER)
    ones = pack_vector([1.0] * OTHER.dimensions)
    assert sorted(await found(store, "", ones, weight=1)) == ["good", "long"]


@pytest.mark.parametrize("refusal", ["rejected", "access_denied", "not_configured", "over_limit"])
async def test_a_model_that_refuses_everything_leaves_no_vector_behind(store: SqliteStore, refusal: Kind) -> None:
    await put(store, chunk("a", "plum"), chunk("b", "cherry"))
    embedder = Embedder()
    embedder.refusal = refusal

    with fails(refusal):
        await embed(store, embedder, "documents")
    assert (await store.reembedding_progress(OTHER)).embedded == 0


async def test_a_worker_of_another_model_takes_no_part(store: SqliteStore) -> None:
    await put(store, chunk("a", "plum", EAST))
    activities = ReembedActivities(store, Embedder())

    with fails("not_configured", "EMBEDDING_MODEL_ID"):
        await ActivityEnvironment().run(
            activities.begin_reembedding, EmbeddingModel(model_id="amazon.titan-embed-text-v2:0", dimensions=512)
        )


async def test_heartbeats_say_how_far_it_is(store: SqliteStore) -> None:
    await put(store, chunk("a", "plum"))
    embedder, environment = Embedder(), ActivityEnvironment()
    embedder.allowed.clear()
    beats: list[tuple[int, ...]] = []

    def on_heartbeat(*details: int) -> None:
        beats.append(details)
        embedder.allowed.set()

    environment.on_heartbeat = on_heartbeat
    await store.begin_reembedding(OTHER)
    params = ReembedCollectionParams(model=OTHER, collection="documents")
    progress = await environment.run(ReembedActivities(store, embedder).reembed_collection, params)

    assert beats[0] == (0, 1)
    assert (progress.filled_by, progress.embedded, progress.records) == (MODEL, 1, 1)
