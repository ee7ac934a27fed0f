"""A process that has imported what a `serve` needs, and forks one for whoever asks: `mcp_server.standin`.

It belongs to the supervisor of a data folder and ends with it; what it has forked goes on. A fork is as good as what it
is made of: the fork server has one thread and no event loop, has opened no database and connected to nothing, and
Temporal's core hasn't begun in it. Python's random numbers are seeded anew in each fork.
"""

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from ast import literal_eval
from pathlib import Path
from typing import NoReturn

from mcp_server.standin import (
    ACCEPTED,
    ANSWER_SECONDS,
    GO,
    REFUSED,
    SOCKET,
    circumstances,
    identity,
    read_cgroup,
    unpack,
)

NEEDED = (
    "mcp_server.cli",
    "mcp_server.server",
    "mcp_server.transports",
    "mcp_server.logs",
    "mcp_server.local.stack",
    "mcp_server.health",
    "mcp_server.tools.cache",
    "mcp_server.tools.documents",
    "mcp_server.tools.forget",
    "mcp_server.tools.memory",
    "mcp_server.tools.search",
    "mcp_server.tools.tasks",
    "mcp_server.tools.web",
    "mcp_server.prompts",
    "mcp_server.resources",
    "mcp.server.stdio",
    "activities.store.sqlite",
    "rich.console",
    "rich.logging",
    "uvloop",
)
NICE = 10
THREAD_SECONDS = 1.0
BACKLOG = 64
REQUEST_BYTES = 8 * 1024 * 1024

_caller: socket.socket | None = None


def is_forked() -> bool:
    """Whether this process was forked for another one, and ends with it."""
    return _caller is not None


def tell_caller(status: int) -> None:
    """Say with which exit status this process is about to end, if another one waits to know."""
    if _caller is not None:
        with contextlib.suppress(OSError):
            _caller.send(bytes([status & 0xFF]))


def run(home: Path) -> None:
    """Listen in `home`, the working folder, until the other end of stdin closes."""
    ours = identity()
    # While the first server of a stack is still starting there is better use for a processor. A thread's own nice value
    # isn't what forked processes inherit.
    thread = threading.Thread(target=_import)
    thread.start()
    thread.join()
    _expect_one_thread()
    gc.collect()
    # What a collection doesn't touch stays shared with the forked.
    gc.freeze()
    os.chdir(home)
    # The forked are nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        draft = f"{SOCKET}.new"
        Path(draft).unlink(missing_ok=True)
        listener.bind(draft)
        listener.listen(BACKLOG)
        Path(draft).rename(SOCKET)
        while True:
            readable, _, _ = select.select([listener.fileno(), 0], [], [])
            if 0 in readable:
                return
            # Too many processes or descriptors are no reason to end: the caller goes on by itself.
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                if os.fork() == 0:
                    listener.close()
                    _become_server(connection, ours)


def _import() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    from mcp_server.runtime import LONG_IMPORTS

    for name in (*NEEDED, *LONG_IMPORTS):
        importlib.import_module(name)
    from activities.bedrock import preload

    preload()


def _expect_one_thread() -> None:
    """Return once the thread that imported is gone from the process.

    Raises:
        RuntimeError: where there are others, which wouldn't survive a fork.
    """
    deadline = time.monotonic() + THREAD_SECONDS
    while (count := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"imported modules have started {count - 1} threads, which wouldn't survive a fork")
        time.sleep(0.01)


def _become_server(connection: socket.socket, ours: str) -> NoReturn:
    """Be what the caller asks for, and end."""
    global _caller
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        arguments = _take_over(connection, ours)
        if arguments is not None:
            _caller = connection
            threading.Thread(target=_obey, args=[connection], name="caller", daemon=True).start()
            status = _run_command(arguments)
            tell_caller(status)
    finally:
        # An orderly exit would be the fork server's.
        os._exit(status)


def _take_over(connection: socket.socket, ours: str) -> list[str] | None:
    """Make this process the caller's but for its id; the command's arguments, or None where that can't be done."""
    connection.settimeout(ANSWER_SECONDS)
    descriptors: list[int] = []
    try:
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        theirs, circumstances, cgroup, arguments, environment = _receive(connection, descriptors)
        if user != os.getuid() or theirs.decode() != ours or len(descriptors) != 4:
            connection.send(REFUSED)
            return None
        _adopt(circumstances.decode(), cgroup.decode())
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            connection.send(REFUSED)
        return None
    *streams, folder = descriptors
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.fchdir(folder)
    for descriptor in descriptors:
        os.close(descriptor)
    # The objects remember what the streams were before.
    encoding = sys.stdout.encoding
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)
    os.environb.clear()
    for item in environment.split(b"\0"):
        name, _, value = item.partition(b"=")
        os.environb[name] = value
    time.tzset()
    sys.argv = ["durable-context", *(os.fsdecode(argument) for argument in arguments.split(b"\0"))]
    with contextlib.suppress(OSError):
        # Its command line is the fork server's; this much can be said.
        Path("/proc/self/comm").write_text("durable-context")
    with contextlib.suppress(OSError):
        connection.send(ACCEPTED)
        if connection.recv(1) == GO:
            connection.settimeout(None)
            return sys.argv[1:]
    return None


def _receive(connection: socket.socket, descriptors: list[int]) -> list[bytes]:
    """The parts of the caller's request; the descriptors that come with it are added to `descriptors`.

    Raises:
        OSError, ValueError: where it isn't one.
    """
    message, received, _, _ = socket.recv_fds(connection, 65536, 4)
    descriptors += received
    while len(message) < 8 or len(message) < 8 + int.from_bytes(message[:8], "big"):
        part = connection.recv(65536)
        if not part or len(message) > REQUEST_BYTES:
            raise ValueError("a request that isn't whole")
        message += part
    return unpack(message[8:])


def _adopt(theirs: str, cgroup: str) -> None:
    """Take on the caller's nice value, processors, limits and control group.

    Raises:
        OSError, ValueError: where this process may not.
    """
    if theirs != circumstances():
        nice, processors, limits = literal_eval(theirs)
        os.sched_setaffinity(0, processors)
        if nice != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        for number, soft, hard in limits:
            if (soft, hard) != resource.getrlimit(number):
                resource.setrlimit(number, (soft, hard))
    if cgroup != read_cgroup():
        hierarchy, _, path = cgroup.strip().partition("::")
        if hierarchy != "0" or "\n" in path:
            raise ValueError("control groups of version 1 differ")
        Path(f"/sys/fs/cgroup{path}/cgroup.procs").write_text(str(os.getpid()))


def _obey(connection: socket.socket) -> None:
    """Raise the signals that the caller passes on; once it is gone, end as by SIGTERM."""
    from mcp_server.transports import limit_shutdown

    with contextlib.suppress(OSError):
        while number := connection.recv(1):
            os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGTERM)
    limit_shutdown()


def _run_command(arguments: list[str]) -> int:
    """Run a command as a process of its own would; its exit status."""
    from mcp_server.cli import main

    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status
