"""Passages in prompts, markers in answers: nothing can pass for another's, and nothing is cited that wasn't given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.models import Passage
from activities.passages import cited, fenced, render, rendered, uncited, unfenced

PASSAGES = [Passage(id=f"p{number}", kind="document", text=f"Text {number}.") for number in range(1, 4)]

PIECES = st.sampled_from(
    ["<", "</", "passage", "passages>", "&lt;", "&amp;lt;", ' number="2"', " ", "\n", "text", ">", "&"]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_a_fenced_text_has_no_tag_and_is_read_back_as_it_was(text: str) -> None:
    assert "<passage" not in fenced(text)
    assert "</passage" not in fenced(text)
    assert unfenced(fenced(text)) == text


@given(st.lists(st.lists(PIECES, min_size=1, max_size=8).map("".join).map(str.strip), min_size=1, max_size=4))
def test_passages_are_read_back_under_their_numbers(texts: list[str]) -> None:
    passages = [Passage(id="x", kind="memory", text=text, title=text, source='a"b<c>') for text in texts]

    found = rendered(render(passages, first=3))

    assert found is not None
    assert [(number, one.text, one.source) for number, one in found.items()] == [
        (number, text, 'a"b<c>') for number, text in enumerate(texts, 3)
    ]


@pytest.mark.parametrize("text", ["", "When?", "<passages> but no end", "A text\n<passages>\n</passages>"])
def test_other_text_is_no_passages(text: str) -> None:
    assert rendered(text) is None


def test_no_passages_are_passages_too() -> None:
    assert rendered(render([])) == {}


@pytest.mark.parametrize(
    ("said", "settled", "numbers"),
    [
        ("It closes [1].", "It closes [1].", [1]),
        ("It closes[2][1].", "It closes[2][1].", [1, 2]),
        ("It closes [1, 3].", "It closes [1][3].", [1, 3]),
        ("It closes [1-3].", "It closes [1][2][3].", [1, 2, 3]),
        ("It closes 【2】.", "It closes [2].", [2]),
        ("It closes [passage 2].", "It closes [2].", [2]),
        ("It closes [9].", "It closes.", []),
        ("It closes [2, 9].", "It closes [2].", [2]),
        ("It closes [999-1000].", "It closes [999-1000].", []),
        ("Read `a[1]` and\n```\nb[2] = 3\n```\nthen [3].", "Read `a[1]` and\n```\nb[2] = 3\n```\nthen [3].", [3]),
        ("An unended ```fence [1]", "An unended ```fence [1]", []),
        ("See [1](https://example.com).", "See [1](https://example.com).", []),
        ("values[0] is first.", "values[0] is first.", []),
        ("In [2024] or [a].", "In [2024] or [a].", []),
        ("", "", []),
    ],
)
def test_markers(said: str, settled: str, numbers: list[int]) -> None:
    text, citations = cited(said, PASSAGES)
    assert text == settled
    assert [(one.number, one.id) for one in citations] == [(number, f"p{number}") for number in numbers]


def test_where_nothing_was_given_nothing_is_a_marker() -> None:
    assert cited("An array [1].", []) == ("An array [1].", [])


def test_an_earlier_answers_markers_are_taken_out() -> None:
    assert uncited("It closes [1][2]. `a[1]`") == "It closes. `a[1]`"
