"""What every store does with memories that belong together, fade, are pinned and listed."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.consolidation import group_content, group_of, newest_first
from activities.models import (
    FormedMemory,
    ListMemoriesParams,
    Memory,
    MemoryOrder,
    MemoryParent,
    SimilarMemory,
    pack_vector,
)
from activities.store.base import Store
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
    downgrade,
    fails,
    form,
    memory,
    retrieval,
)

HIKING = ["I love hiking.", "I love hiking in the hills.", "I love hiking in the hills with Tom."]


async def say(store: Store, *contents: str, embedding: bytes = EAST, **fields: Any) -> list[str]:
    """Form a memory of each content, a day after the one before; answer their ids, which are the contents."""
    for day, content in enumerate(contents):
        node = memory(content, embedding, content=content, created_at=NOON + timedelta(days=day), **fields)
        await form(store, node, 2.0)
    return list(contents)


async def plan(store: Store, memory_id: str, user: str = "ann") -> MemoryParent | None:
    around = await store.surroundings(user, memory_id)
    group = group_of(*around, 0.0) if around else None
    if group is None:
        return None
    children = newest_first(group[1])
    return MemoryParent(
        memory_id=group[0],
        user_id=user,
        content=group_content(children),
        children=children,
        summary="what they say",
        embedding=EAST,
    )


async def consolidate(store: Store, *ids: str) -> str | None:
    """Consolidate each memory; answer the last parent's id."""
    parent = None
    for memory_id in ids:
        if planned := await plan(store, memory_id):
            assert await store.put_parent(planned)
            parent = planned.memory_id
    return parent


async def recalled(store: Store, embedding: bytes = EAST, **fields: Any) -> list[SimilarMemory]:
    return (await store.recall(retrieval("", embedding, **fields))).similar_memories


async def listed(store: Store, order: MemoryOrder = "newest", limit: int = 100, **fields: Any) -> list[Memory]:
    params = ListMemoriesParams(**{"user_id": "ann", "order": order, "limit": limit, **fields})
    return (await store.list_memories(params, NOON + timedelta(days=10)))[0]


def ids(memories: Sequence[Memory]) -> list[str]:
    return [one.memory_id for one in memories]


async def test_memories_of_one_matter_come_together_newest_first(store: Store) -> None:
    await say(store, *HIKING)
    await form(store, memory("other", content="I live in Oslo."), 2.0)

    parent = await consolidate(store, *HIKING)

    one, other = sorted(await recalled(store, now=NOON + timedelta(days=9)), key=lambda one: -one.level)
    assert (one.memory_id, one.level, one.summary) == (parent, 1, "what they say")
    assert [child.content for child in one.children] == HIKING[::-1]
    assert [child.created_at for child in one.children] == [NOON + timedelta(days=day) for day in (2, 1, 0)]
    assert one.content == "\n".join(HIKING[::-1])
    assert one.created_at == NOON + timedelta(days=2)
    assert one.last_accessed_at == NOON + timedelta(days=9)
    assert one.source_messages == [f"message of {content}" for content in HIKING]
    assert (other.memory_id, other.children) == ("other", [])


async def test_consolidating_again_changes_nothing(store: Store) -> None:
    said = await say(store, *HIKING, "I live in Oslo.", "I live in Oslo near the harbour.", "I play the cello.")
    await consolidate(store, *said)
    before = await listed(store)
    assert [len(one.children) for one in before] == [0, 2, 3]

    for content in said:
        assert await plan(store, content) is None

    assert await listed(store) == before


async def test_a_parent_is_stored_once_however_often_its_step_runs(store: Store) -> None:
    await say(store, *HIKING[:2])
    planned = await plan(store, HIKING[1])
    assert planned is not None

    assert await asyncio.gather(*(store.put_parent(planned) for _ in range(4))) == [True] * 4

    (one,) = await listed(store)
    assert (one.memory_id, one.access_count, len(one.children)) == (planned.memory_id, 0, 2)


async def test_a_parent_grows_and_keeps_its_uses(store: Store) -> None:
    await say(store, *HIKING[:2])
    first = await consolidate(store, *HIKING[:2])
    await recalled(store)
    await form(store, memory(HIKING[2], importance=0.9, content=HIKING[2]), 2.0)

    assert await consolidate(store, HIKING[2]) == first

    (one,) = await recalled(store, retrieval_id="another")
    assert (one.access_count, one.importance, len(one.children)) == (2, 0.9, 3)
    (one,) = await recalled(store)
    assert one.access_count == 2


async def test_likeness_never_runs_along_a_chain(store: Store) -> None:
    chain = ["I love hiking with Tom.", "I love hiking.", "I love hiking in the hills."]
    await say(store, *chain)

    await consolidate(store, *chain)

    groups = {frozenset(child.content for child in one.children) for one in await listed(store)}
    assert frozenset(chain[:2]) in groups
    assert not any({chain[0], chain[2]} <= group for group in groups)


