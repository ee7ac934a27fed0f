"""Ingestion: bring a collection up to date with files, a few at a time."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.documents import DocumentActivities
    from activities.models import IngestParams, IngestProgress, IngestResult, IngestSourceParams, SourceOutcome
    from workflows.steps import DURABLY

CONCURRENCY = 4


@workflow.defn
class DataIngestionWorkflow:
    @workflow.init
    def __init__(self, params: IngestParams) -> None:
        self._done: list[SourceOutcome] = list(params.done)
        self._total = len(params.done) + len(params.paths)

    @workflow.run
    async def run(self, params: IngestParams) -> IngestResult:
        waiting = list(reversed(params.paths))

        async def work() -> None:
            while waiting and not workflow.info().is_continue_as_new_suggested():
                self._done.append(await self._ingest(params, waiting.pop()))

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        if waiting:
            workflow.continue_as_new(params.model_copy(update={"paths": waiting[::-1], "done": self._done}))
        return IngestResult(sources=self._done)

    @workflow.query
    def progress(self) -> IngestProgress:
        """How many sources there are, and how many are done."""
        return IngestProgress(total=self._total, done=len(self._done))

    @staticmethod
    async def _ingest(params: IngestParams, path: str) -> SourceOutcome:
        try:
            return await workflow.execute_activity_method(
                DocumentActivities.ingest_source,
                IngestSourceParams(user_id=params.user_id, collection=params.collection, path=path),
                start_to_close_timeout=timedelta(hours=1),
                heartbeat_timeout=timedelta(seconds=60),
                retry_policy=DURABLY,
            )
        except ActivityError as error:
            # One bad source never fails the others.
            cause = error.cause
            return SourceOutcome(source=path, error=str(getattr(cause, "message", None) or cause or error))
