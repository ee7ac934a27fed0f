"""The semantic cache of answers."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import CacheCheckParams, CacheCheckResult, CacheStoreParams, CacheStoreResult
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Query, Response, Timestamp, UserId

SEMANTIC_CACHE_RESPONSE = """Keep an answer for the same question, or one that means the same later.
Call it after a long or costly answer that will still be right when the question comes again. Caching the same question
again replaces its answer. Don't cache what depends on the moment, or give it a short ttl_seconds."""

CHECK_SEMANTIC_CACHE = """Look for an answer that was cached for this question, or for one that means the same.
Call it first, before any other work on a question. On a hit, response can be given as it is; on a miss, go on."""


def register(server: DurableContextServer) -> None:
    """Publish `semantic_cache_response` and `check_semantic_cache`."""

    @server.tool(
        title="Cache an answer",
        description=SEMANTIC_CACHE_RESPONSE,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def semantic_cache_response(
        ctx: Context[Any, Any],
        query: Annotated[Query, Field(description="The question, as the user asked it.")],
        response: Annotated[Response, Field(description="The answer to keep.")],
        user_id: UserId = None,
        ttl_seconds: Annotated[
            int | None, Field(ge=1, le=31_536_000, description="How long to keep it; the server's setting if left out.")
        ] = None,
        timestamp: Timestamp = None,
    ) -> Annotated[CallToolResult, CacheStoreResult]:
        from workflows.cache import CacheStorageWorkflow

        params = CacheStoreParams(
            user_id=server.user(ctx, user_id),
            query=query,
            response=response,
            ttl_seconds=ttl_seconds or server.runtime.settings.cache_ttl_seconds,
            timestamp=timestamp,
        )
        return await server.run_workflow(
            "semantic_cache_response", CacheStorageWorkflow, params, CacheStoreResult, writes=True
        )

    @server.tool(
        title="Look up a cached answer",
        description=CHECK_SEMANTIC_CACHE,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def check_semantic_cache(
        ctx: Context[Any, Any],
        query: Annotated[Query, Field(description="The question, as the user asked it.")],
        user_id: UserId = None,
        threshold: Annotated[
            float | None,
            Field(
                ge=0,
                le=1,
                allow_inf_nan=False,
                description="Least cosine similarity for a hit; the server's, which fits its model, if left out.",
            ),
        ] = None,
    ) -> Annotated[CallToolResult, CacheCheckResult]:
        from workflows.cache import SemanticCacheCheckWorkflow

        params = CacheCheckParams(user_id=server.user(ctx, user_id), query=query, threshold=threshold)
        return await server.run_workflow("check_semantic_cache", SemanticCacheCheckWorkflow, params, CacheCheckResult)
