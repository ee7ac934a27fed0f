"""What every store does, run over each engine; then what is the embedded store's alone.

Run as a program, this file is
one of the other processes that the tests need: see `PROGRAMS`.
"""

import asyncio
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import apsw
import pytest

from activities.models import (
    DEFAULT_COLLECTION,
    CacheEntry,
    CacheScope,
    Chunk,
    EmbeddingModel,
    ListMemoriesParams,
    RecordEmbedding,
    pack_vector,
)
from activities.store.base import CACHE_CANDIDATES, Store, document_id
from activities.store.ranking import score, strength
from activities.store.relevance import BEST
from activities.store.sqlite import SqliteStore
from tests.contract.records import (
    EAST,
    MODEL,
    NOON,
    NORTH,
    NORTH_EAST,
    NOWHERE,
    WEST,
    Engine,
    chunk,
    downgrade,
    entry,
    fails,
    form,
    found,
    memory,
    message,
    put,
    retrieval,
    search,
)

OTHER = EmbeddingModel(model_id="local.other", dimensions=4)

# Search


async def test_a_search_fuses_both_rankings(store: Store) -> None:
    await put(
        store,
        chunk("a", "plum plum plum", NORTH),
        chunk("b", "plum and a good deal of other fruit besides", EAST),
        chunk("c", "cherry", NORTH_EAST),
    )

    hits = await search(store, "plum", EAST)

    assert [(hit.id, hit.score) for hit in hits] == [
        ("b", 0.5 * 61 / 61 + 0.5 * 61 / 62),
        ("a", 0.5 * 61 / 63 + 0.5 * 61 / 61),
        ("c", 0.5 * 61 / 62),
    ]
    assert [hit.vector_score for hit in hits] == pytest.approx([1, 0, sqrt(0.5)], abs=1e-6)
    by_id = {hit.id: hit.text_score for hit in hits}
    assert by_id["c"] is None
    assert by_id["a"] is not None
    assert by_id["b"] is not None
    assert by_id["a"] > by_id["b"] > 0


async def test_good_in_both_rankings_beats_best_in_one(store: Store) -> None:
    await put(store, chunk("a", "tart", EAST), chunk("b", "plum plum", NOWHERE), chunk("c", "plum", NORTH_EAST))

    assert [(hit.id, hit.score) for hit in await search(store, "plum", EAST, limit=1)] == [("c", 61 / 62)]


async def test_weight_moves_a_search_from_keyword_to_vector(store: Store) -> None:
    await put(store, chunk("a", "plum", NORTH), chunk("b", "cherry", EAST))

    assert [(hit.id, hit.score, hit.vector_score) for hit in await search(store, "plum", weight=0)] == [("a", 1, None)]
    assert [(hit.id, hit.score, hit.text_score) for hit in await search(store, "plum", weight=1)] == [
        ("b", 1, None),
        ("a", 61 / 62, None),
    ]
    assert await found(store, "plum", weight=0.6) == ["a", "b"]
    assert [hit.score for hit in await search(store, "plum", weight=0.6)] == [0.6 * 61 / 62 + (1 - 0.6), 0.6]


async def test_similarity_is_the_cosine(store: Store) -> None:
    await put(store, chunk("a", "", NORTH_EAST), chunk("b", "", WEST), chunk("c", "", EAST))

    hits = await search(store, weight=1)

    assert [hit.id for hit in hits] == ["c", "a", "b"]
    assert [hit.vector_score for hit in hits] == pytest.approx([1, sqrt(0.5), -1], abs=1e-6)


async def test_a_vectors_cosine_with_itself_is_exactly_one(store: Store) -> None:
    for n in range(1, 20):
        vector = pack_vector([n, 1 / n, n * 0.7, -0.3])
        await put(store, chunk(f"{n}", "", vector))
        (hit,) = await search(store, embedding=vector, weight=1, limit=1)
        assert hit.vector_score == 1


async def test_a_hit_carries_the_chunk_as_it_was_stored(store: Store) -> None:
    metadata = {"title": "Fruit", "tags": ["a", "b"], "nested": {"deep": [1, 2.5, None, True]}, "empty": {}}
    await put(store, chunk("a", "plum\n tart ", source="/fruit.md", position=3, metadata=metadata))

    (hit,) = await search(store, "tart")

    assert hit.text == "plum\n tart "
    key = document_id("ann", DEFAULT_COLLECTION, "/fruit.md")
    assert hit.metadata == {**metadata, "source": "/fruit.md", "position": 3, "document_id": key}


async def test_ties_go_to_the_lower_chunk_id(store: Store) -> None:
    await put(store, *(chunk(name, "plum", EAST) for name in ("c", "a", "d", "b")))

    for weight in (0, 0.5, 1):
        assert await found(store, "plum", weight=weight) == ["a", "b", "c", "d"]


async def test_a_search_answers_at_most_its_limit(store: Store) -> None:
    chunks = [chunk(f"{number:03}", "plum", pack_vector([120, number, 0, 0]), source="s") for number in range(120)]
    await store.replace_source("ann", DEFAULT_COLLECTION, "s", chunks)

    for weight in (0, 0.5, 1):
        for limit in (1, 10, 100):
            assert await found(store, "plum", limit=limit, weight=weight) == [f"{n:03}" for n in range(limit)]
    assert len(await found(store, "plum", limit=1000)) == 120
    assert await found(store, limit=1000, weight=1) == [f"{number:03}" for number in range(120)]


@pytest.mark.parametrize("fields", [{"limit": 0}, {"limit": -1}, {"weight": -0.1}, {"weight": 1.1}])
async def test_arguments_out_of_range_are_rejected(store: Store, fields: dict[str, Any]) -> None:
    with fails("rejected", "limit", "weight"):
        await search(store, **fields)


async def test_words_match_by_stem_case_and_accent(store: Store) -> None:
    await put(store, chunk("a", "Running CAFÉS"), chunk("b", "re\u0301sume\u0301"))

    for text in ("run", "RUNS", "cafe", "café", "cafe\u0301"):
        assert await found(store, text, weight=0) == ["a"], text
    for text in ("résumé", "re\u0301sume\u0301", "resume"):
        assert await found(store, text, weight=0) == ["b"], text


async def test_any_word_of_a_question_may_match(store: Store) -> None:
    await put(store, chunk("a", "the moon"), chunk("b", "green cheese"), chunk("c", "a stone"))

    assert sorted(await found(store, "Is the Moon (really) made of cheese?", weight=0)) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "   ", "?!", '"', "* ( ) :", "_", "\0", "🎉", "-", "́"])
async def test_a_query_without_words_searches_by_vector_alone(store: Store, text: str) -> None:
    await put(store, chunk("a", f"plum {text}"))

    assert await found(store, text, weight=0) == []
    assert [(hit.id, hit.score, hit.text_score) for hit in await search(store, text)] == [("a", 0.5, None)]


@pytest.mark.parametrize(
    "text",
    [
        'plum"',
        '"plum',
        'plum" OR owner:"x',
        "plum*",
        "NEAR(plum)",
        "plum NOT plum",
        "plum AND",
        "OR plum",
        "owner:plum",
        "text:plum",
        "{owner text}:plum",
        "-plum",
        "^plum",
        "plum + ",
        "(plum",
        "plum') --",
        "plum\0 tart",
        "plum\\",
    ],
)
async def test_search_syntax_in_a_query_is_only_text(store: Store, text: str) -> None:
    await put(store, chunk("a", "a plum"), chunk("b", "a cherry"))

    assert await found(store, text, weight=0) == ["a"]


