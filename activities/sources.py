"""Sources: which files a path names, and the bytes of one, never from outside the folders that may be read."""

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from wcmatch import glob

from activities.errors import failure
from activities.formats import IMAGE_SUFFIXES, SUFFIXES
from activities.models import Source
from activities.store.contents import Contents

READABLE = SUFFIXES | IMAGE_SUFFIXES

# A pattern without a slash is for names at any depth, as in .gitignore.
_GLOB = glob.GLOBSTAR | glob.BRACE | glob.MATCHBASE


def check_globs(include: Sequence[str], exclude: Sequence[str]) -> None:
    """Make sure that globs can be used.

    Raises:
        ApplicationError: `rejected` where they can't, such as where they stand for too many patterns.
    """
    for name, patterns in (("include", include), ("exclude", exclude)):
        try:
            glob.translate(patterns, flags=_GLOB)
        except Exception as error:
            # The library doesn't publish the class of what it raises for braces that stand for thousands of patterns.
            raise failure("rejected", f"{name}: these globs can't be used: {error}.") from None


def selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether globs choose what is called `name`, relative to the folder or site that is looked through.

    Without a pattern to include everything is, and what is excluded isn't in any case.
    """
    if include and not glob.globmatch(name, include, flags=_GLOB):
        return False
    return not (exclude and glob.globmatch(name, exclude, flags=_GLOB))


def list_files(path: Path, roots: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Iterator[Source]:
    """The file that a path names, or those of known formats in the folder that it names, without hidden ones.

    Each file goes by its own name rather than that of a link to it, so that it is recognised when it comes again. A
    link is kept where only its name tells the format. What can't be read comes as a source with an error.
    """
    if not path.is_absolute():
        yield Source(source=_shown(path), error="It is neither an absolute path nor an http or https URL.")
        return
    try:
        named = path.parent.resolve(strict=True) / path.name if path.name not in ("", "..") else path.resolve()
        real = path.resolve(strict=True)
        _check_root(real, roots)
        if not real.is_dir():
            yield _file(named, roots)
            return
        yield from _files_in(real, roots, include, exclude)
    except FileNotFoundError:
        yield Source(source=_shown(path), error="It doesn't exist.")
    except (OSError, RuntimeError) as error:
        yield Source(source=_shown(path), error=f"It can't be read: {getattr(error, 'strerror', None) or error}.")
    except _OutsideError as error:
        yield Source(source=_shown(path), error=str(error))


def _files_in(folder: Path, roots: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Iterator[Source]:
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(parent, name)
            if name.startswith(".") or file.suffix.lower() not in READABLE:
                continue
            if selected(file.relative_to(folder).as_posix(), include, exclude):
                try:
                    yield _file(file, roots)
                except (OSError, RuntimeError) as error:
                    reason = getattr(error, "strerror", None) or error
                    yield Source(source=_shown(file), error=f"It can't be read: {reason}.")
                except _OutsideError as error:
                    yield Source(source=_shown(file), error=str(error))
    for refused in unreadable:
        yield Source(source=_shown(Path(refused.filename)), error=f"The folder can't be read: {refused.strerror}.")


def _file(file: Path, roots: Sequence[str]) -> Source:
    target = file.resolve(strict=True)
    _check_root(target, roots)
    path = str(target if target.suffix.lower() in READABLE else file)
    try:
        path.encode()
    except UnicodeEncodeError:
        return Source(source=_shown(file), error="The file's name isn't valid Unicode. Rename it.")
    return Source(source=path, path=path, filename=Path(path).name)


def _shown(path: Path) -> str:
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return ascii(name)
    return name


class _OutsideError(Exception):
    """A path that may not be read."""


def _check_root(real: Path, roots: Sequence[str]) -> Path:
    """The root that a path without links in it is under."""
    for root in roots:
        resolved = Path(root).resolve()
        if real.is_relative_to(resolved):
            return resolved
    raise _OutsideError("It isn't in one of the folders that may be read, or is a link that leads out of them.")


def read_file(path: str, roots: Sequence[str], most: int) -> bytes:
    """The bytes of a file under one of `roots`, `most` at most.

    Raises:
        ApplicationError: `rejected` for what can't be read, `over_limit` for what is larger.
    """
    try:
        real = Path(path).resolve(strict=True)
        descriptor = _open_beneath(_check_root(real, roots), real)
    except FileNotFoundError:
        raise failure("rejected", "The file doesn't exist.") from None
    except PermissionError:
        raise failure("rejected", "The file can't be read: permission denied.") from None
    except _OutsideError as error:
        raise failure("rejected", str(error)) from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise failure("rejected", f"The file can't be read: {reason}.") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise failure("rejected", "It is no regular file.")
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise failure("rejected", f"The file can't be read: {error.strerror}.") from None
    if len(content) > most:
        raise failure(
            "over_limit", f"It is larger than INGEST_MAX_BYTES ({most:,} bytes). Split it, or raise the limit."
        )
    return content


def _open_beneath(root: Path, real: Path) -> int:
    """Open a file step by step from its root, following no link: none may have been put there since it was resolved."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    # A pipe that nobody writes to would be waited for.
    last = flags | os.O_NONBLOCK
    if root == real:
        return os.open(root, last)
    folder = os.open(root, flags | os.O_DIRECTORY)
    try:
        *parents, name = real.relative_to(root).parts
        for part in parents:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, last, dir_fd=folder)
    finally:
        os.close(folder)


class SourceReader:
    """
    Args:
        contents: Where contents are kept that don't travel through histories.
        max_bytes: Size beyond which a source is refused.
    """

    def __init__(self, contents: Contents, max_bytes: int) -> None:
        self._contents = contents
        self._max_bytes = max_bytes

    async def read(self, source: Source, roots: Sequence[str]) -> bytes:
        """The bytes of a file or a content.

        Raises:
            ApplicationError: `rejected` for what can't be read, `over_limit` for what is too large.
        """
        if source.path is not None:
            return await asyncio.to_thread(read_file, source.path, roots, self._max_bytes)
        assert source.content is not None
        content = await self._contents.get(source.content)
        if content is None:
            raise failure("rejected", "Its content isn't held any more. Ingest it again.")
        return content
