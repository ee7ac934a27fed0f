"""The Atlas store: MongoDB Atlas, or its local image, through motor.

Every write is one upsert, or one transaction where several records change together, acknowledged by a majority; reads
come from the primary. Atlas Search's indexes follow the collections about a second behind, so each search also looks at
the user's newest records (`atlas_search.Query.add_recent`).
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from weakref import WeakValueDictionary

# motor's threads are what its connections are used from; it reads this when it is imported.
os.environ.setdefault("MOTOR_MAX_WORKERS", "64")

import pymongo
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from motor.motor_asyncio import (
    AsyncIOMotorClient,
    AsyncIOMotorClientSession,
    AsyncIOMotorCollection,
    AsyncIOMotorDatabase,
)
from pymongo import ReadPreference, ReturnDocument
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
)
from pymongo.operations import IndexModel, SearchIndexModel
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern
from temporalio.exceptions import ApplicationError

from activities.errors import failure
from activities.models import (
    DEFAULT_COLLECTION,
    EMBEDDED,
    CacheEntry,
    CacheMatch,
    Chunk,
    ContextMessage,
    DocumentQuery,
    EmbeddingModel,
    ExternalCollection,
    FormedMemory,
    MemoryNode,
    MemoryQuery,
    Message,
    Recollection,
    RecordEmbedding,
    RecordText,
    Reembedding,
    RelatedMessage,
    SearchHit,
    SimilarMemory,
)
from activities.store.atlas_indexes import (
    REBUILDING,
    REGULAR_INDEXES,
    TEXT_INDEX,
    VECTOR_INDEX,
    IndexReport,
    Quantization,
    compare_external,
    compare_regular,
    compare_search,
    search_indexes,
    vector_field,
)
from activities.store.atlas_search import Document, Found, Query, Target, dot, mql
from activities.store.base import ACCESSES_KEPT, NEIGHBOURS, mismatch, not_reembedding
from activities.store.filters import Condition, Node, fields_of, parse_filter
from activities.store.likeness import numbers_in
from activities.store.vectors import searchable

logger = logging.getLogger(__name__)

T = TypeVar("T")
Session = AsyncIOMotorClientSession
Collection = AsyncIOMotorCollection[Document]

COLLECTIONS = tuple(EMBEDDED)

SELECTION_SECONDS = 5.0
"""How long the driver looks for the primary: less than an attempt of an activity may take."""
OPERATION_SECONDS = 10.0
"""How long one command may take, the wait for a connection included."""
BULK_SECONDS = 300.0
"""The same for what goes over many records."""
CONFLICT_SECONDS = 8.0
"""How long a transaction that met another one is tried again before Temporal does."""
POLL_SECONDS = 0.5
RECENT_SECONDS = 60.0
"""For how long a record is looked at besides the search indexes, which usually hold it within one or two."""
RECENT_RECORDS = 100
MAX_FILTERED = 10_000
"""The most records of a user that a metadata filter may leave to search in."""
VERDICT_SECONDS = 30.0
"""How long an empty search takes the word of the last look at the indexes."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FLOAT32 = b"\x27\x00"
"""How a packed vector of float32 begins in BSON's vector subtype."""
_VECTOR_SUBTYPE = 9
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

_PASSING = frozenset({6, 7, 24, 50, 64, 89, 91, 112, 189, 202, 211, 246, 251, 262, 317, 358, 9001})
"""Codes of errors that pass by themselves, besides those of a node that isn't primary: MongoDB's error_codes.yml."""
_NOT_PRIMARY = frozenset({10058, 10107, 11600, 11602, 13435, 13436})


class _ConflictError(Exception):
    """Two transactions met: this one is tried again."""


class _StaleError(Exception):
    """What a transaction was to act on has changed since it was read: it is read again."""


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND


def _binary(vector: bytes) -> Binary:
    return Binary(_FLOAT32 + vector, _VECTOR_SUBTYPE)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _model_of(recorded: Document) -> EmbeddingModel:
    return EmbeddingModel(model_id=recorded["model_id"], dimensions=recorded["dimensions"])


