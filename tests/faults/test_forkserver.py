"""Servers that a running stack has forked: each host's own, and gone with it; whatever is missing, a server starts."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from mcp_server.local.stack import Addresses
from mcp_server.standin import SOCKET
from tests.conftest import command, content, environment, serve
from tests.e2e.test_stdio import INITIALIZE, ask, gone, raw, request, stack_gone
from tests.faults.test_stack import handshake, pids

CALL = request(2, "tools/call", name="check_semantic_cache", arguments={"query": "Are you there?"})


async def fork_server(home: Path) -> psutil.Process:
    """The fork server of a running stack, once it listens."""
    async with asyncio.timeout(60):
        while not (home / SOCKET).exists():
            await asyncio.sleep(0.05)
    supervisor = json.loads((home / "stack.json").read_text())["pid"]
    return next(child for child in psutil.Process(supervisor).children() if child.cmdline()[-1] == "fork")


@asynccontextmanager
async def forked(home: Path, *arguments: str, **settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A server with its pipes bare that has answered `initialize`, and the process that was forked for it."""
    parent = await fork_server(home)
    before = {child.pid for child in parent.children()}
    async with raw(home, *arguments, **settings) as process:
        await handshake(process)
        (pid,) = {child.pid for child in parent.children()} - before
        yield process, pid


async def test_a_running_stack_forks_a_server_with_its_hosts_own_environment_and_folder(
    home: Path, stack: Addresses, user: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"DEFAULT_USER_ID={user}\nCACHE_TTL_SECONDS=777\n")
    await fork_server(home)
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command("serve"),
            env=environment(home, CACHE_TTL_SECONDS="888"),
            cwd=tmp_path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
        await handshake(process)
        await ask(process, CALL)
        settings = await ask(process, request(3, "resources/read", uri="config://settings"))
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0
    shown = json.loads(settings["result"]["contents"][0]["text"])
    assert shown["DEFAULT_USER_ID"] == user
    assert shown["CACHE_TTL_SECONDS"] == 888
    assert "mcp_server.runtime: ready" in errors.read_text()


async def test_a_forked_server_works_for_a_client_of_the_sdk(home: Path, stack: Addresses, user: str) -> None:
    parent = await fork_server(home)
    async with serve(home) as client:
        assert parent.children()
        query = {"query": "Forked?", "user_id": user}
        content(await client.call_tool("semantic_cache_response", query | {"response": "Yes."}))
        assert content(await client.call_tool("check_semantic_cache", query))["response"] == "Yes."


@pytest.mark.parametrize("how", ["stdin", "SIGTERM", "SIGINT"])
async def test_it_ends_with_status_0_and_so_does_what_was_forked(home: Path, stack: Addresses, how: str) -> None:
    async with forked(home) as (process, pid):
        if how == "stdin":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[how])
        async with asyncio.timeout(30):
            assert await process.wait() == 0
            await gone(pid)


async def test_what_was_forked_ends_with_a_killed_command(home: Path, stack: Addresses) -> None:
    async with forked(home) as (process, pid):
        process.kill()
        async with asyncio.timeout(30):
            await gone(pid)


async def test_it_ends_when_its_host_dies_without_a_word(home: Path, stack: Addresses) -> None:
    parent = await fork_server(home)
    others = {child.pid for child in parent.children()}
    # The other ends of the server's pipes outlive the host, as those of leaking hosts do.
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
    stand_in = int(await host.stderr.readline())
    os.write(writing, INITIALIZE)
    assert json.loads(await host.stdout.readline())["id"] == 1
    children = [child.pid for child in parent.children() if child.pid not in others]
    assert children

    host.kill()
    await host.wait()

    async with asyncio.timeout(30):
        await gone(stand_in, *children)
    os.close(reading)
    os.close(writing)


async def test_a_killed_server_ends_the_command_with_an_error(home: Path, stack: Addresses) -> None:
    async with forked(home) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            assert await process.wait() == 1


async def test_a_forked_server_has_the_limits_of_its_host(home: Path, stack: Addresses) -> None:
    parent = await fork_server(home)
    before = {child.pid for child in parent.children()}
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'ulimit -n 300; exec nice -n 3 "$@"', "sh", *command("serve")),
        env=environment(home),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await handshake(process)
    (pid,) = {child.pid for child in parent.children()} - before
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) == (300, 300)
    assert psutil.Process(pid).nice() == parent.nice() + 3
    assert process.stdin is not None
    process.stdin.close()
    assert await process.wait() == 0


async def test_another_python_environment_serves_by_itself(home: Path, stack: Addresses) -> None:
    parent = await fork_server(home)
    before = {child.pid for child in parent.children()}
    async with raw(home, PYTHONHASHSEED="7") as process:
        await handshake(process)
        assert "result" in await ask(process, CALL)
        assert {child.pid for child in parent.children()} <= before


async def test_settings_that_cannot_be_used_are_said_on_the_hosts_stderr(home: Path, stack: Addresses) -> None:
    await fork_server(home)
    process = await asyncio.create_subprocess_exec(
        *command("serve"), env=environment(home, CHUNK_TOKENS="1"), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"CHUNK_TOKENS" in errors


async def test_a_forked_server_outlives_the_fork_server_and_the_supervisor(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with raw(home) as first:
        await handshake(first)
        parent = await fork_server(home)
        async with forked(home) as (second, pid):
            assert "result" in await ask(second, CALL)
            parent.kill()
            await gone(parent.pid)
            async with raw(home) as third:
                await handshake(third)
                assert "result" in await ask(third, CALL)

            supervisor, dev_server = pids(home)
            os.kill(supervisor, signal.SIGKILL)
            await gone(supervisor, dev_server)
            first.kill()
            await first.wait()
            answer = await ask(second, CALL)
            assert not answer["result"].get("isError"), answer
            assert pids(home)[0] != supervisor

            assert second.stdin is not None
            second.stdin.close()
            assert await second.wait() == 0
            await gone(pid)
    await stack_gone(home)
    assert not (home / SOCKET).exists()
