"""Long-term memory of conversations."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import (
    MessageType,
    RetrieveMemoryParams,
    RetrieveMemoryResult,
    StoreMemoryParams,
    StoreMemoryResult,
)
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Name, Text, Timestamp, UserId

STORE_MEMORY = """Remember one message of a conversation, word for word.
Call it once for each message of the user (message_type human) and once for each answer of yours (ai). What the user
says that is worth keeping becomes a long-term memory in the background. The message is stored before this returns."""

RETRIEVE_MEMORY = """Recall what earlier conversations said that bears on a text: messages with their surroundings,
summaries of their conversations, and long-term memories.
Call it before answering whenever the user may have told you something relevant before: preferences, facts about them,
decisions, plans, earlier answers."""


def register(server: DurableContextServer) -> None:
    """Publish `store_memory` and `retrieve_memory`."""

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
        return await server.run_workflow("store_memory", MemoryStorageWorkflow, params, StoreMemoryResult, writes=True)

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
        return await server.run_workflow("retrieve_memory", MemoryRetrievalWorkflow, params, RetrieveMemoryResult)
