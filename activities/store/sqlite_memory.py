"""Memories in the embedded store. Each function runs within one transaction, which its caller holds.

A row of `memory_nodes` is what was said (level 0) or a parent (level 1), which its children name as their `parent`.
A root is a row without a parent: a memory that stands alone, or a parent.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

import apsw

from activities.consolidation import Said, may_group, newest_first
from activities.models import (
    FormedMemory,
    ListMemoriesParams,
    Memory,
    MemoryChild,
    MemoryNode,
    MemoryParent,
    MemoryQuery,
    SimilarMemory,
)
from activities.statements import same_statement
from activities.store.base import ACCESSES_KEPT, AROUND, NEAREST_SAID, not_a_parent, unknown_memory
from activities.store.fusion import candidates, check_search
from activities.store.ranking import Vitals, page, rank, strength, weakest
from activities.store.sqlite_records import insert, select
from activities.store.sqlite_search import nearest
from activities.store.sqlite_shares import forget, index, memories_of
from activities.store.times import micros

_SAID = "memory_id, content, created_at, parent, apart"
_WITH_CHILDREN = (
    "select id from memory_nodes where user_id = ? and memory_id = ? "
    "union all select id from memory_nodes where user_id = ? and parent = ?"
)
MemoryT = TypeVar("MemoryT", bound=Memory)

_SHOWN = "memory_id, content, summary, importance, access_count, created_at, last_accessed_at, pinned, level"


def form(db: apsw.Connection, node: MemoryNode, vector: bytes | None, threshold: float) -> FormedMemory:
    for message_id in node.source_messages:
        known = db.execute(
            "select n.memory_id, s.reinforced from memory_sources s join memory_nodes n on n.id = s.node "
            "where s.user_id = ? and s.message_id = ?",
            (node.user_id, message_id),
        ).fetchone()
        if known:
            return FormedMemory(memory_id=known[0], reinforced=bool(known[1]))
    there = "select 1 from conversations where user_id = ? and message_id = ?"
    if not all(db.execute(there, (node.user_id, one)).fetchone() for one in node.source_messages):
        return FormedMemory(memory_id=None, reinforced=False)
    same = _same(db, node, vector, threshold)
    if same is None:
        record = node.model_dump(exclude={"embedding", "source_messages"})
        row = insert(db, "memory_nodes", {**record, "last_accessed_at": node.created_at})
        index(db, memories_of(node.user_id), [(row, node.content, vector)])
        memory_id = node.memory_id
    else:
        row, memory_id = same
        _reinforce(db, row, node)
    db.executemany(
        "insert into memory_sources(user_id, message_id, reinforced, node) values(?, ?, ?, ?)",
        [(node.user_id, message_id, same is not None, row) for message_id in dict.fromkeys(node.source_messages)],
    )
    return FormedMemory(memory_id=memory_id, reinforced=same is not None)


def _same(db: apsw.Connection, node: MemoryNode, vector: bytes | None, threshold: float) -> tuple[int, str] | None:
    """Row and id of the nearest memory that says the same."""
    for row, _, cosine in nearest(db, memories_of(node.user_id), vector, NEAREST_SAID):
        if cosine < threshold:
            break
        (found,) = select(db, "memory_id, content, level", "from memory_nodes where id = ?", (row,))
        if found["level"] == 0 and same_statement(found["content"], node.content):
            return row, found["memory_id"]
    return None


def _reinforce(db: apsw.Connection, row: int, node: MemoryNode) -> None:
    """Count a memory as said again, and its parent too."""
    said = micros(node.created_at)
    db.execute(
        "update memory_nodes set access_count = access_count + 1, last_accessed_at = max(last_accessed_at, ?), "
        "importance = importance + (1 - importance) * ? / 2 where id = ?",
        (said, node.importance, row),
    )
    db.execute(
        "update memory_nodes set access_count = access_count + 1, last_accessed_at = max(last_accessed_at, ?), "
        "importance = max(importance, (select importance from memory_nodes where id = ?)) "
        "where memory_id = (select parent from memory_nodes where id = ?)",
        (said, row, row),
    )


def roots(db: apsw.Connection, user_id: str) -> list[Vitals]:
    """What lists and pruning go by, of all of a user's roots."""
    columns = "memory_id, importance, access_count, created_at, last_accessed_at, pinned"
    found = select(db, columns, "from memory_nodes where user_id = ? and parent is null", (user_id,))
    return [Vitals(**{**one, "pinned": bool(one["pinned"])}) for one in found]


def prune(db: apsw.Connection, user_id: str, budget: int, now: datetime) -> int:
    count = db.execute("select count(*) from memory_nodes where user_id = ? and parent is null", (user_id,)).get
    if count <= max(0, budget):
        return 0
    weak = weakest(roots(db, user_id), budget, now)
    for memory_id in weak:
        rows = db.execute(_WITH_CHILDREN, (user_id, memory_id, user_id, memory_id)).fetchall()
        forget(db, memories_of(user_id), [cast(int, row) for (row,) in rows])
    return len(weak)


