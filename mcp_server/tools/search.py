"""Search over documents."""

import json
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import DEFAULT_COLLECTION, HybridSearchParams, HybridSearchResult
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Name, Query, UserId

HYBRID_SEARCH = """Search the user's documents by keywords and by meaning at once, best passage first.
Call it when a question may be answered by documents that were ingested: manuals, notes, articles, policies. Each result
is a passage with its source, so that the answer can cite it. For what was said in conversations, call retrieve_memory;
for what is only on the web, search_web."""

FILTER = """Only passages whose metadata match: {"field": value}, or {"field": {"$in": [...]}}. Fields: source,
position, title and whatever else the documents carry.
Operators: $eq $ne $in $nin $gt $gte $lt $lte $exists $and $or $not."""


MAX_FILTER = 20_000


def check_filter(filter: dict[str, Any]) -> None:
    """Refuse a filter that no store would take, before any work is started for it.

    Raises:
        ToolError: saying what is wrong with it.
    """
    from temporalio.exceptions import ApplicationError

    from activities.store.filters import parse_filter

    if len(json.dumps(filter)) > MAX_FILTER:
        raise ToolError(f"filter: it should have at most {MAX_FILTER:,} characters as JSON.")
    try:
        parse_filter(filter)
    except ApplicationError as error:
        raise ToolError(error.message) from None


def register(server: DurableContextServer) -> None:
    """Publish `hybrid_search`."""

    @server.tool(
        title="Search documents",
        description=HYBRID_SEARCH,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def hybrid_search(
        ctx: Context[Any, Any],
        query: Annotated[Query, Field(description="What to find, in the user's words or as keywords.")],
        user_id: UserId = None,
        limit: Annotated[int, Field(ge=1, le=100, description="Most passages to return.")] = 10,
        weight: Annotated[
            float, Field(ge=0, le=1, allow_inf_nan=False, description="0 for keywords only, 1 for meaning only.")
        ] = 0.5,
        collection: Annotated[
            Name | None, Field(description=f"Which collection; '{DEFAULT_COLLECTION}' if left out.")
        ] = None,
        filter: Annotated[dict[str, Any] | None, Field(description=FILTER)] = None,
    ) -> Annotated[CallToolResult, HybridSearchResult]:
        from workflows.search import HybridSearchWorkflow

        if filter:
            check_filter(filter)
        params = HybridSearchParams(
            user_id=server.user(ctx, user_id),
            query=query,
            limit=limit,
            weight=weight,
            collection=collection or DEFAULT_COLLECTION,
            filter=filter,
        )
        return await server.tasks.run("hybrid_search", HybridSearchWorkflow, params)
