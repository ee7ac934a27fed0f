"""Summaries in the Atlas store: one record for each conversation, whose id marks the messages that it covers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pymongo.errors import DuplicateKeyError

from activities.models import ConversationMessage, Summary
from activities.store.atlas_search import digest
from activities.store.times import micros, moment

if TYPE_CHECKING:
    from activities.store.atlas import AtlasDatabase, Session

_TIMES = ("first_at", "last_at", "updated_at")


class _OutdatedError(Exception):
    """What a summary was made from has changed since."""


def _key(user_id: str, conversation_id: str) -> dict[str, Any]:
    return {"_id": digest(user_id, conversation_id), "user_id": user_id}


def _summary(found: dict[str, Any]) -> Summary:
    return Summary(**found | {name: moment(found[f"{name}_us"]) for name in _TIMES})


async def of(db: "AtlasDatabase", user_id: str, conversation_ids: Sequence[str]) -> list[Summary]:
    """The summaries of some conversations, in their order."""
    names = [_key(user_id, conversation_id)["_id"] for conversation_id in conversation_ids]
    found = db.collection("summaries").find({"_id": {"$in": names}, "user_id": user_id})
    summaries = {one["conversation_id"]: _summary(one) async for one in found}
    return [summaries[conversation_id] for conversation_id in conversation_ids if conversation_id in summaries]


async def unsummarised(
    db: "AtlasDatabase", user_id: str, conversation_id: str, limit: int
) -> tuple[Summary | None, list[ConversationMessage]]:
    summary = next(iter(await of(db, user_id, [conversation_id])), None)
    uncovered = {
        "user_id": user_id,
        "conversation_id": conversation_id,
        "summary_id": {"$ne": summary.summary_id if summary else ""},
    }
    found = db.collection("conversations").find(uncovered, {"message_type": 1, "text": 1, "timestamp_us": 1})
    messages = [
        ConversationMessage(
            message_id=one["_id"],
            message_type=one["message_type"],
            text=one["text"],
            timestamp=moment(one["timestamp_us"]),
        )
        async for one in found.sort([("timestamp_us", 1), ("stored_at", 1)]).limit(limit)
    ]
    return summary, messages


async def put(db: "AtlasDatabase", summary: Summary, covered: Sequence[str]) -> bool:
    key = _key(summary.user_id, summary.conversation_id)
    record = summary.model_dump() | {f"{name}_us": micros(getattr(summary, name)) for name in _TIMES}
    before = summary.messages - len(covered)

    async def work(session: Any) -> bool:
        # The summary first: of two that update it, one meets the other here.
        if before:
            there = key | {"summary_id": summary.summary_id, "messages": before}
            replaced = await db.collection("summaries").update_one(there, {"$set": record}, session=session)
            if not replaced.matched_count:
                raise _OutdatedError
        else:
            try:
                await db.collection("summaries").insert_one(key | record, session=session)
            except DuplicateKeyError:
                raise _OutdatedError from None
        uncovered = {
            "_id": {"$in": list(covered)},
            "user_id": summary.user_id,
            "conversation_id": summary.conversation_id,
            "summary_id": {"$ne": summary.summary_id},
        }
        marked = await db.collection("conversations").update_many(
            uncovered, {"$set": {"summary_id": summary.summary_id}}, session=session
        )
        if marked.matched_count != len(covered):
            raise _OutdatedError
        return True

    try:
        return await db.transact(work)
    except _OutdatedError:
        return False


async def remove(db: "AtlasDatabase", user_id: str, conversation_id: str, session: "Session") -> None:
    """Remove a conversation's summary: none that is made from it can be stored any more, and the next is made anew."""
    await db.collection("summaries").delete_one(_key(user_id, conversation_id), session=session)
