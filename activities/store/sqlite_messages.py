"""Messages in the embedded store: each findable alone and together with the one before it."""

import json
from collections.abc import Iterable
from typing import cast

import apsw

from activities.models import (
    ContextMessage,
    ConversationMessage,
    MemoryQuery,
    Message,
    MessageContext,
    MessageType,
    PreviousMessage,
    RelatedMessage,
)
from activities.store.base import NEIGHBOURS, conversation_cursor
from activities.store.relevance import LABEL_CHARACTERS, Candidate, rank_messages
from activities.store.sqlite_records import insert, select
from activities.store.sqlite_search import legs
from activities.store.sqlite_shares import contexts_of, index, messages_of, remove
from activities.store.times import micros, moment


def put(db: apsw.Connection, message: Message, vector: bytes | None) -> None:
    # Rows are in the order of storing, which a message that is stored again keeps. A step that is repeated may come
    # after a summary that covers its message, and after its context.
    same = "conversation_id = ? and text = ?"
    known, summary_id, previous = db.execute(
        f"select id, case when {same} then summary_id end, case when {same} then previous end from conversations "
        "where user_id = ? and message_id = ?",
        (*2 * (message.conversation_id, message.text), message.user_id, message.message_id),
    ).fetchone() or (None, None, None)
    remove(db, messages_of(message.user_id), "message_id = ?", message.message_id)
    fields = {"id": known, "summary_id": summary_id, "previous": previous, **message.model_dump(exclude={"embedding"})}
    row = insert(db, "conversations", fields)
    index(db, messages_of(message.user_id), [(row, message.text, vector)])
    if previous is None:
        _put_context(db, row, message.user_id, message.message_id, message.text, vector)


def put_context(
    db: apsw.Connection, user_id: str, message_id: str, context: MessageContext, vector: bytes | None
) -> None:
    where = "where user_id = ? and message_id = ?"
    row = cast(int | None, db.execute(f"select id from conversations {where}", (user_id, message_id)).get)
    # What was forgotten meanwhile doesn't live on in here.
    if row is None or not db.execute(f"select 1 from conversations {where}", (user_id, context.previous)).get:
        return
    db.execute("update conversations set previous = ? where id = ?", (context.previous, row))
    _put_context(db, row, user_id, message_id, context.text, vector)


def _put_context(db: apsw.Connection, row: int, user_id: str, message_id: str, text: str, vector: bytes | None) -> None:
    remove(db, contexts_of(user_id), "message_id = ?", message_id)
    insert(db, "contexts", {"id": row, "message_id": message_id, "user_id": user_id, "text": text})
    index(db, contexts_of(user_id), [(row, text, vector)])


def remove_all(db: apsw.Connection, user_id: str, ids: list[str]) -> None:
    """Remove messages with every index of them; those that came right after one are found alone from then on."""
    for message_id in ids:
        for share in (messages_of(user_id), contexts_of(user_id)):
            remove(db, share, "message_id = ?", message_id)
    where = "where user_id = ? and previous in (select value from json_each(?))"
    among = (user_id, json.dumps(ids))
    for one in select(db, "id, message_id, text", f"from conversations {where}", among):
        vector = db.execute("select embedding from conversations_vectors where id = ?", (one["id"],)).get
        _put_context(db, one["id"], user_id, one["message_id"], one["text"], cast(bytes | None, vector))
    db.execute(f"update conversations set previous = null {where}", among)


def read(db: apsw.Connection, user_id: str, message_id: str, dimensions: int) -> Message | None:
    columns = "id, message_id, user_id, conversation_id, message_type, text, timestamp"
    for found in select(db, columns, "from conversations where user_id = ? and message_id = ?", (user_id, message_id)):
        vector = db.execute("select embedding from conversations_vectors where id = ?", (found.pop("id"),)).get
        return Message(**found, embedding=vector or bytes(4 * dimensions))
    return None


