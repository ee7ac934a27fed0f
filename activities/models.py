"""The models that cross the seams: tool results, workflow and activity arguments, stored records.

Vectors cross as packed little-endian float32 bytes, four bytes a dimension, L2-normalised so that their dot product is
their cosine. In a workflow history they are base64, never JSON lists of floats.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from sys import byteorder
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

MessageType = Literal["human", "ai"]
Side = Literal["query", "passage"]

DEFAULT_COLLECTION = "documents"


class Model(BaseModel):
    """Base of every model that crosses a seam: bytes as base64.

    Unknown fields are ignored, so that workers and servers of neighbouring versions understand each other during a
    rolling deploy.
    """

    model_config = ConfigDict(extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")


def pack_vector(values: Sequence[float]) -> bytes:
    """Pack `values` (shape: dimensions) as little-endian float32, scaled to unit length.

    A vector of zeros stays zeros: it is similar to nothing.
    """
    norm = sqrt(sum(value * value for value in values)) or 1.0
    packed = array("f", [value / norm for value in values])
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class EmbeddingModel(Model):
    """Which model fills a collection; a collection filled by one can't be searched with another."""

    model_id: str
    dimensions: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.model_id} ({self.dimensions} dimensions)"


# Embedding


class EmbedParams(Model):
    texts: list[str]
    side: Side = "passage"


class Embeddings(Model):
    vectors: list[bytes]


@dataclass(frozen=True)
class Embedded:
    """Which text of a record is embedded, and on which side."""

    field: str
    side: Side


EMBEDDED: dict[str, Embedded] = {
    "documents": Embedded("text", "passage"),
    "conversations": Embedded("text", "passage"),
    # Each message once more, together with the one before it.
    "contexts": Embedded("text", "passage"),
    "memory_nodes": Embedded("content", "passage"),
    # Two queries are compared with each other, so both are embedded on the same side.
    "cache": Embedded("query", "query"),
}
"""By collection of the store."""


# Another embedding model


class RecordText(Model):
    """A record of a collection, and the text to embed of it."""

    record_id: str
    text: str


class RecordEmbedding(RecordText):
    """The same with the text's embedding."""

    embedding: bytes


class Reembedding(Model):
    """How far a store's records have been embedded with another model."""

    filled_by: EmbeddingModel = Field(description="Which model's vectors the collections are searched by.")
    records: int = Field(description="Records in all collections.")
    embedded: int = Field(description="Those of them that have a vector of the other model.")


class ReembedCollectionParams(Model):
    model: EmbeddingModel
    collection: str


# Documents


class Chunk(Model):
    """A piece of a document as the store keeps it."""

    chunk_id: str
    user_id: str
    collection: str
    source: str
    content_hash: str = Field(description="Hash of the whole source, by which an unchanged one is skipped.")
    position: int = Field(ge=0, description="0 for the first chunk of its source.")
    text: str
    embedding: bytes
    metadata: dict[str, Any] = Field(default_factory=dict)


class StoredSource(Model):
    """A document that is stored."""

    document_id: str
    collection: str
    source: str = Field(description="Its path, its URL or its name.")
    title: str
    chunks: int
    content_hash: str
    stored_at: AwareDatetime


class ListDocumentsParams(Model):
    user_id: str
    collection: str | None = Field(default=None, description="Null for all.")
    limit: int = 100
    cursor: str | None = None


class SourcePage(Model):
    sources: list[StoredSource] = Field(description="In order of collection and source.")
    next_cursor: str | None = Field(default=None, description="Give it as cursor to go on; null where this is the end.")


class SourceRemoval(Model):
    user_id: str
    collection: str | None = Field(description="Null for all.")
    source: str = Field(description="The source's name, or the document's id.")


class SourceRemoved(Model):
    chunks: int = Field(description="How many chunks were removed; 0 where there is no such source.")


class DocumentKey(Model):
    """Where to begin to read a document."""

    document_id: str
    user_id: str | None = Field(description="Whose it must be; null for anybody's.")
    position: int = 0


class DocumentChunk(Model):
    position: int
    text: str
    metadata: dict[str, Any]


class StoredDocument(StoredSource):
    """A document and some of its chunks."""

    user_id: str
    content: list[DocumentChunk] = Field(description="In order; neighbours overlap a little.")
    next_position: int | None = Field(description="Of the first chunk after these; null where this is the end.")


