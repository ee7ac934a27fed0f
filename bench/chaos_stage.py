"""Where `bench.chaos` plays: servers and workers on a data folder with a disk of its own, a Bedrock, and a store."""

import asyncio
import contextlib
import ctypes
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import httpx2
import psutil
import pymongo
from mcp.client.stdio import StdioServerParameters
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mcp_server.demo import embedded_environment
from mcp_server.local.stack import Addresses, leased
from mcp_server.local.temporal import LOOPBACK, free_port
from tests.atlas.running import stand_in
from tests.faults.wire import Wire, wired
from tests.serving import served

StoreName = Literal["embedded", "atlas"]

DISK_MEGABYTES = 512
CALL_TIMEOUT_SECONDS = 5
STOP_SECONDS = 20.0
EMBEDDING_MODEL = "cohere.embed-v4:0"
TEXT_MODEL = "amazon.nova-lite-v1:0"
DIMENSIONS = 512
"""What the embedded model's 384 are filled up to by zeros, which leave every cosine as it is."""

ROLES = ("worker-1", "worker-2", "http", "stdio-1", "stdio-2")
"""The processes of the product that are killed: two workers, a server over HTTP, and two over stdio.

`http` and `stdio-2` only start workflows; `stdio-1` runs them too.
"""
ALONE = ("worker-1", "worker-2", "http")
"""Those that aren't forked from the embedded stack: only these can be stopped, and have a clock of their own."""

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_PRIVATE, _RECURSIVE, _DETACH = 1 << 18, 1 << 14, 2


def own_mounts() -> str | None:
    """Give this process mounts that nobody else sees and that go with it; answer what it can't have them for.

    Call it before there are other threads.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no mount namespaces"
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS | (_NEW_USER if user else 0)):
        return f"no mount namespace can be had here ({os.strerror(ctypes.get_errno())})"
    try:
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError as error:
        return f"no user namespace can be had here ({error.strerror})"
    if libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None):
        return f"mounts can't be had here ({os.strerror(ctypes.get_errno())})"
    return None


@contextmanager
def own_disk(folder: Path, no_mounts: str | None) -> Iterator[str | None]:
    """Give a folder a disk of its own for the length of the block; yields what it can't have one for."""
    if no_mounts is not None:
        yield no_mounts
        return
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={DISK_MEGABYTES}m,mode=700".encode()
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, options):
        yield f"no tmpfs can be mounted here ({os.strerror(ctypes.get_errno())})"
        return
    try:
        yield None
    finally:
        libc.umount2(bytes(folder), _DETACH)


