"""How a workflow takes a step: at once in this worker, and durably where that fails."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

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

_AT_ONCE = RetryPolicy(
    initial_interval=timedelta(milliseconds=50), maximum_interval=timedelta(milliseconds=500), maximum_attempts=3
)
DURABLY = RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=20))


async def step(
    method: Callable[[Group, Argument], Awaitable[Result]],
    argument: Argument,
    *,
    give_up: timedelta = WRITE_GIVE_UP,
) -> Result:
    """Run a short activity and return its result.

    It runs as a local activity first: no round trip to the server, a few quick attempts. Where those fail with
    something that passes by itself, the same activity goes to the server, which keeps trying it on any worker, shows
    the last failure while it does, and survives all of them.

    Args:
        method: The activity.
        argument: Its argument.
        give_up: After how long the server stops trying.

    Raises:
        ActivityError: once `give_up` is over, or at once for what doesn't pass by itself.
    """
    try:
        return await workflow.execute_local_activity_method(
            method,
            argument,
            start_to_close_timeout=ATTEMPT,
            retry_policy=_AT_ONCE,
        )
    except FailureError as error:
        # A local activity's failure comes bare or inside an ActivityError.
        cause = error.cause if isinstance(error, ActivityError) else error
        if is_cancelled_exception(error) or (isinstance(cause, ApplicationError) and cause.non_retryable):
            raise
    return await workflow.execute_activity_method(
        method,
        argument,
        start_to_close_timeout=ATTEMPT,
        schedule_to_close_timeout=give_up,
        retry_policy=DURABLY,
    )