class HybridSearchParams(Model):
    user_id: str
    query: str
    limit: int = 10
    weight: float = 0.5
    collection: str = DEFAULT_COLLECTION
    filter: dict[str, Any] | None = None


class DocumentQuery(HybridSearchParams):
    """A search with its query already embedded."""

    embedding: bytes


class SearchHit(Model):
    id: str = Field(description="Id of the chunk.")
    text: str = Field(description="The chunk's text.")
    score: float = Field(description="Fused score, from 0 to 1; 1 is first in every leg that has weight.")
    vector_score: float | None = Field(description="Cosine similarity to the query; null where this leg missed it.")
    text_score: float | None = Field(description="BM25 score, higher is better; null where this leg missed it.")
    metadata: dict[str, Any] = Field(description="Source, title, position and whatever else was stored with the chunk.")


class HybridSearchResult(Model):
    results: list[SearchHit] = Field(description="Best first.")


class ExternalCollection(Model):
    """A collection that somebody else fills, with the fields and search indexes that it has already."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[^.$/\\ ]+\.[^$]+$", description="database.collection, as callers name it.")
    text_field: str = Field(min_length=1, description="Field that is the text, and is searched by keyword.")
    vector_field: str = Field(min_length=1, description="Field with vectors of the configured embedding model.")
    vector_index: str = Field(min_length=1, description="Its vector search index.")
    text_index: str = Field(min_length=1, description="Its full-text search index.")
    user_field: str | None = Field(
        description="Field with the id of the user whose record it is; null where all users may see all records."
    )
    filter_fields: list[str] = Field(
        default_factory=list, description="Fields that a filter may name: those indexed for it in both indexes."
    )


# Conversations and memory


class MessageContext(Model):
    """A message together with the one before it: what a short answer speaks of often stands in the question."""

    previous: str = Field(description="Id of the message that was before it when this was made.")
    text: str = Field(description="The end of that message, and the message's own text.")
    embedding: bytes


class Message(Model):
    """One message of a conversation as the store keeps it."""

    message_id: str
    user_id: str
    conversation_id: str
    message_type: MessageType
    text: str
    timestamp: AwareDatetime
    embedding: bytes


class PreviousMessage(Model):
    message_id: str
    text: str


class StoreMemoryParams(Model):
    user_id: str
    conversation_id: str
    text: str
    message_type: MessageType
    timestamp: AwareDatetime | None = None


class StoreMemoryResult(Model):
    message_id: str = Field(description="Id of the stored message.")
    memory_forming: bool = Field(description="Whether a long-term memory is being formed from it in the background.")


class ContextMessage(Model):
    message_type: MessageType
    text: str
    timestamp: AwareDatetime


class MessageKey(Model):
    """Names one message, which the store holds."""

    user_id: str
    message_id: str


class MessageKeys(Model):
    """Names messages of one user."""

    user_id: str
    message_ids: list[str]


class ConversationKey(Model):
    """Names one conversation."""

    user_id: str
    conversation_id: str


class StoredMessage(MessageKey):
    """A message that the user's memory has to be told of, perhaps for others that were stored with it too."""

    conversation_id: str
    significant: bool = Field(description="Whether it may be worth a long-term memory.")
    contexts: list[str] = Field(
        default_factory=list, description="Ids of messages to be found together with the ones before them too."
    )


class ConversationMessage(ContextMessage):
    message_id: str


class Summary(Model):
    """What was said in a conversation, as far as it has been summarised; every conversation has one at most."""

    user_id: str
    conversation_id: str
    summary_id: str = Field(description="Marks the messages that it covers; new where a summary is begun anew.")
    text: str
    model_id: str = Field(description="Which model wrote it last.")
    messages: int = Field(ge=1, description="How many messages it covers.")
    first_at: AwareDatetime = Field(description="When the earliest of them was said.")
    last_at: AwareDatetime = Field(description="When the latest of them was said.")
    updated_at: AwareDatetime


class RelatedMessage(Model):
    message_id: str
    conversation_id: str
    message_type: MessageType
    text: str = Field(description="The message as it was stored.")
    timestamp: AwareDatetime
    score: float = Field(description="Fused score, from 0 to 1.")
    before: list[ContextMessage] = Field(
        description="Those just before it in its conversation, oldest first, cut to size."
    )
    after: list[ContextMessage] = Field(
        description="Those just after it in its conversation, oldest first, cut to size."
    )


