"""Which queries are identical."""

import pytest

from activities.cache import default_threshold, entry_id, query_hash


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


def test_entries_of_two_users_have_two_ids() -> None:
    assert entry_id("ada", "x") == entry_id("ada", " X ")
    assert entry_id("ada", "x") != entry_id("bob", "x")


def test_the_threshold_is_the_model_s() -> None:
    assert default_threshold("local.multilingual-e5-small") > default_threshold("amazon.titan-embed-text-v2:0")
