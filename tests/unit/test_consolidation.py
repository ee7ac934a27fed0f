"""Which memories come together: properties over any, and pairs that must stay apart by the real embedding model."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.bedrock import BedrockEmbeddings
from activities.consolidation import (
    GROUP_CHARACTERS,
    MAX_GROUP,
    Said,
    belong_together,
    duplicate_cosine,
    group_content,
    group_of,
    may_group,
    newest_first,
)
from activities.embedding_models import unrelated_cosine
from activities.models import EMBEDDED, MemoryGroup, SimilarMemory, pack_vector
from activities.statements import same_statement
from activities.store.ranking import rank
from mcp_server.local.stack import Addresses
from tests.unit.test_statements import CONSOLIDATED, PAIRS, pairs

E5 = "local.multilingual-e5-small"
NOON = datetime(2026, 5, 3, 12, tzinfo=UTC)
DETAILS = ["", " in the hills", " in the hills with Tom", " with Tom", " in 1999", " in the hills in 1999", " at dawn"]
VECTORS = [pack_vector(vector) for vector in ([1, 0], [1, 0.3], [1, 1], [0, 1], [-1, 0.1])]


@st.composite
def said(draw: st.DrawFn) -> list[Said]:
    """Memories whose likeness runs along chains: details differ, and so do directions."""
    return [
        Said(
            memory_id=f"m{number:02}",
            content=f"I love hiking{draw(st.sampled_from(DETAILS))}.",
            created_at=NOON + timedelta(minutes=draw(st.integers(0, 5))),
            embedding=draw(st.sampled_from([*VECTORS, b""])),
            apart=frozenset(draw(st.sets(st.sampled_from(["group-a", "group-b"]), max_size=2))),
        )
        for number in range(draw(st.integers(0, 14)))
    ]


def consolidate(memories: list[Said]) -> list[Said]:
    """Place each memory in turn among all of them; answer them with their parents."""
    placed = {one.memory_id: one for one in memories}
    for memory_id in list(placed):
        others = [one for one in placed.values() if one.memory_id != memory_id]
        if group := group_of(placed[memory_id], others, 0.0):
            placed |= {one.memory_id: replace(one, parent=group[0]) for one in group[1]}
    return list(placed.values())


def arriving(memories: list[Said], unrelated: float = 0.0) -> list[Said]:
    """The same as they come: each is placed among those before it."""
    placed: list[Said] = []
    for one in memories:
        group = group_of(one, placed, unrelated)
        members = {member.memory_id for member in group[1]} if group else set()
        placed = [
            replace(old, parent=group[0]) if group and old.memory_id in members else old for old in (*placed, one)
        ]
    return placed


def groups(memories: list[Said]) -> list[list[Said]]:
    parents = {one.parent for one in memories if one.parent}
    return [[one for one in memories if one.parent == parent] for parent in parents]


@given(said())
def test_every_two_of_a_group_belong_together(memories: list[Said]) -> None:
    for group in groups(arriving(memories)):
        assert 2 <= len(group) <= MAX_GROUP
        assert all(belong_together(one, other, 0.0) for one, other in combinations(group, 2))


@given(said())
def test_consolidating_again_changes_nothing(memories: list[Said]) -> None:
    once = arriving(memories)
    assert consolidate(once) == once
    whole = consolidate(memories)
    assert consolidate(whole) == whole


@given(said(), st.randoms(use_true_random=False))
def test_a_group_is_the_same_however_its_neighbours_are_ordered(memories: list[Said], random: Random) -> None:
    if memories:
        shuffled = random.sample(memories[1:], len(memories) - 1)
        assert group_of(memories[0], memories[1:], 0.0) == group_of(memories[0], shuffled, 0.0)


@given(said())
def test_what_was_split_never_comes_together_again(memories: list[Said]) -> None:
    grouped = arriving(memories)
    split = [
        replace(one, parent=None, apart=one.apart | {one.parent}) if one.parent is not None else one for one in grouped
    ]
    before = {
        frozenset((one.memory_id, other.memory_id)) for group in groups(grouped) for one in group for other in group
    }
    for group in groups(consolidate(split)):
        assert not any(frozenset((one.memory_id, other.memory_id)) in before for one, other in combinations(group, 2))


@given(said())
def test_a_parent_says_what_its_newest_children_said(memories: list[Said]) -> None:
    for group in groups(arriving(memories)):
        children = newest_first(group)
        content = group_content(children)
        assert "\n".join(child.content for child in children).startswith(content)
        assert [one.created_at for one in children] == sorted((one.created_at for one in group), reverse=True)
        planned = MemoryGroup(memory_id=str(group[0].parent), user_id="ada", content=content, children=children)
        assert may_group(planned, group, [])
        assert not may_group(planned, group[1:], [])
        assert not may_group(planned, group, ["another"])


def test_a_parents_content_is_bounded_by_whole_sentences() -> None:
    long = [Said(f"m{number}", f"{number} {'x' * 900}", NOON + timedelta(hours=number), b"") for number in range(8)]
    content = group_content(newest_first(long))
    assert content.split("\n") == [one.content for one in long[:3:-1]]
    assert len(content) <= GROUP_CHARACTERS


# By the real embedding model


@pytest.fixture(scope="module")
async def vectors(stack: Addresses) -> dict[str, bytes]:
    """Of every statement, as memories are embedded."""
    embeddings = BedrockEmbeddings(E5, None, None, stack.models)
    texts = list(dict.fromkeys(text for pair in PAIRS for text in pair["texts"]))
    return dict(zip(texts, await embeddings.embed(texts, EMBEDDED["memory_nodes"].side), strict=True))


def spoken(text: str, vectors: dict[str, bytes], day: int = 0) -> Said:
    return Said(text, text, NOON + timedelta(days=day), vectors[text])


def cosine(left: bytes, right: bytes) -> float:
    return sum(a * b for a, b in zip(memoryview(left).cast("f"), memoryview(right).cast("f"), strict=True))


async def test_canaries_are_never_consolidated(vectors: dict[str, bytes]) -> None:
    unrelated = unrelated_cosine(E5)
    merged = [
        both for both in pairs("apart") if group_of(spoken(both[0], vectors), [spoken(both[1], vectors, 1)], unrelated)
    ]
    assert merged == []
    # Nor all of them together, in whatever groups.
    everything = [spoken(text, vectors) for pair in PAIRS if pair["label"] == "apart" for text in pair["texts"]]
    apart = {frozenset(both) for both in pairs("apart")}
    unique = {one.memory_id: one for one in everything}
    placed = arriving(list(unique.values()), unrelated)
    for group in groups(placed):
        assert not any(frozenset((one.content, other.content)) in apart for one, other in combinations(group, 2))


async def test_most_of_what_belongs_together_is_consolidated_or_reinforced(vectors: dict[str, bytes]) -> None:
    unrelated = unrelated_cosine(E5)
    same = [
        both
        for both in pairs("same")
        if same_statement(*both) and cosine(vectors[both[0]], vectors[both[1]]) >= duplicate_cosine(unrelated)
    ]
    assert same == pairs("same")
    related = [pair["texts"] for pair in PAIRS if pair["label"] == "related"]
    whole = [texts for texts in related if len(groups_of(texts, vectors, unrelated)) == 1]
    assert len(whole) >= CONSOLIDATED * len(related)


def groups_of(texts: list[str], vectors: dict[str, bytes], unrelated: float) -> list[object]:
    """The groups and those that stand alone."""
    placed = arriving([spoken(text, vectors, day) for day, text in enumerate(texts)], unrelated)
    return [*groups(placed), *(one for one in placed if one.parent is None)]


@pytest.mark.parametrize(
    ("question", "older", "newer", "others"),
    [
        (
            "Where do I live?",
            "I live in Paris.",
            "I moved to Rome.",
            ["My sister Ines lives in Lisbon.", "I'm a nurse."],
        ),
        ("Who is my doctor?", "My doctor is Dr. Patel.", "My new doctor is Dr. Olsen.", ["My dentist is Dr. Kim."]),
        (
            "When is the launch?",
            "The launch is on 12 May.",
            "The launch has moved to 19 May.",
            ["I like to launch boats."],
        ),
        ("What do I drink?", "I like coffee.", "I don't drink coffee any more.", ["My cat drinks milk."]),
    ],
)
async def test_the_newer_of_two_that_disagree_comes_first(
    stack: Addresses, question: str, older: str, newer: str, others: list[str]
) -> None:
    embeddings = BedrockEmbeddings(E5, None, None, stack.models)
    texts = [older, newer, *others]
    found = dict(zip(texts, await embeddings.embed(texts, "passage"), strict=True))
    (asked,) = await embeddings.embed([question], "query")
    memories = [
        SimilarMemory(
            memory_id=text,
            content=text,
            summary=text,
            importance=0.5,
            strength=0,
            access_count=0,
            created_at=(said_at := NOON - timedelta(days=200 - 30 * day)),
            last_accessed_at=said_at,
            pinned=False,
            level=0,
            children=[],
            source_messages=[],
            similarity=cosine(asked, found[text]),
            score=0,
        )
        for day, text in enumerate(texts)
    ]

    ranked = [one.content for one in rank(memories, found, NOON, unrelated_cosine(E5), 10)]

    assert ranked[:2] == [newer, older]
    assert sorted(ranked) == sorted(texts)
