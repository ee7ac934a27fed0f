"""The workflow of a user's memory, over a real store: no message is lost, and none keeps the others waiting."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment
from temporalio.workflow import Info

from activities import memory
from activities.bedrock import BedrockActivities, BedrockEmbeddings, BedrockText
from activities.errors import failure
from activities.memory import MemoryActivities, memory_workflow_id
from activities.models import (
    Assessment,
    EmbeddingModel,
    ListMemoriesParams,
    MemoryGroup,
    MemoryKey,
    MemoryParent,
    MemoryQuery,
    Message,
    MessageKey,
    Side,
    StoredMessage,
    pack_vector,
)
from activities.store.base import OpenedStore
from activities.store.sqlite import SqliteStore
from activities.summaries import SummaryActivities
from mcp_server.local.stack import Addresses
from workflows.worker import build_worker

EAST = pack_vector([1, 0, 0])


class Eastward(BedrockEmbeddings):
    """Gives every text the same vector, and refuses some."""

    def __init__(self) -> None:
        super().__init__("amazon.titan-embed-text-v2:0", 256, "eu-central-1", None)

    async def embed(self, texts: Sequence[str], side: Side) -> list[bytes]:
        if any("unspeakable" in text for text in texts):
            raise failure("rejected", "the model refuses it")
        return [EAST for _ in texts]


class Waiting(MemoryActivities):
    """The activities, of which the last of a message waits until it is let go."""

    def __init__(self, store: OpenedStore, text: BedrockText) -> None:
        super().__init__(store, Eastward(), text, budget=1000)
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def prune_memories(self, user_id: str) -> int:
        self.reached.set()
        await self.let_go.wait()
        return await super().prune_memories(user_id)


class Judging(MemoryActivities):
    """The activities, but for a message that can't be judged."""

    @activity.defn
    async def assess_message(self, key: MessageKey) -> Assessment | None:
        if key.message_id == "poisoned":
            raise failure("rejected", "this message can't be judged")
        return await super().assess_message(key)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OpenedStore]:
    store = OpenedStore(SqliteStore(tmp_path / "store.db"), EmbeddingModel(model_id="by-hand", dimensions=3))
    yield store
    await store.close()


@pytest.fixture
async def activities(
    temporal: Client, stack: Addresses, store: OpenedStore, user: str
) -> AsyncIterator[MemoryActivities]:
    """The activities, which a worker on a task queue of the user's own runs."""
    text = BedrockText("local.extractive", None, stack.models)
    activities = Judging(store, Eastward(), text, budget=1000)
    async with build_worker(temporal, user, [activities, SummaryActivities(store, text)]):
        yield activities


@pytest.fixture
async def waiting(temporal: Client, stack: Addresses, store: OpenedStore, user: str) -> AsyncIterator[Waiting]:
    """The same, whose last activity of a message waits."""
    text = BedrockText("local.extractive", None, stack.models)
    activities = Waiting(store, text)
    async with build_worker(temporal, user, [activities, SummaryActivities(store, text)]):
        yield activities


def said(user: str, number: int) -> Message:
    """A message that is worth a memory of its own: another number is another fact."""
    return Message(
        message_id=f"m{number}",
        user_id=user,
        conversation_id="c",
        message_type="human",
        text=f"Please remember that I live at number {number}.",
        timestamp=datetime(2026, 5, 3, tzinfo=UTC),
        embedding=EAST,
    )


async def pass_on(temporal: Client, activities: MemoryActivities, user: str, message_id: str) -> None:
    environment = ActivityEnvironment(temporal)
    environment.info = dataclasses.replace(environment.info, task_queue=user)
    message = StoredMessage(
        user_id=user, message_id=message_id, conversation_id="c", significant=True, contexts=[message_id]
    )
    await environment.run(activities.pass_on_message, message)


async def settled(temporal: Client, user: str) -> Sequence[HistoryEvent]:
    """The history of the last run, once nothing is left to do."""
    handle = temporal.get_workflow_handle(memory_workflow_id(user, user))
    await handle.result()
    return (await handle.fetch_history()).events


async def sources(store: OpenedStore, user: str) -> list[list[str]]:
    """The messages that each of the user's memories was formed from."""
    query = MemoryQuery(
        user_id=user, text="", limit=100, embedding=EAST, retrieval_id="r", now=datetime(2026, 5, 4, tzinfo=UTC)
    )
    return sorted(one.source_messages for one in (await (await store()).recall(query)).similar_memories)


async def contexts(store: OpenedStore) -> list[str]:
    """The texts by which messages are found besides their own, of messages that have one before them."""
    other, opened = EmbeddingModel(model_id="other", dimensions=2), await store()
    await opened.begin_reembedding(other)
    texts = [record.text for record in await opened.texts_to_embed(other, "contexts", 100)]
    return sorted(text for text in texts if "\n" in text)


async def test_a_message_that_fails_or_is_gone_does_not_keep_the_others_waiting(
    temporal: Client, store: OpenedStore, activities: MemoryActivities, user: str
) -> None:
    await activities.store_message(said(user, 1))

    for message_id in ("poisoned", "gone", "m1", "m1"):
        await pass_on(temporal, activities, user, message_id)
    await settled(temporal, user)

    assert await sources(store, user) == [["m1"]]
    [summary] = await (await store()).summaries(user, ["c"])
    assert summary.messages == 1


