"""Messages and the ones before them, as both stores find them."""

import asyncio
from datetime import timedelta
from pathlib import Path

import apsw
import pytest

from activities.models import EmbeddingModel, ForgetTarget, Message, MessageContext
from activities.store.base import Store
from activities.store.sqlite import SqliteStore
from activities.store.sqlite_schema import _REEMBEDDING, _SCHEMA
from tests.contract.records import EAST, MODEL, NOON, NORTH, NOWHERE, WEST, downgrade, fails, message, retrieval


async def put_following(store: Store, one: Message, previous: str, text: str, embedding: bytes = NOWHERE) -> None:
    """Store a message, and its context: the one before it, with a text."""
    await store.put_message(one)
    context = MessageContext(previous=previous, text=f"{text}\n{one.text}", embedding=embedding)
    await store.put_context(one.user_id, one.message_id, context)


async def found(store: Store, text: str = "", embedding: bytes = NOWHERE, user: str = "ann") -> list[str]:
    recollection = await store.recall(retrieval(text, embedding, user_id=user))
    return [one.message_id for one in recollection.related_conversation]


async def before(store: Store, message_id: str, user: str = "ann") -> str | None:
    found = await store.message_before(user, message_id)
    return found.message_id if found else None


async def test_the_message_before_is_the_last_one_until_then_in_the_conversation(store: Store) -> None:
    for minute in (0, 4, 2):
        await store.put_message(message(f"m{minute}", f"text {minute}", minute=minute))
    await store.put_message(message("same time", "said at the same time", minute=2))
    await store.put_message(message("elsewhere", minute=3, conversation="d"))
    await store.put_message(message("another's", minute=3, user="bob"))

    assert await before(store, "m4") == "same time"
    assert await before(store, "same time") == "m2"
    assert await before(store, "m2") == "m0"
    assert await before(store, "m0") is None
    assert await before(store, "elsewhere") is None
    assert await before(store, "m4", user="bob") is None
    assert await before(store, "nowhere") is None
    found = await store.message_before("ann", "same time")
    assert found is not None
    assert found.text == "text 2"


async def test_a_message_is_found_by_what_the_one_before_it_says(store: Store) -> None:
    await store.put_message(message("question", "Which fruit do you like?"))
    answer = message("answer", "Those that grow at my aunt's.", NOWHERE, minute=1)
    await put_following(store, answer, "question", "Which fruit do you like?", EAST)
    await store.put_message(message("other", "Nothing of that.", WEST, minute=2))

    assert await found(store, "fruit") == ["question", "answer"]
    assert await found(store, "", EAST) == ["question", "answer", "other"]
    assert (await store.recall(retrieval("fruit"))).related_conversation[1].text == "Those that grow at my aunt's."


async def test_a_message_before_that_is_gone_or_anothers_is_no_context(store: Store) -> None:
    await store.put_message(message("bobs", "a secret plum", user="bob"))
    for previous in ("gone", "bobs"):
        answer = message("answer", "Yes, it is.", NOWHERE)
        await put_following(store, answer, previous, "a secret plum", EAST)
        assert await found(store, "plum", EAST) == []
        assert await found(store, "yes") == ["answer"]


async def test_a_message_stored_again_has_its_new_context_alone(store: Store) -> None:
    for name, text in (("a", "plum"), ("b", "cherry")):
        await store.put_message(message(name, text, NOWHERE))
    for previous, text in (("a", "plum"), ("b", "cherry")):
        await put_following(store, message("m", "yes", NOWHERE, minute=1), previous, text, EAST)
    assert await found(store, "plum") == ["a"]
    assert await found(store, "cherry") == ["b", "m"]

    # As it was, it keeps its context; with another text, or elsewhere, it has none yet.
    await store.put_message(message("m", "yes", NOWHERE, minute=1))
    assert await found(store, "cherry") == ["b", "m"]
    assert await found(store, "", EAST) == ["m"]
    for text, conversation in (("yes, I do", "c"), ("yes", "d")):
        await store.put_message(message("m", text, NOWHERE, 1, conversation=conversation))
        assert await found(store, "cherry") == ["b"]
        assert await found(store, "", EAST) == []
        assert await found(store, "yes") == ["m"]
        await put_following(store, message("m", "yes", NOWHERE, minute=1), "b", "cherry", EAST)


async def test_a_message_that_is_gone_gets_no_context(store: Store) -> None:
    await store.put_message(message("a", "plum", NOWHERE))
    context = MessageContext(previous="a", text="plum\nyes", embedding=EAST)
    await store.put_message(message("bobs", "yes", NOWHERE, user="bob"))
    for gone in ("gone", "bobs"):
        await store.put_context("ann", gone, context)
    assert await found(store, "plum") == ["a"]
    assert await found(store, "", EAST) == []
    assert await found(store, "plum", EAST, user="bob") == []


