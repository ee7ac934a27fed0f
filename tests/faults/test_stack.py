"""The shared stack: whoever starts it, leaves first or is killed, the others go on and nothing is lost."""

import asyncio
import fcntl
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import psutil
import pytest
from mcp import Client

from mcp_server.local.stack import Lease
from tests.conftest import content, serve, task_of, workflow_id
from tests.e2e.test_stdio import INITIALIZE, INITIALIZED, ask, gone, raw, request, stack_gone

PLEASE_KEEP = {"conversation_id": "c", "text": "Keep this.", "message_type": "human"}


def pids(home: Path) -> tuple[int, int]:
    """Process ids of the supervisor and of the Temporal dev server."""
    state = json.loads((home / "stack.json").read_text())
    return state["pid"], state["temporal_pid"]


async def call(process: asyncio.subprocess.Process, number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await ask(process, request(number, "tools/call", name=tool, arguments=arguments))
    structured: dict[str, Any] = answer["result"]["structuredContent"]
    return structured


async def handshake(process: asyncio.subprocess.Process) -> None:
    await ask(process, INITIALIZE)
    assert process.stdin is not None
    process.stdin.write(INITIALIZED)


async def until_up(client: Client) -> None:
    """Return once a server whose calls have little time has started."""
    async with asyncio.timeout(60):
        while "hit" not in (
            (await client.call_tool("check_semantic_cache", {"query": "Up?"})).structured_content or ()
        ):
            await asyncio.sleep(0.1)


def server_of(home: Path) -> psutil.Process:
    """The `durable-context serve` process that a client of this test has started on `home`."""
    children = psutil.Process().children()
    return next(child for child in children if child.environ().get("DURABLE_CONTEXT_HOME") == str(home))


async def keep(client: Client) -> None:
    """Store a message, with no time to spare: what went on as a task would be stored later."""
    stored = content(await client.call_tool("store_memory", PLEASE_KEEP))
    assert "message_id" in stored, stored


async def messages_of(client: Client) -> list[str]:
    found = content(await client.call_tool("retrieve_memory", {"text": "Keep this.", "limit": 100}))
    return [item["text"] for item in found["related_conversation"]]


@asynccontextmanager
async def locked(home: Path) -> AsyncIterator[None]:
    """Another process's lock on the store, as far as the store can tell."""
    db = apsw.Connection(str(home / "store.db"))
    try:
        db.execute("begin immediate")
        yield
    finally:
        db.close()


async def test_two_servers_share_a_stack_and_either_may_be_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with raw(home) as first, raw(home) as second:
        await handshake(first)
        await handshake(second)
        await call(first, 2, "store_memory", **PLEASE_KEEP)
        await call(second, 2, "store_memory", **PLEASE_KEEP)
        before = pids(home)
        # The command line of a process that is ending can't be read.
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert len([line for line in commands if str(home / "temporal.db") in line]) == 1

        first.kill()
        await first.wait()
        recalled = await call(second, 3, "retrieve_memory", text="Keep this.")
        assert len(recalled["related_conversation"]) == 2
        async with raw(home) as third:
            await handshake(third)
            # Its handshake is answered before it holds the stack, which otherwise ends with the second.
            await call(third, 2, "check_semantic_cache", query="Up?")
            second.kill()
            await second.wait()
            recalled = await call(third, 3, "retrieve_memory", text="Keep this.")
            assert len(recalled["related_conversation"]) == 2
            assert pids(home) == before
            third.kill()
            await third.wait()
    await stack_gone(home)
    await gone(*before)


async def test_many_servers_may_start_at_once(tmp_path: Path) -> None:
    home = tmp_path / "home"

    async def one() -> None:
        async with serve(home) as client:
            await keep(client)

    await asyncio.gather(*(one() for _ in range(4)))
    async with serve(home) as client:
        assert await messages_of(client) == ["Keep this."] * 4
    await stack_gone(home)


async def test_a_killed_supervisor_is_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serve(home) as client:
        await keep(client)
        supervisor, dev_server = pids(home)
        os.kill(supervisor, signal.SIGKILL)
        await gone(supervisor)

        await keep(client)
        assert await messages_of(client) == ["Keep this."] * 2
        await gone(dev_server)
        assert set(pids(home)).isdisjoint({supervisor, dev_server})
    await stack_gone(home)


async def test_a_killed_temporal_server_is_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serve(home) as client:
        await keep(client)
        supervisor, dev_server = pids(home)
        os.kill(dev_server, signal.SIGKILL)

        results = await asyncio.gather(*(client.call_tool("store_memory", PLEASE_KEEP) for _ in range(3)))
        assert len({content(result)["message_id"] for result in results}) == 3
        assert await messages_of(client) == ["Keep this."] * 4
        assert pids(home)[0] == supervisor
        assert pids(home)[1] != dev_server
    await stack_gone(home)


async def test_a_temporal_server_is_replaced_whenever_it_ends_though_the_state_can_t_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serve(home) as client:
        await keep(client)
        # As good as a full disk to the supervisor.
        (home / "stack.json.new").mkdir()
        known: set[int] = set()
        for _ in range(2):
            async with asyncio.timeout(30):
                while not (fresh := dev_servers_of(home) - known):
                    await asyncio.sleep(0.05)
            [dev_server] = fresh
            known.add(dev_server)
            os.kill(dev_server, signal.SIGKILL)
        await keep(client)
        assert await messages_of(client) == ["Keep this."] * 2
        (home / "stack.json.new").rmdir()
    await stack_gone(home)


def dev_servers_of(home: Path) -> set[int]:
    """Process ids of the Temporal dev servers of a data folder."""
    found = psutil.process_iter(["pid", "cmdline"])
    # The command line of a process that is ending can't be read.
    return {one.info["pid"] for one in found if str(home / "temporal.db") in (one.info["cmdline"] or [])}


async def test_work_in_flight_survives_the_end_of_every_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serve(home, CALL_TIMEOUT_SECONDS="1") as client:
        await until_up(client)
        async with locked(home):
            result = await client.call_tool("store_memory", PLEASE_KEEP)
            task_of(result)
            server_of(home).kill()
            await stack_gone(home)

    async with serve(home) as client:
        async with asyncio.timeout(90):
            while not (texts := await messages_of(client)):
                await asyncio.sleep(0.1)
        assert texts == ["Keep this."]
        found = content(await client.call_tool("retrieve_memory", {"text": "Keep this."}))
        assert found["related_conversation"][0]["message_id"].startswith(workflow_id(result))
    await stack_gone(home)


async def test_what_a_killed_supervisor_wrote_is_not_trusted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # Its port is somebody else's by now, and so is the process id: this test's own, which must survive.
        stale = {"pid": 1, "port": silent.getsockname()[1], "token": "x", "temporal_pid": os.getpid()}
        (home / "stack.json").write_text(json.dumps(stale))
        async with serve(home) as client:
            await keep(client)
    await stack_gone(home)


@pytest.mark.parametrize("killed", [True, False])
async def test_what_a_killed_supervisor_wrote_is_not_trusted_while_the_next_one_begins(
    tmp_path: Path, *, killed: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    asked = asyncio.Event()
    silent = await asyncio.start_server(lambda *_: asked.set(), "127.0.0.1", 0)
    stale = {"pid": 1, "port": silent.sockets[0].getsockname()[1], "token": "x", "temporal_pid": None}
    (home / "stack.json").write_text(json.dumps(stale))

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"models": "http://next"}\n')

    supervisor = await asyncio.start_server(answer, "127.0.0.1", 0)
    lease = Lease(home, ["models"])
    # As one does that has just taken the lock.
    lock = os.open(home / "stack.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    acquiring = asyncio.create_task(lease.acquire())
    await asked.wait()
    try:
        if killed:
            os.close(lock)
            assert (await acquiring).models != "http://next"
        else:
            # It has written where it listens itself.
            own = {"pid": os.getpid(), "port": supervisor.sockets[0].getsockname()[1], "token": "y"}
            (home / "stack.json").write_text(json.dumps(own))
            assert (await acquiring).models == "http://next"
    finally:
        await lease.release()
        silent.close()
        supervisor.close()
        if not killed:
            os.close(lock)
    await stack_gone(home)


async def test_a_torn_state_file_is_not_trusted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "stack.json").write_text('{"pid": 12')
    async with serve(home) as client:
        await keep(client)
    await stack_gone(home)
