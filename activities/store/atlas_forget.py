"""Forgetting in the Atlas store: which records go together, and their removal in one transaction."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from activities.models import ForgetMatch, ForgetTarget, Forgotten, RecordKind
from activities.store import atlas_messages, atlas_summaries
from activities.store.atlas_memory import dissolve
from activities.store.atlas_search import Document, digest
from activities.store.base import OPENING_CHARACTERS
from activities.store.times import moment
from activities.store.words import opening

if TYPE_CHECKING:
    from activities.store.atlas import AtlasDatabase

QUERY_CHARACTERS = 1_000_000
"""How much text one query compares with, where there is more: MongoDB takes queries of 16 MB, and has it twice."""


@dataclass(frozen=True)
class _Going:
    """Records that go together."""

    messages: list[Document]
    memories: list[Document]
    cached: list[Document]


def match_of(kind: RecordKind, record: Document, similarity: float | None = None) -> ForgetMatch:
    """A record as it is shown."""
    if kind == "cached_answer":
        name, text, at = record["entry_id"], f"{record['query']}\n{record['response']}", record["created_at_us"]
    elif kind == "memory":
        name, text, at = record["_id"], record["content"], record["created_at_us"]
    else:
        name, text, at = record["_id"], record["text"], record["timestamp_us"]
    within = record.get("conversation_id")
    return ForgetMatch(
        id=name, kind=kind, text=text, created_at=moment(at), conversation_id=within, similarity=similarity
    )


async def going_with(db: "AtlasDatabase", user_id: str, ids: list[str]) -> list[ForgetMatch]:
    among = {"$in": ids}
    found = db.collection("memory_nodes").find(
        {"user_id": user_id, "$or": [{"_id": among}, {"parent": among}]}, ["sources"]
    )
    named = await found.to_list(None)
    going = await _going(db, user_id, [*ids, *(one["_id"] for one in named), *_sources_of(named)])
    return [
        *(match_of("message", one) for one in going.messages),
        *(match_of("memory", one) for one in going.memories),
        *(match_of("cached_answer", one) for one in going.cached),
    ]


async def _going(db: "AtlasDatabase", user_id: str, ids: list[str], session: Any = None) -> _Going:
    """The records that go where the records of these ids go.

    A memory only goes where no other message is left to it. Its parent, which quotes it, goes wherever it does, or says
    something else from then on.
    """

    async def read(collection: str, where: Document, *fields: str) -> dict[str, Document]:
        found = db.collection(collection).find({"user_id": user_id, **where}, list(fields), session=session)
        return {one["_id"]: one async for one in found}

    messages = await read("conversations", {"_id": {"$in": ids}}, "text", "timestamp_us", "conversation_id")
    losing = {"$or": [{"_id": {"$in": ids}}, {"sources.message_id": {"$in": list(messages)}}]}
    fields = ("content", "created_at_us", "sources", "level", "parent", "pinned")
    touched = await read("memory_nodes", losing, *fields)
    others = [one for one in _sources_of(touched.values()) if one not in messages]
    left = await read("conversations", {"_id": {"$in": others}}, "_id")
    memories = {name: one for name, one in touched.items() if left.keys().isdisjoint(_sources_of([one]))}
    changing = [one for name, one in touched.items() if name in memories or _loses_its_words(one, messages)]
    memories |= await read(
        "memory_nodes", {"_id": {"$in": [one["parent"] for one in changing if one["parent"]]}}, *fields
    )
    cache_fields = ("entry_id", "query", "response", "created_at_us")
    cached = await read("cache", {"entry_id": {"$in": ids}}, *cache_fields)
    for texts in _slices(one["text"] for one in messages.values()):
        said = {"$in": texts}
        cached |= await read("cache", {"$or": [{"query": said}, {"response": said}]}, *cache_fields)
    return _Going(list(messages.values()), list(memories.values()), list(cached.values()))


def _sources_of(memories: Iterable[Document]) -> list[str]:
    """Ids of the messages of memories; a parent has none of its own."""
    return [source["message_id"] for memory in memories for source in memory.get("sources", [])]


def _loses_its_words(memory: Document, ids: Collection[str]) -> bool:
    """Whether what a memory says came from one of these messages."""
    return any(source["message_id"] in ids and not source["reinforced"] for source in memory.get("sources", []))


def _slices(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, each once, in lists that a query may compare with."""
    part: list[str] = []
    size = 0
    for text in set(texts):
        if part and size + len(text) > QUERY_CHARACTERS:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


