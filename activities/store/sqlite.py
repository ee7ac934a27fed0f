"""The embedded store: one SQLite file with FTS5 for keywords and sqlite-vec for vectors.

Any number of processes and threads may use one file at once. Each transaction sees one state of the database, and
every write is one `BEGIN IMMEDIATE` transaction over a table, its vectors and its keywords, so they never disagree.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import apsw

from activities.errors import failure
from activities.models import (
    DEFAULT_COLLECTION,
    CacheEntry,
    CacheMatch,
    Chunk,
    ContextMessage,
    ConversationMessage,
    DocumentQuery,
    EmbeddingModel,
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
    Summary,
)
from activities.store import sqlite_reembed, sqlite_summaries
from activities.store.base import ACCESSES_KEPT, NEIGHBOURS, check_chunks, metadata_json, mismatch, unknown_collection
from activities.store.filters import parse_filter
from activities.store.likeness import numbers_in
from activities.store.sqlite_database import Database, Work
from activities.store.sqlite_schema import filled_by, prepare
from activities.store.sqlite_search import (
    add_vector,
    chunks_of,
    compile_filter,
    forget,
    hybrid,
    index,
    messages_of,
    nearest,
    remove,
)
from activities.store.times import micros, moment
from activities.store.vectors import searchable

T = TypeVar("T")
Row = tuple[Any, ...]


_TIMES = {"timestamp", "created_at", "expires_at"}


def _insert(db: apsw.Connection, table: str, record: dict[str, Any]) -> int:
    """Insert a record, given by column names, with its times as microseconds; answer its row id."""
    marks = ", ".join("?" * len(record))
    values = [micros(value) if isinstance(value, datetime) else value for value in record.values()]
    return cast(int, db.execute(f"insert into {table}({', '.join(record)}) values({marks}) returning id", values).get)


def _select(db: apsw.Connection, columns: str, rest: str, arguments: Sequence[Any]) -> list[dict[str, Any]]:
    """Records by column names, with their times as UTC datetimes."""
    names = columns.split(", ")
    return [
        {name: moment(value) if name in _TIMES else value for name, value in zip(names, cast(Row, row), strict=True)}
        for row in db.execute(f"select {columns} {rest}", arguments)
    ]


def _collections(db: apsw.Connection, user_id: str) -> list[str]:
    sql = "select distinct collection from documents where user_id = ? order by collection"
    return [cast(str, name) for (name,) in db.execute(sql, (user_id,))]


class SqliteStore:
    """`Store` in one SQLite file.

    Args:
        path: The database file; it and its folder are created where they are missing, readable by their owner alone.
        busy_timeout: Seconds to wait for another process's lock before the call fails as `unavailable`.
        threads: Most calls that run at once; each thread has its own connection.
    """

    def __init__(self, path: Path, *, busy_timeout: float = 2.0, threads: int = 4) -> None:
        self._database = Database(path, busy_timeout, threads)
        self._model: EmbeddingModel | None = None

    async def open(self, model: EmbeddingModel) -> None:
        self._database.start()
        try:
            await self._database.run("exclusive", lambda db: prepare(db, model))
        except BaseException:
            await self.close()
            raise
        self._model = model

    async def close(self) -> None:
        await self._database.stop()
        self._model = None

    async def ping(self) -> str:
        version = await self._read(lambda db: db.execute("select vec_version() from collections limit 1").get)
        return f"SQLite {apsw.sqlite_lib_version()} with sqlite-vec {version}, {self._database.path}"

    # Documents

    async def source_hash(self, user_id: str, collection: str, source: str) -> str | None:
        sql = "select content_hash from documents where user_id = ? and collection = ? and source = ? limit 1"
        found = await self._read(lambda db: db.execute(sql, (user_id, collection, source)).fetchone())
        return cast(str, found[0]) if found else None

    async def replace_source(self, user_id: str, collection: str, source: str, chunks: list[Chunk]) -> None:
        share = chunks_of(user_id, collection)
        check_chunks(user_id, collection, source, chunks)

        def work(db: apsw.Connection) -> None:
            remove(db, share, "source = ?", source)
            for chunk in chunks:
                fields = {**chunk.model_dump(exclude={"embedding"}), "metadata": metadata_json(chunk)}
                row = _insert(db, "documents", fields)
                index(db, share, row, chunk.text, self._vector(chunk.embedding))

        await self._write(work)

    async def collections(self, user_id: str) -> list[str]:
        return await self._read(lambda db: _collections(db, user_id))

    async def search_documents(self, query: DocumentQuery) -> list[SearchHit]:
        user_id, share = query.user_id, chunks_of(query.user_id, query.collection)
        condition = compile_filter(parse_filter(query.filter)) if query.filter else None

        def work(db: apsw.Connection) -> list[SearchHit]:
            if query.collection != DEFAULT_COLLECTION and query.collection not in (names := _collections(db, user_id)):
                raise unknown_collection(query.collection, names)
            vector = self._vector(query.embedding)
            ranked, cosines, keywords = hybrid(db, share, query.query, vector, query.limit, query.weight, condition)
            hits: list[SearchHit] = []
            for chunk_id, score in ranked:
                (found,) = _select(db, "text, metadata", "from documents where chunk_id = ?", (chunk_id,))
                hits.append(
                    SearchHit(
                        id=chunk_id,
                        text=found["text"],
                        score=score,
                        vector_score=cosines.get(chunk_id),
                        text_score=keywords.get(chunk_id),
                        metadata=json.loads(found["metadata"]),
                    )
                )
            return hits

        return await self._read(work)

    # Conversations

    async def put_message(self, message: Message) -> None:
        share = messages_of(message.user_id)

        def work(db: apsw.Connection) -> None:
            # Rows are in the order of storing, which a message that is stored again keeps.
            known = db.execute(
                "select id from conversations where user_id = ? and message_id = ?",
                (message.user_id, message.message_id),
            ).get
            remove(db, share, "message_id = ?", message.message_id)
            row = _insert(db, "conversations", {"id": known, **message.model_dump(exclude={"embedding"})})
            index(db, share, row, message.text, self._vector(message.embedding))

        await self._write(work)

    async def read_message(self, user_id: str, message_id: str) -> Message | None:
        def work(db: apsw.Connection) -> Message | None:
            columns = "id, message_id, user_id, conversation_id, message_type, text, timestamp"
            where = "from conversations where user_id = ? and message_id = ?"
            for found in _select(db, columns, where, (user_id, message_id)):
                vector = db.execute(
                    "select embedding from conversations_vectors where rowid = ?", (found.pop("id"),)
                ).get
                return Message(**found, embedding=vector or bytes(4 * self._opened_with.dimensions))
            return None

        return await self._read(work)

    # Summaries

    async def unsummarised(
        self, user_id: str, conversation_id: str, limit: int
    ) -> tuple[Summary | None, list[ConversationMessage]]:
        return await self._read(lambda db: sqlite_summaries.unsummarised(db, user_id, conversation_id, limit))

    async def put_summary(self, summary: Summary, covered: list[str]) -> bool:
        return await self._write(lambda db: sqlite_summaries.put(db, summary, covered))

    async def summaries(self, user_id: str, conversation_ids: list[str]) -> list[Summary]:
        return await self._read(lambda db: sqlite_summaries.of(db, user_id, conversation_ids))

    async def remove_summary(self, user_id: str, conversation_id: str) -> None:
        await self._write(lambda db: sqlite_summaries.remove(db, user_id, conversation_id))

    # Memories

    async def form_memory(self, node: MemoryNode, threshold: float) -> FormedMemory:
        if not node.source_messages:
            raise failure("rejected", "a memory needs at least one source message")

        def work(db: apsw.Connection) -> FormedMemory:
            for message_id in node.source_messages:
                known = db.execute(
                    "select n.memory_id, s.reinforced from memory_sources s join memory_nodes n on n.id = s.node "
                    "where s.user_id = ? and s.message_id = ?",
                    (node.user_id, message_id),
                ).fetchone()
                if known:
                    return FormedMemory(memory_id=known[0], reinforced=bool(known[1]))
            there = "select 1 from conversations where user_id = ? and message_id = ?"
            if not all(db.execute(there, (node.user_id, one)).fetchone() for one in node.source_messages):
                return FormedMemory(memory_id=None, reinforced=False)
            vector = self._vector(node.embedding)
            found = nearest(db, "memory_nodes", vector, 1, "user_id = ?", [node.user_id])
            reinforced = bool(found) and found[0][1] >= threshold
            if reinforced:
                (nearest_one,) = _select(db, "content", "from memory_nodes where id = ?", (found[0][0],))
                reinforced = numbers_in(nearest_one["content"]) == numbers_in(node.content)
            if reinforced:
                row = found[0][0]
                memory_id = db.execute(
                    "update memory_nodes set access_count = access_count + 1, "
                    "importance = importance + (1 - importance) * ? / 2 where id = ? returning memory_id",
                    (node.importance, row),
                ).get
            else:
                memory_id = node.memory_id
                row = _insert(db, "memory_nodes", node.model_dump(exclude={"embedding", "source_messages"}))
                add_vector(db, "memory_nodes", row, vector, {"user_id": node.user_id})
            db.executemany(
                "insert into memory_sources(user_id, message_id, reinforced, node) values(?, ?, ?, ?)",
                [(node.user_id, message_id, reinforced, row) for message_id in dict.fromkeys(node.source_messages)],
            )
            return FormedMemory(memory_id=memory_id, reinforced=reinforced)

        return await self._write(work)

    async def prune_memories(self, user_id: str, budget: int) -> int:
        def work(db: apsw.Connection) -> int:
            weakest = db.execute(
                "select id from memory_nodes where user_id = ? order by importance * (1 + ln(1 + access_count)) desc, "
                "created_at desc, memory_id desc limit -1 offset ?",
                (user_id, max(0, budget)),
            ).fetchall()
            forget(db, "memory_nodes", weakest)
            return len(weakest)

        return await self._write(work)

    async def recall(self, query: MemoryQuery) -> Recollection:
        vector = self._vector(query.embedding)

        def find(db: apsw.Connection) -> Recollection:
            return Recollection(
                related_conversation=self._related(db, query, vector),
                similar_memories=self._similar(db, query, vector),
            )

        def count(db: apsw.Connection) -> None:
            for memory in found.similar_memories:
                self._count_access(db, memory, query.retrieval_id)

        found = await self._read(find)
        # Only a retrieval that found memories has anything to count, and so to wait for other writers.
        if found.similar_memories:
            await self._write(count)
        return found

    @staticmethod
    def _related(db: apsw.Connection, query: MemoryQuery, vector: bytes | None) -> list[RelatedMessage]:
        """The messages that bear on a query, each with its surroundings."""
        related: list[RelatedMessage] = []
        ranked, _, _ = hybrid(db, messages_of(query.user_id), query.text, vector, query.limit, 0.5)
        for message_id, score in ranked:
            columns = "id, message_id, conversation_id, message_type, text, timestamp"
            (found,) = _select(db, columns, "from conversations where message_id = ?", (message_id,))
            at = (query.user_id, found["conversation_id"], micros(found["timestamp"]), found.pop("id"), NEIGHBOURS)
            sides: list[list[ContextMessage]] = []
            for sign, order in (("<", "desc"), (">", "asc")):
                rest = (
                    "from conversations where user_id = ? and conversation_id = ? "
                    f"and (timestamp, id) {sign} (?, ?) order by timestamp {order}, id {order} limit ?"
                )
                side = _select(db, "message_type, text, timestamp", rest, at)
                sides.append([ContextMessage(**neighbour) for neighbour in side])
            related.append(RelatedMessage(**found, score=score, before=sides[0][::-1], after=sides[1]))
        return related

    @staticmethod
    def _similar(db: apsw.Connection, query: MemoryQuery, vector: bytes | None) -> list[SimilarMemory]:
        """The memories nearest to a query."""
        memories: list[SimilarMemory] = []
        for row, cosine in nearest(db, "memory_nodes", vector, query.limit, "user_id = ?", [query.user_id]):
            columns = "memory_id, content, summary, importance, access_count, created_at"
            (found,) = _select(db, columns, "from memory_nodes where id = ?", (row,))
            sources = _select(db, "message_id", "from memory_sources where node = ? order by id", (row,))
            source_messages = [source["message_id"] for source in sources]
            memories.append(SimilarMemory(**found, similarity=cosine, source_messages=source_messages))
        return sorted(memories, key=lambda memory: (-memory.similarity, memory.memory_id))

    @staticmethod
    def _count_access(db: apsw.Connection, memory: SimilarMemory, retrieval_id: str) -> None:
        """Count one access to a memory, here and in the store, unless this retrieval is counted already."""
        where = "where memory_id = ?"
        for found in _select(db, "accesses, access_count", f"from memory_nodes {where}", (memory.memory_id,)):
            accesses = json.loads(found["accesses"])
            memory.access_count = found["access_count"]
            if retrieval_id not in accesses:
                memory.access_count += 1
                kept = json.dumps([*accesses, retrieval_id][-ACCESSES_KEPT:])
                changed = (memory.access_count, kept, memory.memory_id)
                db.execute(f"update memory_nodes set access_count = ?, accesses = ? {where}", changed)

    # Semantic cache

    async def put_cache_entry(self, entry: CacheEntry) -> None:
        def work(db: apsw.Connection) -> None:
            where = "where user_id = ? and (query_hash = ? or entry_id = ?)"
            same = (entry.user_id, entry.query_hash, entry.entry_id)
            newest = db.execute(f"select max(created_at) from cache {where}", same).get
            if newest is not None and newest > micros(entry.created_at):
                return
            forget(db, "cache", db.execute(f"select id from cache {where}", same).fetchall())
            row = _insert(db, "cache", entry.model_dump())
            columns = {"user_id": entry.user_id, "expires_at": micros(entry.expires_at)}
            add_vector(db, "cache", row, self._vector(entry.embedding), columns)

        await self._write(work)

    async def cached_answer(self, user_id: str, query_hash: str, now: datetime) -> CacheEntry | None:
        where, arguments = "user_id = ? and query_hash = ? and expires_at > ?", (user_id, query_hash, micros(now))
        return await self._read(lambda db: self._entry(db, where, arguments))

    async def nearest_cached(self, user_id: str, embedding: bytes, now: datetime) -> CacheMatch | None:
        vector = self._vector(embedding)

        def work(db: apsw.Connection) -> CacheMatch | None:
            # The expiry is part of the nearest-neighbour search: filtered afterwards, one expired entry could hide
            # every valid one.
            where = "user_id = ? and expires_at > ?"
            for row, cosine in nearest(db, "cache", vector, 1, where, (user_id, micros(now))):
                entry = self._entry(db, "id = ?", (row,))
                return CacheMatch(entry=entry, similarity=cosine) if entry else None
            return None

        return await self._read(work)

    @staticmethod
    def _entry(db: apsw.Connection, where: str, arguments: Row) -> CacheEntry | None:
        columns = "entry_id, user_id, query, query_hash, response, created_at, expires_at, embedding"
        found = _select(db, columns, f"from cache where {where}", arguments)
        return CacheEntry(**found[0]) if found else None

    async def purge_expired(self, now: datetime) -> int:
        def work(db: apsw.Connection) -> int:
            expired = db.execute("select id from cache where expires_at <= ?", (micros(now),)).fetchall()
            forget(db, "cache", expired)
            return len(expired)

        return await self._write(work)

    # Another embedding model

    async def begin_reembedding(self, model: EmbeddingModel) -> None:
        await self._reembed("exclusive", lambda db: sqlite_reembed.begin(db, model))

    async def texts_to_embed(self, model: EmbeddingModel, collection: str, limit: int) -> list[RecordText]:
        return await self._reembed("deferred", lambda db: sqlite_reembed.texts(db, model, collection, limit))

    async def put_embeddings(self, model: EmbeddingModel, collection: str, embedded: list[RecordEmbedding]) -> None:
        await self._reembed("immediate", lambda db: sqlite_reembed.put(db, model, collection, embedded))

    async def reembedding_progress(self, model: EmbeddingModel) -> Reembedding:
        return await self._reembed("deferred", lambda db: sqlite_reembed.progress(db, model))

    async def finish_reembedding(self, model: EmbeddingModel) -> bool:
        return await self._reembed("exclusive", lambda db: sqlite_reembed.finish(db, model))

    # Transactions

    @property
    def _opened_with(self) -> EmbeddingModel:
        if self._model is None:
            raise failure("unavailable", "the store isn't open")
        return self._model

    def _vector(self, embedding: bytes) -> bytes | None:
        """An embedding as it is indexed; None for a vector of zeros."""
        return searchable(embedding, self._opened_with)

    async def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` on one state of the database."""
        return await self._database.run("deferred", lambda db: self._checked(db, work))

    async def _write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work`, which happens as a whole or not at all."""
        return await self._database.run("immediate", lambda db: self._checked(db, work))

    def _checked(self, db: apsw.Connection, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` unless another process has given the collections to another model since."""
        recorded = filled_by(db)
        if recorded and recorded != self._opened_with:
            raise mismatch("documents", recorded, self._opened_with)
        return work(db)

    async def _reembed(self, mode: Literal["deferred", "immediate", "exclusive"], work: Work[T]) -> T:
        """Run `work` on the store, open or not."""
        self._database.start()
        return await self._database.run(mode, work)
