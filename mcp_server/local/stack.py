"""One embedded stack for each data folder, shared by every process that uses the folder.

A supervisor process owns the Temporal dev server and the model endpoint. Whoever needs them connects to the supervisor
and keeps the connection as a lease: the kernel closes it when that process ends, however it ends, and the supervisor
ends itself and its children with the last lease. Whoever finds no supervisor starts one, so that any process may come
first, leave first or be killed.

It also owns a fork server, from which further servers are forked: `mcp_server.local.forkserver`.

In the data folder: `stack.lock` is locked by the living supervisor, `start.lock` by whoever is starting one, and
`stack.json` says where the supervisor listens.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mcp_server import standin
from mcp_server.local.temporal import (
    LOOPBACK,
    DevServer,
    DevServerError,
    Ports,
    end_leftover,
    free_port,
    is_free,
    open_log,
)

logger = logging.getLogger(__name__)

Piece = Literal["temporal", "models"]

LOCK_SECONDS = 15.0
FORK_SERVER_DELAY_SECONDS = 2.0
ACQUIRE_SECONDS = 60.0
LOOK_SECONDS = 0.1


class StackError(Exception):
    """The embedded stack can't be brought up; the message says why and what to do."""


@dataclass(frozen=True)
class Addresses:
    """Where the leased pieces answer; None for a piece that wasn't asked for."""

    temporal: str | None = None
    temporal_ui: str | None = None
    models: str | None = None


