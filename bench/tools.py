"""The tool calls that `bench.latency` times, each with its workflow and with the same work as direct calls."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from temporalio.client import Client

from activities.bedrock import BedrockActivities
from activities.cache import CacheActivities, entry_id, query_hash
from activities.memory import MemoryActivities, pass_on
from activities.models import (
    DEFAULT_COLLECTION,
    CacheCheckParams,
    CacheEntry,
    CacheLookup,
    CacheStoreParams,
    DatedCacheCheck,
    DocumentQuery,
    EmbedParams,
    HybridSearchParams,
    ListMemoriesParams,
    MemoryQuery,
    Message,
    RetrieveMemoryParams,
    StoreMemoryParams,
)
from activities.search import SearchActivities
from mcp_server.runtime import Parts, build_activities
from mcp_server.settings import Settings
from workflows.cache import CacheStorageWorkflow, SemanticCacheCheckWorkflow
from workflows.memory import MemoryListWorkflow, MemoryRetrievalWorkflow, MemoryStorageWorkflow
from workflows.search import HybridSearchWorkflow

QUESTIONS = [
    json.loads(line)["question"] for line in (Path(__file__).parent / "search_questions.jsonl").read_text().splitlines()
]
CACHED = "What is the answer that everybody asks for?"
TTL_SECONDS = 3600
CONVERSATION = "bench"


def question(number: int) -> str:
    """A question that no other call asks."""
    return f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"


@dataclass(frozen=True)
class ToolCall:
    """One kind of call.

    Attributes:
        name: As tables have it.
        arguments: Of the call of that number, without `user_id`.
        workflow: The workflow class that it runs.
        params: The workflow's argument for a user, from the call's arguments.
        direct: The same work without MCP and Temporal, of a workflow's argument.
        bounds: Which figures it has to reach (`bench.latency`).
    """

    name: str
    tool: str
    arguments: Callable[[int], dict[str, Any]]
    workflow: Any
    params: Callable[[str, dict[str, Any]], BaseModel]
    direct: Callable[[Any], Awaitable[object]]
    bounds: str = ""


class DirectCalls:
    """The work of each tool as plain calls of activities, one after the other, in this process.

    Args:
        settings: Of the data folder that the servers use too.
        parts: What activities work with.
        temporal: By which a stored message is passed on to its user's memory.
    """

    def __init__(self, settings: Settings, parts: Parts, temporal: Client) -> None:
        self.activities = build_activities(settings, parts)
        self._temporal = temporal
        self._queue = settings.temporal_task_queue
        self._bedrock = self._of(BedrockActivities)
        self._cache = self._of(CacheActivities)
        self._memory = self._of(MemoryActivities)
        self._search = self._of(SearchActivities)

    def _of(self, kind: type[Any]) -> Any:
        return next(group for group in self.activities if isinstance(group, kind))

    async def _vector(self, text: str) -> bytes:
        embedded = await self._bedrock.embed(EmbedParams(texts=[text], side="query"))
        vector: bytes = embedded.vectors[0]
        return vector

    async def search(self, params: HybridSearchParams) -> object:
        query = DocumentQuery(**params.model_dump(), embedding=await self._vector(params.query))
        return await self._search.search_documents(query)

    async def store_message(self, params: StoreMemoryParams) -> object:
        embedded = await self._bedrock.embed(EmbedParams(texts=[params.text], side="passage"))
        message = Message(
            message_id=f"direct-{hashlib.sha256(params.text.encode()).hexdigest()[:16]}",
            user_id=params.user_id,
            conversation_id=params.conversation_id,
            message_type=params.message_type,
            text=params.text,
            timestamp=datetime.now(UTC),
            embedding=embedded.vectors[0],
        )
        stored = await self._memory.store_message(message)
        await pass_on(self._temporal, self._queue, stored)
        return stored

    async def recall(self, params: RetrieveMemoryParams) -> object:
        query = MemoryQuery(
            **params.model_dump(),
            embedding=await self._vector(params.text),
            retrieval_id=f"direct-{hashlib.sha256(params.text.encode()).hexdigest()[:16]}",
            now=datetime.now(UTC),
        )
        return await self._memory.recall(query)

    async def list_memories(self, params: ListMemoriesParams) -> object:
        return await self._memory.list_memories(params)

    async def keep_answer(self, params: CacheStoreParams) -> object:
        now = datetime.now(UTC)
        entry = CacheEntry(
            entry_id=entry_id(params.user_id, params.query, params),
            user_id=params.user_id,
            query=params.query,
            query_hash=query_hash(params.query),
            namespace=params.namespace,
            model=params.model,
            response=params.response,
            created_at=now,
            expires_at=now + timedelta(seconds=params.ttl_seconds),
            embedding=await self._vector(params.query),
        )
        return await self._cache.put_cache_entry(entry)

    async def look_up(self, params: CacheCheckParams) -> object:
        dated = DatedCacheCheck(**params.model_dump(), now=datetime.now(UTC))
        identical = await self._cache.cached_answer(dated)
        if identical.hit:
            return identical
        lookup = CacheLookup(**dated.model_dump(), embedding=await self._vector(params.query))
        return await self._cache.similar_answer(lookup)


def tool_calls(direct: DirectCalls) -> list[ToolCall]:
    """Every kind of call that is timed."""
    return [
        ToolCall(
            "check_semantic_cache, identical query",
            "check_semantic_cache",
            lambda _: {"query": CACHED},
            SemanticCacheCheckWorkflow,
            lambda user, given: CacheCheckParams(user_id=user, **given),
            direct.look_up,
            "identical",
        ),
        ToolCall(
            "check_semantic_cache, new query",
            "check_semantic_cache",
            lambda number: {"query": question(number)},
            SemanticCacheCheckWorkflow,
            lambda user, given: CacheCheckParams(user_id=user, **given),
            direct.look_up,
            "embedding",
        ),
        ToolCall(
            "hybrid_search",
            "hybrid_search",
            lambda number: {"query": question(number)},
            HybridSearchWorkflow,
            lambda user, given: HybridSearchParams(
                user_id=user, limit=10, weight=0.5, collection=DEFAULT_COLLECTION, filter=None, **given
            ),
            direct.search,
            "embedding",
        ),
        ToolCall(
            "retrieve_memory",
            "retrieve_memory",
            lambda number: {"text": question(number)},
            MemoryRetrievalWorkflow,
            lambda user, given: RetrieveMemoryParams(user_id=user, limit=10, **given),
            direct.recall,
            "embedding",
        ),
        ToolCall(
            "store_memory",
            "store_memory",
            lambda number: {"conversation_id": CONVERSATION, "text": question(number), "message_type": "ai"},
            MemoryStorageWorkflow,
            lambda user, given: StoreMemoryParams(user_id=user, **given),
            direct.store_message,
            "embedding",
        ),
        ToolCall(
            "semantic_cache_response",
            "semantic_cache_response",
            lambda number: {"query": question(number), "response": "An answer.", "ttl_seconds": TTL_SECONDS},
            CacheStorageWorkflow,
            lambda user, given: CacheStoreParams(user_id=user, timestamp=None, **given),
            direct.keep_answer,
        ),
        ToolCall(
            "list_memories",
            "list_memories",
            lambda _: {},
            MemoryListWorkflow,
            lambda user, given: ListMemoriesParams(user_id=user, **given),
            direct.list_memories,
        ),
    ]
