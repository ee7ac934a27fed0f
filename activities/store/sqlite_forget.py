"""Forgetting in the embedded store: which records go together, and their removal from every table and index."""

import json
from dataclasses import dataclass
from typing import Any

import apsw

from activities.models import ForgetMatch, ForgetQuery, ForgetTarget, Forgotten, RecordKind
from activities.store import sqlite_cache, sqlite_memory, sqlite_messages, sqlite_summaries
from activities.store.base import OPENING_CHARACTERS
from activities.store.forgetting import LOOKED_AT, meant
from activities.store.sqlite_search import hybrid, nearest
from activities.store.sqlite_shares import forget, memories_of, messages_of, replace_vector
from activities.store.times import moment
from activities.store.words import opening

_AMONG = "in (select value from json_each(?))"
"""Whether a value is one of a list, which `_column` makes JSON."""


@dataclass(frozen=True)
class _Going:
    """Rows that go together."""

    messages: list[int]
    memories: list[int]
    cached: list[int]


def _column(db: apsw.Connection, sql: str, *arguments: Any) -> list[Any]:
    """The only column of a query's rows."""
    bound = [json.dumps(argument) if isinstance(argument, list) else argument for argument in arguments]
    return [value for (value,) in db.execute(sql, bound)]


def matching(db: apsw.Connection, query: ForgetQuery, vector: bytes | None, threshold: float) -> list[ForgetMatch]:
    ranked, _, _ = hybrid(db, messages_of(query.user_id), query.query, vector, LOOKED_AT, 0.5)
    messages = _column(db, f"select id from conversations where message_id {_AMONG}", [one for one, _ in ranked])
    near = [row for row, _, _ in nearest(db, memories_of(query.user_id), vector, LOOKED_AT)]
    # Of a parent only some children may be meant: each is found by itself.
    memories = _column(db, f"select id from memory_nodes where level = 0 and id {_AMONG}", near)
    cached = [row for row, _ in sqlite_cache.nearest(db, vector, LOOKED_AT, "user_id = ?", [query.user_id])]
    shown = _shown(db, _Going(messages, memories, cached), vector)
    return [one for kind in shown for one in meant(query, threshold, kind)]


def going_with(db: apsw.Connection, user_id: str, ids: list[str]) -> list[ForgetMatch]:
    named = f"select id, memory_id from memory_nodes where user_id = ? and (memory_id {_AMONG} or parent {_AMONG})"
    children = _column(db, f"select memory_id from ({named})", user_id, ids, ids)
    of_them = f"select message_id from memory_sources where node in (select id from ({named}))"
    ids = [*ids, *children, *_column(db, of_them, user_id, ids, ids)]
    return [one for kind in _shown(db, _going(db, user_id, ids)) for one in kind]


def _shown(db: apsw.Connection, going: _Going, vector: bytes | None = None) -> list[list[ForgetMatch]]:
    """Records as they are shown, in a list for each kind, with their cosines with `vector` where there are any."""
    shown: list[list[ForgetMatch]] = []
    kinds: list[tuple[RecordKind, str, list[int], str]] = [
        ("message", "conversations", going.messages, "message_id, text, timestamp, conversation_id"),
        ("memory", "memory_nodes", going.memories, "memory_id, content, created_at, null"),
        ("cached_answer", "cache", going.cached, "entry_id, query || char(10) || response, created_at, null"),
    ]
    for kind, table, rows, columns in kinds:
        cosine = f"(select 1 - vec_distance_cosine(embedding, ?) from {table}_vectors where rowid = {table}.id)"
        sql = f"select {columns}, {cosine if vector else '?'} from {table} where id {_AMONG} order by id"
        shown.append(
            [
                ForgetMatch(
                    id=name, kind=kind, text=text, created_at=moment(at), conversation_id=within, similarity=similarity
                )
                for name, text, at, within, similarity in db.execute(sql, (vector, json.dumps(rows)))
            ]
        )
    return shown


