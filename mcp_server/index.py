"""`durable-context index`: the indexes of the store in Atlas, created, mended, or only checked."""

import sys
from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from temporalio.exceptions import ApplicationError

from activities.embedding_models import embedding_model
from activities.store.atlas import AtlasStore
from activities.store.atlas_indexes import IndexReport
from mcp_server.runtime import build_atlas
from mcp_server.settings import Settings

_SIGNS = {"ready": "[green]ok[/]", "building": "[yellow]..[/]"}


async def index(settings: Settings, *, check: bool) -> int:
    """Report on each index and, unless `check`, build what is missing and wait for it.

    Returns:
        0 where every index can be queried and is as it should be.
    """
    if not settings.store_is_remote:
        print("The embedded store keeps its own indexes: there is nothing to do. Set MONGODB_URI for a store in Atlas.")
        return 0
    store = None
    try:
        model = embedding_model(settings.embedding_model_id, settings.embedding_dimensions)
        store = build_atlas(settings)
        if not check:
            await store.build_indexes(model, Progress())
        reports = await store.reports(model)
    except ApplicationError as error:
        print(f"durable-context: {error.message}", file=sys.stderr)
        return 1
    finally:
        if store is not None:
            await store.close()
    _show(store, reports)
    sound = all(report.state == "ready" for report in reports)
    if sound:
        print("All indexes are there and can be queried.")
    elif check:
        print("Run `durable-context index` to create what is missing and mend what differs, except for what belongs to")
        print("EXTERNAL_COLLECTIONS: create that in Atlas, or correct the setting.")
    else:
        print("What isn't ready above belongs to EXTERNAL_COLLECTIONS: create it in Atlas, or correct the setting.")
    return 0 if sound else 1


class Progress:
    """Says on stderr how many indexes are ready whenever that changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, reports: list[IndexReport]) -> None:
        counts = Counter(report.state for report in reports)
        line = ", ".join(f"{count} {state}" for state, count in counts.items())
        if line != self._last:
            print(f"indexes: {line}", file=sys.stderr)
            self._last = line


def _show(store: AtlasStore, reports: list[IndexReport]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "collection", "index", "kind", ""):
        table.add_column(heading, overflow="fold")
    for report in reports:
        state = "" if report.state == "ready" else report.state
        table.add_row(
            _SIGNS.get(report.state, "[red]no[/]"),
            escape(store.collection_name(report.index.collection)),
            escape(report.index.name),
            report.index.kind,
            escape(" ".join(part for part in (state, report.detail) if part)),
        )
    Console().print(table)
