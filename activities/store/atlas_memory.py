"""Memories in the Atlas store.

A document of `memory_nodes` is what was said (level 0) or a parent (level 1), which its children name as their
`parent`. A root is a document without one: a memory that stands alone, or a parent. Whatever forms, groups or splits a
user's memories counts up `formed` in the user's document, so that two transactions that do find out about each other.
"""

import asyncio
import random
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pymongo.errors import DuplicateKeyError

from activities.consolidation import Said, may_group, newest_first
from activities.embedding_models import unrelated_cosine
from activities.errors import failure
from activities.models import (
    EmbeddingModel,
    FormedMemory,
    ListMemoriesParams,
    Memory,
    MemoryNode,
    MemoryParent,
    MemoryQuery,
    SimilarMemory,
)
from activities.statements import same_statement
from activities.store.atlas_search import Document, digest, dot
from activities.store.base import ACCESSES_KEPT, AROUND, NEAREST_SAID, not_a_parent, unknown_memory
from activities.store.fusion import candidates, check_search
from activities.store.ranking import Vitals, page, rank, strength, weakest
from activities.store.times import micros, moment

if TYPE_CHECKING:
    from activities.store.atlas import AtlasDatabase, Collection, Session

FORMING_SECONDS = 8.0
"""How long a memory that met others being formed is tried again before Temporal does."""


class _StaleError(Exception):
    """What a transaction was to act on has changed since it was read: it is read again."""


def _last_accessed(one: Document) -> int:
    # Memories of earlier releases don't have it.
    return int(one["last_accessed_us"] if "last_accessed_us" in one else one["created_at_us"])


async def dissolve(db: "AtlasDatabase", user_id: str, parent: Document, session: "Session") -> None:
    """Remove a parent; its children stand alone again, pinned where it was."""
    nodes = db.collection("memory_nodes")
    freed: Document = {"parent": None} | ({"pinned": True} if parent["pinned"] else {})
    await nodes.update_many({"user_id": user_id, "parent": parent["_id"]}, {"$set": freed}, session=session)
    await nodes.delete_one({"_id": parent["_id"], "user_id": user_id}, session=session)