def _read_state(home: Path) -> dict[str, Any]:
    try:
        state = json.loads((home / "stack.json").read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


@contextlib.contextmanager
def _locked(path: Path, seconds: float) -> Iterator[bool]:
    """Hold the lock file `path`; yields False where another process still held it after `seconds`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.02)
        yield True
    finally:
        os.close(descriptor)


def is_running(home: Path) -> bool:
    """Whether a supervisor of `home` is alive."""
    if not (home / "stack.lock").exists():
        return False
    with _locked(home / "stack.lock", 0) as free:
        return not free


# The supervisor's side


class Supervisor:
    """Owns the pieces of one data folder for as long as somebody holds a lease."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._token = secrets.token_urlsafe(32)
        self._leases: set[asyncio.StreamWriter] = set()
        self._piece_locks: dict[Piece, asyncio.Lock] = {"temporal": asyncio.Lock(), "models": asyncio.Lock()}
        self._dev_server: DevServer | None = None
        self._ports: Ports | None = None
        self._models: asyncio.Task[None] | None = None
        self._models_url: str | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._forks: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._starter_lives = True
        self._stopping = False
        self._state = _read_state(home)

    async def run(self) -> None:
        """Serve leases until none is left, or until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        # Whoever started this process holds the other end of stdin until it has its lease.
        loop.add_reader(0, self._read_starter)
        if leftover := self._state.get("temporal_pid"):
            end_leftover(int(leftover), self._home / "temporal.db")
        listener = await asyncio.start_server(self._serve_lease, LOOPBACK, 0)
        self._state |= {
            "pid": os.getpid(),
            "port": listener.sockets[0].getsockname()[1],
            "token": self._token,
            "temporal_pid": None,
        }
        self._write_state()
        logger.info("supervisor of %s is up, pid %d", self._home, os.getpid())
        try:
            while (self._leases or self._starter_lives) and not self._stopping:
                self._changed.clear()
                await self._changed.wait()
        finally:
            # From here on a newcomer finds nobody, and starts a supervisor that waits for this one's lock.
            self._stopping = True
            listener.close()
            self._end_leases()
            for key in ("pid", "port", "token"):
                self._state.pop(key, None)
            self._keep_state()
            await self._stop_pieces()
            logger.info("supervisor is done: no lease left")

    def _stop(self) -> None:
        self._stopping = True
        self._changed.set()

    def _read_starter(self) -> None:
        if not os.read(0, 1):
            asyncio.get_running_loop().remove_reader(0)
            self._starter_lives = False
            self._changed.set()

    def _write_state(self) -> None:
        draft = self._home / "stack.json.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(self._state, file)
        draft.replace(self._home / "stack.json")

    def _keep_state(self) -> None:
        """Write what has changed where that can be done: only a later supervisor goes by it, and it may do without.

        On a full disk it can't be, and the pieces have to be looked after all the same.
        """
        try:
            self._write_state()
        except OSError as error:
            logger.warning("stack.json can't be written: %s", error.strerror)

    async def _serve_lease(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            if not secrets.compare_digest(str(request.get("token")), self._token):
                return
            self._leases.add(writer)
            self._changed.set()
            answer: dict[str, Any] = {}
            try:
                for part in await asyncio.gather(*(self._needed(piece) for piece in request["need"])):
                    answer |= part
            except (DevServerError, OSError) as error:
                answer = {"error": str(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            if self._forks is None and sys.platform == "linux":
                self._forks = asyncio.create_task(self._fork_servers())
            # Nothing more is ever sent: reading ends when the holder does.
            await reader.read()
        except (OSError, ValueError, KeyError):
            logger.info("a lease ended", exc_info=logger.isEnabledFor(logging.DEBUG))
        finally:
            self._leases.discard(writer)
            self._changed.set()
            writer.close()

    def _kept_port(self, key: str) -> int:
        """The port that served last time, so that addresses stay, or a new one where it is taken."""
        kept = self._state.get(key)
        return kept if isinstance(kept, int) and is_free(kept) else free_port()

    async def _needed(self, piece: Piece) -> dict[str, Any]:
        """Addresses of `piece`, which is started for its first lease."""
        async with self._piece_locks[piece]:
            return await (self._need_temporal() if piece == "temporal" else self._need_models())

    async def _need_temporal(self) -> dict[str, Any]:
        if self._dev_server is None:
            await self._start_temporal()
            self._keeper = asyncio.create_task(self._keep_temporal())
        assert self._ports is not None
        return {
            "temporal": f"{LOOPBACK}:{self._ports.frontend}",
            "temporal_ui": f"http://{LOOPBACK}:{self._ports.ui}",
        }

    async def _start_temporal(self) -> None:
        server = DevServer(self._home / "temporal.db", self._home / "logs" / "temporal.log")
        ports = Ports(self._kept_port("temporal_port"), self._kept_port("temporal_ui_port"))
        await server.start(ports)
        self._dev_server, self._ports = server, ports
        self._state |= {
            "temporal_port": ports.frontend,
            "temporal_ui_port": ports.ui,
            "temporal_pid": server.pid,
        }
        self._keep_state()
        logger.info("Temporal dev server is up at %s:%d, pid %s", LOOPBACK, ports.frontend, server.pid)

    async def _keep_temporal(self) -> None:
        """Replace the dev server whenever it ends by itself; its database has every workflow."""
        while not self._stopping:
            assert self._dev_server is not None
            status = await self._dev_server.wait()
            if self._stopping:
                return
            before = self._ports
            logger.warning("Temporal dev server ended with status %d: starting it again", status)
            for delay in (0.0, 0.5, 1.0, 2.0, 4.0):
                await asyncio.sleep(delay)
                try:
                    await self._start_temporal()
                    break
                except (DevServerError, OSError):
                    logger.exception("Temporal dev server can't be started again")
            else:
                logger.error("giving up: the leases end, and their holders start a new supervisor")
                self._end_leases()
                return
            if self._ports != before:
                logger.warning("the dev server had to move: the leases end, so that their holders ask anew")
                self._end_leases()

    def _end_leases(self) -> None:
        for writer in list(self._leases):
            writer.close()

    async def _need_models(self) -> dict[str, Any]:
        if self._models is None or self._models.done():
            from mcp_server.asgi import EmbeddedServer, listen
            from mcp_server.local.bedrock import create_app

            port = self._kept_port("models_port")
            listener = listen((LOOPBACK, port))
            endpoint = EmbeddedServer(create_app())
            self._models = asyncio.create_task(endpoint.serve(sockets=[listener]))
            while not endpoint.started:
                if self._models.done():
                    raise OSError(f"the model endpoint can't start on port {port}")
                await asyncio.sleep(0.01)
            self._models_url = f"http://{LOOPBACK}:{port}"
            self._state["models_port"] = port
            self._keep_state()
            logger.info("model endpoint is up at %s", self._models_url)
        return {"models": self._models_url}

    async def _fork_servers(self) -> None:
        """Have a fork server, which spares whoever comes next the time that imports take."""
        # The process that has started the stack is still starting itself.
        await asyncio.sleep(FORK_SERVER_DELAY_SECONDS)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_server.local", str(self._home), "fork"), stdin=asyncio.subprocess.PIPE
        )
        try:
            logger.warning("the fork server ended with status %d: servers start without it", await process.wait())
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _stop_pieces(self) -> None:
        for task in (self._keeper, self._models, self._forks):
            if task is not None:
                task.cancel()
        if self._forks is not None:
            await asyncio.wait([self._forks])
        (self._home / standin.SOCKET).unlink(missing_ok=True)
        if self._dev_server is not None:
            await self._dev_server.stop()
            self._state["temporal_pid"] = None
            self._keep_state()


def supervise(home: Path) -> None:
    """Be the supervisor of `home`, unless another one lives on; returns once no lease is left."""
    with _locked(home / "stack.lock", LOCK_SECONDS) as mine:
        if mine:
            asyncio.run(Supervisor(home).run())


# The holder's side


def _spawn(home: Path) -> subprocess.Popen[bytes]:
    with open_log(home / "logs" / "stack.log") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mcp_server.local", str(home)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=home,
            # In a session of its own, so that a host which kills its server's process group doesn't hit the others.
            start_new_session=True,
        )


@dataclass(frozen=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def _living(home: Path) -> dict[str, Any]:
    """What the living supervisor of `home` has written of itself; empty where there is none.

    One that has just taken the lock hasn't written yet: then it is what a killed one wrote, and its port may be
    somebody else's by now.
    """
    state = _read_state(home)
    return state if "port" in state and "token" in state and is_running(home) else {}


async def _ask(home: Path, need: list[Piece]) -> tuple[_Connection, dict[str, Any]] | None:
    """A connection to the living supervisor of `home`, and its answer; None where there is none, or it is ending."""
    state = _living(home)
    if not state:
        return None
    asking = asyncio.create_task(_answered(state, need))
    try:
        while not (await asyncio.wait({asking}, timeout=LOOK_SECONDS))[0]:
            # Somebody else at the port of a killed supervisor may never say a word.
            if _living(home).get("token") != state["token"]:
                return None
        return asking.result()
    finally:
        asking.cancel()


async def _answered(state: dict[str, Any], need: list[Piece]) -> tuple[_Connection, dict[str, Any]] | None:
    """A connection to whoever listens where a supervisor should, and the answer; None where there is none."""
    answer = None
    try:
        connection = _Connection(*await asyncio.open_connection(LOOPBACK, state["port"]))
    except OSError:
        return None
    try:
        connection.writer.write(json.dumps({"token": state["token"], "need": need}).encode() + b"\n")
        answer = json.loads(await connection.reader.readline() or b"null")
        return (connection, answer) if isinstance(answer, dict) else None
    except (OSError, ValueError):
        return None
    finally:
        if not isinstance(answer, dict):
            connection.writer.close()


class Lease:
    """A claim on pieces of the embedded stack of `home`, renewed for as long as it is held."""

    def __init__(self, home: Path, need: list[Piece]) -> None:
        self._home = home
        self._need = need
        self._connection: _Connection | None = None

    async def acquire(self) -> Addresses:
        """Bring the pieces up, or join those that are, and hold them.

        Raises:
            StackError: where they can't be brought up.
        """
        await self.release()
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._home / "logs").mkdir(mode=0o700, exist_ok=True)
            async with asyncio.timeout(ACQUIRE_SECONDS):
                connection, answer = await self._ask_or_start()
        except TimeoutError:
            raise StackError(
                f"The embedded stack of {self._home} did not start within {ACQUIRE_SECONDS:.0f} s; "
                f"{self._home / 'logs' / 'stack.log'} may say why."
            ) from None
        except OSError as error:
            raise StackError(
                f"The embedded stack of {self._home} can't be started: {error}. Check DURABLE_CONTEXT_HOME."
            ) from error
        if "error" in answer:
            connection.writer.close()
            raise StackError(answer["error"])
        self._connection = connection
        return Addresses(**answer)

    async def _ask_or_start(self) -> tuple[_Connection, dict[str, Any]]:
        """Ask the supervisor; where there is none, start one, unless another process is just doing that."""
        while True:
            if asked := await _ask(self._home, self._need):
                return asked
            with _locked(self._home / "start.lock", 0) as mine:
                process = _spawn(self._home) if mine else None
                while process is not None and process.poll() is None:
                    if asked := await _ask(self._home, self._need):
                        # The lease keeps it alive from here on.
                        assert process.stdin is not None
                        process.stdin.close()
                        return asked
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)

    async def lost(self) -> None:
        """Return when the supervisor is gone, or has ended the lease."""
        assert self._connection is not None
        with contextlib.suppress(OSError):
            await self._connection.reader.read()

    async def release(self) -> None:
        """Give the claim back. Idempotent."""
        if self._connection is not None:
            self._connection.writer.close()
            self._connection = None


@contextlib.asynccontextmanager
async def leased(
    home: Path, need: list[Piece], on_move: Callable[[Addresses], Awaitable[None]] | None = None
) -> AsyncIterator[Addresses]:
    """Hold `need` for the length of the block; a supervisor that is killed meanwhile is replaced.

    Args:
        home: The data folder.
        need: Which pieces.
        on_move: Told the addresses whenever the lease had to be taken anew.
    """
    lease = Lease(home, need)
    addresses = await lease.acquire()

    async def renew() -> None:
        while True:
            await lease.lost()
            logger.warning("the supervisor of the embedded stack is gone: starting it again")
            while True:
                try:
                    renewed = await lease.acquire()
                    break
                except StackError:
                    logger.exception("the embedded stack can't be started again yet")
                    await asyncio.sleep(1)
            if on_move is not None:
                await on_move(renewed)

    keeper = asyncio.create_task(renew())
    try:
        yield addresses
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        await lease.release()
