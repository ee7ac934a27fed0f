"""Which queries are identical."""

import pytest

from activities.cache import E5_THRESHOLD, OTHER_THRESHOLD, default_threshold, entry_id, is_hit, query_hash
from activities.models import CacheScope


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