async def test_a_prefix_is_not_a_word(store: Store) -> None:
    await put(store, chunk("a", "plumber"))

    assert await found(store, "plum*", weight=0) == []


async def test_a_query_of_many_words_is_searched_by_its_first_ones(store: Store) -> None:
    await put(store, chunk("a", "plum"))

    filler = " ".join(f"w{number}" for number in range(5000))
    assert await found(store, f"plum {filler}", weight=0) == ["a"]
    assert await found(store, f"{'plum ' * 5000}", weight=0) == ["a"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("I ❤️ 🍑 plums 👩\u200d👩\u200d👧", "plum"),
        ("私は東京タワーに行きました。", "東京タワーはどこですか"),
        ("我喜欢吃李子", "李子"),
        ("자두를 먹었어요", "자두를"),
        ("אני אוהב שזיפים", "שזיפים"),
        ("أحب البرقوق كثيرا", "البرقوق"),
        ("Я люблю сливы", "СЛИВЫ"),
        ("before\0after", "after"),
        ("\ufeffplum\u202e reversed", "plum"),
        ("\U0001d4ab mathematical", "mathematical"),
        ("𠮷野家", "𠮷野"),
    ],
)
async def test_text_in_any_script_is_kept_and_found(store: Store, text: str, query: str) -> None:
    await put(store, chunk("a", text), chunk("b", "something else"))

    (hit,) = await search(store, query, weight=0)
    assert (hit.id, hit.text) == ("a", text)


async def test_ids_in_any_script_are_kept_apart(store: Store) -> None:
    users = ["ann", "Ann", "ann ", "ann\0", "ånn", "ann\0b", "%", "_", "*", "' or 1=1 --", '"', "😀", "owner:ann", ""]
    for number, user in enumerate(users):
        await put(store, chunk(f"{number}", "plum", user_id=user))
        await store.put_message(message(f"{number}", "plum", user=user))

    for number, user in enumerate(users):
        assert await found(store, "plum", user_id=user) == [f"{number}"]
        recollection = await store.recall(retrieval("plum", user_id=user))
        assert [one.message_id for one in recollection.related_conversation] == [f"{number}"]


async def test_a_document_of_16_megabytes_is_kept_and_found(store: Store) -> None:
    pages = [f"page {number} " + "plum tart " * 1000 for number in range(1700)]
    chunks = [chunk(f"{n:04}", page, source="book", position=n) for n, page in enumerate(pages)]
    assert sum(map(len, pages)) > 16 * 2**20

    await store.replace_source("ann", DEFAULT_COLLECTION, "book", chunks)

    (hit,) = await search(store, "1699", weight=0)
    assert (hit.text, hit.metadata["position"]) == (pages[-1], 1699)
    await store.replace_source("ann", DEFAULT_COLLECTION, "book", [])
    assert await found(store, "1699", weight=0) == []


async def test_a_chunk_of_15_megabytes_is_kept_and_found(store: Store) -> None:
    text = "mirabelle " + "plum tart " * (15 * 2**20 // 10)
    await put(store, chunk("a", text), chunk("b", "plum"))

    (hit,) = await search(store, "mirabelle", weight=0)
    assert hit.text == text
    await store.replace_source("ann", DEFAULT_COLLECTION, "a", [])
    assert await found(store, "mirabelle plum", weight=0) == ["b"]


async def test_a_lone_surrogate_is_rejected(store: Store) -> None:
    broken = chunk("a").model_copy(update={"text": "\ud800"})
    with fails("rejected", "Unicode"):
        await put(store, broken)
    assert await store.collections("ann") == []


async def test_a_vector_of_zeros_is_similar_to_nothing(store: Store) -> None:
    await put(store, chunk("a", "plum", NOWHERE), chunk("b", "cherry", WEST))

    assert await found(store, weight=1) == ["b"]
    assert await found(store, embedding=NOWHERE, weight=1) == []
    assert [(hit.id, hit.vector_score) for hit in await search(store, "plum", NOWHERE)] == [("a", None)]


@pytest.mark.parametrize("embedding", [b"", b"1234567", pack_vector([1, 0, 0]), pack_vector([1, 0, 0, 0, 0])])
async def test_an_embedding_of_another_size_is_rejected(store: Store, embedding: bytes) -> None:
    with fails("rejected", "dimensions", "local.test has 4"):
        await put(store, chunk("a", "plum", embedding))
    with fails("rejected", "dimensions"):
        await search(store, embedding=embedding)
    with fails("rejected", "dimensions"):
        await store.put_message(message("m", "plum", embedding))
    assert await store.collections("ann") == []


async def test_an_embedding_that_isnt_finite_is_rejected(store: Store) -> None:
    nan = b"\0\0\xc0\x7f" + EAST[4:]
    with fails("rejected", "finite"):
        await search(store, embedding=nan)


# Filters

LIBRARY = {
    "a": {"year": 2020, "lang": "en", "draft": True, "tags": ["x", "y"], "in": {"shelf": 3}, "ratio": 0.5},
    "b": {"year": 2021.5, "lang": "de", "draft": False, "tags": [], "in": {"shelf": "3"}},
    "c": {"year": "2021", "lang": None, "draft": 1, "tags": "x"},
    "d": {"odd": "a\0b'\"; drop table documents; --"},
}


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, "abcd"),
        ({"lang": "en"}, "a"),
        ({"lang": {"$eq": "EN"}}, ""),
        ({"year": 2020}, "a"),
        ({"year": 2020.0}, "a"),
        ({"year": "2020"}, ""),
        ({"year": "2021"}, "c"),
        ({"draft": True}, "a"),
        ({"draft": 1}, "c"),
        ({"draft": False}, "b"),
        ({"lang": None}, "cd"),
        ({"lang": {"$ne": None}}, "ab"),
        ({"lang": {"$ne": "en"}}, "bcd"),
        ({"year": {"$ne": 2020}}, "bcd"),
        ({"lang": {"$in": ["en", "de", 3]}}, "ab"),
        ({"lang": {"$in": ["en", None]}}, "acd"),
        ({"lang": {"$in": []}}, ""),
        ({"lang": {"$nin": ["en", "de"]}}, "cd"),
        ({"lang": {"$nin": []}}, "abcd"),
        ({"year": {"$gt": 2020}}, "b"),
        ({"year": {"$gte": 2020}}, "ab"),
        ({"year": {"$lt": 2021.5}}, "a"),
        ({"year": {"$lte": 2021.5}}, "ab"),
        ({"year": {"$gt": "2020"}}, "c"),
        ({"year": {"$gte": "a"}}, ""),
        ({"lang": {"$lt": "e"}}, "b"),
        ({"lang": {"$gt": 0}}, ""),
        ({"draft": {"$gt": False}}, "a"),
        ({"ratio": {"$gt": 0, "$lt": 1}}, "a"),
        ({"lang": {"$exists": True}}, "abc"),
        ({"lang": {"$exists": False}}, "d"),
        ({"tags": "x"}, "ac"),
        ({"tags": {"$ne": "x"}}, "bd"),
        ({"tags": {"$in": ["y", "z"]}}, "a"),
        ({"tags": None}, "d"),
        ({"in.shelf": 3}, "a"),
        ({"in.shelf": {"$exists": True}}, "ab"),
        ({"in": 3}, ""),
        ({"in": {"$ne": 3}}, "abcd"),
        ({"source": "a"}, "a"),
        ({"source": {"$in": ["a", "b"]}}, "ab"),
        ({"position": {"$gte": 2}}, "cd"),
        ({"$and": [{"lang": "en"}, {"year": 2020}]}, "a"),
        ({"$or": [{"lang": "en"}, {"lang": "de"}]}, "ab"),
        ({"$not": {"lang": "en"}}, "bcd"),
        ({"$not": {"$or": [{"lang": "en"}, {"year": {"$exists": False}}]}}, "bc"),
        ({"year": {"$not": {"$gt": 2020}}}, "acd"),
        ({"lang": "en", "year": 2021.5}, ""),
        ({"$or": [{"source": "d"}], "$and": [{"$not": {"source": "a"}}]}, "d"),
        ({"lang": "en' or '1'='1"}, ""),
        ({"odd": "a\0b'\"; drop table documents; --"}, "d"),
        ({"odd": "a"}, ""),
        ({"user_id": "bob"}, ""),
        ({"text": "plum"}, ""),
    ],
)
async def test_a_filter_keeps_what_it_describes(store: Store, filter: dict[str, Any], expected: str) -> None:
    for position, (name, metadata) in enumerate(LIBRARY.items()):
        await put(store, chunk(name, "plum", metadata=metadata, position=position))

    for weight in (0, 0.5, 1):
        assert await found(store, "plum", weight=weight, filter=filter) == list(expected), weight


