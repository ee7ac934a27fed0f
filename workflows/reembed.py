"""Another embedding model: embed every record with it, while the old one goes on serving, then switch."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.models import EMBEDDED, EmbeddingModel, ReembedCollectionParams, Reembedding
    from activities.reembed import ReembedActivities
    from workflows.steps import DURABLY, HEARTBEAT

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@workflow.defn
class ReembeddingWorkflow:
    """Keeps nothing that the store doesn't: begun anew at any point, it goes on where it was."""

    def __init__(self) -> None:
        self._progress: Reembedding | None = None

    @workflow.run
    async def run(self, model: EmbeddingModel) -> Reembedding:
        """Answers which model filled the store before, and how many records moved to `model`."""
        begun = self._progress = await _durably(ReembedActivities.begin_reembedding, model)
        switched = False
        while not switched:
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(model)
            for collection in EMBEDDED:
                params = ReembedCollectionParams(model=model, collection=collection)
                self._progress = await _durably(ReembedActivities.reembed_collection, params)
            switched = await _durably(ReembedActivities.finish_reembedding, model)
        return self._progress.model_copy(update={"filled_by": begun.filled_by})

    @workflow.query
    def progress(self) -> Reembedding | None:
        """How far it was after the last step; None before the first."""
        return self._progress


async def _durably(method: Callable[[ReembedActivities, Argument], Awaitable[Result]], argument: Argument) -> Result:
    """Run an activity, as long as it takes and as often as it needs."""
    return await workflow.execute_activity_method(
        method,
        argument,
        # Heartbeats tell whether it is alive; this only has to be longer than any store takes.
        start_to_close_timeout=timedelta(days=30),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=DURABLY,
    )