class MemoryNode(Model):
    """A long-term memory as the store keeps it."""

    memory_id: str
    user_id: str
    content: str
    summary: str
    importance: float = Field(ge=0, le=1)
    level: int = 0
    parent: str | None = None
    source_messages: list[str] = Field(description="Ids of the messages it was formed from; never empty.")
    created_at: AwareDatetime
    embedding: bytes


class FormedMemory(Model):
    memory_id: str | None = Field(description="Null where a source message is gone: what was forgotten forms nothing.")
    reinforced: bool = Field(description="True where a near-duplicate was strengthened instead of a new one made.")


class MemoryChild(Model):
    """A memory that is consolidated with others under a parent."""

    memory_id: str
    content: str = Field(description="What was said.")
    created_at: AwareDatetime


class Memory(Model):
    """A long-term memory as a caller sees it: one that stands alone, or a parent with its children."""

    memory_id: str
    content: str = Field(description="What was said; of a parent, what was said in its children, newest first.")
    summary: str
    importance: float = Field(description="From 0 to 1.")
    strength: float = Field(description="From 0 to 1: fades with time and grows with use.")
    access_count: int = Field(description="How often it was retrieved or said again.")
    created_at: AwareDatetime = Field(description="When it was said; of a parent, when its newest child was.")
    last_accessed_at: AwareDatetime = Field(description="When it was last retrieved or said.")
    pinned: bool = Field(description="Whether it is kept whatever the budget.")
    level: int = Field(description="0 for what was said, 1 for a parent of several.")
    children: list[MemoryChild] = Field(description="A parent's, newest first: where they disagree, the first holds.")
    source_messages: list[str] = Field(description="Ids of the messages it was formed from.")


class SimilarMemory(Memory):
    """A memory that bears on a text."""

    similarity: float = Field(description="Cosine similarity to the query; of a parent, the best of its children's.")
    score: float = Field(description="From 0 to 1: similarity, and a little of importance, recency and strength.")


class MemoryGroup(Model):
    """Memories to be consolidated under one parent, and what is to be seen of them there."""

    memory_id: str = Field(description="Id of the parent.")
    user_id: str
    content: str
    children: list[MemoryChild] = Field(description="Newest first; those that the parent has already included.")


class MemoryParent(MemoryGroup):
    """The same with what was made of it."""

    summary: str
    embedding: bytes = Field(description="Of the content.")


class MemoryKey(Model):
    """Which memory of which user."""

    user_id: str
    memory_id: str


MemoryOrder = Literal["newest", "strongest"]


class ListMemoriesParams(Model):
    user_id: str
    limit: int = 20
    order: MemoryOrder = "newest"
    pinned: bool = False
    cursor: str | None = None


class MemoryPage(Model):
    memories: list[Memory]
    next_cursor: str | None = Field(default=None, description="Give it as cursor to go on; null where this is the end.")


class PinMemoryParams(MemoryKey):
    pinned: bool


class PinMemoryResult(Model):
    memory_id: str
    pinned: bool = Field(description="Whether it is kept whatever the budget.")


class SplitMemoryResult(Model):
    memory_id: str = Field(description="Id of the parent that is gone.")
    children: list[str] = Field(description="Ids of the memories that stand alone again, newest first.")


class RetrieveMemoryParams(Model):
    user_id: str
    text: str
    limit: int = 10


class MemoryQuery(RetrieveMemoryParams):
    """A retrieval with its text already embedded."""

    embedding: bytes
    retrieval_id: str = Field(description="Id of the workflow: a repeated activity counts as one access.")
    now: AwareDatetime = Field(description="As of when memories are weighed, and when they count as accessed.")


class Recollection(Model):
    """What the store holds that bears on a text."""

    related_conversation: list[RelatedMessage]
    similar_memories: list[SimilarMemory]
    summaries: list[Summary] = Field(description="Of the conversations that the best messages are from.")


class RetrieveMemoryResult(Model):
    related_conversation: list[RelatedMessage] = Field(description="Best first, each with its surroundings.")
    conversation_summary: str = Field(
        description="Summaries of the conversations that the best messages are from, each headed by its "
        "conversation_id and dates; empty where there is none yet."
    )
    summary_model: str | None = Field(description="Which models wrote the summaries; null where there is none.")
    similar_memories: list[SimilarMemory] = Field(description="Long-term memories, best first.")


class Assessment(Model):
    """What a language model, or the stated heuristic, makes of a message."""

    importance: float = Field(ge=0, le=1)
    summary: str


class FormMemoryParams(MessageKey):
    """A stored message that is worth a long-term memory."""

    assessment: Assessment


