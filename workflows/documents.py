"""Documents: bring a collection up to date with sources, a few at a time; list, read and remove what is stored."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.documents import FETCH_ATTEMPTS, DocumentActivities, fetched_content, listing_page
    from activities.errors import KINDS
    from activities.images import ImageActivities
    from activities.models import (
        ContentName,
        ContentNames,
        DocumentKey,
        ImageParams,
        IngestParams,
        IngestProgress,
        IngestResult,
        IngestSourceParams,
        IngestState,
        ListDocumentsParams,
        Listing,
        Source,
        SourceOutcome,
        SourcePage,
        SourceParams,
        SourceRemoval,
        SourceRemoved,
        StoredDocument,
    )
    from workflows.images import ImageProcessingWorkflow
    from workflows.steps import (
        DURABLY,
        HEARTBEAT,
        READ_GIVE_UP,
        TO_ITS_END,
        WRITE_GIVE_UP,
        end_if_cancelled,
        report,
        step,
    )

Argument = TypeVar("Argument")
Result = TypeVar("Result")

CONCURRENCY = 4
"""Sources under way at once: while one is embedded, others are read and stored."""

OUTCOMES = 200
"""Outcomes that a result names, at most: it has to fit a workflow's history."""

REPORT_EVERY = timedelta(seconds=1)

_FETCHING = RetryPolicy(
    initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30), maximum_attempts=FETCH_ATTEMPTS
)


@workflow.defn
class DataIngestionWorkflow:
    """Only the names of sources and what became of them are in its history; texts and vectors go past it."""

    @workflow.init
    def __init__(self, params: IngestParams) -> None:
        state = params.state
        self._params = params
        self._listing: Listing | None = state.listing if state else None
        self._result = state.result if state else IngestResult()
        self._page, self._taken = (state.page, state.taken) if state else (0, 0)
        self._waiting: deque[Source] = deque()
        self._turning = asyncio.Lock()
        self._reported: datetime | None = None

    @workflow.run
    async def run(self, params: IngestParams) -> IngestResult:
        workers: list[asyncio.Task[None]] = []
        try:
            if self._listing is None:
                report("listing", message="Looking for sources.")
                self._listing = await self._list()
                self._report(self._listing.total)
            workers += [asyncio.create_task(self._work(self._listing)) for _ in range(CONCURRENCY)]
            await asyncio.gather(*workers)
        except (asyncio.CancelledError, FailureError):
            await self._abandon(workers)
            raise
        if self._page < len(self._listing.pages):
            state = IngestState(listing=self._listing, page=self._page, taken=self._taken, result=self._result)
            workflow.continue_as_new(params.model_copy(update={"sources": [], "state": state}))
        await step(DocumentActivities.drop_contents, ContentNames(names=self._listing.pages))
        return self._result

    async def _list(self) -> Listing:
        """List the sources. Cancelled meanwhile, it waits until the activity has ended: no page comes after that."""
        try:
            self._listing = await _durably(
                DocumentActivities.list_sources,
                self._params,
                self._params.files_queue,
                cancellation=TO_ITS_END,
            )
        except FailureError:
            end_if_cancelled()
            raise
        end_if_cancelled()
        assert self._listing is not None
        return self._listing

    async def _abandon(self, workers: list[asyncio.Task[None]]) -> None:
        """Keep nothing of what won't be ingested any more."""
        if self._listing is None:
            held = [request.content for request in self._params.sources if request.content]
            # Of a listing that was cut short the first page may be there; the activity drops what else it has put.
            first = listing_page(workflow.info().workflow_id, 0)
            await step(DocumentActivities.drop_contents, ContentNames(names=[*held, first]))
            return
        for worker in workers:
            worker.cancel()
        if workers:
            # Each drops what it has under way.
            await workflow.wait(workers)
        await step(DocumentActivities.drop_listing, ContentNames(names=self._listing.pages))

    @workflow.query
    def progress(self) -> IngestProgress:
        """How many sources there are, and how many are done."""
        return IngestProgress(total=self._listing.total if self._listing else None, done=self._done)

    @property
    def _done(self) -> int:
        result = self._result
        return result.stored + result.unchanged + result.skipped + result.failed

    async def _work(self, listing: Listing) -> None:
        """Take up one source after the other."""
        while not workflow.info().is_continue_as_new_suggested():
            source = await self._next(listing)
            if source is None:
                return
            self._count(await self._ingest(source))
            self._report(listing.total, source.source)

    async def _next(self, listing: Listing) -> Source | None:
        """The next source of the listing; None where there is none."""
        async with self._turning:
            while not self._waiting and self._page < len(listing.pages):
                name = ContentName(name=listing.pages[self._page])
                page = await step(DocumentActivities.listed_sources, name)
                if self._taken < len(page.sources):
                    self._waiting.extend(page.sources[self._taken :])
                else:
                    self._page, self._taken = self._page + 1, 0
            if not self._waiting:
                return None
            self._taken += 1
            if len(self._waiting) == 1:
                self._page, self._taken = self._page + 1, 0
            return self._waiting.popleft()

    def _count(self, outcome: SourceOutcome) -> None:
        result = self._result
        setattr(result, outcome.status, getattr(result, outcome.status) + 1)
        result.chunks += outcome.chunks
        result.sources.append(outcome)
        if len(result.sources) > OUTCOMES:
            fine = [index for index, one in enumerate(result.sources) if one.status in ("stored", "unchanged")]
            del result.sources[fine[-1] if fine else -1]

    def _report(self, total: int, last: str = "") -> None:
        now = workflow.now()
        if total and (self._reported is None or now - self._reported >= REPORT_EVERY):
            self._reported = now
            message = f"{self._done} of {total} sources are done{f'; the last was {last}' if last else ''}."
            report("ingesting", self._done / total, message, 1 / total)

    async def _ingest(self, source: Source) -> SourceOutcome:
        if source.error is not None:
            return SourceOutcome(source=source.source, status="failed", reason=source.error)
        contents = [source.content] if source.content else []
        try:
            return await self._bring_in(source, contents)
        except FailureError as error:
            end_if_cancelled()
            if is_cancelled_exception(error):
                raise
            # One bad source never fails the others.
            return SourceOutcome(source=source.source, status="failed", reason=_reason(error))
        finally:
            if contents:
                await step(DocumentActivities.drop_contents, ContentNames(names=contents))

    async def _bring_in(self, source: Source, contents: list[str]) -> SourceOutcome:
        """
        Args:
            source: What to ingest.
            contents: Gets the names of contents that are no longer needed when it is ended.
        """
        if source.url is not None:
            contents.append(fetched_content(workflow.info().workflow_id, source))
            source = await _durably(
                DocumentActivities.fetch_source, self._of(source), retry=_FETCHING, cancellation=TO_ITS_END
            )
            end_if_cancelled()
        queue = self._params.files_queue if source.path is not None else None
        look = await _durably(DocumentActivities.look_at_source, self._of(source), queue)
        if look.outcome is not None:
            return look.outcome
        described = None
        if look.is_image:
            prepared = await workflow.execute_child_workflow(
                ImageProcessingWorkflow.run,
                ImageParams(source=source, roots=self._params.roots, files_queue=self._params.files_queue),
            )
            contents.append(prepared.content)
            end_if_cancelled()
            description = await _durably(ImageActivities.describe_image, prepared)
            if description.text is None:
                return SourceOutcome(source=source.source, status="skipped", reason=description.reason)
            described = description.text
        params = IngestSourceParams(**self._of(source).model_dump(), description=described)
        return await _durably(DocumentActivities.ingest_source, params, queue)

    def _of(self, source: Source) -> SourceParams:
        params = self._params
        return SourceParams(user_id=params.user_id, collection=params.collection, source=source, roots=params.roots)


