"""An ASGI server inside a process that has other things to do: its listening socket, and its end."""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection is kept: longer than clients and proxies keep theirs, which is up to a minute.

Whoever is the first to end it, the other may just be sending a request, which then has no answer. A client knows which
of its requests may be sent again; a server can't.
"""


def listen(address: tuple[str, int], backlog: int | None = None) -> socket.socket:
    """A listening socket whose connections send what they have at once.

    asyncio sees to that only for sockets that name their protocol, and `accept` hands on what the listener has: without
    it, an answer's body waits up to 40 ms for the acknowledgement of its headers (Nagle's algorithm, delayed ACK).

    Raises:
        OSError: where the address can't be had.
        OverflowError: for a port that is none.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # From here on clients can connect; they are answered once the server has started.
        listener.listen() if backlog is None else listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


class HttpProtocol(HttpToolsProtocol):
    """Header values without the whitespace around them, which is no part of them (RFC 9110, section 5.5).

    llhttp leaves what follows a value, and nobody behind it takes it away.
    """

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.strip(b" \t"))


class EmbeddedServer(uvicorn.Server):
    """uvicorn inside a process that has other things to end in order: it stops by `should_exit` only.

    Args:
        app: What it serves.
        options: Of `uvicorn.Config`, beside those that all of them share.
    """

    def __init__(self, app: "ASGIApp", **options: Any) -> None:
        shared: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_keep_alive": KEEP_ALIVE_SECONDS}
        super().__init__(uvicorn.Config(app, http=HttpProtocol, **shared, **options))

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