def before(db: apsw.Connection, user_id: str, message_id: str) -> PreviousMessage | None:
    where = "where user_id = ? and message_id = ?"
    sql = f"select conversation_id, timestamp, id from conversations {where}"
    place = db.execute(sql, (user_id, message_id)).fetchone()
    if place is None:
        return None
    rest = (
        "from conversations where user_id = ? and conversation_id = ? and (timestamp, id) < (?, ?) "
        "order by timestamp desc, id desc limit 1"
    )
    found = select(db, "message_id, text", rest, (user_id, *place))
    return PreviousMessage(**found[0]) if found else None


def page(
    db: apsw.Connection, user_id: str, conversation_id: str, limit: int, before: tuple[int, int] | None
) -> tuple[list[ConversationMessage], str | None]:
    """The latest messages of a conversation, or those before a place in it, and the cursor for those before them."""
    rest, arguments = "from conversations where user_id = ? and conversation_id = ?", [user_id, conversation_id]
    columns = "id, message_id, message_type, text, timestamp"
    rest += " and (timestamp, id) < (?, ?)" if before else ""
    rest += " order by timestamp desc, id desc limit ?"
    found = select(db, columns, rest, [*arguments, *(before or ()), limit + 1])
    kept = found[:limit][::-1]
    cursor = conversation_cursor(micros(kept[0]["timestamp"]), kept[0]["id"]) if len(found) > limit else None
    return [ConversationMessage(**one) for one in kept], cursor


def related(db: apsw.Connection, query: MemoryQuery, vector: bytes | None) -> list[RelatedMessage]:
    """The messages that bear on a query, each with its surroundings."""
    searches = [
        leg
        for share in (messages_of(query.user_id), contexts_of(query.user_id))
        for leg in legs(db, share, query.text, vector, query.limit)
    ]
    ids = json.dumps(list({message_id for leg in searches for message_id in leg}))
    sql = (
        "select message_id, previous, substr(text, 1, ?), timestamp from conversations "
        "where message_id in (select value from json_each(?))"
    )
    found = cast(Iterable[tuple[str, str | None, str, int]], db.execute(sql, (LABEL_CHARACTERS, ids)))
    candidates = [
        Candidate(message_id, previous, beginning, moment(timestamp))
        for message_id, previous, beginning, timestamp in found
    ]
    ranked = rank_messages(query.text, query.now, searches, candidates)
    best = dict(ranked[: query.limit])
    ids = json.dumps(list(best))
    columns = "message_id, conversation_id, message_type, text, timestamp"
    among = "from conversations where message_id in (select value from json_each(?))"
    shown = {one["message_id"]: one for one in select(db, columns, among, (ids,))}
    before, after = _neighbours(db, ids, "<", "desc"), _neighbours(db, ids, ">", "asc")
    return [
        RelatedMessage(
            **shown[message_id],
            score=score,
            before=before.get(message_id, [])[::-1],
            after=after.get(message_id, []),
        )
        for message_id, score in best.items()
    ]


def _neighbours(db: apsw.Connection, ids: str, sign: str, order: str) -> dict[str, list[ContextMessage]]:
    """The messages on one side of each of some messages in their conversations, nearest first.

    Args:
        ids: A JSON array.
        sign: `<` for those before them, which is `desc` in order, or `>` for those after them, `asc`.
    """
    # All at once: a statement of its own for either side of each message took a tenth of a recollection.
    rows = db.execute(
        "select this.message_id, n.message_type, n.text, n.timestamp from conversations this "
        "join conversations n on n.id in (select id from conversations where user_id = this.user_id "
        f"and conversation_id = this.conversation_id and (timestamp, id) {sign} (this.timestamp, this.id) "
        f"order by timestamp {order}, id {order} limit ?) "
        f"where this.message_id in (select value from json_each(?)) order by n.timestamp {order}, n.id {order}",
        (NEIGHBOURS, ids),
    )
    found: dict[str, list[ContextMessage]] = {}
    for message_id, message_type, text, timestamp in cast(Iterable[tuple[str, MessageType, str, int]], rows):
        neighbour = ContextMessage(message_type=message_type, text=text, timestamp=moment(timestamp))
        found.setdefault(message_id, []).append(neighbour)
    return found
