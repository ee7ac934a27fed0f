"""`POST /conversation/` and `GET /conversation/{id}`: conversations over plain HTTP."""

import asyncio
import time
from typing import TYPE_CHECKING

from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.models import ConverseParams, HistoryParams
from mcp_server.runtime import CallError
from mcp_server.tools.arguments import Cursor, Name, Text
from mcp_server.tools.conversation import MAX_IMAGE, Image, image_source, limits_of
from mcp_server.upload import POLL_SECONDS, answering

if TYPE_CHECKING:
    from mcp.server.transport_security import TransportSecuritySettings

    from mcp_server.server import DurableContextServer
    from mcp_server.tasks import TaskResult

MAX_BODY = MAX_IMAGE + 1_000_000
"""Bytes of a request, at most."""


class ConversationBody(BaseModel):
    """What a message is sent as."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text
    conversation_id: Name | None = None
    image: Image | None = None
    use_cache: bool = True
    use_memory: bool = True
    use_search: bool = True
    user_id: Name | None = None
    wait: bool = Field(default=True, description="False to be answered as soon as it is in the conversation.")


class HistoryQuery(BaseModel):
    """How a conversation is asked for."""

    model_config = ConfigDict(extra="forbid")

    conversation_id: Name
    limit: int = Field(default=50, ge=1, le=100)
    cursor: Cursor | None = None
    user_id: Name | None = None


class Conversations:
    """The two endpoints.

    Args:
        server: Holds the conversations.
        security: Which Host and Origin headers are accepted.
    """

    def __init__(self, server: "DurableContextServer", security: "TransportSecuritySettings") -> None:
        self._server = server
        self._security = security

    def register(self) -> None:
        """Publish them."""
        for path, method, handler in (
            ("/conversation", "POST", self._say),
            ("/conversation/", "POST", self._say),
            ("/conversation/{conversation_id:path}", "GET", self._read),
        ):
            self._server.custom_route(path, methods=[method])(answering(self._security, handler))

    async def _say(self, request: Request) -> Response:
        """Say something in a conversation.

        200 with the answer, or 202 where the sender doesn't wait or it takes longer than CALL_TIMEOUT_SECONDS; then the
        conversation, at `Location`, has the answer once it is there.
        """
        from workflows.conversation import ConverseWorkflow

        body = await self._body(request)
        owner, settings = self._server.authenticated(request), self._server.runtime.settings
        deadline = time.monotonic() + settings.call_timeout_seconds
        params = ConverseParams(
            user_id=self._user(request, body.user_id),
            conversation_id=body.conversation_id,
            limits=limits_of(settings),
            **body.model_dump(include={"prompt", "use_cache", "use_memory", "use_search", "wait"}),
        )
        if body.image is not None:
            try:
                await image_source(self._server, body.image, params, over_http=True)
            except ToolError as error:
                raise HTTPException(400, str(error)) from None
        task_id = await self._server.tasks.begin(owner, "converse", ConverseWorkflow, params)
        while True:
            task = await self._server.tasks.stands(owner, task_id)
            if task.status not in ("working", "input_required") or time.monotonic() >= deadline:
                return self._shown(task, body)
            await asyncio.sleep(POLL_SECONDS)

    @staticmethod
    def _shown(task: "TaskResult", body: ConversationBody) -> Response:
        # A new conversation is named after its first call.
        conversation_id = body.conversation_id or task.task_id.rpartition("-")[2]
        if task.status in ("failed", "cancelled"):
            return JSONResponse({"error": task.message}, 422 if task.status == "failed" else 409)
        if task.status == "completed" and body.wait:
            return JSONResponse(task.result)
        accepted = task.result or {"conversation_id": conversation_id, "status": task.status, "message": task.message}
        return JSONResponse(accepted, 202, {"Location": f"/conversation/{conversation_id}"})

    async def _read(self, request: Request) -> Response:
        """A page of a conversation."""
        from workflows.conversation import ConversationHistoryWorkflow

        try:
            query = HistoryQuery.model_validate({**request.query_params, **request.path_params})
        except ValidationError as error:
            raise _refused(error) from None
        params = HistoryParams(
            user_id=self._user(request, query.user_id),
            conversation_id=query.conversation_id,
            limit=query.limit,
            cursor=query.cursor,
        )
        try:
            found = await self._server.runtime.run(ConversationHistoryWorkflow, params, "conversation_history")
        except CallError as error:
            if str(error).startswith(("conversation_id:", "cursor:")):
                raise HTTPException(404, str(error)) from None
            raise
        return JSONResponse(found)

    def _user(self, request: Request, named: str | None) -> str:
        owner = self._server.authenticated(request)
        if owner is not None and named not in (None, owner):
            raise HTTPException(403, "user_id: this token belongs to another user. Leave user_id out.")
        return owner or named or self._server.runtime.settings.default_user_id

    @staticmethod
    async def _body(request: Request) -> ConversationBody:
        """
        Raises:
            HTTPException: where it can't be used.
        """
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise HTTPException(415, "Send a JSON object as application/json.")
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > MAX_BODY:
                raise HTTPException(413, f"The request is longer than {MAX_BODY:,} bytes. Give the image as a URL.")
        try:
            return ConversationBody.model_validate_json(content)
        except ValidationError as error:
            raise _refused(error) from None


def _refused(error: ValidationError) -> HTTPException:
    from mcp_server.server import describe

    if error.errors()[0]["type"] in ("json_invalid", "model_type"):
        return HTTPException(400, "The body isn't a JSON object.")
    return HTTPException(400, describe("conversation", error))