def listed(db: apsw.Connection, params: ListMemoriesParams, now: datetime) -> tuple[list[Memory], list[str]]:
    chosen = [one for one in roots(db, params.user_id) if one.pinned or not params.pinned]
    places, as_of = page(chosen, params.order, params.limit, params.cursor, now)
    return show(db, params.user_id, [one for one, _ in places], as_of), [cursor for _, cursor in places]


def _children(db: apsw.Connection, user_id: str, parent: str) -> list[MemoryChild]:
    return newest_first(_said(db, "user_id = ? and parent = ?", (user_id, parent)))


def _with_sources(db: apsw.Connection, user_id: str, memories: list[MemoryT]) -> list[MemoryT]:
    """Roots with the ids of the messages that they or their children were formed from, in the order of forming."""
    by_id = {memory.memory_id: memory for memory in memories}
    ids = json.dumps(list(by_id))
    # The + as in `_shown`.
    found = db.execute(
        "select m.root, s.message_id from ("
        "select memory_id as root, id from memory_nodes "
        "where +user_id = ? and memory_id in (select value from json_each(?)) "
        "union all "
        "select parent, id from memory_nodes where user_id = ? and parent in (select value from json_each(?))"
        ") m join memory_sources s on s.node = m.id order by s.id",
        (user_id, ids, user_id, ids),
    )
    for root, message_id in cast(Iterable[tuple[str, str]], found):
        by_id[root].source_messages.append(message_id)
    return memories


def _shown(db: apsw.Connection, user_id: str, ids: Collection[str], now: datetime) -> list[dict[str, Any]]:
    """The fields of roots as callers see them, but for their sources, in the order of `ids`."""
    # The + keeps SQLite from reading all of the user's memories.
    among = "from memory_nodes where +user_id = ? and memory_id in (select value from json_each(?))"
    found = {one["memory_id"]: one for one in select(db, _SHOWN, among, (user_id, json.dumps(list(ids))))}
    return [
        {
            **one,
            "strength": strength(one["created_at"], one["last_accessed_at"], one["access_count"], now),
            "children": _children(db, user_id, one["memory_id"]) if one["level"] else [],
            "source_messages": [],
        }
        for one in (found[memory_id] for memory_id in ids)
    ]


def show(db: apsw.Connection, user_id: str, ids: Collection[str], now: datetime) -> list[Memory]:
    """Memories as callers see them, in the order of `ids`."""
    return _with_sources(db, user_id, [Memory(**one) for one in _shown(db, user_id, ids, now)])


def similar(db: apsw.Connection, query: MemoryQuery, vector: bytes | None, unrelated: float) -> list[SimilarMemory]:
    """The memories that bear most on a query; a parent in the place of its children."""
    check_search(query.limit, 1)
    near = nearest(db, memories_of(query.user_id), vector, candidates(query.limit))
    sql = (
        "select n.id, ifnull(n.parent, n.memory_id), v.embedding from memory_nodes n "
        "join memory_nodes_vectors v on v.id = n.id where n.id in (select value from json_each(?))"
    )
    rows = cast(Iterable[tuple[int, str, bytes]], db.execute(sql, (json.dumps([row for row, _, _ in near]),)))
    roots = {row: (root, bytes(embedding)) for row, root, embedding in rows}
    cosines: dict[str, float] = {}
    vectors: dict[str, bytes] = {}
    for row, _, cosine in near:
        root, embedding = roots[row]
        # Nearest first: the first of a group is its best.
        if root not in cosines:
            cosines[root], vectors[root] = cosine, embedding
    found = _shown(db, query.user_id, cosines, query.now)
    memories = [SimilarMemory(**one, similarity=cosines[one["memory_id"]], score=0) for one in found]
    return _with_sources(db, query.user_id, rank(memories, vectors, query.now, unrelated, query.limit))


def _vector(db: apsw.Connection, row: int) -> bytes:
    found = db.execute("select embedding from memory_nodes_vectors where id = ?", (row,)).fetchone()
    return bytes(found[0]) if found else b""


def count_accesses(db: apsw.Connection, memories: Sequence[SimilarMemory], query: MemoryQuery) -> None:
    """Count one access to each of some memories, here and in the store, unless this retrieval is counted already."""
    among = "from memory_nodes where memory_id in (select value from json_each(?))"
    ids = json.dumps([memory.memory_id for memory in memories])
    columns = "memory_id, accesses, access_count, last_accessed_at"
    found = {one["memory_id"]: one for one in select(db, columns, among, (ids,))}
    changed: list[tuple[int, int, str, str]] = []
    for memory in memories:
        # It may have been forgotten since it was found.
        if (one := found.get(memory.memory_id)) is None:
            continue
        memory.access_count, memory.last_accessed_at = one["access_count"], one["last_accessed_at"]
        accesses = json.loads(one["accesses"])
        if query.retrieval_id not in accesses:
            memory.access_count += 1
            memory.last_accessed_at = max(query.now, memory.last_accessed_at)
            kept = json.dumps([*accesses, query.retrieval_id][-ACCESSES_KEPT:])
            changed.append((memory.access_count, micros(memory.last_accessed_at), kept, memory.memory_id))
    sql = "update memory_nodes set access_count = ?, last_accessed_at = ?, accesses = ? where memory_id = ?"
    db.executemany(sql, changed)