async def test_a_plan_that_was_overtaken_is_not_stored(store: Store) -> None:
    await say(store, *HIKING)
    planned = await plan(store, HIKING[2])
    assert planned is not None
    changed = planned.model_copy(deep=True)
    changed.children[0].content = "I hate hiking."
    smaller = planned.model_copy(update={"children": planned.children[:2]})
    smaller = smaller.model_copy(update={"content": group_content(smaller.children)})

    assert not await store.put_parent(changed)
    assert not await store.put_parent(planned.model_copy(update={"content": "something else"}))
    assert not await store.put_parent(planned.model_copy(update={"user_id": "bob"}))
    assert await store.put_parent(planned)
    assert not await store.put_parent(smaller)
    assert not await store.put_parent(planned.model_copy(update={"memory_id": "another"}))
    await store.split_memory("ann", planned.memory_id)
    assert not await store.put_parent(planned)
    assert [one.level for one in await listed(store)] == [0, 0, 0]


async def test_a_wrong_merge_is_undone_for_good(store: Store) -> None:
    await say(store, *HIKING)
    parent = await consolidate(store, *HIKING)
    assert parent is not None
    await store.pin_memory("ann", parent, True)

    for _ in range(2):
        assert await store.split_memory("ann", parent) == HIKING[::-1]

    alone = await listed(store)
    assert [(one.content, one.level, one.pinned) for one in alone] == [(content, 0, True) for content in HIKING[::-1]]
    assert await consolidate(store, *HIKING) is None
    assert sorted(ids(await recalled(store))) == sorted(HIKING)
    # Each of them may still be put together with others.
    await form(store, memory("new", content="I love hiking in the hills at dawn."), 2.0)
    assert await consolidate(store, "new") is not None
    (pair,) = [one for one in await listed(store) if one.level]
    assert len(pair.children) == 2


async def test_only_a_parent_can_be_split(store: Store) -> None:
    await say(store, *HIKING)
    parent = await consolidate(store, *HIKING)
    assert parent is not None
    for user, memory_id in (("ann", HIKING[0]), ("ann", "nobody's"), ("bob", parent)):
        with fails("rejected", "memory_id", memory_id):
            await store.split_memory(user, memory_id)


async def test_what_is_said_again_reinforces_a_child_and_its_parent(store: Store) -> None:
    await say(store, *HIKING)
    parent = await consolidate(store, *HIKING)
    later = NOON + timedelta(days=7)

    formed = await form(store, memory("again", importance=1, content="I love hiking!", created_at=later), 0.9)

    assert formed == FormedMemory(memory_id=HIKING[0], reinforced=True)
    (one,) = await listed(store)
    assert (one.memory_id, one.access_count, one.importance, one.last_accessed_at) == (parent, 1, 0.75, later)
    assert "message of again" in one.source_messages


@pytest.mark.parametrize("embedding", [EAST, NOWHERE], ids=["somewhere", "nowhere"])
async def test_one_user_never_groups_with_another(store: Store, embedding: bytes) -> None:
    await say(store, HIKING[0], embedding=embedding)
    await form(store, memory("bob's", embedding, content=HIKING[1], user_id="bob"), 2.0)

    assert await plan(store, "bob's", "bob") is None
    assert await store.surroundings("ann", "bob's") is None
    around = await store.surroundings("ann", HIKING[0])
    assert around is not None
    assert around[1] == []


async def test_a_fact_is_returned_once(store: Store) -> None:
    for name, content in (("a", "I live in Oslo."), ("b", "I'm living in Oslo"), ("c", "I live in Bergen.")):
        await form(store, memory(name, content=content), 2.0)

    assert sorted(one.content for one in await recalled(store))[0] == "I live in Bergen."
    assert len(await recalled(store)) == 2


async def test_what_was_said_last_on_a_topic_comes_first(store: Store) -> None:
    paris, rome = pack_vector([1, 0.1, 0, 0]), pack_vector([1, 0.3, 0, 0])
    for name, embedding, month in (("I live in Paris.", paris, 5), ("I moved to Rome.", rome, 6)):
        await form(store, memory(name, embedding, content=name, created_at=NOON.replace(month=month)), 2.0)
    await form(store, memory("I live for music.", NORTH, content="I live for music."), 2.0)

    found = await recalled(store, now=NOON.replace(month=11))

    assert ids(found) == ["I moved to Rome.", "I live in Paris.", "I live for music."]
    assert found[0].score < found[1].score
    assert [one.created_at.month for one in found[:2]] == [6, 5]


async def test_an_important_memory_never_comes_before_a_clearly_relevant_one(store: Store) -> None:
    await form(store, memory("relevant", importance=0, created_at=NOON - timedelta(days=3000)), 2.0)
    await form(store, memory("important", NORTH_EAST, 1), 2.0)
    for number in range(5):
        await recalled(store, NORTH_EAST, retrieval_id=f"{number}", limit=1)

    assert ids(await recalled(store)) == ["relevant", "important"]


