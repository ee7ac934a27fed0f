"""`durable-context doctor`: what works, what doesn't, and what to do."""

import contextlib
from collections.abc import AsyncIterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from temporalio.exceptions import ApplicationError

from mcp_server.health import (
    PieceStatus,
    check_embedding_model,
    check_engine,
    check_mcp_servers,
    check_store,
    check_text_model,
    check_web_search,
    shown_store,
)
from mcp_server.local.stack import Addresses, StackError, leased
from mcp_server.runtime import build_embeddings, build_store, build_text, connect, needed_pieces
from mcp_server.settings import Settings


@contextlib.asynccontextmanager
async def _stack(settings: Settings) -> AsyncIterator[tuple[Addresses, str | None]]:
    """The embedded pieces that the settings need, and what is wrong with them, if anything."""
    need = needed_pieces(settings, run_worker=True)
    if not need:
        yield Addresses(), None
        return
    async with contextlib.AsyncExitStack() as stack:
        try:
            addresses = await stack.enter_async_context(leased(settings.durable_context_home, need))
            problem = None
        except StackError as error:
            addresses, problem = Addresses(), str(error)
        yield addresses, problem


async def examine(settings: Settings) -> list[PieceStatus]:
    """Bring up what is embedded, reach what is remote, and report on each piece."""
    async with _stack(settings) as (addresses, problem):
        client = None
        with contextlib.suppress(RuntimeError, ValueError):
            if addresses.temporal or settings.temporal_is_remote:
                client = await connect(settings, addresses.temporal)
        engine = await check_engine(settings, client, addresses.temporal)
        if problem and not engine.usable and not engine.remote:
            engine.fix = problem
        return [
            engine,
            *await _check_embedding_and_store(settings, addresses.models, problem),
            await _check_text(settings, addresses.models, problem),
            check_web_search(settings),
            *await check_mcp_servers(settings),
        ]


async def _check_embedding_and_store(
    settings: Settings, endpoint: str | None, problem: str | None
) -> tuple[PieceStatus, PieceStatus]:
    """The embedding model, and the store that it fills."""
    broken = PieceStatus(
        piece="embedding model",
        remote=not settings.embeddings_are_local,
        usable=False,
        detail=settings.shown_embedding_model,
        fix=problem,
    )
    unknown = PieceStatus(
        piece="store",
        remote=settings.store_is_remote,
        usable=False,
        detail=shown_store(settings),
        fix=problem or "It can't be opened before the embedding model is known.",
    )
    if settings.embeddings_are_local and endpoint is None:
        return broken, unknown
    try:
        embeddings = build_embeddings(settings, endpoint)
    except ApplicationError as error:
        broken.fix = error.message
        return broken, unknown
    store = build_store(settings, embeddings)
    try:
        return await check_embedding_model(settings, embeddings), await check_store(settings, store)
    finally:
        await store.close()


async def _check_text(settings: Settings, endpoint: str | None, problem: str | None) -> PieceStatus:
    if settings.text_is_local and endpoint is None:
        return PieceStatus(
            piece="text model", remote=False, usable=False, detail=settings.shown_text_model, fix=problem
        )
    return await check_text_model(settings, build_text(settings, endpoint))


async def doctor(settings: Settings) -> int:
    """Print the report; 0 only if every piece that is needed is usable."""
    statuses = await examine(settings)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "piece", "where", "what"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        sign = "[green]ok[/]" if status.usable else "[red]no[/]" if status.required else "[yellow]--[/]"
        where = "remote" if status.remote else "embedded" if status.usable or status.required else ""
        what = escape(status.detail) + (f"\n{escape(status.fix)}" if status.fix else "")
        table.add_row(sign, status.piece, where, what)
    console = Console()
    console.print(table)
    usable = all(status.usable for status in statuses if status.required)
    console.print(f"\nData folder: {settings.durable_context_home}", highlight=False, soft_wrap=True)
    console.print("Everything that is needed is usable." if usable else "Not usable yet: see above what to do.")
    return 0 if usable else 1
