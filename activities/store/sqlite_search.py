"""Search in the embedded store: words to FTS5, vectors to sqlite-vec, filters to SQL, and the upkeep of both indexes.

Each searchable table has two virtual ones beside it: `<table>_vectors` (vec0) and, where it is searched by keyword,
`<table>_text` (FTS5), which share its row ids. Nothing in here looks outside one `Share` of a table.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast
from unicodedata import normalize

import apsw

from activities.store.filters import Condition, Node, Scalar
from activities.store.fusion import candidates, check_search, fuse
from activities.store.words import UNSPACED, terms_of

Row = tuple[Any, ...]

MAX_NEAREST = 4096
"""The largest k that vec0 takes."""


def _indexed(text: str) -> str:
    """`text` as the full-text index takes it: characters of unspaced scripts stand alone."""
    return re.sub(rf"[{UNSPACED}]", r" \g<0> ", normalize("NFC", text))


def _match(query: str) -> str:
    """The terms of `query` as FTS5 strings joined by OR; empty where it has none.

    Only letters and digits get this far, so nothing in a query is ever FTS5 syntax.
    """
    return " OR ".join(f'"{term}"' for term in terms_of(query))


def _types(value: Scalar) -> str:
    """SQLite's names of the JSON types that `value` can be compared with."""
    if value is None:
        return "'null'"
    if isinstance(value, bool):
        return "'true', 'false'"
    return "'text'" if isinstance(value, str) else "'integer', 'real'"


def compile_filter(node: Node) -> tuple[str, list[Any]]:
    """A filter as an SQL expression over a document row `c`, never null, and its parameters."""
    if not isinstance(node, Condition):
        parts = [compile_filter(member) for member in node.members]
        arguments = [argument for _, member in parts for argument in member]
        if node.combinator == "$not":
            return f"not ({parts[0][0]})", arguments
        joiner = " or " if node.combinator == "$or" else " and "
        return "(" + (joiner.join(sql for sql, _ in parts) or "1") + ")", arguments

    path = "$" + "".join(f'."{name}"' for name in node.field.split("."))
    if node.operator == "$exists":
        return f"json_type(c.metadata, ?) is {'not ' if node.values[0] else ''}null", [path]
    sign = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}.get(node.operator, "is")
    tests = " or ".join(f"(e.type in ({_types(value)}) and e.atom {sign} ?)" for value in node.values) or "0"
    # json_each yields a scalar as one row and a list as its items; of an object it would yield the members.
    sql = (
        "exists (select 1 from json_each(c.metadata, ?) e "
        f"where json_type(c.metadata, ?) is not 'object' and ({tests}))"
    )
    arguments = [path, path, *node.values]
    if None in node.values:
        sql, arguments = f"({sql} or json_type(c.metadata, ?) is null)", [*arguments, path]
    return (f"not {sql}" if node.operator in ("$ne", "$nin") else sql), arguments


@dataclass(frozen=True)
class Share:
    """The rows of a table that one search may see: one user's, in one collection where the table has those."""

    table: str
    key: str
    values: dict[str, str]

    @property
    def arguments(self) -> list[str]:
        return list(self.values.values())

    def where(self, prefix: str = "") -> str:
        return " and ".join(f"{prefix}{column} = ?" for column in self.values)

    @property
    def owner(self) -> str:
        """One token that no other share has, indexed with each text so that a search reads no other share's."""
        return "x" + sha256(json.dumps(self.arguments).encode()).hexdigest()[:40]


def chunks_of(user_id: str, collection: str) -> Share:
    return Share("documents", "chunk_id", {"user_id": user_id, "collection": collection})


def messages_of(user_id: str) -> Share:
    return Share("conversations", "message_id", {"user_id": user_id})


def contexts_of(user_id: str) -> Share:
    return Share("contexts", "message_id", {"user_id": user_id})


def add_vector(db: apsw.Connection, table: str, row: int, vector: bytes | None, columns: dict[str, Any]) -> None:
    """Index a vector under its row; None, a vector of zeros, is similar to nothing and isn't indexed."""
    if vector is not None:
        names = "".join(f", {name}" for name in columns)
        marks = ", ?" * len(columns)
        db.execute(
            f"insert into {table}_vectors(rowid, embedding{names}) values(?, ?{marks})",
            (row, vector, *columns.values()),
        )