class UserMemoryParams(Model):
    """What is left to do for a user's memory, carried over continue-as-new."""

    user_id: str
    forming: list[str] = Field(default_factory=list, description="Ids of messages that may be worth a memory, in turn.")
    summarising: list[str] = Field(default_factory=list, description="Ids of conversations with new messages.")
    contexts: list[str] = Field(
        default_factory=list, description="Ids of messages to be found together with the ones before them too."
    )


# Semantic cache


class CacheScope(Model):
    """Which of a user's cached answers: those stored under a namespace and for a model, each a free name or none.

    An answer stored under one is found under no other, nor under none.
    """

    namespace: str = ""
    model: str = ""


class CacheEntry(CacheScope):
    """A cached answer as the store keeps it."""

    entry_id: str
    user_id: str
    query: str
    query_hash: str
    response: str
    created_at: AwareDatetime
    expires_at: AwareDatetime
    embedding: bytes


class CacheStoreParams(CacheScope):
    user_id: str
    query: str
    response: str
    ttl_seconds: int
    timestamp: AwareDatetime | None = None


class CacheStoreResult(Model):
    entry_id: str
    expires_at: AwareDatetime


class CacheCheckParams(CacheScope):
    user_id: str
    query: str
    threshold: float | None = None


class DatedCacheCheck(CacheCheckParams):
    now: AwareDatetime | None = Field(
        default=None, description="As of when answers have expired, by Temporal's clock: workers' may be wrong."
    )


class CacheLookup(DatedCacheCheck):
    """A look-up with its query already embedded."""

    embedding: bytes


class CacheMatch(Model):
    entry: CacheEntry
    similarity: float


class InvalidateCacheParams(Model):
    """Which cached answers to drop: those that everything given here fits."""

    user_id: str
    query: str | None = None
    namespace: str | None = None
    model: str | None = None


class InvalidateCacheResult(Model):
    removed: int = Field(description="How many cached answers were dropped.")


class CacheCheckResult(Model):
    hit: bool
    response: str | None = Field(default=None, description="The cached answer; null on a miss.")
    similarity: float | None = Field(
        default=None,
        description="Cosine similarity of the two queries, 1 for an identical one; on a miss, that of the nearest, "
        "which may be high where it asks for something else.",
    )
    cached_query: str | None = Field(default=None, description="The query that the answer was cached for.")
    age_seconds: float | None = Field(default=None, description="Seconds since the answer was cached.")
    expires_at: AwareDatetime | None = None


# Forgetting

RecordKind = Literal["message", "memory", "cached_answer"]


class ForgetParams(Model):
    """What to forget: exactly one of `ids`, `conversation_id`, `query` and `everything` is given."""

    user_id: str
    ids: list[str] | None = None
    conversation_id: str | None = None
    query: str | None = None
    everything: bool = False
    asks: bool = Field(default=False, description="Whether the user has yet to agree to it.")
    limit: int = 20
    threshold: float | None = None
    confirmation: str | None = None


class ForgetQuery(Model):
    """A query whose matches are to be shown, already embedded."""

    user_id: str
    query: str
    limit: int
    threshold: float | None = Field(description="Least cosine similarity of a match; null for the model's default.")
    embedding: bytes


class ForgetIds(Model):
    user_id: str
    ids: list[str]


class ForgetTarget(Model):
    """What the store is to forget: some records, a conversation, or everything but documents."""

    user_id: str
    ids: list[str] | None = None
    conversation_id: str | None = None
    everything: bool = False


class ForgetMatch(Model):
    """A record that forgetting removes."""

    id: str
    kind: RecordKind
    text: str = Field(description="What a message or memory says, or a cached question and its answer; cut to size.")
    created_at: AwareDatetime
    conversation_id: str | None = Field(default=None, description="Of a message.")
    similarity: float | None = Field(
        default=None,
        description="Cosine similarity to the query; null for what only goes with a match: the messages that a memory "
        "formed from, a memory that formed from those alone, a cached answer that holds one word for word.",
    )


class ForgetPreview(Model):
    """What a query matches, and the token that stands for exactly these records."""

    matches: list[ForgetMatch]
    confirmation: str | None = Field(description="Null where nothing matches.")


class ForgetSelection(Model):
    """Ids of records that go together, and those that were asked for and aren't there."""

    ids: list[str]
    unknown: list[str]


