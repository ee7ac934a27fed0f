"""Documents in the store, over each engine: what is listed, read, removed, and kept on its way; and contents."""

import asyncio
import os
import stat
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson.objectid import ObjectId

from activities.models import DEFAULT_COLLECTION, Chunk, EmbeddingModel, pack_vector
from activities.store.atlas import AtlasContents
from activities.store.base import Store, document_id
from activities.store.contents import Contents, FileContents
from activities.store.sqlite import SqliteStore
from tests.contract.records import EAST, MODEL, NORTH, WEST, Engine, chunk, downgrade, fails, found, put, search

OTHER = EmbeddingModel(model_id="local.other", dimensions=4)


def book(source: str = "book", count: int = 3, **fields: Any) -> list[Chunk]:
    return [
        chunk(f"{source}-{n}", f"plum {n}", source=source, position=n, metadata={"title": f"The {source}"}, **fields)
        for n in range(count)
    ]


async def replace(store: Store, chunks: list[Chunk]) -> None:
    await store.replace_source(chunks[0].user_id, chunks[0].collection, chunks[0].source, chunks)


# What is stored


async def test_documents_are_listed_in_order_page_by_page(store: Store) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    for source in ("b", "a", "c", "Ä"):
        await replace(store, book(source))
    await replace(store, book("z", 1, collection="a first collection"))
    await put(store, chunk("bob's", user_id="bob"))

    names: list[tuple[str, str]] = []
    cursor = None
    for _ in range(3):
        page = await store.list_sources("ann", None, 2, cursor)
        names += [(one.collection, one.source) for one in page.sources]
        cursor = page.next_cursor
    assert cursor is None
    assert names == [("a first collection", "z"), *((DEFAULT_COLLECTION, name) for name in ("a", "b", "c", "Ä"))]

    [one] = (await store.list_sources("ann", "a first collection", 10, None)).sources
    assert (one.title, one.chunks, one.content_hash) == ("The z", 1, "hash")
    assert begun <= one.stored_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert one.document_id == document_id("ann", "a first collection", "z")
    assert (await store.list_sources("eve", None, 10, None)).sources == []
    with fails("rejected", "cursor"):
        await store.list_sources("ann", None, 2, "bm9uc2Vuc2U")


async def test_a_document_is_removed_by_its_name_or_id(store: Store) -> None:
    await replace(store, book("a"))
    await replace(store, book("b"))
    await put(store, chunk("of bob", "plum", user_id="bob", source="a"))
    await put(store, chunk("elsewhere", "plum", collection="notes", source="a"))

    assert await store.remove_source("ann", None, "nothing") == 0
    assert await store.remove_source("ann", None, document_id("bob", DEFAULT_COLLECTION, "a")) == 0
    assert await store.remove_source("ann", DEFAULT_COLLECTION, "a") == 3
    assert await store.remove_source("ann", DEFAULT_COLLECTION, "a") == 0
    assert await found(store, "plum", collection="notes") == ["elsewhere"]
    assert await store.remove_source("ann", None, document_id("ann", DEFAULT_COLLECTION, "b")) == 3
    assert await store.remove_source("ann", None, "a") == 1

    assert (await store.list_sources("ann", None, 10, None)).sources == []
    assert await found(store, "plum") == []
    assert await found(store, "plum", user_id="bob") == ["of bob"]


async def test_a_document_is_read_in_parts(store: Store) -> None:
    await replace(store, book("a", 5))
    key = document_id("ann", DEFAULT_COLLECTION, "a")

    first = await store.read_document(key, "ann", 0, 13)
    assert first is not None
    assert (first.user_id, first.source, first.title, first.chunks) == ("ann", "a", "The a", 5)
    assert [(one.position, one.text) for one in first.content] == [(0, "plum 0"), (1, "plum 1")]
    assert first.content[1].metadata["title"] == "The a"
    assert first.next_position == 2
    rest = await store.read_document(key, None, 2, 1000)
    assert rest is not None
    assert [one.position for one in rest.content] == [2, 3, 4]
    assert rest.next_position is None
    least = await store.read_document(key, "ann", 4, 1)
    assert least is not None
    assert [one.position for one in least.content] == [4]

    assert await store.read_document(key, "bob", 0, 100) is None
    assert await store.read_document("0" * 32, None, 0, 100) is None


