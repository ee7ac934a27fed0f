"""The Atlas store: MongoDB Atlas, or its local image, through motor.

Every write is one upsert, or one transaction where several records change together, acknowledged by a majority; reads
come from the primary. Atlas Search's indexes follow the collections about a second behind, so each search also looks at
the user's newest records (`atlas_search.Query.add_recent`).
"""

import asyncio
import contextlib
import json
import os
import random
import re
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

# motor's threads are what its connections are used from; it reads this when it is imported.
os.environ.setdefault("MOTOR_MAX_WORKERS", "64")

import pymongo
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.objectid import ObjectId
from gridfs.errors import NoFile
from motor.motor_asyncio import (
    AsyncIOMotorClient,
    AsyncIOMotorClientSession,
    AsyncIOMotorCollection,
    AsyncIOMotorDatabase,
    AsyncIOMotorGridFSBucket,
)
from pymongo import ReadPreference, ReturnDocument, UpdateOne
from pymongo.errors import (
    CollectionInvalid,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from activities.consolidation import Said
from activities.errors import failure
from activities.models import (
    DEFAULT_COLLECTION,
    CacheEntry,
    CacheMatch,
    CacheScope,
    Chunk,
    ConversationMessage,
    DocumentChunk,
    DocumentQuery,
    EmbeddingModel,
    ExternalCollection,
    ForgetMatch,
    ForgetQuery,
    ForgetTarget,
    Forgotten,
    FormedMemory,
    ListMemoriesParams,
    Memory,
    MemoryNode,
    MemoryParent,
    MemoryQuery,
    Message,
    MessageContext,
    PreviousMessage,
    Recollection,
    RecordEmbedding,
    RecordKind,
    RecordText,
    Reembedding,
    RelatedMessage,
    SearchHit,
    SourcePage,
    StoredDocument,
    StoredSource,
    Summary,
)
from activities.store import atlas_forget, atlas_messages, atlas_reembed, atlas_summaries
from activities.store.atlas_building import build, refuse, reports_of, searched_indexes
from activities.store.atlas_errors import explain, unusable
from activities.store.atlas_external import hits_of, misdeclared, query_of
from activities.store.atlas_forget import match_of
from activities.store.atlas_indexes import (
    COLLECTIONS,
    TEXT_INDEX,
    VECTOR_INDEX,
    IndexReport,
    Quantization,
    all_names,
    model_of,
    vector_field,
)
from activities.store.atlas_memory import AtlasMemories
from activities.store.atlas_reembed import PASS_SECONDS, PROGRESS_SECONDS
from activities.store.atlas_search import Document, Found, Query, Target, digest, dot, key_of, mql
from activities.store.base import (
    CACHE_CANDIDATES,
    UNSCOPED,
    check_chunks,
    document_id,
    metadata_json,
    mismatch,
    page_of,
    read_conversation_cursor,
    read_cursor,
    summarised_with,
    title_of,
    unknown_collection,
)
from activities.store.contents import check_content_name, chunks_of
from activities.store.filters import Condition, Group, Node, parse_filter
from activities.store.forgetting import LOOKED_AT, meant
from activities.store.times import micros, moment
from activities.store.vectors import searchable

T = TypeVar("T")
Session = AsyncIOMotorClientSession
Collection = AsyncIOMotorCollection[Document]

SELECTION_SECONDS = 5.0
"""How long the driver looks for the primary: less than an attempt of an activity may take."""
OPERATION_SECONDS = 10.0
"""How long one command may take, the wait for a connection included."""
CONFLICT_SECONDS = 8.0
"""How long a transaction that met another one is tried again before Temporal does."""
TRANSACTION_SECONDS = 60.0
"""How long a transaction over a whole source may take: MongoDB itself ends one that takes longer."""
CONTENT_CONNECTIONS = 8
"""Most commands at once about contents."""
RECENT_SECONDS = 60.0
"""For how long a record is looked at besides the search indexes, which usually hold it within one or two."""
RECENT_RECORDS = 100
STAGED_AT_ONCE = 10_000
"""Ids of staged vectors in one command, which may have 16 MB."""
MAX_FILTERED = 10_000
"""The most records of a user that a metadata filter may leave to search in."""
VERDICT_SECONDS = 30.0
"""How long an empty search takes the word of the last look at the indexes."""

_FLOAT32 = b"\x27\x00"
"""How a packed vector of float32 begins in BSON's vector subtype."""
_VECTOR_SUBTYPE = 9
_NO_RANK_FUSION = frozenset({224, 40324})
"""Codes of QueryFeatureNotAllowed and of a stage that the server doesn't know."""
_SEARCH_REFUSED = 8
"""Code under which the search process's own refusals come: UnknownError."""
_CONFLICTS = frozenset({24, 112, 246, 251})
"""Codes of LockTimeout, WriteConflict, SnapshotUnavailable, NoSuchTransaction: of two transactions that met."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class _ConflictError(Exception):
    """Two transactions met: this one is tried again."""


def _cache_key(user_id: str, query_hash: str, scope: CacheScope) -> str:
    """Id of the one record that a user can have for a query in a scope."""
    names = () if scope.namespace == scope.model == "" else (scope.namespace, scope.model)
    return digest(user_id, query_hash, *names)


class AtlasDatabase:
    """The connection to one database: what every part of the store reaches it by.

    Args:
        uri: Connection string. What it doesn't say is set here: TLS (except to this machine), time-outs, the pool.
        name: Of the database.
        names: What the collections are called, by the store's own names for them.
        pool_size: Most commands at once; what is beyond that waits.
        timeout: Seconds that one command may take, the wait for a connection included.
    """

    def __init__(self, uri: str, name: str, names: dict[str, str], pool_size: int, timeout: float) -> None:
        self._uri = uri
        self.name = name
        self.names = names
        self.version = ""
        self.rank_fusion = False
        self._pool_size = pool_size
        self._timeout = timeout
        self._client: AsyncIOMotorClient[Document] | None = None

    async def connect(self) -> None:
        """Reach the server; a first time also see what it can do."""
        if self._client is None:
            loop = asyncio.get_running_loop()
            try:
                # In a thread: the addresses behind mongodb+srv:// are looked up there and then.
                client: AsyncIOMotorClient[Document] = await asyncio.to_thread(
                    AsyncIOMotorClient, self._uri, io_loop=loop, **self._options()
                )
            except (OSError, ValueError) as error:
                raise unusable(error) from None
            try:
                # A command's own limit would be taken for that of looking for a server, too.
                self._timeout = client.delegate.options.timeout or self._timeout
                with pymongo.timeout(min(SELECTION_SECONDS, self._timeout)):
                    info = await client.admin.command("buildInfo")
            except BaseException:
                await asyncio.to_thread(client.close)
                raise
            self.version = str(info["version"])
            self.rank_fusion = int(self.version.split(".")[0]) >= 8
            self._client = client

    def _options(self) -> dict[str, Any]:
        """Options of the driver: durability as this store promises it; the rest where the URI doesn't say it."""
        options = re.split("[&;]", self._uri.partition("?")[2])
        given = {option.partition("=")[0].lower() for option in options}
        defaults: dict[str, Any] = {
            "appname": "durable-context",
            "serverSelectionTimeoutMS": round(SELECTION_SECONDS * 1000),
            "connectTimeoutMS": round(SELECTION_SECONDS * 1000),
            "timeoutMS": round(self._timeout * 1000),
            "maxPoolSize": self._pool_size,
        }
        hosts = self.hosts.split(",")
        local = all(host.rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK for host in hosts)
        if self._uri.startswith("mongodb://") and not local and given.isdisjoint({"tls", "ssl"}):
            defaults["tls"] = True
        chosen = {name: value for name, value in defaults.items() if name.lower() not in given}
        # Temporal retries; everything here may be done twice.
        return chosen | {"retryWrites": False, "retryReads": False, "tz_aware": True, "w": "majority"}

    def _db(self) -> AsyncIOMotorDatabase[Document]:
        if self._client is None:
            raise failure("unavailable", "the store isn't open")
        return self._client.get_database(
            self.name,
            codec_options=CodecOptions(tz_aware=True),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )

    @property
    def hosts(self) -> str:
        """The hosts in the connection string, without user and password."""
        return self._uri.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0]

    async def close(self) -> None:
        """Release every connection. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            # In a thread: it says good-bye to a server that may not answer.
            await asyncio.to_thread(client.close)

    def collection(self, name: str) -> Collection:
        """A collection by the store's own name for it."""
        return self._db()[self.names[name]]

    def elsewhere(self, name: str) -> Collection:
        """Somebody else's collection, by `database.collection`."""
        self._db()
        assert self._client is not None
        database, _, collection = name.partition(".")
        return self._client.get_database(
            database, codec_options=CodecOptions(tz_aware=True), read_preference=ReadPreference.PRIMARY
        )[collection]

    def bucket(self) -> AsyncIOMotorGridFSBucket:
        """The GridFS bucket of contents."""
        return AsyncIOMotorGridFSBucket(self._db(), self.names["content_files"].removesuffix(".files"))

    async def command(self, command: Document) -> Document:
        """Run a command of the database."""
        return await self._db().command(command)

    async def create_collections(self) -> None:
        """Create those that don't exist: search indexes need theirs."""
        there = set(await self._db().list_collection_names())
        for name in self.names.values():
            if name not in there:
                # Another process may be faster.
                with contextlib.suppress(CollectionInvalid):
                    await self._db().create_collection(name)

    @staticmethod
    def binary(vector: bytes) -> Binary:
        """A packed vector of float32 as BSON's vector of that type."""
        return Binary(_FLOAT32 + vector, _VECTOR_SUBTYPE)

    async def update_each(
        self, collection: str, changes: Sequence[tuple[Document, Document]], upsert: bool = False
    ) -> None:
        """Make changes, each given by what it applies to, in one command."""
        if changes:
            updates = [UpdateOne(where, change, upsert=upsert) for where, change in changes]
            await self.collection(collection).bulk_write(updates, ordered=False)

    @contextlib.asynccontextmanager
    async def explained(self, seconds: float | None = None, database: str | None = None) -> AsyncIterator[None]:
        """Errors of the driver leave the block as failures in our own words.

        Args:
            seconds: How long all of the block may take; otherwise each command has its own limit.
            database: Which one it is about, where it isn't the store's own.
        """
        topology: Any = self._client and self._client.topology_description
        if topology is not None and not topology.has_writable_server():
            # Nobody is there now: a tool's caller is to hear of it before giving up.
            seconds = min(SELECTION_SECONDS, seconds or self._timeout)
        try:
            with pymongo.timeout(seconds) if seconds else contextlib.nullcontext():
                yield
        except (PyMongoError, BSONError, UnicodeEncodeError, OverflowError) as error:
            # The driver's own words would go into workflow histories with it.
            raise explain(error, database or self.name, self._pool_size) from None

    async def transact(self, work: Callable[[Session], Awaitable[T]], seconds: float | None = None) -> T:
        """Run `work` in one transaction: it happens as a whole or not at all. One that meets another is tried again.

        Args:
            work: What to do; it may be run several times, and raise `_ConflictError` to be.
            seconds: How long all of it may take; otherwise each command has its own limit.
        """
        deadline = time.monotonic() + CONFLICT_SECONDS
        attempt = 0
        while True:
            try:
                async with self.explained(seconds):
                    await self.connect()
                    assert self._client is not None
                    async with await self._client.start_session() as session:
                        try:
                            async with session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority")):
                                return await work(session)
                        except OperationFailure as error:
                            if error.code not in _CONFLICTS:
                                raise
                            raise _ConflictError from None
            except _ConflictError:
                if time.monotonic() > deadline:
                    raise failure("unavailable", "others are changing the same records; the call is retried") from None
            attempt += 1
            await asyncio.sleep(random.uniform(0, min(0.25, 0.01 * 2**attempt)))

    async def recorded(self) -> list[Document]:
        """The records of the collections' models, each with the store's own name of its collection."""
        names = {self.names[name]: name for name in COLLECTIONS}
        return [
            recorded | {"collection": names[recorded["_id"]]}
            async for recorded in self.collection("models").find({"_id": {"$in": list(names)}}).sort("_id", 1)
        ]

    async def holds_records(self, collection: str) -> bool:
        return await self.collection(collection).find_one({}, {"_id": 1}) is not None

    async def adopt(self, model: EmbeddingModel) -> None:
        """Record that `model` fills the collections; those without records take any."""
        models = self.collection("models")
        for name in COLLECTIONS:
            known: Document = {"_id": self.names[name]}
            recorded: Document | None
            try:
                recorded = await models.find_one_and_update(
                    known, {"$setOnInsert": model.model_dump()}, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                recorded = await models.find_one(known)
            if recorded is not None and model_of(recorded) != model:
                if await self.holds_records(name):
                    raise mismatch(name, model_of(recorded), model)
                await models.replace_one(known | model_of(recorded).model_dump(), known | model.model_dump())


class AtlasStore:
    """`Store` in MongoDB Atlas.

    Args:
        uri: Connection string. What it doesn't say is set here: TLS (except to this machine), time-outs, the pool.
        database: Name of the database.
        names: What the four collections are called, by the store's own names for them; by default like those.
        quantization: Whether vector indexes keep one byte for each dimension instead of four.
        external: Collections that others fill and that searches may reach.
        pool_size: Most commands at once; what is beyond that waits.
        timeout: Seconds that one command may take, the wait for a connection included.
    """

    def __init__(
        self,
        uri: str,
        database: str,
        *,
        names: Mapping[str, str] | None = None,
        quantization: Quantization = "none",
        external: Iterable[ExternalCollection] = (),
        pool_size: int = 64,
        timeout: float = OPERATION_SECONDS,
    ) -> None:
        self._db = AtlasDatabase(uri, database, all_names(names or {}), pool_size, timeout)
        self._quantization = quantization
        self._external = {one.name: one for one in external}
        self._model: EmbeddingModel | None = None
        self._last_moment = 0
        self._indexes_seen = 0.0
        self._memories = AtlasMemories(
            self._db,
            model=lambda: self._opened_with,
            nearest=self._nearest_memories,
            vector_of=self._vector_of,
            vector_field=self._vector,
            filled=lambda session: self._filled("memory_nodes", session),
            still_filled=lambda before: self._still_filled("memory_nodes", before),
        )

    # Connecting

    async def open(self, model: EmbeddingModel) -> None:
        try:
            async with self._db.explained():
                await self._db.connect()
                for recorded in await self._db.recorded():
                    name, filler = recorded["collection"], model_of(recorded)
                    if filler != model and await self._db.holds_records(name):
                        raise mismatch(name, filler, model)
                refuse(self._db, await self._reports(model), model)
                await self._db.adopt(model)
        except BaseException:
            await self.close()
            raise
        self._indexes_seen = time.monotonic()
        self._model = model

    async def close(self) -> None:
        self._model = None
        await self._db.close()

    async def ping(self) -> str:
        _ = self._opened_with
        async with self._db.explained(SELECTION_SECONDS):
            await self._db.command({"ping": 1})
        return f"MongoDB {self._db.version} with Atlas Search, {self._db.hosts}/{self._db.name}"

    @property
    def _opened_with(self) -> EmbeddingModel:
        if self._model is None:
            raise failure("unavailable", "the store isn't open")
        return self._model

    @property
    def _vector_field(self) -> str:
        return vector_field(self._opened_with)

    # Indexes

    def collection_name(self, name: str) -> str:
        """What a collection that an index report names is called in the database."""
        return self._db.names.get(name, name)

    async def reports(self, model: EmbeddingModel) -> list[IndexReport]:
        """How each index stands that the store needs for `model`, and those of the declared collections."""
        async with self._db.explained():
            await self._db.connect()
            return await self._reports(model)

    async def build_indexes(self, model: EmbeddingModel, on_change: Callable[[list[IndexReport]], None]) -> None:
        """Create what is missing, mend what differs, and wait until every index of the store's own can be queried.

        Args:
            model: Whose vectors the indexes are to hold, besides those of the model that fills the collections.
            on_change: Told how all of them stand, again and again until all are ready.

        Raises:
            ApplicationError: `not_configured` where Atlas can't build one.
        """
        async with self._db.explained():
            await self._db.connect()
        await build(self._db, lambda: self._reports(model), on_change)
        async with self._db.explained(PASS_SECONDS):
            await atlas_reembed.forget_previous(self._db)

    async def _reports(self, model: EmbeddingModel) -> list[IndexReport]:
        return await reports_of(self._db, model, self._quantization, self._external.values())

    async def _check_emptiness(self) -> None:
        """Where a search finds nothing, make sure that there are indexes: Atlas doesn't say that one is missing."""
        if time.monotonic() - self._indexes_seen > VERDICT_SECONDS:
            refuse(self._db, await self._reports(self._opened_with), self._opened_with)
            self._indexes_seen = time.monotonic()

    async def _filled(self, collection: str, session: Session | None = None) -> Document:
        """Make sure that no other model has taken over; answer the fields of a record that say whose vector it has.

        Returns:
            `embedded_by`, and `awaits` where the collections are moving to another model.
        """
        model = self._opened_with
        recorded = await self._db.collection("models").find_one({"_id": self._db.names[collection]}, session=session)
        if recorded is not None and model_of(recorded) != model:
            raise mismatch(collection, model_of(recorded), model)
        fields: Document = {"embedded_by": [vector_field(model)]}
        if recorded and recorded.get("next"):
            fields["awaits"] = vector_field(model_of(recorded["next"]))
        return fields

    async def _still_filled(self, collection: str, before: Document) -> None:
        """Make sure, after a write, that the move to another model that was under way hasn't ended before it.

        The record would be without a vector of the new model: its writer has to hear of it.
        """
        if "awaits" in before:
            await self._filled(collection)

    def _vector(self, embedding: bytes) -> Document:
        """The field with an embedding; none for one of zeros, whose cosine with anything is undefined."""
        vector = searchable(embedding, self._opened_with)
        return {} if vector is None else {self._vector_field: self._db.binary(vector)}

    def _query_vector(self, embedding: bytes) -> tuple[Binary | None, Callable[[Document], float | None]]:
        """An embedding as a query, and what gives the exact cosine of a record with it."""
        vector = searchable(embedding, self._opened_with)
        if vector is None:
            return None, lambda record: None
        mine, field = array("f", vector), self._vector_field

        def cosine(record: Document) -> float | None:
            theirs = record.get(field)
            return None if theirs is None else dot(mine, array("f", bytes(theirs)[len(_FLOAT32) :]))

        return self._db.binary(vector), cosine

    def _now(self) -> int:
        """Microseconds since 1970, later than the last ones: the order of storing."""
        self._last_moment = max(self._last_moment + 1, time.time_ns() // 1000)
        return self._last_moment

    # Search

    async def _search(
        self, name: str, query: Query, cosine: Callable[[Document], float | None], conditions: Document | None = None
    ) -> tuple[list[tuple[str, float]], Found]:
        """Run a hybrid search; answer ids with fused scores, and what was found. Arguments are those of `_find`."""
        found = await self._find(name, query, cosine, conditions)
        return await self._complete(self._db.collection(name), query, found), found

    async def _find(
        self, name: str, query: Query, cosine: Callable[[Document], float | None], conditions: Document | None = None
    ) -> Found:
        """What both legs of a hybrid search find.

        Args:
            name: Of the collection.
            cosine: Of a record with the query.
            conditions: What the newest records must meet too, as the query's `ids` or `filter` say it.
        """
        collection = self._db.collection(name)
        since = {"changed_at": {"$gte": datetime.now(UTC) - timedelta(seconds=RECENT_SECONDS)}}
        newest = collection.find({**query.target.share, **since, **(conditions or {})}).sort("changed_at", -1)
        try:
            rows, recent, _ = await asyncio.gather(
                self._rows(collection, query),
                newest.limit(RECENT_RECORDS).to_list(None),
                self._filled(name),
            )
        except OperationFailure:
            # Another model may have taken over, and the indexes have dropped the vectors of this one.
            await self._filled(name)
            raise
        found = query.read(rows)
        # In a thread: a hundred long texts take a while.
        late = await asyncio.to_thread(query.unseen, found, recent)
        if late and len(found.keywords) >= query.candidates:
            # The leg is full: only the index knows whether it has outranked them or doesn't hold them yet.
            held: list[Document] = [
                {"$search": {"index": TEXT_INDEX, "in": {"path": "_id", "value": list(late)}}},
                {"$project": {"_id": 1}},
            ]
            for row in await collection.aggregate(held).to_list(None):
                late.pop(row["_id"], None)
        query.add_recent(found, recent, cosine, late)
        _drop_superseded(found)
        if not found.documents:
            await self._check_emptiness()
        return found

    @staticmethod
    async def _complete(collection: Collection, query: Query, found: Found) -> list[tuple[str, float]]:
        """The best of what was found, all of them whole; those that are gone by now are left out."""
        ranked = query.fused(found)
        if partial := [one for one, _ in ranked if found.documents[one].get("partial")]:
            ids = [found.documents[one]["_id"] for one in partial]
            hidden = {query.target.vector_field: 0}
            async for document in collection.find({"_id": {"$in": ids}, **query.target.share}, hidden):
                found.documents[key_of(document["_id"])] = document
        return [(one, score) for one, score in ranked if not found.documents[one].get("partial")]

    async def _rows(self, collection: Collection, query: Query) -> list[Document]:
        """Run a search's aggregation."""
        if not query.legs:
            return []
        try:
            return await collection.aggregate(query.pipeline(rank_fusion=self._db.rank_fusion)).to_list(None)
        except OperationFailure as error:
            # Some servers of 8.0 have $rankFusion or its score details behind a switch.
            if not self._db.rank_fusion or error.code not in _NO_RANK_FUSION:
                raise
            self._db.rank_fusion = False
            return await collection.aggregate(query.pipeline(rank_fusion=False)).to_list(None)

    def _target(self, name: str, share: Mapping[str, str]) -> Target:
        text_index = TEXT_INDEX if name in ("documents", "conversations", "contexts") else None
        return Target(self._db.names[name], "text", self._vector_field, text_index, VECTOR_INDEX, share)

    # Documents

    async def source_hash(self, user_id: str, collection: str, source: str) -> str | None:
        _ = self._opened_with
        async with self._db.explained():
            found = await self._db.collection("sources").find_one({"_id": document_id(user_id, collection, source)})
        return str(found["content_hash"]) if found else None

    async def replace_source(self, user_id: str, collection: str, source: str, chunks: list[Chunk]) -> None:
        if collection in self._external:
            raise failure("rejected", f"collection '{collection}' is declared in EXTERNAL_COLLECTIONS: it is only read")
        check_chunks(user_id, collection, source, chunks)
        share = {"user_id": user_id, "collection": collection, "source": source}
        key = {"_id": document_id(user_id, collection, source)}
        records = [
            {
                "_id": chunk.chunk_id,
                **chunk.model_dump(exclude={"chunk_id", "embedding", "metadata"}),
                "metadata": json.loads(metadata_json(chunk)),
                **self._vector(chunk.embedding),
            }
            for chunk in chunks
        ]

        async def work(session: Session) -> Document:
            sources, documents = self._db.collection("sources"), self._db.collection("documents")
            filled = await self._filled("documents", session)
            changes = {
                **share,
                "title": title_of(source, chunks),
                "content_hash": chunks[0].content_hash if chunks else "",
                "chunks": len(chunks),
                "stored_at": datetime.now(UTC),
            }
            try:
                current = await sources.find_one_and_update(
                    key,
                    {"$set": changes, "$inc": {"revision": 1}},
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                    session=session,
                )
            except DuplicateKeyError:
                # Two were the first to store it.
                raise _ConflictError from None
            await documents.delete_many(share, session=session)
            if records:
                added = {**filled, "revision": current["revision"], "changed_at": datetime.now(UTC)}
                await documents.insert_many([{**record, **added} for record in records], session=session)
                for start in range(0, len(records), STAGED_AT_ONCE):
                    ids = [record["_id"] for record in records[start : start + STAGED_AT_ONCE]]
                    await self._db.collection("staged").delete_many({"_id": {"$in": ids}}, session=session)
            else:
                await sources.delete_one(key, session=session)

            return filled

        filled = await self._db.transact(work, TRANSACTION_SECONDS)
        async with self._db.explained():
            await self._still_filled("documents", filled)

    async def list_sources(self, user_id: str, collection: str | None, limit: int, cursor: str | None) -> SourcePage:
        _ = self._opened_with
        where: Document = {"user_id": user_id} | ({} if collection is None else {"collection": collection})
        if cursor is not None:
            last, name = read_cursor(cursor)
            after = [{"collection": {"$gt": last}}, {"collection": last, "source": {"$gt": name}}]
            where = {"$and": [where, {"$or": after}]}
        async with self._db.explained():
            found = self._db.collection("sources").find(where).sort([("collection", 1), ("source", 1)])
            return page_of([StoredSource(**_source_fields(one)) async for one in found.limit(limit + 1)], limit)

    async def remove_source(self, user_id: str, collection: str | None, source: str) -> int:
        _ = self._opened_with
        where: Document = {"user_id": user_id, "$or": [{"source": source}, {"_id": source}]}
        if collection is not None:
            where["collection"] = collection
        async with self._db.explained():
            found = await self._db.collection("sources").find(where).to_list(None)
        for one in found:
            await self.replace_source(user_id, one["collection"], one["source"], [])
        return sum(one["chunks"] for one in found)

    async def read_document(
        self, document_id: str, user_id: str | None, position: int, max_characters: int
    ) -> StoredDocument | None:
        _ = self._opened_with

        async def work(session: Session) -> StoredDocument | None:
            found = await self._db.collection("sources").find_one({"_id": document_id}, session=session)
            if found is None or user_id not in (None, found["user_id"]):
                return None
            document = StoredDocument(user_id=found["user_id"], content=[], next_position=None, **_source_fields(found))
            share = {name: found[name] for name in ("user_id", "collection", "source")}
            chunks = self._db.collection("documents").find(
                {**share, "position": {"$gte": position}}, {"position": 1, "text": 1, "metadata": 1}, session=session
            )
            used = 0
            async for chunk in chunks.sort("position", 1):
                used += len(chunk["text"])
                if document.content and used > max_characters:
                    document.next_position = chunk["position"]
                    break
                document.content.append(DocumentChunk.model_validate(chunk))
            return document

        return await self._db.transact(work)

    async def stage(self, vectors: dict[str, bytes]) -> None:
        fields = {**self._opened_with.model_dump(), "staged_at": datetime.now(UTC)}
        changes = [
            ({"_id": chunk_id}, {"$set": {**fields, "embedding": Binary(vector)}})
            for chunk_id, vector in vectors.items()
        ]
        async with self._db.explained():
            await self._db.update_each("staged", changes, upsert=True)

    async def staged(self, chunk_ids: list[str]) -> dict[str, bytes]:
        model, found = self._opened_with.model_dump(), {}
        async with self._db.explained():
            for start in range(0, len(chunk_ids), STAGED_AT_ONCE):
                ids = chunk_ids[start : start + STAGED_AT_ONCE]
                async for one in self._db.collection("staged").find({"_id": {"$in": ids}, **model}):
                    found[one["_id"]] = bytes(one["embedding"])
        return found

    async def collections(self, user_id: str) -> list[str]:
        _ = self._opened_with
        async with self._db.explained():
            return sorted(await self._db.collection("sources").distinct("collection", {"user_id": user_id}))

    async def search_documents(self, query: DocumentQuery) -> list[SearchHit]:
        node = parse_filter(query.filter) if query.filter else None
        if query.collection in self._external:
            return await self._search_external(self._external[query.collection], query, node)
        share = {"user_id": query.user_id, "collection": query.collection}
        vector, cosine = self._query_vector(query.embedding)
        async with self._db.explained():
            await self._known_collection(query.user_id, query.collection)
            conditions = None if node is None else {"$and": [mql(node, "metadata.")]}
            ids = None if conditions is None else await self._filtered(share, conditions)
            hybrid = Query(self._target("documents", share), query.query, vector, query.limit, query.weight, ids=ids)
            if ids == []:
                await self._filled("documents")
                return []
            ranked, found = await self._search("documents", hybrid, cosine, conditions)
        return [
            SearchHit(
                id=chunk_id,
                text=found.documents[chunk_id]["text"],
                score=score,
                vector_score=found.cosines.get(chunk_id),
                text_score=found.keywords.get(chunk_id),
                metadata=found.documents[chunk_id]["metadata"],
            )
            for chunk_id, score in ranked
        ]

    async def _known_collection(self, user_id: str, collection: str) -> None:
        if collection == DEFAULT_COLLECTION:
            return
        sources = self._db.collection("sources")
        if await sources.find_one({"user_id": user_id, "collection": collection}, {"_id": 1}) is None:
            names = sorted([*await sources.distinct("collection", {"user_id": user_id}), *self._external])
            raise unknown_collection(collection, names)

    async def _filtered(self, share: Mapping[str, str], conditions: Document) -> list[str]:
        """Ids of the records of `share` that meet a filter.

        Vector indexes filter only by fields that they were built with, and metadata may hold any: MongoDB's own query
        finds the records first, and both legs then search among their ids.
        """
        matching = self._db.collection("documents").find({**share, **conditions}, {"_id": 1})
        ids = [str(one["_id"]) async for one in matching.limit(MAX_FILTERED + 1)]
        if len(ids) > MAX_FILTERED:
            raise failure(
                "over_limit",
                f"filter: more than {MAX_FILTERED} chunks meet it, too many to search among; narrow it or leave it out",
            )
        return ids

    async def _search_external(
        self, external: ExternalCollection, query: DocumentQuery, node: Node | None
    ) -> list[SearchHit]:
        """Search a declared collection, with the user's share of it as part of the search."""
        vector, _ = self._query_vector(query.embedding)
        hybrid = query_of(external, query, vector, node)
        async with self._db.explained(database=external.name.partition(".")[0]):
            collection = self._db.elsewhere(external.name)
            try:
                found = hybrid.read(await self._rows(collection, hybrid))
            except OperationFailure as error:
                if error.code != _SEARCH_REFUSED:
                    raise
                await self._check_external(external)
                raise misdeclared(external, self._opened_with) from None
            # Atlas doesn't say that an index is missing: its leg only finds nothing.
            if any(not leg for leg in hybrid.found_by(found)):
                await self._check_external(external)
            ranked = await self._complete(collection, hybrid, found)
        return hits_of(external, ranked, found)

    async def _check_external(self, external: ExternalCollection) -> None:
        """Say so where a declared collection has no such index."""
        there = await searched_indexes(self._db.elsewhere(external.name))
        for name in (external.vector_index, external.text_index):
            if name not in there:
                raise failure(
                    "not_configured",
                    f"{external.name} has no search index '{name}': check EXTERNAL_COLLECTIONS, or create it in Atlas.",
                )

    # Conversations

    async def put_message(self, message: Message) -> None:
        vector = self._vector(message.embedding)
        attempts = 0

        async def work(session: Session) -> Document:
            nonlocal attempts
            attempts += 1
            filled = await self._filled("conversations", session)
            try:
                await atlas_messages.put(self._db, message, vector | filled, self._now(), session)
            except DuplicateKeyError:
                # Two that both found nothing to replace: the second time there is something, or it is another user's.
                if attempts > 1:
                    raise
                raise _ConflictError from None
            return filled

        filled = await self._db.transact(work)
        async with self._db.explained():
            await self._still_filled("conversations", filled)

    async def message_before(self, user_id: str, message_id: str) -> PreviousMessage | None:
        _ = self._opened_with
        async with self._db.explained():
            return await atlas_messages.before(self._db, user_id, message_id)

    async def put_context(self, user_id: str, message_id: str, context: MessageContext) -> None:
        vector = self._vector(context.embedding)

        async def work(session: Session) -> Document:
            filled = await self._filled("contexts", session)
            await atlas_messages.put_context(self._db, user_id, message_id, context, vector | filled, session)
            return filled

        filled = await self._db.transact(work)
        async with self._db.explained():
            await self._still_filled("contexts", filled)

    async def read_conversation(
        self, user_id: str, conversation_id: str, limit: int, cursor: str | None = None
    ) -> tuple[list[ConversationMessage], str | None]:
        _ = self._opened_with
        before = read_conversation_cursor(cursor) if cursor is not None else None
        async with self._db.explained():
            return await atlas_messages.page(self._db, user_id, conversation_id, limit, before)

    async def read_message(self, user_id: str, message_id: str) -> Message | None:
        _ = self._opened_with
        async with self._db.explained():
            found, _ = await asyncio.gather(
                self._db.collection("conversations").find_one({"_id": message_id, "user_id": user_id}),
                self._filled("conversations"),
            )
        if found is None:
            return None
        return Message(
            message_id=message_id,
            user_id=user_id,
            conversation_id=found["conversation_id"],
            message_type=found["message_type"],
            text=found["text"],
            timestamp=moment(found["timestamp_us"]),
            embedding=self._embedding(found),
        )

    async def _upsert(self, collection: str, where: Document, record: Document) -> None:
        """Replace the record that is `where` by what an expression says, or store it.

        Raises:
            DuplicateKeyError: where another record has one of its unique keys.
        """
        change = [{"$replaceWith": record}]
        try:
            await self._db.collection(collection).update_one(where, change, upsert=True)
        except DuplicateKeyError:
            # Two that both found nothing to replace: the second time there is something.
            await self._db.collection(collection).update_one(where, change, upsert=True)

    # Summaries

    async def unsummarised(
        self, user_id: str, conversation_id: str, limit: int
    ) -> tuple[Summary | None, list[ConversationMessage]]:
        _ = self._opened_with
        async with self._db.explained():
            return await atlas_summaries.unsummarised(self._db, user_id, conversation_id, limit)

    async def put_summary(self, summary: Summary, covered: list[str]) -> bool:
        _ = self._opened_with
        return await atlas_summaries.put(self._db, summary, covered)

    async def summaries(self, user_id: str, conversation_ids: list[str]) -> list[Summary]:
        _ = self._opened_with
        async with self._db.explained():
            return await atlas_summaries.of(self._db, user_id, conversation_ids)

    # Memories

    async def form_memory(self, node: MemoryNode, threshold: float) -> FormedMemory:
        if not node.source_messages:
            raise failure("rejected", "a memory needs at least one source message")
        return await self._memories.form(node, threshold)

    async def surroundings(self, user_id: str, memory_id: str) -> tuple[Said, list[Said]] | None:
        return await self._memories.surroundings(user_id, memory_id)

    async def put_parent(self, parent: MemoryParent) -> bool:
        return await self._memories.put_parent(parent)

    async def split_memory(self, user_id: str, memory_id: str) -> list[str]:
        return await self._memories.split(user_id, memory_id)

    async def pin_memory(self, user_id: str, memory_id: str, pinned: bool) -> str:
        return await self._memories.pin(user_id, memory_id, pinned)

    async def list_memories(self, params: ListMemoriesParams, now: datetime) -> tuple[list[Memory], list[str]]:
        return await self._memories.listed(params, now)

    async def prune_memories(self, user_id: str, budget: int, now: datetime) -> int:
        return await self._memories.prune(user_id, budget, now)

    async def _nearest_memories(self, user_id: str, embedding: bytes, limit: int) -> list[tuple[Document, float]]:
        """A user's memories nearest to an embedding, with their exact cosines, best first."""
        vector, cosine = self._query_vector(embedding)
        return await self._nearest("memory_nodes", user_id, vector, cosine, limit)

    def _vector_of(self, record: Document) -> bytes:
        """The packed vector of a record; empty where none is indexed."""
        vector = record.get(self._vector_field)
        return b"" if vector is None else bytes(vector)[len(_FLOAT32) :]

    async def _nearest(
        self,
        name: str,
        user_id: str,
        vector: Binary | None,
        cosine: Callable[[Document], float | None],
        limit: int,
        filter: Node | None = None,
    ) -> list[tuple[Document, float]]:
        """A user's records nearest to a vector, with their exact cosines, best first."""
        query = Query(self._target(name, {"user_id": user_id}), "", vector, limit, 1, filter=filter, keeps_vectors=True)
        if vector is None:
            return []
        _, found = await self._search(name, query, cosine, mql(filter) if filter else None)
        whole = [one for one in found.documents.values() if not one.get("partial")]
        scored = [(one, similarity) for one in whole if (similarity := cosine(one)) is not None]
        return sorted(scored, key=lambda item: (-item[1], item[0]["_id"]))[:limit]

    async def recall(self, query: MemoryQuery) -> Recollection:
        vector, cosine = self._query_vector(query.embedding)
        async with self._db.explained():
            related, similar = await asyncio.gather(
                self._related(query, vector, cosine),
                self._memories.similar(query),
            )
            summaries, _ = await asyncio.gather(
                atlas_summaries.of(self._db, query.user_id, summarised_with(related)),
                self._memories.count_access(similar, query),
            )
        return Recollection(related_conversation=related, similar_memories=similar, summaries=summaries)

    async def _related(
        self, query: MemoryQuery, vector: Binary | None, cosine: Callable[[Document], float | None]
    ) -> list[RelatedMessage]:
        """The messages that bear on a query, each with its surroundings."""
        share = {"user_id": query.user_id}
        searches = [
            self._find(name, Query(self._target(name, share), query.text, vector, query.limit, 0.5), cosine)
            for name in ("conversations", "contexts")
        ]
        return await atlas_messages.related(self._db, query, await asyncio.gather(*searches), self._vector_field)

    # Semantic cache

    async def put_cache_entry(self, entry: CacheEntry) -> None:
        key = {"_id": _cache_key(entry.user_id, entry.query_hash, entry)}
        record = {
            **key,
            **entry.model_dump(exclude={"embedding"}),
            "created_at_us": micros(entry.created_at),
            "expires_at_us": micros(entry.expires_at),
            **self._vector(entry.embedding),
            "changed_at": datetime.now(UTC),
        }
        async with self._db.explained():
            filled = await self._filled("cache")
            created = record["created_at_us"]
            is_newest = {"$lte": [{"$ifNull": ["$created_at_us", created]}, created]}
            await self._upsert("cache", key, {"$cond": [is_newest, {"$literal": record | filled}, "$$ROOT"]})
            await self._still_filled("cache", filled)

    async def cached_answer(
        self, user_id: str, query_hash: str, now: datetime, scope: CacheScope = UNSCOPED
    ) -> CacheEntry | None:
        _ = self._opened_with
        valid = {"user_id": user_id, "expires_at_us": {"$gt": micros(now)}}
        async with self._db.explained():
            found, _ = await asyncio.gather(
                self._db.collection("cache").find_one({"_id": _cache_key(user_id, query_hash, scope), **valid}),
                self._filled("cache"),
            )
        return self._entry(found) if found else None

    async def nearest_cached(
        self, user_id: str, embedding: bytes, now: datetime, scope: CacheScope = UNSCOPED
    ) -> list[CacheMatch]:
        vector, cosine = self._query_vector(embedding)
        valid = Group(
            "$and",
            (
                Condition("expires_at_us", "$gt", (micros(now),)),
                Condition("namespace", "$eq", (scope.namespace,)),
                Condition("model", "$eq", (scope.model,)),
            ),
        )
        async with self._db.explained():
            nearest = await self._nearest("cache", user_id, vector, cosine, CACHE_CANDIDATES, valid)
        # The index may not know yet that an entry was replaced by one that has expired since.
        return [
            CacheMatch(entry=self._entry(one), similarity=similarity)
            for one, similarity in nearest
            if one["expires_at_us"] > micros(now)
        ]

    async def invalidate_cached(
        self, user_id: str, query_hash: str | None, namespace: str | None, model: str | None
    ) -> int:
        _ = self._opened_with
        given = {"user_id": user_id, "query_hash": query_hash, "namespace": namespace, "model": model}
        wanted = {field: value for field, value in given.items() if value is not None}
        async with self._db.explained(PASS_SECONDS):
            return (await self._db.collection("cache").delete_many(wanted)).deleted_count

    def _entry(self, found: Document) -> CacheEntry:
        return CacheEntry(
            entry_id=found["entry_id"],
            user_id=found["user_id"],
            query=found["query"],
            query_hash=found["query_hash"],
            namespace=found.get("namespace", ""),
            model=found.get("model", ""),
            response=found["response"],
            created_at=moment(found["created_at_us"]),
            expires_at=moment(found["expires_at_us"]),
            embedding=self._embedding(found),
        )

    def _embedding(self, found: Document) -> bytes:
        """A record's packed vector; of zeros where none is indexed."""
        return self._vector_of(found) or bytes(4 * self._opened_with.dimensions)

    async def purge_expired(self, now: datetime) -> int:
        _ = self._opened_with
        # The date is cut to milliseconds, and has the index.
        expired = {"expires_at": {"$lte": now}, "expires_at_us": {"$lte": micros(now)}}
        async with self._db.explained(PASS_SECONDS):
            return (await self._db.collection("cache").delete_many(expired)).deleted_count

    # Forgetting

    async def matching(self, query: ForgetQuery, threshold: float) -> list[ForgetMatch]:
        vector, cosine = self._query_vector(query.embedding)
        target = self._target("conversations", {"user_id": query.user_id})
        said = Query(target, query.query, vector, LOOKED_AT, 0.5, keeps_vectors=True)
        async with self._db.explained():
            (ranked, found), memories, cached = await asyncio.gather(
                self._search("conversations", said, cosine),
                self._nearest("memory_nodes", query.user_id, vector, cosine, LOOKED_AT),
                self._nearest("cache", query.user_id, vector, cosine, LOOKED_AT),
            )
        messages = [(document := found.documents[one], cosine(document)) for one, _ in ranked]
        kinds: list[tuple[RecordKind, list[tuple[Document, float | None]]]] = [
            ("message", messages),
            # Of a parent only some children may be meant: each is found by itself.
            ("memory", [(one, similarity) for one, similarity in memories if not one["level"]]),
            ("cached_answer", [*cached]),
        ]
        return [
            match
            for kind, near in kinds
            for match in meant(query, threshold, [match_of(kind, one, similarity) for one, similarity in near])
        ]

    async def going_with(self, user_id: str, ids: list[str]) -> list[ForgetMatch]:
        _ = self._opened_with
        async with self._db.explained():
            return await atlas_forget.going_with(self._db, user_id, ids)

    async def forget(self, target: ForgetTarget, most: int) -> Forgotten:
        _ = self._opened_with

        async def work(session: Session) -> Forgotten:
            await self._filled("memory_nodes", session)
            try:
                return await atlas_forget.forget_some(self._db, target, most, session)
            except DuplicateKeyError:
                # Two were the first to change something of this user's memories.
                raise _ConflictError from None

        return await self._db.transact(work, TRANSACTION_SECONDS)

    # Another embedding model

    async def begin_reembedding(self, model: EmbeddingModel) -> None:
        async with self._db.explained(PASS_SECONDS):
            await self._db.connect()
            if not await atlas_reembed.begin(self._db, model):
                return
            reports = await self._reports(model)
        await atlas_reembed.make_room(self._db, reports)

    async def texts_to_embed(self, model: EmbeddingModel, collection: str, limit: int) -> list[RecordText]:
        async with self._db.explained():
            await self._db.connect()
            return await atlas_reembed.texts(self._db, model, collection, limit)

    async def put_embeddings(self, model: EmbeddingModel, collection: str, embedded: list[RecordEmbedding]) -> None:
        async with self._db.explained():
            await self._db.connect()
            await atlas_reembed.put(self._db, model, collection, embedded)

    async def reembedding_progress(self, model: EmbeddingModel) -> Reembedding:
        async with self._db.explained(PROGRESS_SECONDS):
            await self._db.connect()
            return await atlas_reembed.progress(self._db, model)

    async def finish_reembedding(self, model: EmbeddingModel) -> bool:
        async with self._db.explained(PASS_SECONDS):
            await self._db.connect()
            if not await atlas_reembed.is_complete(self._db, model):
                return False
            has_moved = await atlas_reembed.filling(self._db, model) == model
            reports = [] if has_moved else await self._reports(model)
        if not has_moved:
            await atlas_reembed.switch(self._db, model, reports)
        async with self._db.explained(PASS_SECONDS):
            # Whoever asked before the switch whether it may write, and wrote after it.
            return await atlas_reembed.is_complete(self._db, model)


def _drop_superseded(found: Found) -> None:
    """Keep only the newest revision of each source: the indexes may still hold what it replaced."""
    newest: dict[str, int] = {}
    for document in found.documents.values():
        if document.get("revision") is not None:
            newest[document["source"]] = max(document["revision"], newest.get(document["source"], 0))
    for record_id, document in list(found.documents.items()):
        if document.get("revision") is not None and document["revision"] < newest[document["source"]]:
            del found.documents[record_id]
            found.cosines.pop(record_id, None)
            found.keywords.pop(record_id, None)


def _source_fields(source: Document) -> Document:
    """A record of `sources` as the fields of `StoredSource`."""
    names = ("collection", "source", "title", "chunks", "content_hash", "stored_at")
    return {"document_id": source["_id"], **{name: source[name] for name in names}}


class AtlasContents:
    """`Contents` in GridFS. It needs neither an index nor an embedding model.

    Args:
        uri: Connection string.
        database: Name of the database.
        names: What the store's collections are called, by the store's own names for them.
    """

    def __init__(self, uri: str, database: str, names: Mapping[str, str]) -> None:
        self._db = AtlasDatabase(uri, database, all_names(names), CONTENT_CONNECTIONS, OPERATION_SECONDS)

    async def put(self, name: str, content: bytes | AsyncIterator[bytes]) -> None:
        check_content_name(name)
        async with self._db.explained(TRANSACTION_SECONDS):
            await self._db.connect()
            bucket = self._db.bucket()
            async with bucket.open_upload_stream(name) as stream:
                async for chunk in chunks_of(content):
                    await stream.write(chunk)
            # Two attempts may put the same at once: the newest is nobody's earlier one, so it always stays.
            files = self._db.collection("content_files").find({"filename": name}, {"_id": 1})
            async for one in files.sort([("uploadDate", -1), ("_id", -1)]).skip(1):
                await self._remove(one["_id"])

    async def get(self, name: str) -> bytes | None:
        check_content_name(name)
        async with self._db.explained(TRANSACTION_SECONDS):
            await self._db.connect()
            try:
                stream = await self._db.bucket().open_download_stream_by_name(name)
            except NoFile:
                return None
            return bytes(await stream.read())

    async def drop(self, name: str) -> None:
        check_content_name(name)
        async with self._db.explained():
            await self._db.connect()
            async for one in self._db.collection("content_files").find({"filename": name}, {"_id": 1}):
                await self._remove(one["_id"])

    async def purge(self, before: datetime) -> int:
        async with self._db.explained(TRANSACTION_SECONDS):
            await self._db.connect()
            files = self._db.collection("content_files")
            old = [one["_id"] async for one in files.find({"uploadDate": {"$lt": before}}, {"_id": 1})]
            for one in old:
                await self._remove(one)
            # What an upload left behind that was killed: pieces of no file.
            pieces = self._db.collection("content_chunks")
            begun = await pieces.distinct("files_id", {"files_id": {"$lt": ObjectId.from_datetime(before)}})
            whole = {one["_id"] async for one in files.find({"_id": {"$in": begun}}, {"_id": 1})}
            await pieces.delete_many({"files_id": {"$in": [one for one in begun if one not in whole]}})
            return len(old)

    async def _remove(self, file_id: ObjectId) -> None:
        # Another process may be faster.
        with contextlib.suppress(NoFile):
            await self._db.bucket().delete(file_id)

    async def close(self) -> None:
        await self._db.close()
