"""Which statements say the same, and which must stay apart, by their words alone."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.statements import MAX_CHARACTERS, same_matter, same_statement, stem, topic

PAIRS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "memory_pairs.jsonl").read_text().splitlines()
]
"""Statements that look alike: those `apart` are about two things, `same` say one thing twice, `related` one matter."""

CONSOLIDATED = 0.7
"""Least share of the related statements that are recognised: the others stay apart, and nothing is lost."""

TEXTS = st.one_of(st.text(max_size=200), st.sampled_from([text for pair in PAIRS for text in pair["texts"]]))


def pairs(label: str) -> list[tuple[str, str]]:
    return [both for pair in PAIRS if pair["label"] == label for both in combinations(pair["texts"], 2)]


def test_there_are_enough_pairs() -> None:
    assert len(pairs("apart")) >= 150
    assert len(pairs("same")) + len(pairs("related")) >= 60


@pytest.mark.parametrize(("left", "right"), pairs("apart"))
def test_what_only_looks_alike_stays_apart(left: str, right: str) -> None:
    assert not same_matter(left, right)


@pytest.mark.parametrize(("left", "right"), pairs("same"))
def test_the_same_in_other_words_is_the_same(left: str, right: str) -> None:
    assert same_statement(left, right)


def test_most_of_what_is_related_is_recognised_and_none_of_it_taken_for_the_same() -> None:
    related = pairs("related")

    assert [both for both in related if same_statement(*both)] == []
    assert sum(same_matter(*both) for both in related) >= CONSOLIDATED * len(related)


def _share_a_topic(left: str, right: str) -> bool:
    one, other = topic(left), topic(right)
    return one is not None and other is not None and one.is_shared_with(other)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("I live in Paris.", "I moved to Rome.", True),
        ("The launch is planned for 12 May.", "The launch has moved to 19 May.", True),
        ("My doctor is Dr. Patel.", "My new doctor is Dr. Olsen.", True),
        ("I like coffee.", "I don't drink coffee any more.", True),
        ("I live in Paris.", "My sister Ines lives in Lisbon.", False),
        ("I work as a teacher.", "My wife works as a nurse.", False),
        ("I love hiking.", "I love painting.", False),
    ],
)
def test_a_topic_is_somebodys(left: str, right: str, expected: bool) -> None:
    assert _share_a_topic(left, right) == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("dogs", "dog"),
        ("hiking", "hikes"),
        ("planned", "planning"),
        ("cities", "city"),
        ("called", "call"),
        ("going", "go"),
    ],
)
def test_forms_of_a_word_have_one_stem(left: str, right: str) -> None:
    assert stem(left) == stem(right)


@pytest.mark.parametrize("word", ["is", "bus", "gas", "king", "bring", "red", "need", "evening", "glass"])
def test_a_stem_is_never_nothing(word: str) -> None:
    assert len(stem(word)) >= 2


def test_a_long_text_is_no_statement() -> None:
    long = "I love hiking. " + "x" * MAX_CHARACTERS
    assert same_statement(long, long)
    assert not same_matter(long, "I love hiking.")
    assert not same_matter(long, f"So, {long}")


def test_a_script_without_spaces_has_no_words_to_compare() -> None:
    assert same_statement("我住在北京", "我住在北京")
    assert not same_matter("我住在北京", "我住在北京的朋友家")


@given(TEXTS, TEXTS)
def test_each_relation_is_symmetric_and_wider_than_the_one_before(left: str, right: str) -> None:
    assert same_statement(left, right) == same_statement(right, left)
    assert same_matter(left, right) == same_matter(right, left)
    assert _share_a_topic(left, right) == _share_a_topic(right, left)
    assert same_matter(left, right) or not same_statement(left, right)


@given(TEXTS)
def test_a_text_says_the_same_as_itself_however_it_is_written(text: str) -> None:
    assert same_statement(text, text)
    assert same_statement(text, f"  {text} ")


@given(st.sampled_from(pairs("apart")), st.integers(2, 99), st.integers(2, 99))
def test_other_numbers_are_other_facts(both: tuple[str, str], one: int, other: int) -> None:
    left, right = f"{both[0][:-1]} {one}.", f"{both[0][:-1]} {other}."
    assert same_matter(left, right) == same_statement(left, right) == (one == other)
