"""Shares of the embedded store's tables: what one search may see, and the upkeep of its two indexes.

Beside each searchable table stand `<table>_vectors`, the vectors under the ids of their rows, and, where it is searched
by keyword, `<table>_text` (FTS5). Every word in there begins with the number of its share: the postings of a word are
those of one share alone, so that a search costs the same whatever others have stored, and sees nothing of theirs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import apsw

from activities.store.words import indexed

Row = tuple[Any, ...]

CODED_FROM = 512
"""Records from which on a share's vectors have codes: fewer are compared as fast one by one."""
CENTRED_AGAIN = 4
"""How many times as many records a share must have for its centre to be taken, and its codes be made, anew."""


@dataclass(frozen=True)
class Share:
    """The rows of a table that one search may see: one user's, in one collection where the table has those."""

    table: str
    key: str
    values: dict[str, str]
    worded: bool = True

    @property
    def arguments(self) -> list[str]:
        return list(self.values.values())

    def where(self, prefix: str = "") -> str:
        return " and ".join(f"{prefix}{column} = ?" for column in self.values)

    @property
    def names(self) -> tuple[str, str, str]:
        """What the share is listed under."""
        return self.table, self.values["user_id"], self.values.get("collection", "")


@dataclass(frozen=True)
class Standing:
    """A share as it is listed.

    Attributes:
        records: How many rows it has.
        centre: The mean of its vectors when their codes were made; None while they have none.
    """

    number: int
    records: int
    centre: bytes | None


def chunks_of(user_id: str, collection: str) -> Share:
    return Share("documents", "chunk_id", {"user_id": user_id, "collection": collection})


def messages_of(user_id: str) -> Share:
    return Share("conversations", "message_id", {"user_id": user_id})


def contexts_of(user_id: str) -> Share:
    return Share("contexts", "message_id", {"user_id": user_id})


def memories_of(user_id: str) -> Share:
    return Share("memory_nodes", "memory_id", {"user_id": user_id}, worded=False)


def standing(db: apsw.Connection, share: Share) -> Standing | None:
    """How a share stands; None where nothing was ever in it."""
    sql = "select number, records, centre from shares where name = ? and user_id = ? and collection = ?"
    found = db.execute(sql, share.names).fetchone()
    return Standing(*found) if found else None


def stemmer(db: apsw.Connection) -> Callable[[str], list[str]]:
    """What takes a text apart into its words: Unicode's letters and digits, without case, accents and English suffixes.

    It is FTS5's own tokenizer of the name `porter`, over `unicode61`.
    """
    tokenizer = db.fts5_tokenizer("porter", ["unicode61", "remove_diacritics", "2"])

    def words(text: str) -> list[str]:
        found = tokenizer(
            text.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False, include_colocated=False
        )
        return cast(list[str], found)

    return words


def owned(number: int, words: Iterable[str]) -> str:
    """Words as they stand in the index of texts: none of them is a word of another share."""
    return " ".join(f"z{number}z{word}" for word in words)


def index(db: apsw.Connection, share: Share, added: Sequence[tuple[int, str, bytes | None]]) -> None:
    """Make new rows of `share` findable, each given with its text and vector.

    A vector of zeros, which is None here, is similar to nothing and isn't indexed.
    """
    if not added:
        return
    number, records, centre, coded = db.execute(
        "insert into shares(name, user_id, collection, records) values(?, ?, ?, ?) "
        "on conflict(name, user_id, collection) do update set records = records + excluded.records "
        "returning number, records, centre, coded",
        (*share.names, len(added)),
    ).get
    if share.worded:
        words = stemmer(db)
        db.executemany(
            f"insert into {share.table}_text(rowid, text) values(?, ?)",
            [(row, owned(number, words(indexed(text)))) for row, text, _ in added],
        )
    vectors = [(row, vector) for row, _, vector in added if vector is not None]
    db.executemany(f"insert into {share.table}_vectors(id, embedding) values(?, ?)", vectors)
    if records >= max(CODED_FROM, CENTRED_AGAIN * coded):
        encode(db, share, number)
    elif centre is not None and vectors:
        from activities.store import sqlite_codes

        sqlite_codes.add(db, number, centre, vectors)


