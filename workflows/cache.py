"""The semantic cache: store an answer, look one up, and drop some."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.bedrock import BedrockActivities
    from activities.cache import CacheActivities, entry_id, query_hash
    from activities.models import (
        EMBEDDED,
        CacheCheckParams,
        CacheCheckResult,
        CacheEntry,
        CacheLookup,
        CacheStoreParams,
        CacheStoreResult,
        DatedCacheCheck,
        EmbedParams,
        InvalidateCacheParams,
        InvalidateCacheResult,
    )
    from workflows.steps import READ_GIVE_UP, step


def _query(query: str) -> EmbedParams:
    return EmbedParams(texts=[query], side=EMBEDDED["cache"].side)


@workflow.defn
class CacheStorageWorkflow:
    @staticmethod
    def embedded(params: CacheStoreParams) -> EmbedParams:
        """What the first step embeds."""
        return _query(params.query)

    @workflow.run
    async def run(self, params: CacheStoreParams) -> CacheStoreResult:
        embedded = await step(BedrockActivities.embed, self.embedded(params))
        created_at = params.timestamp or workflow.now()
        entry = CacheEntry(
            entry_id=entry_id(params.user_id, params.query, params),
            user_id=params.user_id,
            query=params.query,
            query_hash=query_hash(params.query),
            namespace=params.namespace,
            model=params.model,
            response=params.response,
            created_at=created_at,
            expires_at=created_at + timedelta(seconds=params.ttl_seconds),
            embedding=embedded.vectors[0],
        )
        await step(CacheActivities.put_cache_entry, entry)
        return CacheStoreResult(entry_id=entry.entry_id, expires_at=entry.expires_at)


@workflow.defn
class SemanticCacheCheckWorkflow:
    only_reads = True

    @workflow.run
    async def run(self, params: CacheCheckParams) -> CacheCheckResult:
        dated = DatedCacheCheck(**params.model_dump(), now=workflow.now())
        identical = await step(CacheActivities.cached_answer, dated, give_up=READ_GIVE_UP)
        if identical.hit:
            return identical
        embedded = await step(BedrockActivities.embed, _query(params.query), give_up=READ_GIVE_UP)
        lookup = CacheLookup(**dated.model_dump(), embedding=embedded.vectors[0])
        return await step(CacheActivities.similar_answer, lookup, give_up=READ_GIVE_UP)


@workflow.defn
class CacheInvalidationWorkflow:
    @workflow.run
    async def run(self, params: InvalidateCacheParams) -> InvalidateCacheResult:
        return await step(CacheActivities.invalidate_cached, params)