async def test_a_filter_works_inside_the_search(store: Store) -> None:
    """Rows that the filter drops don't use up candidates: the one that is left is the worst of 600."""
    crowd = [chunk(f"{n:03}", "plum", EAST, source="s", metadata={"kind": "crowd"}) for n in range(599)]
    text = "plum " + "and much else " * 50
    await store.replace_source("ann", DEFAULT_COLLECTION, "s", crowd)
    await put(store, chunk("rare", text, WEST, metadata={"kind": "rare"}))

    for weight in (0, 0.5, 1):
        (hit,) = await search(store, "plum", weight=weight, filter={"kind": "rare"}, limit=1)
        assert (hit.id, hit.score) == ("rare", 1)


@pytest.mark.parametrize(
    ("filter", "reason"),
    [
        ({"$where": "sleep(1)"}, "operator '$where' isn't allowed; use one of"),
        ({"year": {"$regex": ".*"}}, "operator '$regex' isn't allowed"),
        ({"metadata') or 1=1 --": 1}, "field name"),
        ({'a"."b': 1}, "field name"),
        ({"a": [1]}, "$in"),
    ],
)
async def test_a_filter_that_isnt_allowed_is_rejected(store: Store, filter: dict[str, Any], reason: str) -> None:
    with fails("rejected", "filter: ", reason):
        await search(store, filter=filter)


# Sources and collections


async def test_a_source_is_replaced_as_a_whole(store: Store) -> None:
    old = [chunk(f"old{n}", "plum", source="s", position=n, content_hash="1") for n in range(3)]
    new = [chunk("new0", "cherry", source="s", content_hash="2")]
    await put(store, chunk("other", "plum", NORTH))
    assert await store.source_hash("ann", DEFAULT_COLLECTION, "s") is None

    await store.replace_source("ann", DEFAULT_COLLECTION, "s", old)
    assert await store.source_hash("ann", DEFAULT_COLLECTION, "s") == "1"
    assert sorted(await found(store, "plum")) == ["old0", "old1", "old2", "other"]

    await store.replace_source("ann", DEFAULT_COLLECTION, "s", new)
    assert await store.source_hash("ann", DEFAULT_COLLECTION, "s") == "2"
    assert await found(store, weight=1) == ["new0", "other"]
    assert await found(store, "plum", weight=0) == ["other"]
    assert await found(store, "cherry", weight=0) == ["new0"]


async def test_replacing_a_source_again_changes_nothing(store: Store) -> None:
    chunks = [chunk(f"{n}", f"plum {n}", pack_vector([1, n, 0, 0]), source="s", position=n) for n in range(3)]
    await store.replace_source("ann", DEFAULT_COLLECTION, "s", chunks)
    before = await search(store, "plum 2")

    await store.replace_source("ann", DEFAULT_COLLECTION, "s", chunks)

    assert await search(store, "plum 2") == before


async def test_a_source_replaced_by_nothing_is_gone(store: Store) -> None:
    await put(store, chunk("a", "plum", collection="notes"))
    await store.replace_source("ann", "notes", "a", [])

    assert await store.source_hash("ann", "notes", "a") is None
    assert await store.collections("ann") == []
    with fails("rejected", "collection 'notes' doesn't exist for this user"):
        await search(store, "plum", collection="notes")


async def test_a_replacement_that_fails_leaves_the_old_source(store: Store) -> None:
    await put(store, chunk("a", "plum", source="s"), chunk("b", "plum", source="t"))
    before = await search(store, "plum")

    twice = [chunk("new", "cherry", source="s"), chunk("new", "cherry", source="s")]
    taken = [chunk("new", "cherry", source="s"), chunk("b", "cherry", source="s")]
    unfit = [chunk("new", "cherry", source="s"), chunk("c", "cherry", source="s", metadata={"when": NOON})]
    foreign = [chunk("new", "cherry", source="s", user_id="bob")]
    for chunks in (twice, taken, unfit, foreign):
        with fails("rejected"):
            await store.replace_source("ann", DEFAULT_COLLECTION, "s", chunks)
        assert await search(store, "plum") == before
        assert await found(store, "cherry", weight=0) == []


async def test_searches_never_see_a_replacement_halfway(store: Store, engine: Engine) -> None:
    def version(number: int) -> list[Chunk]:
        metadata = {"version": number}
        return [chunk(f"{number}.{n}", f"plum {n}", source="s", position=n, metadata=metadata) for n in range(8)]

    reader = engine.store()
    await reader.open(MODEL)
    await store.replace_source("ann", DEFAULT_COLLECTION, "s", version(0))
    replaced = asyncio.Event()
    seen: set[int] = set()

    async def replace() -> None:
        try:
            for number in range(1, 40):
                await store.replace_source("ann", DEFAULT_COLLECTION, "s", version(number))
        finally:
            replaced.set()

    async def look(weight: float) -> None:
        while not replaced.is_set():
            hits = await search(reader, "plum", weight=weight)
            assert sorted(hit.metadata["position"] for hit in hits) == list(range(8))
            (number,) = {hit.metadata["version"] for hit in hits}
            seen.add(number)

    await asyncio.gather(replace(), look(0), look(0.5), look(1))
    await reader.close()
    assert len(seen) > 1


async def test_collections_are_searched_apart(store: Store) -> None:
    await put(store, chunk("a", "plum", collection="notes"), chunk("b", "plum", collection="books"), chunk("c", "plum"))

    assert await store.collections("ann") == ["books", DEFAULT_COLLECTION, "notes"]
    assert await found(store, "plum") == ["c"]
    assert await found(store, "plum", collection="notes") == ["a"]
    assert await store.source_hash("ann", "notes", "b") is None
    with fails("rejected", "collection 'note' doesn't exist for this user; theirs are: books, documents, notes"):
        await search(store, "plum", collection="note")


async def test_the_default_collection_may_be_empty(store: Store) -> None:
    assert await found(store, "plum") == []


# Tenants


