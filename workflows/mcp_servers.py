"""The tools of other MCP servers, called durably by the activities of `temporalio-mcp`.

Imported only where such servers are declared: others need no MCP SDK in their workers, which takes more memory than all
workflows.
"""

import json
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from mcp_types import CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents, Tool
    from temporalio.mcp import TemporalMCPClient

    from workflows.steps import DURABLY, HEARTBEAT

CALL_SECONDS = timedelta(seconds=60)
"""How long a call of another server's tool may take: longer ones aren't for an answer that is waited for."""

LIST_SECONDS = timedelta(seconds=20)
"""How long another server may take to start and to say which tools it has: every answer with tools waits for it."""


async def list_tools(server: str) -> list[Tool]:
    """The tools of another server.

    Args:
        server: The name under which it is declared.

    Raises:
        FailureError: where it doesn't say.
    """
    client = TemporalMCPClient(
        server,
        activity_config={
            "start_to_close_timeout": LIST_SECONDS,
            "schedule_to_close_timeout": LIST_SECONDS,
            "heartbeat_timeout": HEARTBEAT,
            "retry_policy": RetryPolicy(maximum_attempts=2),
        },
    )
    return (await client.list_tools()).tools


async def call_tool(server: str, tool: Tool, arguments: dict[str, Any]) -> tuple[str, bool]:
    """What another server's tool answered, as text, and whether that is an error.

    Raises:
        FailureError: where it can't be called.
    """
    hints = tool.annotations
    repeatable = hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
    client = TemporalMCPClient(
        server,
        activity_config={
            "start_to_close_timeout": CALL_SECONDS,
            "schedule_to_close_timeout": CALL_SECONDS + LIST_SECONDS,
            "heartbeat_timeout": HEARTBEAT,
            # A call whose answer was lost may have had its effect: only what may be repeated is.
            "retry_policy": DURABLY if repeatable else RetryPolicy(maximum_attempts=1),
        },
    )
    answer = await client.call_tool(tool.name, arguments)
    return _text_of(answer), bool(answer.is_error)


def _text_of(answer: CallToolResult) -> str:
    """An answer's text; of what isn't text, what it is."""
    parts: list[str] = []
    for block in answer.content:
        if isinstance(block, TextContent):
            parts.append(block.text)
        elif isinstance(block, ResourceLink):
            parts.append(f"{block.title or block.name}: {block.uri}")
        elif isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents):
            parts.append(block.resource.text)
        else:
            parts.append(f"({block.type}, which can't be shown here)")
    if not parts and answer.structured_content is not None:
        parts.append(json.dumps(answer.structured_content, ensure_ascii=False))
    return "\n".join(parts)