# Consolidation


def _said(db: apsw.Connection, where: str, arguments: Sequence[Any]) -> list[Said]:
    """Memories of what was said, with their vectors."""
    found = select(db, f"id, {_SAID}", f"from memory_nodes where level = 0 and {where}", arguments)
    return [
        Said(embedding=_vector(db, one.pop("id")), **{**one, "apart": frozenset(json.loads(one["apart"]))})
        for one in found
    ]


def surroundings(db: apsw.Connection, user_id: str, memory_id: str) -> tuple[Said, list[Said]] | None:
    """A memory of what was said, and the nearest ones with whole groups; None where it isn't there."""
    mine = _said(db, "user_id = ? and memory_id = ?", (user_id, memory_id))
    if not mine:
        return None
    (memory,) = mine
    others: dict[str, Said] = {}
    vector = memory.embedding or None
    for row, _, _ in nearest(db, memories_of(user_id), vector, AROUND):
        for one in _said(db, "id = ?", (row,)):
            group = _said(db, "user_id = ? and parent = ?", (user_id, one.parent)) if one.parent else [one]
            others |= {member.memory_id: member for member in group}
    others.pop(memory_id, None)
    return memory, list(others.values())


def put_parent(db: apsw.Connection, parent: MemoryParent, vector: bytes | None) -> bool:
    user = parent.user_id
    marks = ", ".join("?" * len(parent.children))
    ids = [child.memory_id for child in parent.children]
    members = _said(db, f"user_id = ? and memory_id in ({marks})", (user, *ids))
    before = [child.memory_id for child in _children(db, user, parent.memory_id)]
    if not may_group(parent, members, before):
        return False
    added = [one for one in ids if one not in before]
    if not added:
        return True
    columns = "importance, access_count, last_accessed_at, pinned"
    children = select(db, columns, f"from memory_nodes where user_id = ? and memory_id in ({marks})", (user, *ids))
    new_marks = ", ".join("?" * len(added))
    grown = select(db, columns, f"from memory_nodes where user_id = ? and memory_id in ({new_marks})", (user, *added))
    if before:
        grown += select(db, columns, "from memory_nodes where user_id = ? and memory_id = ?", (user, parent.memory_id))
    record = {
        "content": parent.content,
        "summary": parent.summary,
        "created_at": parent.children[0].created_at,
        "importance": max(one["importance"] for one in children),
        "access_count": sum(one["access_count"] for one in grown),
        "last_accessed_at": max(one["last_accessed_at"] for one in grown),
        "pinned": any(one["pinned"] for one in grown),
    }
    kept = db.execute("select id, accesses from memory_nodes where memory_id = ?", (parent.memory_id,)).fetchone()
    if kept:
        # Its new vector, if the store is being re-embedded, goes with the row.
        forget(db, memories_of(user), [kept[0]])
        record |= {"accesses": kept[1]}
    row = insert(db, "memory_nodes", {"memory_id": parent.memory_id, "user_id": user, "level": 1, **record})
    index(db, memories_of(user), [(row, parent.content, vector)])
    db.execute(
        f"update memory_nodes set parent = ? where user_id = ? and memory_id in ({marks})",
        (parent.memory_id, user, *ids),
    )
    return True


def split(db: apsw.Connection, user_id: str, memory_id: str) -> list[str]:
    children = _said(db, "user_id = ? and parent = ?", (user_id, memory_id))
    if not children:
        # A repeated call finds the work done.
        again = "user_id = ? and exists (select 1 from json_each(apart) where value = ?)"
        children = _said(db, again, (user_id, memory_id))
    if not children:
        raise not_a_parent(memory_id)
    dissolve(db, user_id, memory_id)
    for child in children:
        apart = json.dumps(sorted(child.apart | {memory_id}))
        where = "where user_id = ? and memory_id = ?"
        db.execute(f"update memory_nodes set apart = ? {where}", (apart, user_id, child.memory_id))
    return [child.memory_id for child in newest_first(children)]


def dissolve(db: apsw.Connection, user_id: str, memory_id: str) -> None:
    """Remove a parent; its children stand alone again, pinned where it was."""
    parent = "select id, pinned from memory_nodes where user_id = ? and memory_id = ? and level = 1"
    for row, pinned in db.execute(parent, (user_id, memory_id)).fetchall():
        freed = "set parent = null, pinned = max(pinned, ?) where user_id = ? and parent = ?"
        db.execute(f"update memory_nodes {freed}", (pinned, user_id, memory_id))
        forget(db, memories_of(user_id), [cast(int, row)])


def pin(db: apsw.Connection, user_id: str, memory_id: str, pinned: bool) -> str:
    where = "where user_id = ? and memory_id = ?"
    found = db.execute(f"select ifnull(parent, memory_id) from memory_nodes {where}", (user_id, memory_id)).fetchone()
    if not found:
        raise unknown_memory(memory_id)
    db.execute(f"update memory_nodes set pinned = ? {where}", (pinned, user_id, found[0]))
    return str(found[0])
