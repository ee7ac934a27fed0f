"""A server over stdio: both protocol revisions, a clean stdout, and an end in time, however the client goes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from mcp_server.local.stack import Addresses, is_running
from tests.conftest import REPOSITORY, command, content, environment, error, serve, task_of
from tests.e2e.test_tools import TOOLS


def request(number: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


INITIALIZE = request(
    1,
    "initialize",
    protocolVersion="2025-11-25",
    capabilities={},
    clientInfo={"name": "test", "version": "1"},
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'


@asynccontextmanager
async def raw(home: Path, *arguments: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server process with its pipes bare; killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        *command("serve", *arguments),
        env=environment(home, **settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(process: asyncio.subprocess.Process, line: bytes) -> dict[str, Any]:
    """Send a line, and read the next one that isn't a notification."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    await process.stdin.drain()
    while True:
        answer: dict[str, Any] = json.loads(await process.stdout.readline())
        if "id" in answer:
            return answer


async def gone(*pids: int) -> None:
    """Return once none of the processes runs."""
    while any(_runs(pid) for pid in pids):
        await asyncio.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def stack_gone(home: Path) -> None:
    """Return once the embedded stack of `home` has ended, with every process that has it on its command line."""
    while is_running(home):
        await asyncio.sleep(0.02)
    leftovers = [process for process in psutil.process_iter(["cmdline"]) if str(home) in str(process.info["cmdline"])]
    await gone(*(process.pid for process in leftovers))


@pytest.mark.parametrize(("mode", "revision"), [("legacy", "2025-11-25"), ("2026-07-28", "2026-07-28")])
async def test_both_revisions_work(home: Path, stack: Addresses, user: str, mode: str, revision: str) -> None:
    async with serve(home, mode=mode) as client:
        assert client.protocol_version == revision
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        query = {"query": "Which revision?", "user_id": user}
        content(await client.call_tool("semantic_cache_response", query | {"response": revision}))
        assert content(await client.call_tool("check_semantic_cache", query))["response"] == revision
        assert "limit" in error(await client.call_tool("hybrid_search", {"query": "x", "limit": 0}))
        assert (await client.read_resource("health://status")).contents


