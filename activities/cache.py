"""The semantic cache: identical queries by hash, similar ones by vector."""

import asyncio
import hashlib
from datetime import UTC, datetime

from temporalio import activity

from activities.bedrock import BedrockEmbeddings
from activities.cache_guard import agree, normalised
from activities.embedding_models import is_e5
from activities.models import (
    EMBEDDED,
    CacheCheckResult,
    CacheEntry,
    CacheLookup,
    CacheScope,
    DatedCacheCheck,
    InvalidateCacheParams,
    InvalidateCacheResult,
)
from activities.store.base import OpenedStore

E5_THRESHOLD = 0.92
"""Measured by `bench/cache.py`: nearly all paraphrases that the guard lets pass reach it. Unrelated: 0.75."""
OTHER_THRESHOLD = 0.90
"""Not measured: on the safe side for models whose cosines spread wider than E5's."""


def query_hash(query: str) -> str:
    """Hash of a query, the same for spellings that differ only in case, white space or Unicode composition."""
    return hashlib.sha256(normalised(query).encode()).hexdigest()


def entry_id(user_id: str, query: str, scope: CacheScope) -> str:
    """Id of the one entry that a user can have for a query in a scope."""
    # Names hold no control characters.
    names = "\0".join((user_id, query_hash(query), scope.namespace, scope.model))
    return hashlib.sha256(names.encode()).hexdigest()[:32]


def default_threshold(model_id: str) -> float:
    """Least cosine similarity of two queries for a hit, where neither the call nor CACHE_THRESHOLD says."""
    return E5_THRESHOLD if is_e5(model_id) else OTHER_THRESHOLD


def is_hit(query: str, cached: str, similarity: float, threshold: float) -> bool:
    """Whether the answer to `cached` is given to `query`: whoever chose the threshold, both must also agree."""
    return similarity >= threshold and agree(query, cached)


def _hit(entry: CacheEntry, similarity: float, now: datetime) -> CacheCheckResult:
    return CacheCheckResult(
        hit=True,
        response=entry.response,
        similarity=similarity,
        cached_query=entry.query,
        age_seconds=max(0.0, (now - entry.created_at).total_seconds()),
        expires_at=entry.expires_at,
    )


class CacheActivities:
    """
    Args:
        store: Where entries live.
        embeddings: What embeds queries.
        threshold: Least cosine similarity for a hit by vector, unless a look-up brings its own.
    """

    def __init__(self, store: OpenedStore, embeddings: BedrockEmbeddings, threshold: float) -> None:
        self._store = store
        self._embeddings = embeddings
        self._threshold = threshold

    @activity.defn
    async def cached_answer(self, params: DatedCacheCheck) -> CacheCheckResult:
        """The unexpired answer to exactly this query, found without embedding it.

        Where there is none, the embedding begins that the next step waits for.
        """
        store = await self._store()
        now = params.now or datetime.now(UTC)
        entry = await store.cached_answer(params.user_id, query_hash(params.query), now, params)
        if entry is None:
            self._embeddings.begin(params.query, EMBEDDED["cache"].side)
            return CacheCheckResult(hit=False)
        return _hit(entry, 1.0, now)

    @activity.defn
    async def similar_answer(self, lookup: CacheLookup) -> CacheCheckResult:
        """The unexpired answer to the nearest query that is similar enough and, by the guard, asks for the same."""
        store = await self._store()
        now = lookup.now or datetime.now(UTC)
        matches = await store.nearest_cached(lookup.user_id, lookup.embedding, now, lookup)
        for match in matches:
            threshold = self._threshold_of(lookup)
            if await asyncio.to_thread(is_hit, lookup.query, match.entry.query, match.similarity, threshold):
                return _hit(match.entry, match.similarity, now)
        return CacheCheckResult(hit=False, similarity=matches[0].similarity if matches else None)

    def _threshold_of(self, lookup: CacheLookup) -> float:
        return self._threshold if lookup.threshold is None else lookup.threshold

    @activity.defn
    async def put_cache_entry(self, entry: CacheEntry) -> None:
        """Store an answer, and drop those of all users that have expired."""
        store = await self._store()
        await store.put_cache_entry(entry)
        # The entry is dated by Temporal's clock, or by its caller. This worker's may be ahead of either.
        await store.purge_expired(min(entry.created_at, datetime.now(UTC)))

    @activity.defn
    async def invalidate_cached(self, params: InvalidateCacheParams) -> InvalidateCacheResult:
        """Drop the answers that everything given fits."""
        store = await self._store()
        hashed = None if params.query is None else query_hash(params.query)
        removed = await store.invalidate_cached(params.user_id, hashed, params.namespace, params.model)
        return InvalidateCacheResult(removed=removed)