class Clocks:
    """The clocks of processes that stand ALONE, each of which can be set wrong while its process runs.

    Attributes:
        missing: Why there are none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "clock.so"
        self.missing: str | None = None
        compiler = shutil.which("cc")
        if compiler is None:
            self.missing = "there is no C compiler to build bench/chaos_clock.c with"
            return
        source = Path(__file__).with_name("chaos_clock.c")
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source)], capture_output=True, text=True
        )
        if built.returncode:
            self.missing = f"bench/chaos_clock.c can't be built: {built.stderr.strip()}"
            return
        for role in ALONE:
            self._file(role).write_bytes(bytes(8))

    def _file(self, role: str) -> Path:
        return self._folder / f"clock-{role}"

    def environment(self, role: str) -> dict[str, str]:
        """What a process is started with to have its own clock."""
        if self.missing or role not in ALONE:
            return {}
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file(role))}

    def set(self, role: str, seconds: float) -> None:
        """Set a clock this far ahead of the right time."""
        if self.missing:
            return
        with self._file(role).open("r+b") as file, mmap.mmap(file.fileno(), 8) as shown:
            shown[:] = struct.pack("=q", round(seconds * 1e9))


@dataclass
class Bedrock:
    """A Bedrock in front of the embedded model endpoint, which has its moods.

    It takes the bodies of Cohere Embed v4 and of Converse, and has the embedded models answer them.

    Attributes:
        url: Where it listens.
        behind: Address of the embedded endpoint.
        mood: How it answers: as it should; two in three throttled; failing; after a second; or not at all.
        refused: How many requests were answered with an error of the mood's.
    """

    url: str = ""
    behind: str = ""
    mood: Literal["well", "throttling", "failing", "slow", "silent"] = "well"
    refused: int = 0
    _asked: int = 0
    _http: httpx2.AsyncClient = field(default_factory=lambda: httpx2.AsyncClient(timeout=60, trust_env=False))

    @property
    def settings(self) -> dict[str, str]:
        """What a server needs to take this for Amazon Bedrock."""
        return {
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": self.url,
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENG",
            "EMBEDDING_MODEL_ID": EMBEDDING_MODEL,
            "EMBEDDING_DIMENSIONS": str(DIMENSIONS),
            "LLM_MODEL_ID": TEXT_MODEL,
        }

    async def _refusal(self) -> Response | None:
        """What the mood answers in place of the model."""
        self._asked += 1
        if self.mood == "slow":
            await asyncio.sleep(1)
        while self.mood == "silent":
            await asyncio.sleep(0.05)
        if self.mood == "throttling" and self._asked % 3:
            return self._error(429, "ThrottlingException", "Too many requests, please wait before trying again.")
        if self.mood == "failing":
            name = ("InternalServerException", "ModelTimeoutException", "ServiceUnavailableException")[self._asked % 3]
            return self._error(500 if self._asked % 3 == 0 else 503, name, "Try again.")
        return None

    def _error(self, status: int, name: str, message: str) -> Response:
        self.refused += 1
        return JSONResponse({"message": message}, status, {"x-amzn-ErrorType": name})

    async def _ask(self, path: str, body: dict[str, Any]) -> httpx2.Response | Response:
        try:
            return await self._http.post(f"{self.behind}/model/{path}", json=body)
        except httpx2.HTTPError:
            return JSONResponse({"message": "Try again."}, 503, {"x-amzn-ErrorType": "ServiceUnavailableException"})

    async def invoke(self, request: Request) -> Response:
        """InvokeModel of Cohere Embed v4."""
        if refusal := await self._refusal():
            return refusal
        asked = await request.json()
        body = {"texts": asked["texts"], "input_type": asked["input_type"], "truncate": "END"}
        answer = await self._ask("local.multilingual-e5-small/invoke", {**body, "embedding_types": ["float"]})
        if isinstance(answer, Response):
            return answer
        if answer.status_code != 200:
            return _passed_on(answer)
        vectors = answer.json()["embeddings"]["float"]
        rest = [0.0] * (DIMENSIONS - len(vectors[0]))
        return JSONResponse({"embeddings": {"float": [vector + rest for vector in vectors]}, "texts": asked["texts"]})

    async def converse(self, request: Request) -> Response:
        """Converse; the embedded model takes no tools."""
        if refusal := await self._refusal():
            return refusal
        asked = await request.json()
        asked.pop("toolConfig", None)
        answer = await self._ask("local.extractive/converse", asked)
        return answer if isinstance(answer, Response) else _passed_on(answer)


def _passed_on(answer: httpx2.Response) -> Response:
    kept = {name: value for name, value in answer.headers.items() if name in ("content-type", "x-amzn-errortype")}
    return Response(answer.content, answer.status_code, kept)


@contextmanager
def serve_bedrock() -> Iterator[Bedrock]:
    """It, on a loopback port."""
    bedrock = Bedrock()
    app = Starlette(
        routes=[
            Route("/model/{model}/invoke", bedrock.invoke, methods=["POST"]),
            Route("/model/{model}/converse", bedrock.converse, methods=["POST"]),
        ]
    )
    with served(app) as bedrock.url:
        yield bedrock


class Process:
    """A worker, or a server over HTTP, that is started again whenever it was killed."""

    def __init__(self, role: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.role = role
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the living process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it, unless it lives."""
        if self.pid is None:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "mcp_server.cli", *self._arguments),
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    async def end(self, how: signal.Signals) -> int | None:
        """Send it a signal and wait for its end; answer its exit status, None where that doesn't come in time."""
        if self._process is None or self.pid is None:
            return 0
        # As whoever manages services does: to all that it has started, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            return None


