"""What the embedded store's file holds: its tables, how earlier ones are upgraded, and which model fills them."""

import json
from datetime import UTC, datetime

import apsw

from activities.errors import failure
from activities.models import EMBEDDED, EmbeddingModel
from activities.store.base import document_id, mismatch
from activities.store.sqlite_shares import rebuild
from activities.store.times import micros

SCHEMA_VERSION = 6

# vec0 allocates a whole chunk for each partition, so a user with one vector pays for this many. Smaller chunks didn't
# search slower in measurements down to 16; at 384 dimensions 32 costs a new user 50 KB, 256 costs 400 KB.
_CHUNK_SIZE = 32

# vec0 looks through the chunks of everybody for those of a user, at each search and insertion, unless it has this.
_CACHE_PARTITIONS = "create index if not exists cache_partitions on cache_vectors_chunks(partition00)"

SHARED = ("documents", "conversations", "contexts", "memory_nodes")
"""Tables whose vectors are kept under the ids of their rows, and searched by share."""

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


def _removing_new_vectors(table: str) -> str:
    """What removes a record or changes its text, in any process and release, removes its new vector too."""
    return "".join(
        f"""
create trigger {table}_{name} after {event} on {table} begin
    delete from reembedded where collection = '{table}' and record = old.id;
end;
"""
        for name, event in (("removed", "delete"), ("changed", f"update of id, {EMBEDDED[table].field}"))
    )


# Vectors of the model that the collections move to, each under the row of its record.
_REEMBEDDING = """
create table reembedding(model_id text not null, dimensions integer not null);
create table reembedded(
    id integer primary key, collection text not null, record integer not null, embedding blob not null,
    unique(collection, record)
);
""" + "".join(map(_removing_new_vectors, ("documents", "conversations", "memory_nodes", "cache")))

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
""" + _removing_new_vectors("cache")


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


# Each message together with the one before it, in the row of the message.
_CONTEXTS = """
alter table conversations add column previous text;
create index conversations_previous on conversations(user_id, previous) where previous is not null;
create table contexts(
    id integer primary key, message_id text not null unique, user_id text not null, text text not null
);
""" + _removing_new_vectors("contexts")


def _give_contexts(db: apsw.Connection) -> None:
    """Make a context of each message that has none: itself alone."""
    db.execute("insert into contexts select id, message_id, user_id, text from conversations")
    model = filled_by(db)
    if model is not None:
        _make_vector_table(db, "contexts", model)
        db.execute("insert into contexts_vectors select rowid, embedding from conversations_vectors")


# Replacing a source takes eight times as long where the index forgets its words at once rather than at its next merge
# (500 of 20,000 chunks). Only `sqlite_documents.remove_source` wants that.
_SOURCES = """
create table sources(
    document_id text primary key, user_id text not null, collection text not null, source text not null,
    title text not null, content_hash text not null, chunks integer not null, stored_at integer not null
) without rowid;
create unique index sources_name on sources(user_id, collection, source);
create table staged_vectors(
    chunk_id text primary key, model_id text not null, dimensions integer not null, embedding blob not null,
    staged_at integer not null
) without rowid;
create index staged_vectors_time on staged_vectors(staged_at);
insert into documents_text(documents_text, rank) values('secure-delete', 0);
"""


def _list_sources(db: apsw.Connection) -> None:
    """List the sources whose chunks are stored already, each as stored now; the chunks name their document."""
    db.execute(_SOURCES)
    db.execute("create index documents_position on documents(user_id, collection, source, position)")
    db.execute("drop index documents_source")
    now = micros(datetime.now(UTC))
    found = db.execute(
        "select user_id, collection, source, count(*), min(content_hash), min(iif(position = 0, metadata, null)) "
        "from documents group by user_id, collection, source"
    ).fetchall()
    for user_id, collection, source, chunks, content_hash, metadata in found:
        title = json.loads(str(metadata or "{}")).get("title") or source
        key = document_id(str(user_id), str(collection), str(source))
        row = (key, user_id, collection, source, str(title), content_hash, chunks, now)
        db.execute("insert into sources values(?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute(
            "update documents set metadata = json_set(metadata, '$.document_id', ?) "
            "where user_id = ? and collection = ? and source = ?",
            (key, user_id, collection, source),
        )


# What stands in the indexes are words that have been taken apart already. For why only two of them forget at once, see
# _SOURCES.
_SHARES = """
create table shares(
    number integer primary key autoincrement, name text not null, user_id text not null, collection text not null,
    records integer not null default 0, coded integer not null default 0, centre blob,
    unique(name, user_id, collection)
);
create table codes(
    share integer not null, first integer not null, records blob not null, bits blob not null, primary key(share, first)
);
drop table documents_text;
drop table conversations_text;
drop table if exists contexts_text;
create virtual table documents_text using fts5(text, content = '', tokenize = 'ascii');
create virtual table conversations_text using fts5(text, content = '', tokenize = 'ascii');
create virtual table contexts_text using fts5(text, content = '', tokenize = 'ascii');
insert into conversations_text(conversations_text, rank) values('secure-delete', 1);
insert into contexts_text(contexts_text, rank) values('secure-delete', 1);
"""


def _part_shares(db: apsw.Connection) -> None:
    """Give each user's share of a table words and vectors of its own: a search reads no others."""
    db.execute(_SHARES)
    if filled_by(db) is None:
        return
    db.execute(_CACHE_PARTITIONS)
    for table in SHARED:
        db.execute("create table moved(id integer primary key, embedding blob not null)")
        db.execute(f"insert into moved select rowid, embedding from {table}_vectors order by rowid")
        db.execute(f"drop table {table}_vectors; alter table moved rename to {table}_vectors")
        rebuild(db, table)


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
        db.execute(_CONTEXTS)
        _give_contexts(db)
        _scope_cache(db)
    if version < 4:
        _list_sources(db)
    if version < 5:
        _part_shares(db)
    if version < 6:
        db.execute("create index contexts_user on contexts(user_id)")
    if version < SCHEMA_VERSION:
        db.pragma("user_version", SCHEMA_VERSION)


