"""Which queries are identical, which answers are given, and when they have expired."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from activities.bedrock import BedrockEmbeddings
from activities.cache import (
    E5_THRESHOLD,
    OTHER_THRESHOLD,
    CacheActivities,
    default_threshold,
    entry_id,
    is_hit,
    query_hash,
)
from activities.models import EMBEDDED, CacheLookup, CacheScope, DatedCacheCheck, Side
from activities.store.base import OpenedStore
from activities.store.sqlite import SqliteStore
from tests.contract.records import MODEL, NORTH, entry


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How tall is Everest?", "how  TALL is\teverest?\n"),
        ("café", "cafe\u0301"),
        ("STRASSE", "straße"),
    ],
)
def test_spelling_does_not_make_another_query(one: str, other: str) -> None:
    assert query_hash(one) == query_hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How tall is K2?", "How tall is K3?"),
        ("Is it on?", "Is it on"),
        ("2²", "22"),
        ("ab c", "a bc"),
    ],
)
def test_other_queries_are_other(one: str, other: str) -> None:
    assert query_hash(one) != query_hash(other)


def test_a_user_has_one_entry_for_a_query_in_a_scope() -> None:
    none, work, model = CacheScope(), CacheScope(namespace="work"), CacheScope(model="work")
    assert entry_id("ada", "x", none) == entry_id("ada", " X ", none)
    others = {entry_id("bob", "x", none), entry_id("ada", "y", none), entry_id("ada", "x", work)}
    assert len({entry_id("ada", "x", none), entry_id("ada", "x", model), *others}) == 5


def test_the_threshold_is_the_model_s() -> None:
    assert default_threshold("local.multilingual-e5-small") == E5_THRESHOLD
    assert default_threshold("amazon.titan-embed-text-v2:0") == OTHER_THRESHOLD


def test_a_hit_needs_both_the_cosine_and_the_words() -> None:
    assert is_hit("How tall is Everest?", "What is the height of Everest?", 0.9, 0.9)
    assert not is_hit("How tall is Everest?", "What is the height of Everest?", 0.89, 0.9)
    assert not is_hit("How tall is Everest?", "How tall is Elbrus?", 1, 0)


class Beginning(BedrockEmbeddings):
    """Notes what is begun, and calls nobody."""

    def __init__(self) -> None:
        super().__init__("local.multilingual-e5-small", None, None, "http://127.0.0.1:1")
        self.begun: list[tuple[str, Side]] = []

    def begin(self, text: str, side: Side) -> None:
        self.begun.append((text, side))


async def test_expiry_goes_by_temporal_s_clock_whatever_a_worker_s_says(tmp_path: Path) -> None:
    """The answers are of years ago and fresh to Temporal: this worker's clock is that far ahead."""
    then = datetime(2020, 5, 3, 12, tzinfo=UTC)
    embeddings = Beginning()
    cache = CacheActivities(OpenedStore(SqliteStore(tmp_path / "store.db"), MODEL), embeddings, 0.9)
    for query in ("Who has the key?", "Who has the lamp?"):
        known = entry(
            query, query_hash(query), NORTH, query=query, created_at=then, expires_at=then + timedelta(hours=1)
        )
        await cache.put_cache_entry(known)

    check = DatedCacheCheck(user_id="ann", query="Who has the key?", now=then + timedelta(minutes=1))
    lookup = CacheLookup(**check.model_dump(), embedding=NORTH)
    assert (await cache.cached_answer(check)).hit
    assert (await cache.similar_answer(lookup)).hit
    assert embeddings.begun == []

    late = {"now": then + timedelta(hours=2)}
    assert not (await cache.cached_answer(check.model_copy(update=late))).hit
    # What the next step of the check embeds.
    assert embeddings.begun == [("Who has the key?", EMBEDDED["cache"].side)]
    assert not (await cache.similar_answer(lookup.model_copy(update=late))).hit
