"""Another MCP server, over stdio: `python -m tests.other_server FOLDER`. It notes each of its calls in the folder."""

import os
import sys
from pathlib import Path

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

FOLDER = Path(sys.argv[1])
server = MCPServer("harbour")


def note(call: str) -> None:
    with (FOLDER / "calls").open("a") as file:
        file.write(f"{call}\n")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def tide(port: str) -> str:
    """When the tide is high in a port today."""
    note(f"tide {port}")
    return f"High tide in {port}: 14:32."


@server.tool()
def book_berth(port: str, metres: float) -> str:
    """Book a berth for a ship of some length."""
    note(f"book_berth {port} {metres}")
    if metres > 300:
        raise ToolError("no berth is longer than 300 m")
    return "Booked: berth 7."


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def manifest(words: int) -> str:
    """A long text."""
    note("manifest")
    return "barrel " * words


@server.tool()
async def end() -> str:
    """Ends the server, as a crash does."""
    note("end")
    os._exit(1)


if __name__ == "__main__":
    anyio.run(server.run_stdio_async)