@dataclass
class Stage:
    """
    Attributes:
        store: Which store the product has here.
        home: The product's data folder.
        disk: Why it has no disk of its own; None where it has.
        documents: A folder of which files may be ingested.
        logs: What servers and workers say.
        settings: Theirs.
        bedrock: Their Bedrock.
        clocks: Theirs.
        wire: Their way to MongoDB, where they use that.
        mongodb: Where it leads.
        processes: Workers and HTTP servers by role.
        addresses: Of the embedded stack.
        port: Of the HTTP server.
    """

    store: StoreName
    home: Path
    disk: str | None
    documents: Path
    logs: Path
    settings: dict[str, str]
    bedrock: Bedrock
    clocks: Clocks
    wire: Wire | None
    mongodb: str | None
    port: int
    processes: dict[str, Process] = field(default_factory=dict)
    addresses: Addresses = field(default_factory=Addresses)

    def environment(self, role: str) -> dict[str, str]:
        """What the process of a role is started with."""
        kept = embedded_environment(self.home)
        return kept | self.settings | self.clocks.environment(role) | {"CHAOS_ROLE": role}

    def stdio(self, role: str) -> StdioServerParameters:
        """How a client starts a server over stdio."""
        more = ["--no-worker"] if role == "stdio-2" else []
        line = ["-m", "mcp_server.cli", "serve", *more]
        return StdioServerParameters(command=sys.executable, args=line, env=self.environment(role), cwd=self.logs)

    def log(self, role: str) -> IO[str]:
        """Where a client's server is to write."""
        return (self.logs / f"{role}.log").open("a")

    def build(self) -> None:
        """Make the processes that clients don't start themselves."""
        http = ["serve", "--transport", "http", "--port", str(self.port), "--no-worker"]
        for role, arguments in (("worker-1", ["worker"]), ("worker-2", ["worker"]), ("http", http)):
            log = self.logs / f"{role}.log"
            self.processes[role] = Process(role, arguments, self.environment(role), log)

    def pid_of(self, role: str) -> int | None:
        """The process of a role, or the stack's `supervisor` or `temporal`; None where it doesn't live now."""
        if role in self.processes:
            return self.processes[role].pid
        if role in ("supervisor", "temporal"):
            with contextlib.suppress(OSError, ValueError):
                state = json.loads((self.home / "stack.json").read_text())
                pid = state.get("pid" if role == "supervisor" else "temporal_pid")
                if pid and str(self.home) in " ".join(psutil.Process(pid).cmdline()):
                    return int(pid)
            return None
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and child.environ().get("CHAOS_ROLE") == role:
                    return child.pid
        return None

    def send(self, role: str, how: signal.Signals) -> bool:
        """Send a signal to a process; whether there was one."""
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if (pid := self.pid_of(role)) is not None:
                os.kill(pid, how)
                return True
        return False

    def living(self) -> list[psutil.Process]:
        """Every process that works on the data folder, but this one."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                named = process.environ().get("DURABLE_CONTEXT_HOME") == str(self.home)
                if named or str(self.home) in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextmanager
def _mongodb(store: StoreName, folder: Path) -> Iterator[str | None]:
    """Whatever TEST_MONGODB_URI names, otherwise the stand-in; nothing where it isn't needed."""
    if store == "embedded":
        yield None
    elif uri := os.environ.get("TEST_MONGODB_URI"):
        yield uri
    else:
        folder.mkdir()
        with stand_in(folder) as uri:
            yield uri


async def _command(environment: dict[str, str], *arguments: str) -> None:
    """Run `durable-context`.

    Raises:
        RuntimeError: where it fails, with what it said.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_server.cli", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"durable-context {' '.join(arguments)} failed: {said.decode()}")


@asynccontextmanager
async def staged(store: StoreName, folder: Path, home: Path, disk: str | None) -> AsyncIterator[Stage]:
    """A stage in a folder, with nothing started on it but the embedded stack.

    Args:
        store: Which store it has.
        folder: Where to keep what isn't the product's.
        home: The data folder.
        disk: Why that has no disk of its own, if it has none.
    """
    documents, logs = folder / "documents", folder / "logs"
    for one in (documents, logs):
        one.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        bedrock = stack.enter_context(serve_bedrock())
        uri = stack.enter_context(_mongodb(store, folder / "mongodb"))
        settings = bedrock.settings | {
            "LOG_LEVEL": "INFO",
            "CALL_TIMEOUT_SECONDS": str(CALL_TIMEOUT_SECONDS),
            "INGEST_ROOTS": str(documents),
            "CHUNK_TOKENS": "40",
            "CHUNK_OVERLAP_TOKENS": "0",
        }
        wire = None
        if uri is not None:
            wire = await stack.enter_async_context(wired(uri))
            settings |= {"MONGODB_URI": f"{wire.uri}&timeoutMS=2000", "DB_NAME": f"chaos_{uuid.uuid4().hex[:16]}"}
            stack.callback(_drop, uri, settings["DB_NAME"])
        place = Stage(store, home, disk, documents, logs, settings, bedrock, Clocks(folder), wire, uri, free_port())
        place.build()
        if uri is not None:
            await _command(place.environment("worker-1"), "index")

        async def moved(now: Addresses) -> None:
            place.addresses, bedrock.behind = now, str(now.models)

        async with leased(home, ["temporal", "models"], moved) as addresses:
            await moved(addresses)
            try:
                yield place
            finally:
                for process in place.processes.values():
                    await process.end(signal.SIGKILL)


def _drop(uri: str, database: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        client.drop_database(database)


def address(place: Stage) -> str:
    """Of the HTTP server."""
    return f"http://{LOOPBACK}:{place.port}/mcp"