async def forget_some(db: "AtlasDatabase", target: ForgetTarget, most: int, session: Any) -> Forgotten:
    """Do it in a transaction."""
    user_id = target.user_id
    ids, complete = await _ids(db, target, most, session)
    going = await _going(db, user_id, ids, session)
    counts = Forgotten(
        messages=len(going.messages),
        memories=len(going.memories),
        cached_answers=len(going.cached),
        complete=complete,
    )
    if not (going.messages or going.memories or going.cached):
        return counts
    # Whoever is forming a memory of these messages changes this too: one of the two transactions sees the other.
    await db.collection("users").update_one({"_id": user_id}, {"$inc": {"formed": 1}}, upsert=True, session=session)
    for parent in (one for one in going.memories if one["level"]):
        await dissolve(db, user_id, parent, session)
    for collection, records in (("memory_nodes", going.memories), ("cache", going.cached)):
        among = {"_id": {"$in": [one["_id"] for one in records]}, "user_id": user_id}
        await db.collection(collection).delete_many(among, session=session)
    await _remove_messages(db, user_id, [one["_id"] for one in going.messages], session)
    for conversation_id in {one["conversation_id"] for one in going.messages}:
        await atlas_summaries.remove(db, user_id, conversation_id, session)
    return counts


async def _ids(db: "AtlasDatabase", target: ForgetTarget, most: int, session: Any) -> tuple[list[str], bool]:
    """Ids of the records to begin with, and whether there are no others."""
    if target.ids is not None:
        return target.ids, True

    async def first(collection: str, key: str, **where: str) -> list[str]:
        found = db.collection(collection).find({"user_id": target.user_id, **where}, [key], session=session)
        return [one[key] async for one in found.limit(most)]

    if target.conversation_id is not None:
        ids = await first("conversations", "_id", conversation_id=target.conversation_id)
        return ids, len(ids) < most
    if not target.everything:
        return [], True
    # Answers first: then none is looked for that holds a message.
    for collection, key in (("cache", "entry_id"), ("conversations", "_id"), ("memory_nodes", "_id")):
        if ids := await first(collection, key):
            return ids, False
    return [], True


async def _remove_messages(db: "AtlasDatabase", user_id: str, ids: list[str], session: Any) -> None:
    """Remove messages, and what memories that stay have of them; whatever else holds a message's text is to be brought
    up to date here."""
    memories = db.collection("memory_nodes")
    await atlas_messages.remove(db, user_id, ids, session)
    losing = memories.find({"user_id": user_id, "sources.message_id": {"$in": ids}}, session=session)
    for memory in await losing.to_list(None):
        change = await _without(db, memory, set(ids), session)
        await memories.update_one({"_id": memory["_id"], "user_id": user_id}, change, session=session)


async def _without(db: "AtlasDatabase", memory: Document, ids: set[str], session: Any) -> Document:
    """What changes of a memory that loses messages, and that others are left to.

    Where what it says came from one of them, it says what the oldest message that is left says. Neither these messages
    nor that one count as said again any more; importance stays.
    """
    lost = [source for source in memory["sources"] if source["message_id"] in ids]
    left = [source for source in memory["sources"] if source["message_id"] not in ids]
    changed: Document = {
        "sources": left,
        "access_count": max(0, memory["access_count"] - len(lost)),
        "changed_at": datetime.now(UTC),
    }
    if not _loses_its_words(memory, ids):
        return {"$set": changed}
    there = {"_id": {"$in": [source["message_id"] for source in left]}, "user_id": memory["user_id"]}
    oldest = db.collection("conversations").find(there, session=session).sort([("timestamp_us", 1), ("stored_at", 1)])
    [message] = await oldest.limit(1).to_list(None)
    changed |= {
        "sources": [
            source | {"reinforced": source["reinforced"] and source["message_id"] != message["_id"]} for source in left
        ],
        "content": message["text"],
        "content_hash": digest(message["text"]),
        "summary": opening(message["text"], OPENING_CHARACTERS),
        "created_at": message["timestamp"],
        "created_at_us": message["timestamp_us"],
        "embedded_by": message["embedded_by"],
    }
    # The message's own vectors: both collections embed the same text on the same side.
    fields = {*memory["embedded_by"], *message["embedded_by"], "awaits"}
    changed |= {field: message[field] for field in fields if field in message}
    gone = {field: "" for field in fields if field in memory and field not in message}
    return {"$set": changed} | ({"$unset": gone} if gone else {})
