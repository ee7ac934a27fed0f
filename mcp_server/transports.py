"""How clients reach the server: stdio, or streamable HTTP. Each ends in time, and leaves nothing behind."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn, cast

import anyio

from mcp_server.local.forkserver import is_forked, tell_caller
from mcp_server.runtime import Runtime
from mcp_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mcp_server.server import DurableContextServer

logger = logging.getLogger(__name__)

PARENT_POLL_SECONDS = 0.5
SHUTDOWN_SECONDS = 6.0
BACKLOG = 2048
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def watch_for_end(*, parent: bool) -> asyncio.Event:
    """An event that is set by SIGTERM or SIGINT and, with `parent`, when the process that started this one is gone.

    Desktop hosts are known to die without closing their servers' stdin or sending a signal.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    born_of = os.getppid()

    def look() -> None:
        if os.getppid() != born_of:
            logger.info("the process that started this one is gone")
            ended.set()
        else:
            loop.call_later(PARENT_POLL_SECONDS, look)

    if parent:
        look()
    return ended


def end_process(status: int = 0) -> NoReturn:
    """End now: a thread that still blocks on reading stdin would keep an orderly exit waiting for ever."""
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    tell_caller(status)
    os._exit(status)


def limit_shutdown() -> None:
    """From now on the process has SHUTDOWN_SECONDS left, whatever hangs."""
    timer = threading.Timer(SHUTDOWN_SECONDS, os._exit, [1])
    timer.daemon = True
    timer.start()


_ESCAPES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def mend_surrogates(line: str) -> str:
    """A line of JSON with every lone surrogate escape replaced by that of U+FFFD.

    JavaScript clients write them for text that was cut inside an emoji. The JSON parser refuses them, and a line that
    can't be parsed would never be answered.
    """
    return _ESCAPES.sub(lambda found: r"\ufffd" if found["lone"] else found[0], line)


class _MendedInput:
    """Lines of stdin, as the SDK's transport reads them."""

    def __init__(self) -> None:
        self._file = anyio.wrap_file(TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace"))

    async def __aiter__(self) -> AsyncIterator[str]:
        async for line in self._file:
            yield mend_surrogates(line)


async def _run_stdio(server: "DurableContextServer") -> None:
    from mcp.server.stdio import stdio_server

    lines = cast("anyio.AsyncFile[str]", _MendedInput())
    async with stdio_server(stdin=lines) as (read_stream, write_stream):
        low = server._lowlevel_server
        await low.run(read_stream, write_stream, low.create_initialization_options())


async def serve_stdio(server: "DurableContextServer") -> NoReturn:
    """Serve one client until it closes stdin, SIGTERM arrives or the parent process is gone; then end the process.

    Work that is still under way goes on when a worker next has it.
    """
    # The host's process is the parent of whoever asked for this one, and that one watches it.
    ended = watch_for_end(parent=not is_forked())
    async with server.runtime.running():
        serving = asyncio.create_task(_run_stdio(server))
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        limit_shutdown()
        status = 0
        if serving.done() and (error := serving.exception()) is not None:
            logger.error("the stdio transport failed", exc_info=error)
            status = 1
    end_process(status)


def transport_security(settings: Settings, host: str) -> "TransportSecuritySettings":
    """Which Host and Origin headers are accepted: loopback, `host` itself, and what the settings add."""
    from mcp.server.transport_security import TransportSecuritySettings

    names = {"127.0.0.1", "localhost", "[::1]"}
    if host not in ("0.0.0.0", "::"):
        names.add(f"[{host}]" if ":" in host else host)
    hosts = [name for base in sorted(names) for name in (base, f"{base}:*")]
    origins = [f"http://{name}" for base in ("127.0.0.1", "localhost", "[::1]") for name in (base, f"{base}:*")]
    for allowed in settings.allowed_hosts:
        hosts += [allowed] if ":" in allowed else [allowed, f"{allowed}:*"]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[*origins, *settings.allowed_origins])


def build_http_app(server: "DurableContextServer", host: str) -> "ASGIApp":
    """The ASGI application: `/mcp`, `/upload`, `/conversation`, and `GET /health` for whoever supervises the process.

    Raises:
        SettingsError: where `host` reaches beyond this machine and there are no tokens.
    """
    from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
    from starlette.middleware.authentication import AuthenticationMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    from mcp_server.auth import StaticTokenVerifier, load_tokens
    from mcp_server.conversation import Conversations
    from mcp_server.resources import health_report
    from mcp_server.upload import Uploads

    tokens = load_tokens(server.runtime.settings)
    if host not in LOOPBACK_HOSTS and not tokens:
        raise SettingsError(
            f"--host {host} lets other machines in, and there are no tokens to tell who they are. "
            "Set AUTH_TOKENS or AUTH_TOKENS_FILE; `durable-context token USER` makes a token."
        )

    async def health(_: Request) -> Response:
        # Open to anybody who can connect, so it says no more than whether.
        status = (await health_report(server.runtime))["status"]
        return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)

    server.custom_route("/health", methods=["GET"])(health)
    security = transport_security(server.runtime.settings, host)
    Uploads(server, security).register()
    Conversations(server, security).register()
    app: ASGIApp = server.streamable_http_app(host=host, transport_security=security)
    if not tokens:
        return app
    guarded = RequireAuthMiddleware(app, required_scopes=[])

    async def gate(scope: "Scope", receive: "Receive", send: "Send") -> None:
        is_open = scope["type"] != "http" or scope["path"] == "/health"
        await (app if is_open else guarded)(scope, receive, send)

    return AuthenticationMiddleware(gate, backend=BearerAuthBackend(StaticTokenVerifier(tokens)))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        SettingsError: naming the host and port that can't be had.
    """
    from mcp_server.asgi import listen

    try:
        return listen((host, port), BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"Can't listen on --host {host} --port {port}: {reason}. Choose another.") from None


async def serve_http(server: "DurableContextServer", host: str, port: int) -> None:
    """Serve any number of clients at http://host:port/mcp until SIGTERM or SIGINT.

    Raises:
        SettingsError: where the address or the tokens can't be used.
    """
    from mcp_server.asgi import EmbeddedServer

    app = build_http_app(server, host)
    listener = bind(host, port)
    http = EmbeddedServer(app, server_header=False, timeout_graceful_shutdown=2, lifespan="on")
    ended = watch_for_end(parent=False)
    name = f"[{host}]" if ":" in host else host
    logger.info("serving MCP at http://%s:%d/mcp", name, listener.getsockname()[1])
    async with server.runtime.running():
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        limit_shutdown()
        waiting.cancel()
        http.should_exit = True
        await serving
    end_process()


async def run_worker(runtime: Runtime) -> NoReturn:
    """Run workflows and activities until SIGTERM or SIGINT; what is under way then goes to another worker."""
    ended = watch_for_end(parent=False)
    async with runtime.running():
        await ended.wait()
        limit_shutdown()
    end_process()
