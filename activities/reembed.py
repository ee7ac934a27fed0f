"""Another embedding model for a store that is in use: embed every record with it, then switch."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.bedrock import BedrockEmbeddings
from activities.errors import failure
from activities.models import (
    EMBEDDED,
    EmbeddingModel,
    RecordEmbedding,
    ReembedCollectionParams,
    Reembedding,
    Side,
)
from activities.store.base import Store

RECORDS_AT_ONCE = 64
"""What a killed worker embeds anew, at most."""

BEAT_SECONDS = 2.0


class ReembedActivities:
    """Every one heartbeats with (records embedded, records in all) while it works, so that the end of its worker is
    noticed soon, however long it takes.

    Args:
        store: The store, which need not be open.
        embeddings: The model that the store moves to.
    """

    def __init__(self, store: Store, embeddings: BedrockEmbeddings) -> None:
        self._store = store
        self._embeddings = embeddings

    @activity.defn
    async def begin_reembedding(self, model: EmbeddingModel) -> Reembedding:
        """Make room for the new vectors; answers how far an earlier run has come."""
        async with self._beating(model):
            await self._store.begin_reembedding(model)
            return await self._store.reembedding_progress(model)

    @activity.defn
    async def reembed_collection(self, params: ReembedCollectionParams) -> Reembedding:
        """Embed what a collection holds and isn't embedded yet, batch after batch."""
        model, collection = params.model, params.collection
        async with self._beating(model):
            while records := await self._store.texts_to_embed(model, collection, RECORDS_AT_ONCE):
                vectors = await self._embed([record.text for record in records], EMBEDDED[collection].side)
                embedded = [
                    RecordEmbedding(record_id=record.record_id, text=record.text, embedding=vector)
                    for record, vector in zip(records, vectors, strict=True)
                ]
                await self._store.put_embeddings(model, collection, embedded)
            return await self._store.reembedding_progress(model)

    @activity.defn
    async def finish_reembedding(self, model: EmbeddingModel) -> bool:
        """Switch to the new vectors; False where records have come that have none yet."""
        async with self._beating(model):
            return await self._store.finish_reembedding(model)

    async def _embed(self, texts: list[str], side: Side) -> list[bytes]:
        """Vectors of texts that another model took.

        A text that this one refuses, since it counts lengths otherwise, is embedded by its beginning, and a blank one
        as zeros: it would stop all others for ever.
        """
        try:
            return await self._embeddings.embed(texts, side)
        except ApplicationError as error:
            if error.type != "rejected":
                raise
            if len(texts) > 1:
                return [vector for text in texts for vector in await self._embed([text], side)]
            text = texts[0].strip()
            if not text:
                return [bytes(4 * self._embeddings.model.dimensions)]
            if len(text) == 1:
                raise
            return await self._embed([text[: len(text) // 2]], side)

    @contextlib.asynccontextmanager
    async def _beating(self, model: EmbeddingModel) -> AsyncIterator[None]:
        """Heartbeat for the length of the block.

        Raises:
            ApplicationError: `not_configured` where this worker embeds with another model.
        """
        if self._embeddings.model != model:
            raise failure(
                "not_configured",
                f"This worker embeds with {self._embeddings.model}, and can't move a store to {model}. Set "
                "EMBEDDING_MODEL_ID and EMBEDDING_DIMENSIONS, or give it a TEMPORAL_TASK_QUEUE of its own.",
            )

        async def beat() -> None:
            details: tuple[int, ...] = ()
            counting = asyncio.create_task(self._store.reembedding_progress(model))
            try:
                while True:
                    await asyncio.wait((counting,), timeout=BEAT_SECONDS)
                    # A count that takes long is waited for: several at once would only take longer.
                    if counting.done():
                        # Not knowing how far it is keeps nobody from going on.
                        with contextlib.suppress(ApplicationError):
                            progress = counting.result()
                            details = (progress.embedded, progress.records)
                        activity.heartbeat(*details)
                        await asyncio.sleep(BEAT_SECONDS)
                        counting = asyncio.create_task(self._store.reembedding_progress(model))
                    activity.heartbeat(*details)
            finally:
                counting.cancel()

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