def encode(db: apsw.Connection, share: Share, number: int) -> None:
    """Take the centre of a share's vectors, and make the codes of all of them."""
    # NumPy takes 0.1 s and 20 MB to load, which a store of small shares never needs.
    from activities.store import sqlite_codes

    db.execute("delete from codes where share = ?", (number,))
    rows = f"select id from {share.table} where {share.where()}"
    sql = f"select id, embedding from {share.table}_vectors where id in ({rows}) order by id"
    dimensions: int = db.execute("select dimensions from collections where name = ?", (share.table,)).get
    vectors = (cast(bytes, vector) for _, vector in db.execute(sql, share.arguments))
    centre = sqlite_codes.centre_of(vectors, dimensions)
    changed = "update shares set centre = ?, coded = records where number = ?"
    db.execute(changed, (centre, number))
    found = db.execute(sql, share.arguments)
    while some := [(cast(int, row), cast(bytes, vector)) for row, vector in islice(found, 10_000)]:
        sqlite_codes.add(db, number, centre, some)


def remove(db: apsw.Connection, share: Share, where: str, argument: str | int) -> None:
    """Remove the rows of `share` that meet a condition from their table and from both of its indexes."""
    text = "text" if share.worded else "null"
    sql = f"select id, {text} from {share.table} where {share.where()} and {where}"
    rows = db.execute(sql, (*share.arguments, argument)).fetchall()
    found = standing(db, share)
    if not rows or found is None:
        return
    if share.worded:
        words = stemmer(db)
        # The index keeps no text of its own: it has to be told what it took in under each row.
        db.executemany(
            f"insert into {share.table}_text({share.table}_text, rowid, text) values('delete', ?, ?)",
            [(row, owned(found.number, words(indexed(cast(str, text))))) for row, text in rows],
        )
    ids = [(row,) for row, _ in rows]
    db.executemany(f"delete from {share.table}_vectors where id = ?", ids)
    db.executemany(f"delete from {share.table} where id = ?", ids)
    db.execute("update shares set records = records - ? where number = ?", (len(rows), found.number))
    if found.centre is not None:
        from activities.store import sqlite_codes

        sqlite_codes.remove(db, found.number, [cast(int, row) for row, _ in rows])


def forget(db: apsw.Connection, share: Share, rows: Iterable[int]) -> None:
    """Remove rows of `share` from their table and from both of its indexes."""
    for row in rows:
        remove(db, share, "id = ?", row)


def replace_vector(db: apsw.Connection, share: Share, row: int, vector: bytes | None) -> None:
    """Give a row of `share` another vector."""
    db.execute(f"delete from {share.table}_vectors where id = ?", (row,))
    if vector is not None:
        db.execute(f"insert into {share.table}_vectors(id, embedding) values(?, ?)", (row, vector))
    found = standing(db, share)
    if found is not None and found.centre is not None:
        from activities.store import sqlite_codes

        sqlite_codes.remove(db, found.number, [row])
        if vector is not None:
            sqlite_codes.add(db, found.number, found.centre, [(row, vector)])


def rebuild(db: apsw.Connection, table: str) -> None:
    """List the shares of a table, and make the indexes of texts and the codes of their vectors, which are there."""
    columns = "user_id, collection" if table == "documents" else "user_id, ''"
    for user_id, collection in db.execute(f"select distinct {columns} from {table}").fetchall():
        share = _share(table, str(user_id), str(collection))
        sql = "insert into shares(name, user_id, collection) values(?, ?, ?) returning number"
        number: int = db.execute(sql, share.names).get
        of_share = f"from {table} where {share.where()}"
        if share.worded:
            words = stemmer(db)
            db.executemany(
                f"insert into {table}_text(rowid, text) values(?, ?)",
                (
                    (row, owned(number, words(indexed(cast(str, text)))))
                    for row, text in db.execute(f"select id, text {of_share}", share.arguments)
                ),
            )
        counted = f"update shares set records = (select count(*) {of_share}) where number = ? returning records"
        if db.execute(counted, (*share.arguments, number)).get >= CODED_FROM:
            encode(db, share, number)


def encode_all(db: apsw.Connection) -> None:
    """Make the codes of every large share anew."""
    sql = "select number, name, user_id, collection from shares where records >= ?"
    for number, table, user_id, collection in cast(list[Row], db.execute(sql, (CODED_FROM,)).fetchall()):
        encode(db, _share(table, user_id, collection), number)


def _share(table: str, user_id: str, collection: str) -> Share:
    """A share by its names."""
    if table == "documents":
        return chunks_of(user_id, collection)
    return {"conversations": messages_of, "contexts": contexts_of, "memory_nodes": memories_of}[table](user_id)