def _jsonable(value: Any) -> Any:
    """A value of somebody else's record as JSON."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return None if isinstance(value, bytes) else str(value)


def _at(record: Document, path: str) -> Any:
    """What is at a dotted path; None where nothing is."""
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


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
        self._uri = uri
        self._database = database
        self._quantization = quantization
        self._external = {one.name: one for one in external}
        self._pool_size = pool_size
        self._timeout = timeout
        self._names = dict.fromkeys(COLLECTIONS, "") | {name: name for name in COLLECTIONS} | dict(names or {})
        self._names |= {
            "sources": f"{self._names['documents']}_sources",
            "users": f"{self._names['memory_nodes']}_users",
            "models": "durable_context_models",
        }
        self._client: AsyncIOMotorClient[Document] | None = None
        self._model: EmbeddingModel | None = None
        self._rank_fusion = False
        self._version = ""
        self._last_moment = 0
        self._indexes_seen = 0.0
        self._forming: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # Connecting

    async def open(self, model: EmbeddingModel) -> None:
        try:
            async with self._explained():
                await self._connect()
                for recorded in await self._recorded():
                    if (filler := _model_of(recorded)) != model and await self._holds_records(recorded["collection"]):
                        raise mismatch(recorded["collection"], filler, model)
                await self._verify(await self._reports(model))
                await self._adopt(model)
        except BaseException:
            await self.close()
            raise
        self._model = model

    async def _connect(self) -> AsyncIOMotorDatabase[Document]:
        """Reach the server; a first time also see what it can do."""
        if self._client is None:
            loop = asyncio.get_running_loop()
            # In a thread: the addresses behind mongodb+srv:// are looked up there and then.
            client: AsyncIOMotorClient[Document] = await asyncio.to_thread(
                AsyncIOMotorClient, self._uri, io_loop=loop, **self._options()
            )
            try:
                info = await client.admin.command("buildInfo")
            except BaseException:
                client.close()
                raise
            self._version = str(info["version"])
            self._rank_fusion = int(self._version.split(".")[0]) >= 8
            self._client = client
        return self._db()

    def _options(self) -> dict[str, Any]:
        """Options of the driver: durability as this store promises it; the rest where the URI doesn't say it."""
        given = self._uri.partition("?")[2].lower()
        defaults: dict[str, Any] = {
            "appname": "durable-context",
            "serverSelectionTimeoutMS": round(SELECTION_SECONDS * 1000),
            "connectTimeoutMS": round(SELECTION_SECONDS * 1000),
            "timeoutMS": round(self._timeout * 1000),
            "maxPoolSize": self._pool_size,
        }
        hosts = self._uri.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0].split(",")
        local = all(host.rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK for host in hosts)
        if self._uri.startswith("mongodb://") and not local and "ssl=" not in given:
            defaults["tls"] = True
        chosen = {name: value for name, value in defaults.items() if f"{name.lower()}=" not in given}
        # Temporal retries; everything here may be done twice.
        return chosen | {"retryWrites": False, "retryReads": False, "tz_aware": True, "w": "majority"}

    def _db(self) -> AsyncIOMotorDatabase[Document]:
        if self._client is None:
            raise failure("unavailable", "the store isn't open")
        return self._client.get_database(
            self._database,
            codec_options=CodecOptions(tz_aware=True),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )

    def _collection(self, name: str) -> Collection:
        return self._db()[self._names[name]]

    @property
    def _opened_with(self) -> EmbeddingModel:
        if self._model is None or self._client is None:
            raise failure("unavailable", "the store isn't open")
        return self._model

    @property
    def _vector_field(self) -> str:
        return vector_field(self._opened_with)

    async def close(self) -> None:
        client, self._client, self._model = self._client, None, None
        if client is not None:
            client.close()

    async def ping(self) -> str:
        _ = self._opened_with
        async with self._explained():
            await self._db().command("ping")
        hosts = self._uri.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0]
        return f"MongoDB {self._version} with Atlas Search, {hosts}/{self._database}"

    @contextlib.asynccontextmanager
    async def _explained(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Errors of the driver leave the block as failures in our own words.

        The driver's and the server's may hold the records' contents and the URI's secrets, and would go into workflow
        histories with them.

        Args:
            seconds: How long each command of the block may take, where that is longer than usual.
        """
        try:
            with pymongo.timeout(seconds) if seconds else contextlib.nullcontext():
                yield
        except (PyMongoError, BSONError, UnicodeEncodeError, OverflowError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> ApplicationError:
        """What an error of the driver means to the tool's caller."""
        text = str(error)
        code = error.code if isinstance(error, OperationFailure) else None
        if isinstance(error, BulkWriteError):
            code = next((one.get("code") for one in (error.details or {}).get("writeErrors", [])), None)
        match error:
            case InvalidURI():
                return failure(
                    "not_configured",
                    "MONGODB_URI isn't a connection string: copy it from Atlas (Connect, Drivers), and percent-encode "
                    "special characters of its user and password.",
                )
            case ConfigurationError():
                return self._explain_configuration(text)
            case DocumentTooLarge():
                return failure("rejected", "the record is too large: MongoDB takes 16 MB with everything in it")
            case UnicodeEncodeError():
                return failure("rejected", "the text holds a lone surrogate, which isn't valid Unicode")
            case OverflowError():
                return failure("rejected", "an integer doesn't fit into the 64 bits that the store keeps")
            case BSONError():
                if "utf-8" in text.lower() or "surrogate" in text.lower():
                    return failure("rejected", "the text holds a lone surrogate, which isn't valid Unicode")
                return failure(
                    "rejected", "the record holds something that MongoDB can't keep: see its metadata's names"
                )
            case WaitQueueTimeoutError():
                return failure(
                    "unavailable",
                    f"all {self._pool_size} connections to Atlas are in use; the call is retried. If it happens often, "
                    "run more workers, or raise maxPoolSize in MONGODB_URI.",
                )
            case ConnectionFailure() if code is None:
                return self._explain_connection(text)
            case ExecutionTimeout():
                return failure("unavailable", "Atlas took too long over a command; the call is retried")
            case InvalidOperation():
                return failure("unavailable", "the store isn't open")
        if code == 11000:
            return failure("rejected", "the record's id already belongs to another record")
        if code in _NOT_PRIMARY or error.has_error_label("RetryableWriteError"):  # type: ignore[attr-defined]
            return failure("unavailable", "Atlas is electing another primary; the call is retried")
        return self._explain_refusal(code, text, error)

    def _explain_refusal(self, code: int | None, text: str, error: Exception) -> ApplicationError:
        """What it means that the server took a command and refused it."""
        lower = text.lower()
        if code == 18 or (code == 8000 and "auth" in lower):
            return failure(
                "access_denied",
                "Atlas refused the user or the password of MONGODB_URI: check both under Database Access, and "
                "percent-encode special characters.",
            )
        if code == 13 or code == 8000:
            return failure(
                "access_denied",
                f"the user of MONGODB_URI may not do this in database {self._database}: give it the role readWrite "
                "there under Database Access, and for `durable-context index` also dbAdmin.",
            )
        if code in (31082, 59, 40324) or "searchnotenabled" in lower or code == 31083:
            return failure(
                "not_configured",
                "the server behind MONGODB_URI has no Atlas Search: use MongoDB Atlas (flex or dedicated) or the image "
                "mongodb/mongodb-atlas-local.",
            )
        if "maximum number" in lower and "index" in lower:
            return failure(
                "not_configured",
                "this Atlas cluster allows no more search indexes. The store needs six: use a flex or dedicated "
                "cluster, or drop other search indexes.",
            )
        if ("indexed" in lower and ("dimensions" in lower or "needs to be" in lower)) or code == 27:
            return failure(
                "not_configured",
                "a search index doesn't fit this version or the embedding model: run `durable-context index --check`, "
                "then `durable-context index`.",
            )
        if code == 10334 or code == 17280 or "bsonobjecttoolarge" in lower or "object to insert too large" in lower:
            return failure("rejected", "the record is too large: MongoDB takes 16 MB with everything in it")
        if code in _PASSING or error.has_error_label("TransientTransactionError"):  # type: ignore[attr-defined]
            return failure("unavailable", "Atlas couldn't do it just now; the call is retried")
        name = (getattr(error, "details", None) or {}).get("codeName", type(error).__name__)
        logger.debug("Atlas refused a command: %s", name, exc_info=True)
        return failure("rejected", f"Atlas refused the command ({name}, code {code}).")

    @staticmethod
    def _explain_configuration(text: str) -> ApplicationError:
        lower = text.lower()
        if "does not exist" in lower or "nxdomain" in lower:
            return failure(
                "not_configured",
                "the host of MONGODB_URI isn't known to DNS: check its spelling, and in Atlas that the cluster exists "
                "and isn't paused.",
            )
        if "resolution lifetime" in lower or "nameserver" in lower or "timed out" in lower:
            return failure("unavailable", "the host of MONGODB_URI can't be looked up: DNS doesn't answer")
        return failure(
            "not_configured", "MONGODB_URI has options that can't be used: copy it anew from Atlas (Connect, Drivers)."
        )

    @staticmethod
    def _explain_connection(text: str) -> ApplicationError:
        """What it means that no server could be reached, or that a connection broke."""
        lower = text.lower()
        if "authentication failed" in lower or "bad auth" in lower:
            return failure("access_denied", "Atlas refused the user or the password of MONGODB_URI: check both.")
        if "tlsv1 alert internal error" in lower or "tlsv1_alert_internal_error" in lower:
            return failure(
                "unavailable",
                "Atlas closes the connection: this machine's IP address isn't in the project's IP access list (Atlas, "
                "Network Access).",
            )
        if "certificate verify failed" in lower:
            return failure(
                "unavailable",
                "the certificate of the server behind MONGODB_URI can't be verified: check the host, this machine's "
                "clock and its CA certificates (tlsCAFile).",
            )
        if "ssl" in lower or "tls" in lower:
            return failure(
                "unavailable",
                "the TLS handshake with the server behind MONGODB_URI fails: Atlas needs TLS; add tls=false only for a "
                "server without it.",
            )
        if "name or service not known" in lower or "nodename nor servname" in lower or "getaddrinfo" in lower:
            return failure(
                "unavailable",
                "the host of MONGODB_URI isn't known to DNS: check its spelling, and in Atlas that the cluster exists "
                "and isn't paused.",
            )
        if "no replica set members" in lower or "primary" in lower or "not primary" in lower:
            return failure("unavailable", "Atlas has no primary just now (an election, or maintenance)")
        if "connection refused" in lower:
            return failure("unavailable", "nothing listens at the host and port of MONGODB_URI")
        if "closed" in lower or "reset" in lower or "broken pipe" in lower:
            return failure("unavailable", "the connection to Atlas broke; the call is retried")
        return failure(
            "unavailable",
            "no server behind MONGODB_URI answers: check that the cluster isn't paused or still resuming (Atlas, "
            "Database), that this machine's IP address is in the access list (Network Access), and that its firewall "
            "lets TCP 27015-27017 out.",
        )

    async def _transact(self, work: Callable[[Session], Awaitable[T]], seconds: float | None = None) -> T:
        """Run `work` in one transaction: it happens as a whole or not at all. One that meets another is tried again.

        Args:
            work: What to do; it may be run several times, and raise `_ConflictError` to be.
            seconds: How long each command may take, where that is longer than usual.
        """
        deadline = time.monotonic() + CONFLICT_SECONDS
        attempt = 0
        while True:
            try:
                async with self._explained(seconds):
                    self._db()
                    assert self._client is not None
                    async with await self._client.start_session() as session:
                        try:
                            async with session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority")):
                                return await work(session)
                        except OperationFailure as error:
                            if not error.has_error_label("TransientTransactionError") or error.code in _NOT_PRIMARY:
                                raise
                            raise _ConflictError from None
            except _ConflictError:
                if time.monotonic() > deadline:
                    raise failure("unavailable", "others are changing the same records; the call is retried") from None
            attempt += 1
            await asyncio.sleep(random.uniform(0, min(0.25, 0.01 * 2**attempt)))

    # Indexes

    def collection_name(self, name: str) -> str:
        """What a collection that an index report names is called in the database."""
        return self._names.get(name, name)

    async def reports(self, model: EmbeddingModel) -> list[IndexReport]:
        """How each index that the store needs for `model` stands, those of the declared collections included."""
        async with self._explained():
            await self._connect()
            return await self._reports(model)

    async def build_indexes(self, model: EmbeddingModel, on_change: Callable[[list[IndexReport]], None]) -> None:
        """Create what is missing, mend what differs, and wait until every index of the store's own can be queried.

        Args:
            model: Whose vectors the indexes are to hold, besides those of the model that fills the collections.
            on_change: Told how all of them stand, again and again until all are ready.

        Raises:
            ApplicationError: `not_configured` where Atlas can't build one.
        """
        async with self._explained():
            db = await self._connect()
            there = set(await db.list_collection_names())
            for name in self._names.values():
                if name not in there:
                    with contextlib.suppress(pymongo.errors.CollectionInvalid):
                        await db.create_collection(name)
        while True:
            async with self._explained():
                reports = await self._reports(model)
            on_change(reports)
            own = [report for report in reports if report.index.collection in self._names]
            for report in own:
                await self._mend(report)
            if all(report.state == "ready" for report in own):
                async with self._explained(BULK_SECONDS):
                    await self._forget_previous()
                return
            if not any(report.state in ("missing", "differs") for report in own):
                await asyncio.sleep(POLL_SECONDS)

    async def _mend(self, report: IndexReport) -> None:
        """Create or change one index; a search index is built in the background."""
        index, collection = report.index, self._collection(report.index.collection)
        if report.state == "failed":
            raise failure(
                "not_configured",
                f"Atlas can't build the index {index.name} of {self._names[index.collection]}: "
                f"{report.detail or 'no reason given'}",
            )
        if report.state not in ("missing", "differs"):
            return
        async with self._explained(BULK_SECONDS):
            if index.kind == "regular":
                if report.state == "differs":
                    await collection.drop_index(index.name)
                options = {name: value for name, value in index.definition.items() if name != "key"}
                await collection.create_indexes([IndexModel(list(index.definition["key"].items()), **options)])
            elif report.state == "missing":
                model = SearchIndexModel(index.definition, index.name, index.kind)
                try:
                    await collection.create_search_indexes([model])
                except OperationFailure as error:
                    # Another process was faster; what it made is looked at next.
                    if error.code != 68:
                        raise
            elif report.detail.startswith("it is a "):
                await collection.drop_search_index(index.name)
            else:
                await collection.update_search_index(index.name, index.definition)

    async def _reports(self, model: EmbeddingModel) -> list[IndexReport]:
        models = dict.fromkeys([vector_field(model)], model)
        for recorded in await self._recorded():
            for one in (recorded, recorded.get("next")):
                if one:
                    models.setdefault(vector_field(_model_of(one)), _model_of(one))
        wanted = [*REGULAR_INDEXES, *search_indexes(models.values(), self._quantization)]
        collections = dict.fromkeys(index.collection for index in wanted)
        regular, searching = await asyncio.gather(
            asyncio.gather(*(self._regular_indexes(self._collection(name)) for name in collections)),
            asyncio.gather(*(self._search_indexes(self._collection(name)) for name in collections)),
        )
        regular_of, searching_of = (
            dict(zip(collections, regular, strict=True)),
            dict(zip(collections, searching, strict=True)),
        )
        reports = [
            compare_regular(index, regular_of[index.collection].get(index.name))
            if index.kind == "regular"
            else compare_search(index, searching_of[index.collection].get(index.name))
            for index in wanted
        ]
        for external in self._external.values():
            there = await self._search_indexes(self._external_collection(external))
            reports.append(compare_external(external.name, external.vector_index, "vectorSearch", there))
            reports.append(compare_external(external.name, external.text_index, "search", there))
        return reports

    @staticmethod
    async def _regular_indexes(collection: Collection) -> dict[str, Document]:
        return {one["name"]: dict(one) async for one in collection.list_indexes()}

    @staticmethod
    async def _search_indexes(collection: Collection) -> dict[str, Document]:
        try:
            return {one["name"]: one async for one in collection.aggregate([{"$listSearchIndexes": {}}])}
        except OperationFailure as error:
            # Before its first record, a collection doesn't exist.
            if error.code == 26:
                return {}
            raise

    async def _verify(self, reports: Sequence[IndexReport]) -> None:
        """Refuse to work without the indexes, and say how to get them."""
        own = [report for report in reports if report.index.collection in self._names]
        missing = sorted({self._names[report.index.collection] for report in own if report.state == "missing"})
        if missing:
            raise failure(
                "not_configured",
                f"indexes are missing in the Atlas database {self._database} ({', '.join(missing)}): run "
                "`durable-context index` once.",
            )
        # An index that is being rebuilt answers with its old definition meanwhile.
        unqueryable = [
            report for report in own if report.state in ("building", "failed") and report.detail != REBUILDING
        ]
        if unqueryable:
            raise failure(
                "unavailable",
                f"Atlas is still building the index {unqueryable[0].index.name} of "
                f"{self._names[unqueryable[0].index.collection]} ({unqueryable[0].detail}); `durable-context index` "
                "shows how far it is",
            )
        for report in reports:
            if report.state != "ready":
                logger.warning(
                    "index %s of %s: %s %s; `durable-context index --check` says more",
                    report.index.name,
                    self._names.get(report.index.collection, report.index.collection),
                    report.state,
                    report.detail,
                )
        self._indexes_seen = time.monotonic()

    async def _check_emptiness(self) -> None:
        """Where a search finds nothing, make sure that there are indexes: Atlas doesn't say that one is missing."""
        if time.monotonic() - self._indexes_seen > VERDICT_SECONDS:
            await self._verify(await self._reports(self._opened_with))

    # Which model fills the collections

    async def _recorded(self) -> list[Document]:
        """The records of the collections' models, each with the store's own name of its collection."""
        names = {self._names[name]: name for name in COLLECTIONS}
        return [
            recorded | {"collection": names[recorded["_id"]]}
            async for recorded in self._collection("models").find({"_id": {"$in": list(names)}}).sort("_id", 1)
        ]

    async def _holds_records(self, collection: str) -> bool:
        return await self._collection(collection).find_one({}, {"_id": 1}) is not None

    async def _adopt(self, model: EmbeddingModel) -> None:
        """Record that `model` fills the collections; those without records take any."""
        models = self._collection("models")
        for name in COLLECTIONS:
            known: Document = {"_id": self._names[name]}
            recorded: Document | None
            try:
                recorded = await models.find_one_and_update(
                    known, {"$setOnInsert": model.model_dump()}, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                recorded = await models.find_one(known)
            if recorded is not None and _model_of(recorded) != model:
                if await self._holds_records(name):
                    raise mismatch(name, _model_of(recorded), model)
                await models.replace_one(known | _model_of(recorded).model_dump(), known | model.model_dump())

    async def _filled(self, collection: str, session: Session | None = None) -> Document:
        """Make sure that no other model has taken over; answer the fields of a record that say whose vector it has.

        Returns:
            `embedded_by`, and `awaits` where the collections are moving to another model.
        """
        model = self._opened_with
        recorded = await self._collection("models").find_one({"_id": self._names[collection]}, session=session)
        if recorded is not None and _model_of(recorded) != model:
            raise mismatch(collection, _model_of(recorded), model)
        fields: Document = {"embedded_by": [vector_field(model)]}
        if recorded and recorded.get("next"):
            fields["awaits"] = vector_field(_model_of(recorded["next"]))
        return fields

    def _vector(self, embedding: bytes) -> Document:
        """The field with an embedding; none for one of zeros, whose cosine with anything is undefined."""
        vector = searchable(embedding, self._opened_with)
        return {} if vector is None else {self._vector_field: _binary(vector)}

    def _query_vector(self, embedding: bytes) -> tuple[Binary | None, Callable[[Document], float | None]]:
        """An embedding as a query, and what gives the exact cosine of a record with it."""
        vector = searchable(embedding, self._opened_with)
        if vector is None:
            return None, lambda record: None
        mine, field = array("f", vector), self._vector_field

        def cosine(record: Document) -> float | None:
            theirs = record.get(field)
            return None if theirs is None else dot(mine, array("f", bytes(theirs)[len(_FLOAT32) :]))

        return _binary(vector), cosine

    def _now(self) -> int:
        """Microseconds since 1970, later than the last ones: the order of storing."""
        self._last_moment = max(self._last_moment + 1, time.time_ns() // 1000)
        return self._last_moment

    # Search

    async def _search(
        self, name: str, query: Query, cosine: Callable[[Document], float | None], conditions: Document | None = None
    ) -> tuple[list[tuple[Any, float]], Found]:
        """Run a hybrid search; answer ids with fused scores, and what was found.

        Args:
            name: Of the collection.
            cosine: Of a record with the query.
            conditions: What the newest records must meet too, as the query's `ids` or `filter` say it.
        """
        collection = self._collection(name)
        pipeline = query.pipeline(rank_fusion=self._rank_fusion)
        since = {"changed_at": {"$gte": datetime.now(UTC) - timedelta(seconds=RECENT_SECONDS)}}
        newest = collection.find({**query.target.share, **since, **(conditions or {})}).sort("changed_at", -1)
        try:
            rows, recent, _ = await asyncio.gather(
                collection.aggregate(pipeline).to_list(None) if pipeline else _nothing(),
                newest.limit(RECENT_RECORDS).to_list(None),
                self._filled(name),
            )
        except OperationFailure:
            # Another model may have taken over, and the indexes have dropped the vectors of this one.
            await self._filled(name)
            raise
        found = query.read(rows)
        late = query.unseen(found, recent)
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
        ranked = query.fused(found)
        if partial := [one for one, _ in ranked if found.documents[one].get("partial")]:
            async for document in collection.find({"_id": {"$in": partial}, **query.target.share}):
                found.documents[document["_id"]] = document
        return [(one, score) for one, score in ranked if not found.documents[one].get("partial")], found

    def _target(self, name: str, share: Mapping[str, str]) -> Target:
        text_index = TEXT_INDEX if name in ("documents", "conversations") else None
        return Target(self._names[name], "text", self._vector_field, text_index, VECTOR_INDEX, share)

    # Documents

    async def source_hash(self, user_id: str, collection: str, source: str) -> str | None:
        _ = self._opened_with
        async with self._explained():
            found = await self._collection("sources").find_one({"_id": _digest(user_id, collection, source)})
        return str(found["content_hash"]) if found else None

    async def replace_source(self, user_id: str, collection: str, source: str, chunks: list[Chunk]) -> None:
        if collection in self._external:
            raise failure("rejected", f"collection '{collection}' is declared in EXTERNAL_COLLECTIONS: it is only read")
        if any((chunk.user_id, chunk.collection, chunk.source) != (user_id, collection, source) for chunk in chunks):
            raise failure("rejected", "each chunk must belong to the user, collection and source that are replaced")
        share = {"user_id": user_id, "collection": collection, "source": source}
        key = {"_id": _digest(user_id, collection, source)}
        records = [
            {
                "_id": chunk.chunk_id,
                **chunk.model_dump(exclude={"chunk_id", "embedding", "metadata"}),
                "metadata": _metadata(chunk),
                **self._vector(chunk.embedding),
            }
            for chunk in chunks
        ]

        async def work(session: Session) -> None:
            sources, documents = self._collection("sources"), self._collection("documents")
            filled = await self._filled("documents", session)
            changes = {**share, "content_hash": chunks[0].content_hash if chunks else "", "chunks": len(chunks)}
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
            else:
                await sources.delete_one(key, session=session)

        await self._transact(work, BULK_SECONDS)

    async def collections(self, user_id: str) -> list[str]:
        _ = self._opened_with
        async with self._explained():
            return sorted(await self._collection("sources").distinct("collection", {"user_id": user_id}))

    async def search_documents(self, query: DocumentQuery) -> list[SearchHit]:
        node = parse_filter(query.filter) if query.filter else None
        if query.collection in self._external:
            return await self._search_external(self._external[query.collection], query, node)
        share = {"user_id": query.user_id, "collection": query.collection}
        vector, cosine = self._query_vector(query.embedding)
        async with self._explained():
            await self._known_collection(query.user_id, query.collection)
            ids = None if node is None else await self._filtered(share, node)
            hybrid = Query(self._target("documents", share), query.query, vector, query.limit, query.weight, ids=ids)
            if ids == []:
                return []
            conditions = None if node is None else {"$and": [mql(node, "metadata.")]}
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
        sources = self._collection("sources")
        if await sources.find_one({"user_id": user_id, "collection": collection}, {"_id": 1}) is None:
            names = sorted([*await sources.distinct("collection", {"user_id": user_id}), *self._external])
            theirs = f"theirs are: {', '.join(names)}" if names else "they have none"
            raise failure("rejected", f"collection '{collection}' doesn't exist for this user; {theirs}")

    async def _filtered(self, share: Mapping[str, str], node: Node) -> list[str]:
        """Ids of the records of `share` that meet a filter.

        Vector indexes filter only by fields that they were built with, and metadata may hold any: MongoDB's own query
        finds the records first, and both legs then search among their ids.
        """
        matching = self._collection("documents").find({**share, "$and": [mql(node, "metadata.")]}, {"_id": 1})
        ids = [str(one["_id"]) async for one in matching.limit(MAX_FILTERED + 1)]
        if len(ids) > MAX_FILTERED:
            raise failure(
                "over_limit",
                f"filter: more than {MAX_FILTERED} chunks meet it, too many to search among; narrow it or leave it out",
            )
        return ids

    def _external_collection(self, external: ExternalCollection) -> Collection:
        self._db()
        assert self._client is not None
        database, _, name = external.name.partition(".")
        return self._client.get_database(
            database, codec_options=CodecOptions(tz_aware=True), read_preference=ReadPreference.PRIMARY
        )[name]

    async def _search_external(
        self, external: ExternalCollection, query: DocumentQuery, node: Node | None
    ) -> list[SearchHit]:
        """Search a declared collection, with the user's share of it as part of the search."""
        if node is not None and (unknown := sorted(fields_of(node) - set(external.filter_fields))):
            allowed = ", ".join(external.filter_fields) or "none"
            raise failure(
                "rejected", f"filter: field '{unknown[0]}' of {external.name} can't be filtered by; allowed: {allowed}"
            )
        vector, _ = self._query_vector(query.embedding)
        share = {external.user_field: query.user_id} if external.user_field else {}
        target = Target(
            external.name.partition(".")[2],
            external.text_field,
            external.vector_field,
            external.text_index,
            external.vector_index,
            share,
            ordered=False,
        )
        hybrid = Query(target, query.query, vector, query.limit, query.weight, filter=node)
        async with self._explained():
            collection = self._external_collection(external)
            pipeline = hybrid.pipeline(rank_fusion=self._rank_fusion)
            found = hybrid.read(await collection.aggregate(pipeline).to_list(None) if pipeline else [])
            if not found.documents:
                await self._check_external(external)
            ranked = hybrid.fused(found)
            if partial := [one for one, _ in ranked if found.documents[one].get("partial")]:
                async for document in collection.find({"_id": {"$in": partial}, **share}):
                    found.documents[document["_id"]] = document
        hidden = {external.text_field, external.vector_field, external.user_field, "_id"}
        return [
            SearchHit(
                id=str(record_id),
                text=str(_at(found.documents[record_id], external.text_field) or ""),
                score=score,
                vector_score=found.cosines.get(record_id),
                text_score=found.keywords.get(record_id),
                metadata={
                    name: _jsonable(value) for name, value in found.documents[record_id].items() if name not in hidden
                },
            )
            for record_id, score in ranked
            if not found.documents[record_id].get("partial")
        ]

    async def _check_external(self, external: ExternalCollection) -> None:
        """Where a search of a declared collection finds nothing, say so if it has no such index."""
        there = await self._search_indexes(self._external_collection(external))
        for name in (external.vector_index, external.text_index):
            if name not in there:
                raise failure(
                    "not_configured",
                    f"{external.name} has no search index '{name}': check EXTERNAL_COLLECTIONS, or create it in Atlas.",
                )

    # Conversations

    async def put_message(self, message: Message) -> None:
        record = {
            "_id": message.message_id,
            **message.model_dump(exclude={"message_id", "embedding"}),
            "timestamp_us": _micros(message.timestamp),
            **self._vector(message.embedding),
            "changed_at": datetime.now(UTC),
        }
        async with self._explained():
            record |= await self._filled("conversations")
            await self._collection("conversations").update_one(
                {"_id": message.message_id, "user_id": message.user_id},
                # A message that is stored again keeps its place in the order of storing.
                [
                    {
                        "$replaceWith": {
                            "$mergeObjects": [
                                {"$literal": record},
                                {"stored_at": {"$ifNull": ["$stored_at", self._now()]}},
                            ]
                        }
                    }
                ],
                upsert=True,
            )

    # Memories

    async def form_memory(self, node: MemoryNode, threshold: float) -> FormedMemory:
        if not node.source_messages:
            raise failure("rejected", "a memory needs at least one source message")
        vector, cosine = self._query_vector(node.embedding)
        _ = self._opened_with
        # Of the calls in this process one at a time: the others would only undo each other's work.
        lock = self._forming.setdefault(node.user_id, asyncio.Lock())
        async with lock:
            deadline = time.monotonic() + CONFLICT_SECONDS
            while True:
                try:
                    return await self._form_memory(node, threshold, vector, cosine)
                except _StaleError:
                    if time.monotonic() > deadline:
                        raise failure(
                            "unavailable", "others are forming memories of this user; the call is retried"
                        ) from None
                    await asyncio.sleep(random.uniform(0, 0.05))

    async def _form_memory(
        self, node: MemoryNode, threshold: float, vector: Binary | None, cosine: Callable[[Document], float | None]
    ) -> FormedMemory:
        """Look for the nearest memory, and store or reinforce unless somebody else did so meanwhile.

        Raises:
            _StaleError: where somebody did.
        """
        memories, users = self._collection("memory_nodes"), self._collection("users")
        async with self._explained():
            head = await users.find_one({"_id": node.user_id})
            sources = {"sources.message_id": {"$in": node.source_messages}}
            formed: dict[str, tuple[str, bool]] = {
                source["message_id"]: (one["_id"], source["reinforced"])
                async for one in memories.find({"user_id": node.user_id, **sources}, {"sources": 1})
                for source in one["sources"]
            }
            for message_id in node.source_messages:
                if message_id in formed:
                    return FormedMemory(memory_id=formed[message_id][0], reinforced=formed[message_id][1])
            nearest = await self._nearest("memory_nodes", node.user_id, vector, cosine, 1)
        same = [
            one["_id"]
            for one, similarity in nearest
            if similarity >= threshold and numbers_in(one["content"]) == numbers_in(node.content)
        ]
        added = [
            {"message_id": message_id, "reinforced": bool(same)} for message_id in dict.fromkeys(node.source_messages)
        ]

        async def work(session: Session) -> FormedMemory:
            filled = await self._filled("memory_nodes", session)
            try:
                # Searches aren't part of transactions: this makes sure that nobody has formed a memory since.
                moved = await users.update_one(
                    {"_id": node.user_id, "formed": head["formed"] if head else 0},
                    {"$inc": {"formed": 1}},
                    upsert=head is None,
                    session=session,
                )
            except DuplicateKeyError:
                raise _StaleError from None
            if not moved.matched_count and moved.upserted_id is None:
                raise _StaleError
            if same:
                reinforced = await memories.update_one(
                    {"_id": same[0], "user_id": node.user_id},
                    [
                        {
                            "$set": {
                                "access_count": {"$add": ["$access_count", 1]},
                                "importance": {
                                    "$add": [
                                        "$importance",
                                        {"$multiply": [{"$subtract": [1, "$importance"]}, node.importance / 2]},
                                    ]
                                },
                                "sources": {"$concatArrays": ["$sources", {"$literal": added}]},
                            }
                        }
                    ],
                    session=session,
                )
                if not reinforced.matched_count:
                    raise _StaleError
                return FormedMemory(memory_id=same[0], reinforced=True)
            record = {
                "_id": node.memory_id,
                **node.model_dump(exclude={"memory_id", "embedding", "source_messages"}),
                "created_at_us": _micros(node.created_at),
                "access_count": 0,
                "accesses": [],
                "sources": added,
                **self._vector(node.embedding),
                **filled,
                "changed_at": datetime.now(UTC),
            }
            await memories.insert_one(record, session=session)
            return FormedMemory(memory_id=node.memory_id, reinforced=False)

        return await self._transact(work)

    async def prune_memories(self, user_id: str, budget: int) -> int:
        _ = self._opened_with
        memories = self._collection("memory_nodes")
        strength = {"$multiply": ["$importance", {"$add": [1, {"$ln": {"$add": [1, "$access_count"]}}]}]}
        async with self._explained():
            if await memories.count_documents({"user_id": user_id}, limit=max(0, budget) + 1) <= max(0, budget):
                return 0
            weakest = memories.aggregate(
                [
                    {"$match": {"user_id": user_id}},
                    {"$project": {"strength": strength, "created_at_us": 1}},
                    {"$sort": {"strength": -1, "created_at_us": -1, "_id": -1}},
                    {"$skip": max(0, budget)},
                    {"$project": {"_id": 1}},
                ]
            )
            ids = [one["_id"] async for one in weakest]
            deleted = await memories.delete_many({"_id": {"$in": ids}, "user_id": user_id})
        return deleted.deleted_count

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
        conversations = Query(
            self._target("conversations", {"user_id": query.user_id}), query.text, vector, query.limit, 0.5
        )
        async with self._explained():
            (ranked, found), nearest = await asyncio.gather(
                self._search("conversations", conversations, cosine),
                self._nearest("memory_nodes", query.user_id, vector, cosine, query.limit),
            )
            messages = [(found.documents[message_id], score) for message_id, score in ranked]
            related, counts = await asyncio.gather(
                self._with_neighbours(query.user_id, messages),
                self._count_access(query.user_id, [one["_id"] for one, _ in nearest], query.retrieval_id),
            )
        similar = [
            SimilarMemory(
                memory_id=one["_id"],
                content=one["content"],
                summary=one["summary"],
                importance=one["importance"],
                access_count=counts.get(one["_id"], one["access_count"]),
                similarity=similarity,
                created_at=_moment(one["created_at_us"]),
                source_messages=[source["message_id"] for source in one["sources"]],
            )
            for one, similarity in nearest
        ]
        return Recollection(related_conversation=related, similar_memories=similar)

    async def _with_neighbours(self, user_id: str, messages: list[tuple[Document, float]]) -> list[RelatedMessage]:
        """Messages with their surroundings, which one aggregation reads for all of them."""
        if not messages:
            return []
        sides: list[list[Document]] = []
        for place, (message, _) in enumerate(messages):
            at, stored = message["timestamp_us"], message["stored_at"]
            for side, sign, order in (("before", "$lt", -1), ("after", "$gt", 1)):
                beyond = [{"timestamp_us": {sign: at}}, {"timestamp_us": at, "stored_at": {sign: stored}}]
                sides.append(
                    [
                        {
                            "$match": {
                                "user_id": user_id,
                                "conversation_id": message["conversation_id"],
                                "$or": beyond,
                            }
                        },
                        {"$sort": {"timestamp_us": order, "stored_at": order}},
                        {"$limit": NEIGHBOURS},
                        {
                            "$project": {
                                "message_type": 1,
                                "text": 1,
                                "timestamp_us": 1,
                                "place": {"$literal": place},
                                "side": side,
                            }
                        },
                    ]
                )
        first, *others = sides
        unions = [{"$unionWith": {"coll": self._names["conversations"], "pipeline": other}} for other in others]
        neighbours: dict[tuple[int, str], list[ContextMessage]] = {}
        async for one in self._collection("conversations").aggregate([*first, *unions]):
            neighbours.setdefault((one["place"], one["side"]), []).append(
                ContextMessage(
                    message_type=one["message_type"], text=one["text"], timestamp=_moment(one["timestamp_us"])
                )
            )
        return [
            RelatedMessage(
                message_id=message["_id"],
                conversation_id=message["conversation_id"],
                message_type=message["message_type"],
                text=message["text"],
                timestamp=_moment(message["timestamp_us"]),
                score=score,
                before=neighbours.get((place, "before"), [])[::-1],
                after=neighbours.get((place, "after"), []),
            )
            for place, (message, score) in enumerate(messages)
        ]

    async def _count_access(self, user_id: str, ids: list[str], retrieval_id: str) -> dict[str, int]:
        """Count one access to each memory unless this retrieval is counted already; answer the counts."""
        if not ids:
            return {}
        memories = self._collection("memory_nodes")
        await memories.update_many(
            {"_id": {"$in": ids}, "user_id": user_id, "accesses": {"$ne": retrieval_id}},
            {
                "$inc": {"access_count": 1},
                "$push": {"accesses": {"$each": [retrieval_id], "$slice": -ACCESSES_KEPT}},
            },
        )
        counted = memories.find({"_id": {"$in": ids}, "user_id": user_id}, {"access_count": 1})
        return {one["_id"]: one["access_count"] async for one in counted}

    # Semantic cache

    async def put_cache_entry(self, entry: CacheEntry) -> None:
        key = {"_id": _digest(entry.user_id, entry.query_hash)}
        record = {
            **key,
            **entry.model_dump(exclude={"embedding"}),
            "created_at_us": _micros(entry.created_at),
            "expires_at_us": _micros(entry.expires_at),
            **self._vector(entry.embedding),
            "changed_at": datetime.now(UTC),
        }
        async with self._explained():
            record |= await self._filled("cache")
            not_newer = {"created_at_us": {"$lte": record["created_at_us"]}}
            try:
                await self._collection("cache").replace_one({**key, **not_newer}, record, upsert=True)
            except DuplicateKeyError as error:
                # A newer answer is there, and stays; any other clash is with somebody else's entry.
                if list((error.details or {}).get("keyPattern", {})) != ["_id"]:
                    raise

    async def cached_answer(self, user_id: str, query_hash: str, now: datetime) -> CacheEntry | None:
        _ = self._opened_with
        valid = {"user_id": user_id, "expires_at_us": {"$gt": _micros(now)}}
        async with self._explained():
            found, _ = await asyncio.gather(
                self._collection("cache").find_one({"_id": _digest(user_id, query_hash), **valid}),
                self._filled("cache"),
            )
        return self._entry(found) if found else None

    async def nearest_cached(self, user_id: str, embedding: bytes, now: datetime) -> CacheMatch | None:
        vector, cosine = self._query_vector(embedding)
        valid = Condition("expires_at_us", "$gt", (_micros(now),))
        async with self._explained():
            nearest = await self._nearest("cache", user_id, vector, cosine, 1, valid)
        return CacheMatch(entry=self._entry(nearest[0][0]), similarity=nearest[0][1]) if nearest else None

    def _entry(self, found: Document) -> CacheEntry:
        model, vector = self._opened_with, found.get(self._vector_field)
        return CacheEntry(
            entry_id=found["entry_id"],
            user_id=found["user_id"],
            query=found["query"],
            query_hash=found["query_hash"],
            response=found["response"],
            created_at=_moment(found["created_at_us"]),
            expires_at=_moment(found["expires_at_us"]),
            embedding=bytes(4 * model.dimensions) if vector is None else bytes(vector)[len(_FLOAT32) :],
        )

    async def purge_expired(self, now: datetime) -> int:
        _ = self._opened_with
        # The date is cut to milliseconds, and has the index.
        expired = {"expires_at": {"$lte": now}, "expires_at_us": {"$lte": _micros(now)}}
        async with self._explained(BULK_SECONDS):
            return (await self._collection("cache").delete_many(expired)).deleted_count

    # Another embedding model

    async def begin_reembedding(self, model: EmbeddingModel) -> None:
        async with self._explained(BULK_SECONDS):
            await self._connect()
            recorded = await self._recorded()
            if not recorded:
                await self._adopt(model)
                return
            if all(_model_of(one) == model for one in recorded):
                return
            target = model.model_dump()
            models = self._collection("models")
            for one in recorded:
                abandoned = one.get("next")
                if abandoned == target:
                    continue
                await models.update_one({"_id": one["_id"]}, {"$set": {"next": target}})
                if abandoned:
                    await self._drop_vectors(one["collection"], abandoned)
            await self._mark(model)
        async with self._explained(BULK_SECONDS):
            for report in await self._reports(model):
                if report.index.collection in self._names and report.index.kind == "vectorSearch":
                    await self._mend(report)

    async def _mark(self, model: EmbeddingModel) -> None:
        """Mark every record that has no vector of `model` as waiting for one."""
        field = vector_field(model)
        for name in COLLECTIONS:
            waiting = {"embedded_by": {"$ne": field}, "awaits": {"$ne": field}}
            await self._collection(name).update_many(waiting, {"$set": {"awaits": field}})

    async def _filling(self, model: EmbeddingModel) -> EmbeddingModel:
        """The model that fills the collections: `model`, or the one that they move to `model` from.

        Raises:
            ApplicationError: `model_mismatch` where they don't.
        """
        await self._connect()
        recorded = await self._recorded()
        if recorded and all(model == _model_of(one) or one.get("next") == model.model_dump() for one in recorded):
            return next((_model_of(one) for one in recorded if _model_of(one) != model), model)
        target = next((_model_of(one["next"]) for one in recorded if one.get("next")), None)
        raise not_reembedding(model, target)

    async def texts_to_embed(self, model: EmbeddingModel, collection: str, limit: int) -> list[RecordText]:
        text = EMBEDDED[collection].field
        async with self._explained():
            await self._filling(model)
            waiting = self._collection(collection).find({"awaits": vector_field(model)}, {text: 1})
            return [RecordText(record_id=one["_id"], text=one[text]) async for one in waiting.limit(limit)]

    async def put_embeddings(self, model: EmbeddingModel, collection: str, embedded: list[RecordEmbedding]) -> None:
        field, text = vector_field(model), EMBEDDED[collection].field
        changes: list[pymongo.UpdateOne] = []
        for one in embedded:
            vector = searchable(one.embedding, model)
            change: Document = {"$addToSet": {"embedded_by": field}, "$unset": {"awaits": ""}}
            if vector is not None:
                change["$set"] = {field: _binary(vector)}
            changes.append(pymongo.UpdateOne({"_id": one.record_id, text: one.text, "awaits": field}, change))
        async with self._explained():
            await self._filling(model)
            if changes:
                await self._collection(collection).bulk_write(changes, ordered=False)

    async def reembedding_progress(self, model: EmbeddingModel) -> Reembedding:
        async with self._explained(BULK_SECONDS):
            now = await self._filling(model)
            records = sum([await self._collection(name).count_documents({}) for name in COLLECTIONS])
            waiting = {"awaits": vector_field(model)}
            left = sum([await self._collection(name).count_documents(waiting) for name in COLLECTIONS])
        return Reembedding(filled_by=now, records=records, embedded=records - left)

    async def finish_reembedding(self, model: EmbeddingModel) -> bool:
        async with self._explained(BULK_SECONDS):
            old = await self._filling(model)
            if old != model:
                await self._mark(model)
                if await self._any_waiting(model):
                    return False
                for report in await self._reports(model):
                    if report.index.kind == "vectorSearch" and report.state != "ready":
                        raise failure("unavailable", "Atlas is still building the vector indexes for the new model")
        if old != model:
            await self._transact(lambda session: self._switch(old, model, session))
        async with self._explained(BULK_SECONDS):
            # Whoever asked before the switch whether it may write, and wrote after it. The old vectors stay until
            # `build_indexes` is run: a search that began before the switch still finds all of them.
            await self._mark(model)
            return not await self._any_waiting(model)

    async def _any_waiting(self, model: EmbeddingModel) -> bool:
        waiting = {"awaits": vector_field(model)}
        return any([await self._collection(name).find_one(waiting, {"_id": 1}) for name in COLLECTIONS])

    async def _switch(self, old: EmbeddingModel, model: EmbeddingModel, session: Session) -> None:
        for name in COLLECTIONS:
            await self._collection("models").update_one(
                {"_id": self._names[name]},
                {"$set": model.model_dump(), "$unset": {"next": ""}, "$addToSet": {"previous": old.model_dump()}},
                session=session,
            )

    async def _drop_vectors(self, collection: str, model: Document) -> None:
        field = vector_field(_model_of(model))
        await self._collection(collection).update_many(
            {"embedded_by": field}, {"$unset": {field: ""}, "$pull": {"embedded_by": field}}
        )

    async def _forget_previous(self) -> None:
        """Remove the vectors of models that were used before; no search can be using them any more."""
        for one in await self._recorded():
            for previous in one.get("previous", []):
                if previous in (_model_of(one).model_dump(), one.get("next")):
                    continue
                await self._drop_vectors(one["collection"], previous)
                await self._collection("models").update_one({"_id": one["_id"]}, {"$pull": {"previous": previous}})


async def _nothing() -> list[Document]:
    return []


def _metadata(chunk: Chunk) -> Document:
    """A chunk's metadata as JSON has it, with the built-in fields, so that filters and results treat all alike."""
    fields = {**chunk.metadata, "source": chunk.source, "position": chunk.position}
    try:
        kept: Document = json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise failure("rejected", f"metadata of source '{chunk.source}' isn't JSON: {error}") from error
    return kept


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
