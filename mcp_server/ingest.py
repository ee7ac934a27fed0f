"""`durable-context ingest`: a DataIngestionWorkflow run here, with a progress bar."""

import asyncio
import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import TerminatedError
from temporalio.service import RPCError

from activities.models import IngestParams, IngestResult, SourceRequest
from activities.sources import READABLE
from mcp_server.logs import configure_logging
from mcp_server.runtime import CallError, Runtime, explain_failure
from mcp_server.settings import Settings, SettingsError
from mcp_server.tools.documents import source_request
from workflows.documents import DataIngestionWorkflow
from workflows.history import under_way

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
REQUESTS_AT_ONCE = 500
"""What the command line names travels through a workflow's history, which is bounded."""


def requests_for(sources: list[str]) -> list[SourceRequest]:
    """What the command line names: URLs, and paths of files and folders as they are absolutely.

    Raises:
        SettingsError: naming a path that doesn't exist, or can't be looked at.
    """
    requests: list[SourceRequest] = []
    for source in sources:
        if "://" not in source:
            try:
                path = Path(source).expanduser().absolute()
                if not path.exists():
                    raise SettingsError(f"SOURCE {source} doesn't exist.")
                if not (path.is_file() or path.is_dir()):
                    raise SettingsError(f"SOURCE {source} is neither a file nor a folder.")
                str(path).encode()
            except UnicodeEncodeError:
                raise SettingsError(f"SOURCE {source!a} has a name that isn't valid Unicode. Rename it.") from None
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingsError(f"SOURCE {source} can't be read: {reason}.") from None
            source = str(path)
        requests.append(source_request(source))
    return requests


@asynccontextmanager
async def connected(settings: Settings, role: str) -> AsyncIterator[tuple[Runtime, Client]]:
    """A worker on the queue of this machine's files, and a client of its Temporal.

    Only processes with these files and this store may do the work.

    Raises:
        SettingsError: for whatever goes wrong in the block and isn't the caller's mistake.
    """
    configure_logging(settings.logs, role, settings.log_level)
    # The terminal is for results; the log file has the rest.
    logging.getLogger().handlers[0].setLevel(logging.CRITICAL)
    # Of one machine's queue there is no rolling deploy: whichever command comes next goes on with what another began.
    runtime = Runtime(
        settings.model_copy(update={"temporal_task_queue": settings.files_queue, "ingest_roots": []}), versioned=False
    )
    async with runtime.running():
        try:
            yield runtime, await runtime.client(time.monotonic() + settings.call_timeout_seconds)
        except CallError as error:
            raise SettingsError(str(error)) from None
        except WorkflowFailureError as error:
            if isinstance(error.cause, TerminatedError):
                raise SettingsError(f"Another `{role}` of the same was started, and took over.") from None
            logger.exception("the work failed")
            raise SettingsError(f"{explain_failure(error)} {settings.logs} says more.") from None
        except RPCError as error:
            logger.exception("the work failed")
            raise SettingsError(f"Temporal failed ({error}); {settings.logs} says more.") from None


async def ingest(
    settings: Settings, sources: list[str], include: list[str], exclude: list[str], user_id: str, collection: str
) -> int:
    """Ingest files, folders and pages and show how it goes; 0 where none of them failed.

    Raises:
        SettingsError: where a path doesn't exist, or there is nothing to ingest.
    """
    requests = requests_for(sources)
    result = IngestResult()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    async with connected(settings, "ingest") as (runtime, client):
        queue = runtime.settings.temporal_task_queue
        with bar:
            for start in range(0, len(requests), REQUESTS_AT_ONCE):
                named = requests[start : start + REQUESTS_AT_ONCE]
                params = IngestParams(
                    user_id=user_id,
                    collection=collection,
                    sources=named,
                    include=include,
                    exclude=exclude,
                    # What the user of this machine names may be read.
                    roots=[request.path for request in named if request.path is not None],
                )
                digest = hashlib.sha256(f"{queue}\0{params.model_dump_json()}".encode()).hexdigest()
                handle = await client.start_workflow(
                    DataIngestionWorkflow.run,
                    params,
                    id=f"ingest-{digest[:32]}",
                    task_queue=queue,
                    # A run that was interrupted is begun anew: it skips what is stored, and sees what has changed.
                    id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING,
                )
                task = bar.add_task("looking for sources", total=None)
                _add(result, await _watch(handle, bar, task))
                bar.remove_task(task)
    return _report(result)


def _add(result: IngestResult, more: IngestResult) -> None:
    """Count what another workflow did."""
    for name in ("stored", "chunks", "unchanged", "skipped", "failed"):
        setattr(result, name, getattr(result, name) + getattr(more, name))
    result.sources += more.sources


async def _watch(
    handle: WorkflowHandle[DataIngestionWorkflow, IngestResult], bar: Progress, task: TaskID
) -> IngestResult:
    """The result of an ingestion; until it is there, its progress."""
    result = asyncio.create_task(handle.result())
    while not result.done():
        with contextlib.suppress(RPCError):
            progress = await handle.query(DataIngestionWorkflow.progress)
            embedded, total = map(sum, zip((0, 0), *await under_way(await handle.describe()), strict=True))
            if progress.total is not None:
                text = f"ingesting ({embedded}/{total} chunks under way)" if total else "ingesting"
                bar.update(task, completed=progress.done, total=progress.total, description=text)
        await asyncio.wait((result,), timeout=POLL_SECONDS)
    return await result


def _report(result: IngestResult) -> int:
    """Say what became of the sources.

    Raises:
        SettingsError: where there were none.
    """
    if not result.sources:
        raise SettingsError(f"Nothing to ingest: no {', '.join(sorted(READABLE))} files there that the globs choose.")
    console = Console(highlight=False, soft_wrap=True)
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    console.print(
        f"{result.stored} documents stored in {result.chunks} chunks, {result.unchanged} unchanged{skipped}, "
        f"{result.failed} failed"
    )
    told = [source for source in result.sources if source.status in ("failed", "skipped")]
    for source in told:
        print(f"durable-context: {source.source}: {source.reason}", file=sys.stderr)  # noqa: T201
    if (untold := result.failed + result.skipped - len(told)) > 0:
        print(f"durable-context: and {untold} more", file=sys.stderr)  # noqa: T201
    return 1 if result.failed else 0