async def _durably(
    method: Callable[..., Awaitable[Result]],
    argument: object,
    queue: str | None = None,
    retry: RetryPolicy = DURABLY,
    cancellation: workflow.ActivityCancellationType = workflow.ActivityCancellationType.TRY_CANCEL,
) -> Result:
    """Run an activity on a task queue (the workflow's own if None), as long as it takes."""
    return await workflow.execute_activity(
        method,
        argument,
        task_queue=queue,
        # Heartbeats tell whether it is alive; this only has to be longer than any source takes.
        start_to_close_timeout=timedelta(days=1),
        schedule_to_close_timeout=WRITE_GIVE_UP,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=retry,
        cancellation_type=cancellation,
    )


def _reason(error: BaseException) -> str:
    """What an activity worded for the caller, if it did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.type in KINDS:
            return cause.message
        cause = cause.__cause__
    return "It couldn't be ingested; the workflow's history says why."


@workflow.defn
class DocumentListWorkflow:
    only_reads = True

    @workflow.run
    async def run(self, params: ListDocumentsParams) -> SourcePage:
        return await step(DocumentActivities.list_documents, params, give_up=READ_GIVE_UP)


@workflow.defn
class DocumentReadWorkflow:
    only_reads = True

    @workflow.run
    async def run(self, key: DocumentKey) -> StoredDocument:
        return await step(DocumentActivities.read_document, key, give_up=READ_GIVE_UP)


@workflow.defn
class DocumentRemovalWorkflow:
    @workflow.run
    async def run(self, params: SourceRemoval) -> SourceRemoved:
        return await step(DocumentActivities.remove_document, params)
