"""Builds the MCP server: tools, prompt and resources over one runtime."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp_types import CallToolResult, InputRequiredResult, TextContent
from pydantic import ValidationError

from mcp_server.runtime import CallError, Runtime

if TYPE_CHECKING:
    from activities.models import Model

WORKFLOW_ID = "durable-context/workflow_id"
"""Key of a tool result's `_meta` that names the workflow which ran."""

INSTRUCTIONS = """Durable context for an agent: long-term memory, document search, a cache of answers, and web search.
Before answering, call check_semantic_cache with the user's question, then retrieve_memory and hybrid_search for what
bears on it. After answering, call store_memory for the user's message and for your answer, and semantic_cache_response
where the answer would serve the same question again."""


class DurableContextServer(MCPServer[dict[str, Any]]):
    """An MCP server whose tool calls are workflows.

    Args:
        runtime: What runs them.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(
            "durable-context",
            title="Durable Context",
            instructions=INSTRUCTIONS,
            version=version("durable-context"),
            log_level=runtime.settings.log_level,
        )
        self.runtime = runtime

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[dict[str, Any], Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; whatever is wrong with the arguments is said in a sentence that names them.

        Raises:
            ToolError: for an unknown tool, an unknown or unusable argument, and what a tool refuses.
        """
        await self.runtime.loaded()
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            known = ", ".join(sorted(known.name for known in self._tool_manager.list_tools()))
            raise ToolError(f"There is no tool '{name}'. The tools are: {known}.")
        accepted = tool.parameters.get("properties", {})
        if unknown := sorted(set(arguments) - set(accepted)):
            raise ToolError(f"{name} has no argument '{unknown[0]}'. It takes: {', '.join(accepted)}.")
        if str(arguments.get("user_id")).strip() == "null" and arguments["user_id"] is not None:
            # The SDK reads a string of JSON as what it says, which would make this the default user.
            raise ToolError(f"{name}: user_id 'null' isn't a user. Leave user_id out.")
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            raise UnexpectedToolError(
                f"{name} failed in a way that wasn't foreseen, perhaps for its arguments; the server's log says why."
            ) from error
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(_describe(name, error.__cause__)) from None
            raise ToolError(str(error).removeprefix(f"Error executing tool {name}: ")) from None

    def user(self, ctx: Context[Any, Any], user_id: str | None) -> str:
        """Whose records a call is about: the authenticated user's, else `user_id`, else DEFAULT_USER_ID.

        Raises:
            ToolError: where an authenticated user names another.
        """
        request = ctx.request_context.request
        token = getattr(request.scope.get("user"), "access_token", None) if request is not None else None
        if token is None:
            return user_id or self.runtime.settings.default_user_id
        if user_id is not None and user_id != token.subject:
            raise ToolError("user_id: this token belongs to another user. Leave user_id out.")
        return str(token.subject)

    async def run_workflow(
        self, name: str, workflow: Any, params: "Model", result_type: "type[Model]", *, writes: bool = False
    ) -> CallToolResult:
        """Answer a tool call with the result of its workflow, or with what went wrong as a tool error.

        Args:
            name: The tool's.
            workflow: Workflow class.
            params: Its argument.
            result_type: Its result, which becomes the structured content.
            writes: Whether it stores something, and so goes on past the call's deadline.
        """
        try:
            outcome = await self.runtime.call(workflow, params, result_type, name, writes=writes)
        except CallError as error:
            return CallToolResult(
                content=[TextContent(text=str(error))],
                is_error=True,
                _meta={WORKFLOW_ID: error.workflow_id} if error.workflow_id else None,
            )
        content = outcome.result.model_dump(mode="json")
        return CallToolResult(
            content=[TextContent(text=json.dumps(content, ensure_ascii=False))],
            structured_content=content,
            _meta={WORKFLOW_ID: outcome.workflow_id},
        )


def _describe(name: str, error: ValidationError) -> str:
    """What is wrong with a tool's arguments, without repeating their values."""
    problems: list[str] = []
    for item in error.errors(include_url=False, include_input=False):
        path: Sequence[Any] = [part for part in item["loc"] if not _is_branch(part)]
        label = ".".join(str(part) for part in path) or "arguments"
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input should ").removeprefix("String should ")
        if item["type"] == "missing":
            message = "is required"
        elif not message.startswith("must"):
            message = f"should {message}" if message.split(" ", 1)[0] in {"be", "have", "match"} else message
        problem = f"{label} {message}"
        if problem not in problems:
            problems.append(problem)
    return f"{name}: {'; '.join(problems)}."


def _is_branch(part: int | str) -> bool:
    """Whether a part of an error's path is pydantic's name for a branch of a union rather than an argument's."""
    return isinstance(part, str) and ("[" in part or part in {"str", "none", "int", "float", "bool"})


def build_server(runtime: Runtime) -> DurableContextServer:
    """The server with everything it publishes."""
    from mcp_server import prompts, resources
    from mcp_server.tools import cache, forget, memory, search, web

    server = DurableContextServer(runtime)
    for room in (search, memory, forget, cache, web, prompts, resources):
        room.register(server)
    for tool in server._tool_manager.list_tools():
        tool.parameters["additionalProperties"] = False
    return server