class Forgotten(Model):
    """How many records were removed."""

    messages: int = 0
    memories: int = 0
    cached_answers: int = 0
    complete: bool = Field(default=True, description="Whether nothing is left to remove.")


class ForgetResult(Model):
    messages: int = Field(default=0, description="Messages removed.")
    memories: int = Field(default=0, description="Memories removed.")
    cached_answers: int = Field(default=0, description="Cached answers removed.")
    unknown_ids: list[str] = Field(
        default_factory=list, description="Those of ids that aren't the user's, or are gone already."
    )
    matches: list[ForgetMatch] = Field(
        default_factory=list,
        description="What the query matches, most similar first, then what goes with it. Nothing of it is removed yet.",
    )
    confirmation: str | None = Field(
        default=None, description="Give it back with the same arguments to remove all of matches, and nothing else."
    )


# Web search

Topic = Literal["general", "news", "finance"]
SearchDepth = Literal["basic", "advanced"]
TimeRange = Literal["day", "week", "month", "year"]


class WebSearchParams(Model):
    query: str
    max_results: int = 5
    topic: Topic = "general"
    search_depth: SearchDepth = "basic"
    include_domains: list[str] = Field(default_factory=list)
    exclude_domains: list[str] = Field(default_factory=list)
    time_range: TimeRange | None = None


class WebResult(Model):
    title: str
    url: str
    content: str
    score: float
    published_date: str | None = None


class WebSearchResult(Model):
    results: list[WebResult] = Field(description="Best first.")


# Text generation


class GenerateParams(Model):
    system: str
    prompt: str
    max_tokens: int = 512
    temperature: float = 0.0
    answer_schema: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the answer, which a model that takes tools is held to."
    )


class Generated(Model):
    text: str
    model_id: str
    stop_reason: str
    input_tokens: int
    output_tokens: int


# Ingestion

SourceStatus = Literal["stored", "unchanged", "skipped", "failed"]


class SourceRequest(Model):
    """What a caller names to be ingested: a path, a URL, or a content with its name."""

    path: str | None = Field(default=None, description="Absolute path of a file or a folder.")
    url: str | None = Field(default=None, description="Of a page, or of a sitemap.")
    content: str | None = Field(default=None, description="Name of a content that the server holds.")
    name: str = Field(default="", description="Of a content: what it is stored as, its file's name.")
    media_type: str = Field(default="", description="Of a content, as its sender says.")
    error: str | None = Field(default=None, description="Of a content, what keeps it from being read.")


class IngestParams(Model):
    user_id: str
    collection: str = DEFAULT_COLLECTION
    sources: list[SourceRequest]
    include: list[str] = Field(default_factory=list, description="Globs of what is taken of folders and sitemaps.")
    exclude: list[str] = Field(default_factory=list, description="Globs of what is left out of them.")
    roots: list[str] = Field(default_factory=list, description="Folders and files outside of which no path is read.")
    files_queue: str | None = Field(default=None, description="Task queue whose workers have the files.")
    state: "IngestState | None" = Field(default=None, description="Carried over continue-as-new.")


class Source(Model):
    """One document to be ingested, or what is wrong with it already."""

    source: str = Field(description="What it is stored as: its path, its URL or its name.")
    path: str | None = None
    url: str | None = None
    content: str | None = Field(default=None, description="Name of the content that the server holds.")
    filename: str = Field(default="", description="Of a content or a page; with the media type it tells the format.")
    media_type: str = ""
    error: str | None = Field(default=None, description="What keeps it from being read.")


class Listing(Model):
    """A list of sources of any length, which is kept in pages outside the workflow's history."""

    pages: list[str] = Field(description="Names of the contents that hold them, in order.")
    total: int = Field(description="How many sources there are.")


class ContentName(Model):
    name: str


class ContentNames(Model):
    names: list[str]


class SourceList(Model):
    sources: list[Source]


class SourceParams(Model):
    """One source on its way into a collection."""

    user_id: str
    collection: str
    source: Source
    roots: list[str]


class SourceLook(Model):
    """What a source is, before it is read in."""

    is_image: bool = False
    outcome: "SourceOutcome | None" = Field(default=None, description="Where nothing is left to do.")


class IngestSourceParams(SourceParams):
    description: str | None = Field(default=None, description="What an image shows.")


class SourceOutcome(Model):
    source: str
    status: SourceStatus
    reason: str | None = Field(
        default=None, description="Why it failed or was skipped. What was stored of it before, if anything, still is."
    )
    chunks: int = Field(default=0, description="Chunks stored now.")
    document_id: str | None = Field(default=None, description="Read it as the resource document://{document_id}.")