async def test_one_user_never_sees_anothers_documents(store: Store) -> None:
    for user in ("ann", "bob"):
        for collection in (DEFAULT_COLLECTION, "notes"):
            await put(store, chunk(f"{user} {collection}", "plum", user_id=user, collection=collection, source="s"))
    await put(store, chunk("secret", "plum", user_id="bob", collection="secrets"))

    for weight in (0, 0.5, 1):
        assert await found(store, "plum", weight=weight) == [f"ann {DEFAULT_COLLECTION}"]
        assert await found(store, "plum", weight=weight, collection="notes") == ["ann notes"]
        assert await found(store, "plum", weight=weight, filter={"source": "s"}) == [f"ann {DEFAULT_COLLECTION}"]
    assert await store.collections("ann") == [DEFAULT_COLLECTION, "notes"]
    assert await store.source_hash("ann", "secrets", "secret") is None
    with fails("rejected", "theirs are: documents, notes"):
        await search(store, "plum", collection="secrets")
    with fails("rejected", "they have none"):
        await search(store, "plum", user_id="eve", collection="secrets")

    await store.replace_source("ann", "notes", "s", [])
    assert await found(store, "plum", user_id="bob", collection="notes") == ["bob notes"]


async def test_a_users_name_and_collection_cant_be_shifted_into_anothers(store: Store) -> None:
    await put(store, chunk("a", "plum", user_id="ann", collection="x y"), chunk("b", "plum", user_id="ann x"))
    await put(store, chunk("c", "plum", user_id="ann x", collection="y"))

    assert await found(store, "plum", user_id="ann", collection="x y") == ["a"]
    assert await found(store, "plum", user_id="ann x", collection="y") == ["c"]


async def test_one_user_never_takes_over_anothers_record(store: Store) -> None:
    await put(store, chunk("a", "plum", user_id="bob"))
    await store.put_message(message("m", "plum", user="bob"))
    await form(store, memory("n", user_id="bob"), 0.9)
    await store.put_cache_entry(entry("e", "h", user_id="bob"))

    with fails("rejected", "id already belongs"):
        await put(store, chunk("a", "cherry"))
    with fails("rejected", "id already belongs"):
        await store.put_message(message("m", "cherry"))
    with fails("rejected", "id already belongs"):
        await form(store, memory("n", source_messages=["ann's"]), 0.9)
    with fails("rejected", "id already belongs"):
        await store.put_cache_entry(entry("e", "h"))

    assert [hit.text for hit in await search(store, "plum cherry", user_id="bob")] == ["plum"]
    recollection = await store.recall(retrieval("plum", user_id="bob"))
    assert [one.text for one in recollection.related_conversation] == ["plum"]
    assert [one.memory_id for one in recollection.similar_memories] == ["n"]
    assert await store.cached_answer("bob", "h", NOON) == entry("e", "h", user_id="bob")
    assert await found(store, "plum cherry") == []
    nothing = await store.recall(retrieval("plum"))
    assert (nothing.related_conversation, nothing.similar_memories) == ([], [])


async def test_one_user_never_recalls_anothers_past(store: Store) -> None:
    for user in ("ann", "bob"):
        for minute in range(3):
            await store.put_message(message(f"{user}{minute}", f"plum {user}", minute=minute, user=user))
        node = memory(f"memory of {user}", user_id=user, source_messages=[f"{user}0"])
        formed = await store.form_memory(node, 0.5)
        assert (formed.memory_id, formed.reinforced) == (f"memory of {user}", False)

    recollection = await store.recall(retrieval("plum", user_id="ann"))

    assert [one.message_id for one in recollection.related_conversation] == ["ann2", "ann1", "ann0"]
    for one in recollection.related_conversation:
        assert {near.text for near in (*one.before, *one.after)} == {"plum ann"}
    assert [one.memory_id for one in recollection.similar_memories] == ["memory of ann"]
    assert await store.prune_memories("ann", 0, NOON) == 1
    recollection = await store.recall(retrieval("plum", user_id="bob"))
    assert [(one.memory_id, one.access_count) for one in recollection.similar_memories] == [("memory of bob", 1)]


async def test_one_user_never_gets_anothers_cached_answer(store: Store) -> None:
    for user in ("ann", "bob"):
        await store.put_cache_entry(entry(f"{user}'s", "h", user_id=user))
    await store.put_cache_entry(entry("bob's other", "other", NORTH, user_id="bob"))

    answer = await store.cached_answer("ann", "h", NOON)
    assert answer is not None
    assert answer.entry_id == "ann's"
    assert await store.cached_answer("ann", "other", NOON) is None
    (match,) = await store.nearest_cached("ann", NORTH, NOON)
    assert (match.entry.entry_id, match.similarity) == ("ann's", 0)
    assert await store.nearest_cached("eve", EAST, NOON) == []


# Conversations


async def test_a_related_message_comes_with_its_neighbours(store: Store) -> None:
    for minute in range(7):
        await store.put_message(message(f"m{minute}", f"text {minute}", NORTH, minute))
    await store.put_message(message("m3", "plum", EAST, 3))
    for minute in (2, 4):
        await store.put_message(message(f"other{minute}", "elsewhere", WEST, minute, conversation="d"))

    recollection = await store.recall(retrieval("plum", limit=1))

    (one,) = recollection.related_conversation
    assert (one.message_id, one.conversation_id, one.message_type, one.text) == ("m3", "c", "human", "plum")
    assert (one.timestamp, one.score) == (NOON + timedelta(minutes=3), 1 / BEST)
    assert [near.text for near in one.before] == ["text 1", "text 2"]
    assert [near.text for near in one.after] == ["text 4", "text 5"]
    assert one.after[0].timestamp == NOON + timedelta(minutes=4)


async def test_another_number_is_another_fact(store: Store) -> None:
    third = memory("third", content="My son was born on 3 March 2015.")
    fifth = memory("fifth", content="My son was born on 5 March 2015.")
    again = memory("again", content="On 3 March 2015 my son was born.")

    await form(store, third, 0.9)
    formed = await form(store, fifth, 0.9)
    assert (formed.memory_id, formed.reinforced) == ("fifth", False)
    await store.prune_memories("ann", 2, NOON)
    assert len((await store.recall(retrieval())).similar_memories) == 2
    only_third = memory("other", WEST, content="My son was born on 3 March 2015.")
    await form(store, only_third, 0.9)
    formed = await form(store, again.model_copy(update={"embedding": WEST}), 0.9)
    assert (formed.memory_id, formed.reinforced) == ("other", True)


async def test_neighbours_of_the_same_moment_keep_the_order_of_storing(store: Store) -> None:
    for name in ("d", "a", "b", "c", "a"):
        await store.put_message(message(name, f"text {name}", EAST if name == "b" else WEST))

    recollection = await store.recall(retrieval("", limit=1))

    (one,) = recollection.related_conversation
    assert [near.text for near in one.before] == ["text d", "text a"]
    assert [near.text for near in one.after] == ["text c"]


async def test_messages_are_ranked_by_what_vectors_and_keywords_say(store: Store) -> None:
    await store.put_message(message("a", "plum", NORTH))
    await store.put_message(message("b", "cherry", EAST, conversation="d"))
    await store.put_message(message("c", "pear", NORTH_EAST, conversation="e"))

    recollection = await store.recall(retrieval("plum"))

    # Each alone in its conversation: both of the searches by vector find it alike, and both of those by keyword.
    assert [(one.message_id, pytest.approx(one.score, abs=1e-6)) for one in recollection.related_conversation] == [
        ("a", 0.5 / BEST),
        ("b", 0.5 / BEST),
        ("c", 0.5**0.5 / 2 / BEST),
    ]


async def test_storing_a_message_again_changes_nothing(store: Store) -> None:
    for _ in range(3):
        await store.put_message(message("m", "plum"))
    recollection = await store.recall(retrieval("plum"))
    assert [one.message_id for one in recollection.related_conversation] == ["m"]
    assert recollection.related_conversation[0].before == recollection.related_conversation[0].after == []


