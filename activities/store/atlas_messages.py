"""Messages in the Atlas store: each findable alone and, by a record of `contexts`, together with the one before it."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pymongo import ReturnDocument

from activities.models import (
    ContextMessage,
    ConversationMessage,
    MemoryQuery,
    Message,
    MessageContext,
    PreviousMessage,
    RelatedMessage,
)
from activities.store.atlas_search import Document, Found
from activities.store.base import NEIGHBOURS, conversation_cursor
from activities.store.relevance import LABEL_CHARACTERS, Candidate, rank_messages
from activities.store.times import micros, moment

if TYPE_CHECKING:
    from activities.store.atlas import AtlasDatabase

NEIGHBOURHOODS = 25
"""Of how many messages one aggregation reads the surroundings."""


async def put(db: "AtlasDatabase", message: Message, vector: Document, stored_at: int, session: Any) -> None:
    """Do it in a transaction.

    Args:
        vector: The fields of a record with the message's vector, and whose that is.
        stored_at: Its place in the order of storing, if it has none yet.
    """
    conversations, contexts = db.collection("conversations"), db.collection("contexts")
    record = {
        "_id": message.message_id,
        **message.model_dump(exclude={"message_id", "embedding"}),
        "timestamp_us": micros(message.timestamp),
        **vector,
        "changed_at": datetime.now(UTC),
    }
    key = {"_id": message.message_id, "user_id": message.user_id}
    # A message that is stored again keeps its place in the order of storing. A step that is repeated may come after a
    # summary that covers its message, and after its context.
    same = [{"$eq": [f"${field}", {"$literal": record[field]}]} for field in ("conversation_id", "text")]
    kept = {
        "stored_at": {"$ifNull": ["$stored_at", stored_at]},
        "summary_id": {"$cond": [{"$and": same}, "$summary_id", "$$REMOVE"]},
        "previous": {"$cond": [{"$and": same}, {"$ifNull": ["$previous", None]}, None]},
    }
    change = [{"$replaceWith": {"$mergeObjects": [{"$literal": record}, kept]}}]
    stored = await conversations.find_one_and_update(
        key, change, {"previous": 1}, upsert=True, return_document=ReturnDocument.AFTER, session=session
    )
    if stored["previous"] is None:
        alone = {**key, "changed_at": record["changed_at"], "text": message.text, **vector}
        await contexts.replace_one(key, alone, upsert=True, session=session)


async def put_context(
    db: "AtlasDatabase", user_id: str, message_id: str, context: MessageContext, vector: Document, session: Any
) -> None:
    """Do it in a transaction.

    Args:
        vector: The fields of a record with the context's vector, and whose that is.
    """
    conversations = db.collection("conversations")
    key, previous = [{"_id": one, "user_id": user_id} for one in (message_id, context.previous)]
    # A write, so that it meets whoever is forgetting that message: what is forgotten doesn't live on in here.
    if not (await conversations.update_one(previous, {"$inc": {"followed": 1}}, session=session)).matched_count:
        return
    change = {"$set": {"previous": context.previous}}
    if (await conversations.update_one(key, change, session=session)).matched_count:
        beside = {**key, "changed_at": datetime.now(UTC), "text": context.text, **vector}
        await db.collection("contexts").replace_one(key, beside, upsert=True, session=session)


async def remove(db: "AtlasDatabase", user_id: str, ids: Sequence[str], session: Any) -> None:
    """Remove messages; those that came right after one are found alone from then on. Do it in a transaction."""
    conversations, contexts = db.collection("conversations"), db.collection("contexts")
    for collection in (conversations, contexts):
        await collection.delete_many({"_id": {"$in": list(ids)}, "user_id": user_id}, session=session)
    following = {"user_id": user_id, "previous": {"$in": list(ids)}}
    for one in await conversations.find(following, session=session).to_list(None):
        kept = {"_id", "user_id", "text", "embedded_by", "awaits", *one["embedded_by"]}
        alone = {field: value for field, value in one.items() if field in kept}
        await contexts.replace_one(
            {"_id": one["_id"], "user_id": user_id}, alone | {"changed_at": datetime.now(UTC)}, session=session
        )
    await conversations.update_many(following, {"$set": {"previous": None}}, session=session)


async def before(db: "AtlasDatabase", user_id: str, message_id: str) -> PreviousMessage | None:
    conversations = db.collection("conversations")
    this = await conversations.find_one({"_id": message_id, "user_id": user_id})
    if this is None:
        return None
    at, stored_at = this["timestamp_us"], this["stored_at"]
    found = conversations.find(
        {
            "user_id": user_id,
            "conversation_id": this["conversation_id"],
            "$or": [{"timestamp_us": {"$lt": at}}, {"timestamp_us": at, "stored_at": {"$lt": stored_at}}],
        },
        {"text": 1},
    )
    async for one in found.sort([("timestamp_us", -1), ("stored_at", -1)]).limit(1):
        return PreviousMessage(message_id=one["_id"], text=one["text"])
    return None


async def page(
    db: "AtlasDatabase", user_id: str, conversation_id: str, limit: int, before: tuple[int, int] | None
) -> tuple[list[ConversationMessage], str | None]:
    """The latest messages of a conversation, or those before a place in it, and the cursor for those before them."""
    where: Document = {"user_id": user_id, "conversation_id": conversation_id}
    if before is not None:
        at, stored = before
        where["$or"] = [{"timestamp_us": {"$lt": at}}, {"timestamp_us": at, "stored_at": {"$lt": stored}}]
    fields = {"message_type": 1, "text": 1, "timestamp_us": 1, "stored_at": 1}
    found = db.collection("conversations").find(where, fields).sort([("timestamp_us", -1), ("stored_at", -1)])
    latest = [one async for one in found.limit(limit + 1)]
    kept = latest[:limit][::-1]
    messages = [
        ConversationMessage(
            message_id=one["_id"],
            message_type=one["message_type"],
            text=one["text"],
            timestamp=moment(one["timestamp_us"]),
        )
        for one in kept
    ]
    more = len(latest) > limit
    return messages, conversation_cursor(kept[0]["timestamp_us"], kept[0]["stored_at"]) if more else None


async def related(
    db: "AtlasDatabase", query: MemoryQuery, searches: Sequence[Found], vector_field: str
) -> list[RelatedMessage]:
    """The messages that bear on a query, each with its surroundings, by what was found in both collections."""
    legs = [leg for found in searches for leg in (found.cosines, found.keywords)]
    ids = list({message_id for leg in legs for message_id in leg})
    conversations = db.collection("conversations")
    beginnings: list[Document] = [
        {"$match": {"_id": {"$in": ids}, "user_id": query.user_id}},
        {"$project": {"previous": 1, "timestamp_us": 1, "beginning": {"$substrCP": ["$text", 0, LABEL_CHARACTERS]}}},
    ]
    candidates = [
        # Messages of earlier releases have no `previous`.
        Candidate(one["_id"], one.get("previous"), one["beginning"], moment(one["timestamp_us"]))
        async for one in conversations.aggregate(beginnings)
    ]
    ranked = (await asyncio.to_thread(rank_messages, query.text, query.now, legs, candidates))[: query.limit]
    among = {"_id": {"$in": [message_id for message_id, _ in ranked]}, "user_id": query.user_id}
    messages = {one["_id"]: one async for one in conversations.find(among, {vector_field: 0})}
    # One may have been forgotten meanwhile.
    best = [(messages[message_id], score) for message_id, score in ranked if message_id in messages]
    parts = [best[start : start + NEIGHBOURHOODS] for start in range(0, len(best), NEIGHBOURHOODS)]
    read = await asyncio.gather(*(_with_neighbours(db, query.user_id, part) for part in parts))
    return [one for part in read for one in part]


async def _with_neighbours(
    db: "AtlasDatabase", user_id: str, messages: Iterable[tuple[Document, float]]
) -> list[RelatedMessage]:
    """A few messages with their surroundings, which one aggregation reads for all of them."""
    sides: list[list[Document]] = []
    for place, (message, _) in enumerate(messages):
        at, stored = message["timestamp_us"], message["stored_at"]
        for side, sign, order in (("before", "$lt", -1), ("after", "$gt", 1)):
            beyond = [{"timestamp_us": {sign: at}}, {"timestamp_us": at, "stored_at": {sign: stored}}]
            sides.append(
                [
                    {
                        "$match": {
                            "user_id": user_id,
                            "conversation_id": message["conversation_id"],
                            "$or": beyond,
                        }
                    },
                    {"$sort": {"timestamp_us": order, "stored_at": order}},
                    {"$limit": NEIGHBOURS},
                    {
                        "$project": {
                            "message_type": 1,
                            "text": 1,
                            "timestamp_us": 1,
                            "place": {"$literal": place},
                            "side": side,
                        }
                    },
                ]
            )
    first, *others = sides
    unions = [{"$unionWith": {"coll": db.names["conversations"], "pipeline": other}} for other in others]
    neighbours: dict[tuple[int, str], list[ContextMessage]] = {}
    async for one in db.collection("conversations").aggregate([*first, *unions]):
        neighbours.setdefault((one["place"], one["side"]), []).append(
            ContextMessage(message_type=one["message_type"], text=one["text"], timestamp=moment(one["timestamp_us"]))
        )
    return [
        RelatedMessage(
            message_id=message["_id"],
            conversation_id=message["conversation_id"],
            message_type=message["message_type"],
            text=message["text"],
            timestamp=moment(message["timestamp_us"]),
            score=score,
            before=neighbours.get((place, "before"), [])[::-1],
            after=neighbours.get((place, "after"), []),
        )
        for place, (message, score) in enumerate(messages)
    ]