class IngestResult(Model):
    stored: int = Field(default=0, description="Sources whose chunks were stored.")
    chunks: int = Field(default=0, description="Chunks of those.")
    unchanged: int = Field(default=0, description="Sources that are stored already as they are.")
    skipped: int = Field(default=0, description="Sources that nothing here can read: the reason says what can.")
    failed: int = Field(default=0, description="Sources that can't be read or stored, each for a reason of its own.")
    sources: list[SourceOutcome] = Field(
        default_factory=list, description="What became of each; of many, the failed and skipped ones before others."
    )


class IngestState(Model):
    """How far an ingestion has come."""

    listing: Listing
    page: int = Field(description="Which page is being worked on.")
    taken: int = Field(description="How many sources of that page have been taken up.")
    result: IngestResult


class IngestProgress(Model):
    total: int | None = Field(description="How many sources there are; null until they are listed.")
    done: int


# Images


class ImageParams(Model):
    """An image to be prepared for a vision model."""

    source: Source
    roots: list[str] = Field(default_factory=list)
    files_queue: str | None = None


class PreparedImage(Model):
    """An image as a vision model takes it."""

    content: str = Field(description="Name of the content that holds it.")
    media_type: Literal["image/png", "image/jpeg"]
    width: int
    height: int


class ImageDescription(Model):
    text: str | None = Field(description="What it shows, or the text in it; null where nobody here can tell.")
    reason: str = Field(default="", description="Why nobody can.")


# Answers

PassageKind = Literal["document", "message", "memory", "web", "image"]
Role = Literal["user", "assistant"]


class Passage(Model):
    """Something that an answer may be drawn from, and then cites."""

    id: str = Field(description="Id of the chunk, message or memory; of a page on the web, its URL.")
    kind: PassageKind
    text: str
    title: str = ""
    source: str = Field(default="", description="A document's source, a page's URL, a message's conversation_id.")
    page: int | None = None
    position: int | None = Field(default=None, description="Of a document's chunk, 0 for the first.")
    document_id: str | None = Field(default=None, description="Read it as the resource document://{document_id}.")
    timestamp: AwareDatetime | None = Field(default=None, description="Of a message or memory, when it was said.")


class Citation(Passage):
    """A passage that an answer cites, its text cut to size."""

    number: int = Field(ge=1, description="The answer says [number] where it draws on it.")


class ChatMessage(Model):
    """One message of a conversation as a model is given it."""

    role: Role
    text: str
    image: PreparedImage | None = Field(default=None, description="By reference: its content isn't dropped here.")


class GenerationParams(Model):
    """A conversation whose last message is to be answered."""

    user_id: str = Field(description="For whom tools search and remember; never anybody else.")
    messages: list[ChatMessage] = Field(min_length=1, description="Oldest first; the last is the user's.")
    passages: list[Passage] = Field(default_factory=list, description="What was retrieved for it, best first.")
    system: str = Field(default="", description="Rules of citing are added where there is something to cite.")
    system_version: str = Field(default="", description="Name of that wording, by which an answer can be explained.")
    use_tools: bool = Field(default=False, description="Whether the model may call tools.")
    collection: str = Field(default=DEFAULT_COLLECTION, description="What the model's own searches search.")
    cache: CacheScope = Field(default_factory=CacheScope, description="Which cached answers it may look up.")
    max_tokens: int = Field(default=1024, ge=1, description="Length of the answer, at most.")
    temperature: float | None = Field(default=0.2, ge=0, le=1, description="Null for the model's own.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Null for the model's own.")
    watched: bool = Field(default=True, description="Whether somebody follows the answer while it is written.")


class ToolSpec(Model):
    """A tool as a model is told of it."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="As the model calls it.")
    description: str
    input_schema: dict[str, Any]


class ToolUse(Model):
    """A model's wish to have a tool called."""

    id: str
    name: str
    input: dict[str, Any]
    problem: str = Field(default="", description="Why its arguments can't be read, where they can't.")


class ToolOutcome(Model):
    """What a tool answered, or how it failed, as the model is told it."""

    tool_use_id: str
    text: str
    error: bool = False


class Reasoning(Model):
    """What a model thought, which it is given back together with the tools' answers."""

    text: str = ""
    signature: str | None = None
    redacted: bytes | None = None


