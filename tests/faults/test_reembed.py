"""`durable-context reembed` killed in the middle: run again, it goes on, and nothing is lost or doubled."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import sqlite_vec
from mcp import Client

from activities.models import EMBEDDED, EmbeddingModel, pack_vector
from activities.store.sqlite import SqliteStore
from mcp_server.local.stack import Addresses
from mcp_server.settings import LOCAL_EMBEDDING_MODEL
from tests.conftest import CORPUS, command, content, environment, error, serve
from tests.contract.records import chunk, put
from tests.e2e.test_http import run
from tests.e2e.test_reembed import some_embedded
from tests.faults.bedrock_endpoint import DIMENSIONS, MODEL, Endpoint
from tests.faults.test_stack import PLEASE_KEEP, messages_of

OLD = EmbeddingModel(model_id=MODEL, dimensions=DIMENSIONS)
BEES = "How do honeybees choose a home?"


@pytest.fixture
def shared(stack: Addresses, user: str) -> dict[str, str]:
    """Settings of commands with a store of their own on the Temporal server that tests share."""
    assert stack.temporal is not None
    return {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user}


@pytest.fixture
async def old(bedrock: Endpoint, shared: dict[str, str], tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server on the old model, whose store holds many chunks, for several batches, and other records."""
    sentences = [text for path in sorted(CORPUS.glob("*.md")) for text in re.split(r"(?<=[.?!])\s+", path.read_text())]
    vector = pack_vector([1.0] * DIMENSIONS)
    store = SqliteStore(tmp_path / "store.db")
    await store.open(OLD)
    await put(store, *(chunk(f"{n}", text, vector, user_id="default") for n, text in enumerate(sentences)))
    await store.close()
    async with serve(tmp_path, **shared, **bedrock.settings) as client:
        content(await client.call_tool("store_memory", PLEASE_KEEP))
        content(await client.call_tool("semantic_cache_response", {"query": "How far is it?", "response": "A mile."}))
        yield client


def query(home: Path, sql: str) -> Any:
    """The value of an SQL expression over the store."""
    db = apsw.Connection(str(home / "store.db"))
    try:
        db.set_busy_timeout(5000)
        db.enable_load_extension(True)
        db.load_extension(sqlite_vec.loadable_path())
        return db.execute(sql).get
    finally:
        db.close()


async def test_a_killed_migration_goes_on_where_it_was(
    old: Client, bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    chunks = query(tmp_path, "select count(*) from documents")
    first = await asyncio.create_subprocess_exec(*command("reembed"), env=environment(tmp_path, **shared))
    await some_embedded(tmp_path)
    first.kill()
    await first.wait()
    assert await some_embedded(tmp_path) < chunks

    # The old model's server goes on, and what it stores now will move too.
    assert "bees" in content(await old.call_tool("hybrid_search", {"query": BEES, "weight": 0}))["results"][0]["text"]
    content(await old.call_tool("store_memory", PLEASE_KEEP | {"text": "Keep this, too."}))
    # A vector that no model made shows whether its record is embedded again.
    mark = pack_vector([1.0] + [0.0] * 383)
    db = apsw.Connection(str(tmp_path / "store.db"))
    # A summary of the message that was just stored may be written now.
    db.set_busy_timeout(5000)
    marked = db.execute(
        "update reembedded set embedding = ? where id = (select min(id) from reembedded) returning record", (mark,)
    ).get
    db.close()

    status, output = await run(tmp_path, "reembed", COLUMNS="200", **shared)

    assert status == 0, output
    records = sum(query(tmp_path, f"select count(*) from {collection}") for collection in EMBEDDED)
    assert f"{records} records moved from amazon.titan-embed-text-v2:0 (256 dimensions) to local.multi" in output
    assert query(tmp_path, "select count(*) from documents") == chunks
    for collection in EMBEDDED:
        held = query(tmp_path, f"select count(*) from {collection}")
        assert held == query(tmp_path, f"select count(*) from {collection}_vectors"), collection
    assert query(tmp_path, f"select embedding from documents_vectors where rowid = {marked}") == mark

    assert "durable-context reembed" in error(await old.call_tool("hybrid_search", {"query": "bees"}))
    asked = len(bedrock.embedded)
    async with serve(tmp_path, **shared) as new:
        hits = content(await new.call_tool("hybrid_search", {"query": BEES, "weight": 1}))["results"]
        assert re.search("bee|scout|swarm|nest", hits[0]["text"])
        assert sorted(await messages_of(new)) == ["Keep this, too.", "Keep this."]
        cached = content(await new.call_tool("check_semantic_cache", {"query": "How far is it"}))
        assert cached["response"] == "A mile."
        assert cached["similarity"] < 1
    assert len(bedrock.embedded) == asked


async def test_what_does_not_pass_is_said_and_the_next_run_goes_on(
    bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(EmbeddingModel(model_id=LOCAL_EMBEDDING_MODEL, dimensions=384))
    await put(store, chunk("a", "plum", pack_vector([1.0] * 384)))
    await store.close()
    bedrock.failures, bedrock.for_ever = [(403, "AccessDeniedException", "You don't have access to the model")], True

    status, output = await run(tmp_path, "reembed", **shared, **bedrock.settings)
    assert status == 2
    assert "EMBEDDING_MODEL_ID" in output
    assert "run the command again" in output
    assert "Traceback" not in output

    bedrock.failures, bedrock.for_ever = [(429, "ThrottlingException", "Too many requests")] * 3, False
    status, output = await run(tmp_path, "reembed", **shared, **bedrock.settings)
    assert status == 0, output
    assert "1 records moved" in output
    assert bedrock.embedded == ["plum"]
