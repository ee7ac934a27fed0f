"""`durable-context reembed`, as a person runs it."""

import asyncio
import signal
from pathlib import Path

import apsw
import pytest
from temporalio.client import Client

from activities.models import EmbeddingModel, pack_vector
from activities.store.sqlite import SqliteStore
from mcp_server.local.stack import Addresses
from mcp_server.reembed import name_of
from mcp_server.settings import LOCAL_EMBEDDING_MODEL, Settings
from tests.conftest import command, content, environment, error, pollers_of, serve
from tests.contract.records import chunk, put
from tests.e2e.test_http import run

OLD = EmbeddingModel(model_id="amazon.titan-embed-text-v2:0", dimensions=256)
FRUIT = ("plum", "cherry", "apricot", "quince")
MOVED = "moved from amazon.titan-embed-text-v2:0 (256 dimensions) to local.multilingual-e5-small (384 dimensions)."


@pytest.fixture
def shared(stack: Addresses) -> dict[str, str]:
    """Settings of commands with a store of their own on the Temporal server that tests share."""
    assert stack.temporal is not None
    return {"TEMPORAL_ADDRESS": stack.temporal, "COLUMNS": "200"}


async def fill(home: Path, count: int) -> None:
    """A store that another model has filled."""
    vector = pack_vector([1.0] * OLD.dimensions)
    store = SqliteStore(home / "store.db")
    await store.open(OLD)
    texts = (f"number {n} is a {FRUIT[n % len(FRUIT)]}" for n in range(count))
    await put(store, *(chunk(f"{n}", text, vector, user_id="default") for n, text in enumerate(texts)))
    await store.close()


async def some_embedded(home: Path) -> int:
    """How many records have a new vector, once there are any."""
    db = apsw.Connection(str(home / "store.db"))
    try:
        async with asyncio.timeout(120):
            while True:
                begun = db.execute("select 1 from sqlite_schema where name = 'reembedded'").get
                if begun and (embedded := int(db.execute("select count(*) from reembedded").get)):
                    return embedded
                await asyncio.sleep(0.01)
    finally:
        db.close()


async def test_a_store_moves_to_the_model_of_the_settings(shared: dict[str, str], tmp_path: Path) -> None:
    await fill(tmp_path, 8)
    async with serve(tmp_path, **shared) as client:
        refused = error(await client.call_tool("hybrid_search", {"query": "plum"}))
        assert "`durable-context reembed`" in refused
        assert "amazon.titan-embed-text-v2:0 (256 dimensions)" in refused

        status, output = await run(tmp_path, "reembed", **shared)
        assert (status, output.splitlines()[-1]) == (0, f"8 records {MOVED}")

        hits = content(await client.call_tool("hybrid_search", {"query": "Which is a plum?", "weight": 1}))["results"]
        assert len(hits) == 8
        assert "plum" in hits[0]["text"]

    status, output = await run(tmp_path, "reembed", **shared)
    assert status == 0
    assert "Nothing to do: the store is filled by local.multilingual-e5-small (384 dimensions) already." in output


async def test_a_store_that_is_not_there_needs_no_move(shared: dict[str, str], tmp_path: Path) -> None:
    status, output = await run(tmp_path, "reembed", **shared)

    assert status == 0, output
    assert "Nothing to do" in output


async def working(temporal: Client, task_queue: str, count: int) -> None:
    """Wait until so many workers serve a task queue."""
    async with asyncio.timeout(120):
        while True:
            if len({poller.identity for poller in await pollers_of(temporal, task_queue)}) >= count:
                return
            await asyncio.sleep(0.05)


async def test_two_runs_at_once_do_one_move(shared: dict[str, str], temporal: Client, tmp_path: Path) -> None:
    await fill(tmp_path, 150)
    # Until both are there, neither can write.
    db = apsw.Connection(str(tmp_path / "store.db"))
    db.execute("begin immediate")
    runs = [asyncio.create_task(run(tmp_path, "reembed", **shared)) for _ in range(2)]
    new = EmbeddingModel(model_id=LOCAL_EMBEDDING_MODEL, dimensions=384)
    try:
        await working(temporal, name_of(Settings(durable_context_home=tmp_path), new), 2)
    finally:
        db.close()

    for status, output in await asyncio.gather(*runs):
        assert (status, output.splitlines()[-1]) == (0, f"150 records {MOVED}")


async def test_an_interrupted_run_says_how_to_go_on(shared: dict[str, str], tmp_path: Path) -> None:
    await fill(tmp_path, 300)
    first = await asyncio.create_subprocess_exec(
        *command("reembed"), env=environment(tmp_path, **shared), stderr=asyncio.subprocess.PIPE
    )
    await some_embedded(tmp_path)
    first.send_signal(signal.SIGINT)
    _, said = await first.communicate()
    assert first.returncode == 130
    assert "run the command again to go on" in said.decode()
    assert await some_embedded(tmp_path) < 300

    status, output = await run(tmp_path, "reembed", **shared)

    assert (status, output.splitlines()[-1]) == (0, f"300 records {MOVED}")


@pytest.mark.parametrize(
    ("setting", "value"), [("EMBEDDING_MODEL_ID", "anthropic.claude"), ("EMBEDDING_DIMENSIONS", "17")]
)
async def test_a_model_that_cannot_be_used_is_named(home: Path, setting: str, value: str) -> None:
    status, output = await run(home, "reembed", **{setting: value})

    assert status == 2
    assert setting in output
    assert "Traceback" not in output
