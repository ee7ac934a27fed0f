"""The thin side of a `serve` that a fork server runs: what the host has started, and what it signals and waits for.

To import what a server needs takes longer than all the rest of its start. Where a stack is running, its fork server
(`mcp_server.local.forkserver`) has imported it already: it forks a process which gets this one's streams, folder,
environment and limits, and is the server from there on. This process passes signals on and ends with it; the other one
ends with this. Whatever stands in the way, the command goes on by itself as if there were no fork server.

Nothing here may import what isn't imported at once: this is what a start costs.
"""

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator

SOCKET = "serve.socket"
"""In the data folder: where its fork server listens."""

ACCEPTED, REFUSED, GO = b"+", b"-", b"!"
ANSWER_SECONDS = 2.0
END_SECONDS = 2.0
PARENT_POLL_SECONDS = 0.5
PLAIN = {"--no-worker", "--transport", "--transport=stdio", "stdio"}
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
LIMITS = [number for name, number in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]


def serve_by_fork(arguments: list[str]) -> int | None:
    """Have a fork server run `serve` over stdio with `arguments`.

    Returns:
        Its exit status, or None where no fork server does it and nothing has been read or written.
    """
    # A server over HTTP is started once and for long, often with rights and descriptors of its own.
    if sys.platform != "linux" or arguments[:1] != ["serve"] or not PLAIN.issuperset(arguments[1:]):
        return None
    try:
        connection = _ask(arguments)
    except (OSError, ValueError):
        return None
    return None if connection is None else _stand_in(connection)


def _ask(arguments: list[str]) -> socket.socket | None:
    """A connection to a process that waits to be the server; None where there is none.

    Raises:
        OSError, ValueError: where there is none, either.
    """
    home = data_folder()
    if os.stat(os.path.join(home, SOCKET)).st_uid != os.geteuid():
        return None
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(ANSWER_SECONDS)
        # A socket's address is short, and a data folder's path may not be.
        os.chdir(home)
        try:
            connection.connect(SOCKET)
        finally:
            os.fchdir(folder)
        request = pack(
            [
                identity().encode(),
                *(part.encode() for part in (circumstances(), read_cgroup())),
                b"\0".join(os.fsencode(argument) for argument in arguments),
                b"\0".join(name + b"=" + value for name, value in os.environb.items()),
            ]
        )
        sent = socket.send_fds(connection, [request], [0, 1, 2, folder])
        connection.sendall(request[sent:])
        if connection.recv(1) == ACCEPTED:
            return connection
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
    connection.close()
    return None


def _stand_in(connection: socket.socket) -> int:
    """Pass signals on and wait for the server's end; its exit status."""

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            connection.send(bytes([number]))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    # The server lives as long as this connection does, which the kernel closes however this process ends.
    connection.settimeout(PARENT_POLL_SECONDS)
    born_of = os.getppid()
    with contextlib.suppress(OSError):
        connection.send(GO)
    while True:
        try:
            said = connection.recv(1)
        except TimeoutError:
            if os.getppid() != born_of:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            continue
        except OSError:
            said = b""
        if not said:
            sys.stderr.write("durable-context: the server was killed\n")
            return 1
        # Its last word comes a moment before its end.
        connection.settimeout(END_SECONDS)
        with contextlib.suppress(OSError):
            connection.recv(1)
        return said[0]


def data_folder() -> str:
    """The data folder, as `mcp_server.settings` would find it."""
    variables = dict(os.environ)
    with contextlib.suppress(FileNotFoundError), open(".env", "rb") as file:
        if b"durable_context_home" in file.read().lower():
            from dotenv import dotenv_values

            for name, value in dotenv_values(".env").items():
                variables.setdefault(name, value or "")
    # As for pydantic's settings, case doesn't matter, the last one counts, and what is empty isn't set.
    named = [value for name, value in variables.items() if name.lower() == "durable_context_home" and value]
    if named:
        home = named[-1]
    else:
        from platformdirs import user_data_dir

        home = user_data_dir("durable-context", appauthor=False)
    return os.path.abspath(os.path.expanduser(home))


def identity() -> str:
    """What has to be the same in two processes for one to do the other's work: the code, Python, user and machine.

    A container that shares the data folder has namespaces of its own.
    """
    facts: list[object] = [sys.version, sys.prefix, sys.flags, sys.warnoptions, getattr(sys.stdout, "encoding", None)]
    facts += sorted(item for item in os.environ.items() if item[0].startswith("PYTHON"))
    facts += [os.getresuid(), os.getresgid(), sorted(os.getgroups())]
    facts += [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES]
    facts.append(os.stat("/")[:3])
    # The first entry is where the program was found, or the working folder.
    for folder in sys.path[not sys.flags.safe_path :]:
        with contextlib.suppress(OSError):
            # Whatever is installed or removed changes its folder.
            facts += [folder, os.stat(folder).st_mtime_ns]
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for package in ("mcp_server", "workflows", "activities"):
        facts += _modules(os.path.join(source, package))
    return repr(facts)


def _modules(folder: str) -> Iterator[object]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                found = entry.stat()
                yield entry.path, found.st_size, found.st_mtime_ns
            elif entry.is_dir() and entry.name != "__pycache__":
                yield from _modules(entry.path)


def circumstances() -> str:
    """What a process inherits and another can take on: its nice value, its processors and its limits."""
    limits = [(number, *resource.getrlimit(number)) for number in LIMITS]
    return repr((os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0)), limits))


def read_cgroup() -> str:
    """Which control groups this process belongs to."""
    with open("/proc/self/cgroup") as file:
        return file.read()


def pack(parts: list[bytes]) -> bytes:
    """Parts as one message: its length in eight bytes, and for each part its length in eight bytes and itself."""
    body = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return len(body).to_bytes(8, "big") + body


def unpack(body: bytes) -> list[bytes]:
    """The parts of a message's body."""
    parts = []
    while body:
        length = int.from_bytes(body[:8], "big")
        parts.append(body[8 : 8 + length])
        body = body[8 + length :]
    return parts
