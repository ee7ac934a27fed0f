"""Atlas over the wire: what breaks between the driver and the server loses nothing and doubles nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from mcp import Client
from mcp_types import CallToolResult
from temporalio.client import Client as TemporalClient
from temporalio.exceptions import ApplicationError

from activities.models import DEFAULT_COLLECTION, Summary
from activities.store.atlas import AtlasStore
from mcp_server.local.stack import Addresses
from tests.atlas.running import stand_in
from tests.conftest import command, content, environment, serve, task_of, workflow_id
from tests.contract.records import (
    MODEL,
    NOON,
    NORTH,
    WEST,
    Engine,
    chunk,
    entry,
    fails,
    form,
    memory,
    message,
    retrieval,
)
from tests.e2e.test_http import run
from tests.faults.test_stack import PLEASE_KEEP
from tests.faults.wire import Moment, Wire, wired

DATABASE = "faults"
STACK_DATABASE = "faults_of_the_stack"
IMPATIENT = 0.5
"""Seconds that a command may take where it is meant to take too long."""

Server = pymongo.MongoClient[dict[str, Any]]
Work = Callable[[AtlasStore, str], Awaitable[object]]


async def put_message(store: AtlasStore, user: str) -> None:
    await store.put_message(message(f"{user}-message", "Keep this.", user=user))


async def replace_source(store: AtlasStore, user: str) -> None:
    chunks = [chunk(f"{user}-{n}", f"new {n}", user_id=user, source="source", position=n) for n in range(3)]
    await store.replace_source(user, DEFAULT_COLLECTION, "source", chunks)


async def form_memory(store: AtlasStore, user: str) -> None:
    node = memory(f"{user}-new", NORTH, user_id=user, content="new", source_messages=[f"{user}-said"])
    assert not (await store.form_memory(node, 0.9)).reinforced


async def reinforce_memory(store: AtlasStore, user: str) -> None:
    node = memory(f"{user}-same", WEST, user_id=user, content="known", source_messages=[f"{user}-said"])
    assert (await store.form_memory(node, 0.9)).reinforced


async def put_summary(store: AtlasStore, user: str) -> None:
    summary = Summary(
        user_id=user,
        conversation_id="c",
        summary_id="s",
        text="Somebody spoke.",
        model_id="m",
        messages=1,
        first_at=NOON,
        last_at=NOON,
        updated_at=NOON,
    )
    # Stored already, it isn't stored again.
    await store.put_summary(summary, [f"{user}-said"])


async def recall(store: AtlasStore, user: str) -> None:
    recalled = await store.recall(retrieval("Keep this.", user_id=user, retrieval_id=f"{user}-retrieval"))
    assert [one.access_count for one in recalled.similar_memories] == [1]


async def put_cache_entry(store: AtlasStore, user: str) -> None:
    await store.put_cache_entry(entry(f"{user}-entry", "hash", user_id=user, query="Why?", response="Because."))


WORKS: dict[str, Work] = {
    work.__name__: work
    for work in (put_message, replace_source, put_summary, form_memory, reinforce_memory, recall, put_cache_entry)
}


def held(server: Server, user: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that is stored for a user, but for names and times."""
    database = server[DATABASE]
    mine = {"user_id": user}
    revisions = {one["source"]: one["revision"] for one in database["documents_sources"].find(mine)}
    return {
        "messages": sorted((one["text"], one.get("summary_id", "")) for one in database["conversations"].find(mine)),
        "summaries": [(one["text"], one["messages"]) for one in database["conversations_summaries"].find(mine)],
        "sources": sorted((one["source"], one["chunks"]) for one in database["documents_sources"].find(mine)),
        "chunks": sorted(
            (one["text"], one["revision"] == revisions[one["source"]]) for one in database["documents"].find(mine)
        ),
        "memories": sorted(
            (one["content"], one["importance"], one["access_count"], len(one["sources"]), len(one["accesses"]))
            for one in database["memory_nodes"].find(mine)
        ),
        "cache": sorted((one["query"], one["response"]) for one in database["cache"].find(mine)),
    }


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose connections may be cut, and that may be told to fail."""
    with stand_in(tmp_path_factory.mktemp("atlas")) as uri:
        yield uri


@pytest.fixture(scope="module")
def server(atlas: str) -> Iterator[Server]:
    with Server(atlas) as client:
        yield client


@pytest.fixture(scope="module")
async def indexed(atlas: str) -> None:
    await Engine("atlas", f"{DATABASE} {atlas}").prepare(MODEL)


@pytest.fixture
async def wire(atlas: str) -> AsyncIterator[Wire]:
    async with wired(atlas) as wire:
        yield wire


@asynccontextmanager
async def opened(wire: Wire, **options: Any) -> AsyncIterator[AtlasStore]:
    store = AtlasStore(wire.uri, DATABASE, **options)
    await store.open(MODEL)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(indexed: None, wire: Wire) -> AsyncIterator[AtlasStore]:
    async with opened(wire) as store:
        yield store


@pytest.fixture
async def impatient(indexed: None, wire: Wire) -> AsyncIterator[AtlasStore]:
    async with opened(wire, timeout=IMPATIENT) as store:
        yield store


async def prepare(store: AtlasStore, user: str) -> None:
    """What is there before the work: a source to replace, a memory to reinforce and to find, a message to form one."""
    await store.replace_source(user, DEFAULT_COLLECTION, "source", [chunk(user, "old", user_id=user, source="source")])
    await store.put_message(message(f"{user}-said", user=user))
    await form(store, memory(user, WEST, user_id=user, content="known"), 0.9)


async def undisturbed(store: AtlasStore, server: Server, user: str, work: Work) -> dict[str, list[tuple[Any, ...]]]:
    """What the work leaves behind where nothing fails."""
    await prepare(store, f"{user}-undisturbed")
    await work(store, f"{user}-undisturbed")
    return held(server, f"{user}-undisturbed")


async def until_done(work: Work, store: AtlasStore, user: str) -> None:
    """Repeat a work until it succeeds, as Temporal does."""
    async with asyncio.timeout(60):
        while True:
            try:
                await work(store, user)
                return
            except ApplicationError as failed:
                if failed.type != "unavailable":
                    raise
                await asyncio.sleep(0.05)


def fail(server: Server, commands: list[str], times: int = 1, **how: Any) -> None:
    """Let the server refuse the next commands of the store."""
    data = {"failCommands": commands, "appName": "durable-context", **how}
    server.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


@pytest.mark.parametrize("moment", ["asked", "done"])
@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("put_message", "update"),
        ("replace_source", "findAndModify"),
        ("replace_source", "insert"),
        ("form_memory", "insert"),
        ("reinforce_memory", "update"),
        ("recall", "update"),
        ("put_cache_entry", "update"),
    ],
)
async def test_a_connection_cut_in_mid_write_loses_and_doubles_nothing(
    store: AtlasStore, server: Server, wire: Wire, user: str, name: str, cut: str, moment: Moment
) -> None:
    work = WORKS[name]
    expected = await undisturbed(store, server, user, work)
    await prepare(store, user)
    trap = wire.cut(cut, moment)

    with fails("unavailable", "connection to Atlas broke"):
        await work(store, user)

    assert trap.caught == 1
    await work(store, user)
    assert held(server, user) == expected


@pytest.mark.parametrize("moment", ["asked", "done"])
@pytest.mark.parametrize("name", ["replace_source", "put_summary", "form_memory", "reinforce_memory"])
async def test_a_connection_cut_at_the_commit_loses_and_doubles_nothing(
    store: AtlasStore, server: Server, wire: Wire, user: str, name: str, moment: Moment
) -> None:
    work = WORKS[name]
    expected = await undisturbed(store, server, user, work)
    await prepare(store, user)
    trap = wire.cut("commitTransaction", moment)

    # The driver itself asks again whether it is committed.
    await until_done(work, store, user)
    assert trap.caught == 1
    await work(store, user)

    assert held(server, user) == expected


@pytest.mark.parametrize("name", ["form_memory", "reinforce_memory"])
async def test_a_commit_that_is_never_confirmed_is_not_doubled(
    impatient: AtlasStore, server: Server, wire: Wire, user: str, name: str
) -> None:
    work = WORKS[name]
    expected = await undisturbed(impatient, server, user, work)
    await prepare(impatient, user)
    trap = wire.cut("commitTransaction", "done", times=1000)

    with fails("unavailable"):
        await work(impatient, user)

    assert trap.caught > 0
    trap.open()
    await until_done(work, impatient, user)
    assert held(server, user) == expected


async def test_a_primary_that_steps_down_is_waited_for(store: AtlasStore, server: Server, user: str) -> None:
    users = {name: f"{user}-{name}" for name in WORKS}
    expected = {name: await undisturbed(store, server, users[name], work) for name, work in WORKS.items()}
    for one in users.values():
        await prepare(store, one)
    server.admin.command({"replSetStepDown": 3, "force": True})

    failed = await asyncio.gather(*(work(store, users[name]) for name, work in WORKS.items()), return_exceptions=True)

    for failure in failed:
        with fails("unavailable", "primary"):
            assert isinstance(failure, Exception), "it didn't fail"
            raise failure
    for name, work in WORKS.items():
        await until_done(work, store, users[name])
        assert held(server, users[name]) == expected[name]


@pytest.mark.parametrize("code", [10107, 189, 91, 11600, 11602])
@pytest.mark.parametrize(("name", "refused"), [("put_message", "update"), ("form_memory", "insert")])
async def test_a_server_that_ends_being_primary_is_named(
    store: AtlasStore, server: Server, user: str, name: str, refused: str, code: int
) -> None:
    work = WORKS[name]
    await prepare(store, user)
    fail(server, [refused], errorCode=code)

    with fails("unavailable", "primary"):
        await work(store, user)

    await until_done(work, store, user)
    await work(store, user)
    counts = {kind: len(records) for kind, records in held(server, user).items()}
    assert counts["messages"] + counts["memories"] == 4


@pytest.mark.parametrize("moment", ["asked", "done"])
@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("put_message", "update"),
        ("form_memory", "commitTransaction"),
        ("reinforce_memory", "update"),
        ("recall", "aggregate"),
        ("recall", "update"),
        ("put_cache_entry", "update"),
    ],
)
async def test_a_slow_command_is_given_up_and_repeated_without_harm(
    impatient: AtlasStore, server: Server, wire: Wire, user: str, name: str, slow: str, moment: Moment
) -> None:
    work = WORKS[name]
    expected = await undisturbed(impatient, server, user, work)
    await prepare(impatient, user)
    trap = wire.hold(slow, moment)

    with fails("unavailable", "took too long"):
        await work(impatient, user)

    trap.open()
    await until_done(work, impatient, user)
    assert held(server, user) == expected


async def test_a_command_that_the_server_gives_up_is_named(store: AtlasStore, server: Server, user: str) -> None:
    fail(server, ["update"], errorCode=50)

    with fails("unavailable", "took too long"):
        await put_message(store, user)

    await put_message(store, user)
    assert len(held(server, user)["messages"]) == 1


async def test_a_full_pool_is_named_and_all_that_waited_is_done_once(
    indexed: None, server: Server, wire: Wire, user: str
) -> None:
    # A large document may take its time, and so may it wait for a connection.
    works = {name: work for name, work in WORKS.items() if work is not replace_source}
    async with opened(wire, pool_size=2, timeout=IMPATIENT) as store:
        users = {name: f"{user}-{name}" for name in works}
        expected = {name: await undisturbed(store, server, users[name], work) for name, work in works.items()}
        for one in users.values():
            await prepare(store, one)
        # Removing what has expired may take long, and so takes up its connections for as long as the test wants.
        trap = wire.hold("delete", "asked", times=2)
        purges = [asyncio.create_task(store.purge_expired(NOON)) for _ in range(2)]
        await trap.has_caught(2)

        failed = await asyncio.gather(
            *(work(store, users[name]) for name, work in works.items()), return_exceptions=True
        )

        for failure in failed:
            with fails("unavailable", "all 2 connections", "maxPoolSize"):
                assert isinstance(failure, Exception), "it didn't fail"
                raise failure
        trap.open()
        await asyncio.gather(*purges)
        for name, work in works.items():
            await until_done(work, store, users[name])
            assert held(server, users[name]) == expected[name]


# Through the whole stack


@pytest.fixture(scope="module")
async def indexed_for_the_stack(atlas: str, home: Path) -> None:
    status, output = await run(home, "index", MONGODB_URI=atlas, DB_NAME=STACK_DATABASE)
    assert status == 0, output


@pytest.fixture
def settings(stack: Addresses, indexed_for_the_stack: None, wire: Wire, user: str) -> dict[str, str]:
    """Settings of a server of the test's own on the shared Temporal server, whose store is behind the wire."""
    return {
        "MONGODB_URI": f"{wire.uri}&timeoutMS=500",
        "DB_NAME": STACK_DATABASE,
        "TEMPORAL_TASK_QUEUE": user,
        "DEFAULT_USER_ID": user,
    }