def nearest(
    db: apsw.Connection, table: str, vector: bytes | None, k: int, where: str, arguments: Iterable[Any]
) -> list[tuple[int, float]]:
    """Rows with the `k` nearest vectors and their cosines, best first; none where the vector is zeros."""
    if vector is None:
        return []
    found = db.execute(
        f"select rowid, distance from {table}_vectors where embedding match ? and k = ? and {where} order by distance",
        (vector, min(k, MAX_NEAREST), *arguments),
    )
    return [(row, 1.0 - distance) for row, distance in found]


def index(db: apsw.Connection, share: Share, row: int, text: str, vector: bytes | None) -> None:
    """Make a new row of `share` findable."""
    db.execute(
        f"insert into {share.table}_text(rowid, owner, text) values(?, ?, ?)", (row, share.owner, _indexed(text))
    )
    add_vector(db, share.table, row, vector, share.values)


def remove(db: apsw.Connection, share: Share, where: str, argument: str) -> None:
    """Remove the rows of `share` that meet a condition from their table and from both of its indexes."""
    sql = f"select id, text from {share.table} where {share.where()} and {where}"
    rows = db.execute(sql, (*share.arguments, argument)).fetchall()
    # The index keeps no text of its own: it has to be told what it took in under each row.
    db.executemany(
        f"insert into {share.table}_text({share.table}_text, rowid, owner, text) values('delete', ?, ?, ?)",
        [(row, share.owner, _indexed(cast(str, text))) for row, text in rows],
    )
    forget(db, share.table, [(row,) for row, _ in rows])


def forget(db: apsw.Connection, table: str, rows: Sequence[Row]) -> None:
    """Remove rows, given as tuples of their ids, and their vectors."""
    db.executemany(f"delete from {table}_vectors where rowid = ?", rows)
    db.executemany(f"delete from {table} where id = ?", rows)


def hybrid(
    db: apsw.Connection,
    share: Share,
    text: str,
    vector: bytes | None,
    limit: int,
    weight: float,
    condition: tuple[str, list[Any]] | None = None,
) -> tuple[list[tuple[str, float]], dict[str, float], dict[str, float]]:
    """Search the rows of `share` that meet `condition` by vector (`weight`) and by keyword (the rest).

    Returns:
        Record ids with fused scores, best first and at most `limit`; cosines and BM25 scores by id.
    """
    cosines, keywords = legs(db, share, text, vector, limit, weight, condition)
    return fuse([(weight, list(cosines)), (1 - weight, list(keywords))])[:limit], cosines, keywords


def legs(
    db: apsw.Connection,
    share: Share,
    text: str,
    vector: bytes | None,
    limit: int,
    weight: float = 0.5,
    condition: tuple[str, list[Any]] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """The two legs of a hybrid search for `limit`: cosines and BM25 scores by id, best first."""
    check_search(limit, weight)
    table, key, k = share.table, share.key, candidates(limit)
    cosines: dict[str, float] = {}
    if weight > 0:
        where, arguments = share.where(), list[Any](share.arguments)
        if condition:
            where += f" and rowid in (select c.id from {table} c where {share.where('c.')} and {condition[0]})"
            arguments += [*share.arguments, *condition[1]]
        found = [
            (db.execute(f"select {key} from {table} where id = ?", (row,)).get, cosine)
            for row, cosine in nearest(db, table, vector, k, where, arguments)
        ]
        cosines = dict(sorted(found, key=lambda item: (-item[1], item[0])))
    keywords: dict[str, float] = {}
    match = _match(text)
    if weight < 1 and match:
        sql, arguments = condition or ("1", [])
        keywords = dict(
            db.execute(
                f"select c.{key}, -bm25({table}_text, 0, 1) as score from {table}_text join {table} c "
                f"on c.id = {table}_text.rowid where {table}_text match ? and {share.where('c.')} and {sql} "
                f"order by score desc, c.{key} limit ?",
                (f"owner:{share.owner} AND {{text}}:({match})", *share.arguments, *arguments, k),
            )
        )
    return cosines, keywords
