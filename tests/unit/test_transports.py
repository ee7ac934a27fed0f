"""What is done to lines before they are parsed, and how connections are made."""

import asyncio
import json
import socket

import pytest

from mcp_server.asgi import listen
from mcp_server.transports import mend_surrogates


@pytest.mark.parametrize(
    "text",
    ["plain", "😀", "\\ud83d", "\\\\ud83d", "a\\", "é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_is_well_formed_stays(text: str, ascii_only: bool) -> None:
    line = json.dumps(text, ensure_ascii=ascii_only)
    assert mend_surrogates(line) == line
    assert json.loads(mend_surrogates(line)) == text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r'"\ud83d"', "\ufffd"),
        (r'"\uDE00!"', "\ufffd!"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd😀"),
        (r'"\\\ud83d"', "\\\ufffd"),
        (r'"\ud83d\u0041"', "\ufffdA"),
    ],
)
def test_lone_surrogates_are_replaced(line: str, text: str) -> None:
    assert json.loads(mend_surrogates(line)) == text


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_answer_does_not_wait_for_an_acknowledgement(host: str) -> None:
    connected: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connected.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen((host, 0))
    async with await asyncio.start_server(answer, sock=listener):
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        await reader.read()
        writer.close()
        assert await connected
