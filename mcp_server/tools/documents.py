"""Putting documents into the store."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import DEFAULT_COLLECTION, IngestParams, IngestResult, SourceRequest
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Content, Glob, Name, SourceName, UserId

INGEST = """Put documents into the user's collection, so that hybrid_search finds them: files, folders, web pages, or a
text. Call it when the user asks to read in, index or remember a document, a folder or a page.
sources are absolute paths of files or folders, URLs of pages, or URLs of sitemaps (ending in .xml) for all of their
pages. Or give text, with a name. What is stored already and hasn't changed is left as it is; what has changed replaces
what was stored under the same path, URL or name. One that can't be read doesn't keep the others from being stored: look
at the status and reason of each in the result."""


def register(server: DurableContextServer) -> None:
    """Publish `ingest_documents`."""

    @server.tool(
        title="Ingest documents",
        description=INGEST,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=True
        ),
    )
    async def ingest_documents(
        ctx: Context[Any, Any],
        sources: Annotated[
            list[SourceName] | None, Field(min_length=1, max_length=100, description="Absolute paths, or URLs.")
        ] = None,
        text: Annotated[Content | None, Field(description="A document itself, as Markdown or plain text.")] = None,
        name: Annotated[
            Name | None, Field(description="With text: what it is stored as; text of the same name replaces it.")
        ] = None,
        collection: Annotated[Name, Field(description="Where to; hybrid_search searches one collection.")] = (
            DEFAULT_COLLECTION
        ),
        include: Annotated[
            list[Glob] | None,
            Field(max_length=100, description="Globs of what to take of folders and sitemaps, such as *.md, docs/**."),
        ] = None,
        exclude: Annotated[
            list[Glob] | None, Field(max_length=100, description="Globs of what to leave out of them.")
        ] = None,
        user_id: UserId = None,
    ) -> Annotated[CallToolResult, IngestResult]:
        from workflows.documents import DataIngestionWorkflow

        if (sources is None) == (text is None):
            raise ToolError("ingest_documents: give either sources or text, so that it is clear what is meant.")
        if (text is None) != (name is None):
            raise ToolError("name: it goes with text: give both or neither.")
        settings = server.runtime.settings
        params = IngestParams(
            user_id=server.user(ctx, user_id),
            collection=collection,
            sources=[],
            include=include or [],
            exclude=exclude or [],
        )
        content = None
        if sources is not None:
            params.sources = [source_request(source) for source in sources]
            if any(request.path is not None for request in params.sources):
                if ctx.request_context.request is not None:
                    raise ToolError(
                        "sources: over HTTP the server's own files can't be read; nothing was ingested. Give URLs or "
                        "text, or upload files with POST /upload."
                    )
                if not settings.ingest_roots:
                    raise ToolError(
                        "sources: no folder may be read; nothing was ingested. Set INGEST_ROOTS to those that "
                        "may, or use the command `durable-context ingest`."
                    )
                params.roots = [str(root) for root in settings.ingest_roots]
                params.files_queue = settings.files_queue
        else:
            assert text is not None
            assert name is not None
            content = await server.tasks.hold(text.encode())
            params.sources = [SourceRequest(content=content, name=name, media_type="text/markdown")]
        return await server.tasks.run("ingest_documents", DataIngestionWorkflow, params, held=content)


def source_request(source: str) -> SourceRequest:
    """A path or a URL as a request; what is wrong with it is said in the result."""
    return SourceRequest(url=source) if "://" in source else SourceRequest(path=source)