def _going(db: apsw.Connection, user_id: str, ids: list[str]) -> _Going:
    """The rows that go where the records of these ids go.

    A memory only goes where no other message is left to it. Its parent, which quotes it, goes wherever it does, or says
    something else from then on.
    """
    messages = _column(db, f"select id from conversations where user_id = ? and message_id {_AMONG}", user_id, ids)
    these = f"select message_id, text from conversations where id {_AMONG}"
    memories = _column(
        db,
        f"with these as ({these}) select id from memory_nodes n where user_id = ? and (memory_id {_AMONG} or id in "
        "(select node from memory_sources where user_id = ? and message_id in (select message_id from these))) "
        "and not exists (select 1 from memory_sources s join conversations c on c.message_id = s.message_id "
        "where s.node = n.id and c.message_id not in (select message_id from these))",
        *(messages, user_id, ids, user_id),
    )
    changed = _column(
        db,
        "select s.node from memory_sources s join conversations c on c.message_id = s.message_id "
        f"where s.user_id = ? and s.reinforced = 0 and c.id {_AMONG}",
        *(user_id, messages),
    )
    of_them = f"select parent from memory_nodes where id {_AMONG}"
    parents = _column(
        db,
        f"select id from memory_nodes where user_id = ? and memory_id in ({of_them})",
        *(user_id, [*memories, *changed]),
    )
    cached = _column(
        db,
        f"with these as ({these}) select id from cache where user_id = ? and (entry_id {_AMONG} "
        "or query in (select text from these) or response in (select text from these))",
        *(messages, user_id, ids),
    )
    return _Going(messages, sorted({*memories, *parents}), cached)


def forget_some(db: apsw.Connection, target: ForgetTarget, most: int) -> Forgotten:
    ids, complete = _ids(db, target, most)
    going = _going(db, target.user_id, ids)
    for parent in _column(db, f"select memory_id from memory_nodes where level = 1 and id {_AMONG}", going.memories):
        sqlite_memory.dissolve(db, target.user_id, parent)
    forget(db, memories_of(target.user_id), going.memories)
    _remove_messages(db, target.user_id, going.messages)
    sqlite_cache.remove(db, [(row,) for row in going.cached])
    return Forgotten(
        messages=len(going.messages),
        memories=len(going.memories),
        cached_answers=len(going.cached),
        complete=complete,
    )


def _ids(db: apsw.Connection, target: ForgetTarget, most: int) -> tuple[list[str], bool]:
    """Ids of the records to begin with, and whether there are no others."""
    if target.ids is not None:
        return target.ids, True
    if target.conversation_id is not None:
        sql = "select message_id from conversations where user_id = ? and conversation_id = ? limit ?"
        ids = _column(db, sql, target.user_id, target.conversation_id, most)
        return ids, len(ids) < most
    if not target.everything:
        return [], True
    # Answers first: then none is looked for that holds a message.
    for table, key in (("cache", "entry_id"), ("conversations", "message_id"), ("memory_nodes", "memory_id")):
        ids = _column(db, f"select {key} from {table} where user_id = ? limit ?", target.user_id, most)
        if ids:
            return ids, False
    return [], True


def _remove_messages(db: apsw.Connection, user_id: str, rows: list[int]) -> None:
    """Remove messages from their table, their indexes, and the memories that stay; whatever else holds a message's
    text is to be brought up to date here."""
    ids = _column(db, f"select message_id from conversations where id {_AMONG}", rows)
    losing = f"select distinct node from memory_sources where user_id = ? and message_id {_AMONG}"
    for memory in _column(db, losing, user_id, ids):
        _lose_sources(db, user_id, memory, ids)
    within = f"select distinct conversation_id from conversations where id {_AMONG}"
    for conversation_id in _column(db, within, rows):
        sqlite_summaries.remove(db, user_id, conversation_id)
    sqlite_messages.remove_all(db, user_id, ids)


def _lose_sources(db: apsw.Connection, user_id: str, memory: int, ids: list[str]) -> None:
    """Take messages from a memory that others are left to.

    Where what it says came from one of them, it says what the oldest message that is left says. Neither these messages
    nor that one count as said again any more; importance stays.
    """
    sql = f"delete from memory_sources where node = ? and message_id {_AMONG} returning reinforced"
    lost = _column(db, sql, memory, ids)
    db.execute("update memory_nodes set access_count = max(0, access_count - ?) where id = ?", (len(lost), memory))
    if all(lost):
        return
    row, message_id, text, timestamp = db.execute(
        "select c.id, c.message_id, c.text, c.timestamp from memory_sources s join conversations c "
        "on c.message_id = s.message_id where s.node = ? order by c.timestamp, c.id limit 1",
        (memory,),
    ).get
    db.execute("update memory_sources set reinforced = 0 where node = ? and message_id = ?", (memory, message_id))
    db.execute(
        "update memory_nodes set content = ?, summary = ?, created_at = ? where id = ?",
        (text, opening(text, OPENING_CHARACTERS), timestamp, memory),
    )
    vector = _column(db, "select embedding from conversations_vectors where id = ?", row)
    replace_vector(db, memories_of(user_id), memory, vector[0] if vector else None)
