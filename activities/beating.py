"""Heartbeats of a long activity, by which the end of its worker is noticed soon."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from temporalio import activity

BEAT_SECONDS = 0.5


@contextlib.asynccontextmanager
async def beating(progress: Sequence[Any] = ()) -> AsyncIterator[None]:
    """Heartbeat for the length of the block.

    Args:
        progress: What to tell, which the block may change.
    """

    async def beat() -> None:
        while True:
            activity.heartbeat(*progress)
            await asyncio.sleep(BEAT_SECONDS)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
