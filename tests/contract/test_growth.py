"""Large shares of the embedded store, made so by lower limits, and files of the release that had no shares."""

import re
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
import sqlite_vec

from activities.models import ListMemoriesParams, MessageContext, pack_vector
from activities.store import sqlite_codes, sqlite_search, sqlite_shares
from activities.store.sqlite import SqliteStore
from activities.store.sqlite_database import Database
from tests.contract.records import (
    EAST,
    MODEL,
    NOON,
    chunk,
    entry,
    form,
    found,
    memory,
    message,
    put,
    retrieval,
    search,
    without_shares,
)

pytestmark = pytest.mark.anyio

RANDOM = np.random.default_rng(7)
# As a model's: all of them lie in one direction, so that only a centre tells them apart.
VECTORS = RANDOM.standard_normal((400, 4)) * 0.3 + 1
QUERY = pack_vector([1.3, 0.8, 1.1, 0.9])


def nearest(names: range | list[int], k: int) -> list[str]:
    """Ids of the chunks with the nearest vectors, by comparing them all."""
    query = np.frombuffer(QUERY, dtype=np.float32)
    cosines = {n: VECTORS[n] @ query / np.linalg.norm(VECTORS[n]) for n in names}
    return [f"{n:03}" for n in sorted(cosines, key=lambda n: -cosines[n])[:k]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def opened(file: Path) -> SqliteStore:
    store = SqliteStore(file)
    await store.open(MODEL)
    return store


async def put_numbers(store: SqliteStore, numbers: range, user: str = "ann") -> None:
    """Chunks in sources of ten, with a vector, a word of its own and one that every third has."""
    for at in range(numbers.start, numbers.stop, 10):
        chunks = [
            chunk(
                f"{n:03}" if user == "ann" else f"{user} {n}",
                f"word{n} pear plum" if n % 3 == 0 else f"word{n} pear pear",
                pack_vector(VECTORS[n].tolist()),
                user_id=user,
                source=f"{user} {at}",
                position=n,
                metadata={"even": n % 2 == 0},
            )
            for n in range(at, min(at + 10, numbers.stop))
        ]
        await store.replace_source(user, "documents", f"{user} {at}", chunks)


async def test_the_nearest_are_found_by_their_codes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_shares, "CODED_FROM", 16)
    monkeypatch.setattr(sqlite_codes, "BLOCK", 32)
    store = await opened(file)
    await put_numbers(store, range(300))
    ids = await found(store, "", QUERY, weight=1, limit=10)
    assert ids == nearest(range(300), 10)
    even = await found(store, "", QUERY, weight=1, limit=10, filter={"even": True})
    assert even == nearest(list(range(0, 300, 2)), 10)

    # What is removed or replaced leaves the codes with its vectors; what comes later joins them.
    await store.remove_source("ann", None, "ann 100")
    await put_numbers(store, range(50, 60))
    await put_numbers(store, range(300, 400))
    kept = [n for n in range(400) if not 100 <= n < 110]
    assert await found(store, "", QUERY, weight=1, limit=10) == nearest(kept, 10)

    def codes(db: apsw.Connection) -> int:
        return sum(len(bytes(records)) // 8 for (records,) in db.execute("select records from codes"))

    assert await store._read(codes) == len(kept)
    await store.close()


async def test_few_of_many_candidates_are_compared(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four bits for four dimensions the best of 200 are among the 80 compared, though not all of them."""
    monkeypatch.setattr(sqlite_shares, "CODED_FROM", 16)
    monkeypatch.setattr(sqlite_search, "RESCORED", 1)
    monkeypatch.setattr(sqlite_search, "candidates", lambda limit: limit)
    store = await opened(file)
    await put_numbers(store, range(200))
    ids = await found(store, "", QUERY, weight=1, limit=20)
    assert len(ids) == 20
    assert len(set(ids) & set(nearest(range(200), 20))) >= 10
    await store.close()


async def test_frequent_words_only_add_to_what_rare_ones_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(file)
    await put_numbers(store, range(90))
    exact = {hit.id: hit.text_score for hit in await search(store, "word7 plum pear", weight=0, limit=100)}
    assert len(exact) == 90
    assert max(exact, key=lambda name: exact[name] or 0) == "007"
    monkeypatch.setattr(sqlite_search, "ACCUMULATORS", 20)
    hits = await search(store, "word7 plum pear", weight=0, limit=100)
    assert hits[0].id == "007"
    assert 20 <= len(hits) < 90
    assert {hit.id: hit.text_score for hit in hits} == {hit.id: pytest.approx(exact[hit.id], abs=1e-5) for hit in hits}
    await store.close()


async def test_others_change_nothing_of_a_users_scores(file: Path) -> None:
    store = await opened(file)
    await put_numbers(store, range(30))
    alone = [(hit.id, hit.text_score) for hit in await search(store, "word7 plum", weight=0)]
    await put_numbers(store, range(200), user="bob")
    beside = [(hit.id, hit.text_score) for hit in await search(store, "word7 plum", weight=0)]
    # All texts are equally long: the average length, which is of all users, stays.
    assert [name for name, _ in beside] == [name for name, _ in alone]
    assert dict(beside) == pytest.approx(dict(alone))
    await store.close()


@pytest.mark.parametrize("coded_from", [16, 512])
async def test_a_file_without_shares_is_upgraded(file: Path, monkeypatch: pytest.MonkeyPatch, coded_from: int) -> None:
    monkeypatch.setattr(sqlite_shares, "CODED_FROM", coded_from)
    store = await opened(file)
    await put_numbers(store, range(60))
    await put_numbers(store, range(20), user="bob")
    await store.put_message(message("m", "plum"))
    asked = [("plum word7", 0), ("", 1), ("plum word9", 0.5)]
    before = [await search(store, text, QUERY, weight=weight) for text, weight in asked]
    remembered = (await store.recall(retrieval("plum"))).related_conversation
    await store.close()
    db = apsw.Connection(str(file))
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    without_shares(db)
    db.close()

    store = await opened(file)
    assert [await search(store, text, QUERY, weight=weight) for text, weight in asked] == before
    assert (await store.recall(retrieval("plum"))).related_conversation == remembered
    assert await store.remove_source("ann", None, "ann 0") == 10
    await put(store, chunk("new", "plum"))
    assert "new" in await found(store, "plum", limit=50)
    await store.close()


async def test_no_call_reads_the_records_of_everybody(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: set[str] = set()
    transact = Database._transact

    def traced(database: Database, mode: str, work: Any) -> Any:
        with database._connection(create=False) as connection:
            connection.exec_trace = note
        return transact(database, mode, work)

    def note(cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
        statements.add(statement)
        return True

    store = await opened(file)
    monkeypatch.setattr(Database, "_transact", traced)
    await put_numbers(store, range(20))
    for minute in range(2):
        await store.put_message(message(f"m{minute}", "plum pear", EAST, minute))
    assert await store.message_before("ann", "m1")
    await store.put_context("ann", "m1", MessageContext(previous="m0", text="plum pear", embedding=EAST))
    for name in ("x", "y"):
        await form(store, memory(name, importance=0.4), 0.9)
    assert await store.surroundings("ann", "x")
    assert (await store.recall(retrieval("plum"))).similar_memories
    assert (await store.read_conversation("ann", "c", 5))[0]
    assert (await store.list_memories(ListMemoriesParams(user_id="ann"), NOON))[0]
    await store.put_cache_entry(entry("e", "hash"))
    assert await store.nearest_cached("ann", EAST, NOON)
    assert await store.cached_answer("ann", "hash", NOON)
    assert await found(store, "plum", QUERY)
    monkeypatch.undo()

    def scans(db: apsw.Connection) -> set[tuple[str, str]]:
        db.exec_trace = None
        return {
            (table, statement)
            for statement in statements
            if statement.startswith(("select", "insert", "update", "delete", "with"))
            for *_, step in db.execute(f"explain query plan {statement}", (None,) * statement.count("?"))
            # Not of a virtual table, which finds what it is asked for.
            for table in re.findall(r"^SCAN (\w+)(?! VIRTUAL)\b", step)
        }

    kept = await store._read(scans)
    await store.close()
    assert len(statements) > 30
    # A row for each collection, and a subquery.
    assert {table for table, _ in kept} == {"collections", "m"}, kept
