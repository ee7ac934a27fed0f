"""Another embedding model in the Atlas store: its vectors in a field of their own, until the switch and after.

A record that has no vector of the model that the collections move to says so in `awaits`, which is indexed. Whoever
writes meanwhile sets it too, and what slipped past is looked for before the switch and once more after it.
"""

import logging
from typing import TYPE_CHECKING, Any

from activities.errors import failure
from activities.models import EMBEDDED, EmbeddingModel, RecordEmbedding, RecordText, Reembedding
from activities.store.atlas_building import mend, own_of
from activities.store.atlas_indexes import COLLECTIONS, IndexReport, model_of, vector_field
from activities.store.base import not_reembedding
from activities.store.vectors import searchable

if TYPE_CHECKING:
    from activities.store.atlas import AtlasDatabase

logger = logging.getLogger(__name__)

PASS_SECONDS = 300.0
"""How long what goes over whole collections may take."""
PROGRESS_SECONDS = 30.0
"""How long counting may take."""


async def begin(db: "AtlasDatabase", model: EmbeddingModel) -> bool:
    """Record where the collections move; False where there is nothing to move."""
    recorded = await db.recorded()
    if not recorded:
        await db.adopt(model)
        return False
    if all(model_of(one) == model for one in recorded):
        return False
    target = model.model_dump()
    for one in recorded:
        abandoned = one.get("next")
        if abandoned == target:
            continue
        await db.collection("models").update_one({"_id": one["_id"]}, {"$set": {"next": target}})
        if abandoned:
            await _drop_vectors(db, one["collection"], abandoned)
    await _mark(db, model)
    return True


async def make_room(db: "AtlasDatabase", reports: list[IndexReport]) -> None:
    """Have the vector indexes take in the new model's vectors; what they hold stays searchable meanwhile."""
    for report in _vector_reports(db, reports):
        await mend(db, report)


def _vector_reports(db: "AtlasDatabase", reports: list[IndexReport]) -> list[IndexReport]:
    return [report for report in own_of(db, reports) if report.index.kind == "vectorSearch"]


async def _mark(db: "AtlasDatabase", model: EmbeddingModel) -> None:
    """Mark every record that has no vector of `model` as waiting for one."""
    field = vector_field(model)
    for name in COLLECTIONS:
        waiting = {"embedded_by": {"$ne": field}, "awaits": {"$ne": field}}
        await db.collection(name).update_many(waiting, {"$set": {"awaits": field}})


async def _any_waiting(db: "AtlasDatabase", model: EmbeddingModel) -> bool:
    waiting = {"awaits": vector_field(model)}
    return any([await db.collection(name).find_one(waiting, {"_id": 1}) for name in COLLECTIONS])


async def filling(db: "AtlasDatabase", model: EmbeddingModel) -> EmbeddingModel:
    """The model that fills the collections: `model`, or the one that they move to `model` from.

    Raises:
        ApplicationError: `model_mismatch` where they don't.
    """
    recorded = await db.recorded()
    if recorded and all(model == model_of(one) or one.get("next") == model.model_dump() for one in recorded):
        return next((model_of(one) for one in recorded if model_of(one) != model), model)
    target = next((model_of(one["next"]) for one in recorded if one.get("next")), None)
    raise not_reembedding(model, target)


async def texts(db: "AtlasDatabase", model: EmbeddingModel, collection: str, limit: int) -> list[RecordText]:
    await filling(db, model)
    text = EMBEDDED[collection].field
    waiting = db.collection(collection).find({"awaits": vector_field(model)}, {text: 1})
    return [RecordText(record_id=one["_id"], text=one[text]) async for one in waiting.limit(limit)]


async def put(db: "AtlasDatabase", model: EmbeddingModel, collection: str, embedded: list[RecordEmbedding]) -> None:
    field, text = vector_field(model), EMBEDDED[collection].field
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for one in embedded:
        vector = searchable(one.embedding, model)
        change: dict[str, Any] = {"$addToSet": {"embedded_by": field}, "$unset": {"awaits": ""}}
        if vector is not None:
            change["$set"] = {field: db.binary(vector)}
        changes.append(({"_id": one.record_id, text: one.text, "awaits": field}, change))
    await filling(db, model)
    await db.update_each(collection, changes)


async def progress(db: "AtlasDatabase", model: EmbeddingModel) -> Reembedding:
    now = await filling(db, model)
    waiting = {"awaits": vector_field(model)}
    records = sum([await db.collection(name).estimated_document_count() for name in COLLECTIONS])
    left = sum([await db.collection(name).count_documents(waiting) for name in COLLECTIONS])
    return Reembedding(filled_by=now, records=records, embedded=records - left)


async def is_complete(db: "AtlasDatabase", model: EmbeddingModel) -> bool:
    """Whether every record has a vector of `model`."""
    await filling(db, model)
    await _mark(db, model)
    return not await _any_waiting(db, model)


async def switch(db: "AtlasDatabase", model: EmbeddingModel, reports: list[IndexReport]) -> None:
    """Have `model` fill every collection from here on.

    The old vectors stay until `durable-context index` is run: a search that began before the switch finds all of them.

    Raises:
        ApplicationError: `unavailable` while the vector indexes don't hold the new vectors.
    """
    field = vector_field(model)
    if not all(one.current and field not in one.lacking for one in _vector_reports(db, reports)):
        raise failure("unavailable", "Atlas is still building the vector indexes for the new model")

    async def work(session: Any) -> None:
        for name in COLLECTIONS:
            known = {"_id": db.names[name]}
            recorded = await db.collection("models").find_one(known, session=session)
            if recorded and model_of(recorded) != model:
                old = model_of(recorded).model_dump()
                change = {"$set": model.model_dump(), "$unset": {"next": ""}, "$addToSet": {"previous": old}}
                await db.collection("models").update_one(known, change, session=session)

    await db.transact(work)


async def forget_previous(db: "AtlasDatabase") -> None:
    """Remove the vectors of models that were used before, except of records that have no other yet."""
    for one in await db.recorded():
        for previous in one.get("previous", []):
            if previous in (model_of(one).model_dump(), one.get("next")):
                continue
            old, new = vector_field(model_of(previous)), vector_field(model_of(one))
            left = {"embedded_by": {"$eq": old, "$ne": new}}
            if await db.collection(one["collection"]).find_one(left, {"_id": 1}):
                logger.warning("%s has records without a new vector: run `durable-context reembed` again", one["_id"])
                continue
            await _drop_vectors(db, one["collection"], previous)
            await db.collection("models").update_one({"_id": one["_id"]}, {"$pull": {"previous": previous}})


async def _drop_vectors(db: "AtlasDatabase", collection: str, model: dict[str, Any]) -> None:
    field = vector_field(model_of(model))
    await db.collection(collection).update_many(
        {"embedded_by": field}, {"$unset": {field: ""}, "$pull": {"embedded_by": field}}
    )
