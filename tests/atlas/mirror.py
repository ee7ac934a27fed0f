# mypy: disable-error-code="import-untyped"
"""What the collections with search indexes hold, kept up with by reading the server's own oplog."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import bson
from secantus.diff import apply_update_description
from secantus.storage import Storage

Record = dict[str, Any]
Key = bytes


def key_of(identifier: object) -> Key:
    """An `_id` as something to look up by."""
    return bytes(bson.encode({"": identifier}))


class Mirror:
    """The documents of one collection, and the order in which they changed.

    Documents are never changed in place: whoever holds one keeps the state that it was taken in.
    """

    def __init__(self, storage: Storage, database: str, collection: str) -> None:
        self.storage, self.database, self.collection = storage, database, collection
        self.documents: dict[Key, Record] = {}
        self.changes: list[Key] = []
        self.epoch = 0
        """Grows when the documents were all replaced, which no change tells."""

    def load(self) -> int:
        """Read the whole collection; returns the oplog's position that this is the state of."""
        while True:
            tail = self.storage.oplog_visible_tail_seq()
            found = self.storage.find_matching(self.database, self.collection, {})
            if self.storage.oplog_visible_tail_seq() == tail:
                break
        self.clear()
        self.documents = {key_of(record["_id"]): record for record in found}
        return int(tail)

    def clear(self) -> None:
        self.documents, self.changes = {}, []
        self.epoch += 1

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Follow one insert, update or delete of the oplog's."""
        operation, after = entry["op"], entry["o"]
        key = key_of((entry.get("o2") or after)["_id"])
        if operation == "d":
            self.documents.pop(key, None)
        elif operation == "u" and after.get("$v") == 2 and "diff" in after:
            if key not in self.documents:
                return
            self.documents[key] = apply_update_description(copy.deepcopy(self.documents[key]), after["diff"])
        else:
            self.documents[key] = dict(after)
        self.changes.append(key)


class Follower:
    """The mirrors of a server, all at one position of its oplog: so one search sees one state of everything."""

    def __init__(self, storage: Storage, dropped: Callable[[str], None]) -> None:
        self.storage, self.dropped = storage, dropped
        self.mirrors: dict[str, Mirror] = {}
        self.position = int(storage.oplog_visible_tail_seq())

    def mirror(self, database: str, collection: str) -> Mirror:
        """The mirror of a collection, which follows it from now on."""
        name = f"{database}.{collection}"
        if name not in self.mirrors:
            self.catch_up()
            mirror = Mirror(self.storage, database, collection)
            loaded = mirror.load()
            self.catch_up(loaded)
            self.mirrors[name] = mirror
        return self.mirrors[name]

    def catch_up(self, until: int | None = None) -> None:
        """Follow the oplog to `until`, or to its end, and tell of the namespaces that were dropped on the way."""
        tail = int(self.storage.oplog_visible_tail_seq()) if until is None else until
        if tail <= self.position:
            return
        if self.storage.oplog_floor_seq() > self.position + 1:
            for mirror in self.mirrors.values():
                self.position = mirror.load()
            return
        followed = {*self.mirrors}
        databases = {mirror.database for mirror in self.mirrors.values()}
        commands = {f"{database}.$cmd" for database in databases}
        while self.position < tail:
            entries, seen = self.storage.read_oplog_scan(
                start_seq=self.position + 1, limit=10_000, ns_filter=lambda ns: ns in followed or ns in commands
            )
            for sequence, entry in entries:
                if sequence > tail:
                    break
                if entry["op"] == "c":
                    self._command(entry)
                elif entry["op"] in ("i", "u", "d") and entry["ns"] in self.mirrors:
                    self.mirrors[entry["ns"]].apply(entry)
            if seen <= self.position:
                break
            self.position = min(int(seen), tail)

    def _command(self, entry: Mapping[str, Any]) -> None:
        database, command = str(entry["ns"]).partition(".")[0], entry["o"]
        if "drop" in command:
            named = [f"{database}.{command['drop']}"]
        elif "dropDatabase" in command:
            named = [name for name, mirror in self.mirrors.items() if mirror.database == database]
        elif "renameCollection" in command:
            named = [str(command["renameCollection"]), str(command["to"])]
        else:
            return
        for name in named:
            if self.mirrors.pop(name, None) is not None:
                self.dropped(name)


class FollowingIndex(ABC):
    """An index over one collection, as of the last change it took in."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self._rebuild()

    def _rebuild(self) -> None:
        self.epoch, self.taken = self.mirror.epoch, len(self.mirror.changes)
        self.documents: dict[Key, Record] = {}
        self.order: dict[Key, int] = {}
        self.ordinal = 0
        self._reset()
        for key, record in self.mirror.documents.items():
            self._put(key, record)

    def refresh(self) -> None:
        """Take in what has changed."""
        if self.epoch != self.mirror.epoch:
            self._rebuild()
            return
        for key in dict.fromkeys(self.mirror.changes[self.taken :]):
            self._put(key, self.mirror.documents.get(key))
        self.taken = len(self.mirror.changes)

    def _put(self, key: Key, record: Record | None) -> None:
        self._take(key, self.documents.pop(key, None), record)
        if record is None:
            self.order.pop(key, None)
            return
        self.documents[key] = record
        if key not in self.order:
            self.order[key] = self.ordinal
            self.ordinal += 1

    @abstractmethod
    def _reset(self) -> None:
        """Forget everything that was taken in."""

    @abstractmethod
    def _take(self, key: Key, before: Record | None, record: Record | None) -> None:
        """Hold `record`, or nothing where it is gone, in the place of `before`."""
