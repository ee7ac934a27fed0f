"""Reading foreign files in processes of their own: what explodes, hangs or crashes there takes nothing with it."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, cast

import anyio
from anyio import CapacityLimiter, to_process
from temporalio.exceptions import ApplicationError

from activities import pictures
from activities.chunking import Piece, split
from activities.errors import Kind, failure
from activities.formats import parse
from activities.pictures import Picture

Result = TypeVar("Result")

PROCESSES = 2
SECONDS = 120.0
"""How long one document may take to be read."""
ADDRESS_SPACE = 6 * 1024**3
"""Bytes of memory, mapped files included, that a process may have."""
PARENT_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class ReadDocument:
    title: str | None
    pieces: list[Piece]


@dataclass(frozen=True)
class _Refusal:
    """A failure, in a form that crosses processes whole."""

    kind: Kind
    message: str


class Reader:
    """
    Args:
        tokens: Length of a chunk, at most.
        overlap: Tokens that a chunk shares with the one before it, at most.
        seconds: How long one document or image may take.
    """

    def __init__(self, tokens: int, overlap: int, seconds: float = SECONDS) -> None:
        self._tokens = tokens
        self._overlap = overlap
        self._seconds = seconds
        self._limiter: CapacityLimiter | None = None

    @property
    def way(self) -> str:
        """The way that documents are chunked, in a few words."""
        return f"{self._tokens} tokens, {self._overlap} shared"

    async def read(self, content: bytes, suffix: str) -> ReadDocument:
        """The chunks of a document.

        Raises:
            ApplicationError: as `formats.parse`; `over_limit` where it takes too long or too much memory, and
                `unavailable` where there is no process to read it.
        """
        return await self._run(_read, content, suffix, self._tokens, self._overlap)

    async def prepare_image(self, content: bytes, max_side: int) -> Picture:
        """An image as a vision model takes it; see `pictures.prepare`."""
        return await self._run(pictures.prepare, content, max_side)

    async def recognise(self, content: bytes) -> str | None:
        """The text in an image; None where no text recognition is installed."""
        if not pictures.recognises_text():
            return None
        return await self._run(pictures.recognise, content)

    async def _run(self, function: Callable[..., Result], *arguments: object) -> Result:
        if self._limiter is None:
            self._limiter = CapacityLimiter(PROCESSES)
        async with self._limiter:
            result = await self._try(function, *arguments, again=True)
        if isinstance(result, _Refusal):
            raise failure(result.kind, result.message)
        return result

    async def _try(self, function: Callable[..., Result], *arguments: object, again: bool) -> Result | _Refusal:
        """Run a function in a process; in another one where the first was ended: a bad document ends that, too.

        Raises:
            ApplicationError: `over_limit` where it takes too long or ends its process, `unavailable` where there is
                none.
        """
        try:
            with anyio.move_on_after(self._seconds):
                return await to_process.run_sync(
                    _limited, function, self._seconds, *arguments, cancellable=True, limiter=_unlimited()
                )
        except TimeoutError:
            raise failure("unavailable", "No process could be started to read it; the call is retried") from None
        # anyio means to end one that doesn't start, and may find it gone.
        except (anyio.BrokenWorkerProcess, ProcessLookupError):
            if again:
                return await self._try(function, *arguments, again=False)
            raise failure(
                "over_limit", "The process that read it was ended: it is damaged, or takes too much memory. Split it."
            ) from None
        raise failure("over_limit", f"Reading it takes longer than {self._seconds:g} seconds. Split it.")


def _unlimited() -> CapacityLimiter:
    # The wait for a turn is outside of the time that a document has.
    return CapacityLimiter(1)


# In the process


def _limited(function: Callable[..., Result], seconds: float, *arguments: object) -> Result | _Refusal:
    """Call a function in this process with limits."""
    _watch_parent()
    # In seconds of computing since the process began; of several threads each counts.
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + 4 * seconds + 10)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        return function(*arguments)
    except ApplicationError as error:
        return _Refusal(cast(Kind, error.type), error.message)
    except MemoryError:
        return _Refusal("over_limit", "Reading it takes more memory than is allowed. Split it.")


@cache
def _watch_parent() -> None:
    """Limit this process's memory, and end it with the one that started it, even in the middle of a document."""
    # What ends a whole group of processes, such as Ctrl-C, leaves the worker to say what becomes of the document.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))
    born_of = os.getppid()

    def look() -> None:
        while os.getppid() == born_of:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _read(content: bytes, suffix: str, tokens: int, overlap: int) -> ReadDocument:
    document = parse(content, suffix)
    return ReadDocument(document.title, split(document, tokens, overlap))
