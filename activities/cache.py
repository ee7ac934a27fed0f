"""The semantic cache: identical queries by hash, similar ones by vector."""

import hashlib
import unicodedata
from datetime import UTC, datetime

from temporalio import activity

from activities.models import CacheCheckParams, CacheCheckResult, CacheEntry, CacheLookup
from activities.store.base import OpenedStore

# Cosines of different models have different ranges. E5 puts unrelated queries at 0.75 and paraphrases above 0.93.
E5_THRESHOLD = 0.95
OTHER_THRESHOLD = 0.90


def query_hash(query: str) -> str:
    """Hash of a query, the same for spellings that differ only in case, white space or Unicode composition."""
    normalised = " ".join(unicodedata.normalize("NFC", query).casefold().split())
    return hashlib.sha256(normalised.encode()).hexdigest()


def entry_id(user_id: str, query: str) -> str:
    """Id of the one entry that a user can have for a query."""
    return hashlib.sha256(f"{user_id}\0{query_hash(query)}".encode()).hexdigest()[:32]


def default_threshold(model_id: str) -> float:
    """Least cosine similarity of two queries for a hit, where neither the call nor CACHE_THRESHOLD says."""
    return E5_THRESHOLD if "e5" in model_id else OTHER_THRESHOLD


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
        threshold: Least cosine similarity for a hit by vector, unless a look-up brings its own.
    """

    def __init__(self, store: OpenedStore, threshold: float) -> None:
        self._store = store
        self._threshold = threshold

    @activity.defn
    async def cached_answer(self, params: CacheCheckParams) -> CacheCheckResult:
        """The unexpired answer to exactly this query, found without embedding it."""
        store = await self._store()
        now = datetime.now(UTC)
        entry = await store.cached_answer(params.user_id, query_hash(params.query), now)
        return _hit(entry, 1.0, now) if entry else CacheCheckResult(hit=False)

    @activity.defn
    async def similar_answer(self, lookup: CacheLookup) -> CacheCheckResult:
        """The unexpired answer to the most similar query, if it is similar enough."""
        store = await self._store()
        now = datetime.now(UTC)
        match = await store.nearest_cached(lookup.user_id, lookup.embedding, now)
        if match is None:
            return CacheCheckResult(hit=False)
        if match.similarity < (self._threshold if lookup.threshold is None else lookup.threshold):
            return CacheCheckResult(hit=False, similarity=match.similarity)
        return _hit(match.entry, match.similarity, now)

    @activity.defn
    async def put_cache_entry(self, entry: CacheEntry) -> None:
        """Store an answer, and drop those of all users that have expired."""
        store = await self._store()
        await store.put_cache_entry(entry)
        await store.purge_expired(datetime.now(UTC))
