"""What the embedded store's file holds: its tables, how earlier ones are upgraded, and which model fills them."""

import apsw

from activities.errors import failure
from activities.models import EMBEDDED, EmbeddingModel
from activities.store.base import mismatch

SCHEMA_VERSION = 3

# vec0 allocates a whole chunk for each partition, so a user with one vector pays for this many. Smaller chunks didn't
# search slower in measurements down to 16; at 384 dimensions 32 costs a new user 50 KB in each table, 256 costs 400 KB.
_CHUNK_SIZE = 32

VECTOR_COLUMNS = {
    "documents": {"user_id": "text partition key", "collection": "text partition key"},
    "conversations": {"user_id": "text partition key"},
    "memory_nodes": {"user_id": "text partition key"},
    "cache": {"user_id": "text partition key", "expires_at": "integer", "namespace": "text", "model": "text"},
}
"""What the vectors of each collection are kept with, in the table `<collection>_vectors`."""

_SCHEMA = """
create table collections(name text primary key, model_id text not null, dimensions integer not null) without rowid;

create table documents(
    id integer primary key, chunk_id text not null unique, user_id text not null, collection text not null,
    source text not null, position integer not null, content_hash text not null, metadata text not null,
    text text not null
);
create index documents_source on documents(user_id, collection, source);

create table conversations(
    id integer primary key, message_id text not null unique, user_id text not null, conversation_id text not null,
    timestamp integer not null, message_type text not null, text text not null
);
create index conversations_time on conversations(user_id, conversation_id, timestamp);

create table memory_nodes(
    id integer primary key, memory_id text not null unique, user_id text not null, created_at integer not null,
    importance real not null, access_count integer not null default 0, accesses text not null default '[]',
    level integer not null, parent text, content text not null, summary text not null
);
create index memory_nodes_user on memory_nodes(user_id, importance);
create table memory_sources(
    id integer primary key, user_id text not null, message_id text not null, reinforced integer not null,
    node integer not null references memory_nodes(id) on delete cascade, unique(user_id, message_id)
);
create index memory_sources_node on memory_sources(node);

create table cache(
    id integer primary key, entry_id text not null unique, user_id text not null, query_hash text not null,
    created_at integer not null, expires_at integer not null, embedding blob not null, query text not null,
    response text not null, unique(user_id, query_hash)
);
create index cache_expiry on cache(expires_at);

create virtual table documents_text using fts5(
    owner, text, content = '', tokenize = 'porter unicode61 remove_diacritics 2');
create virtual table conversations_text using fts5(
    owner, text, content = '', tokenize = 'porter unicode61 remove_diacritics 2');
insert into documents_text(documents_text, rank) values('secure-delete', 1);
insert into conversations_text(conversations_text, rank) values('secure-delete', 1);
"""

# Vectors of the model that the collections move to, each under the row of its record; what removes a record or changes
# its text, in any process and release, removes its new vector too.
_REEMBEDDING = """
create table reembedding(model_id text not null, dimensions integer not null);
create table reembedded(
    id integer primary key, collection text not null, record integer not null, embedding blob not null,
    unique(collection, record)
);
""" + "".join(
    f"""
create trigger {table}_{name} after {event} on {table} begin
    delete from reembedded where collection = '{table}' and record = old.id;
end;
"""
    for table, embedded in EMBEDDED.items()
    for name, event in (("removed", "delete"), ("changed", f"update of id, {embedded.field}"))
)

# Messages that were there before are covered by no summary: each is with its conversation's next message.
_SUMMARIES = """
alter table conversations add column summary_id text;
create index conversations_summary on conversations(user_id, conversation_id, summary_id);
create table summaries(
    id integer primary key, user_id text not null, conversation_id text not null, summary_id text not null,
    text text not null, model_id text not null, messages integer not null, first_at integer not null,
    last_at integer not null, updated_at integer not null, unique(user_id, conversation_id)
);
"""

# `pinned` and `parent is null` are of roots; `apart` lists the parents that a memory was split from.
_CONSOLIDATION = """
alter table memory_nodes add column last_accessed_at integer not null default 0;
update memory_nodes set last_accessed_at = created_at;
alter table memory_nodes add column pinned integer not null default 0;
alter table memory_nodes add column apart text not null default '[]';
create index memory_nodes_roots on memory_nodes(user_id) where parent is null;
create index memory_nodes_children on memory_nodes(user_id, parent) where parent is not null;
"""