async def test_a_forgotten_message_is_nobodys_context(store: Store) -> None:
    await store.put_message(message("question", "a secret plum", EAST))
    answer = message("answer", "Yes, it is.", NORTH, minute=1)
    await put_following(store, answer, "question", "a secret plum", EAST)
    await put_following(store, message("thanks", "Thanks!", WEST, minute=2), "answer", "Yes, it is.", NORTH)

    await store.forget(ForgetTarget(user_id="ann", ids=["question"]), 100)

    assert await found(store, "plum") == []
    assert await found(store, "yes") == ["answer", "thanks"]
    assert (await found(store, "", NORTH))[0] == "answer"
    assert await texts(store) == ["Thanks!", "Yes, it is.", "Yes, it is.", "Yes, it is.\nThanks!"]


async def texts(store: Store) -> list[str]:
    """All texts that the store holds of messages and contexts."""
    other = EmbeddingModel(model_id="local.other", dimensions=2)
    await store.begin_reembedding(other)
    kept = [await store.texts_to_embed(other, collection, 100) for collection in ("conversations", "contexts")]
    return sorted(one.text for records in kept for one in records)


async def test_a_message_that_is_forgotten_while_the_next_is_stored_stays_forgotten(store: Store) -> None:
    for attempt in range(10):
        question = message(f"question {attempt}", "a secret plum", NOWHERE)
        await store.put_message(question)
        answer = message(f"answer {attempt}", "Yes, it is.", NOWHERE, minute=1)
        await asyncio.gather(
            put_following(store, answer, question.message_id, "a secret plum"),
            store.forget(ForgetTarget(user_id="ann", ids=[question.message_id]), 100),
        )
        assert await found(store, "plum") == []


async def test_what_is_said_at_the_time_that_is_asked_for_comes_first(store: Store) -> None:
    for day in range(1, 30):
        await store.put_message(message(f"d{day}", "plum", EAST, minute=-day * 24 * 60, conversation=f"{day}"))
    assert (await found(store, "plum two weeks ago", EAST))[0] in {f"d{day}" for day in range(8, 22)}
    assert (await found(store, "plum 12 days ago", EAST))[0] == "d12"
    assert (await found(store, "plum yesterday", EAST))[0] == "d1"


async def test_of_messages_that_say_the_same_the_one_by_whom_is_asked_about_comes_first(store: Store) -> None:
    for name in ("Ann", "Bob", "Eve"):
        await store.put_message(message(name, f"{name}: a plum, please", EAST, conversation=name))
    assert (await found(store, "who is it that Bob likes?", EAST))[0] == "Bob"


@pytest.mark.parametrize("is_filled", [True, False])
async def test_messages_of_an_older_file_are_found_as_before(tmp_path: Path, is_filled: bool) -> None:
    file = tmp_path / "store.db"
    if is_filled:
        store = SqliteStore(file)
        await store.open(MODEL)
        await store.put_message(message("old", "plum", EAST))
        await store.close()
        downgrade(file)
    else:
        db = apsw.Connection(str(file))
        db.execute(_SCHEMA + _REEMBEDDING + "pragma user_version = 2")
        db.close()

    store = SqliteStore(file)
    await store.open(MODEL)
    new = message("new", "yes", NORTH, minute=1)
    await put_following(store, new, "old", "plum", EAST)

    assert await found(store, "plum") == (["old", "new"] if is_filled else [])
    assert await found(store, "", EAST) == (["old", "new"] if is_filled else ["new"])
    await store.close()


async def test_a_conversation_is_read_from_its_end_in_one_order(store: Store) -> None:
    for minute in (4, 0, 2, 1):
        await store.put_message(message(f"m{minute}", f"text {minute}", minute=minute))
    await store.put_message(message("later", "said at the same time", minute=2))
    await store.put_message(message("elsewhere", minute=3, conversation="d"))
    await store.put_message(message("another's", minute=3, user="bob"))

    latest, cursor = await store.read_conversation("ann", "c", 2)
    assert [(one.message_id, one.text) for one in latest] == [("later", "said at the same time"), ("m4", "text 4")]
    assert latest[0].timestamp == NOON + timedelta(minutes=2)
    before, cursor = await store.read_conversation("ann", "c", 2, cursor)
    # Stored again, one keeps its place.
    await store.put_message(message("m2", "text 2", minute=2))
    assert [one.message_id for one in before] == ["m1", "m2"]
    first, cursor = await store.read_conversation("ann", "c", 2, cursor)
    assert [one.message_id for one in first] == ["m0"]
    assert cursor is None

    everything, cursor = await store.read_conversation("ann", "c", 5)
    assert [one.message_id for one in everything] == ["m0", "m1", "m2", "later", "m4"]
    assert cursor is None
    assert await store.read_conversation("ann", "nowhere", 5) == ([], None)
    for nothing in ("", "bm93aGVyZQ==", "WyJhIiwgImIiXQ=="):
        with fails("rejected", "cursor"):
            await store.read_conversation("ann", "c", 5, nothing)