async def test_a_hit_names_its_document(store: Store) -> None:
    await replace(store, book("a", 1))
    [hit] = await search(store, "plum")
    assert hit.metadata["document_id"] == document_id("ann", DEFAULT_COLLECTION, "a")
    document = await store.read_document(hit.metadata["document_id"], "ann", 0, 100)
    assert document is not None
    assert document.content[0].text == hit.text


async def test_of_changes_at_once_one_is_stored_as_a_whole(store: Store) -> None:
    versions = [book("a", count, content_hash=str(count)) for count in (1, 2, 3, 4)]
    await asyncio.gather(*(replace(store, chunks) for chunks in versions), store.remove_source("ann", None, "a"))
    stored = await store.read_document(document_id("ann", DEFAULT_COLLECTION, "a"), "ann", 0, 1000)
    chunks = 0 if stored is None else len(stored.content)
    assert stored is None or stored.chunks == chunks == int(stored.content_hash)
    assert len(await search(store, "plum")) == chunks


# On the way


async def test_vectors_are_kept_until_their_chunks_are_stored(store: Store) -> None:
    await store.stage({"book-0": EAST, "book-1": NORTH, "other": WEST})
    await store.stage({"book-1": WEST})
    assert await store.staged(["book-0", "book-1", "book-2"]) == {"book-0": EAST, "book-1": WEST}
    assert await store.staged([]) == {}

    await replace(store, book())

    assert await store.staged(["book-0", "book-1", "other"]) == {"other": WEST}


async def test_vectors_of_another_model_are_not_taken_up(engine: Engine) -> None:
    store = engine.store()
    await store.open(MODEL)
    await store.stage({"a": EAST})
    await store.close()
    await engine.prepare(OTHER)
    other = engine.store()
    await other.open(OTHER)
    assert await other.staged(["a"]) == {}
    await other.stage({"a": NORTH})
    assert await other.staged(["a"]) == {"a": NORTH}
    await other.close()


# The embedded store's file


async def test_documents_of_an_older_file_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = SqliteStore(file)
    await store.open(MODEL)
    await replace(store, book("a"))
    await replace(store, book("b", 1, user_id="bob", collection="notes"))
    await store.close()
    downgrade(file)

    store = SqliteStore(file)
    await store.open(MODEL)
    [one] = (await store.list_sources("ann", None, 10, None)).sources
    assert (one.source, one.title, one.chunks, one.content_hash) == ("a", "The a", 3, "hash")
    assert await store.source_hash("bob", "notes", "b") == "hash"
    hits = await search(store, "plum")
    assert sorted(hit.id for hit in hits) == ["a-0", "a-1", "a-2"]
    assert {hit.metadata["document_id"] for hit in hits} == {one.document_id}
    await replace(store, [chunk("new", "cherry", source="a")])
    assert await found(store, "plum", weight=0) == []
    assert await found(store, "cherry", weight=0) == ["new"]
    await store.close()


async def test_nothing_is_left_of_a_large_document_that_is_replaced(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(MODEL)
    for source in range(4):
        await replace(
            store,
            [
                chunk(f"{source}-{n}", f"word{n} plum", pack_vector([1, n, source, 1]), source=str(source), position=n)
                for n in range(300)
            ],
        )
    again = [chunk(f"new-{n}", f"word{n} cherry", source="0", position=n, content_hash="2") for n in range(300)]
    await replace(store, again)
    assert len(await search(store, "cherry", weight=0, limit=100)) == 100
    one = await store.read_document(document_id("ann", DEFAULT_COLLECTION, "0"), "ann", 0, 10**6)
    assert one is not None
    assert {piece.text.split()[1] for piece in one.content} == {"cherry"}
    await store.close()


# The index is merged where a large part of it goes, and overwritten in places where a small one does.
@pytest.mark.parametrize("others", [3, 450])
async def test_the_words_of_a_removed_document_are_overwritten(tmp_path: Path, others: int) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(MODEL)
    await replace(store, book("others", others))
    await put(store, chunk("a", "zyzzyva", source="a"))
    assert await store.remove_source("ann", None, "a") == 1
    assert {file.name for file in tmp_path.iterdir() if b"zyzzyva" in file.read_bytes()} == set()
    assert len(await found(store, "plum", weight=0, limit=100)) == min(others, 100)
    await store.close()


# Contents


@pytest.fixture(params=["files", "gridfs"])
async def contents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Contents]:
    if request.param == "files":
        made: Contents = FileContents(tmp_path / "contents")
    else:
        database, _, uri = request.getfixturevalue("atlas_target").partition(" ")
        made = AtlasContents(uri, database, {})
    yield made
    await made.close()