class ModelTurn(Model):
    """One turn between a model and its tools, after the message that is to be answered."""

    role: Role
    text: str = ""
    reasoning: list[Reasoning] = Field(default_factory=list)
    tool_uses: list[ToolUse] = Field(default_factory=list)
    tool_outcomes: list[ToolOutcome] = Field(default_factory=list)


class GenerationMeans(Model):
    """What the workers of this deployment have to answer with."""

    generative: bool = Field(description="False where the text model only picks sentences out of passages.")
    web_search: bool = Field(description="Whether the web can be searched.")
    servers: list[str] = Field(description="Names of the other MCP servers whose tools may be called.")


class AnswerParams(GenerationParams):
    """One invocation of the model: the first, or one after a round of tools."""

    tools: list[ToolSpec] = Field(default_factory=list)
    turns: list[ModelTurn] = Field(default_factory=list, description="What came of the invocations before this one.")


class PartialAnswer(Model):
    """What there is of an answer while it is being written: details of the heartbeats of its activity."""

    text: str
    round: int = Field(description="1 for the first time that the model is asked; one more after each round of tools.")


class Invocation(Model):
    """One call of a model, with all that it takes to explain what it answered."""

    model_id: str
    temperature: float | None = Field(description="As it was sent; null for the model's own.")
    top_p: float | None = Field(description="As it was sent; null for the model's own.")
    max_tokens: int
    system_version: str
    input_tokens: int
    output_tokens: int
    stop_reason: str
    latency_ms: int = Field(description="As the model's service measured it.")


class ModelReply(Model):
    """What one invocation of the model came to."""

    turn: ModelTurn
    invocation: Invocation


class ToolCall(Model):
    """One call of a tool by the model."""

    server: str | None = Field(description="Which of the declared MCP servers; null for this server's own tools.")
    tool: str
    arguments: str = Field(description="As JSON, cut to size.")
    error: str | None = Field(default=None, description="What the model was told where it failed.")


class GenerationResult(Model):
    """An answer, and how it came about."""

    text: str = Field(description="With [number] where it cites.")
    citations: list[Citation] = Field(description="What it cites, in order of number.")
    model_id: str
    generative: bool = Field(description="False where the text is only picked out of the passages.")
    stop_reason: str = Field(description="Of the last invocation; max_tokens where the answer is cut off.")
    invocations: list[Invocation]
    tool_calls: list[ToolCall] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list, description="Such as a declared MCP server that can't be used.")


# Conversations


class ConversationLimits(Model):
    """How much a conversation holds before it lets go of some, and how long it waits; each message brings its own."""

    idle_seconds: float = Field(default=0, ge=0, description="Without a message for so long it ends; 0 for never.")
    history_tokens: int = Field(default=8_000, ge=1, description="Most of what was said that a model is given again.")
    context_tokens: int = Field(default=3_000, ge=1, description="Most of what is retrieved for a message.")
    answer_tokens: int = Field(default=1_024, ge=1, description="Length of an answer, at most.")
    cache_ttl_seconds: int = Field(default=86_400, ge=1, description="How long a cached answer lives.")


class Prompt(Model):
    """A message to a conversation."""

    message_id: str = Field(description="Of the sender's: what is sent twice under one id is said once.")
    text: str
    image: PreparedImage | None = None
    use_cache: bool = True
    use_memory: bool = True
    use_search: bool = True
    limits: ConversationLimits = Field(default_factory=ConversationLimits)


class CacheHit(Model):
    """Which cached answer was given."""

    similarity: float = Field(description="Cosine similarity of the two questions, 1 for an identical one.")
    question: str = Field(description="The question that the answer was cached for.")
    age_seconds: float


class ConversationReply(Model):
    """An answer in a conversation, and how it came about."""

    conversation_id: str
    message_id: str = Field(description="Id of the user's message as it is stored.")
    answer_id: str = Field(description="Id of the answer as it is stored.")
    answer: str = Field(description="With [number] where it cites, and at its end what it cites.")
    cached: CacheHit | None = Field(description="Which cached answer it is; null where it was made for this message.")
    citations: list[Citation] = Field(description="The documents and memories that it draws on, by number.")
    model: str = Field(description="Which model answered, now or when the answer was cached.")
    generative: bool = Field(description="False where the answer is only picked out of the passages that it cites.")
    stop_reason: str = Field(description="end_turn where it is whole, max_tokens where it is cut off.")
    invocations: list[Invocation] = Field(description="Each call of a model that was made for it.")
    tool_calls: list[ToolCall] = Field(default_factory=list, description="Tools that the model called.")
    warnings: list[str] = Field(default_factory=list, description="What the answer had to do without.")


