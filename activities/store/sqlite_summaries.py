"""Summaries in the embedded store: one row for each conversation, whose id marks the messages that it covers."""

from collections.abc import Sequence
from typing import Any, cast

import apsw

from activities.models import ConversationMessage, Summary
from activities.store.times import micros, moment

Row = tuple[Any, ...]

_COLUMNS = "user_id, conversation_id, summary_id, text, model_id, messages, first_at, last_at, updated_at"


def of(db: apsw.Connection, user_id: str, conversation_ids: Sequence[str]) -> list[Summary]:
    """The summaries of some conversations, in their order."""
    found: list[Summary] = []
    for conversation_id in conversation_ids:
        where = "where user_id = ? and conversation_id = ?"
        for row in db.execute(f"select {_COLUMNS} from summaries {where}", (user_id, conversation_id)):
            *fields, first_at, last_at, updated_at = cast(Row, row)
            times = {"first_at": moment(first_at), "last_at": moment(last_at), "updated_at": moment(updated_at)}
            found.append(Summary(**dict(zip(_COLUMNS.split(", "), fields, strict=False)), **times))
    return found


def unsummarised(
    db: apsw.Connection, user_id: str, conversation_id: str, limit: int
) -> tuple[Summary | None, list[ConversationMessage]]:
    summary = next(iter(of(db, user_id, [conversation_id])), None)
    rows = db.execute(
        "select message_id, message_type, text, timestamp from conversations where id in ("
        "select id from conversations where user_id = ? and conversation_id = ? and summary_id is not ?"
        ") order by timestamp, id limit ?",
        (user_id, conversation_id, summary.summary_id if summary else "", limit),
    )
    messages = [
        ConversationMessage(message_id=message_id, message_type=message_type, text=text, timestamp=moment(timestamp))
        for message_id, message_type, text, timestamp in cast("list[Row]", rows)
    ]
    return summary, messages


def put(db: apsw.Connection, summary: Summary, covered: Sequence[str]) -> bool:
    conversation = (summary.user_id, summary.conversation_id)
    there = db.execute(
        "select summary_id, messages from summaries where user_id = ? and conversation_id = ?", conversation
    ).fetchone()
    before = summary.messages - len(covered)
    if there != ((summary.summary_id, before) if before else None):
        return False
    marks = ", ".join("?" * len(covered))
    uncovered = f"user_id = ? and conversation_id = ? and summary_id is not ? and message_id in ({marks})"
    arguments = (*conversation, summary.summary_id, *covered)
    if db.execute(f"select count(*) from conversations where {uncovered}", arguments).get != len(covered):
        return False
    db.execute(f"update conversations set summary_id = ? where {uncovered}", (summary.summary_id, *arguments))
    times = (micros(summary.first_at), micros(summary.last_at), micros(summary.updated_at))
    db.execute(
        f"insert or replace into summaries({_COLUMNS}) values(?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*conversation, summary.summary_id, summary.text, summary.model_id, summary.messages, *times),
    )
    return True


def remove(db: apsw.Connection, user_id: str, conversation_id: str) -> None:
    """Remove a conversation's summary: none that is made from it can be stored any more, and the next is made anew."""
    db.execute("delete from summaries where user_id = ? and conversation_id = ?", (user_id, conversation_id))