async def test_a_message_stored_anew_under_its_id_is_found_by_its_new_text(store: Store) -> None:
    await store.put_message(message("m", "plum", NORTH))
    await store.put_message(message("m", "cherry", EAST, minute=5))

    (one,) = (await store.recall(retrieval("cherry"))).related_conversation
    assert (one.text, one.score, one.timestamp) == ("cherry", 1 / BEST, NOON + timedelta(minutes=5))
    (one,) = (await store.recall(retrieval("plum"))).related_conversation
    assert one.score == 0.5 / BEST


async def test_a_message_is_read_as_it_was_stored_by_its_user_alone(store: Store) -> None:
    for one in (message("m", "plum", NORTH, minute=3), message("z", "cherry", NOWHERE)):
        await store.put_message(one)
        assert await store.read_message("ann", one.message_id) == one

    assert await store.read_message("bob", "m") is None
    assert await store.read_message("ann", "n") is None


async def test_times_are_kept_to_the_microsecond(store: Store) -> None:
    moment = datetime.fromisoformat("2025-06-01T02:03:04.567891+05:30")
    for number, timestamp in enumerate((moment, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))):
        await store.put_message(message(f"{number}", "plum").model_copy(update={"timestamp": timestamp}))
        related = (await store.recall(retrieval("plum"))).related_conversation
        (one,) = [one for one in related if one.message_id == f"{number}"]
        assert one.timestamp == timestamp
        assert one.timestamp.utcoffset() == timedelta(0)


# Memories


async def test_a_memory_is_formed_once_for_its_message(store: Store) -> None:
    node = memory("n", source_messages=["m1"])
    for again in (node, node, memory("another", NORTH, source_messages=["m1"])):
        formed = await form(store, again, 0.9)
        assert (formed.memory_id, formed.reinforced) == ("n", False)

    (one,) = (await store.recall(retrieval())).similar_memories
    assert one.model_dump() == {
        "memory_id": "n",
        "content": "content of n",
        "summary": "summary of n",
        "importance": 0.5,
        "strength": pytest.approx(strength(NOON, NOON, 0, NOON)),
        "access_count": 1,
        "created_at": NOON,
        "last_accessed_at": NOON,
        "pinned": False,
        "level": 0,
        "children": [],
        "source_messages": ["m1"],
        "similarity": 1.0,
        "score": pytest.approx(score(1, 0.5, 1, one.strength)),
    }


async def test_a_near_duplicate_reinforces_a_memory_once(store: Store) -> None:
    await form(store, memory("n", importance=0.5, source_messages=["m1"]), 0.7)
    said_again = memory("x", NORTH_EAST, 0.6, content="Content of N!", source_messages=["m2", "m3", "m2"])
    for _ in range(3):
        formed = await form(store, said_again, 0.7)
        assert (formed.memory_id, formed.reinforced) == ("n", True)
    formed = await form(store, memory("n", source_messages=["m1"]), 0.7)
    assert (formed.memory_id, formed.reinforced) == ("n", False)

    (one,) = (await store.recall(retrieval())).similar_memories
    assert one.importance == pytest.approx(0.5 + 0.5 * 0.6 / 2)
    assert one.access_count == 2
    assert one.source_messages == ["m1", "m2", "m3"]
    assert one.content == "content of n"


async def test_the_threshold_parts_new_memories_from_known_ones(store: Store) -> None:
    await form(store, memory("n", content="the same"), 1.0)

    below = await form(store, memory("below", NORTH_EAST, content="the same"), 0.7072)
    reached = await form(store, memory("reached", EAST, content="the same"), 1.0)

    assert (below.memory_id, below.reinforced) == ("below", False)
    assert (reached.memory_id, reached.reinforced) == ("n", True)


async def test_the_nearest_memory_is_the_one_reinforced(store: Store) -> None:
    await form(store, memory("east", content="the same"), 2.0)
    await form(store, memory("north-east", NORTH_EAST, content="the same"), 2.0)

    formed = await form(store, memory("x", pack_vector([1, 0.9, 0, 0]), content="the same"), 0.5)

    assert (formed.memory_id, formed.reinforced) == ("north-east", True)


async def test_a_memory_without_direction_is_kept_apart(store: Store) -> None:
    for name in ("n1", "n2"):
        assert not (await form(store, memory(name, NOWHERE), -1.0)).reinforced
    assert (await store.recall(retrieval())).similar_memories == []
    assert await store.prune_memories("ann", 1, NOON) == 1


async def test_a_memory_forms_only_of_messages_that_the_user_has(store: Store) -> None:
    await store.put_message(message("m", "plum"))
    await store.put_message(message("bob's", "plum", user="bob"))

    for sources in (["gone"], ["m", "gone"], ["bob's"]):
        formed = await store.form_memory(memory("n", source_messages=sources), 0.9)
        assert (formed.memory_id, formed.reinforced) == (None, False)
    assert (await store.recall(retrieval())).similar_memories == []
    assert (await store.form_memory(memory("n", source_messages=["m"]), 0.9)).memory_id == "n"
    formed = await store.form_memory(memory("again", source_messages=["gone"]), 0.9)
    assert (formed.memory_id, formed.reinforced) == (None, False)
    (one,) = (await store.recall(retrieval())).similar_memories
    assert (one.access_count, one.source_messages) == (1, ["m"])


async def test_a_memory_needs_a_source(store: Store) -> None:
    with fails("rejected", "source message"):
        await form(store, memory("n", source_messages=[]), 0.9)


async def test_memories_are_ranked_by_cosine_up_to_the_limit(store: Store) -> None:
    for name, embedding in (("far", WEST), ("b", EAST), ("mid", NORTH_EAST), ("a", EAST)):
        await form(store, memory(name, embedding), 2.0)

    similar = (await store.recall(retrieval())).similar_memories
    assert [one.memory_id for one in similar] == ["a", "b", "mid", "far"]
    assert [one.similarity for one in similar] == pytest.approx([1, 1, sqrt(0.5), -1], abs=1e-6)
    similar = (await store.recall(retrieval(limit=2))).similar_memories
    assert [one.memory_id for one in similar] == ["a", "b"]


async def test_a_retrieval_counts_once_however_often_it_runs(store: Store) -> None:
    await form(store, memory("near"), 2.0)
    await form(store, memory("far", WEST), 2.0)

    async def counts(retrieval_id: str, limit: int = 10) -> list[int]:
        query = retrieval(retrieval_id=retrieval_id, limit=limit)
        return [one.access_count for one in (await store.recall(query)).similar_memories]

    assert await counts("r1") == [1, 1]
    assert await counts("r1") == [1, 1]
    assert await counts("r2", limit=1) == [2]
    assert await counts("r1") == [2, 1]
    assert await asyncio.gather(*(counts("r3") for _ in range(5))) == [[3, 2]] * 5