async def test_strength_is_of_the_moment_and_use_restores_it(store: Store) -> None:
    await form(store, memory("n"), 2.0)
    year = NOON + timedelta(days=365)

    fresh, faded, again = [
        (await recalled(store, now=now, retrieval_id=name))[0] for now, name in ((NOON, "1"), (year, "2"), (year, "3"))
    ]

    assert fresh.strength > 0.9
    assert faded.strength < 0.5 < again.strength
    assert (faded.last_accessed_at, faded.access_count) == (year, 2)
    # Time doesn't run backwards where retrievals overtake each other.
    assert (await recalled(store, now=NOON, retrieval_id="4"))[0].last_accessed_at == year


async def test_pinned_memories_and_their_groups_are_never_pruned(store: Store) -> None:
    await say(store, *HIKING, importance=0.1)
    parent = await consolidate(store, *HIKING)
    await form(store, memory("pinned", NORTH, 0.1), 2.0)
    await form(store, memory("strong", WEST, 0.9), 2.0)
    assert await store.pin_memory("ann", "pinned", True) == "pinned"
    assert await store.pin_memory("ann", HIKING[1], True) == parent

    assert await store.prune_memories("ann", 0, NOON) == 1

    assert sorted(ids(await listed(store))) == sorted(["pinned", str(parent)])
    assert sorted(ids(await listed(store, pinned=True))) == sorted(["pinned", str(parent)])
    assert await store.pin_memory("ann", str(parent), False) == parent
    assert ids(await listed(store, pinned=True)) == ["pinned"]
    assert await store.prune_memories("ann", 1, NOON) == 1
    assert ids(await listed(store)) == ["pinned"]
    # With the group its members are gone: their words are a new memory.
    assert not (await form(store, memory("anew", content=HIKING[0]), 0.5)).reinforced


async def test_a_group_counts_as_one_memory_of_the_budget(store: Store) -> None:
    await say(store, *HIKING, importance=0.9)
    parent = await consolidate(store, *HIKING)
    await form(store, memory("weak", NORTH, 0.1), 2.0)

    assert await store.prune_memories("ann", 2, NOON) == 0
    assert await store.prune_memories("ann", 1, NOON) == 1

    (one,) = await listed(store)
    assert (one.memory_id, len(one.children)) == (parent, 3)


async def test_only_a_users_own_memory_can_be_pinned(store: Store) -> None:
    await form(store, memory("n"), 2.0)
    for user, memory_id in (("ann", "gone"), ("bob", "n")):
        with fails("rejected", "memory_id", memory_id):
            await store.pin_memory(user, memory_id, True)
    assert [one.pinned for one in await listed(store)] == [False]


@pytest.mark.parametrize("order", ["newest", "strongest"])
async def test_pages_of_a_list_make_up_the_whole(store: Store, order: MemoryOrder) -> None:
    names = [f"n{number}" for number in range(7)]
    for number, name in enumerate(names):
        created_at = NOON + timedelta(days=number // 2)
        await form(store, memory(name, NORTH if number % 2 else EAST, created_at=created_at), 2.0)
    await form(store, memory("bob's", user_id="bob"), 2.0)
    whole = ids(await listed(store, order))
    assert sorted(whole) == names
    assert whole[:3] in (["n6", "n4", "n5"], ["n6", "n5", "n4"])

    found: list[str] = []
    cursor = None
    for _ in range(3):
        params = ListMemoriesParams(user_id="ann", limit=3, order=order, cursor=cursor)
        page, cursors = await store.list_memories(params, NOON + timedelta(days=10 + len(found)))
        found += ids(page)
        cursor = cursors[-1]

    assert found == whole
    other = "strongest" if order == "newest" else "newest"
    for wrong in (cursor, "nonsense", f"{other}:1:x:n", f"{other}:1"):
        with fails("rejected", "cursor"):
            await store.list_memories(ListMemoriesParams(user_id="ann", order=other, cursor=wrong), NOON)


async def test_a_list_counts_no_access(store: Store) -> None:
    await say(store, *HIKING)
    for _ in range(2):
        assert [one.access_count for one in await listed(store)] == [0, 0, 0]


async def test_parents_move_to_another_model_too(store: Store, engine: Engine) -> None:
    other = MODEL.model_copy(update={"model_id": "other"})
    await say(store, *HIKING[:2])
    first = await consolidate(store, *HIKING[:2])
    await engine.prepare(other)
    await store.begin_reembedding(other)
    texts = {one.record_id: one.text for one in await store.texts_to_embed(other, "memory_nodes", 10)}

    assert texts[str(first)] == "\n".join(HIKING[1::-1])
    assert len(texts) == 3


async def test_memories_of_the_second_schema_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = SqliteStore(file)
    await store.open(MODEL)
    said = await say(store, *HIKING)
    await recalled(store)
    await store.close()
    downgrade(file)

    await store.open(MODEL)

    before = await listed(store)
    assert ids(before) == said[::-1]
    assert [(one.access_count, one.last_accessed_at) for one in before] == [(1, one.created_at) for one in before]
    assert await consolidate(store, *said) is not None
    (one,) = await recalled(store, retrieval_id="another")
    assert [child.content for child in one.children] == HIKING[::-1]
    await store.close()
