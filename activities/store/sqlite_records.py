"""Rows of the embedded store's tables as records by column names, with their times as datetimes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import apsw

from activities.store.times import micros, moment

Row = tuple[Any, ...]

_TIMES = {"timestamp", "created_at", "expires_at", "last_accessed_at", "stored_at", "staged_at"}


def insert(db: apsw.Connection, table: str, record: dict[str, Any]) -> int:
    """Insert a record, given by column names, with its times as microseconds; answer its row id."""
    marks = ", ".join("?" * len(record))
    values = [micros(value) if isinstance(value, datetime) else value for value in record.values()]
    return cast(int, db.execute(f"insert into {table}({', '.join(record)}) values({marks}) returning id", values).get)


def select(db: apsw.Connection, columns: str, rest: str, arguments: Sequence[Any]) -> list[dict[str, Any]]:
    """Records by column names, with their times as UTC datetimes."""
    names = columns.split(", ")
    return [
        {name: moment(value) if name in _TIMES else value for name, value in zip(names, cast(Row, row), strict=True)}
        for row in db.execute(f"select {columns} {rest}", arguments)
    ]
