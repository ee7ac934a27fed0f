"""A proxy between a driver and MongoDB that reads what passes: it cuts connections, or holds them up, at a command."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import bson

HEADER = struct.Struct("<iiii")
OP_MSG = 2013
BODY = 5
"""Where an OP_MSG's document begins: behind the flags and the kind of its first section."""

Moment = Literal["asked", "done"]
"""Before the server gets a command, or after it has answered and before the driver knows."""


@dataclass
class Trap:
    """What happens to the next commands of a name."""

    command: str
    moment: Moment
    times: int
    cuts: bool
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    caught: int = 0

    async def spring(self) -> bool:
        """Whether the message may pass, once it is known."""
        if not self.cuts:
            await self.opened.wait()
        return not self.cuts

    def open(self) -> None:
        """Let everything pass that is held, and what comes later."""
        self.times = 0
        self.opened.set()

    async def has_caught(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.caught < count:
                await asyncio.sleep(0.01)


class Wire:
    """
    Attributes:
        uri: Connection string of the server by way of the proxy.
        commands: The names of those that came through, in order.
    """

    def __init__(self, uri: str) -> None:
        self._server = urlsplit(uri)
        self.uri = ""
        self.commands: list[str] = []
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._traps: list[Trap] = []
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self, command: str, moment: Moment, times: int = 1) -> Trap:
        """Cut the connection at the next `times` of a command."""
        return self._set(Trap(command, moment, times, cuts=True))

    def hold(self, command: str, moment: Moment, times: int = 1) -> Trap:
        """Hold the next `times` of a command, or their answers, until the trap is opened."""
        return self._set(Trap(command, moment, times, cuts=False))

    def _set(self, trap: Trap) -> Trap:
        self._traps.append(trap)
        return trap

    async def up(self) -> None:
        """Listen, on the same port as ever."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]
        user, at, _ = self._server.netloc.rpartition("@")
        self.uri = urlunsplit(self._server._replace(netloc=f"{user}{at}127.0.0.1:{self._port}"))

    async def down(self) -> None:
        """Refuse connections, and cut those that there are."""
        assert self._listener is not None
        self._listener.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._listener.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, answers = None, dict[int, Trap]()
        try:
            from_server, there = await asyncio.open_connection(self._server.hostname, self._server.port)
            ways = {
                asyncio.create_task(self._ask(reader, there, answers)),
                asyncio.create_task(self._answer(from_server, writer, answers)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            # The server is gone; whoever asked finds the connection closed.
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: dict[int, Trap]) -> None:
        while True:
            message = await _read(reader)
            _, number, _, operation = HEADER.unpack_from(message)
            if operation == OP_MSG:
                name = _command(message)
                self.commands.append(name)
                trap = next((one for one in self._traps if one.command == name and one.times > 0), None)
                if trap is not None:
                    trap.times -= 1
                    if trap.moment == "done":
                        answers[number] = trap
                    else:
                        trap.caught += 1
                        if not await trap.spring():
                            return
            writer.write(message)
            await writer.drain()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: dict[int, Trap]) -> None:
        while True:
            message = await _read(reader)
            trap = answers.pop(HEADER.unpack_from(message)[2], None)
            if trap is not None:
                trap.caught += 1
                if not await trap.spring():
                    return
            writer.write(message)
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One whole message.

    Raises:
        IncompleteReadError: where the connection ends before it does.
    """
    length = await reader.readexactly(4)
    return length + await reader.readexactly(struct.unpack("<i", length)[0] - 4)


def _command(message: bytes) -> str:
    """The name of the command that an OP_MSG of a driver holds."""
    start = HEADER.size + BODY
    (length,) = struct.unpack_from("<i", message, start)
    return str(next(iter(bson.decode(message[start : start + length]))))


@asynccontextmanager
async def wired(uri: str) -> AsyncIterator[Wire]:
    """A proxy to the server of a connection string."""
    wire = Wire(uri)
    await wire.up()
    try:
        yield wire
    finally:
        await wire.down()