async def test_the_weakest_memories_are_forgotten_first(store: Store) -> None:
    for name, importance, days, embedding in (
        ("often recalled", 0.4, 30, EAST),
        ("newer", 0.5, 28, NORTH),
        ("older", 0.5, 29, WEST),
        ("strong", 0.9, 30, NORTH_EAST),
    ):
        created_at = NOON - timedelta(days=days)
        await form(store, memory(name, embedding, importance, created_at=created_at), 2.0)
    for number in range(3):
        await store.recall(retrieval(retrieval_id=f"{number}", limit=1))

    async def left() -> set[str]:
        memories, _ = await store.list_memories(ListMemoriesParams(user_id="ann"), NOON)
        return {one.memory_id for one in memories}

    assert await store.prune_memories("ann", 4, NOON) == 0
    assert await store.prune_memories("bob", 0, NOON) == 0
    assert await store.prune_memories("ann", 3, NOON) == 1
    assert await left() == {"often recalled", "newer", "strong"}
    assert await store.prune_memories("ann", 2, NOON) == 1
    assert await left() == {"often recalled", "strong"}
    assert await store.prune_memories("ann", 0, NOON) == 2
    assert await left() == set()


async def test_what_was_forgotten_can_be_learnt_again(store: Store) -> None:
    await form(store, memory("n", source_messages=["m"]), 0.9)
    await store.prune_memories("ann", 0, NOON)

    formed = await form(store, memory("n", source_messages=["m"]), 0.9)

    assert (formed.memory_id, formed.reinforced) == ("n", False)
    (one,) = (await store.recall(retrieval())).similar_memories
    assert (one.access_count, one.source_messages) == (1, ["m"])


async def test_a_retrieval_out_of_range_is_rejected(store: Store) -> None:
    with fails("rejected", "limit"):
        await store.recall(retrieval(limit=0))


# Semantic cache


async def test_a_cached_answer_is_given_until_it_expires(store: Store) -> None:
    stored = entry("e", "h", minutes=10)
    await store.put_cache_entry(stored)
    last, expiry = stored.expires_at - timedelta(microseconds=1), stored.expires_at

    assert await store.cached_answer("ann", "h", last) == stored
    (match,) = await store.nearest_cached("ann", EAST, last)
    assert (match.entry, match.similarity) == (stored, 1)
    assert await store.cached_answer("ann", "h", expiry) is None
    assert await store.nearest_cached("ann", EAST, expiry) == []


async def test_expired_entries_never_hide_the_nearest_valid_one(store: Store) -> None:
    for number in range(100):
        await store.put_cache_entry(entry(f"old{number}", f"h{number}", EAST, minutes=1))
    await store.put_cache_entry(entry("valid", "valid", WEST, minutes=60))

    (match,) = await store.nearest_cached("ann", EAST, NOON + timedelta(minutes=30))

    assert (match.entry.entry_id, match.similarity) == ("valid", -1)


async def test_expired_entries_are_purged(store: Store) -> None:
    for minutes in (1, 2, 3):
        await store.put_cache_entry(entry(f"e{minutes}", f"h{minutes}", minutes=minutes))
    now = NOON + timedelta(minutes=2, seconds=30)

    assert await store.purge_expired(now) == 2
    assert await store.purge_expired(now) == 0
    assert await store.cached_answer("ann", "h1", NOON) is None
    (match,) = await store.nearest_cached("ann", EAST, NOON)
    assert match.entry.entry_id == "e3"


async def test_a_newer_answer_replaces_an_older_one(store: Store) -> None:
    older = entry("older", "h", EAST)
    newer = entry("newer", "h", NORTH, created_at=NOON + timedelta(minutes=1))
    as_new = entry("as new", "h", WEST, created_at=newer.created_at)
    for sequence in ((older, as_new, newer), (newer, older), (older, older, newer, newer, older)):
        for one in sequence:
            await store.put_cache_entry(one)
        assert await store.cached_answer("ann", "h", NOON) == newer
        (match,) = await store.nearest_cached("ann", EAST, NOON)
        assert (match.entry, match.similarity) == (newer, 0)


async def test_a_query_without_direction_is_cached_for_itself_alone(store: Store) -> None:
    stored = entry("e", "h", NOWHERE)
    await store.put_cache_entry(stored)

    assert await store.cached_answer("ann", "h", NOON) == stored
    assert await store.nearest_cached("ann", EAST, NOON) == []
    await store.put_cache_entry(entry("f", "i", EAST))
    assert await store.nearest_cached("ann", NOWHERE, NOON) == []


async def test_the_nearest_queries_come_best_first_and_a_bounded_number_of_them(store: Store) -> None:
    near, far = pack_vector([3, 1, 0, 0]), NORTH_EAST
    for name, vector in (("far", far), ("exact", EAST), ("near", near), ("opposite", WEST)):
        await store.put_cache_entry(entry(name, name, vector))

    matches = await store.nearest_cached("ann", EAST, NOON)

    assert [match.entry.entry_id for match in matches] == ["exact", "near", "far", "opposite"]
    for number in range(2 * CACHE_CANDIDATES):
        await store.put_cache_entry(entry(f"many{number}", f"many{number}", NORTH))
    assert len(await store.nearest_cached("ann", EAST, NOON)) == CACHE_CANDIDATES


SCOPES = [
    CacheScope(),
    CacheScope(namespace="work"),
    CacheScope(model="work"),
    CacheScope(namespace="work", model="large"),
    CacheScope(namespace="play", model="large"),
]


async def scoped(store: Store, user: str = "ann", query_hash: str = "h") -> list[CacheEntry]:
    """The same query stored once in each scope."""
    entries = [
        entry(f"{user}-{query_hash}-{number}", query_hash, user_id=user, **scope.model_dump())
        for number, scope in enumerate(SCOPES)
    ]
    for one in entries:
        await store.put_cache_entry(one)
    return entries


async def test_an_answer_is_found_in_its_own_scope_alone(store: Store) -> None:
    entries = await scoped(store)

    for scope, one in zip(SCOPES, entries, strict=True):
        assert await store.cached_answer("ann", "h", NOON, scope) == one
        assert [match.entry for match in await store.nearest_cached("ann", EAST, NOON, scope)] == [one]
    elsewhere = CacheScope(namespace="large", model="work")
    assert await store.cached_answer("ann", "h", NOON, elsewhere) is None
    assert await store.nearest_cached("ann", EAST, NOON, elsewhere) == []


async def test_entries_of_other_scopes_never_hide_the_nearest_one(store: Store) -> None:
    for number in range(3 * CACHE_CANDIDATES):
        await store.put_cache_entry(entry(f"e{number}", f"h{number}", EAST, namespace="work"))
    await store.put_cache_entry(entry("mine", "h", WEST))

    (match,) = await store.nearest_cached("ann", EAST, NOON)

    assert match.entry.entry_id == "mine"


async def test_the_same_query_is_overwritten_in_its_scope_alone(store: Store) -> None:
    entries = await scoped(store)
    later = entry("later", "h", created_at=NOON + timedelta(minutes=1), response="new", **SCOPES[1].model_dump())

    await store.put_cache_entry(later)

    kept = [await store.cached_answer("ann", "h", NOON, scope) for scope in SCOPES]
    assert kept == [entries[0], later, *entries[2:]]


