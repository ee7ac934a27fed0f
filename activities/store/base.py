"""The Store protocol: what both engines do alike, and what `tests/contract/` holds them to."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from temporalio.exceptions import ApplicationError

from activities.consolidation import Said
from activities.errors import failure
from activities.models import (
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
    RelatedMessage,
    SearchHit,
    SourcePage,
    StoredDocument,
    StoredSource,
    Summary,
)

RRF_K = 60
"""Rank constant of reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009."""
NEIGHBOURS = 2
"""Most messages on either side that a recalled one comes with."""
SUMMARIES_RECALLED = 3
"""Of how many conversations a recollection brings the summary."""
ACCESSES_KEPT = 32
"""How many retrievals a memory remembers, so that one that runs again isn't counted twice."""
NEAREST_SAID = 16
"""How many of the memories nearest to a new one are looked at for one that says the same."""
AROUND = 32
"""How many of the memories nearest to one are looked at for those that belong with it."""
OPENING_CHARACTERS = 300
"""Length of a memory's summary that is the beginning of what it says."""


def mismatch(collection: str, filled_by: EmbeddingModel, model: EmbeddingModel) -> ApplicationError:
    """What opening a collection that is filled by one model with another fails with."""
    return failure(
        "model_mismatch",
        f"collection '{collection}' was filled by the embedding model {filled_by} and can't be used with {model}: run "
        f"`durable-context reembed` to move every collection to {model.model_id}, or set EMBEDDING_MODEL_ID and "
        f"EMBEDDING_DIMENSIONS back to {filled_by}",
    )


def not_reembedding(model: EmbeddingModel, target: EmbeddingModel | None) -> ApplicationError:
    """What moving the collections to `model` fails with where they move to `target`, or to none."""
    return failure(
        "model_mismatch",
        f"the store isn't being re-embedded with {model}"
        + (f": it moves to {target} since another `durable-context reembed` was run" if target else "")
        + ". Run `durable-context reembed` again with the settings that are to stay",
    )


def unknown_collection(collection: str, names: Sequence[str]) -> ApplicationError:
    """What a search of a collection that isn't one of the user's, which are `names`, fails with."""
    theirs = f"theirs are: {', '.join(names)}" if names else "they have none"
    return failure("rejected", f"collection '{collection}' doesn't exist for this user; {theirs}")


def unknown_memory(memory_id: str) -> ApplicationError:
    """What naming a memory that the user doesn't have fails with."""
    return failure("rejected", f"memory_id: this user has no memory '{memory_id}'; list_memories gives their ids")


def not_a_parent(memory_id: str) -> ApplicationError:
    """What splitting a memory that has no children fails with."""
    return failure(
        "rejected",
        f"memory_id: this user has no memory '{memory_id}' that others were consolidated into; give the id of one of "
        "level 1",
    )


def summarised_with(messages: Sequence[RelatedMessage]) -> list[str]:
    """Ids of the conversations whose summaries come with recalled messages: the first few of theirs."""
    return list(dict.fromkeys(message.conversation_id for message in messages))[:SUMMARIES_RECALLED]


def check_chunks(user_id: str, collection: str, source: str, chunks: Sequence[Chunk]) -> None:
    """Reject chunks of another source than the one that they are to replace."""
    if any((chunk.user_id, chunk.collection, chunk.source) != (user_id, collection, source) for chunk in chunks):
        raise failure("rejected", "each chunk must belong to the user, collection and source that are replaced")


