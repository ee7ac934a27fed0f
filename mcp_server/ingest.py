"""`durable-context ingest`: a DataIngestionWorkflow run here, with a progress bar."""

import asyncio
import contextlib
import hashlib
import logging
import socket
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError

from activities.documents import SUFFIXES
from activities.models import IngestParams, IngestResult
from mcp_server.logs import configure_logging
from mcp_server.runtime import CallError, Runtime
from mcp_server.settings import Settings, SettingsError
from workflows.documents import DataIngestionWorkflow

POLL_SECONDS = 0.2


def find_files(paths: list[Path]) -> list[Path]:
    """The files named, and the text and Markdown files in the folders named, each once, without hidden ones.

    Raises:
        SettingsError: naming a path that doesn't exist.
    """
    found: dict[Path, None] = {}
    for path in paths:
        path = path.expanduser().absolute()
        if path.is_dir():
            inside = (item for item in sorted(path.rglob("*")) if item.suffix.lower() in SUFFIXES and item.is_file())
            found |= {
                item: None for item in inside if not any(part.startswith(".") for part in item.relative_to(path).parts)
            }
        elif path.exists():
            found[path] = None
        else:
            raise SettingsError(f"PATH {path} doesn't exist.")
    return list(found)


async def ingest(settings: Settings, paths: list[Path], user_id: str, collection: str) -> int:
    """Ingest files and show how it goes; 0 where every file is stored or unchanged.

    Raises:
        SettingsError: where a path doesn't exist, or there is nothing to ingest.
    """
    files = find_files(paths)
    if not files:
        raise SettingsError(f"Nothing to ingest: no {', '.join(sorted(SUFFIXES))} files there.")
    configure_logging(settings.logs, "ingest", settings.log_level)
    # The bar owns the terminal; the log file has the rest.
    logging.getLogger().handlers[0].setLevel(logging.ERROR)
    # Only this machine is known to have the files, so the work stays on a queue of its own.
    queue = f"{settings.temporal_task_queue}-files-{socket.gethostname()}"
    runtime = Runtime(settings.model_copy(update={"temporal_task_queue": queue}))
    params = IngestParams(user_id=user_id, collection=collection, paths=[str(file) for file in files])
    digest = hashlib.sha256("\0".join([queue, user_id, collection, *params.paths]).encode()).hexdigest()
    async with runtime.running():
        try:
            client = await runtime.client(time.monotonic() + settings.call_timeout_seconds)
            handle = await client.start_workflow(
                DataIngestionWorkflow.run,
                params,
                id=f"ingest-{digest[:32]}",
                task_queue=queue,
                # A run that was interrupted goes on where it was.
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            )
            result = await _watch(handle)
        except CallError as error:
            raise SettingsError(str(error)) from None
        except (RPCError, WorkflowFailureError) as error:
            raise SettingsError(f"The ingestion failed ({error}); {settings.logs} says more.") from None
    return _report(result)


async def _watch(handle: WorkflowHandle[DataIngestionWorkflow, IngestResult]) -> IngestResult:
    """The workflow's result; until it is there, a progress bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("ingesting", total=None)
        result = asyncio.create_task(handle.result())
        while not result.done():
            with contextlib.suppress(RPCError):
                await _show(handle, bar, task)
            await asyncio.wait((result,), timeout=POLL_SECONDS)
        return await result


async def _show(handle: WorkflowHandle[DataIngestionWorkflow, IngestResult], bar: Progress, task: TaskID) -> None:
    progress = await handle.query(DataIngestionWorkflow.progress)
    description = await handle.describe()
    embedded = total = 0
    for pending in description.raw_description.pending_activities:
        if pending.HasField("heartbeat_details"):
            done, of = await handle._client.data_converter.decode(pending.heartbeat_details.payloads, [int, int])
            embedded, total = embedded + done, total + of
    text = f"ingesting ({embedded}/{total} chunks under way)" if total else "ingesting"
    bar.update(task, completed=len(progress.done), total=progress.total, description=text)


def _report(result: IngestResult) -> int:
    stored = [source for source in result.sources if not source.skipped and not source.error]
    skipped = sum(source.skipped for source in result.sources)
    failed = [source for source in result.sources if source.error]
    chunks = sum(source.chunks for source in stored)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(stored)} files stored in {chunks} chunks, {skipped} unchanged, {len(failed)} failed")
    for source in failed:
        print(f"durable-context: {source.source}: {source.error}", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0
