"""Tasks, for clients without the MCP Tasks extension."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from mcp_server.runtime import CallError
from mcp_server.server import DurableContextServer
from mcp_server.tasks import TaskResult
from mcp_server.tools.arguments import Name

TASK_STATUS = """How a task stands, and its result once it is there.
Call it with the task_id that another tool answered because its work takes longer than a call may. While the status is
working, tell the user that it goes on, and ask again later."""

CANCEL_TASK = """End a task that isn't wanted any more.
Call it with the task_id that another tool answered. What has been done until then may stay done."""

TaskId = Annotated[Name, Field(description="As the call answered it that began the task.")]


def register(server: DurableContextServer) -> None:
    """Publish `task_status` and `cancel_task`."""

    @server.tool(
        title="Ask for a task",
        description=TASK_STATUS,
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def task_status(ctx: Context[Any, Any], task_id: TaskId) -> Annotated[CallToolResult, TaskResult]:
        try:
            return await server.tasks.status(task_id)
        except MCPError as error:
            raise ToolError(f"task_id: {error.error.message}") from None
        except CallError as error:
            raise ToolError(str(error)) from None

    @server.tool(
        title="End a task",
        description=CANCEL_TASK,
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def cancel_task(ctx: Context[Any, Any], task_id: TaskId) -> Annotated[CallToolResult, TaskResult]:
        try:
            return await server.tasks.cancel(task_id)
        except MCPError as error:
            raise ToolError(f"task_id: {error.error.message}") from None
        except CallError as error:
            raise ToolError(str(error)) from None
