"""The tools that a model may call: this server's own, and those of other MCP servers.

Each call is durable and for one user alone, whom no argument can change. Whatever goes wrong with one is said to the
model, which can go on without it.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError, TimeoutError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import passages
    from activities.errors import KINDS
    from activities.models import (
        CacheCheckParams,
        GenerationMeans,
        GenerationParams,
        HybridSearchParams,
        Passage,
        RetrieveMemoryParams,
        ToolSpec,
        ToolUse,
        WebSearchParams,
    )
    from activities.store.words import cut
    from workflows.cache import SemanticCacheCheckWorkflow
    from workflows.memory import MemoryRetrievalWorkflow
    from workflows.search import HybridSearchWorkflow
    from workflows.web import WebSearchWorkflow

if TYPE_CHECKING:
    from mcp_types import Tool

OWN_SECONDS = timedelta(seconds=60)
"""How long one of this server's own tools may take; what it reads is given up earlier."""

RESULT_CHARACTERS = 20_000
"""Length to which a tool's answer is cut: some 5,000 tokens, of which a model takes a few dozen answers."""

MAX_TOOLS = 64
"""Tools that a model is told of, at most: their descriptions are sent with every invocation."""


@dataclass(frozen=True)
class Outcome:
    """What a tool answered.

    Attributes:
        text: For the model; what went wrong where it failed.
        passages: What it found that can be cited.
    """

    text: str = ""
    passages: list[Passage] = field(default_factory=list)
    failed: bool = False

    def shown(self, first: int) -> str:
        """As the model is told it, passages numbered from `first` on."""
        return "\n".join(
            part for part in (self.text, passages.render(self.passages, first) if self.passages else "") if part
        )


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Search(_Arguments):
    query: str = Field(min_length=1, max_length=2000, description="What to find, as a question or as keywords.")
    limit: int = Field(default=5, ge=1, le=10, description="Most passages to return.")


class _Recall(_Arguments):
    text: str = Field(min_length=1, max_length=2000, description="What to recall, in words or as a question.")
    limit: int = Field(default=5, ge=1, le=10, description="Most messages and memories to return, of each.")


class _CacheCheck(_Arguments):
    query: str = Field(min_length=1, max_length=2000, description="The question.")


class _Web(_Arguments):
    query: str = Field(min_length=1, max_length=400, description="What to find.")
    max_results: int = Field(default=5, ge=1, le=10)


