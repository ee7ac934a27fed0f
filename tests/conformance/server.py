"""The server that the conformance suite's scenarios of tasks ask for: this project's extension over its fixture tools.

Usage: python -m tests.conformance.server --port PORT --temporal HOST:PORT
"""

import argparse
import asyncio
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    ClientCapabilities,
    ElicitRequest,
    InputRequiredResult,
    SamplingCapability,
)
from temporalio.worker import Worker

from mcp_server.runtime import Runtime
from mcp_server.settings import Settings
from mcp_server.tasks import EXTENSION, Tasks
from tests.conformance.workflows import (
    WORKFLOWS,
    ComputeParams,
    ConfirmDelete,
    FailingJob,
    FileParams,
    Greet,
    MultiInput,
    NameParams,
    ProtocolErrorJob,
    Said,
    SlowCompute,
    name_form,
)

QUEUE = "conformance"


def build(runtime: Runtime) -> MCPServer[dict[str, Any]]:
    """The server, whose tools run on `runtime`'s Temporal."""
    tasks = Tasks(runtime, lambda request: None)
    server: MCPServer[dict[str, Any]] = MCPServer("tasks-fixture", version="1", extensions=[tasks])

    @server.tool()
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    @server.tool(structured_output=False)
    async def slow_compute(seconds: float, label: str = "") -> CallToolResult:
        return await tasks.run("slow_compute", SlowCompute, ComputeParams(seconds=seconds, label=label))

    @server.tool(structured_output=False)
    async def failing_job(ctx: Context[Any, Any]) -> CallToolResult:
        require_client_extension(ctx.request_context, EXTENSION)
        return await tasks.run("failing_job", FailingJob, Said(text=""))

    @server.tool(structured_output=False)
    async def protocol_error_job() -> CallToolResult:
        return await tasks.run("protocol_error_job", ProtocolErrorJob, Said(text=""))

    @server.tool(structured_output=False)
    async def confirm_delete(filename: str) -> CallToolResult:
        return await tasks.run("confirm_delete", ConfirmDelete, FileParams(filename=filename))

    @server.tool(structured_output=False)
    async def multi_input() -> CallToolResult:
        return await tasks.run("multi_input", MultiInput, Said(text=""))

    @server.tool(structured_output=False)
    async def test_tool_with_task(ctx: Context[Any, Any]) -> CallToolResult | InputRequiredResult:
        require_client_extension(ctx.request_context, EXTENSION)
        answers = ctx.input_responses
        if not answers or "user_name" not in answers:
            request = ElicitRequest.model_validate(name_form("What is your name?", "name"))
            return InputRequiredResult(input_requests={"user_name": request}, request_state="asked")
        said: Any = answers["user_name"]
        return await tasks.run("test_tool_with_task", Greet, NameParams(name=str((said.content or {}).get("name"))))

    @server.tool()
    async def test_missing_capability(ctx: Context[Any, Any]) -> str:
        needed = ClientCapabilities(sampling=SamplingCapability())
        if not ctx.session.check_client_capability(needed):
            data: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
            raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs sampling.", data)
        return "It could be sampled."

    tasks.publish(server._lowlevel_server)
    return server


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temporal", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    settings = Settings(
        temporal_address=options.temporal, temporal_task_queue=QUEUE, task_grace_seconds=0, call_timeout_seconds=30
    )
    runtime = Runtime(settings, run_worker=False)
    app = build(runtime).streamable_http_app(stateless_http=True)
    async with runtime.running():
        client = await runtime.client(asyncio.get_running_loop().time() + 30)
        async with Worker(client, task_queue=QUEUE, workflows=WORKFLOWS):
            await uvicorn.Server(uvicorn.Config(app, port=options.port, log_level="warning")).serve()


if __name__ == "__main__":
    asyncio.run(main())
