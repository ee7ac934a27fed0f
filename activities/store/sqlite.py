"""The embedded store: one SQLite file with FTS5 for keywords and sqlite-vec for vectors.

Any number of processes and threads may use one file at once. Each transaction sees one state of the database, and
every write is one `BEGIN IMMEDIATE` transaction over a table, its vectors and its keywords, so they never disagree.
"""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar, cast

import apsw

from activities.consolidation import Said
from activities.embedding_models import unrelated_cosine
from activities.errors import failure
from activities.models import (
    DEFAULT_COLLECTION,
    CacheEntry,
    CacheMatch,
    CacheScope,
    Chunk,
    ConversationMessage,
    DocumentQuery,
    EmbeddingModel,
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
    RecordText,
    Reembedding,
    SearchHit,
    SourcePage,
    StoredDocument,
    Summary,
)
from activities.store import (
    sqlite_cache,
    sqlite_documents,
    sqlite_forget,
    sqlite_memory,
    sqlite_messages,
    sqlite_reembed,
    sqlite_summaries,
)
from activities.store.base import (
    CACHE_CANDIDATES,
    UNSCOPED,
    check_chunks,
    mismatch,
    read_conversation_cursor,
    summarised_with,
    unknown_collection,
)
from activities.store.filters import parse_filter
from activities.store.sqlite_database import Database, Work
from activities.store.sqlite_records import Row, select
from activities.store.sqlite_schema import filled_by, prepare
from activities.store.sqlite_search import compile_filter, hybrid
from activities.store.sqlite_shares import chunks_of
from activities.store.times import micros
from activities.store.vectors import searchable

T = TypeVar("T")


