"""Other MCP servers, whose tools a model may call: which are declared, and how a worker reaches them.

The calls themselves are the activities of `temporalio-mcp`, which keeps a connection for as long as it is used. Here
its answers are brought to a size that a history can hold.
"""

import json
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from activities.store.words import cut

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult
    from temporalio.mcp import MCPPlugin

READ_SECONDS = 60.0
"""How long a server may be silent during a call."""

TEXT_CHARACTERS = 50_000
"""Length to which a text of an answer is cut before it goes to a history; a model sees less of it."""

MAX_BLOCKS = 50
"""Blocks of an answer that are kept."""

SCHEMA_CHARACTERS = 20_000
"""A tool whose arguments take a longer schema isn't offered: it would fill the prompt."""

DESCRIPTION_CHARACTERS = 2_000

LISTED_TOOLS = 200
"""Tools of one server that are listed at most."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class ServersError(ValueError):
    """A file of MCP servers that can't be used; the message says why."""


class DeclaredServer(BaseModel):
    """One entry of `mcpServers`: a command to start, or an address.

    Whatever else other programs keep in it is ignored.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    command: str | None = Field(default=None, min_length=1)
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: str | None = Field(default=None, pattern=r"^https?://[^/]")
    headers: dict[str, str] = Field(default_factory=dict)
    type: Literal["stdio", "http", "streamable-http", "streamableHttp"] | None = None
    disabled: bool = False

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "DeclaredServer":
        if (self.command is None) == (self.url is None):
            raise ValueError("must have either a command or a url")
        return self


def read_servers(path: Path, variables: Mapping[str, str] = os.environ) -> dict[str, DeclaredServer]:
    """The servers that a file declares, by name.

    `${NAME}` and `${NAME:-default}` in its strings stand for environment variables, so that it need hold no secret.

    Args:
        path: A JSON file with an object `mcpServers`, as desktop hosts have it.
        variables: The environment.

    Raises:
        ServersError: naming the file, the entry and what to do, and never a value.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ServersError(f"{path} can't be read ({error.strerror})") from None
    except ValueError:
        raise ServersError(f"{path} isn't JSON") from None
    declared = raw.get("mcpServers") if isinstance(raw, dict) else None
    if not isinstance(declared, dict):
        raise ServersError(f'{path} must be an object with "mcpServers"; the README shows one')
    servers: dict[str, DeclaredServer] = {}
    for name, entry in declared.items():
        try:
            server = DeclaredServer.model_validate(_filled(entry, variables))
        except KeyError as error:
            raise ServersError(f"{path}: {name}: the environment variable {error.args[0]} isn't set") from None
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join([name, *(str(part) for part in problem["loc"])])
            raise ServersError(f"{path}: {place}: {problem['msg'].removeprefix('Value error, ')}") from None
        if not server.disabled:
            servers[name] = server
    return servers


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    """A JSON value with variables in the place of their names.

    Raises:
        KeyError: for one that isn't set and has no default.
    """
    if isinstance(value, str):
        return _VARIABLE.sub(
            lambda found: variables[found[1]] if found[2] is None else variables.get(found[1]) or found[2], value
        )
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    return value


def transport_of(server: DeclaredServer) -> AbstractAsyncContextManager[Any]:
    """What speaks to a server: a process of its own, or HTTP."""
    from mcp.client.stdio import StdioServerParameters, stdio_client

    if server.url is not None:
        return _http(server.url, server.headers)
    assert server.command is not None
    return stdio_client(
        StdioServerParameters(command=server.command, args=server.args, env=server.env or None, cwd=server.cwd)
    )


@asynccontextmanager
async def _http(url: str, headers: dict[str, str]) -> AsyncGenerator[Any]:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    timeout = httpx2.Timeout(10.0, read=READ_SECONDS)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout) as http,
        streamable_http_client(url, http_client=http) as streams,
    ):
        yield streams


def build_plugin(servers: Mapping[str, DeclaredServer]) -> "MCPPlugin | None":
    """What calls the tools of some servers in a worker; None where there are none. Nothing is connected yet."""
    if not servers:
        return None
    from temporalio.mcp import MCPPlugin

    return MCPPlugin({name: _factory(server) for name, server in servers.items()})


def _factory(server: DeclaredServer) -> "Callable[[], Client]":
    return lambda: bounded_client(transport_of(server))


def bounded_client(transport: AbstractAsyncContextManager[Any]) -> "Client":
    """A client whose answers are no larger than a history can hold."""
    # Imported here: who declares no servers needs no client.
    from mcp import Client
    from mcp_types import CallToolResult, ListToolsResult

    class BoundedClient(Client):
        async def call_tool(self, *args: Any, **kwargs: Any) -> CallToolResult:
            return _bounded(await super().call_tool(*args, **kwargs))

        async def list_tools(self, **kwargs: Any) -> ListToolsResult:
            listed = await super().list_tools(**kwargs)
            tools = [
                tool.model_copy(
                    update={
                        "description": cut(tool.description or "", DESCRIPTION_CHARACTERS),
                        "output_schema": None,
                        "icons": None,
                        "meta": None,
                    }
                )
                for tool in listed.tools[:LISTED_TOOLS]
                if len(json.dumps(tool.input_schema)) <= SCHEMA_CHARACTERS
            ]
            return listed.model_copy(update={"tools": tools})

    return BoundedClient(transport, read_timeout_seconds=READ_SECONDS)


def _bounded(answer: "CallToolResult") -> "CallToolResult":
    """An answer without what a model isn't given: bytes, whatever is too long, and JSON beside a text."""
    from mcp_types import EmbeddedResource, TextContent, TextResourceContents

    blocks: list[Any] = []
    room = TEXT_CHARACTERS
    for block in answer.content[:MAX_BLOCKS]:
        if isinstance(block, TextContent):
            block = TextContent(text=cut(block.text, max(room, 1)))
            room -= len(block.text)
        elif isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents):
            block = TextContent(text=cut(block.resource.text, max(room, 1)))
            room -= len(block.text)
        elif block.type != "resource_link":
            block = TextContent(text=f"({block.type}, which can't be shown here)")
        blocks.append(block)
    if not blocks and answer.structured_content is not None:
        blocks.append(TextContent(text=cut(json.dumps(answer.structured_content, ensure_ascii=False), room)))
    return answer.model_copy(update={"content": blocks, "structured_content": None, "meta": None})
