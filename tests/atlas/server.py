# mypy: disable-error-code="import-untyped"
"""The server process's parts: SecantusDB with Atlas's commands registered, one per process."""

import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secantus import SecantusDBServer, commands
from secantus.commands import CommandContext

from tests.atlas import metadata, repairs
from tests.atlas.indexes import Indexes
from tests.atlas.refusals import refusal
from tests.atlas.stages import Stages

Command = Callable[[dict[str, Any], CommandContext], dict[str, Any]]

# The newest wire version that a release speaks.
WIRE_VERSIONS = {(6, 0): 17, (7, 0): 21, (8, 0): 25, (8, 1): 26, (8, 2): 27}
ENVELOPE = {"$db", "lsid", "$clusterTime", "$readPreference", "apiVersion", "txnNumber", "comment", "maxTimeMS"}


class Atlas:
    """A running stand-in. It changes tables of SecantusDB's that are the process's own, so a process has one."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        version: str,
        delay: float,
        user: str | None,
        password: str | None,
        rank_fusion: str = "full",
    ) -> None:
        release = tuple(int(part) for part in version.split("."))
        commands.SERVER_VERSION = version
        commands.SERVER_VERSION_ARRAY = [*release, 0]
        commands.WIRE_VERSION = WIRE_VERSIONS[(release[0], release[1])]
        self.user, self.password = user, password
        self.server = SecantusDBServer(
            port=port,
            storage_path=str(folder),
            replica_set_name="atlas-stand-in",
            ttl_sweep_seconds=1.0,
            oplog_max_entries=1_000_000,
            client_idle_timeout_s=3600.0,
        )
        self.indexes = Indexes(self.server.storage, delay)
        repairs.register()
        metadata.register()
        Stages(self.indexes, fusing=release >= (8, 0), allowed=rank_fusion).register()
        self._register()

    def start(self) -> str:
        """Start to listen; returns the URI."""
        if self.user is not None:
            context = CommandContext(
                connection_id=0, storage=self.server.storage, cursors=self.server.cursors, db_name="admin"
            )
            created = commands._HANDLERS["createUser"](
                {"createUser": self.user, "pwd": self.password, "roles": ["root"], "$db": "admin"}, context
            )
            assert created["ok"] == 1.0 or created["code"] == 51003, created
            self.server.require_auth = True
        self.server.start()
        host, port = self.server.address
        # Drivers notice within half a second that a server they thought gone is there.
        options = "directConnection=true&tls=false&retryWrites=true&w=majority&heartbeatFrequencyMS=500"
        if self.user is None:
            return f"mongodb://{host}:{port}/?{options}"
        return f"mongodb://{self.user}:{self.password}@{host}:{port}/?authSource=admin&{options}"

    def stop(self) -> None:
        listening = self.server._socket
        if listening is not None:
            # Closing a socket does not wake the thread that accepts from it; this does.
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        self.server.stop()

    def _register(self) -> None:
        handlers = commands._HANDLERS
        handlers["createSearchIndexes"] = self._create
        handlers["updateSearchIndex"] = self._update
        handlers["dropSearchIndex"] = self._drop
        handlers["standIn"] = self._control
        handlers["buildInfo"] = handlers["buildinfo"] = _build_info(handlers["buildInfo"])
        for name in ("saslStart", "saslContinue"):
            handlers[name] = _atlas_authentication(handlers[name])

    def _namespace(self, command: Mapping[str, Any], context: CommandContext) -> tuple[str, str]:
        collection = next(iter(command.values()))
        if not isinstance(collection, str) or not collection:
            raise refusal(73, "collection name has invalid type")
        if not context.storage.collection_exists(context.db_name, collection):
            raise refusal(26, f"Collection '{context.db_name}.{collection}' does not exist.")
        return context.db_name, collection

    def _create(self, command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        database, collection = self._namespace(command, context)
        listed = command.get("indexes")
        if not isinstance(listed, list) or not listed:
            raise refusal(8, '"userCommand.indexes" cannot be empty')
        made = [self.indexes.create(database, collection, place, one) for place, one in enumerate(listed)]
        return {"indexesCreated": [{"id": str(one.identifier), "name": one.name} for one in made], "ok": 1.0}

    def _update(self, command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        database, collection = self._namespace(command, context)
        self.indexes.update(database, collection, _known(command, {"id", "name", "definition"}))
        return {"ok": 1.0}

    def _drop(self, command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        database, collection = self._namespace(command, context)
        self.indexes.drop(database, collection, _known(command, {"id", "name"}))
        return {"ok": 1.0}

    def _control(self, command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        """`{standIn: "indexing", paused: bool}` and `{standIn: "building", seconds: number}`, on admin."""
        if context.db_name != "admin":
            raise refusal(13, "standIn may only be run against the admin database.")
        what = command["standIn"]
        if what == "indexing" and isinstance(command.get("paused"), bool):
            self.indexes.pause(command["paused"])
        elif what == "building" and isinstance(command.get("seconds"), int | float):
            self.indexes.delay = float(command["seconds"])
        else:
            raise refusal(2, f"standIn does not know {what!r} with these arguments")
        return {"ok": 1.0}


def _known(command: Mapping[str, Any], allowed: set[str]) -> Mapping[str, Any]:
    given = {name: value for name, value in list(command.items())[1:] if name not in ENVELOPE}
    for name in given:
        if name not in allowed:
            raise refusal(40415, f"BSON field '{next(iter(command))}.{name}' is an unknown field.")
    if "id" in given and "name" in given:
        raise refusal(8, '"userCommand" one of [id, name] must be present')
    return given


def _build_info(handler: Command) -> Command:
    def tell(command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        told = handler(command, context)
        told.pop("secantusVersion", None)
        return {**told, "modules": ["enterprise"]}

    return tell


def _atlas_authentication(handler: Command) -> Command:
    """Refuse a wrong password as Atlas's proxy does, not as mongod does."""

    def authenticate(command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        reply = handler(command, context)
        if reply.get("code") == 18:
            return {
                "ok": 0.0,
                "errmsg": "bad auth : authentication failed",
                "code": 8000,
                "codeName": "AtlasError",
            }
        return reply

    return authenticate
