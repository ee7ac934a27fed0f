"""How a workflow takes a step: at once in this worker, and durably where that fails."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

Group = TypeVar("Group")
Argument = TypeVar("Argument")
Result = TypeVar("Result")

ATTEMPT = timedelta(seconds=20)
"""How long one attempt may take."""

READ_GIVE_UP = timedelta(seconds=40)
"""How long a read is tried: longer than that, nobody waits for it."""

WRITE_GIVE_UP = timedelta(days=7)
"""How long a write is tried: it is done once the missing piece returns."""

ANSWER_WITHIN = timedelta(hours=1)
"""How long somebody who is asked has to answer."""

HEARTBEAT = timedelta(seconds=6)
"""After how long without a word a long activity goes to another worker."""

_AT_ONCE = RetryPolicy(
    initial_interval=timedelta(milliseconds=50), maximum_interval=timedelta(milliseconds=500), maximum_attempts=3
)
DURABLY = RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=20))

TO_ITS_END = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
"""Of what puts something that has to be removed where it is cancelled: removed before, it would come after."""


def report(stage: str, fraction: float | None = None, message: str = "", share: float = 0.0) -> None:
    """Say how far the workflow has come: to whoever waits for it, asks for its task, or looks at it in Temporal.

    Args:
        stage: What is being done, in one word.
        fraction: How much of the whole is done, from 0 to 1; None where that isn't known.
        message: A sentence for people.
        share: Of the whole, what each activity under way is, if its heartbeats say how far it is: (done, total).
    """
    at = workflow.now().isoformat()
    progress = {"stage": stage, "fraction": fraction, "message": message, "share": share, "at": at}
    workflow.upsert_memo({"progress": progress})


def end_if_cancelled() -> None:
    """End a task that was cancelled and waited for something all the same, whatever came of that: nobody wants it.

    Raises:
        CancelledError: where it was.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Questions:
    """What a workflow asks its caller, by whatever way that has to answer. Make one in the workflow's `__init__`."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}
        self._answers: dict[str, Any] = {}
        workflow.set_signal_handler("input_responses", self._receive)

    def _receive(self, responses: dict[str, Any]) -> None:
        """Take the answers to what is open; others, second ones, and what is none, are ignored."""
        answered = {key: responses[key] for key in self._open.keys() & responses.keys()}
        answered = {key: answer for key, answer in answered.items() if isinstance(answer, dict)}
        for key in answered:
            del self._open[key]
        self._answers |= answered
        if answered:
            self._publish()

    def _publish(self) -> None:
        workflow.upsert_memo({"input_requests": dict(self._open) or None})

    async def ask(self, requests: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for the answers to requests, such as `elicitation/create`, as MCP has both, by their keys.

        A key stands for one request in the life of a workflow. What nobody answers in time is as good as cancelled.
        """
        self._open |= requests
        self._publish()
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: requests.keys() <= self._answers.keys(), timeout=ANSWER_WITHIN)
        if late := requests.keys() & self._open.keys():
            for key in late:
                del self._open[key]
            self._publish()
        return {key: self._answers.get(key, {"action": "cancel"}) for key in requests}

    async def confirm(self, key: str, message: str) -> bool:
        """Whether the user agrees."""
        schema = {
            "type": "object",
            "properties": {"confirm": {"type": "boolean", "title": "Yes"}},
            "required": ["confirm"],
        }
        form = {"mode": "form", "message": message, "requestedSchema": schema}
        answers = await self.ask({key: {"method": "elicitation/create", "params": form}})
        content = answers[key].get("content")
        agreed = isinstance(content, dict) and content.get("confirm") is True
        return agreed and answers[key].get("action") == "accept"


async def step(
    method: Callable[[Group, Argument], Awaitable[Result]],
    argument: Argument,
    *,
    give_up: timedelta = WRITE_GIVE_UP,
    attempt: timedelta = ATTEMPT,
) -> Result:
    """Run a short activity and return its result.

    It runs as a local activity first: no round trip to the server, a few quick attempts. Where those fail with
    something that passes by itself, the same activity goes to the server, which keeps trying it on any worker, shows
    the last failure while it does, and survives all of them.

    Args:
        method: The activity.
        argument: Its argument.
        give_up: After how long the server stops trying.
        attempt: How long one attempt may take; an activity that may take longer than ATTEMPT heartbeats.

    Raises:
        ActivityError: once `give_up` is over, or at once for what doesn't pass by itself.
    """
    try:
        return await workflow.execute_local_activity_method(
            method,
            argument,
            start_to_close_timeout=attempt,
            retry_policy=_AT_ONCE,
        )
    except FailureError as error:
        # A local activity's failure comes bare or inside an ActivityError.
        cause = error.cause if isinstance(error, ActivityError) else error
        if is_cancelled_exception(error):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled the workflow: its worker is told to end, and another one takes the step.
        elif isinstance(cause, ApplicationError) and cause.non_retryable:
            raise
    return await workflow.execute_activity_method(
        method,
        argument,
        start_to_close_timeout=attempt,
        schedule_to_close_timeout=give_up,
        heartbeat_timeout=HEARTBEAT if attempt > ATTEMPT else None,
        retry_policy=DURABLY,
    )