class ConversationTurn(Model):
    """A message and its answer, as an open conversation holds them."""

    sender_id: str = Field(description="The prompt's own message_id.")
    prompt: str
    asked_at: AwareDatetime
    answered_at: AwareDatetime
    image: PreparedImage | None = None
    reply: ConversationReply


class ConversationParams(ConversationKey):
    """Which conversation it is, and what is carried over continue-as-new."""

    turns: list[ConversationTurn] = Field(default_factory=list, description="The last ones, oldest first.")
    summary: str = Field(default="", description="Of what was said, as far as it has been summarised.")
    waiting: list[Prompt] = Field(default_factory=list, description="Messages that aren't answered yet, in turn.")
    last_at: AwareDatetime | None = Field(default=None, description="The time of the last stored message.")
    limits: ConversationLimits = Field(default_factory=ConversationLimits)
    ending: bool = False


class ConversationState(Model):
    """An open conversation as it stands."""

    turns: list[ConversationTurn] = Field(description="The last ones, oldest first.")
    waiting: list[Prompt] = Field(description="Messages that aren't answered yet, in turn; the first is under way.")
    summary: str
    generation_id: str | None = Field(description="The workflow that answers now; null where none does.")


class ConversationClosed(Model):
    """What is left of a conversation that has ended: it opens again with its next message."""

    conversation_id: str
    summary: str = Field(description="What was said, as it is kept in memory; empty where nothing was.")


class ConverseParams(Model):
    """A message, as a caller gives it."""

    user_id: str
    conversation_id: str | None = Field(description="Null for a new one.")
    prompt: str
    image: Source | None = Field(default=None, description="By reference.")
    roots: list[str] = Field(default_factory=list)
    files_queue: str | None = None
    wait: bool = Field(default=True, description="False to return as soon as it is in the conversation.")
    use_cache: bool = True
    use_memory: bool = True
    use_search: bool = True
    limits: ConversationLimits = Field(default_factory=ConversationLimits)


class SendParams(ConversationKey):
    prompt: Prompt
    wait: bool = True


class Accepted(Model):
    """What a caller is told who doesn't wait for the answer."""

    conversation_id: str
    message_id: str = Field(description="Id under which the message is stored once it is answered.")


class TurnKey(ConversationKey):
    """Where a turn is stored, and how much of what was said before is wanted for it."""

    prompt_id: str
    answer_id: str
    history_tokens: int


class OpenedTurn(Model):
    """What a turn begins with."""

    answer: str | None = Field(description="What it was answered already, and stored; null where it wasn't.")
    history: list[ConversationMessage] = Field(description="What was said last, oldest first.")
    is_whole: bool = Field(description="Whether that is all that was said.")
    summary: str = Field(description="Of all that was said, as far as it has been summarised.")
    model_id: str = Field(description="Which model answers.")
    generative: bool


class ContextQuery(ConversationKey):
    """What is to be retrieved for a message, already embedded."""

    text: str
    embedding: bytes
    now: AwareDatetime
    retrieval_id: str
    tokens: int
    use_memory: bool
    use_search: bool
    known: list[str] = Field(description="Ids of messages that the model is given anyway.")


class Context(Model):
    passages: list[Passage] = Field(description="Best first, as many as the budget holds.")


class StoreTurnParams(TurnKey):
    """A turn to be stored, both messages or none."""

    prompt: str
    asked_at: AwareDatetime
    answer: str
    answered_at: AwareDatetime


class HistoryParams(ConversationKey):
    limit: int = 50
    cursor: str | None = None


class HistoryMessage(ConversationMessage):
    """A message of a conversation, and what is known of an answer while the conversation holds it."""

    citations: list[Citation] = Field(default_factory=list)
    cached: bool = False


class ConversationHistory(Model):
    """A page of a conversation, in the one order that everybody sees."""

    conversation_id: str
    is_open: bool = Field(description="Whether it waits for messages; one that has ended opens with the next.")
    messages: list[HistoryMessage] = Field(description="Oldest first; without a cursor the latest.")
    waiting: list[str] = Field(description="Messages that aren't answered yet, in turn; the first is under way.")
    summary: str
    next_cursor: str | None = Field(
        default=None, description="Give it as cursor for what was said before; null where this is the beginning."
    )