class AtlasMemories:
    """The part of the Atlas store that keeps memories.

    Args:
        db: Where.
        model: Which embedding model the store is open with.
        nearest: Of a user, an embedding and a number: the nearest documents with their cosines, best first.
        vector_of: The packed vector of a document; empty where it has none.
        vector_field: The field of a document with an embedding; none for one of zeros.
        filled: Within a transaction, the fields of a document that say whose vector it has.
        still_filled: Makes sure, after a write with such fields, that they still hold.
    """

    def __init__(
        self,
        db: "AtlasDatabase",
        *,
        model: Callable[[], EmbeddingModel],
        nearest: Callable[[str, bytes, int], Awaitable[list[tuple[Document, float]]]],
        vector_of: Callable[[Document], bytes],
        vector_field: Callable[[bytes], Document],
        filled: Callable[["Session"], Awaitable[Document]],
        still_filled: Callable[[Document], Awaitable[None]],
    ) -> None:
        self._db = db
        self._model = model
        self._nearest = nearest
        self._vector_of = vector_of
        self._vector_field = vector_field
        self._filled = filled
        self._still_filled = still_filled
        self._forming: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def _nodes(self) -> "Collection":
        return self._db.collection("memory_nodes")

    # Forming

    async def form(self, node: MemoryNode, threshold: float) -> FormedMemory:
        self._vector_field(node.embedding)
        # Of the calls in this process one at a time: the others would only undo each other's work.
        lock = self._forming.setdefault(node.user_id, asyncio.Lock())
        async with lock:
            deadline = time.monotonic() + FORMING_SECONDS
            while True:
                try:
                    return await self._form(node, threshold)
                except _StaleError:
                    if time.monotonic() > deadline:
                        raise failure(
                            "unavailable", "others are forming memories of this user; the call is retried"
                        ) from None
                    await asyncio.sleep(random.uniform(0, 0.05))

    async def _form(self, node: MemoryNode, threshold: float) -> FormedMemory:
        """Look for the nearest memory, and store or reinforce unless somebody else did so meanwhile.

        Raises:
            _StaleError: where somebody did.
        """
        users = self._db.collection("users")
        async with self._db.explained():
            head = await users.find_one({"_id": node.user_id})
            sources = {"sources.message_id": {"$in": node.source_messages}}
            formed: dict[str, tuple[str, bool]] = {
                source["message_id"]: (one["_id"], source["reinforced"])
                async for one in self._nodes.find({"user_id": node.user_id, **sources}, {"sources": 1})
                for source in one["sources"]
            }
            for message_id in node.source_messages:
                if message_id in formed:
                    return FormedMemory(memory_id=formed[message_id][0], reinforced=formed[message_id][1])
            same = await self._same(node, threshold)
        added = [
            {"message_id": message_id, "reinforced": same is not None}
            for message_id in dict.fromkeys(node.source_messages)
        ]
        filled: Document = {}

        async def work(session: "Session") -> FormedMemory:
            filled.update(await self._filled(session))
            there = self._db.collection("conversations").find(
                {"_id": {"$in": node.source_messages}, "user_id": node.user_id}, {"_id": 1}, session=session
            )
            if len(await there.to_list(None)) < len(added):
                return FormedMemory(memory_id=None, reinforced=False)
            try:
                # Searches aren't part of transactions: this makes sure that nobody has formed a memory since, and none
                # of the messages is being forgotten.
                moved = await users.update_one(
                    {"_id": node.user_id, "formed": head["formed"] if head else 0},
                    {"$inc": {"formed": 1}},
                    upsert=head is None,
                    session=session,
                )
            except DuplicateKeyError:
                raise _StaleError from None
            if not moved.matched_count and moved.upserted_id is None:
                raise _StaleError
            if same is not None:
                await self._reinforce(same, node, added, session)
                return FormedMemory(memory_id=same, reinforced=True)
            record = {
                "_id": node.memory_id,
                **node.model_dump(exclude={"memory_id", "embedding", "source_messages"}),
                "created_at_us": micros(node.created_at),
                "last_accessed_us": micros(node.created_at),
                "content_hash": digest(node.content),
                "access_count": 0,
                "accesses": [],
                "pinned": False,
                "apart": [],
                "sources": added,
                **self._vector_field(node.embedding),
                **filled,
                "changed_at": datetime.now(UTC),
            }
            await self._nodes.insert_one(record, session=session)
            return FormedMemory(memory_id=node.memory_id, reinforced=False)

        result = await self._db.transact(work)
        async with self._db.explained():
            await self._still_filled(filled)
        return result

    async def _same(self, node: MemoryNode, threshold: float) -> str | None:
        """Id of the nearest memory that says the same."""
        nearest = await self._nearest(node.user_id, node.embedding, NEAREST_SAID)
        # However many memories were formed since the index was brought up to date: the same words are found.
        words = {"user_id": node.user_id, "content_hash": digest(node.content)}
        async for one in self._nodes.find(words).limit(1):
            if vector := self._vector_of(one):
                nearest.append((one, dot(array("f", node.embedding), array("f", vector))))
        for one, cosine in sorted(nearest, key=lambda item: -item[1]):
            if cosine >= threshold and one["level"] == 0 and same_statement(one["content"], node.content):
                return str(one["_id"])
        return None

    async def _reinforce(self, same: str, node: MemoryNode, added: list[Document], session: "Session") -> None:
        """Count a memory as said again, and its parent too.

        Raises:
            _StaleError: where it is gone.
        """
        said = micros(node.created_at)
        used: Document = {
            "access_count": {"$add": ["$access_count", 1]},
            "last_accessed_us": {"$max": ["$last_accessed_us", "$created_at_us", said]},
        }
        grown = {"$add": ["$importance", {"$multiply": [{"$subtract": [1, "$importance"]}, node.importance / 2]}]}
        sources = {"$concatArrays": ["$sources", {"$literal": added}]}
        where = {"_id": same, "user_id": node.user_id}
        changed = await self._nodes.update_one(
            where, [{"$set": used | {"importance": grown, "sources": sources}}], session=session
        )
        if not changed.matched_count:
            raise _StaleError
        child = await self._nodes.find_one(where, {"importance": 1, "parent": 1}, session=session)
        if child and child["parent"]:
            most = {"$max": ["$importance", child["importance"]]}
            parent = {"_id": child["parent"], "user_id": node.user_id}
            await self._nodes.update_one(parent, [{"$set": used | {"importance": most}}], session=session)

    # Reading

    async def _vitals(self, user_id: str) -> list[Vitals]:
        """What lists and pruning go by, of all of a user's roots."""
        fields = ["importance", "access_count", "created_at_us", "last_accessed_us", "pinned"]
        return [
            Vitals(
                memory_id=one["_id"],
                importance=one["importance"],
                access_count=one["access_count"],
                created_at=moment(one["created_at_us"]),
                last_accessed_at=moment(_last_accessed(one)),
                pinned=one.get("pinned", False),
            )
            async for one in self._nodes.find({"user_id": user_id, "parent": None}, fields)
        ]

    async def prune(self, user_id: str, budget: int, now: datetime) -> int:
        room = max(0, budget)
        async with self._db.explained():
            if await self._nodes.count_documents({"user_id": user_id, "parent": None}, limit=room + 1) <= room:
                return 0
            weak = weakest(await self._vitals(user_id), budget, now)
            gone = {"user_id": user_id, "$or": [{"_id": {"$in": weak}}, {"parent": {"$in": weak}}]}
            await self._nodes.delete_many(gone)
        return len(weak)

    async def listed(self, params: ListMemoriesParams, now: datetime) -> tuple[list[Memory], list[str]]:
        async with self._db.explained():
            roots = [one for one in await self._vitals(params.user_id) if one.pinned or not params.pinned]
            places, as_of = page(roots, params.order, params.limit, params.cursor, now)
            ids = [memory_id for memory_id, _ in places]
            shown = await self._show(params.user_id, ids, as_of)
        cursors = dict(places)
        return shown, [cursors[one.memory_id] for one in shown]

    async def _show(self, user_id: str, ids: Sequence[str], now: datetime) -> list[Memory]:
        """Memories as callers see them, in the order of `ids`; those that are gone by now are left out."""
        mine = {"user_id": user_id}
        roots = {one["_id"]: one for one in await self._nodes.find({**mine, "_id": {"$in": list(ids)}}).to_list(None)}
        parents = [memory_id for memory_id, one in roots.items() if one["level"]]
        members: dict[str, list[Document]] = {}
        if parents:
            async for one in self._nodes.find({**mine, "parent": {"$in": parents}}):
                members.setdefault(one["parent"], []).append(one)
        shown: list[Memory] = []
        for memory_id in ids:
            if (one := roots.get(memory_id)) is None:
                continue
            children = members.get(memory_id, [])
            created, accessed = moment(one["created_at_us"]), moment(_last_accessed(one))
            shown.append(
                Memory(
                    memory_id=memory_id,
                    content=one["content"],
                    summary=one["summary"],
                    importance=one["importance"],
                    strength=strength(created, accessed, one["access_count"], now),
                    access_count=one["access_count"],
                    created_at=created,
                    last_accessed_at=accessed,
                    pinned=one.get("pinned", False),
                    level=one["level"],
                    children=newest_first(self._said(child) for child in children),
                    source_messages=[
                        source["message_id"] for part in (one, *children) for source in part.get("sources", [])
                    ],
                )
            )
        return shown

    async def similar(self, query: MemoryQuery) -> list[SimilarMemory]:
        """The memories that bear most on a query; a parent in the place of its children."""
        check_search(query.limit, 1)
        cosines: dict[str, float] = {}
        vectors: dict[str, bytes] = {}
        for one, cosine in await self._nearest(query.user_id, query.embedding, candidates(query.limit)):
            root = one["parent"] or one["_id"]
            # Nearest first: the first of a group is its best.
            cosines.setdefault(root, cosine)
            vectors.setdefault(root, self._vector_of(one))
        found = await self._show(query.user_id, list(cosines), query.now)
        memories = [SimilarMemory(**dict(one), similarity=cosines[one.memory_id], score=0) for one in found]
        unrelated = unrelated_cosine(self._model().model_id)
        # In a thread: there may be hundreds of texts to compare.
        return await asyncio.to_thread(rank, memories, vectors, query.now, unrelated, query.limit)

    async def count_access(self, memories: Iterable[SimilarMemory], query: MemoryQuery) -> None:
        """Count one access to each memory, here and in the store, unless this retrieval is counted already."""
        by_id = {one.memory_id: one for one in memories}
        if not by_id:
            return
        mine = {"_id": {"$in": list(by_id)}, "user_id": query.user_id}
        await self._nodes.update_many(
            {**mine, "accesses": {"$ne": query.retrieval_id}},
            {
                "$inc": {"access_count": 1},
                "$max": {"last_accessed_us": micros(query.now)},
                "$push": {"accesses": {"$each": [query.retrieval_id], "$slice": -ACCESSES_KEPT}},
            },
        )
        async for one in self._nodes.find(mine, ["access_count", "last_accessed_us", "created_at_us"]):
            by_id[one["_id"]].access_count = one["access_count"]
            by_id[one["_id"]].last_accessed_at = moment(_last_accessed(one))

    async def pin(self, user_id: str, memory_id: str, pinned: bool) -> str:
        async with self._db.explained():
            found = await self._nodes.find_one({"_id": memory_id, "user_id": user_id}, ["parent"])
            if found is None:
                raise unknown_memory(memory_id)
            root = str(found["parent"] or memory_id)
            await self._nodes.update_one({"_id": root, "user_id": user_id}, {"$set": {"pinned": pinned}})
        return root

    # Consolidation

    def _said(self, one: Document) -> Said:
        return Said(
            memory_id=one["_id"],
            content=one["content"],
            created_at=moment(one["created_at_us"]),
            embedding=self._vector_of(one),
            parent=one["parent"],
            apart=frozenset(one.get("apart", [])),
        )

    async def surroundings(self, user_id: str, memory_id: str) -> tuple[Said, list[Said]] | None:
        mine: Document = {"user_id": user_id, "level": 0}
        async with self._db.explained():
            memory = await self._nodes.find_one({**mine, "_id": memory_id})
            if memory is None:
                return None
            said = self._said(memory)
            if not said.embedding:
                return said, []
            near = [one for one, _ in await self._nearest(user_id, said.embedding, AROUND) if one["level"] == 0]
            ids = [one["_id"] for one in near]
            parents = [one["parent"] for one in near if one["parent"]]
            # Read anew: the search indexes may not know of the newest groups.
            around = {**mine, "$or": [{"_id": {"$in": ids}}, {"parent": {"$in": parents}}]}
            others = {one["_id"]: self._said(one) async for one in self._nodes.find(around)}
            if later := {one.parent for one in others.values() if one.parent} - set(parents):
                grown = self._nodes.find({**mine, "parent": {"$in": list(later)}})
                others |= {one["_id"]: self._said(one) async for one in grown}
        others.pop(memory_id, None)
        return said, list(others.values())

    async def put_parent(self, parent: MemoryParent) -> bool:
        user, group = parent.user_id, {"_id": parent.memory_id, "user_id": parent.user_id}
        ids = [child.memory_id for child in parent.children]
        mine: Document = {"user_id": user, "level": 0}
        filled: Document = {}

        async def work(session: "Session") -> bool:
            filled.update(await self._filled(session))
            children = await self._nodes.find({**mine, "_id": {"$in": ids}}, session=session).to_list(None)
            former = await self._nodes.find({**mine, "parent": parent.memory_id}, ["_id"], session=session).to_list(
                None
            )
            before = {one["_id"] for one in former}
            if not may_group(parent, [self._said(one) for one in children], before):
                return False
            if before == set(ids):
                return True
            await self._count_up(user, session)
            old = await self._nodes.find_one(group, session=session)
            grown = [one for one in children if one["_id"] not in before] + ([old] if old else [])
            newest = parent.children[0].created_at
            record = {
                **group,
                "content": parent.content,
                "summary": parent.summary,
                "importance": max(one["importance"] for one in children),
                "level": 1,
                "parent": None,
                "created_at": newest,
                "created_at_us": micros(newest),
                "last_accessed_us": max(_last_accessed(one) for one in grown),
                "content_hash": digest(parent.content),
                "access_count": sum(one["access_count"] for one in grown),
                "accesses": old["accesses"] if old else [],
                "pinned": any(one.get("pinned", False) for one in grown),
                **self._vector_field(parent.embedding),
                **filled,
                "changed_at": datetime.now(UTC),
            }
            await self._nodes.replace_one(group, record, upsert=True, session=session)
            await self._nodes.update_many(
                {**mine, "_id": {"$in": ids}}, {"$set": {"parent": parent.memory_id}}, session=session
            )
            return True

        result = await self._db.transact(work)
        async with self._db.explained():
            await self._still_filled(filled)
        return result

    async def _count_up(self, user_id: str, session: "Session") -> None:
        await self._db.collection("users").update_one(
            {"_id": user_id}, {"$inc": {"formed": 1}}, upsert=True, session=session
        )

    async def split(self, user_id: str, memory_id: str) -> list[str]:
        mine: Document = {"user_id": user_id, "level": 0}

        async def work(session: "Session") -> list[str]:
            children = await self._nodes.find({**mine, "parent": memory_id}, session=session).to_list(None)
            if not children:
                # A repeated call finds the work done.
                children = await self._nodes.find({**mine, "apart": memory_id}, session=session).to_list(None)
            elif parent := await self._nodes.find_one({"_id": memory_id, "user_id": user_id}, session=session):
                await self._count_up(user_id, session)
                apart = {"$addToSet": {"apart": memory_id}}
                await self._nodes.update_many({**mine, "parent": memory_id}, apart, session=session)
                await dissolve(self._db, user_id, parent, session)
            if not children:
                raise not_a_parent(memory_id)
            return [one.memory_id for one in newest_first(self._said(child) for child in children)]

        return await self._db.transact(work)
