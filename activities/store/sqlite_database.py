"""One SQLite file as the embedded store uses it: connections, transactions, and what the engine's errors mean."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import apsw
from temporalio.exceptions import ApplicationError

from activities.errors import failure

T = TypeVar("T")
Work = Callable[[apsw.Connection], T]

# Closing any descriptor of a file drops the locks that SQLite holds on it in this process: nobody may open the file
# before the descriptor that created it is closed.
_creating = threading.Lock()


def _vector_extension() -> str:
    """Path of the extension that the package sqlite-vec ships. Importing the package would import NumPy too."""
    spec = find_spec("sqlite_vec")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], "vec0"))


class Database:
    """A SQLite file that any number of threads and processes may use at once, with sqlite-vec loaded.

    All work is done in threads, each transaction on a connection of its own, so that an event loop is never blocked.

    Args:
        path: The database file; it and its folder are created where they are missing, readable by their owner alone.
        busy_timeout: Seconds to wait for another process's lock before a transaction fails as `unavailable`.
        threads: Most transactions that run at once.
    """

    def __init__(self, path: Path, busy_timeout: float, threads: int) -> None:
        self.path = path
        self._busy_timeout = busy_timeout
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._idle: list[apsw.Connection] = []

    def start(self) -> None:
        """Be ready for work. Idempotent."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sqlite-store")

    async def stop(self) -> None:
        """Let running transactions finish and close every connection. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(self._close, pool)

    async def run(self, mode: Literal["deferred", "immediate", "exclusive"], work: Work[T]) -> T:
        """Run `work` in one transaction: it sees one state of the database, and happens as a whole or not at all.

        Args:
            mode: How SQLite begins it: `deferred` to read, `immediate` to write, `exclusive` to change the schema.
            work: What to do with a connection, in a thread.

        Raises:
            ApplicationError: `unavailable` or `rejected` for what the engine or the file system refuses.
        """
        if self._pool is None:
            raise failure("unavailable", "the store isn't open")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._transact, mode, work)

    async def empty_log(self) -> None:
        """Empty the write-ahead log beside the file, which keeps pages as they were before they were overwritten.

        Where others read or write for longer than the busy timeout, it stays until the next time.
        """
        if self._pool is not None:
            with contextlib.suppress(apsw.Error):
                await asyncio.get_running_loop().run_in_executor(self._pool, self._empty_log)

    def _empty_log(self) -> None:
        with self._connection(create=False) as db:
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _transact(self, mode: str, work: Work[T]) -> T:
        """Run `work` in a transaction."""
        try:
            with self._connection(create=mode == "exclusive") as db:
                db.execute(f"begin {mode}")
                try:
                    result = work(db)
                    db.execute("commit")
                except BaseException:
                    # A full disk or an I/O error may have ended the transaction already.
                    if db.in_transaction:
                        db.execute("rollback")
                    raise
                return result
        except (apsw.Error, OSError, UnicodeEncodeError) as error:
            if (explained := self._explain(error)) is None:
                raise
            # The engine's own words would go into workflow histories with it.
            raise explained from None

    def _explain(self, error: Exception) -> ApplicationError | None:
        """What an error of the engine means to the tool's caller; None for one that only a mistake in here causes."""
        file = f"the database file {self.path}"
        match error:
            case apsw.BusyError() | apsw.LockedError() | apsw.ProtocolError():
                return failure("unavailable", f"{file} is locked by another process; the call is retried")
            case apsw.FullError():
                return failure("unavailable", f"the disk of {file} is full: free some space; the call is retried")
            case apsw.IOError():
                return failure("unavailable", f"{file} can't be read or written ({error}); the call is retried")
            case apsw.ReadOnlyError() | apsw.PermissionsError():
                return failure("rejected", f"{file} is read-only: make it writable, or set DURABLE_CONTEXT_HOME")
            case apsw.CantOpenError():
                return failure("rejected", f"{file} can't be opened: check it, or set DURABLE_CONTEXT_HOME")
            case apsw.CorruptError() | apsw.NotADBError():
                return failure("rejected", f"{file} is damaged or no database: restore it, or move it away")
            case apsw.ConstraintError():
                return failure("rejected", "the record's id already belongs to another record")
            case apsw.TooBigError():
                return failure("rejected", "the text is too large for the store")
            case UnicodeEncodeError():
                return failure("rejected", "the text holds a lone surrogate, which isn't valid Unicode")
            case OSError():
                return failure("rejected", f"{file} can't be created: {error.strerror}; set DURABLE_CONTEXT_HOME")
        return None

    @contextlib.contextmanager
    def _connection(self, create: bool) -> Iterator[apsw.Connection]:
        """A connection that nobody else uses meanwhile."""
        # The one that was used last: what it has read is cached, until another one writes.
        try:
            db = self._idle.pop()
        except IndexError:
            db = self._connect(create)
        try:
            yield db
        finally:
            self._idle.append(db)

    def _connect(self, create: bool) -> apsw.Connection:
        if create:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _creating, contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.set_busy_timeout(round(self._busy_timeout * 1000))
            self._enter_wal(db)
            db.pragma("synchronous", "full")
            db.pragma("foreign_keys", True)
            # In KiB. With SQLite's own 2 MB a search among a thousand chunks reads most pages anew.
            db.pragma("cache_size", -8000)
            # What is deleted is overwritten: nobody finds a removed text in the file.
            db.pragma("secure_delete", True)
            db.enable_load_extension(True)
            db.load_extension(_vector_extension())
            db.enable_load_extension(False)
        except BaseException:
            db.close()
            raise
        return db

    def _enter_wal(self, db: apsw.Connection) -> None:
        """Switch the file to WAL mode; SQLite doesn't apply its busy timeout to this one step."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                db.pragma("journal_mode", "wal")
                return
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _close(self, pool: ThreadPoolExecutor) -> None:
        """Let running transactions finish, then close their connections."""
        pool.shutdown(wait=True)
        while self._idle:
            self._idle.pop().close()