# A cached answer has a scope, which is part of what makes it one. The table is made anew: its unique key changes.
_CACHE_SCOPES = """
create table scoped_cache(
    id integer primary key, entry_id text not null unique, user_id text not null, query_hash text not null,
    namespace text not null default '', model text not null default '', created_at integer not null,
    expires_at integer not null, embedding blob not null, query text not null, response text not null,
    unique(user_id, query_hash, namespace, model)
);
insert into scoped_cache(id, entry_id, user_id, query_hash, created_at, expires_at, embedding, query, response)
    select id, entry_id, user_id, query_hash, created_at, expires_at, embedding, query, response from cache;
drop table cache;
alter table scoped_cache rename to cache;
create index cache_expiry on cache(expires_at);
create trigger cache_removed after delete on cache begin
    delete from reembedded where collection = 'cache' and record = old.id;
end;
create trigger cache_changed after update of id, query on cache begin
    delete from reembedded where collection = 'cache' and record = old.id;
end;
"""


def _scope_cache(db: apsw.Connection) -> None:
    """Give cached answers their scopes, in the table and among the vectors."""
    db.execute(_CACHE_SCOPES)
    if model := filled_by(db):
        _make_vector_table(db, "cache", model)
        db.execute(
            "insert into cache_vectors(rowid, user_id, expires_at, namespace, model, embedding) "
            "select id, user_id, expires_at, namespace, model, embedding from cache where embedding <> ?",
            (bytes(4 * model.dimensions),),
        )


def upgrade(db: apsw.Connection) -> None:
    """Create what is missing.

    Raises:
        ApplicationError: `rejected` where a newer release made the file.
    """
    version = db.pragma("user_version")
    if version > SCHEMA_VERSION:
        raise failure(
            "rejected",
            f"the database was made by a newer durable-context (schema {version}, this one knows {SCHEMA_VERSION}): "
            "upgrade, or set DURABLE_CONTEXT_HOME to another folder",
        )
    if version < 1:
        db.execute(_SCHEMA)
    if version < 2:
        db.execute(_REEMBEDDING)
    if version < 3:
        db.execute(_SUMMARIES)
        db.execute(_CONSOLIDATION)
        _scope_cache(db)
    if version < SCHEMA_VERSION:
        db.pragma("user_version", SCHEMA_VERSION)


def filled_by(db: apsw.Connection) -> EmbeddingModel | None:
    """The model whose vectors the collections hold; None where nobody has opened the store yet."""
    recorded = db.execute("select model_id, dimensions from collections limit 1").fetchone()
    return EmbeddingModel(model_id=recorded[0], dimensions=recorded[1]) if recorded else None


def make_vector_tables(db: apsw.Connection, model: EmbeddingModel) -> None:
    """Make the tables of vectors anew, empty and of the length of `model`'s, and record that it fills them."""
    for table in VECTOR_COLUMNS:
        _make_vector_table(db, table, model)
        db.execute("insert or replace into collections values(?, ?, ?)", (table, model.model_id, model.dimensions))


def _make_vector_table(db: apsw.Connection, table: str, model: EmbeddingModel) -> None:
    db.execute(f"drop table if exists {table}_vectors")
    kept = ", ".join(f"{name} {kind}" for name, kind in VECTOR_COLUMNS[table].items())
    db.execute(
        f"create virtual table {table}_vectors using vec0({kept}, "
        f"embedding float[{model.dimensions}] distance_metric=cosine, chunk_size={_CHUNK_SIZE})"
    )


def prepare(db: apsw.Connection, model: EmbeddingModel) -> None:
    """Create what is missing and settle which model fills the collections.

    Raises:
        ApplicationError: `model_mismatch` where another one does; collections without records take any.
    """
    upgrade(db)
    recorded = filled_by(db)
    if recorded == model:
        return
    for table in VECTOR_COLUMNS:
        if recorded and db.execute(f"select exists (select 1 from {table})").get:
            raise mismatch(table, recorded, model)
    make_vector_tables(db, model)
