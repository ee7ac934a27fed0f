"""Cached answers in the embedded store: their vectors are kept with their expiry and scope, in vec0."""

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from activities.models import CacheEntry
from activities.store.sqlite_records import Row, insert
from activities.store.times import micros


def put(db: apsw.Connection, entry: CacheEntry, vector: bytes | None) -> None:
    """Store an entry in the place of the one that it is newer than."""
    where = "where user_id = ? and (query_hash = ? and namespace = ? and model = ? or entry_id = ?)"
    same = (entry.user_id, entry.query_hash, entry.namespace, entry.model, entry.entry_id)
    newest = db.execute(f"select max(created_at) from cache {where}", same).get
    if newest is not None and newest > micros(entry.created_at):
        return
    remove(db, db.execute(f"select id from cache {where}", same).fetchall())
    row = insert(db, "cache", entry.model_dump())
    if vector is not None:
        db.execute(
            "insert into cache_vectors(rowid, user_id, expires_at, namespace, model, embedding) "
            "values(?, ?, ?, ?, ?, ?)",
            (row, entry.user_id, micros(entry.expires_at), entry.namespace, entry.model, vector),
        )


def nearest(
    db: apsw.Connection, vector: bytes | None, k: int, where: str, arguments: Iterable[Any]
) -> list[tuple[int, float]]:
    """Rows of the entries with the `k` nearest vectors and their cosines, best first; none for a vector of zeros."""
    if vector is None:
        return []
    found = db.execute(
        f"select rowid, distance from cache_vectors where embedding match ? and k = ? and {where} order by distance",
        (vector, k, *arguments),
    )
    return [(row, 1.0 - distance) for row, distance in found]


def remove(db: apsw.Connection, rows: Sequence[Row]) -> None:
    """Remove entries, given as tuples of their rows, and their vectors."""
    db.executemany("delete from cache_vectors where rowid = ?", rows)
    db.executemany("delete from cache where id = ?", rows)
