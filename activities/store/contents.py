"""Contents: what is too large for a workflow's history, kept by name for as long as a workflow needs it.

A workflow carries the name (a claim check), and drops the content at its end.
"""

import asyncio
import contextlib
import errno
import os
import re
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

from activities.errors import failure

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Contents(Protocol):
    """Named contents. Every method raises `unavailable` where the place can't be reached or is full."""

    async def put(self, name: str, content: bytes | AsyncIterator[bytes]) -> None:
        """Keep a content, whole or not at all; one that has the name already is replaced.

        One that is cancelled leaves nothing but, at most, the whole content.
        """
        ...

    async def get(self, name: str) -> bytes | None:
        """A content; None where none has the name."""
        ...

    async def drop(self, name: str) -> None:
        """Remove a content. Idempotent."""
        ...

    async def purge(self, before: datetime) -> int:
        """Remove every content that was put before a time, and what is left of those that weren't put whole."""
        ...

    async def close(self) -> None:
        """Release every connection. Idempotent."""
        ...


def check_content_name(name: str) -> str:
    """A name that no path or query can be hidden in.

    Raises:
        ApplicationError: `rejected` for another.
    """
    if not _NAME.fullmatch(name):
        raise failure("rejected", "A content's name is 1 to 200 letters, digits, and _ . -, and no . first.")
    return name


async def chunks_of(content: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A content piece by piece, whatever it is given as."""
    if isinstance(content, bytes):
        yield content
        return
    async for chunk in content:
        yield chunk


class FileContents:
    """Contents in a folder, each a file that its owner alone can read.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, content: bytes | AsyncIterator[bytes]) -> None:
        target = self._folder / check_content_name(name)
        try:
            # Not in a thread: whoever is cancelled while that makes the file would never learn its name.
            descriptor, temporary = self._begin()
            try:
                with os.fdopen(descriptor, "wb") as file:
                    async for chunk in chunks_of(content):
                        await asyncio.to_thread(file.write, chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise self._explain(error) from None

    def _begin(self) -> tuple[int, str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # No name that a content can have begins with a dot.
        return tempfile.mkstemp(prefix=".", dir=self._folder)

    async def get(self, name: str) -> bytes | None:
        try:
            return await asyncio.to_thread((self._folder / check_content_name(name)).read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._explain(error) from None

    async def drop(self, name: str) -> None:
        try:
            (self._folder / check_content_name(name)).unlink(missing_ok=True)
        except OSError as error:
            raise self._explain(error) from None

    async def purge(self, before: datetime) -> int:
        try:
            return await asyncio.to_thread(self._purge, before.timestamp())
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._explain(error) from None

    def _purge(self, before: float) -> int:
        removed = 0
        for entry in os.scandir(self._folder):
            # Another process may be faster.
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry)
                    removed += 1
        return removed

    async def close(self) -> None:
        pass

    def _explain(self, error: OSError) -> Exception:
        if error.errno in _FULL:
            return failure("unavailable", f"the disk of {self._folder} is full: free some space; the call is retried")
        return failure(
            "unavailable", f"{self._folder} can't be read or written ({error.strerror}); the call is retried"
        )
