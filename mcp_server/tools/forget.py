"""Forgetting what was remembered."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from activities.models import ForgetParams, ForgetResult
from mcp_server.server import DurableContextServer
from mcp_server.tools.arguments import Name, Query, UserId

FORGET = """Forget for good what was remembered: messages, the memories formed from them, and cached answers.
Call it when the user asks to forget, delete or take back something. Say what in exactly one of four ways: ids (of
messages, memories or cached answers), conversation_id, query, or everything=true.
A query removes nothing at first: it answers what it matches, and a confirmation. Show the matches to the user. Then
call again with the same arguments and the confirmation to remove all of them, or with ids to remove some.
Every copy goes, pinned or not: a memory goes with the messages it was formed from, a message with what came of it
alone. Ingested documents are no memory, and stay. It can't be undone.
Before everything goes the user is asked. Where this client can't ask, you have to, and then give confirm=true."""


def register(server: DurableContextServer) -> None:
    """Publish `forget`."""

    @server.tool(
        title="Forget",
        description=FORGET,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def forget(
        ctx: Context[Any, Any],
        ids: Annotated[
            list[Name] | None,
            Field(
                min_length=1,
                max_length=100,
                description="A message_id, memory_id or entry_id that another tool answered, or the id of a match; "
                "all kinds may be mixed.",
            ),
        ] = None,
        conversation_id: Annotated[Name | None, Field(description="A whole conversation, by its id.")] = None,
        query: Annotated[
            Query | None, Field(description="What to forget, in words: a subject, a name, a question.")
        ] = None,
        everything: Annotated[
            bool, Field(description="true for all messages, memories and cached answers of the user.")
        ] = False,
        confirm: Annotated[bool, Field(description="With everything: true once the user has agreed to it.")] = False,
        confirmation: Annotated[
            Name | None, Field(description="What the call with query answered, to remove exactly its matches.")
        ] = None,
        limit: Annotated[int, Field(ge=1, le=100, description="Most matches of a query, of each kind.")] = 20,
        threshold: Annotated[
            float | None,
            Field(
                ge=-1,
                le=1,
                allow_inf_nan=False,
                description="Least cosine similarity of a match; one that fits the server's model if left out. What "
                "holds every word of the query, of the hundred nearest of each kind, matches anyway.",
            ),
        ] = None,
        user_id: UserId = None,
    ) -> Annotated[CallToolResult, ForgetResult]:
        from workflows.forget import ForgetWorkflow

        if [ids is not None, conversation_id is not None, query is not None, everything].count(True) != 1:
            raise ToolError(
                "forget: give exactly one of ids, conversation_id, query and everything=true, so that it is clear what "
                "is meant; nothing was removed."
            )
        if confirmation is not None and query is None:
            raise ToolError("confirmation: it goes with the query that it was answered to; nothing was removed.")
        if confirm and not everything:
            raise ToolError("confirm: it goes with everything=true; nothing was removed.")
        asks = everything and not confirm
        if asks and not server.tasks.can_ask:
            raise ToolError(
                "confirm: everything that is remembered of this user would go for good. Ask the user, and once they "
                "agree call forget again with confirm=true; nothing was removed."
            )
        params = ForgetParams(
            user_id=server.user(ctx, user_id),
            ids=ids,
            conversation_id=conversation_id,
            query=query,
            everything=everything,
            asks=asks,
            limit=limit,
            threshold=threshold,
            confirmation=confirmation,
        )
        return await server.tasks.run("forget", ForgetWorkflow, params)
