"""The resources: is everything well, how is the server set up, what does a document or a conversation say?"""

import json
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ToolError

from activities.models import DocumentKey, HistoryParams
from mcp_server.health import check_engine, check_store, check_web_search
from mcp_server.runtime import CallError, Runtime
from mcp_server.server import DurableContextServer


def register(server: DurableContextServer) -> None:
    """Publish `health://status`, `config://settings`, `document://…` and `conversation://…`."""

    @server.resource("health://status", title="Health", mime_type="application/json")
    async def status() -> str:
        """Each piece of the stack: remote or embedded, usable or not, and what to do."""
        return json.dumps(await health_report(server.runtime))

    @server.resource("config://settings", title="Settings", mime_type="application/json")
    def settings() -> str:
        """Every setting in force, with secrets redacted."""
        return json.dumps(server.runtime.settings.redacted())

    @server.resource("document://{document_id}{?position}", title="Document", mime_type="application/json")
    async def document(ctx: Context[Any, Any], document_id: str, position: int = 0) -> str:
        """An ingested document and its chunks, by the document_id that search hits and ingestion name.

        A long one comes in parts: next_position says where the next begins.
        """
        from workflows.documents import DocumentReadWorkflow

        owner = server.authenticated(ctx.request_context.request)
        try:
            key = DocumentKey(document_id=document_id, user_id=owner, position=max(0, position))
            return json.dumps(await server.runtime.run(DocumentReadWorkflow, key, "read_document"), ensure_ascii=False)
        except CallError as error:
            raise ResourceError(str(error)) from None

    @server.resource(
        "conversation://{user_id}/{conversation_id}{?cursor}", title="Conversation", mime_type="application/json"
    )
    async def conversation(
        ctx: Context[Any, Any], user_id: str, conversation_id: str, cursor: str | None = None
    ) -> str:
        """What was said in a conversation, oldest first, with its summary; the latest messages.

        next_cursor is for those before them.
        """
        from workflows.conversation import ConversationHistoryWorkflow

        try:
            params = HistoryParams(
                user_id=server.user(ctx, user_id), conversation_id=conversation_id, limit=100, cursor=cursor
            )
            found = await server.runtime.run(ConversationHistoryWorkflow, params, "read_conversation")
            return json.dumps(found, ensure_ascii=False)
        except (CallError, ToolError) as error:
            raise ResourceError(str(error)) from None


async def health_report(runtime: Runtime) -> dict[str, object]:
    """The engine and the store, reached now; models are checked by `doctor`, since a call to them costs money."""
    await runtime.loaded()
    address = runtime.addresses.temporal if runtime.addresses else None
    engine = await check_engine(runtime.settings, runtime.connected, address)
    if runtime.problem is not None:
        engine.fix = runtime.problem
    pieces = [engine]
    if runtime.parts is not None:
        pieces.append(await check_store(runtime.settings, runtime.parts.store))
    pieces.append(check_web_search(runtime.settings))
    return {
        "status": "ok" if all(piece.usable for piece in pieces if piece.required) else "degraded",
        "pieces": [piece.model_dump() for piece in pieces],
        "models": {"embedding": runtime.settings.shown_embedding_model, "text": runtime.settings.shown_text_model},
        "runs_worker": runtime.run_worker,
    }
