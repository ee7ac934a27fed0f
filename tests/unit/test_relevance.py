"""How messages are ranked."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.store.relevance import AFTER, BEFORE, BEST, SPEAKER, TIME, Candidate, rank_messages, scaled

NOON = datetime(2026, 5, 13, 12, tzinfo=UTC)


def candidate(name: str, text: str = "", previous: str | None = None, days: float = 0) -> Candidate:
    return Candidate(name, previous, text, NOON + timedelta(days=days))


def scores(question: str, searches: list[dict[str, float]], *candidates: Candidate) -> dict[str, float]:
    """Scores without the scale, best first."""
    return {name: score * BEST for name, score in rank_messages(question, NOON, searches, candidates)}


def test_scores_are_scaled_from_worst_to_best() -> None:
    assert scaled({"a": 3.0, "b": 1.0, "c": 2.0}) == {"a": 1, "b": 0, "c": 0.5}
    assert scaled({"a": 0.2, "b": 0.2}) == {"a": 1, "b": 1}
    assert scaled({}) == {}


def test_searches_count_alike_and_one_that_missed_counts_nothing() -> None:
    searches = [{"a": 0.9, "b": 0.7, "c": 0.8}, {"b": 12.0, "c": 4.0}]
    found = scores("?", searches, candidate("a"), candidate("b"), candidate("c"))
    assert found == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.25})


def test_a_speaker_that_is_named_counts() -> None:
    searches = [{"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0}]
    found = scores(
        "What does Ann Lee's sister think?",
        searches,
        candidate("a", "Ann: plum"),
        candidate("b", "Dr. Lee: plum"),
        candidate("c", "Bob: Ann Lee likes plums"),
        candidate("d", "sister: plum"),
        candidate("e", "Ann said so"),
    )
    assert found == pytest.approx({"a": 1 + SPEAKER, "b": 1 + SPEAKER, "c": 1, "d": 1, "e": 1})


def test_the_time_that_is_named_counts() -> None:
    searches = [{"a": 1.0, "b": 1.0, "c": 1.0}]
    found = scores("yesterday?", searches, candidate("a", days=-1), candidate("b", days=-4), candidate("c", days=-30))
    assert found["a"] == pytest.approx(1 + TIME)
    assert 1 < found["b"] < 1 + TIME
    assert found["c"] == 1


def test_neighbours_share_their_scores() -> None:
    searches = [{"question": 1.0, "answer": 0.5, "thanks": 0.0}]
    found = scores(
        "?",
        searches,
        candidate("question", previous="not found"),
        candidate("answer", previous="question"),
        candidate("thanks", previous="answer"),
    )
    assert found == pytest.approx({"question": 1 + AFTER * 0.5, "answer": 0.5 + BEFORE, "thanks": BEFORE * 0.5})


def test_of_several_that_came_after_the_best_counts() -> None:
    searches = [{"a": 1.0, "b": 0.75, "c": 0.5, "z": 0.0}]
    found = scores("?", searches, candidate("a"), candidate("b", previous="a"), candidate("c", previous="a"))
    assert found["a"] == pytest.approx(1 + AFTER * 0.75)


def test_what_a_search_found_and_is_gone_is_left_out() -> None:
    assert scores("?", [{"a": 1.0, "gone": 5.0}], candidate("a")) == {"a": 0}


def test_equal_ones_are_newest_first_and_then_by_id() -> None:
    searches = [{"a": 1.0, "b": 1.0, "c": 1.0}]
    ones = [candidate("b"), candidate("a"), candidate("c", days=1)]
    for order in permutations(ones):
        assert list(scores("?", searches, *order)) == ["c", "a", "b"]


NAMES = st.sampled_from("abcdef")
CANDIDATES = st.dictionaries(
    NAMES,
    st.builds(
        lambda text, previous, days: (text, previous, days),
        st.sampled_from(["Ann: yes", "Bob Lee: no", "nothing"]),
        st.none() | NAMES,
        st.integers(-400, 0),
    ),
)
SEARCHES = st.lists(st.dictionaries(NAMES, st.floats(-1, 40)), min_size=1, max_size=4)
QUESTIONS = st.sampled_from(["what did Ann say last week?", "Lee in May", "?"])


@given(QUESTIONS, SEARCHES, CANDIDATES)
def test_a_ranking_is_of_the_candidates_from_1_to_0(
    question: str, searches: list[dict[str, float]], fields: dict[str, tuple[str, str | None, int]]
) -> None:
    candidates = [candidate(name, text, previous, days) for name, (text, previous, days) in fields.items()]
    ranked = rank_messages(question, NOON, searches, candidates)
    assert sorted(name for name, _ in ranked) == sorted(fields)
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert all(0 <= score <= 1 + 1e-9 for _, score in ranked)
    assert rank_messages(question, NOON, searches, reversed(candidates)) == ranked


@given(SEARCHES, st.sets(NAMES), NAMES)
def test_what_every_search_has_first_is_first(searches: list[dict[str, float]], others: set[str], name: str) -> None:
    best = [{**search, name: 41.0} for search in searches]
    ranked = rank_messages("?", NOON, best, map(candidate, {*others, name}))
    assert ranked[0][0] == name
    assert ranked[0][1] == pytest.approx(1 / BEST)


def test_a_message_says_at_its_beginning_who_speaks() -> None:
    def speaks(text: str, question: str) -> bool:
        found = scores(question, [{"a": 1.0, "b": 1.0}], candidate("a", text), candidate("b", "x"))
        return found["a"] > found["b"]

    for text, name in (("Ann: hi", "Ann"), ("Dr. Ann-Marie Lee: hi", "Lee"), ("  Bob : x", "Bob"), ("Éva: x", "Éva")):
        assert speaks(text, f"What does {name} like?")
    # The second would be read in a million ways if a word could begin within another.
    for text in ("Ann said hi", "A" * 64, "Ann one two three four: x", "Ann://x", "12 Ann: x", "Ann  Lee: x"):
        assert not speaks(text, "What does Ann like, and A?")