@pytest.mark.parametrize(
    ("query_hash", "namespace", "model", "removed"),
    [
        ("h", None, None, ["h0", "h1", "h2", "h3", "h4"]),
        ("h", "work", None, ["h1", "h3"]),
        ("h", "work", "large", ["h3"]),
        ("h", "", "", ["h0"]),
        (None, "work", None, ["h1", "h3", "i1", "i3"]),
        (None, None, "large", ["h3", "h4", "i3", "i4"]),
        (None, "none", None, []),
        (None, None, None, ["h0", "h1", "h2", "h3", "h4", "i0", "i1", "i2", "i3", "i4"]),
    ],
)
async def test_invalidation_removes_what_everything_given_fits(
    store: Store, query_hash: str | None, namespace: str | None, model: str | None, removed: list[str]
) -> None:
    for name in ("h", "i"):
        await scoped(store, query_hash=name)
    others = await scoped(store, "bob")

    assert await store.invalidate_cached("ann", query_hash, namespace, model) == len(removed)
    assert await store.invalidate_cached("ann", query_hash, namespace, model) == 0

    gone = [
        f"{name}{number}"
        for name in ("h", "i")
        for number, scope in enumerate(SCOPES)
        if await store.cached_answer("ann", name, NOON, scope) is None
    ]
    assert gone == removed
    for number, scope in enumerate(SCOPES):
        left = {match.entry.entry_id for match in await store.nearest_cached("ann", EAST, NOON, scope)}
        assert left == {f"ann-{name}-{number}" for name in ("h", "i") if f"{name}{number}" not in removed}
    assert [await store.cached_answer("bob", "h", NOON, scope) for scope in SCOPES] == others


# Opening


async def test_a_store_answers_only_while_it_is_open(engine: Engine) -> None:
    store = engine.store()
    await store.close()
    with fails("unavailable", "isn't open"):
        await store.collections("ann")
    await store.open(MODEL)
    await store.open(MODEL)
    assert engine.name in (await store.ping()).lower()
    await put(store, chunk("a", "plum"))
    await store.close()
    await store.close()
    with fails("unavailable", "isn't open"):
        await store.ping()
    with fails("unavailable", "isn't open"):
        await search(store)
    await store.open(MODEL)
    assert await found(store, "plum") == ["a"]
    await store.close()


# A memory is never there without its messages.
FILLERS: dict[str, Callable[[Store], Any]] = {
    "documents": lambda store: put(store, chunk("a", "plum")),
    "conversations": lambda store: store.put_message(message("m", "plum")),
    "cache": lambda store: store.put_cache_entry(entry("e", "h")),
}


@pytest.mark.parametrize("collection", FILLERS)
@pytest.mark.parametrize(("model_id", "dimensions"), [("other", 4), ("local.test", 8)])
async def test_records_of_another_model_arent_opened(
    store: Store, engine: Engine, collection: str, model_id: str, dimensions: int
) -> None:
    await FILLERS[collection](store)

    second = engine.store()
    with fails(
        "model_mismatch",
        f"collection '{collection}'",
        "local.test (4 dimensions)",
        f"{model_id} ({dimensions} dimensions)",
        "EMBEDDING_MODEL_ID",
    ):
        await second.open(EmbeddingModel(model_id=model_id, dimensions=dimensions))
    with fails("unavailable", "isn't open"):
        await second.collections("ann")
    await second.open(MODEL)
    await second.close()


async def test_an_empty_store_takes_another_model(store: Store, engine: Engine) -> None:
    second, other = engine.store(), EmbeddingModel(model_id="other", dimensions=2)
    await engine.prepare(other)
    await second.open(other)
    await put(second, chunk("a", "plum", pack_vector([1, 0])))
    assert await found(second, embedding=pack_vector([1, 0])) == ["a"]
    await second.close()

    with fails("model_mismatch", "other (2 dimensions)", "local.test (4 dimensions)"):
        await put(store, chunk("b", "plum"))


# Several writers


async def test_writes_at_once_are_all_kept(store: Store, engine: Engine) -> None:
    second = engine.store()
    await second.open(MODEL)
    stores = (store, second)
    await asyncio.gather(
        *(stores[n % 2].put_message(message(f"m{n:02}", f"plum {n}", minute=n)) for n in range(60)),
        *(put(stores[n % 2], chunk(f"c{n:02}", "plum")) for n in range(60)),
        *(form(stores[n % 2], memory(f"n{n}", content="the same", source_messages=[f"s{n}"]), 0.9) for n in range(20)),
        *(stores[n % 2].put_cache_entry(entry(f"e{n}", f"h{n}")) for n in range(20)),
    )
    await second.close()

    recollection = await store.recall(retrieval("plum", limit=100))
    assert len(recollection.related_conversation) == 60
    (one,) = recollection.similar_memories
    assert one.access_count == 20
    assert sorted(one.source_messages) == sorted(f"s{n}" for n in range(20))
    assert await found(store, "plum", limit=100) == [f"c{n:02}" for n in range(60)]


async def test_writes_from_several_processes_are_all_kept(engine: Engine) -> None:
    with processes("write", 4, engine) as writers:
        for writer in writers:
            writer.tell("go")
        for writer in writers:
            assert writer.hear() == "written"

    store = engine.store()
    await store.open(MODEL)
    recollection = await store.recall(retrieval("plum", limit=1000))
    ids = [f"{writer}.{n:02}" for writer in range(4) for n in range(25)]
    assert sorted(one.message_id for one in recollection.related_conversation) == ids
    assert sorted(await found(store, "plum", limit=1000)) == ids
    (one,) = recollection.similar_memories
    assert one.access_count == 100
    assert sorted(one.source_messages) == ids
    answer = await store.cached_answer("ann", "shared", NOON)
    assert answer is not None
    assert answer.created_at == NOON + timedelta(minutes=24)
    await store.close()


async def test_processes_that_open_a_new_store_at_once_all_succeed(engine: Engine) -> None:
    with processes("open", 3, engine) as openers:
        for number in range(15):
            for opener in openers:
                opener.tell(f"{engine.target}{number}")
            for opener in openers:
                assert opener.hear() == "opened"


# The embedded store alone


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "data" / "store.db"


async def opened(file: Path, **options: Any) -> SqliteStore:
    store = SqliteStore(file, **options)
    await store.open(MODEL)
    return store


