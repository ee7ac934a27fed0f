"""Forgetting, over each engine: every copy goes, nothing else does, and nothing comes back."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.models import (
    ForgetMatch,
    ForgetQuery,
    ForgetTarget,
    Forgotten,
    ListMemoriesParams,
    Recollection,
    Summary,
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
    chunk,
    entry,
    found,
    memory,
    message,
    put,
    retrieval,
)
from tests.contract.test_memories import HIKING, plan

MOST = 1000


async def forget(store: Store, *ids: str, user: str = "ann") -> Forgotten:
    """Forget records and what goes with them."""
    selected = [one.id for one in await store.going_with(user, list(ids))]
    return await store.forget(ForgetTarget(user_id=user, ids=selected), MOST)


async def forget_all(store: Store, most: int = MOST, **fields: Any) -> Forgotten:
    """All batches; what they removed together."""
    total = Forgotten()
    while True:
        batch = await store.forget(ForgetTarget(**{"user_id": "ann", **fields}), most)
        total.messages += batch.messages
        total.memories += batch.memories
        total.cached_answers += batch.cached_answers
        if batch.complete:
            return total


async def going(store: Store, *ids: str) -> list[tuple[str, str]]:
    return sorted((one.kind, one.id) for one in await store.going_with("ann", list(ids)))


async def recall(store: Store, text: str = "", user: str = "ann") -> Recollection:
    return await store.recall(retrieval(text, user_id=user, limit=100, retrieval_id=""))


async def messages(store: Store, user: str = "ann") -> set[str]:
    """Ids of the messages that a recollection by vector finds."""
    return {one.message_id for one in (await recall(store, user=user)).related_conversation}


async def memories(store: Store, user: str = "ann") -> dict[str, str]:
    return {one.memory_id: one.content for one in (await recall(store, user=user)).similar_memories}


async def say(store: Store, name: str, text: str, minute: int = 0, **fields: Any) -> None:
    await store.put_message(message(name, text, minute=minute, **fields))


async def remember(store: Store, name: str, *sources: str, text: str = "", **fields: Any) -> None:
    """A memory of messages that are there already."""
    node = memory(name, content=text or f"content of {name}", source_messages=list(sources), **fields)
    formed = await store.form_memory(node, fields.pop("threshold", 2.0))
    assert formed.memory_id == name


async def reinforce(store: Store, name: str, source: str, text: str = "") -> None:
    """Let a message say again what a memory says."""
    content = text or f"content of {name}"
    formed = await store.form_memory(memory("again", source_messages=[source], content=content), 0.9)
    assert (formed.memory_id, formed.reinforced) == (name, True)


def total(forgotten: Forgotten) -> tuple[int, int, int]:
    return forgotten.messages, forgotten.memories, forgotten.cached_answers


# By id


async def test_a_memory_goes_with_the_messages_it_came_from(store: Store) -> None:
    for name in ("m1", "m2", "m3"):
        await say(store, name, f"text of {name}")
    await remember(store, "n", "m1")
    await reinforce(store, "n", "m2")

    assert await going(store, "n") == [("memory", "n"), ("message", "m1"), ("message", "m2")]
    forgotten = await forget(store, "n")

    assert (total(forgotten), forgotten.complete) == ((2, 1, 0), True)
    assert await messages(store) == {"m3"}
    assert await memories(store) == {}
    assert [one.text for one in (await recall(store, "text of")).related_conversation] == ["text of m3"]


async def test_a_message_takes_the_memory_along_that_is_its_alone(store: Store) -> None:
    await say(store, "m1", "plum")
    await say(store, "m2", "pear", minute=1)
    await remember(store, "n1", "m1")
    await remember(store, "n2", "m2")

    assert await going(store, "m1") == [("memory", "n1"), ("message", "m1")]
    assert total(await forget(store, "m1")) == (1, 1, 0)

    assert await messages(store) == {"m2"}
    assert set(await memories(store)) == {"n2"}
    (left,) = (await recall(store, "pear")).related_conversation
    assert left.before == []


async def test_a_memory_that_others_said_too_no_longer_says_what_is_forgotten(store: Store) -> None:
    await say(store, "first", "I live at 5 Elm Street, with Tom.", minute=1)
    await say(store, "late", "My place is 5 Elm Street.", minute=9, embedding=NORTH)
    await say(store, "early", "My home is 5 Elm Street.", minute=5, embedding=NORTH_EAST)
    await remember(store, "n", "first", text="I live at 5 Elm Street, with Tom.", importance=0.6)
    for source in ("late", "early"):
        await reinforce(store, "n", source, "I live at 5 Elm Street, with Tom.")

    assert await going(store, "first") == [("message", "first")]
    assert total(await forget(store, "first")) == (1, 0, 0)

    (one,) = (await store.recall(retrieval(embedding=NORTH_EAST))).similar_memories
    shown = ("content", "summary", "access_count", "similarity", "created_at", "source_messages")
    assert one.model_dump(include=set(shown)) == {
        "content": "My home is 5 Elm Street.",
        "summary": "My home is 5 Elm Street.",
        "access_count": 2,
        "similarity": pytest.approx(1, abs=1e-6),
        "created_at": NOON + timedelta(minutes=5),
        "source_messages": ["late", "early"],
    }
    assert one.importance > 0.6
    assert total(await forget(store, "early")) == (1, 0, 0)
    assert await memories(store) == {"n": "My place is 5 Elm Street."}
    assert total(await forget(store, "late")) == (1, 1, 0)
    assert await memories(store) == {}


async def test_a_message_that_said_it_again_leaves_the_memory_as_it_is(store: Store) -> None:
    await say(store, "m1", "plum")
    await say(store, "m2", "plums")
    await remember(store, "n", "m1", text="plum", created_at=NOON)
    await reinforce(store, "n", "m2", "plum")

    await forget(store, "m2")

    (one,) = (await recall(store)).similar_memories
    assert (one.content, one.source_messages, one.access_count) == ("plum", ["m1"], 1)
    # What it was reinforced by may be said, and count, again.
    await say(store, "m2", "plums")
    await reinforce(store, "n", "m2", "plum")


async def test_a_memory_takes_over_a_message_without_direction(store: Store) -> None:
    await say(store, "m1", "plum")
    await say(store, "m2", "?!", embedding=NOWHERE)
    await remember(store, "n", "m1")
    await reinforce(store, "n", "m2")

    await forget(store, "m1")

    assert await memories(store) == {}
    assert [(one.id, one.text) for one in await store.going_with("ann", ["n"]) if one.kind == "memory"] == [("n", "?!")]


async def test_a_cached_answer_goes_alone_or_with_the_message_that_it_copies(store: Store) -> None:
    await say(store, "asked", "How tall is Everest?")
    await say(store, "answered", "8,849 m.", minute=1)
    await store.put_cache_entry(entry("question", "h1", query="How tall is Everest?", response="8,849 metres"))
    await store.put_cache_entry(entry("answer", "h2", query="Height of Everest?", response="8,849 m."))
    await store.put_cache_entry(entry("other", "h3", query="How tall is Everest", response="8,849"))
    await store.put_cache_entry(entry("bob's", "h1", user_id="bob", query="How tall is Everest?", response="8,849 m."))

    assert total(await forget(store, "asked")) == (1, 0, 1)
    assert await store.cached_answer("ann", "h1", NOON) is None
    assert total(await forget(store, "answered")) == (1, 0, 1)
    assert await store.cached_answer("ann", "h2", NOON) is None
    assert await store.cached_answer("ann", "h3", NOON) is not None
    assert total(await forget(store, "other")) == (0, 0, 1)
    assert not await store.nearest_cached("ann", EAST, NOON)
    assert await store.cached_answer("bob", "h1", NOON) is not None


async def test_only_what_is_named_goes(store: Store) -> None:
    await say(store, "m1", "plum")
    await say(store, "m2", "plums")
    await remember(store, "n", "m1")
    selected = [one.id for one in await store.going_with("ann", ["n"])]
    # Said after it was decided what goes.
    await reinforce(store, "n", "m2")

    assert total(await store.forget(ForgetTarget(user_id="ann", ids=selected), MOST)) == (1, 0, 0)

    assert await messages(store) == {"m2"}
    assert await memories(store) == {"n": "plums"}


async def test_ids_that_nobody_has_change_nothing(store: Store) -> None:
    await say(store, "m", "plum")

    assert await going(store, "gone", "", "a\0b", "' or 1=1 --") == []
    for _ in range(2):
        assert total(await forget(store, "gone", "", "' or 1=1 --")) == (0, 0, 0)
    assert total(await forget(store)) == (0, 0, 0)
    assert total(await store.forget(ForgetTarget(user_id="ann"), MOST)) == (0, 0, 0)
    assert await messages(store) == {"m"}


# A conversation, or everything


async def test_a_conversation_goes_with_what_came_of_it_alone(store: Store) -> None:
    await say(store, "c1", "plum", conversation="c")
    await say(store, "c2", "pear", minute=1, conversation="c")
    await say(store, "d1", "fig", minute=2, conversation="d")
    await remember(store, "of c", "c1", embedding=WEST)
    await remember(store, "of both", "c2", text="pear")
    await reinforce(store, "of both", "d1", "pear")

    assert total(await forget_all(store, conversation_id="c")) == (2, 1, 0)

    assert await messages(store) == {"d1"}
    assert await memories(store) == {"of both": "fig"}
    assert total(await forget_all(store, conversation_id="c")) == (0, 0, 0)
    assert total(await forget_all(store, conversation_id="")) == (0, 0, 0)


async def test_everything_goes_but_documents(store: Store) -> None:
    for number in range(7):
        await say(store, f"m{number}", f"plum {number}", conversation=f"c{number % 3}")
    await remember(store, "n1", "m1")
    await remember(store, "n2", "m2", embedding=NOWHERE)
    await store.put_cache_entry(entry("e1", "h1"))
    await store.put_cache_entry(entry("e2", "h2", NOWHERE, minutes=-5))
    await put(store, chunk("d", "plum"))

    assert total(await forget_all(store, most=3, everything=True)) == (7, 2, 2)

    nothing = await recall(store, "plum")
    assert (nothing.related_conversation, nothing.similar_memories) == ([], [])
    assert await store.cached_answer("ann", "h1", NOON) is None
    assert await found(store, "plum") == ["d"]
    assert total(await forget_all(store, everything=True)) == (0, 0, 0)


async def test_a_batch_takes_what_it_is_given_and_the_next_goes_on(store: Store, engine: Engine) -> None:
    for number in range(5):
        await say(store, f"m{number}", f"plum {number}")
        await remember(store, f"n{number}", f"m{number}")
    target = ForgetTarget(user_id="ann", conversation_id="c")

    first = await store.forget(target, 2)
    assert (total(first), first.complete) == ((2, 2, 0), False)
    left = await messages(store)
    assert len(left) == 3
    assert set(await memories(store)) == {name.replace("m", "n") for name in left}

    other = engine.store()
    await other.open(MODEL)
    second, third = await other.forget(target, 2), await other.forget(target, 2)
    assert (total(second), second.complete, total(third), third.complete) == ((2, 2, 0), False, (1, 1, 0), True)
    await other.close()


async def test_one_user_never_forgets_for_another(store: Store) -> None:
    for user in ("ann", "bob"):
        await say(store, f"{user} m", "plum", user=user)
        await remember(store, f"{user} n", f"{user} m", user_id=user)
        await store.put_cache_entry(entry(f"{user} e", "h", user_id=user, query="plum"))

    bobs = ["bob m", "bob n", "bob e"]
    assert await going(store, *bobs) == []
    assert total(await forget(store, *bobs)) == (0, 0, 0)
    assert total(await forget_all(store, everything=True)) == (1, 1, 1)

    assert await messages(store, "bob") == {"bob m"}
    assert set(await memories(store, "bob")) == {"bob n"}
    assert await store.cached_answer("bob", "h", NOON) is not None
    matches = await store.matching(
        ForgetQuery(user_id="ann", query="plum", limit=10, threshold=None, embedding=EAST), -1
    )
    assert matches == []


# Summaries


def summary(conversation: str, covered: int, **fields: Any) -> Summary:
    defaults = {"user_id": "ann", "summary_id": f"of {conversation}", "text": "zyzzyva", "model_id": "m"}
    times = {"first_at": NOON, "last_at": NOON, "updated_at": NOON}
    return Summary(**{**defaults, **times, **fields}, conversation_id=conversation, messages=covered)


async def test_a_summary_goes_with_any_of_its_messages_and_the_next_is_made_of_the_others(store: Store) -> None:
    for name, conversation in (("c1", "c"), ("c2", "c"), ("d1", "d"), ("e1", "e")):
        await say(store, name, "zyzzyva", conversation=conversation)
    await store.put_summary(summary("c", 2), ["c1", "c2"])
    await store.put_summary(summary("d", 1), ["d1"])
    await store.put_summary(summary("e", 1), ["e1"])

    await forget(store, "c1")
    assert await store.summaries("ann", ["c", "d", "e"]) == [summary("d", 1), summary("e", 1)]
    there, left = await store.unsummarised("ann", "c", 10)
    assert (there, [one.message_id for one in left]) == (None, ["c2"])

    await forget_all(store, conversation_id="d")
    assert await store.summaries("ann", ["c", "d", "e"]) == [summary("e", 1)]
    await forget_all(store, everything=True)
    assert await store.summaries("ann", ["c", "d", "e"]) == []


async def test_no_summary_is_stored_of_forgotten_messages(store: Store) -> None:
    for name in ("m1", "m2", "m3"):
        await say(store, name, "zyzzyva")
    await store.put_summary(summary("c", 1), ["m1"])

    # Made while all three were there: of the summary of the first, and of the texts of the others.
    await forget(store, "m1")
    assert not await store.put_summary(summary("c", 3), ["m2", "m3"])
    await forget(store, "m3")
    assert not await store.put_summary(summary("c", 2, summary_id="new"), ["m2", "m3"])
    assert await store.summaries("ann", ["c"]) == []
    assert await store.put_summary(summary("c", 1, summary_id="new"), ["m2"])


# Parents


async def hike(store: Store, *again: str) -> str:
    """Memories h0, h1 and h2 of messages m0, m1 and m2 under a parent, whose id is answered; another stands alone.

    Args:
        again: Messages that say again what h0 says.
    """
    for number, text in enumerate(HIKING):
        await say(store, f"m{number}", text, minute=number)
        await remember(store, f"h{number}", f"m{number}", text=text, summary=text)
    for name in again:
        await say(store, name, "Hiking, I love it.", minute=9)
        await store.form_memory(memory("again", source_messages=[name], content=HIKING[0]), 0.9)
    await say(store, "alone", "I live in Oslo.")
    await remember(store, "alone n", "alone", text="I live in Oslo.")
    planned = await plan(store, "h0")
    assert planned is not None
    assert {child.memory_id for child in planned.children} == {"h0", "h1", "h2"}
    assert await store.put_parent(planned)
    assert set(await memories(store)) == {planned.memory_id, "alone n"}
    return planned.memory_id


async def test_a_parent_goes_with_all_of_its_children(store: Store) -> None:
    parent = await hike(store)

    assert {name for _, name in await going(store, parent)} == {parent, "h0", "h1", "h2", "m0", "m1", "m2"}
    assert total(await forget(store, parent)) == (3, 4, 0)

    assert set(await memories(store)) == {"alone n"}
    assert await messages(store) == {"alone"}


@pytest.mark.parametrize(("named", "count"), [("h1", (1, 2, 0)), ("m1", (1, 2, 0))])
async def test_a_parent_doesnt_keep_what_a_forgotten_child_said(
    store: Store, named: str, count: tuple[int, int, int]
) -> None:
    parent = await hike(store)
    await store.pin_memory("ann", parent, True)

    assert set(await going(store, named)) == {("memory", parent), ("memory", "h1"), ("message", "m1")}
    assert total(await forget(store, named)) == count

    assert await memories(store) == {"h0": HIKING[0], "h2": HIKING[2], "alone n": "I live in Oslo."}
    pinned, _ = await store.list_memories(ListMemoriesParams(user_id="ann", pinned=True), NOON)
    assert {one.memory_id for one in pinned} == {"h0", "h2"}
    planned = await plan(store, "h0")
    assert planned is not None
    assert {child.memory_id for child in planned.children} == {"h0", "h2"}


async def test_a_parent_doesnt_keep_the_words_that_a_child_lost(store: Store) -> None:
    parent = await hike(store, "m9")

    # A message that only said it again takes no words along.
    assert await going(store, "m9") == [("message", "m9")]
    assert await going(store, "m0") == [("memory", parent), ("message", "m0")]
    assert total(await forget(store, "m0")) == (1, 1, 0)

    left = await memories(store)
    assert left == {"h0": "Hiking, I love it.", "h1": HIKING[1], "h2": HIKING[2], "alone n": "I live in Oslo."}


async def test_no_parent_is_stored_over_a_forgotten_child(store: Store) -> None:
    for number, text in enumerate(HIKING):
        await say(store, f"m{number}", text)
        await remember(store, f"h{number}", f"m{number}", text=text)
    planned = await plan(store, "h0")
    assert planned is not None

    await forget(store, "m1")

    assert not await store.put_parent(planned)
    assert set(await memories(store)) == {"h0", "h2"}


async def test_consolidating_and_forgetting_at_once_leave_no_words_behind(store: Store, engine: Engine) -> None:
    other = engine.store()
    await other.open(MODEL)
    for _ in range(4):
        for number, text in enumerate(HIKING):
            await say(store, f"m{number}", text)
            await remember(store, f"h{number}", f"m{number}", text=text)
        planned = await plan(store, "h0")
        assert planned is not None

        await asyncio.gather(other.put_parent(planned), forget(store, "m1"))

        assert all("hills." not in content for content in (await memories(store)).values())
        assert total(await forget_all(store, everything=True))[0] == 2
    await other.close()


async def test_a_query_means_children_and_never_their_parent(store: Store) -> None:
    parent = await hike(store)

    matches = await matching(store, "Tom", threshold=1.1)

    assert {(one.kind, one.id) for one in matches} == {("message", "m2"), ("memory", "h2")}
    assert ("memory", parent) in await going(store, "h2")


async def test_everything_includes_parents(store: Store) -> None:
    await hike(store)

    assert total(await forget_all(store, most=1, everything=True)) == (4, 5, 0)
    assert await memories(store) == {}


# By query


async def matching(
    store: Store, text: str, threshold: float = 0.9, limit: int = 10, embedding: bytes = EAST
) -> list[ForgetMatch]:
    query = ForgetQuery(user_id="ann", query=text, limit=limit, threshold=None, embedding=embedding)
    return await store.matching(query, threshold)


async def test_a_query_means_what_is_alike_or_holds_all_of_its_words(store: Store) -> None:
    await say(store, "alike", "mirabelle")
    await say(store, "worded", "Tom's sister likes plums", minute=3, embedding=WEST, conversation="d")
    await say(store, "half", "Tom called", embedding=WEST)
    await say(store, "other", "cherry", embedding=NORTH)
    await remember(store, "n alike", "alike", embedding=NORTH_EAST)
    await remember(store, "n worded", "worded", text="TOM has a sister", embedding=WEST)
    await remember(store, "n other", "other", embedding=WEST)
    await store.put_cache_entry(entry("e alike", "h1", minutes=-1))
    await store.put_cache_entry(entry("e worded", "h2", WEST, query="Who is Ines?", response="The sister of Tom."))
    await store.put_cache_entry(entry("e other", "h3", WEST, query="Who is Tom?", response="A friend."))

    matches = await matching(store, "Tom and his sister", threshold=0.7)

    assert [(one.kind, one.id) for one in matches] == [
        ("message", "alike"),
        ("message", "worded"),
        ("memory", "n alike"),
        ("memory", "n worded"),
        ("cached_answer", "e alike"),
        ("cached_answer", "e worded"),
    ]
    by_id = {one.id: one for one in matches}
    assert [one.similarity for one in matches] == pytest.approx([1, -1, 0.5**0.5, -1, 1, -1], abs=1e-6)
    worded = by_id["worded"]
    assert (worded.text, worded.conversation_id, worded.created_at) == (
        "Tom's sister likes plums",
        "d",
        NOON + timedelta(minutes=3),
    )
    assert by_id["e worded"].text == "Who is Ines?\nThe sister of Tom."
    assert [one.id for one in await matching(store, "Tom and his sister", threshold=0.7, limit=1)] == [
        "alike",
        "n alike",
        "e alike",
    ]
    assert [one.id for one in await matching(store, "sister", embedding=NOWHERE)] == ["worded"]
    assert await matching(store, "?!", threshold=1.1) == []


# Nothing comes back


async def test_nothing_forms_of_a_forgotten_message(store: Store) -> None:
    await say(store, "m1", "plum")
    await say(store, "m2", "plums")
    await remember(store, "n", "m1")
    for name in ("m1", "m2"):
        await forget(store, name)

    for name in ("m1", "m2"):
        formed = await store.form_memory(memory("n", source_messages=[name]), 0.9)
        assert formed.memory_id is None
    assert await memories(store) == {}


async def test_forgetting_and_forming_at_once_leave_no_memory(store: Store, engine: Engine) -> None:
    """Whichever comes first: a memory of a forgotten message is gone, or never forms."""
    other = engine.store()
    await other.open(MODEL)
    for attempt in range(8):
        names = [f"{attempt}.{number}" for number in range(3)]
        for name in names:
            await say(store, name, name, embedding=NORTH)

        async def form(name: str, wait: int) -> None:
            for _ in range(wait):
                await asyncio.sleep(0)
            await other.form_memory(memory(f"of {name}", NORTH, content=name, source_messages=[name]), 2.0)

        formed = [form(name, 40 * attempt * number) for number, name in enumerate(names)]
        await asyncio.gather(*formed, forget(store, *names))
        assert await memories(store) == {}
        assert await messages(store) == set()
    await other.close()


async def test_forgetting_twice_at_once_is_forgetting_once(store: Store, engine: Engine) -> None:
    other = engine.store()
    await other.open(MODEL)
    for number in range(6):
        await say(store, f"m{number}", "plum")
    await remember(store, "n", "m0")
    for number in range(1, 6):
        await reinforce(store, "n", f"m{number}")

    results = await asyncio.gather(
        forget(store, "m0", "m1", "m2"), forget(other, "m2", "m3"), forget(store, "m4", "m5"), forget(other, "n")
    )

    assert sum(one.messages for one in results) == 6
    assert sum(one.memories for one in results) == 1
    assert await messages(store) == set()
    assert await memories(store) == {}
    await other.close()


# The embedded store alone


async def test_what_is_forgotten_leaves_nothing_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = SqliteStore(file)
    await store.open(MODEL)
    await say(store, "kept", "plum")
    await say(store, "m1", "zyzzyva one", embedding=WEST)
    await say(store, "m2", "said again", embedding=NORTH)
    await remember(store, "n", "m1", text="zyzzyva one", embedding=NORTH, summary="zyzzyva")
    formed = await store.form_memory(memory("x", NORTH, content="zyzzyva one", source_messages=["m2"]), 0.9)
    assert formed.reinforced
    await store.put_cache_entry(entry("e", "h", WEST, query="zyzzyva one", response="zyzzyva"))

    assert total(await forget(store, "m1")) == (1, 0, 1)

    assert b"zyzzyva" not in (tmp_path / "store.db-wal").read_bytes()
    await store.close()
    content = file.read_bytes()
    assert b"plum" in content
    assert b"said again" in content
    assert b"zyzzyva" not in content
    assert WEST not in content
