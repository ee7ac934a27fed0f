"""Heartbeats of a long activity, by which the end of its worker is noticed soon."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from temporalio import activity

BEAT_SECONDS = 0.5


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