async def test_a_context_that_cannot_be_embedded_keeps_no_others_from_theirs(
    temporal: Client, store: OpenedStore, activities: MemoryActivities, user: str
) -> None:
    lines = ["Hello.", "An unspeakable thing.", "What is?", "Never mind."]
    for number, line in enumerate(lines):
        await activities.store_message(said(user, number).model_copy(update={"text": line}))
    for number in range(len(lines)):
        await pass_on(temporal, activities, user, f"m{number}")
    await settled(temporal, user)

    assert await contexts(store) == ["What is?\nNever mind."]


async def test_contexts_do_not_wait_for_the_text_model(
    temporal: Client, store: OpenedStore, waiting: Waiting, user: str
) -> None:
    await waiting.store_message(said(user, 0))
    await pass_on(temporal, waiting, user, "m0")
    await waiting.reached.wait()
    await waiting.store_message(said(user, 1))
    await pass_on(temporal, waiting, user, "m1")
    async with asyncio.timeout(30):
        while not await contexts(store):
            await asyncio.sleep(0.05)
    waiting.let_go.set()
    await settled(temporal, user)


async def test_messages_of_a_burst_are_gathered_before_the_first_is_looked_at(
    temporal: Client,
    store: OpenedStore,
    activities: MemoryActivities,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "GATHERING", timedelta(seconds=3))
    for number in range(4):
        await activities.store_message(said(user, number))
    # Two at once, of which only one can begin it, and two that follow.
    await asyncio.gather(*(pass_on(temporal, activities, user, f"m{number}") for number in range(2)))
    await pass_on(temporal, activities, user, "m2")
    await pass_on(temporal, activities, user, "m3")
    kinds = [event.event_type for event in await settled(temporal, user)]

    before = kinds[: kinds.index(EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)]
    assert before.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED) == 3
    assert await sources(store, user) == [["m0"], ["m1"], ["m2"], ["m3"]]
    lines = [said(user, number).text for number in range(4)]
    assert await contexts(store) == [f"{one}\n{other}" for one, other in pairwise(lines)]


async def test_an_end_is_not_tried_while_there_are_messages_that_it_would_keep_waiting(
    temporal: Client, store: OpenedStore, waiting: Waiting, user: str
) -> None:
    for number in range(2):
        await waiting.store_message(said(user, number))
        await pass_on(temporal, waiting, user, f"m{number}")
        await waiting.reached.wait()
    waiting.let_go.set()
    kinds = [event.event_type for event in await settled(temporal, user)]

    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in kinds
    assert EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED in kinds
    assert await sources(store, user) == [["m0"], ["m1"]]


async def test_nothing_is_lost_where_it_continues_as_new_while_messages_come(
    temporal: Client,
    store: OpenedStore,
    activities: MemoryActivities,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A server suggests it after 4,096 events.
    monkeypatch.setattr(Info, "is_continue_as_new_suggested", lambda info: info.get_current_history_length() > 50)
    messages = [said(user, number) for number in range(40)]

    async def one(message: Message) -> None:
        await activities.store_message(message)
        await pass_on(temporal, activities, user, message.message_id)

    await asyncio.gather(*(one(message) for message in messages))
    started, *_ = await settled(temporal, user)

    assert await sources(store, user) == sorted([message.message_id] for message in messages)
    assert started.workflow_execution_started_event_attributes.continued_execution_run_id
    [summary] = await (await store()).summaries(user, ["c"])
    assert summary.messages == len(messages)
    assert len(await contexts(store)) == len(messages) - 1


async def test_users_and_deployments_have_a_workflow_each() -> None:
    places = [("a", "ann"), ("a", "bob"), ("b", "ann"), ("aa", "nn")]
    assert len({memory_workflow_id(task_queue, user_id) for task_queue, user_id in places}) == len(places)


class Interrupted(MemoryActivities):
    """The activities, of which each step of consolidation is cut off once after its work is done."""

    def __init__(self, store: OpenedStore, text: BedrockText) -> None:
        super().__init__(store, Eastward(), text, budget=1000)
        self.interrupted: set[str] = set()

    def _interrupt(self, name: str) -> None:
        if name not in self.interrupted:
            self.interrupted.add(name)
            raise failure("unavailable", "cut off")

    @activity.defn
    async def plan_group(self, key: MemoryKey) -> MemoryGroup | None:
        group = await super().plan_group(key)
        self._interrupt("plan")
        return group

    @activity.defn
    async def summarise_group(self, group: MemoryGroup) -> str:
        summary = await super().summarise_group(group)
        self._interrupt("summarise")
        return summary

    @activity.defn
    async def put_parent(self, parent: MemoryParent) -> bool:
        stored = await super().put_parent(parent)
        self._interrupt("put")
        return stored


async def test_a_consolidation_that_is_cut_off_at_every_step_is_done_once(
    temporal: Client, stack: Addresses, store: OpenedStore, user: str
) -> None:
    text = BedrockText("local.extractive", None, stack.models)
    activities = Interrupted(store, text)
    embedding = BedrockActivities(Eastward())
    places = ["Oslo", "Oslo near the harbour", "Oslo near the harbour with Ada"]
    async with build_worker(temporal, user, [activities, embedding, SummaryActivities(store, text)]):
        for number, place in enumerate(places):
            message = said(user, number).model_copy(update={"text": f"Please remember that I live in {place}."})
            await activities.store_message(message)
            await pass_on(temporal, activities, user, message.message_id)
        await settled(temporal, user)

    assert activities.interrupted == {"plan", "summarise", "put"}
    (parent,), _ = await (await store()).list_memories(ListMemoriesParams(user_id=user), datetime.now(UTC))
    assert [child.memory_id for child in parent.children] == ["m2-memory", "m1-memory", "m0-memory"]
    assert (parent.access_count, parent.source_messages) == (0, ["m0", "m1", "m2"])
    assert "Oslo" in parent.summary
