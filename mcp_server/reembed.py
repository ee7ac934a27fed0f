"""`durable-context reembed`: a ReembeddingWorkflow run here, with a progress bar."""

import asyncio
import contextlib
import hashlib
import logging
import socket
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.embedding_models import embedding_model
from activities.models import EmbeddingModel, Reembedding
from mcp_server.logs import configure_logging
from mcp_server.runtime import CallError, Runtime, explain_failure
from mcp_server.settings import Settings, SettingsError
from workflows.reembed import ReembeddingWorkflow

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


def name_of(settings: Settings, model: EmbeddingModel) -> str:
    """Name of the one workflow that moves this store to `model`, and of its task queue.

    Workers of another model, or of another machine's embedded store, have no part in it.
    """
    place = settings.store_name if settings.store_is_remote else f"{socket.gethostname()}\0{settings.store_name}"
    digest = hashlib.sha256("\0".join([place, str(model)]).encode()).hexdigest()
    return f"reembed-{digest[:32]}"


async def reembed(settings: Settings) -> int:
    """Move the store to the embedding model of the settings and show how it goes; 0 once it has moved.

    Raises:
        SettingsError: where the model can't be used, or the move fails with what doesn't pass by itself.
    """
    try:
        model = embedding_model(settings.embedding_model_id, settings.embedding_dimensions)
    except ApplicationError as error:
        raise SettingsError(error.message) from None
    configure_logging(settings.logs, "reembed", settings.log_level)
    # The bar owns the terminal; the log file has the rest.
    logging.getLogger().handlers[0].setLevel(logging.CRITICAL)
    name = name_of(settings, model)
    runtime = Runtime(settings.model_copy(update={"temporal_task_queue": name}), versioned=False)
    async with runtime.running():
        try:
            client = await runtime.client(time.monotonic() + settings.call_timeout_seconds)
            handle = await client.start_workflow(
                ReembeddingWorkflow.run,
                model,
                id=name,
                task_queue=name,
                # Whoever runs the command while it is under way, or after that was interrupted, goes on with it.
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            )
            moved = await _watch(client, handle)
        except CallError as error:
            raise SettingsError(str(error)) from None
        except WorkflowFailureError as error:
            logger.exception("the re-embedding failed")
            again = "Nothing that is embedded is lost: run the command again to go on."
            raise SettingsError(f"{explain_failure(error)} {again}") from None
        except RPCError as error:
            logger.exception("the re-embedding failed")
            raise SettingsError(f"Temporal failed ({error}). Run the command again to go on.") from None
    console = Console(highlight=False, soft_wrap=True)
    if moved.filled_by == model:
        console.print(f"Nothing to do: the store is filled by {model} already.", markup=False)
    else:
        console.print(f"{moved.records} records moved from {moved.filled_by} to {model}.", markup=False)
    return 0


async def _watch(client: Client, handle: WorkflowHandle[ReembeddingWorkflow, Reembedding]) -> Reembedding:
    """The result of a workflow; until it is there, its progress, and what keeps it waiting."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    result = asyncio.create_task(handle.result())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("re-embedding", total=None)
        while not result.done():
            with contextlib.suppress(RPCError):
                description = await handle.describe()
                for pending in description.raw_description.pending_activities:
                    if pending.heartbeat_details.payloads:
                        done, of = await client.data_converter.decode(pending.heartbeat_details.payloads, [int, int])
                        bar.update(task, completed=done, total=of)
                    failed = pending.last_failure
                    waits = f": {failed.message}" if failed.HasField("application_failure_info") else ""
                    bar.update(task, description=escape(f"re-embedding{waits}"))
            await asyncio.wait((result,), timeout=POLL_SECONDS)
    return await result
