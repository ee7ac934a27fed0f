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
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import TerminatedError
from temporalio.service import RPCError

from activities.documents import SUFFIXES
from activities.models import IngestParams, IngestResult, SourceOutcome
from mcp_server.logs import configure_logging
from mcp_server.runtime import CallError, Runtime, explain_failure
from mcp_server.settings import Settings, SettingsError
from workflows.documents import DataIngestionWorkflow

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
FILES_PER_WORKFLOW = 1000
"""Paths and outcomes travel through the workflow's history, which is bounded."""


def find_files(paths: list[Path]) -> list[Path]:
    """The files named, and the text and Markdown files in the folders named, without hidden ones.

    Each file comes once, under its own name rather than that of a link to it, so that it is recognised when it comes
    again. A link is kept where only its name tells the format.

    Raises:
        SettingsError: naming a path that can't be read.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            for file in _files_at(path.expanduser()):
                target = file.resolve()
                found[target] = target if target.suffix.lower() in SUFFIXES else file
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(f"PATH {path} can't be read: {reason}.") from None
    return list(found.values())


def _files_at(path: Path) -> list[Path]:
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    if path.is_dir():
        folder = path.resolve()
        return [
            item
            for item in sorted(folder.rglob("*"))
            if item.suffix.lower() in SUFFIXES
            and item.is_file()
            and not any(part.startswith(".") for part in item.relative_to(folder).parts)
        ]
    if path.is_file():
        return [path]
    if path.exists():
        raise SettingsError(f"PATH {path} is neither a file nor a folder.")
    raise SettingsError(f"PATH {path} doesn't exist.")


def _is_encodable(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


async def ingest(settings: Settings, paths: list[Path], user_id: str, collection: str) -> int:
    """Ingest files and show how it goes; 0 where every file is stored or unchanged.

    Raises:
        SettingsError: where a path doesn't exist, or there is nothing to ingest.
    """
    files = find_files(paths)
    nameless = [file for file in files if not _is_encodable(file)]
    outcomes = [
        SourceOutcome(source=ascii(str(file)), error="The file's name isn't valid Unicode. Rename it.")
        for file in nameless
    ]
    files = [file for file in files if _is_encodable(file)]
    if not files and not nameless:
        raise SettingsError(f"Nothing to ingest: no {', '.join(sorted(SUFFIXES))} files there.")
    configure_logging(settings.logs, "ingest", settings.log_level)
    # The bar owns the terminal; the log file has the rest.
    logging.getLogger().handlers[0].setLevel(logging.CRITICAL)
    # Only processes with this machine's files and this store may do the work, so it stays on a queue of theirs.
    place = hashlib.sha256(f"{socket.gethostname()}\0{settings.store_name}".encode()).hexdigest()[:16]
    queue = f"{settings.temporal_task_queue}-files-{place}"
    runtime = Runtime(settings.model_copy(update={"temporal_task_queue": queue}))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    async with runtime.running():
        try:
            client = await runtime.client(time.monotonic() + settings.call_timeout_seconds)
            with bar:
                task = bar.add_task("ingesting", total=len(files))
                for start in range(0, len(files), FILES_PER_WORKFLOW):
                    batch = [str(file) for file in files[start : start + FILES_PER_WORKFLOW]]
                    digest = hashlib.sha256("\0".join([queue, user_id, collection, *batch]).encode()).hexdigest()
                    handle = await client.start_workflow(
                        DataIngestionWorkflow.run,
                        IngestParams(user_id=user_id, collection=collection, paths=batch),
                        id=f"ingest-{digest[:32]}",
                        task_queue=queue,
                        # A run that was interrupted is begun anew: it skips what is stored, and sees what has changed.
                        id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING,
                    )
                    outcomes += await _watch(client, handle, bar, task, start)
        except CallError as error:
            raise SettingsError(str(error)) from None
        except WorkflowFailureError as error:
            if isinstance(error.cause, TerminatedError):
                raise SettingsError("Another `ingest` of the same files was started, and took over.") from None
            logger.exception("the ingestion failed")
            raise SettingsError(f"{explain_failure(error)} {settings.logs} says more.") from None
        except RPCError as error:
            logger.exception("the ingestion failed")
            raise SettingsError(f"Temporal failed ({error}); {settings.logs} says more.") from None
    return _report(outcomes)


async def _watch(
    client: Client,
    handle: WorkflowHandle[DataIngestionWorkflow, IngestResult],
    bar: Progress,
    task: TaskID,
    before: int,
) -> list[SourceOutcome]:
    """The outcomes of a workflow; until they are there, its progress, after the `before` files that came first."""
    result = asyncio.create_task(handle.result())
    while not result.done():
        with contextlib.suppress(RPCError):
            progress = await handle.query(DataIngestionWorkflow.progress)
            description = await handle.describe()
            embedded = total = 0
            for pending in description.raw_description.pending_activities:
                if pending.HasField("heartbeat_details"):
                    done, of = await client.data_converter.decode(pending.heartbeat_details.payloads, [int, int])
                    embedded, total = embedded + done, total + of
            text = f"ingesting ({embedded}/{total} chunks under way)" if total else "ingesting"
            bar.update(task, completed=before + progress.done, description=text)
        await asyncio.wait((result,), timeout=POLL_SECONDS)
    return (await result).sources


def _report(outcomes: list[SourceOutcome]) -> int:
    stored = [source for source in outcomes if not source.skipped and not source.error]
    skipped = sum(source.skipped for source in outcomes)
    failed = [source for source in outcomes if source.error]
    chunks = sum(source.chunks for source in stored)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(stored)} files stored in {chunks} chunks, {skipped} unchanged, {len(failed)} failed")
    for source in failed:
        print(f"durable-context: {source.source}: {source.error}", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0
