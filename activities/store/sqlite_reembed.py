"""Another embedding model in the embedded store: its vectors wait in a table of their own until the switch.

Triggers keep it right whatever other processes write meanwhile: a vector in it is always that of its record's present
text.
"""

import apsw

from activities.models import EMBEDDED, EmbeddingModel, RecordEmbedding, RecordText, Reembedding
from activities.store.base import not_reembedding
from activities.store.sqlite_schema import SHARED, filled_by, make_vector_tables, prepare, upgrade
from activities.store.sqlite_shares import encode_all
from activities.store.vectors import searchable

_IDS = {
    "documents": "chunk_id",
    "conversations": "message_id",
    "contexts": "message_id",
    "memory_nodes": "memory_id",
    "cache": "entry_id",
}


def _target(db: apsw.Connection) -> EmbeddingModel | None:
    """The model that the collections move to."""
    found = db.execute("select model_id, dimensions from reembedding").fetchone()
    return EmbeddingModel(model_id=found[0], dimensions=found[1]) if found else None


def _drop(db: apsw.Connection) -> None:
    db.execute("delete from reembedded; delete from reembedding")


def _filling(db: apsw.Connection, model: EmbeddingModel) -> EmbeddingModel:
    """The model that fills the collections: `model`, or the one that they move to `model` from.

    Raises:
        ApplicationError: `model_mismatch` where they don't.
    """
    now = filled_by(db)
    if now is not None and model in (now, target := _target(db)):
        return now
    raise not_reembedding(model, target)


def begin(db: apsw.Connection, model: EmbeddingModel) -> None:
    upgrade(db)
    now = filled_by(db)
    if now is None:
        prepare(db, model)
    elif model not in (now, _target(db)):
        _drop(db)
        db.execute("insert into reembedding values(?, ?)", (model.model_id, model.dimensions))


def texts(db: apsw.Connection, model: EmbeddingModel, collection: str, limit: int) -> list[RecordText]:
    if _filling(db, model) == model:
        return []
    select = f"select {_IDS[collection]}, {EMBEDDED[collection].field} from {collection} t"
    # Beyond the last vector are most of those that are missing, and can be found without looking at the others.
    beyond = "t.id > ifnull((select max(record) from reembedded where collection = ?), 0)"
    missing = "not exists (select 1 from reembedded where collection = ? and record = t.id)"
    for where in (beyond, missing):
        found = db.execute(f"{select} where {where} order by t.id limit ?", (collection, limit)).fetchall()
        if found:
            return [RecordText(record_id=record_id, text=text) for record_id, text in found]
    return []


def put(db: apsw.Connection, model: EmbeddingModel, collection: str, embedded: list[RecordEmbedding]) -> None:
    if _filling(db, model) == model:
        return
    same = f"{_IDS[collection]} = ? and {EMBEDDED[collection].field} = ?"
    for one in embedded:
        # All vectors of zeros alike, so that the switch recognises them.
        vector = searchable(one.embedding, model) or bytes(4 * model.dimensions)
        db.execute(
            "insert or replace into reembedded(collection, record, embedding) "
            f"select ?, id, ? from {collection} where {same}",
            (collection, vector, one.record_id, one.text),
        )


def progress(db: apsw.Connection, model: EmbeddingModel) -> Reembedding:
    now = _filling(db, model)
    records = sum(int(db.execute(f"select count(*) from {table}").get) for table in EMBEDDED)
    embedded = records if now == model else int(db.execute("select count(*) from reembedded").get)
    return Reembedding(filled_by=now, records=records, embedded=embedded)


def finish(db: apsw.Connection, model: EmbeddingModel) -> bool:
    if _filling(db, model) == model:
        return True
    if any(texts(db, model, collection, 1) for collection in EMBEDDED):
        return False
    make_vector_tables(db, model)
    zeros = bytes(4 * model.dimensions)
    for table in SHARED:
        db.execute(
            f"insert into {table}_vectors select record, embedding from reembedded "
            "where collection = ? and embedding <> ? order by record",
            (table, zeros),
        )
    columns = "user_id, expires_at, namespace, model"
    db.execute(
        f"insert into cache_vectors(rowid, {columns}, embedding) select c.id, {columns}, r.embedding from reembedded r "
        "join cache c on c.id = r.record where r.collection = 'cache' and r.embedding <> ?",
        (zeros,),
    )
    encode_all(db)
    db.execute(
        "update cache set embedding = "
        "(select r.embedding from reembedded r where r.collection = 'cache' and r.record = cache.id)"
    )
    _drop(db)
    return True