async def until_up(client: Client) -> None:
    async with asyncio.timeout(60):
        while (await client.call_tool("check_semantic_cache", {"query": "Up?"})).is_error:
            await asyncio.sleep(0.05)


def stored(server: Server, user: str) -> list[str]:
    """Ids of the messages of a user."""
    return sorted(str(one["_id"]) for one in server[STACK_DATABASE]["conversations"].find({"user_id": user}))


async def test_what_is_stored_while_atlas_is_away_is_there_once_when_it_is_back(
    home: Path, temporal: TemporalClient, settings: dict[str, str], server: Server, wire: Wire, user: str
) -> None:
    async with serve(home, CALL_TIMEOUT_SECONDS="6", **settings) as client:
        await until_up(client)
        await wire.down()
        late = await client.call_tool("store_memory", PLEASE_KEEP)
        assert "MONGODB_URI" in task_of(late)["message"]

        await wire.up()
        await temporal.get_workflow_handle(workflow_id(late)).result()

        found = content(await client.call_tool("retrieve_memory", {"text": "Keep this."}))
        assert [one["message_id"].rpartition("-")[0] for one in found["related_conversation"]] == [workflow_id(late)]
    assert [one.rpartition("-")[0] for one in stored(server, user)] == [workflow_id(late)]


async def test_a_server_that_starts_while_atlas_is_away_works_once_it_is_there(
    home: Path,
    settings: dict[str, str],
    server: Server,
    wire: Wire,
    user: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await wire.down()
    async with serve(home, CALL_TIMEOUT_SECONDS="6", **settings) as client:
        assert "MONGODB_URI" in task_of(await client.call_tool("check_semantic_cache", {"query": "Up?"}))["message"]
        await wire.up()
        await until_up(client)
        kept = content(await client.call_tool("store_memory", PLEASE_KEEP))
    assert stored(server, user) == [kept["message_id"]]
    # Whatever Temporal's core has to say of it, stdout is the protocol's.
    assert "Failed to parse" not in caplog.text


async def test_a_worker_killed_in_mid_write_is_taken_over_and_each_record_is_there_once(
    home: Path, settings: dict[str, str], server: Server, wire: Wire, user: str
) -> None:
    patient = settings | {"MONGODB_URI": wire.uri}
    first = await asyncio.create_subprocess_exec(*command("worker"), env=environment(home, **patient))
    second = None
    try:
        async with serve(home, "--no-worker", **patient) as client, AsyncExitStack() as held_up:
            await until_up(client)
            # Of the one the server has stored the record, of the other it never hears.
            calls: list[asyncio.Task[CallToolResult]] = []
            stages: list[tuple[str, Moment]] = [("commitTransaction", "done"), ("findAndModify", "asked")]
            for written, moment in stages:
                trap = wire.hold(written, moment)
                held_up.callback(trap.open)
                calls.append(asyncio.create_task(client.call_tool("store_memory", PLEASE_KEEP)))
                await trap.has_caught(1)
            first.kill()
            await first.wait()
            assert len(stored(server, user)) == 1

            second = await asyncio.create_subprocess_exec(*command("worker"), env=environment(home, **patient))
            kept = sorted([content(await call)["message_id"] for call in calls])
            assert stored(server, user) == kept
    finally:
        for process in (first, second):
            if process is not None and process.returncode is None:
                process.terminate()
                await process.wait()