def filled_by(db: apsw.Connection) -> EmbeddingModel | None:
    """The model whose vectors the collections hold; None where nobody has opened the store yet."""
    recorded = db.execute("select model_id, dimensions from collections limit 1").fetchone()
    return EmbeddingModel(model_id=recorded[0], dimensions=recorded[1]) if recorded else None


def make_vector_tables(db: apsw.Connection, model: EmbeddingModel) -> None:
    """Make the tables of vectors anew, empty and of the length of `model`'s, and record that it fills them."""
    for table in (*SHARED, "cache"):
        _make_vector_table(db, table, model)
    db.execute("delete from codes; update shares set centre = null, coded = 0")


def _make_vector_table(db: apsw.Connection, table: str, model: EmbeddingModel) -> None:
    db.execute(f"drop table if exists {table}_vectors")
    if table == "cache":
        db.execute(
            "create virtual table cache_vectors using vec0(user_id text partition key, expires_at integer, "
            "namespace text, model text, "
            f"embedding float[{model.dimensions}] distance_metric=cosine, chunk_size={_CHUNK_SIZE})"
        )
        db.execute(_CACHE_PARTITIONS)
    else:
        db.execute(f"create table {table}_vectors(id integer primary key, embedding blob not null)")
    db.execute("insert or replace into collections values(?, ?, ?)", (table, model.model_id, model.dimensions))


def prepare(db: apsw.Connection, model: EmbeddingModel) -> None:
    """Create what is missing and settle which model fills the collections.

    Raises:
        ApplicationError: `model_mismatch` where another one does; collections without records take any.
    """
    upgrade(db)
    recorded = filled_by(db)
    if recorded == model:
        return
    for table in (*SHARED, "cache"):
        if recorded and db.execute(f"select exists (select 1 from {table})").get:
            raise mismatch(table, recorded, model)
    make_vector_tables(db, model)
