"""How memories fade and are ranked, listed and forgotten: what holds whatever the numbers."""

from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from activities.models import SimilarMemory
from activities.store.ranking import CLEAR_LEAD, HALF_STRENGTH, Vitals, page, rank, recency, score, strength, weakest

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AGES = st.timedeltas(timedelta(0), timedelta(days=20_000))
COUNTS = st.integers(0, 10**6)
PARTS = st.floats(0, 1)
SLACK = 1e-12


@st.composite
def uses(draw: st.DrawFn) -> tuple[datetime, datetime, int]:
    """When something was said, when it was last used, how often."""
    age, since = sorted([draw(AGES), draw(AGES)], reverse=True)
    return NOW - age, NOW - since, draw(COUNTS)


@given(uses(), AGES)
def test_strength_is_bounded_and_fades(use: tuple[datetime, datetime, int], later: timedelta) -> None:
    assert 0 <= strength(*use, NOW + later) <= strength(*use, NOW) <= 1


@given(uses(), AGES, COUNTS)
def test_use_strengthens(use: tuple[datetime, datetime, int], since: timedelta, more: int) -> None:
    created, accessed, count = use
    assert strength(created, accessed, count + more, NOW) >= strength(created, accessed, count, NOW)
    later = max(accessed, NOW - since)
    assert strength(created, later, count, NOW) >= strength(created, accessed, count, NOW) - SLACK


def test_strength_is_petrovs_approximation() -> None:
    created = NOW - 4 * HALF_STRENGTH
    assert strength(NOW - HALF_STRENGTH, NOW - HALF_STRENGTH, 0, NOW) == 0.5
    # In units of HALF_STRENGTH: 1 / √1 + 2 × 3 / (√4 + √1) = 3.
    assert abs(strength(created, NOW - HALF_STRENGTH, 3, NOW) - 3 / 4) < SLACK
    # A clock that is behind makes nothing stronger than new.
    assert strength(NOW + timedelta(days=9), NOW, 0, NOW) == strength(NOW, NOW, 0, NOW) < 1


@given(AGES, AGES)
def test_recency_is_bounded_and_fades(age: timedelta, more: timedelta) -> None:
    assert 0 <= recency(NOW - age - more, NOW) <= recency(NOW - age, NOW) <= 1


@given(st.tuples(PARTS, PARTS, PARTS, PARTS), st.tuples(PARTS, PARTS, PARTS, PARTS))
def test_a_score_is_bounded_and_grows_with_each_part(
    left: tuple[float, float, float, float], right: tuple[float, float, float, float]
) -> None:
    least = [min(both) for both in zip(left, right, strict=True)]
    assert 0 <= score(*least) <= score(*left) <= 1 + SLACK


@given(st.floats(0, 1 - CLEAR_LEAD), st.tuples(PARTS, PARTS, PARTS), st.tuples(PARTS, PARTS, PARTS))
def test_nothing_outweighs_a_clear_lead_in_relevance(
    low: float, left: tuple[float, float, float], right: tuple[float, float, float]
) -> None:
    assert score(low + CLEAR_LEAD, *left) >= score(low, *right) - SLACK


WORDS = st.sampled_from(["I live in Oslo.", "I moved to Rome.", "I like tea.", "Tea is what I like.", "My dog is old."])


def memory(
    memory_id: str, content: str, similarity: float, importance: float, use: tuple[datetime, datetime, int]
) -> SimilarMemory:
    created, accessed, count = use
    return SimilarMemory(
        memory_id=memory_id,
        content=content,
        summary="",
        importance=importance,
        strength=0,
        access_count=count,
        created_at=created,
        last_accessed_at=accessed,
        pinned=False,
        level=0,
        children=[],
        source_messages=[],
        similarity=similarity,
        score=0,
    )


@st.composite
def memories(draw: st.DrawFn) -> list[SimilarMemory]:
    found: list[SimilarMemory] = []
    for number in range(draw(st.integers(0, 12))):
        content = f"{draw(WORDS)[:-1]} {draw(st.sampled_from(['', 'now', 'again', 'with Ada', 'in 1999']))}."
        found.append(memory(f"m{number}", content, draw(st.floats(-1, 1)), draw(PARTS), draw(uses())))
    return found


