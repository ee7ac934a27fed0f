"""Heartbeats of a long activity, by which the end of its worker is noticed soon."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.errors import failure

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.5

SOURCE_ATTEMPTS = 6
"""How often a source that fails for no known reason is tried: for half a minute."""


@contextlib.asynccontextmanager
async def beating(progress: Sequence[object] = ()) -> AsyncIterator[None]:
    """Heartbeat for the length of the block; a local activity needs none, since its workflow task tells of it.

    Args:
        progress: What to tell, which the block may change.
    """

    async def beat() -> None:
        while not activity.info().is_local:
            activity.heartbeat(*progress)
            await asyncio.sleep(BEAT_SECONDS)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def beating_for_source(progress: Sequence[object] = ()) -> AsyncIterator[None]:
    """Heartbeat while a source is worked on, and give up on one that fails for no known reason time and again.

    The sources after it would wait for as long as it is tried.

    Raises:
        ApplicationError: `rejected` in the last attempt.
    """
    async with beating(progress):
        try:
            yield
        except ApplicationError:
            raise
        except Exception as error:
            if activity.info().attempt < SOURCE_ATTEMPTS:
                raise
            logger.exception("a source can't be ingested")
            message = f"It can't be ingested: {type(error).__name__}, which isn't foreseen. The log says more."
            raise failure("rejected", message) from None