def _collections(db: apsw.Connection, user_id: str) -> list[str]:
    sql = "select collection from shares where name = 'documents' and user_id = ? and records > 0 order by collection"
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
        return await self._read(lambda db: sqlite_documents.source_hash(db, user_id, collection, source))

    async def replace_source(self, user_id: str, collection: str, source: str, chunks: list[Chunk]) -> None:
        check_chunks(user_id, collection, source, chunks)
        share, vectors = chunks_of(user_id, collection), [self._vector(chunk.embedding) for chunk in chunks]
        await self._write(lambda db: sqlite_documents.replace(db, share, source, chunks, vectors))

    async def list_sources(self, user_id: str, collection: str | None, limit: int, cursor: str | None) -> SourcePage:
        return await self._read(lambda db: sqlite_documents.listed(db, user_id, collection, limit, cursor))

    async def remove_source(self, user_id: str, collection: str | None, source: str) -> int:
        removed = await self._write(lambda db: sqlite_documents.remove_source(db, user_id, collection, source))
        if removed:
            await self._database.empty_log()
        return removed

    async def read_document(
        self, document_id: str, user_id: str | None, position: int, max_characters: int
    ) -> StoredDocument | None:
        return await self._read(lambda db: sqlite_documents.read(db, document_id, user_id, position, max_characters))

    async def stage(self, vectors: dict[str, bytes]) -> None:
        model = self._opened_with
        await self._write(lambda db: sqlite_documents.stage(db, model, vectors))

    async def staged(self, chunk_ids: list[str]) -> dict[str, bytes]:
        model = self._opened_with
        return await self._read(lambda db: sqlite_documents.staged(db, model, chunk_ids))

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
                (found,) = select(db, "text, metadata", "from documents where chunk_id = ?", (chunk_id,))
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
        vector = self._vector(message.embedding)
        await self._write(lambda db: sqlite_messages.put(db, message, vector))

    async def read_message(self, user_id: str, message_id: str) -> Message | None:
        dimensions = self._opened_with.dimensions
        return await self._read(lambda db: sqlite_messages.read(db, user_id, message_id, dimensions))

    async def message_before(self, user_id: str, message_id: str) -> PreviousMessage | None:
        return await self._read(lambda db: sqlite_messages.before(db, user_id, message_id))

    async def put_context(self, user_id: str, message_id: str, context: MessageContext) -> None:
        vector = self._vector(context.embedding)
        await self._write(lambda db: sqlite_messages.put_context(db, user_id, message_id, context, vector))

    async def read_conversation(
        self, user_id: str, conversation_id: str, limit: int, cursor: str | None = None
    ) -> tuple[list[ConversationMessage], str | None]:
        before = read_conversation_cursor(cursor) if cursor is not None else None
        return await self._read(lambda db: sqlite_messages.page(db, user_id, conversation_id, limit, before))

    # Summaries

    async def unsummarised(
        self, user_id: str, conversation_id: str, limit: int
    ) -> tuple[Summary | None, list[ConversationMessage]]:
        return await self._read(lambda db: sqlite_summaries.unsummarised(db, user_id, conversation_id, limit))

    async def put_summary(self, summary: Summary, covered: list[str]) -> bool:
        return await self._write(lambda db: sqlite_summaries.put(db, summary, covered))

    async def summaries(self, user_id: str, conversation_ids: list[str]) -> list[Summary]:
        return await self._read(lambda db: sqlite_summaries.of(db, user_id, conversation_ids))

    # Memories

    async def form_memory(self, node: MemoryNode, threshold: float) -> FormedMemory:
        if not node.source_messages:
            raise failure("rejected", "a memory needs at least one source message")
        vector = self._vector(node.embedding)
        return await self._write(lambda db: sqlite_memory.form(db, node, vector, threshold))

    async def surroundings(self, user_id: str, memory_id: str) -> tuple[Said, list[Said]] | None:
        return await self._read(lambda db: sqlite_memory.surroundings(db, user_id, memory_id))

    async def put_parent(self, parent: MemoryParent) -> bool:
        vector = self._vector(parent.embedding)
        return await self._write(lambda db: sqlite_memory.put_parent(db, parent, vector))

    async def split_memory(self, user_id: str, memory_id: str) -> list[str]:
        return await self._write(lambda db: sqlite_memory.split(db, user_id, memory_id))

    async def pin_memory(self, user_id: str, memory_id: str, pinned: bool) -> str:
        return await self._write(lambda db: sqlite_memory.pin(db, user_id, memory_id, pinned))

    async def list_memories(self, params: ListMemoriesParams, now: datetime) -> tuple[list[Memory], list[str]]:
        return await self._read(lambda db: sqlite_memory.listed(db, params, now))

    async def prune_memories(self, user_id: str, budget: int, now: datetime) -> int:
        return await self._write(lambda db: sqlite_memory.prune(db, user_id, budget, now))

    async def recall(self, query: MemoryQuery) -> Recollection:
        vector = self._vector(query.embedding)
        unrelated = unrelated_cosine(self._opened_with.model_id)

        def work(db: apsw.Connection) -> Recollection:
            # One after the other: beside each other, in two threads, they take a third longer.
            related = sqlite_messages.related(db, query, vector)
            similar = sqlite_memory.similar(db, query, vector, unrelated)
            summaries = sqlite_summaries.of(db, query.user_id, summarised_with(related))
            return Recollection(related_conversation=related, similar_memories=similar, summaries=summaries)

        found = await self._read(work)
        # Only a retrieval that found memories has anything to count, and so to wait for other writers.
        if found.similar_memories:
            await self._write(lambda db: sqlite_memory.count_accesses(db, found.similar_memories, query))
        return found

    # Semantic cache

    async def put_cache_entry(self, entry: CacheEntry) -> None:
        vector = self._vector(entry.embedding)
        await self._write(lambda db: sqlite_cache.put(db, entry, vector))

    async def cached_answer(
        self, user_id: str, query_hash: str, now: datetime, scope: CacheScope = UNSCOPED
    ) -> CacheEntry | None:
        where = "user_id = ? and query_hash = ? and namespace = ? and model = ? and expires_at > ?"
        arguments = (user_id, query_hash, scope.namespace, scope.model, micros(now))
        return await self._read(lambda db: self._entry(db, where, arguments))

    async def nearest_cached(
        self, user_id: str, embedding: bytes, now: datetime, scope: CacheScope = UNSCOPED
    ) -> list[CacheMatch]:
        vector = self._vector(embedding)

        def work(db: apsw.Connection) -> list[CacheMatch]:
            # Expiry and scope are part of the nearest-neighbour search: filtered afterwards, a few entries that don't
            # count could hide every one that does.
            where = "user_id = ? and expires_at > ? and namespace = ? and model = ?"
            arguments = (user_id, micros(now), scope.namespace, scope.model)
            return [
                CacheMatch(entry=entry, similarity=cosine)
                for row, cosine in sqlite_cache.nearest(db, vector, CACHE_CANDIDATES, where, arguments)
                if (entry := self._entry(db, "id = ?", (row,)))
            ]

        return await self._read(work)

    async def invalidate_cached(
        self, user_id: str, query_hash: str | None, namespace: str | None, model: str | None
    ) -> int:
        given = {"user_id": user_id, "query_hash": query_hash, "namespace": namespace, "model": model}
        wanted = {column: value for column, value in given.items() if value is not None}
        where = " and ".join(f"{column} = ?" for column in wanted)

        def work(db: apsw.Connection) -> int:
            rows = db.execute(f"select id from cache where {where}", tuple(wanted.values())).fetchall()
            sqlite_cache.remove(db, rows)
            return len(rows)

        return await self._write(work)

    @staticmethod
    def _entry(db: apsw.Connection, where: str, arguments: Row) -> CacheEntry | None:
        columns = "entry_id, user_id, query, query_hash, namespace, model, response, created_at, expires_at, embedding"
        found = select(db, columns, f"from cache where {where}", arguments)
        return CacheEntry(**found[0]) if found else None

    async def purge_expired(self, now: datetime) -> int:
        def work(db: apsw.Connection) -> int:
            expired = db.execute("select id from cache where expires_at <= ?", (micros(now),)).fetchall()
            sqlite_cache.remove(db, expired)
            return len(expired)

        return await self._write(work)

    # Forgetting

    async def matching(self, query: ForgetQuery, threshold: float) -> list[ForgetMatch]:
        vector = self._vector(query.embedding)
        return await self._read(lambda db: sqlite_forget.matching(db, query, vector, threshold))

    async def going_with(self, user_id: str, ids: list[str]) -> list[ForgetMatch]:
        return await self._read(lambda db: sqlite_forget.going_with(db, user_id, ids))

    async def forget(self, target: ForgetTarget, most: int) -> Forgotten:
        forgotten = await self._write(lambda db: sqlite_forget.forget_some(db, target, most))
        if forgotten.complete:
            await self._database.empty_log()
        return forgotten

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