ONE, ANOTHER = b"\0\0\x80?\0\0\0\0", b"\0\0\0\0\0\0\x80?"
"""Vectors at a right angle."""


@given(memories(), st.data(), st.randoms(use_true_random=False), st.integers(1, 12))
def test_a_ranking_depends_on_what_is_found_alone(
    found: list[SimilarMemory], data: st.DataObject, random: Random, limit: int
) -> None:
    vectors = {one.memory_id: data.draw(st.sampled_from([ONE, ANOTHER])) for one in found}
    ranked = rank(found, vectors, NOW, 0.0, limit)
    shuffled = random.sample(found, len(found))

    assert rank(shuffled, vectors, NOW, 0.0, limit) == ranked
    assert rank(found, vectors, NOW, 0.0, 12)[:limit] == ranked
    assert len({one.memory_id for one in ranked}) == len(ranked) <= limit
    assert all(0 <= one.score <= 1 and 0 <= one.strength <= 1 for one in ranked)
    # What is on nobody's topic is in the order of scores, and a clear lead in relevance is never lost.
    alone = rank(found, {}, NOW, 0.0, 12)
    assert [one.score for one in alone] == sorted((one.score for one in alone), reverse=True)
    for order in (ranked, alone):
        for at, one in enumerate(order):
            assert all(max(0, later.similarity) - max(0, one.similarity) <= CLEAR_LEAD + SLACK for later in order[at:])


def test_what_was_said_last_holds_though_something_else_is_more_relevant() -> None:
    """And that is what the newer one isn't put before."""
    before, since = (NOW - timedelta(days=60),) * 2, (NOW - timedelta(days=1),) * 2
    older = memory("older", "My sister lives in Lisbon.", 0.5, 1.0, (*before, 0))
    newer = memory("newer", "My sister lives in Porto.", 0.37, 0.0, (*since, 0))
    other = memory("other", "The boat is red.", 0.58, 0.0, (*before, 0))
    vectors = {"older": ONE, "newer": ONE, "other": ANOTHER}

    assert [one.memory_id for one in rank([older, other], vectors, NOW, 0.0, 3)] == ["older", "other"]
    assert [one.memory_id for one in rank([older, newer], vectors, NOW, 0.0, 3)] == ["newer", "older"]
    assert [one.memory_id for one in rank([older, newer, other], vectors, NOW, 0.0, 3)] == ["other", "newer", "older"]


@st.composite
def roots(draw: st.DrawFn) -> list[Vitals]:
    return [
        Vitals(f"m{number:02}", draw(PARTS), count, created, accessed, draw(st.booleans()))
        for number in range(draw(st.integers(0, 20)))
        for created, accessed, count in [draw(uses())]
    ]


@given(roots(), st.integers(0, 25))
def test_pruning_forgets_no_more_than_it_must_and_nothing_pinned(found: list[Vitals], budget: int) -> None:
    gone = set(weakest(found, budget, NOW))
    kept = [one for one in found if one.memory_id not in gone]
    loose = [one for one in found if not one.pinned]

    assert len(gone) == min(max(0, len(found) - budget), len(loose))
    assert all(one.pinned is False for one in found if one.memory_id in gone)
    worth = {one.memory_id: one.strength(NOW) * one.importance for one in found}
    assert all(worth[one] <= worth[other.memory_id] for one in gone for other in kept if not other.pinned)


@given(roots(), st.sampled_from(["newest", "strongest"]), st.integers(1, 7), AGES)
def test_pages_make_up_the_whole_list(found: list[Vitals], order: str, limit: int, pause: timedelta) -> None:
    whole, _ = page(found, order, 100, None, NOW)  # type: ignore[arg-type]
    pages: list[str] = []
    cursor = None
    while part := page(found, order, limit, cursor, NOW + pause if cursor else NOW)[0]:  # type: ignore[arg-type]
        pages += [memory_id for memory_id, _ in part]
        cursor = part[-1][1]

    assert pages == [memory_id for memory_id, _ in whole]
    assert sorted(pages) == [one.memory_id for one in found]
