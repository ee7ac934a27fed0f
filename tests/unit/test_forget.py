"""Forgetting as an activity, over a real store."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.errors import failure
from activities.forget import BATCH, MAX_SHOWN, ForgetActivities, confirmation_of
from activities.models import ForgetIds, ForgetMatch, ForgetQuery, ForgetTarget, Forgotten
from activities.store.base import OpenedStore
from activities.store.sqlite import SqliteStore
from tests.contract.records import EAST, MODEL, NOON, NOWHERE, fails, memory, message


class Interrupted(SqliteStore):
    """A store that goes away after some batches."""

    batches = 0

    async def forget(self, target: ForgetTarget, most: int) -> Forgotten:
        if self.batches == 0:
            raise failure("unavailable", "gone")
        self.batches -= 1
        return await super().forget(target, most)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Interrupted]:
    store = Interrupted(tmp_path / "store.db")
    await store.open(MODEL)
    yield store
    await store.close()


def activities(store: SqliteStore) -> ForgetActivities:
    return ForgetActivities(OpenedStore(store, MODEL), 0.9)


async def test_an_attempt_that_is_cut_short_is_gone_on_with(store: Interrupted) -> None:
    ids = [f"m{number}" for number in range(3 * BATCH)]
    for name in ids:
        await store.put_message(message(name, "plum"))

    for target, expected in (
        (ForgetTarget(user_id="ann", ids=ids[: BATCH + 1]), BATCH + 1),
        (ForgetTarget(user_id="ann", conversation_id="c"), 2 * BATCH - 1),
    ):
        first, second = ActivityEnvironment(), ActivityEnvironment()
        beats: list[tuple[object, ...]] = []
        first.on_heartbeat = lambda *details, beats=beats: beats.append(details)
        store.batches = 1
        with pytest.raises(ApplicationError, match="gone"):
            await first.run(activities(store).forget_records, target)
        store.batches = 3
        second.info = replace(second.info, heartbeat_details=beats[-1])
        removed = await second.run(activities(store).forget_records, target)
        assert (removed.messages, removed.complete) == (expected, True)


async def test_ids_that_nobody_has_are_told(store: Interrupted) -> None:
    await store.put_message(message("m", "plum"))
    await store.put_message(message("bob's", "plum", user="bob"))
    await store.form_memory(memory("n", source_messages=["m"]), 2.0)

    selection = await activities(store).select_records(ForgetIds(user_id="ann", ids=["bob's", "n", "gone", "gone"]))

    assert (sorted(selection.ids), selection.unknown) == (["m", "n"], ["bob's", "gone"])


async def test_a_confirmation_stands_for_a_user_and_exactly_these_records() -> None:
    def match(name: str, kind: str = "message") -> ForgetMatch:
        return ForgetMatch.model_validate({"id": name, "kind": kind, "text": "plum", "created_at": NOON})

    one, two = match("1"), match("2")
    tokens = [
        confirmation_of("ann", [one]),
        confirmation_of("bob", [one]),
        confirmation_of("ann", [two]),
        confirmation_of("ann", [one, two]),
        confirmation_of("ann", [match("1", "memory")]),
        confirmation_of("ann", [match("12")]),
    ]
    assert len(set(tokens)) == len(tokens)
    assert confirmation_of("ann", [two, one]) == confirmation_of("ann", [one, two])


async def test_a_preview_shows_what_goes_along_after_what_matches(store: Interrupted) -> None:
    await store.put_message(message("m", "said it at length " * 100, NOWHERE))
    await store.form_memory(memory("n", content="plum", source_messages=["m"]), 2.0)
    query = ForgetQuery(user_id="ann", query="plum", limit=5, threshold=None, embedding=EAST)

    preview = await activities(store).preview_forgetting(query)

    assert [(one.id, one.similarity) for one in preview.matches] == [("n", 1), ("m", None)]
    assert len(preview.matches[1].text) <= 300
    nothing = await activities(store).preview_forgetting(query.model_copy(update={"user_id": "bob"}))
    assert (nothing.matches, nothing.confirmation) == ([], None)


async def test_more_than_can_be_read_is_refused(store: Interrupted) -> None:
    names = [f"m{number}" for number in range(MAX_SHOWN + 1)]
    for name in names:
        await store.put_message(message(name, "", NOWHERE))
    await store.form_memory(memory("n", content="plum", source_messages=names), 2.0)
    query = ForgetQuery(user_id="ann", query="plum", limit=5, threshold=None, embedding=EAST)

    with fails("over_limit", "query: ", str(MAX_SHOWN)):
        await activities(store).preview_forgetting(query)
