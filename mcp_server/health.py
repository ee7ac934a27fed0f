"""Whether each piece of the stack can be used, and what to do where it can't."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from mcp_server.settings import Settings

if TYPE_CHECKING:
    from temporalio.client import Client

    from activities.bedrock import BedrockEmbeddings, BedrockText
    from activities.mcp_servers import DeclaredServer
    from activities.store.base import OpenedStore

CHECK_SECONDS = 10.0


class PieceStatus(BaseModel):
    """One piece of the stack, as `doctor` and `health://status` tell it."""

    piece: Literal["workflow engine", "store", "embedding model", "text model", "web search", "MCP server"]
    remote: bool
    usable: bool
    required: bool = True
    detail: str
    """Address, version or model."""
    fix: str | None = None
    """What is wrong and what to do, where it isn't usable."""


async def check_engine(settings: Settings, client: "Client | None", address: str | None) -> PieceStatus:
    """Reach the namespace, and say the server's version."""
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest

    where = settings.temporal_address if settings.temporal_is_remote else address or "no address: not running"

    async def reach() -> str:
        if client is None:
            raise ConnectionError
        info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
        return f"Temporal server {info.server_version} at {where}, namespace {client.namespace}"

    fix = (
        "It can't be reached, or has no such namespace. Check TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, credentials and "
        "the network."
        if settings.temporal_is_remote
        else f"The embedded server doesn't answer; {settings.logs / 'stack.log'} may say why."
    )
    return await _check("workflow engine", settings.temporal_is_remote, f"Temporal at {where}", reach, fix)


async def check_store(settings: Settings, store: "OpenedStore") -> PieceStatus:
    """Open the store and reach it."""

    async def reach() -> str:
        return await (await store()).ping()

    return await _check("store", settings.store_is_remote, shown_store(settings), reach, "It doesn't answer.")


def shown_store(settings: Settings) -> str:
    """Which store it is, for people."""
    return f"{'MongoDB Atlas' if settings.store_is_remote else 'embedded store'} {settings.store_name}"


async def check_embedding_model(settings: Settings, embeddings: "BedrockEmbeddings") -> PieceStatus:
    """Embed a word."""
    remote, name = not settings.embeddings_are_local, settings.shown_embedding_model
    return await _check("embedding model", remote, name, embeddings.check, "It doesn't answer.")


async def check_text_model(settings: Settings, text: "BedrockText") -> PieceStatus:
    """Generate a few words."""
    remote, name = not settings.text_is_local, settings.shown_text_model
    return await _check("text model", remote, name, text.check, "It doesn't answer.")


def check_web_search(settings: Settings) -> PieceStatus:
    """Whether there is a key; a search would cost money, so none is made."""
    if settings.tavily_api_key is None:
        return PieceStatus(
            piece="web search",
            remote=False,
            usable=False,
            required=False,
            detail="none",
            fix="Optional: set TAVILY_API_KEY to use search_web.",
        )
    return PieceStatus(
        piece="web search", remote=True, usable=True, required=False, detail=f"Tavily at {settings.shown_tavily_url}"
    )


async def check_mcp_servers(settings: Settings) -> list[PieceStatus]:
    """Reach each of the other MCP servers that are declared, and count its tools. Answers do without what fails."""
    return list(await asyncio.gather(*(_check_mcp_server(name, one) for name, one in settings.mcp_servers.items())))


async def _check_mcp_server(name: str, server: "DeclaredServer") -> PieceStatus:
    from activities.mcp_servers import bounded_client, transport_of

    status = PieceStatus(piece="MCP server", remote=server.url is not None, usable=False, required=False, detail=name)
    try:
        async with asyncio.timeout(CHECK_SECONDS), bounded_client(transport_of(server)) as client:
            status.detail = f"{name}, {len((await client.list_tools()).tools)} tools"
        status.usable = True
    # Whatever a program that isn't ours does is told in the report.
    except Exception as error:
        reason = "it doesn't answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        status.fix = f"It can't be used ({reason}). Check its entry in MCP_SERVERS_FILE; answers do without it."
    return status


async def _check(
    piece: Literal["workflow engine", "store", "embedding model", "text model"],
    remote: bool,
    detail: str,
    reach: Callable[[], Awaitable[str]],
    fix: str,
) -> PieceStatus:
    from temporalio.exceptions import ApplicationError

    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return PieceStatus(piece=piece, remote=remote, usable=True, detail=await reach())
    except ApplicationError as error:
        fix = error.message
    except Exception as error:
        fix = f"{fix} ({type(error).__name__})"
    return PieceStatus(piece=piece, remote=remote, usable=False, detail=detail, fix=fix)
