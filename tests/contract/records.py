"""What the store's contract tests share: the engines, and records of each kind to put into them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
import sqlite_vec
from temporalio.exceptions import ApplicationError

from activities.models import (
    DEFAULT_COLLECTION,
    CacheEntry,
    Chunk,
    DocumentQuery,
    EmbeddingModel,
    FormedMemory,
    MemoryNode,
    MemoryQuery,
    Message,
    SearchHit,
    pack_vector,
)
from activities.store.atlas import AtlasStore
from activities.store.base import Store
from activities.store.sqlite import SqliteStore

ENGINES = ["sqlite", "atlas"]
MODEL = EmbeddingModel(model_id="local.test", dimensions=4)
# Far from today: what has expired by the clock, MongoDB removes.
NOON = datetime(2125, 1, 1, 12, tzinfo=UTC)

EAST = pack_vector([1, 0, 0, 0])
NORTH = pack_vector([0, 1, 0, 0])
NORTH_EAST = pack_vector([1, 1, 0, 0])
WEST = pack_vector([-1, 0, 0, 0])
NOWHERE = pack_vector([0, 0, 0, 0])


@dataclass(frozen=True)
class Engine:
    """A place for records that each test has to itself."""

    name: str
    target: str

    def store(self) -> Store:
        """Another store, not yet open, on the same records."""
        if self.name == "sqlite":
            return SqliteStore(Path(self.target))
        return self.atlas()

    def atlas(self, **options: Any) -> AtlasStore:
        """The same on Atlas, whose target is a database and the connection string."""
        database, _, uri = self.target.partition(" ")
        # Megabytes take the stand-in a while where others work too.
        return AtlasStore(uri, database, **{"timeout": 60.0, **options})

    async def prepare(self, model: EmbeddingModel) -> None:
        """Do what an operator does before a store is opened with `model`."""
        if self.name == "atlas":
            store = self.atlas()
            await store.build_indexes(model, lambda reports: None)
            await store.close()


def chunk(chunk_id: str, text: str = "", embedding: bytes = EAST, **fields: Any) -> Chunk:
    defaults: dict[str, Any] = {
        "user_id": "ann",
        "collection": DEFAULT_COLLECTION,
        "source": chunk_id,
        "content_hash": "hash",
        "position": 0,
    }
    return Chunk(chunk_id=chunk_id, text=text, embedding=embedding, **{**defaults, **fields})


async def put(store: Store, *chunks: Chunk) -> None:
    """Store chunks, each the only one of its source."""
    for one in chunks:
        await store.replace_source(one.user_id, one.collection, one.source, [one])


async def search(store: Store, text: str = "", embedding: bytes = EAST, **fields: Any) -> list[SearchHit]:
    return await store.search_documents(DocumentQuery(**{"user_id": "ann", **fields}, query=text, embedding=embedding))


async def found(store: Store, text: str = "", embedding: bytes = EAST, **fields: Any) -> list[str]:
    return [hit.id for hit in await search(store, text, embedding, **fields)]


def message(
    message_id: str,
    text: str = "",
    embedding: bytes = EAST,
    minute: int = 0,
    user: str = "ann",
    conversation: str = "c",
) -> Message:
    return Message(
        message_id=message_id,
        user_id=user,
        conversation_id=conversation,
        message_type="human",
        text=text,
        timestamp=NOON + timedelta(minutes=minute),
        embedding=embedding,
    )


def memory(memory_id: str, embedding: bytes = EAST, importance: float = 0.5, **fields: Any) -> MemoryNode:
    defaults: dict[str, Any] = {
        "user_id": "ann",
        "content": f"content of {memory_id}",
        "summary": f"summary of {memory_id}",
        "source_messages": [f"message of {memory_id}"],
        "created_at": NOON,
    }
    return MemoryNode(memory_id=memory_id, importance=importance, embedding=embedding, **{**defaults, **fields})


async def form(store: Store, node: MemoryNode, threshold: float) -> FormedMemory:
    """Form a memory of messages that are stored before, where no search finds them."""
    for message_id in node.source_messages:
        await store.put_message(message(message_id, "", NOWHERE, user=node.user_id, conversation="sources"))
    return await store.form_memory(node, threshold)


def retrieval(text: str = "", embedding: bytes = EAST, **fields: Any) -> MemoryQuery:
    defaults: dict[str, Any] = {"user_id": "ann", "now": NOON, "retrieval_id": "r"}
    return MemoryQuery(text=text, embedding=embedding, **{**defaults, **fields})


def entry(entry_id: str, query_hash: str, embedding: bytes = EAST, minutes: int = 60, **fields: Any) -> CacheEntry:
    defaults: dict[str, Any] = {
        "user_id": "ann",
        "query": f"query of {entry_id}",
        "response": f"response of {entry_id}",
        "created_at": NOON,
        "expires_at": NOON + timedelta(minutes=minutes),
    }
    return CacheEntry(entry_id=entry_id, query_hash=query_hash, embedding=embedding, **{**defaults, **fields})


def downgrade(file: Path) -> None:
    """Make of a file what releases with schema 2 kept in it."""
    db = apsw.Connection(str(file))
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    without_shares(db)
    db.execute("drop table sources; drop table staged_vectors; drop index documents_position")
    db.execute("update documents set metadata = json_remove(metadata, '$.document_id')")
    db.execute("insert into documents_text(documents_text, rank) values('secure-delete', 1)")
    db.execute("create index documents_source on documents(user_id, collection, source)")
    db.execute("drop table summaries; drop index conversations_summary")
    db.execute("alter table conversations drop column summary_id")
    db.execute("drop index memory_nodes_roots; drop index memory_nodes_children")
    for column in ("last_accessed_at", "pinned", "apart"):
        db.execute(f"alter table memory_nodes drop column {column}")
    _without_scopes(db)
    db.execute("drop table contexts; drop table contexts_text; drop table contexts_vectors")
    db.execute("drop index conversations_previous; alter table conversations drop column previous")
    db.execute("delete from collections where name = 'contexts'")
    db.pragma("user_version", 2)
    db.close()


def without_shares(db: apsw.Connection) -> None:
    """Both indexes as releases with schema 4 had them: one of the words of all users, and vec0 for every table."""
    db.execute("drop table shares; drop table codes; drop index contexts_user")
    users = {"documents": "user_id, collection", "conversations": "user_id", "contexts": "user_id"}
    for table, columns in (users | {"memory_nodes": "user_id"}).items():
        dimensions = db.execute("select dimensions from collections where name = ?", (table,)).get
        db.execute(f"alter table {table}_vectors rename to kept")
        partitions = ", ".join(f"{name} text partition key" for name in columns.split(", "))
        db.execute(
            f"create virtual table {table}_vectors using vec0({partitions}, "
            f"embedding float[{dimensions}] distance_metric=cosine, chunk_size=32)"
        )
        db.execute(
            f"insert into {table}_vectors(rowid, {columns}, embedding) "
            f"select t.id, {columns}, k.embedding from {table} t join kept k on k.id = t.id; drop table kept"
        )
        if table in users:
            db.execute(
                f"drop table {table}_text; create virtual table {table}_text using "
                "fts5(owner, text, content = '', tokenize = 'porter unicode61 remove_diacritics 2')"
            )
            owners = "'x' || hex(" + " || ".join(columns.split(", ")) + ")"
            db.execute(f"insert into {table}_text(rowid, owner, text) select id, {owners}, text from {table}")
    db.pragma("user_version", 4)


def _without_scopes(db: apsw.Connection) -> None:
    """Cached answers, and their vectors, as they were before they had scopes."""
    triggers = db.execute("select sql from sqlite_schema where type = 'trigger' and tbl_name = 'cache'").fetchall()
    columns = "id, entry_id, user_id, query_hash, created_at, expires_at, embedding, query, response"
    db.execute(f"""
        create table old_cache(
            id integer primary key, entry_id text not null unique, user_id text not null, query_hash text not null,
            created_at integer not null, expires_at integer not null, embedding blob not null, query text not null,
            response text not null, unique(user_id, query_hash)
        );
        insert into old_cache select {columns} from cache;
        drop table cache;
        alter table old_cache rename to cache;
        create index cache_expiry on cache(expires_at);
    """)
    for (trigger,) in triggers:
        db.execute(str(trigger))
    columns = "rowid, user_id, expires_at, embedding"
    vectors = db.execute(f"select {columns} from cache_vectors").fetchall()
    dimensions = db.execute("select dimensions from collections where name = 'cache'").get
    db.execute("drop table cache_vectors")
    db.execute(
        "create virtual table cache_vectors using vec0(user_id text partition key, expires_at integer, "
        f"embedding float[{dimensions}] distance_metric=cosine, chunk_size=32)"
    )
    db.executemany(f"insert into cache_vectors({columns}) values(?, ?, ?, ?)", vectors)


@contextmanager
def fails(kind: str, *parts: str) -> Iterator[None]:
    """The block fails with `failure(kind, …)`, whose message holds every one of `parts`."""
    with pytest.raises(ApplicationError) as error:
        yield
    assert error.value.type == kind, error.value.message
    assert error.value.non_retryable == (kind != "unavailable")
    assert [part for part in parts if part not in error.value.message] == [], error.value.message