async def test_the_file_is_its_owners_alone(file: Path) -> None:
    store = await opened(file)
    await put(store, chunk("a", "plum"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    await store.close()
    assert [path.name for path in file.parent.iterdir()] == ["store.db"]


async def test_a_file_locked_by_another_process_is_unavailable_until_it_is_free(file: Path) -> None:
    store = await opened(file, busy_timeout=0.05)
    await put(store, chunk("a", "plum"))

    with processes("lock", 1, Engine("sqlite", str(file))) as (holder,):
        holder.tell("lock")
        assert holder.hear() == "locked"
        for write in (
            put(store, chunk("b", "plum")),
            store.put_message(message("m")),
            store.form_memory(memory("n"), 0.9),
            store.put_cache_entry(entry("e", "h")),
            store.purge_expired(NOON),
            SqliteStore(file, busy_timeout=0.05).open(MODEL),
        ):
            with fails("unavailable", "locked by another process", "retried", str(file)):
                await write
        assert await found(store, "plum") == ["a"]
        holder.tell("release")
        assert holder.hear() == "released"

    await put(store, chunk("b", "plum"))
    assert await found(store, "plum") == ["a", "b"]
    await store.close()


async def test_what_is_deleted_leaves_nothing_in_the_file(file: Path) -> None:
    store = await opened(file)
    secret = pack_vector([0.123, 0.456, 0.789, 0.321])
    await put(store, chunk("kept", "plum"))
    await put(store, chunk("c", "zyzzyva document", secret, metadata={"note": "zyzzyva"}))
    await form(store, memory("n", secret, content="zyzzyva", summary="zyzzyva", source_messages=["m"]), 2.0)
    await store.put_cache_entry(entry("e", "h", secret, query="zyzzyva", response="zyzzyva"))
    await store.put_message(message("m", "zyzzyva", secret))

    await store.remove_source("ann", DEFAULT_COLLECTION, "c")
    await store.prune_memories("ann", 0, NOON)
    await store.purge_expired(NOON + timedelta(days=1))
    await store.put_message(message("m", "plum"))
    await store.close()

    content = file.read_bytes()
    assert b"plum" in content
    assert EAST in content
    assert b"zyzzyva" not in content
    assert secret not in content
    rows = rows_of(file)
    assert {name: rows[name] for name in ("documents", "documents_vectors", "documents_text_docsize")} == {
        "documents": 1,
        "documents_vectors": 1,
        "documents_text_docsize": 1,
    }
    emptied = [name for name in rows if name.startswith(("memory_", "cache")) and not name.endswith("_info")]
    assert {name: rows[name] for name in emptied} == dict.fromkeys(emptied, 0)


async def test_repeated_writes_leave_no_rows_behind(file: Path) -> None:
    store = await opened(file)

    async def write() -> None:
        await store.replace_source("ann", "notes", "s", [chunk("a", "plum", collection="notes", source="s")])
        await store.put_message(message("m", "plum"))
        await form(store, memory("n"), 0.9)
        await store.put_cache_entry(entry("e", "h"))

    def rows() -> dict[str, int]:
        # How FTS5 spreads its index over segments is its own affair.
        return {name: count for name, count in rows_of(file).items() if not name.endswith(("_text_data", "_text_idx"))}

    await write()
    before = rows()
    for _ in range(5):
        await write()
    assert rows() == before
    db = apsw.Connection(str(file))
    for name in ("documents_text", "conversations_text"):
        db.execute(f"insert into {name}({name}) values('integrity-check')")
    db.close()
    await store.close()


async def test_cached_answers_of_the_second_schema_are_kept_without_a_scope(file: Path) -> None:
    store = await opened(file)
    stored = [entry("e", "h", EAST), entry("f", "i", NOWHERE), entry("g", "h", NORTH, user_id="bob")]
    for one in stored:
        await store.put_cache_entry(one)
    await store.close()
    downgrade(file)

    store = await opened(file)

    assert await store.cached_answer("ann", "h", NOON) == stored[0]
    assert await store.cached_answer("ann", "i", NOON) == stored[1]
    assert [match.entry for match in await store.nearest_cached("ann", EAST, NOON)] == [stored[0]]
    assert [match.entry for match in await store.nearest_cached("bob", EAST, NOON)] == [stored[2]]
    await store.put_cache_entry(entry("scoped", "h", namespace="work"))
    assert await store.cached_answer("ann", "h", NOON) == stored[0]
    # A vector of another model goes with its record still.
    await store.begin_reembedding(OTHER)
    await store.put_embeddings(OTHER, "cache", [RecordEmbedding(record_id="e", text=stored[0].query, embedding=EAST)])
    assert (await store.reembedding_progress(OTHER)).embedded == 1
    assert await store.invalidate_cached("ann", "h", "", "") == 1
    assert (await store.reembedding_progress(OTHER)).embedded == 0
    await store.close()


async def test_a_database_of_a_newer_version_is_refused(file: Path) -> None:
    await (await opened(file)).close()
    db = apsw.Connection(str(file))
    db.pragma("user_version", 99)
    db.close()

    with fails("rejected", "newer", "99", "DURABLE_CONTEXT_HOME"):
        await opened(file)


async def test_a_file_that_is_no_database_is_refused(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a database at all " * 500)

    with fails("rejected", "no database", str(file)):
        await opened(file)
    assert file.read_bytes().startswith(b"not a database")


async def test_a_damaged_database_is_refused(file: Path) -> None:
    store = await opened(file)
    await put(store, *(chunk(f"{n}", "plum " * 500) for n in range(20)))
    await store.close()
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))

    with fails("rejected", "damaged", str(file)):
        store = await opened(file)
        await store.collections("ann")


async def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with fails("rejected", "can't be created", "DURABLE_CONTEXT_HOME"):
        await opened(tmp_path / "file" / "store.db")
    (tmp_path / "folder").mkdir()
    with fails("rejected", "can't be opened", "DURABLE_CONTEXT_HOME"):
        await opened(tmp_path / "folder")


async def test_a_read_only_file_is_refused(file: Path) -> None:
    store = await opened(file, threads=1)
    # The same error that a file without write permission causes, which a test run by root couldn't provoke.
    await store._write(lambda db: db.pragma("query_only", True))
    with fails("rejected", "read-only", "DURABLE_CONTEXT_HOME"):
        await put(store, chunk("a", "plum"))
    await store.close()


async def test_a_full_disk_is_unavailable_and_loses_nothing(file: Path) -> None:
    store = await opened(file, threads=1)
    await put(store, chunk("a", "plum"))
    # The same error that a full disk causes, from SQLite's own limit on the size of a file.
    await store._write(lambda db: db.pragma("max_page_count", db.pragma("page_count")))
    with fails("unavailable", "full", "free some space"):
        await put(store, chunk("b", "cherry " * 100_000))
    assert await found(store, "plum cherry") == ["a"]
    await store.close()


def rows_of(file: Path) -> dict[str, int]:
    """How many rows each table of the file has, those behind the virtual ones included."""
    db = apsw.Connection(str(file))
    names = "select name from sqlite_schema where type = 'table' and sql not like 'create virtual%'"
    rows = {
        str(name): int(db.execute(f'select count(*) from "{name}"').get) for (name,) in db.execute(names).fetchall()
    }
    db.close()
    return rows


# Other processes


class Peer:
    """A process that does what it is told, a line each way at a time."""

    def __init__(self, program: str, number: int, engine: Engine) -> None:
        command = [sys.executable, "-m", __spec__.name, program, str(number), engine.name, engine.target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line: str) -> None:
        assert self._process.stdin
        print(line, file=self._process.stdin, flush=True)

    def hear(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def processes(program: Literal["write", "open", "lock"], count: int, engine: Engine) -> Iterator[list[Peer]]:
    """`count` processes that run one of `PROGRAMS` and are ready."""
    peers = [Peer(program, number, engine) for number in range(count)]
    try:
        for peer in peers:
            assert peer.hear() == "ready"
        yield peers
    finally:
        for peer in peers:
            peer.stop()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def write_records(number: int, engine: Engine) -> None:
    """Open the store when told, and write 25 records of each kind."""
    sys.stdin.readline()
    store = engine.store()
    await store.open(MODEL)
    for n in range(25):
        name = f"{number}.{n:02}"
        await store.put_message(message(name, "plum", minute=n))
        await put(store, chunk(name, "plum"))
        await store.form_memory(memory(name, content="always the same", source_messages=[name]), 0.9)
        created_at = NOON + timedelta(minutes=n)
        await store.put_cache_entry(entry(name, "shared", created_at=created_at))
    await store.close()
    say("written")


async def open_stores(number: int, engine: Engine) -> None:
    """Open each store that is named, and write to it."""
    while target := sys.stdin.readline().strip():
        store = Engine(engine.name, target).store()
        await store.open(MODEL)
        await store.put_message(message(f"{number}", "plum"))
        await store.close()
        say("opened")


async def hold_lock(number: int, engine: Engine) -> None:
    """Take the write lock of a SQLite file when told, and give it back when told."""
    sys.stdin.readline()
    db = apsw.Connection(engine.target)
    db.execute("begin immediate")
    say("locked")
    sys.stdin.readline()
    db.execute("rollback")
    say("released")
    db.close()


PROGRAMS = {"write": write_records, "open": open_stores, "lock": hold_lock}

if __name__ == "__main__":
    say("ready")
    asyncio.run(PROGRAMS[sys.argv[1]](int(sys.argv[2]), Engine(sys.argv[3], sys.argv[4])))
