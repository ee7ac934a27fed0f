# mypy: disable-error-code="import-untyped"
"""The search indexes of a server: their life cycle, and what each holds."""

import datetime
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId
from secantus.storage import Storage

from tests.atlas import vectors
from tests.atlas.definitions import SearchDefinition, VectorDefinition, search_definition, vector_definition
from tests.atlas.lexical import SearchIndex
from tests.atlas.mirror import Follower
from tests.atlas.refusals import from_mongot, refusal
from tests.atlas.vectors import VectorIndex

TYPES = ("search", "vectorSearch")


@dataclass
class Generation:
    """One version of an index's definition, and the index that it makes once it is ready."""

    version: int
    given: Mapping[str, Any]
    definition: SearchDefinition | VectorDefinition
    created: float = field(default_factory=time.monotonic)
    at: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    held: SearchIndex | VectorIndex | None = None


@dataclass
class Named:
    """An index that a client created: `staged` becomes `live` when it is ready."""

    name: str
    kind: str
    staged: Generation | None
    live: Generation | None = None
    identifier: ObjectId = field(default_factory=ObjectId)

    @property
    def latest(self) -> Generation:
        latest = self.staged or self.live
        assert latest is not None
        return latest


class Indexes:
    """All search indexes of a server, by namespace and name.

    Whoever reads from an index holds `lock` from `catch_up` to the last use of what it found: so the legs of one
    aggregation see one state.
    """

    def __init__(self, storage: Storage, delay: float) -> None:
        self.lock = threading.RLock()
        self.delay = delay
        self.paused = False
        self.namespaces: dict[str, dict[str, Named]] = {}
        self.follower = Follower(storage, self._dropped)

    def _dropped(self, namespace: str) -> None:
        self.namespaces.pop(namespace, None)

    def catch_up(self) -> None:
        """Make what is ready live, and take in every committed write, unless indexing is paused."""
        self.follower.catch_up()
        for namespace, named in self.namespaces.items():
            for index in named.values():
                staged = index.staged
                if staged is not None and time.monotonic() >= staged.created + self.delay and not self.paused:
                    database, _, collection = namespace.partition(".")
                    mirror = self.follower.mirror(database, collection)
                    if isinstance(staged.definition, VectorDefinition):
                        staged.held = VectorIndex(staged.definition, mirror)
                    else:
                        staged.held = SearchIndex(staged.definition, mirror)
                    index.live, index.staged = staged, None

    def pause(self, paused: bool) -> None:
        """Freeze what the indexes hold, or let them catch up."""
        with self.lock:
            self.catch_up()
            for named in self.namespaces.values():
                for index in named.values():
                    if index.live is not None and index.live.held is not None:
                        index.live.held.refresh()
            self.paused = paused

    def create(self, database: str, collection: str, place: int, given: object) -> Named:
        """Create one index from `{name?, type?, definition}`; the same again changes nothing."""
        where = f"userCommand.indexes[{place}]"
        if not isinstance(given, Mapping):
            raise refusal(8, f'"{where}" must be a document')
        for name in given:
            if name not in ("name", "type", "definition"):
                raise refusal(8, f'"{where}" unrecognized field "{name}"')
        if "definition" not in given:
            raise refusal(8, f'"{where}.definition" is required')
        name, kind = given.get("name", "default"), given.get("type", "search")
        if not isinstance(name, str) or not name:
            raise refusal(8, f'"{where}.name" cannot be empty')
        if kind not in TYPES:
            raise refusal(8, f'"{where}.type" must be one of [{", ".join(TYPES)}]')
        generation = Generation(0, given["definition"], parsed(kind, given["definition"], where))
        with self.lock:
            self.catch_up()
            named = self.namespaces.setdefault(f"{database}.{collection}", {})
            if name in named:
                known = named[name]
                if known.kind != kind or known.latest.given != generation.given:
                    raise refusal(
                        68, f"Index {name} already exists with a different definition. Drop it first if needed."
                    )
                return known
            named[name] = Named(name, kind, generation)
            self.follower.mirror(database, collection)
            return named[name]

    def find(self, database: str, collection: str, asked: Mapping[str, Any]) -> Named:
        """The index that a command names by `name` or by `id`."""
        by = "id" if "id" in asked else "name"
        if by not in asked:
            raise refusal(8, '"userCommand" one of [id, name] must be present')
        for index in self.namespaces.get(f"{database}.{collection}", {}).values():
            if (str(index.identifier) if by == "id" else index.name) == asked[by]:
                return index
        raise refusal(27, f"No index with {by} {asked[by]} exists in namespace {database}.{collection}")

    def update(self, database: str, collection: str, asked: Mapping[str, Any]) -> None:
        """Stage a new definition; the old one stays queryable until the new one is ready."""
        with self.lock:
            self.catch_up()
            index = self.find(database, collection, asked)
            given = asked.get("definition")
            if given is None:
                raise refusal(8, '"userCommand.definition" is required')
            if given == index.latest.given:
                return
            definition = parsed(index.kind, given, "userCommand.definition")
            index.staged = Generation(index.latest.version + 1, given, definition)

    def drop(self, database: str, collection: str, asked: Mapping[str, Any]) -> None:
        with self.lock:
            self.catch_up()
            index = self.find(database, collection, asked)
            del self.namespaces[f"{database}.{collection}"][index.name]

    def listed(self, database: str, collection: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What `$listSearchIndexes` gives: `{}` lists all, `{name}` and `{id}` the one that matches."""
        with self.lock:
            self.catch_up()
            found = self.namespaces.get(f"{database}.{collection}", {}).values()
            return [
                self._told(index)
                for index in found
                if asked.get("name", index.name) == index.name
                and asked.get("id", str(index.identifier)) == str(index.identifier)
            ]

    def _told(self, index: Named) -> dict[str, Any]:
        status = "READY"
        if index.staged is not None:
            begun = time.monotonic() - index.staged.created >= self.delay / 2 or index.live is not None
            status = "BUILDING" if begun else "PENDING"
        latest, queryable = index.latest, index.live is not None
        version = {"version": latest.version, "createdAt": latest.at}
        current = {"status": status, "queryable": index.staged is None}
        return {
            "id": str(index.identifier),
            "name": index.name,
            "type": index.kind,
            "status": status,
            "queryable": queryable,
            "latestDefinitionVersion": version,
            "latestDefinition": latest.given,
            "statusDetail": [
                {
                    "hostname": "stand-in",
                    "status": status,
                    "queryable": queryable,
                    "mainIndex": {**current, "definitionVersion": version, "definition": latest.given},
                }
            ],
        }

    def queried(self, stage: str, database: str, collection: str, name: str) -> SearchIndex | VectorIndex | None:
        """What an index holds, taken up to now; None where there is no such index, which mongot does not mind.

        mongot refuses to query an index while it builds, and to ask one kind of index for the other kind's search.
        """
        index = self.namespaces.get(f"{database}.{collection}", {}).get(name)
        if index is None:
            return None
        wanted = "vectorSearch" if stage == vectors.STAGE else "search"
        if index.kind != wanted:
            raise from_mongot(stage, f"Cannot execute {stage} over {index.kind} index '{name}'")
        if index.live is None:
            what = "vector index" if stage == vectors.STAGE else "search index"
            raise from_mongot(stage, f"cannot query {what} {name} while in state INITIAL_SYNC")
        held = index.live.held
        assert held is not None
        if not self.paused:
            held.refresh()
        return held


def parsed(kind: str, given: object, where: str) -> SearchDefinition | VectorDefinition:
    return vector_definition(given, where) if kind == "vectorSearch" else search_definition(given, where)
