"""Streamable HTTP: both protocol revisions, who may call, and which headers are accepted."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from mcp_server.auth import hash_token
from mcp_server.local.stack import Addresses
from tests.conftest import command, content, environment, error
from tests.e2e.test_tools import TOOLS

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@asynccontextmanager
async def serve_http(home: Path, *arguments: str, **settings: str) -> AsyncIterator[str]:
    """The address of a `durable-context serve --transport http` on a free port."""
    process = await asyncio.create_subprocess_exec(
        *command("serve", "--transport", "http", "--port", "0", *arguments),
        env=environment(home, **settings),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        address = None
        while address is None:
            line = (await process.stderr.readline()).decode()
            assert line, "the server ended before it listened"
            if found := re.search(r"serving MCP at http://[^:]+:(\d+)/mcp", line):
                address = f"http://127.0.0.1:{found[1]}"
        drain = asyncio.create_task(process.stderr.read())
        yield address
    finally:
        if process.returncode is None:
            process.terminate()
        assert await process.wait() == 0
        await drain


@pytest.fixture(scope="module")
async def address(home: Path, stack: Addresses) -> AsyncIterator[str]:
    async with serve_http(home) as address:
        yield address


@asynccontextmanager
async def connected(address: str, mode: str = "auto", token: str | None = None) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{address}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize(("mode", "revision"), [("legacy", "2025-11-25"), ("2026-07-28", "2026-07-28")])
async def test_both_revisions_work(address: str, user: str, mode: str, revision: str) -> None:
    async with connected(address, mode) as client:
        assert client.protocol_version == revision
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        stored = await client.call_tool(
            "store_memory", {"conversation_id": "c", "text": "Hello there", "message_type": "human", "user_id": user}
        )
        assert content(stored)["message_id"]
        assert (await client.read_resource("config://settings")).contents
        assert "limit" in error(await client.call_tool("hybrid_search", {"query": "x", "limit": 0}))


async def test_health_says_whether(address: str) -> None:
    async with httpx.AsyncClient() as http:
        while (answer := await http.get(f"{address}/health")).status_code == 503:
            await asyncio.sleep(0.05)
    assert answer.json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
    ],
)
async def test_origin_and_host_are_checked(address: str, headers: dict[str, str], status: int) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{address}/mcp", json=INITIALIZE, headers=ACCEPT | headers)
    assert answer.status_code == status


async def test_an_idle_connection_is_not_the_server_s_to_end(address: str) -> None:
    """A client that keeps connections for five seconds, as most do, would send requests into their ends."""
    place = httpx.URL(address)
    reader, writer = await asyncio.open_connection(place.host, place.port)
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {place.host}:{place.port}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(6):
                await reader.read(1)
    finally:
        writer.close()


async def test_whitespace_around_a_header_s_value_is_no_part_of_it(address: str) -> None:
    """Sent by hand: clients take it away themselves."""
    place = httpx.URL(address)
    said = {"protocolVersion": "2026-07-28", "clientInfo": {"name": "test", "version": "1"}, "clientCapabilities": {}}
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in said.items()}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}})
    headers = {
        "Host": f"{place.host}:{place.port}",
        "Content-Length": str(len(body)),
        "Content-Type": "application/json",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/list",
        **ACCEPT,
    }
    lines = [f"{name}: \t{value} \t" for name, value in headers.items()]
    reader, writer = await asyncio.open_connection(place.host, place.port)
    try:
        writer.write("\r\n".join(["POST /mcp HTTP/1.1", *lines, "", body]).encode())
        assert (await reader.readline()).split()[1] == b"200"
    finally:
        writer.close()


async def test_tokens_decide_whose_records_they_are(home: Path, stack: Addresses, user: str) -> None:
    other = f"{user}-other"
    tokens = f"{user}:{hash_token('token-one')},{other}:{hash_token('token-two')}"
    async with serve_http(home, AUTH_TOKENS=tokens) as address:
        async with connected(address, token="token-one") as client:
            query = {"query": "What is my plan?"}
            content(await client.call_tool("semantic_cache_response", query | {"response": "Sail."}))
            assert content(await client.call_tool("check_semantic_cache", query | {"user_id": user}))["hit"]
            refused = await client.call_tool("check_semantic_cache", query | {"user_id": other})
            assert "user_id" in error(refused)
            shown: Any = (await client.read_resource("config://settings")).contents[0]
            assert hash_token("token-one") not in shown.text
        async with connected(address, token="token-two") as client:
            assert not content(await client.call_tool("check_semantic_cache", query))["hit"]
        async with httpx.AsyncClient() as http:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token-one"}):
                answer = await http.post(f"{address}/mcp", json=INITIALIZE, headers=ACCEPT | headers)
                assert answer.status_code == 401
                assert "www-authenticate" in answer.headers
            assert (await http.get(f"{address}/health")).status_code in (200, 503)


async def run(home: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit status and output of a command that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        env=environment(home, **settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_it_refuses_to_let_other_machines_in_without_tokens(home: Path) -> None:
    status, output = await run(home, "serve", "--transport", "http", "--host", "0.0.0.0", "--port", "0")

    assert status == 2
    assert "AUTH_TOKENS" in output
    assert "Traceback" not in output


async def test_it_lets_other_machines_in_with_tokens_under_names_it_knows(home: Path, stack: Addresses) -> None:
    settings = {"AUTH_TOKENS": f"ada:{hash_token('secret')}", "ALLOWED_HOSTS": "context.example.com"}
    async with serve_http(home, "--host", "0.0.0.0", **settings) as address, httpx.AsyncClient() as http:
        for host, expected in {"context.example.com": 200, "evil.example": 421}.items():
            headers = ACCEPT | {"Authorization": "Bearer secret", "Host": host}
            answer = await http.post(f"{address}/mcp", json=INITIALIZE, headers=headers)
            assert answer.status_code == expected


@pytest.mark.parametrize("entry", ["ada", "ada:abc", f":{'0' * 64}", f"ada:{'g' * 64}"])
async def test_a_malformed_token_entry_is_named(home: Path, entry: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may call\n{entry}\n")

    status, output = await run(home, "serve", "--transport", "http", "--port", "0", AUTH_TOKENS_FILE=str(file))

    assert status == 2
    assert "AUTH_TOKENS_FILE: entry 2" in output
    assert entry not in output


@pytest.mark.parametrize("settings", [{"AUTH_TOKENS": ","}, {"AUTH_TOKENS_FILE": "comments"}])
async def test_tokens_that_are_set_and_empty_keep_everybody_out(
    home: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    (tmp_path / "comments").write_text("# nobody yet\n\n")
    settings = {name: str(tmp_path / value) if name.endswith("FILE") else value for name, value in settings.items()}

    status, output = await run(home, "serve", "--transport", "http", "--port", "0", **settings)

    assert status == 2
    assert "holds no entry" in output


async def test_a_taken_port_is_named(home: Path, address: str) -> None:
    port = address.rsplit(":", 1)[1]

    status, output = await run(home, "serve", "--transport", "http", "--port", port)

    assert status == 2
    assert f"--port {port}" in output
