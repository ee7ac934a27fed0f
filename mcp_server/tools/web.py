"""Search on the web."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import SearchDepth, TimeRange, Topic, WebSearchParams, WebSearchResult
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Name, WebQuery

SEARCH_WEB = """Search the web, best result first, each with a passage of the page.
Call it for what happened recently, and for facts that neither the user's documents (hybrid_search) nor earlier
conversations (retrieve_memory) hold."""

Domains = Annotated[list[Name] | None, Field(max_length=50)]


def register(server: DurableContextServer) -> None:
    """Publish `search_web`."""

    @server.tool(
        title="Search the web",
        description=SEARCH_WEB,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True),
    )
    async def search_web(
        ctx: Context[Any, Any],
        query: Annotated[WebQuery, Field(description="What to search for.")],
        max_results: Annotated[int, Field(ge=1, le=20, description="Most results to return.")] = 5,
        topic: Annotated[Topic, Field(description="'news' for recent events, 'finance' for markets.")] = "general",
        search_depth: Annotated[
            SearchDepth, Field(description="'advanced' finds better passages, and costs twice as much.")
        ] = "basic",
        include_domains: Annotated[Domains, Field(description="Only pages of these domains.")] = None,
        exclude_domains: Annotated[Domains, Field(description="No pages of these domains.")] = None,
        time_range: Annotated[TimeRange | None, Field(description="Only pages as recent as this.")] = None,
    ) -> Annotated[CallToolResult, WebSearchResult]:
        from workflows.web import WebSearchWorkflow

        params = WebSearchParams(
            query=query,
            max_results=max_results,
            topic=topic,
            search_depth=search_depth,
            include_domains=include_domains or [],
            exclude_domains=exclude_domains or [],
            time_range=time_range,
        )
        return await server.tasks.run("search_web", WebSearchWorkflow, params)
