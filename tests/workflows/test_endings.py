"""What is told of a workflow's end in the process of its worker, by a real worker on a real server."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from workflows.endings import LARGEST_AT_ONCE, Ending, Endings, EndingsRunner
from workflows.worker import DATA_CONVERTER


class Held:
    """A step that lasts until the test lets it end."""

    def __init__(self) -> None:
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def hold(self) -> None:
        self.begun.set()
        await self.goes_on.wait()


@workflow.defn
class Counting:
    """Answers how many signals it has seen once its step is over."""

    def __init__(self) -> None:
        self._seen = 0

    @workflow.signal
    def see(self) -> None:
        self._seen += 1

    @workflow.run
    async def run(self) -> int:
        await workflow.execute_local_activity_method(Held.hold, start_to_close_timeout=timedelta(seconds=60))
        return self._seen


@workflow.defn
class Ends:
    """Ends as it is told to."""

    @workflow.run
    async def run(self, how: str) -> str:
        if how == "fails":
            raise ApplicationError("It was told to.")
        if how == "goes on":
            workflow.continue_as_new("well")
        if how == "waits":
            await workflow.wait_condition(lambda: False)
        return "x" * LARGEST_AT_ONCE if how == "large" else how


@asynccontextmanager
async def working(temporal: Client, queue: str, endings: Endings, held: Held) -> AsyncIterator[None]:
    runner = EndingsRunner(endings)
    options: dict[str, Any] = {"workflow_runner": runner, "debug_mode": True}
    async with Worker(temporal, task_queue=queue, workflows=[Counting, Ends], activities=[held.hold], **options):
        yield


async def begin(
    temporal: Client, queue: str, endings: Endings, run: Any, *arguments: str, at_once: bool = False
) -> tuple[WorkflowHandle[Any, Any], Ending]:
    workflow_id = uuid.uuid4().hex
    ending = endings.of(workflow_id, at_once)
    handle = await temporal.start_workflow(
        run, args=arguments, id=workflow_id, task_queue=queue, request_eager_start=True
    )
    return handle, ending


async def told(ending: Ending) -> Any:
    async with asyncio.timeout(30):
        result = await ending.result
    return None if result is None else (await DATA_CONVERTER.decode(result))[0]


@pytest.mark.parametrize("at_once", [False, True])
async def test_an_end_that_temporal_refuses_is_told_only_of_what_reads(
    temporal: Client, user: str, at_once: bool
) -> None:
    endings, held = Endings(), Held()
    async with working(temporal, user, endings, held):
        handle, ending = await begin(temporal, user, endings, Counting.run, at_once=at_once)
        await held.begun.wait()
        # The worker is in the middle of the task, and will end the workflow without having seen it.
        await handle.signal(Counting.see)
        held.goes_on.set()

        assert await told(ending) == (0 if at_once else None)
        assert await handle.result() == 1


async def test_an_end_is_told_and_what_is_none_is_left_to_temporal(temporal: Client, user: str) -> None:
    endings = Endings()
    async with working(temporal, user, endings, Held()):
        for at_once in (False, True):
            handle, ending = await begin(temporal, user, endings, Ends.run, "well", at_once=at_once)
            assert await told(ending) == "well" == await handle.result()

            handle, ending = await begin(temporal, user, endings, Ends.run, "fails", at_once=at_once)
            assert await told(ending) is None
            with pytest.raises(WorkflowFailureError):
                await handle.result()

            handle, ending = await begin(temporal, user, endings, Ends.run, "goes on", at_once=at_once)
            assert await told(ending) is None
            assert await handle.result() == "well"

            handle, ending = await begin(temporal, user, endings, Ends.run, "waits", at_once=at_once)
            await handle.cancel()
            assert await told(ending) is None
            with pytest.raises(WorkflowFailureError):
                await handle.result()


async def test_a_large_result_is_told_once_temporal_has_it(temporal: Client, user: str) -> None:
    endings = Endings()
    async with working(temporal, user, endings, Held()):
        handle, ending = await begin(temporal, user, endings, Ends.run, "large", at_once=True)
        assert len(await told(ending)) == LARGEST_AT_ONCE
        moment = datetime.now(UTC)
        described = await handle.describe()
        assert described.close_time is not None
        assert described.close_time <= moment


async def test_who_still_waits_asks_temporal_once_the_worker_has_ended(temporal: Client, user: str) -> None:
    endings = Endings()
    async with working(temporal, user, endings, Held()):
        handle, ending = await begin(temporal, user, endings, Ends.run, "waits")
    endings.close()
    assert await told(ending) is None
    await handle.terminate()