class _Own:
    """This server's own tools, for one user.

    Args:
        params: Whose they are, and which collection and cached answers they look at.
    """

    def __init__(self, params: GenerationParams) -> None:
        self._params = params
        self._started = 0

    async def _child(self, workflow_class: Any, argument: Any, name: str) -> Any:
        self._started += 1
        return await workflow.execute_child_workflow(
            workflow_class.run,
            argument,
            id=f"{workflow.info().workflow_id}-{name}-{self._started}",
            execution_timeout=OWN_SECONDS,
        )

    async def hybrid_search(self, arguments: _Search) -> Outcome:
        """Search the user's documents by keywords and by meaning. Call it where the passages given don't hold the
        answer and a document may, with other words than were searched before."""
        params = HybridSearchParams(
            user_id=self._params.user_id,
            query=arguments.query,
            limit=arguments.limit,
            collection=self._params.collection,
        )
        return _found(passages.of_documents(await self._child(HybridSearchWorkflow, params, "hybrid_search")))

    async def retrieve_memory(self, arguments: _Recall) -> Outcome:
        """Recall what was said in earlier conversations with the user, and what is known of them."""
        params = RetrieveMemoryParams(user_id=self._params.user_id, text=arguments.text, limit=arguments.limit)
        recalled = await self._child(MemoryRetrievalWorkflow, params, "retrieve_memory")
        found = _found(passages.of_memory(recalled))
        summary = cut(recalled.conversation_summary, RESULT_CHARACTERS // 4)
        return Outcome(text=summary or found.text, passages=found.passages)

    async def check_semantic_cache(self, arguments: _CacheCheck) -> Outcome:
        """Look up whether the same question was answered before, and how."""
        params = CacheCheckParams(
            user_id=self._params.user_id, query=arguments.query, **self._params.cache.model_dump()
        )
        cached = await self._child(SemanticCacheCheckWorkflow, params, "check_semantic_cache")
        if not cached.hit:
            return Outcome(text="No cached answer to this question.")
        return Outcome(
            text=f"To the question {json.dumps(cached.cached_query, ensure_ascii=False)} was answered: "
            f"{cut(cached.response, RESULT_CHARACTERS)}"
        )

    async def search_web(self, arguments: _Web) -> Outcome:
        """Search the web. Call it for what is recent or public and in neither documents nor memory."""
        params = WebSearchParams(query=arguments.query, max_results=arguments.max_results)
        return _found(passages.of_web(await self._child(WebSearchWorkflow, params, "search_web")))


def _found(found: Sequence[Passage]) -> Outcome:
    """Passages that together are no longer than an answer may be."""
    kept: list[Passage] = []
    room = RESULT_CHARACTERS
    for passage in found:
        if room <= 0:
            break
        kept.append(passage.model_copy(update={"text": cut(passage.text, room)}))
        room -= len(passage.text)
    return Outcome(passages=kept) if kept else Outcome(text="Nothing was found.")


@dataclass(frozen=True)
class _Callable:
    """A tool that can be called: where it is from, its own name, and how it is called with a model's arguments."""

    server: str | None
    tool: str
    run: Callable[[dict[str, Any]], Awaitable[Outcome]]


class Toolbox:
    """The tools that a model may call for one user; empty at first.

    Args:
        params: For whom and over what.

    Attributes:
        specs: What the model is told of them.
        problems: Why others aren't among them.
    """

    def __init__(self, params: GenerationParams) -> None:
        self._params = params
        self._callables: dict[str, _Callable] = {}
        self.specs: list[ToolSpec] = []
        self.problems: list[str] = []

    @classmethod
    async def filled(cls, params: GenerationParams, means: GenerationMeans) -> Self:
        """With everything that there is."""
        toolbox = cls(params)
        toolbox._take_own(means.web_search)
        listed = await asyncio.gather(*(toolbox._listed(server) for server in means.servers))
        for server, tools in zip(means.servers, listed, strict=True):
            toolbox._take(server, tools)
        return toolbox

    def origin(self, name: str) -> tuple[str | None, str]:
        """The server of a tool, None for this one, and the tool's own name."""
        known = self._callables.get(name)
        return (known.server, known.tool) if known else (None, name)

    async def call(self, uses: Sequence[ToolUse]) -> list[Outcome]:
        """Call tools, all at once; one outcome for each, in order."""
        return list(await asyncio.gather(*(self._call(use) for use in uses)))

    async def _call(self, use: ToolUse) -> Outcome:
        known = self._callables.get(use.name)
        if known is None:
            names = ", ".join(self._callables)
            return Outcome(text=f"There is no tool '{cut(use.name, 100)}'. The tools are: {names}.", failed=True)
        if use.problem:
            return Outcome(text=f"{use.problem} Call {use.name} again with arguments of its schema.", failed=True)
        try:
            return await known.run(use.input)
        except ValidationError as error:
            return Outcome(text=f"{use.name} wasn't called: {_problems(error)}", failed=True)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            return Outcome(text=f"{use.name} failed: {_reason(error)}", failed=True)

    # This server's own

    def _take_own(self, web_search: bool) -> None:
        own = _Own(self._params)
        self._offer(own.hybrid_search, _Search)
        self._offer(own.retrieve_memory, _Recall)
        self._offer(own.check_semantic_cache, _CacheCheck)
        if web_search:
            self._offer(own.search_web, _Web)

    def _offer(self, method: Callable[[Any], Awaitable[Outcome]], arguments: type[_Arguments]) -> None:
        async def run(given: dict[str, Any]) -> Outcome:
            return await method(arguments.model_validate(given))

        name = method.__name__
        description = " ".join((method.__doc__ or name).split())
        self.specs.append(ToolSpec(name=name, description=description, input_schema=arguments.model_json_schema()))
        self._callables[name] = _Callable(None, name, run)

    # Those of other MCP servers

    async def _listed(self, server: str) -> "list[Tool]":
        """The tools of another server; none where it doesn't say."""
        with workflow.unsafe.imports_passed_through():
            from workflows.mcp_servers import list_tools

        try:
            return await list_tools(server)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            self.problems.append(f"The tools of MCP server '{server}' can't be used: {_reason(error)}")
            return []

    def _take(self, server: str, tools: "Sequence[Tool]") -> None:
        left = MAX_TOOLS - len(self.specs)
        if len(tools) > left:
            self.problems.append(
                f"Of the {len(tools)} tools of MCP server '{server}' only {left} are used: a model is told of "
                f"{MAX_TOOLS} at most."
            )
        for tool in tools[:left]:
            name = self._name(server, tool.name)
            description = f"{tool.description or tool.title or tool.name} (tool {tool.name} of {server})"
            self.specs.append(ToolSpec(name=name, description=description, input_schema=tool.input_schema))
            self._callables[name] = _Callable(server, tool.name, _remote(server, tool))

    def _name(self, server: str, tool: str) -> str:
        """What the model calls a tool: unique, and of the characters that Bedrock takes."""
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", f"{server}__{tool}")
        if len(name) > 64 or name in self._callables:
            name = f"{name[:55]}_{hashlib.sha256(json.dumps([server, tool]).encode()).hexdigest()[:8]}"
        return name


def _remote(server: str, tool: "Tool") -> Callable[[dict[str, Any]], Awaitable[Outcome]]:
    with workflow.unsafe.imports_passed_through():
        from workflows.mcp_servers import call_tool

    async def run(arguments: dict[str, Any]) -> Outcome:
        text, failed = await call_tool(server, tool, arguments)
        return Outcome(text=passages.fenced(cut(text, RESULT_CHARACTERS)) or "(nothing)", failed=failed)

    return run


def _problems(error: ValidationError) -> str:
    """What is wrong with arguments, for the model that gave them."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'arguments'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    )


def _reason(error: BaseException) -> str:
    """What went wrong with a tool, worded for a model."""
    cause: BaseException | None = error
    timed_out = False
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.type in KINDS:
            return cause.message
        if isinstance(cause, ApplicationError) and cause.type == "MCPProtocolError":
            with workflow.unsafe.imports_passed_through():
                from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT

            if not (cause.details and cause.details[0] in (CONNECTION_CLOSED, REQUEST_TIMEOUT)):
                return cut(cause.message, RESULT_CHARACTERS)
            timed_out = True
        timed_out = timed_out or isinstance(cause, TimeoutError)
        cause = cause.__cause__
    if timed_out:
        return "its server didn't answer, and it isn't known whether it did what it was asked."
    return "it can't be reached, or doesn't work."
