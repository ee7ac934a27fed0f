"""Memory activities over a real store."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from activities.bedrock import BedrockEmbeddings, BedrockText
from activities.memory import MAX_RECALL_BYTES, MemoryActivities
from activities.models import EmbeddingModel, MemoryQuery, Message, pack_vector
from activities.store.base import OpenedStore
from activities.store.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OpenedStore]:
    store = OpenedStore(SqliteStore(tmp_path / "store.db"), EmbeddingModel(model_id="by-hand", dimensions=3))
    yield store
    await store.close()


async def test_a_recollection_fits_a_payload_and_keeps_the_best(store: OpenedStore) -> None:
    nowhere = "http://127.0.0.1:1"
    embeddings = BedrockEmbeddings("local.multilingual-e5-small", None, None, nowhere)
    memory = MemoryActivities(store, embeddings, BedrockText("local.extractive", None, nowhere), budget=10)
    for number in range(60):
        await memory.store_message(
            Message(
                message_id=f"m{number:02}",
                user_id="ada",
                conversation_id=f"c{number}",
                message_type="ai",
                text=f"needle {'ö' * 31_000}" if number else "needle needle needle",
                timestamp=datetime(2026, 5, 3, tzinfo=UTC),
                embedding=pack_vector([1, number / 10, 0]),
            )
        )
    query = MemoryQuery(
        user_id="ada",
        text="needle",
        limit=100,
        embedding=pack_vector([1, 0, 0]),
        retrieval_id="retrieval",
        now=datetime(2026, 5, 4, tzinfo=UTC),
    )

    found = await memory.recall(query)

    assert len(found.model_dump_json().encode()) < MAX_RECALL_BYTES + 1000
    assert 10 < len(found.related_conversation) < 60
    assert found.related_conversation[0].message_id == "m00"