async def test_a_content_is_kept_whole_until_it_is_dropped(contents: Contents) -> None:
    name = f"task-{uuid.uuid4().hex}"
    assert await contents.get(name) is None

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            yield bytes([number]) * 300_000

    await contents.put(name, pieces())
    await contents.put(f"{name}-2", b"")
    assert await contents.get(name) == b"".join(bytes([number]) * 300_000 for number in range(5))
    assert await contents.get(f"{name}-2") == b""
    await contents.put(name, b"again")
    assert await contents.get(name) == b"again"

    await contents.drop(name)
    await contents.drop(name)
    assert await contents.get(name) is None
    assert await contents.get(f"{name}-2") == b""


async def test_a_content_that_fails_half_way_leaves_the_one_before(contents: Contents) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("gone")

    await contents.put("a", b"before")
    with pytest.raises(Exception, match=r"gone|can't be read"):
        await contents.put("a", pieces())
    assert await contents.get("a") == b"before"


def test_a_put_that_is_cancelled_leaves_no_half_of_a_content(tmp_path: Path) -> None:
    async def put_and_cancel() -> None:
        contents = FileContents(tmp_path)
        puts: list[asyncio.Task[None]] = []
        for turns in range(8):
            puts.append(asyncio.create_task(contents.put("a", b"whole")))
            for _ in range(turns):
                await asyncio.sleep(0)
            puts[-1].cancel()
        await asyncio.wait(puts)
        assert any(put.cancelled() for put in puts)

    # A loop of its own, whose end waits for what is still done in threads: others need the threads of theirs.
    asyncio.run(put_and_cancel())
    assert os.listdir(tmp_path) in ([], ["a"])


async def test_of_contents_put_at_once_one_is_kept(contents: Contents) -> None:
    for _ in range(5):
        await asyncio.gather(*(contents.put("a", bytes([number]) * 1000) for number in range(3)))
        content = await contents.get("a")
        assert content in [bytes([number]) * 1000 for number in range(3)]


async def test_old_contents_are_purged(contents: Contents) -> None:
    await contents.put("a", b"1")
    await contents.put("b", b"2")
    assert await contents.purge(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert await contents.get("a") == b"1"
    assert await contents.purge(datetime.now(UTC) + timedelta(hours=1)) == 2
    assert await contents.get("a") is None


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", ".hidden", "a\0b", "a" * 201, "{$ne}"])
async def test_a_name_that_could_lead_elsewhere_is_refused(contents: Contents, name: str) -> None:
    for work in (contents.put(name, b"x"), contents.get(name), contents.drop(name)):
        with fails("rejected", "name"):
            await work


async def test_files_are_their_owners_and_leave_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "contents"
    contents = FileContents(folder)
    await contents.put("a", b"secret")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
    # What a process left behind that was killed while it wrote.
    (folder / ".tmpleft").write_bytes(b"half")
    os.utime(folder / ".tmpleft", (0, 0))
    assert await contents.purge(datetime.now(UTC) - timedelta(days=1)) == 1
    assert os.listdir(folder) == ["a"]


async def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "contents").write_text("a file is in the way")
    contents = FileContents(tmp_path / "contents")
    for work in (contents.put("a", b"x"), contents.purge(datetime.now(UTC))):
        with fails("unavailable", "can't be read or written"):
            await work


async def test_pieces_of_an_upload_that_was_killed_are_purged(
    atlas_target: str, mongodb: pymongo.MongoClient[dict[str, object]]
) -> None:
    database, _, uri = atlas_target.partition(" ")
    contents = AtlasContents(uri, database, {})
    await contents.put("a", b"whole")
    pieces = mongodb[database]["documents_contents.chunks"]
    [kept] = pieces.find()
    orphan = ObjectId("0" * 24)
    pieces.insert_one({"files_id": orphan, "n": 0, "data": b"half"})
    await contents.purge(datetime.now(UTC) - timedelta(hours=1))
    assert [one["_id"] for one in pieces.find()] == [kept["_id"]]
    await contents.close()
