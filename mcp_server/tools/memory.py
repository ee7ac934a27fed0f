"""Long-term memory of conversations."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import (
    ListMemoriesParams,
    MemoryKey,
    MemoryOrder,
    MemoryPage,
    MessageType,
    PinMemoryParams,
    PinMemoryResult,
    RetrieveMemoryParams,
    RetrieveMemoryResult,
    SplitMemoryResult,
    StoreMemoryParams,
    StoreMemoryResult,
)
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Cursor, MemoryId, Name, Text, Timestamp, UserId

STORE_MEMORY = """Remember one message of a conversation, word for word.
Call it once for each message of the user (message_type human) and once for each answer of yours (ai). What the user
says that is worth keeping becomes a long-term memory in the background. The message is stored before this returns."""

RETRIEVE_MEMORY = """Recall what earlier conversations said that bears on a text: messages with their surroundings,
summaries of their conversations, and long-term memories.
Call it before answering whenever the user may have told you something relevant before: preferences, facts about them,
decisions, plans, earlier answers. Memories of one matter come together, with what was said last first: where they
disagree, that holds."""

LIST_MEMORIES = """List a user's long-term memories, newest or strongest first, a page at a time.
Call it to show users what is remembered about them, or to find a memory's id. To answer a question, use retrieve_memory
instead. Listing doesn't count as using a memory."""

PIN_MEMORY = """Keep a memory for good, or stop doing so.
Call it when the user asks that something is never lost. Memories that aren't pinned fade, and the weakest are dropped
once a user has more than the server keeps. Asked for, forget removes pinned ones too."""

SPLIT_MEMORY = """Undo a consolidation: memories that were put together under one parent stand alone again.
Call it with the id of a memory of level 1 whose children aren't about the same thing. Nothing said is lost, and they
are never put together again."""


def register(server: DurableContextServer) -> None:
    """Publish the tools of memory."""

    @server.tool(
        title="Remember a message",
        description=STORE_MEMORY,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
        ),
    )
    async def store_memory(
        ctx: Context[Any, Any],
        conversation_id: Annotated[Name, Field(description="Which conversation; any id of yours, the same each time.")],
        text: Annotated[Text, Field(description="The message, word for word.")],
        message_type: Annotated[MessageType, Field(description="'human' for the user's, 'ai' for yours.")],
        user_id: UserId = None,
        timestamp: Timestamp = None,
    ) -> Annotated[CallToolResult, StoreMemoryResult]:
        from workflows.memory import MemoryStorageWorkflow

        params = StoreMemoryParams(
            user_id=server.user(ctx, user_id),
            conversation_id=conversation_id,
            text=text,
            message_type=message_type,
            timestamp=timestamp,
        )
        return await server.tasks.run("store_memory", MemoryStorageWorkflow, params)

    @server.tool(
        title="Recall conversations",
        description=RETRIEVE_MEMORY,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def retrieve_memory(
        ctx: Context[Any, Any],
        text: Annotated[Text, Field(description="The user's message or question.")],
        user_id: UserId = None,
        limit: Annotated[int, Field(ge=1, le=100, description="Most messages, and most memories, to return.")] = 10,
    ) -> Annotated[CallToolResult, RetrieveMemoryResult]:
        from workflows.memory import MemoryRetrievalWorkflow

        params = RetrieveMemoryParams(user_id=server.user(ctx, user_id), text=text, limit=limit)
        return await server.tasks.run("retrieve_memory", MemoryRetrievalWorkflow, params)

    @server.tool(
        title="List memories",
        description=LIST_MEMORIES,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def list_memories(
        ctx: Context[Any, Any],
        user_id: UserId = None,
        limit: Annotated[int, Field(ge=1, le=100, description="Most memories to return.")] = 20,
        order: Annotated[
            MemoryOrder, Field(description="'newest' by when it was said, or 'strongest' by time and use.")
        ] = "newest",
        pinned: Annotated[bool, Field(description="Only those that are pinned.")] = False,
        cursor: Annotated[
            Cursor | None,
            Field(description="next_cursor of the page before, with the same order; the first page without."),
        ] = None,
    ) -> Annotated[CallToolResult, MemoryPage]:
        from workflows.memory import MemoryListWorkflow

        params = ListMemoriesParams(
            user_id=server.user(ctx, user_id), limit=limit, order=order, pinned=pinned, cursor=cursor
        )
        return await server.tasks.run("list_memories", MemoryListWorkflow, params)

    @server.tool(
        title="Pin a memory",
        description=PIN_MEMORY,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def pin_memory(
        ctx: Context[Any, Any],
        memory_id: MemoryId,
        user_id: UserId = None,
        pinned: Annotated[bool, Field(description="False to stop keeping it.")] = True,
    ) -> Annotated[CallToolResult, PinMemoryResult]:
        from workflows.memory import MemoryPinWorkflow

        params = PinMemoryParams(user_id=server.user(ctx, user_id), memory_id=memory_id, pinned=pinned)
        return await server.tasks.run("pin_memory", MemoryPinWorkflow, params)

    @server.tool(
        title="Split a memory",
        description=SPLIT_MEMORY,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def split_memory(
        ctx: Context[Any, Any], memory_id: MemoryId, user_id: UserId = None
    ) -> Annotated[CallToolResult, SplitMemoryResult]:
        from workflows.memory import MemorySplitWorkflow

        key = MemoryKey(user_id=server.user(ctx, user_id), memory_id=memory_id)
        return await server.tasks.run("split_memory", MemorySplitWorkflow, key)
