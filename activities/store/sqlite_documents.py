"""Documents in the embedded store: which sources there are, their chunks, and vectors of those on their way."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import apsw

from activities.models import Chunk, DocumentChunk, EmbeddingModel, SourcePage, StoredDocument, StoredSource
from activities.store.base import document_id, metadata_json, page_of, read_cursor, title_of
from activities.store.sqlite_records import insert, select
from activities.store.sqlite_shares import Share, chunks_of, index, remove
from activities.store.times import STAGED_FOR, micros

# To overwrite the words of one chunk in the keyword index takes as long as to merge those of several hundred: 5 ms,
# where all of 40,000 chunks take 0.4 s.
_MERGED_FOR_ONE_IN = 400

_COLUMNS = "document_id, collection, source, title, chunks, content_hash, stored_at"


def source_hash(db: apsw.Connection, user_id: str, collection: str, source: str) -> str | None:
    found = select(
        db, "content_hash", "from sources where document_id = ?", (document_id(user_id, collection, source),)
    )
    return str(found[0]["content_hash"]) if found else None


def replace(
    db: apsw.Connection, share: Share, source: str, chunks: Sequence[Chunk], vectors: Sequence[bytes | None]
) -> None:
    """Swap a source's chunks for others, whose vectors come in the same order; None for one that is like nothing."""
    user_id, collection = share.arguments
    key = document_id(user_id, collection, source)
    remove(db, share, "source = ?", source)
    db.execute("delete from sources where document_id = ?", (key,))
    added: list[tuple[int, str, bytes | None]] = []
    for chunk, vector in zip(chunks, vectors, strict=True):
        fields = {**chunk.model_dump(exclude={"embedding"}), "metadata": metadata_json(chunk)}
        added.append((insert(db, "documents", fields), chunk.text, vector))
    index(db, share, added)
    now = datetime.now(UTC)
    if chunks:
        db.execute(
            "insert into sources values(?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, user_id, collection, source, title_of(source, chunks), chunks[0].content_hash),
                *(len(chunks), micros(now)),
            ),
        )
    db.executemany("delete from staged_vectors where chunk_id = ?", [(chunk.chunk_id,) for chunk in chunks])
    db.execute("delete from staged_vectors where staged_at < ?", (micros(now - STAGED_FOR),))


def listed(db: apsw.Connection, user_id: str, collection: str | None, limit: int, cursor: str | None) -> SourcePage:
    where, arguments = "user_id = ?", [user_id]
    if collection is not None:
        where, arguments = f"{where} and collection = ?", [*arguments, collection]
    if cursor is not None:
        where, arguments = f"{where} and (collection, source) > (?, ?)", [*arguments, *read_cursor(cursor)]
    rest = f"from sources where {where} order by collection, source limit ?"
    return page_of([StoredSource(**row) for row in select(db, _COLUMNS, rest, (*arguments, limit + 1))], limit)


def remove_source(db: apsw.Connection, user_id: str, collection: str | None, source: str) -> int:
    """Remove the sources that a name or a document's id means; answer how many chunks they had."""
    where, arguments = "user_id = ? and (source = ? or document_id = ?)", [user_id, source, source]
    if collection is not None:
        where, arguments = f"{where} and collection = ?", [*arguments, collection]
    found = select(db, "collection, source, chunks", f"from sources where {where}", arguments)
    if not found:
        return 0
    removed: int = sum(row["chunks"] for row in found)
    stored: int = db.execute("select sum(chunks) from sources").get
    few = removed * _MERGED_FOR_ONE_IN < stored
    # What was replaced may stay in the keyword index until it is merged; what somebody removes may not.
    _overwrite(db, few)
    for row in found:
        replace(db, chunks_of(user_id, row["collection"]), row["source"], [], [])
    _overwrite(db, False)
    if not few:
        db.execute("insert into documents_text(documents_text) values('optimize')")
    return removed


def _overwrite(db: apsw.Connection, wanted: bool) -> None:
    """Whether the keyword index forgets at once what is deleted from it."""
    db.execute("insert into documents_text(documents_text, rank) values('secure-delete', ?)", (int(wanted),))


def read(
    db: apsw.Connection, key: str, user_id: str | None, position: int, max_characters: int
) -> StoredDocument | None:
    """Some chunks of a document."""
    found = select(db, f"user_id, {_COLUMNS}", "from sources where document_id = ?", (key,))
    if not found or user_id not in (None, found[0]["user_id"]):
        return None
    document = StoredDocument(**found[0], content=[], next_position=None)
    rows = db.execute(
        "select position, text, metadata from documents where user_id = ? and collection = ? and source = ? "
        "and position >= ? order by position",
        (document.user_id, document.collection, document.source, position),
    )
    used = 0
    for number, text, metadata in rows:
        used += len(text)
        if document.content and used > max_characters:
            document.next_position = number
            break
        document.content.append(DocumentChunk(position=number, text=text, metadata=json.loads(metadata)))
    rows.close()
    return document


def stage(db: apsw.Connection, model: EmbeddingModel, vectors: dict[str, bytes]) -> None:
    now = micros(datetime.now(UTC))
    db.executemany(
        "insert or replace into staged_vectors values(?, ?, ?, ?, ?)",
        [(chunk_id, model.model_id, model.dimensions, vector, now) for chunk_id, vector in vectors.items()],
    )


def staged(db: apsw.Connection, model: EmbeddingModel, chunk_ids: list[str]) -> dict[str, bytes]:
    return dict(
        db.execute(
            "select chunk_id, embedding from staged_vectors where model_id = ? and dimensions = ? "
            "and chunk_id in (select value from json_each(?))",
            (model.model_id, model.dimensions, json.dumps(chunk_ids)),
        )
    )
