"""The semantic cache of answers."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import (
    CacheCheckParams,
    CacheCheckResult,
    CacheStoreParams,
    CacheStoreResult,
    InvalidateCacheParams,
    InvalidateCacheResult,
)
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Name, Query, Response, Timestamp, UserId

SEMANTIC_CACHE_RESPONSE = """Keep an answer for the same question, or one that means the same later.
Call it after a long or costly answer that will still be right when the question comes again. Caching the same question
again replaces its answer. Don't cache what depends on the moment, or give it a short ttl_seconds. Where an answer holds
only in one setting (a project, a tenant, a tool), name that as namespace; where it is one model's own, name the model.
It is then found only by a check that names the same."""

CHECK_SEMANTIC_CACHE = """Look for an answer that was cached for this question, or for one that means the same.
Call it first, before any other work on a question. On a hit, response can be given as it is; on a miss, go on. Name the
same namespace and model, if any, as when the answer was cached."""

INVALIDATE_CACHE = """Drop cached answers that are no longer right, so that they are never given again.
Call it when what they rest on has changed, or when the user says that one is wrong. Name what to drop: a query (that
question itself, not similar ones), a namespace, a model, or several of them, and then only what fits all of them goes.
everything=true instead drops all of the user's."""

Namespace = Annotated[
    Name | None, Field(description="Free name of the setting that the answer belongs to; none if left out.")
]
ModelName = Annotated[Name | None, Field(description="Free name of the model whose answer it is; none if left out.")]


def register(server: DurableContextServer) -> None:
    """Publish `semantic_cache_response`, `check_semantic_cache` and `invalidate_cache`."""

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
        namespace: Namespace = None,
        model: ModelName = None,
    ) -> Annotated[CallToolResult, CacheStoreResult]:
        from workflows.cache import CacheStorageWorkflow

        params = CacheStoreParams(
            user_id=server.user(ctx, user_id),
            query=query,
            response=response,
            ttl_seconds=ttl_seconds or server.runtime.settings.cache_ttl_seconds,
            timestamp=timestamp,
            namespace=namespace or "",
            model=model or "",
        )
        return await server.tasks.run("semantic_cache_response", CacheStorageWorkflow, params)

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
                description="Least cosine similarity for a hit; the server's, which fits its model, if left out. "
                "Numbers, names and the other words that matter must agree whatever it is.",
            ),
        ] = None,
        namespace: Namespace = None,
        model: ModelName = None,
    ) -> Annotated[CallToolResult, CacheCheckResult]:
        from workflows.cache import SemanticCacheCheckWorkflow

        params = CacheCheckParams(
            user_id=server.user(ctx, user_id),
            query=query,
            threshold=threshold,
            namespace=namespace or "",
            model=model or "",
        )
        return await server.tasks.run("check_semantic_cache", SemanticCacheCheckWorkflow, params)

    @server.tool(
        title="Drop cached answers",
        description=INVALIDATE_CACHE,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def invalidate_cache(
        ctx: Context[Any, Any],
        query: Annotated[Query | None, Field(description="Only answers to exactly this question.")] = None,
        namespace: Annotated[Name | None, Field(description="Only answers under this namespace.")] = None,
        model: Annotated[Name | None, Field(description="Only answers of this model.")] = None,
        everything: Annotated[bool, Field(description="All of the user's cached answers; nothing else given.")] = False,
        user_id: UserId = None,
    ) -> Annotated[CallToolResult, InvalidateCacheResult]:
        from workflows.cache import CacheInvalidationWorkflow

        named = [name for name in (query, namespace, model) if name is not None]
        if everything and named:
            raise ToolError("everything: leave it out where query, namespace or model says what to drop.")
        if not everything and not named:
            raise ToolError("query: name what to drop by query, namespace or model, or say everything=true.")
        params = InvalidateCacheParams(user_id=server.user(ctx, user_id), query=query, namespace=namespace, model=model)
        return await server.tasks.run("invalidate_cache", CacheInvalidationWorkflow, params)
