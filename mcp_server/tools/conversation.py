"""Conversations with this server's own model."""

import base64
import binascii
import re
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import (
    ConversationClosed,
    ConversationHistory,
    ConversationKey,
    ConversationLimits,
    ConversationReply,
    ConverseParams,
    HistoryParams,
    Source,
)
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import MAX_SOURCE, Cursor, Name, Text, UserId

if TYPE_CHECKING:
    from mcp_server.settings import Settings

CONVERSE = """Talk with this server's own model, which draws on the user's documents, memories and earlier conversations
and cites them. Call it to have a question answered from what is stored here, or to hold a conversation that outlives
this session: the same conversation_id goes on with it, from any device, whenever.
The message and its answer are remembered: don't store them again. A question that means the same as one whose answer is
cached gets that, and cached says so. While the answer is being written it comes as notifications of progress."""

CONVERSATION_HISTORY = """What was said in a conversation, oldest first, the latest messages unless a cursor is given.
Call it to go on with a conversation that was begun elsewhere, or to show it. It also says what waits for its answer,
and the summary of all of it."""

END_CONVERSATION = """End a conversation: its summary is brought up to date and kept in memory.
Call it when the user is done with a conversation. Nothing is lost by it: another message to the same conversation_id
opens it again."""

MAX_IMAGE = 30_000_000
"""Characters of an image argument: a little more than 20 MB as base64."""

ConversationId = Annotated[Name, Field(description="Which conversation; any id, the same each time.")]
Image = Annotated[str, Field(min_length=1, max_length=MAX_IMAGE)]

_DATA_URI = re.compile(r"data:(image/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*(;base64)?,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")


def limits_of(settings: "Settings") -> ConversationLimits:
    """What the settings say of how much a conversation holds."""
    return ConversationLimits(
        idle_seconds=settings.conversation_idle_seconds,
        history_tokens=settings.conversation_history_tokens,
        context_tokens=settings.conversation_context_tokens,
        answer_tokens=settings.conversation_answer_tokens,
        cache_ttl_seconds=settings.cache_ttl_seconds,
    )


def image_bytes(image: str) -> bytes | None:
    """The bytes of an image that is given as a data URI or as base64; None where it is a URL or a path.

    Raises:
        ToolError: where it is neither.
    """
    head = _DATA_URI.match(image[:200])
    # Base64 may begin with a slash too, but no path is that long.
    if head is None and ("://" in image[:20] or (image.startswith("/") and len(image) <= MAX_SOURCE)):
        return None
    if head is not None and not head[2]:
        raise ToolError("image: a data URI must be base64: data:image/png;base64,…")
    coded = "".join(image[head.end() if head else 0 :].split()).replace("-", "+").replace("_", "/")
    try:
        if head is None and (len(coded) < 64 or not _BASE64.fullmatch(coded)):
            raise ValueError
        return base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise ToolError(
            "image: it must be an absolute path, an http or https URL, a data URI, or an image's bytes as base64."
        ) from None


async def image_source(server: DurableContextServer, image: str, params: ConverseParams, over_http: bool) -> None:
    """Have a message's image where its workflow finds it.

    Args:
        image: A path, a URL, a data URI or base64.
        params: The message, which gets it by reference.
        over_http: Whether its sender is on another machine, whose paths aren't this one's.

    Raises:
        ToolError: saying why it can't be used.
    """
    settings = server.runtime.settings
    content = image_bytes(image)
    if content is not None:
        if len(content) > settings.ingest_max_bytes:
            most = settings.ingest_max_bytes
            raise ToolError(f"image: it is larger than INGEST_MAX_BYTES ({most:,} bytes). Send a smaller one.")
        params.image = Source(source="image", content=await server.tasks.hold(content))
    elif "://" in image:
        params.image = Source(source=image, url=image)
    elif over_http:
        raise ToolError("image: over HTTP the server's own files can't be read. Give a URL, a data URI or base64.")
    elif not settings.ingest_roots:
        raise ToolError("image: no folder may be read. Set INGEST_ROOTS to those that may, or give a URL or base64.")
    else:
        params.image = Source(source=image, path=image)
        params.roots = [str(root) for root in settings.ingest_roots]
        params.files_queue = settings.files_queue


def register(server: DurableContextServer) -> None:
    """Publish `converse`, `conversation_history` and `end_conversation`."""

    @server.tool(
        title="Converse",
        description=CONVERSE,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True
        ),
    )
    async def converse(
        ctx: Context[Any, Any],
        prompt: Annotated[Text, Field(description="The user's message, word for word.")],
        conversation_id: Annotated[
            Name | None,
            Field(description="Which conversation; any id, the same each time. A new one begins if left out."),
        ] = None,
        image: Annotated[
            Image | None,
            Field(description="An image that the message is about: absolute path, URL, data URI, or base64."),
        ] = None,
        use_cache: Annotated[
            bool, Field(description="Whether a cached answer to the same question will do, and this one is cached.")
        ] = True,
        use_memory: Annotated[
            bool, Field(description="Whether what the user said in other conversations is drawn on.")
        ] = True,
        use_search: Annotated[bool, Field(description="Whether the user's documents are drawn on.")] = True,
        user_id: UserId = None,
    ) -> Annotated[CallToolResult, ConversationReply]:
        from workflows.conversation import ConverseWorkflow

        params = ConverseParams(
            user_id=server.user(ctx, user_id),
            conversation_id=conversation_id,
            prompt=prompt,
            use_cache=use_cache,
            use_memory=use_memory,
            use_search=use_search,
            limits=limits_of(server.runtime.settings),
        )
        if image is not None:
            await image_source(server, image, params, ctx.request_context.request is not None)
        return await server.tasks.run("converse", ConverseWorkflow, params)

    @server.tool(
        title="Read a conversation",
        description=CONVERSATION_HISTORY,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def conversation_history(
        ctx: Context[Any, Any],
        conversation_id: ConversationId,
        limit: Annotated[int, Field(ge=1, le=100, description="Most messages to return.")] = 50,
        cursor: Annotated[
            Cursor | None, Field(description="next_cursor of the page before, for what was said before it.")
        ] = None,
        user_id: UserId = None,
    ) -> Annotated[CallToolResult, ConversationHistory]:
        from workflows.conversation import ConversationHistoryWorkflow

        params = HistoryParams(
            user_id=server.user(ctx, user_id), conversation_id=conversation_id, limit=limit, cursor=cursor
        )
        return await server.tasks.run("conversation_history", ConversationHistoryWorkflow, params)

    @server.tool(
        title="End a conversation",
        description=END_CONVERSATION,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def end_conversation(
        ctx: Context[Any, Any], conversation_id: ConversationId, user_id: UserId = None
    ) -> Annotated[CallToolResult, ConversationClosed]:
        from workflows.conversation import ConversationEndWorkflow

        key = ConversationKey(user_id=server.user(ctx, user_id), conversation_id=conversation_id)
        return await server.tasks.run("end_conversation", ConversationEndWorkflow, key)