def metadata_json(chunk: Chunk) -> str:
    """A chunk's metadata as JSON, with the built-in fields, so that filters and results treat all alike.

    Raises:
        ApplicationError: `rejected` for what JSON can't hold.
    """
    try:
        key = document_id(chunk.user_id, chunk.collection, chunk.source)
        own = {"source": chunk.source, "position": chunk.position, "document_id": key}
        return json.dumps({**chunk.metadata, **own}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise failure("rejected", f"metadata of source '{chunk.source}' isn't JSON: {error}") from error


def document_id(user_id: str, collection: str, source: str) -> str:
    """Id of the document that a source is in a collection of a user: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps([user_id, collection, source]).encode()).hexdigest()[:32]


def title_of(source: str, chunks: Sequence[Chunk]) -> str:
    """The title that a source is listed with."""
    return str(chunks[0].metadata.get("title") or source) if chunks else source


def page_of(sources: list[StoredSource], limit: int) -> SourcePage:
    """A page of `limit` sources, given one more where there are more."""
    more = len(sources) > limit
    last = sources[limit - 1] if more else None
    cursor = base64.urlsafe_b64encode(json.dumps([last.collection, last.source]).encode()).decode() if last else None
    return SourcePage(sources=sources[:limit], next_cursor=cursor)


def read_cursor(cursor: str) -> tuple[str, str]:
    """The collection and source that a page of sources ended with.

    Raises:
        ApplicationError: `rejected` for a cursor that no page came with.
    """
    try:
        collection, source = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return str(collection), str(source)
    except (ValueError, TypeError):
        raise failure("rejected", "cursor: no page came with this one; leave it out to begin") from None


def conversation_cursor(timestamp: int, order: int) -> str:
    """Where a page of a conversation begins, given the time of its first message in microseconds and its place."""
    return base64.urlsafe_b64encode(json.dumps([timestamp, order]).encode()).decode()


def read_conversation_cursor(cursor: str) -> tuple[int, int]:
    """The same, given the cursor.

    Raises:
        ApplicationError: `rejected` for a cursor that no page came with.
    """
    try:
        timestamp, order = (int(part) for part in read_cursor(cursor))
    except ValueError:
        raise failure("rejected", "cursor: no page came with this one; leave it out to begin") from None
    return timestamp, order


UNSCOPED = CacheScope()
CACHE_CANDIDATES = 8
"""How many of the nearest cached queries are looked at: the nearest may ask for something else."""


class Store(Protocol):
    """Documents, conversations, memories and cached answers, each record owned by one user.

    No method ever returns or changes another user's records. Writes are upserts by the record's id, so that an
    activity that runs twice has its effect once. Every method raises `activities.errors.failure`: `unavailable`
    (retryable) where the engine can't be reached or is locked, `model_mismatch` where a collection was filled by
    another embedding model, `rejected` for an argument that the engine can't take.
    """

    async def open(self, model: EmbeddingModel) -> None:
        """Connect, create what is missing, and remember which `model` fills the collections."""
        ...

    async def close(self) -> None:
        """Release every connection. Idempotent."""
        ...

    async def ping(self) -> str:
        """Reach the engine; answer its name, version and address without secrets."""
        ...

    # Documents

    async def source_hash(self, user_id: str, collection: str, source: str) -> str | None:
        """The content hash under which `source` is stored, or None where it isn't."""
        ...

    async def replace_source(self, user_id: str, collection: str, source: str, chunks: list[Chunk]) -> None:
        """Swap all chunks of `source` for `chunks` in one step: a search sees the old ones or the new ones."""
        ...

    async def list_sources(self, user_id: str, collection: str | None, limit: int, cursor: str | None) -> SourcePage:
        """What a user has stored, in one collection or in all, in order of collection and source.

        Raises:
            ApplicationError: `rejected` for a cursor of nothing.
        """
        ...

    async def remove_source(self, user_id: str, collection: str | None, source: str) -> int:
        """Remove a source of a user's, given its name or its document's id; answer how many chunks went.

        Without a collection it goes from all of them.
        """
        ...

    async def read_document(
        self, document_id: str, user_id: str | None, position: int, max_characters: int
    ) -> StoredDocument | None:
        """A document and its chunks from `position` on: one, and as many more as have `max_characters` together.

        None where there is none, or where it isn't that user's; without a user it may be anybody's.
        """
        ...

    async def stage(self, vectors: dict[str, bytes]) -> None:
        """Keep vectors of chunks, by chunk id, that aren't all there yet to be stored."""
        ...

    async def staged(self, chunk_ids: list[str]) -> dict[str, bytes]:
        """Those of these chunks' vectors that are kept. Storing a chunk removes its own; others go after a week."""
        ...

    async def collections(self, user_id: str) -> list[str]:
        """Names of the collections that hold at least one of the user's chunks, sorted."""
        ...

    async def search_documents(self, query: DocumentQuery) -> list[SearchHit]:
        """Hybrid search in one collection of one user, best first, at most `query.limit`.

        Weighted reciprocal rank fusion: score = Σ weight_leg × (RRF_K + 1) / (RRF_K + rank_leg), over the vector leg
        (weight `query.weight`) and the BM25 leg (1 − `query.weight`), ranks from 1. The factor RRF_K + 1 scales the
        best possible score to 1. A leg of weight 0 isn't run. Ties go to the lower chunk id.

        Raises:
            ApplicationError: `rejected` where the collection isn't one of the user's (the message names theirs; the
                default collection always is) or the filter isn't allowed.
        """
        ...

    # Conversations

    async def put_message(self, message: Message) -> None:
        """Store `message` under its id, found alone. One that is stored again as it was keeps its context."""
        ...

    async def message_before(self, user_id: str, message_id: str) -> PreviousMessage | None:
        """The message before a stored one, by time and then in the order of storing; None where there is none."""
        ...

    async def put_context(self, user_id: str, message_id: str, context: MessageContext) -> None:
        """Have a message be found together with the one before it too; nothing changes where either has gone."""
        ...

    async def read_message(self, user_id: str, message_id: str) -> Message | None:
        """The user's message, or None where they have none of this id."""
        ...

    async def read_conversation(
        self, user_id: str, conversation_id: str, limit: int, cursor: str | None = None
    ) -> tuple[list[ConversationMessage], str | None]:
        """The latest `limit` messages of a conversation, or those before a cursor, oldest first.

        In order of time; equal times keep the order of storing.

        Returns:
            The messages, and the cursor for those before them; None where there are none.

        Raises:
            ApplicationError: `rejected` for a cursor of nothing.
        """
        ...

    # Summaries
    #
    # A summary covers the messages that bear its `summary_id`, whatever their times and the order of storing.

    async def unsummarised(
        self, user_id: str, conversation_id: str, limit: int
    ) -> tuple[Summary | None, list[ConversationMessage]]:
        """A conversation's summary, and the earliest `limit` of its messages that it doesn't cover, in order of time.

        Without a summary none is covered.
        """
        ...

    async def put_summary(self, summary: Summary, covered: list[str]) -> bool:
        """Store a summary that also covers some messages, which earlier ones don't; all of it or nothing.

        Args:
            summary: Its `messages` counts those of the summary that it was made from, if any, and `covered`.
            covered: Ids of messages of the conversation.

        Returns:
            False where it was stored nowhere: the summary that it was made from isn't there any more as it was, or one
            of the messages has gone or is covered already.
        """
        ...

    async def summaries(self, user_id: str, conversation_ids: list[str]) -> list[Summary]:
        """The summaries of a user's conversations, in the order given; those without one are left out."""
        ...

    # Memories

    async def form_memory(self, node: MemoryNode, threshold: float) -> FormedMemory:
        """Store `node`, or reinforce the user's nearest memory that says the same, atomically.

        It does where its cosine reaches `threshold` and `same_statement` holds for both contents.

        Reinforcement raises `access_count` by one and importance i to i + (1 − i) × node.importance / 2, makes
        `last_accessed_at` that of the node where that is later, and adds the source messages; its parent counts as said
        again too and is as important as any child. A node whose source message already formed or reinforced a memory
        changes nothing. Nor does one with a source message that the user doesn't have: what was forgotten never comes
        back as a memory.
        """
        ...

    async def surroundings(self, user_id: str, memory_id: str) -> tuple[Said, list[Said]] | None:
        """A memory of level 0, and those nearest to it, with all members of their groups; None where it isn't there."""
        ...

    async def put_parent(self, parent: MemoryParent) -> bool:
        """Store a parent over its children, or let it grow to them, atomically.

        Its importance is that of its most important child; it was created when the newest was said. Uses of a child
        before it joined count as uses of the parent.

        Returns:
            False where what it was planned from (`may_group`) has changed since, and nothing was stored. True where it
            is as planned, be it already.
        """
        ...

    async def split_memory(self, user_id: str, memory_id: str) -> list[str]:
        """Remove a parent, so that its children stand alone again and never come together any more; answer their ids.

        Raises:
            ApplicationError: `rejected` where it is no parent of this user's and never was.
        """
        ...

    async def pin_memory(self, user_id: str, memory_id: str, pinned: bool) -> str:
        """Keep a memory whatever the budget, or don't any longer. A child is pinned with its parent.

        Returns:
            Id of what was pinned: the memory's or its parent's.

        Raises:
            ApplicationError: `rejected` where the user has no such memory.
        """
        ...

    async def list_memories(self, params: ListMemoriesParams, now: datetime) -> tuple[list[Memory], list[str]]:
        """A page of the user's memories, a parent in the place of its children, and the cursor after each of them.

        Raises:
            ApplicationError: `rejected` for a cursor of another list.
        """
        ...

    async def prune_memories(self, user_id: str, budget: int, now: datetime) -> int:
        """Forget the user's weakest memories beyond `budget` as of `now`; answer how many.

        Weakest: lowest strength × importance (`ranking.weakest`). A parent and its children are one memory, which stays
        or goes as a whole. Pinned ones count, and stay.
        """
        ...

    async def recall(self, query: MemoryQuery) -> Recollection:
        """Messages and memories of one user that bear on a text, each best first and at most `query.limit`.

        Messages are searched alone and in their contexts, by vector and by keyword; `relevance.rank_messages` says how
        they are ranked. They come with up to two neighbours on either side in their conversation; equal times keep the
        order of storing; and with the summaries that there are of the first SUMMARIES_RECALLED conversations. Memories
        are ranked by `ranking.rank`, a parent in the place of its children; each returned one counts one access per
        `query.retrieval_id`.
        """
        ...

    # Semantic cache

    async def put_cache_entry(self, entry: CacheEntry) -> None:
        """Store `entry`, replacing the user's for the same query hash in the same scope unless that one is newer."""
        ...

    async def cached_answer(
        self, user_id: str, query_hash: str, now: datetime, scope: CacheScope = UNSCOPED
    ) -> CacheEntry | None:
        """The user's entry for exactly this query in a scope, unless it has expired at `now`."""
        ...

    async def nearest_cached(
        self, user_id: str, embedding: bytes, now: datetime, scope: CacheScope = UNSCOPED
    ) -> list[CacheMatch]:
        """The user's unexpired entries in a scope whose queries are most similar, best first, however low the cosines.

        At most CACHE_CANDIDATES.
        """
        ...

    async def invalidate_cached(
        self, user_id: str, query_hash: str | None, namespace: str | None, model: str | None
    ) -> int:
        """Remove the user's entries that fit all of what is given, in every scope where none is; answer how many."""
        ...

    async def purge_expired(self, now: datetime) -> int:
        """Remove every entry that expired before `now`; answer how many."""
        ...

    # Forgetting

    async def matching(self, query: ForgetQuery, threshold: float) -> list[ForgetMatch]:
        """The user's messages, memories and cached answers that `query` means, at most `query.limit` of each kind.

        Of the hundred nearest of each kind, for messages by the fusion of `search_documents` with even weights, those
        whose cosine reaches `threshold` and those that hold every term of the query word for word. Most similar first.
        """
        ...

    async def going_with(self, user_id: str, ids: list[str]) -> list[ForgetMatch]:
        """The user's records of these ids and all that forgetting those removes, without similarities.

        A memory goes with the messages that it was formed from and that reinforced it, and goes where no message of
        its own is left. A parent goes with its children where it is named; where one of them goes, or says something
        else, it goes without the others, which stand alone again. A cached answer goes where its question or its answer
        is one of those messages word for word.
        """
        ...

    async def forget(self, target: ForgetTarget, most: int) -> Forgotten:
        """Remove the user's records that `target` names, and their copies, atomically; answer how many.

        Of a conversation or of everything, at most `most` of them: call again until the answer is complete. Documents
        stay. Cached answers go along as `going_with` says, and the summaries of the messages' conversations: the next
        ones are made of what is left. A memory goes where no message of its own is left, named or not. Where one is, it
        loses the others; and where what it says came from one of those, it says from then on what the oldest message
        left to it says. Parents go as `going_with` says. A pin keeps nothing.

        No memory forms of the messages afterwards, and no summary, be the attempt to make one under way meanwhile.
        """
        ...

    # Another embedding model
    #
    # These work on a store that isn't open, and that can't be while another model fills it. Each connects by itself and
    # keeps nothing between calls, so that any worker can run any of them; `close` releases what they connected.
    # Meanwhile the store is searched and written with the old vectors. All but the first raise `model_mismatch` where
    # no move to `model` is under way: none was begun, or one to yet another model has been since.

    async def begin_reembedding(self, model: EmbeddingModel) -> None:
        """Make room for vectors of `model` beside those in use. Idempotent.

        What was left of a move to yet another model is dropped. Where `model` fills the collections already there is
        nothing to do, and where none does yet, `model` does from here on.
        """
        ...

    async def texts_to_embed(self, model: EmbeddingModel, collection: str, limit: int) -> list[RecordText]:
        """Up to `limit` records of a collection that have no vector of `model` yet, with the text to embed of each.

        None are left where the list is empty. Which text it is, `EMBEDDED` says.
        """
        ...

    async def put_embeddings(self, model: EmbeddingModel, collection: str, embedded: list[RecordEmbedding]) -> None:
        """Store vectors of `model`; one of zeros counts as a vector.

        A record whose text is no longer the one that was embedded, or that is gone, is left out. The new vector of a
        record that is replaced, changed or removed later goes with it.

        Raises:
            ApplicationError: `rejected` for a vector of another length, or one that isn't finite.
        """
        ...

    async def reembedding_progress(self, model: EmbeddingModel) -> Reembedding:
        """How many records have a vector of `model`: all of them once it fills the collections."""
        ...

    async def finish_reembedding(self, model: EmbeddingModel) -> bool:
        """Switch every collection to `model` at once, so that no search sees vectors of two models.

        Whoever has the store open with the old model fails with `model_mismatch` from then on.

        Returns:
            False where records without a vector of `model` have come meanwhile, and nothing was switched: embed those
            and call again. True where `model` fills the collections, be it already.
        """
        ...


class OpenedStore:
    """Opens a store at its first use, so that a process starts, and says what is wrong, while the engine is away."""

    def __init__(self, store: Store, model: EmbeddingModel) -> None:
        self._store = store
        self._model = model
        self._lock = asyncio.Lock()
        self._opened = False

    async def __call__(self) -> Store:
        """The store, open.

        Raises:
            ApplicationError: as `Store.open` does; the next call tries again.
        """
        if not self._opened:
            async with self._lock:
                if not self._opened:
                    await self._store.open(self._model)
                    self._opened = True
        return self._store

    @property
    def model(self) -> EmbeddingModel:
        """What the store is opened with."""
        return self._model

    @property
    def unopened(self) -> Store:
        """The store as it is, for what works on one that another model fills."""
        return self._store

    async def close(self) -> None:
        """Release the store's connections. Idempotent."""
        await self._store.close()