async def test_initialize_is_answered_before_the_stack_is_up_and_a_tool_waits(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with raw(home) as process:
        answer = await ask(process, INITIALIZE)
        assert answer["result"]["serverInfo"]["name"] == "durable-context"
        # The model endpoint's address is written when it is up, which is part of being ready.
        state = home / "stack.json"
        assert not state.exists() or "models_port" not in json.loads(state.read_text())

        assert process.stdin is not None
        process.stdin.write(INITIALIZED)
        stored = await ask(
            process,
            request(
                2,
                "tools/call",
                name="store_memory",
                arguments={"conversation_id": "c", "text": "Right away.", "message_type": "human"},
            ),
        )
        assert not stored["result"].get("isError"), stored
        assert stored["result"]["structuredContent"]["message_id"]
    await stack_gone(home)


async def test_reading_health_while_the_server_starts_does_it_no_harm(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with raw(home) as process:
        await ask(process, INITIALIZE)
        assert process.stdin is not None
        process.stdin.write(INITIALIZED)
        health = await ask(process, request(2, "resources/read", uri="health://status"))
        assert "result" in health, health
        call = request(3, "tools/call", name="check_semantic_cache", arguments={"query": "Up?"})
        answer = await ask(process, call)
        assert not answer["result"].get("isError"), answer
        again = await ask(process, request(4, "resources/read", uri="health://status"))
        assert json.loads(again["result"]["contents"][0]["text"])["status"] == "ok"
    await stack_gone(home)


async def test_a_text_cut_inside_an_emoji_is_answered(home: Path, stack: Addresses, user: str) -> None:
    async with raw(home) as process:
        await ask(process, INITIALIZE)
        assert process.stdin is not None
        process.stdin.write(INITIALIZED)
        # json.dumps writes the lone surrogate as an escape, as JavaScript's JSON.stringify does.
        text = {"query": "What is this: \ud83d", "user_id": user}
        call = request(2, "tools/call", name="check_semantic_cache", arguments=text)
        assert b"\\ud83d" in call
        answer = await ask(process, call)
        assert answer["result"]["structuredContent"]["hit"] is False


async def test_stdout_carries_the_protocol_and_nothing_else(home: Path, stack: Addresses, user: str) -> None:
    async with raw(home, LOG_LEVEL="DEBUG") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await ask(process, INITIALIZE)
        process.stdin.write(INITIALIZED)
        call = {"name": "retrieve_memory", "arguments": {"text": "anything", "user_id": user}}
        await ask(process, request(2, "tools/call", **call))
        await ask(process, request(3, "tools/call", name="search_web", arguments={"query": "x"}))
        process.stdin.close()
        rest = await process.stdout.read()
        for line in rest.splitlines():
            assert json.loads(line)["jsonrpc"] == "2.0"
        assert await process.wait() == 0


@pytest.mark.parametrize("moment", ["at once", "when initialized", "with a call under way"])
@pytest.mark.parametrize("how", ["stdin", "SIGTERM"])
async def test_it_ends_with_its_children(tmp_path: Path, how: str, moment: str) -> None:
    home = tmp_path / "home"
    async with raw(home) as process:
        assert process.stdin is not None
        if moment != "at once":
            await ask(process, INITIALIZE)
            process.stdin.write(INITIALIZED)
        if moment == "with a call under way":
            process.stdin.write(request(2, "tools/call", name="retrieve_memory", arguments={"text": "x"}))
            await process.stdin.drain()
        if how == "stdin":
            process.stdin.close()
        else:
            # Before Python has set up its handling, the signal ends it at once, which is as good.
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            status = await process.wait()
        assert status == 0 or (moment == "at once" and status == -signal.SIGTERM)
        async with asyncio.timeout(30):
            await stack_gone(home)


async def test_it_ends_when_its_parent_dies_without_a_word(tmp_path: Path) -> None:
    home = tmp_path / "home"
    # The parent starts the server with a pipe that this test holds open too, as leaking hosts do, and then is killed.
    reading, writing = os.pipe()
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import subprocess, sys, time\n"
        "process = subprocess.Popen(sys.argv[2:], stdin=int(sys.argv[1]))\n"
        "print(process.pid, file=sys.stderr, flush=True)\n"
        "time.sleep(600)\n",
        str(reading),
        *command("serve"),
        env=environment(home),
        pass_fds=[reading],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert host.stdout is not None
    assert host.stderr is not None
    server = int(await host.stderr.readline())
    os.write(writing, INITIALIZE)
    assert json.loads(await host.stdout.readline())["id"] == 1

    host.kill()
    await host.wait()

    async with asyncio.timeout(30):
        await gone(server)
        await stack_gone(home)
    os.close(reading)
    os.close(writing)


async def test_the_desktop_example_starts_a_server(home: Path, stack: Addresses, tmp_path: Path) -> None:
    example = json.loads((REPOSITORY / "claude_desktop_config.example.json").read_text())
    entry = example["mcpServers"]["durable-context"]
    # As a desktop host does: no shell, no activated environment, an unrelated working folder. The command is found on
    # PATH, where installing the package puts it.
    parameters = StdioServerParameters(
        command=entry["command"],
        args=entry["args"],
        env=entry.get("env", {})
        | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "DURABLE_CONTEXT_HOME": str(home)},
        cwd=tmp_path,
    )
    async with Client(stdio_client(parameters)) as client:
        assert content(await client.call_tool("check_semantic_cache", {"query": "Are you there?"}))["hit"] is False


async def test_no_worker_says_which_command_is_missing(home: Path, stack: Addresses) -> None:
    settings = {"TEMPORAL_TASK_QUEUE": "nobody-works-here", "CALL_TIMEOUT_SECONDS": "2"}
    async with serve(home, "--no-worker", **settings) as client:
        late = task_of(await client.call_tool("check_semantic_cache", {"query": "Anybody?"}))
    assert "durable-context worker" in late["message"]


async def test_headless_workers_do_the_work(home: Path, stack: Addresses, user: str) -> None:
    settings = {"TEMPORAL_TASK_QUEUE": f"headless-{user}"}
    worker = await asyncio.create_subprocess_exec(*command("worker"), env=environment(home, **settings))
    try:
        async with serve(home, "--no-worker", **settings) as client:
            stored = await client.call_tool(
                "store_memory", {"conversation_id": "c", "text": "Anybody?", "message_type": "human", "user_id": user}
            )
            assert content(stored)["message_id"]
    finally:
        worker.terminate()
        assert await worker.wait() == 0
