"""Builds the MCP server: tools, prompt and resources over one runtime."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult
from pydantic import ValidationError

from mcp_server.runtime import Runtime
from mcp_server.tasks import TaskResult, Tasks

INSTRUCTIONS = """Durable context for an agent: long-term memory, document search, a cache of answers, and web search.
Before answering, call check_semantic_cache with the user's question, then retrieve_memory and hybrid_search for what
bears on it. After answering, call store_memory for the user's message and for your answer, and semantic_cache_response
where the answer would serve the same question again. Or let this server answer: converse does all of that, and holds
conversations that outlive yours."""


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
            extensions=[tasks := Tasks(runtime, self.authenticated)],
        )
        self.runtime = runtime
        self.tasks = tasks
        tasks.publish(self._lowlevel_server)

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
        if said := _unknown(name, arguments, accepted):
            raise ToolError(said)
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
                raise ToolError(describe(name, error.__cause__)) from None
            raise ToolError(str(error).removeprefix(f"Error executing tool {name}: ")) from None

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[dict[str, Any], Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """Get a prompt; whatever is wrong with the request is said in a sentence that names it.

        Raises:
            MCPError: for an unknown prompt, and for an argument that is unknown or missing.
        """
        prompt = self._prompt_manager.get_prompt(name)
        if prompt is None:
            known = ", ".join(known.name for known in self._prompt_manager.list_prompts())
            raise MCPError(INVALID_PARAMS, f"There is no prompt '{name}'. The prompts are: {known}.")
        accepted = {argument.name: bool(argument.required) for argument in prompt.arguments or []}
        given = arguments or {}
        if said := _unknown(name, given, accepted):
            raise MCPError(INVALID_PARAMS, said)
        if missing := [one for one, is_required in accepted.items() if is_required and one not in given]:
            raise MCPError(INVALID_PARAMS, f"{name}: {missing[0]} is required.")
        return await super().get_prompt(name, arguments, context)

    def user(self, ctx: Context[Any, Any], user_id: str | None) -> str:
        """Whose records a call is about: the authenticated user's, else `user_id`, else DEFAULT_USER_ID.

        Raises:
            ToolError: where an authenticated user names another.
        """
        owner = self.authenticated(ctx.request_context.request)
        if owner is None:
            return user_id or self.runtime.settings.default_user_id
        if user_id is not None and user_id != owner:
            raise ToolError("user_id: this token belongs to another user. Leave user_id out.")
        return owner

    @staticmethod
    def authenticated(request: Any) -> str | None:
        """The user that an HTTP request's token belongs to; None where there is no token."""
        token = getattr(request.scope.get("user"), "access_token", None) if request is not None else None
        return None if token is None else str(token.subject)


def _unknown(name: str, arguments: Mapping[str, Any], accepted: Mapping[str, Any]) -> str | None:
    """What is said of an argument that a tool or prompt doesn't have; None where it has all of them."""
    unknown = sorted(arguments.keys() - accepted.keys())
    return f"{name} has no argument '{unknown[0]}'. It takes: {', '.join(accepted)}." if unknown else None


def describe(name: str, error: ValidationError) -> str:
    """What is wrong with a tool's arguments, without repeating their values."""
    problems: list[str] = []
    for item in error.errors(include_url=False, include_input=False):
        path: Sequence[Any] = [part for part in item["loc"] if not _is_branch(part)]
        label = ".".join(str(part) for part in path) or "arguments"
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input should ").removeprefix("String should ")
        if item["type"] == "missing":
            message = "is required"
        elif item["type"] == "extra_forbidden":
            message = "isn't known"
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
    from mcp_server.tools import cache, conversation, documents, forget, memory, search, tasks, web

    server = DurableContextServer(runtime)
    for room in (search, documents, memory, forget, cache, web, conversation, tasks, prompts, resources):
        room.register(server)
    for tool in server._tool_manager.list_tools():
        tool.parameters["additionalProperties"] = False
        returned = tool.fn_metadata
        if returned.output_schema is not None and returned.output_model is not TaskResult:
            returned.output_schema = _or_task(returned.output_schema)
    return server


def _or_task(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a result that may also be a task, where the call has to answer before it is done.

    It is without references: clients check every answer by it, and to follow them took the SDK's a third longer.
    """
    result = {key: _resolved(value, schema.get("$defs", {})) for key, value in schema.items() if key != "$defs"}
    return {"type": "object", "anyOf": [result, TaskResult.model_json_schema()]}


def _resolved(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A part of a schema with what its references stand for in their places."""
    if isinstance(part, list):
        return [_resolved(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        # What stands beside a reference goes before what it stands for.
        named = definitions[part["$ref"].removeprefix("#/$defs/")]
        part = named | {key: value for key, value in part.items() if key != "$ref"}
    return {key: _resolved(value, definitions) for key, value in part.items()}
