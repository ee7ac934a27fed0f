"""Memory: store a message, let a memory form from it, and recall what bears on a text."""

import asyncio
import hashlib
from collections import deque
from datetime import timedelta
from itertools import islice

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.bedrock import BedrockActivities
    from activities.memory import SIGNIFICANCE, MemoryActivities
    from activities.models import (
        EMBEDDED,
        ConversationKey,
        EmbedParams,
        FormMemoryParams,
        ListMemoriesParams,
        MemoryKey,
        MemoryPage,
        MemoryParent,
        MemoryQuery,
        Message,
        MessageKey,
        MessageKeys,
        PinMemoryParams,
        PinMemoryResult,
        RetrieveMemoryParams,
        RetrieveMemoryResult,
        SplitMemoryResult,
        StoredMessage,
        StoreMemoryParams,
        StoreMemoryResult,
        UserMemoryParams,
    )
    from activities.summaries import SummaryActivities
    from workflows.steps import READ_GIVE_UP, step

MODEL_ATTEMPT = timedelta(minutes=2)
"""How long one attempt of a step may take in which a text model is asked, perhaps twice."""

A_MOMENT = timedelta(milliseconds=1)

STEPS_AT_ONCE = 20
"""After how many messages and summaries a new workflow task is begun: what one reports to the server is bounded."""

CONTEXTS_AT_ONCE = 16
"""How many messages are put into their contexts in one step, at most."""

REGROUPINGS = 3
"""How often a group is planned anew whose memories have changed meanwhile."""


@workflow.defn
class MemoryStorageWorkflow:
    @staticmethod
    def embedded(params: StoreMemoryParams) -> EmbedParams:
        """What the first step embeds."""
        return EmbedParams(texts=[params.text], side=EMBEDDED["conversations"].side)

    @workflow.run
    async def run(self, params: StoreMemoryParams) -> StoreMemoryResult:
        embedded = await step(BedrockActivities.embed, self.embedded(params))
        message = Message(
            message_id=_message_id(params),
            user_id=params.user_id,
            conversation_id=params.conversation_id,
            message_type=params.message_type,
            text=params.text,
            timestamp=params.timestamp or workflow.now(),
            embedding=embedded.vectors[0],
        )
        stored = await step(MemoryActivities.store_message, message)
        await step(MemoryActivities.pass_on_message, stored)
        return StoreMemoryResult(message_id=stored.message_id, memory_forming=stored.significant)


def _message_id(params: StoreMemoryParams) -> str:
    """Id of a message: the same for each attempt and for a call that is made again, another for another message.

    A caller's key names a workflow. Used for another message once Temporal has forgotten that, it must not replace it.
    """
    said = hashlib.sha256(params.model_dump_json().encode()).hexdigest()
    return f"{workflow.info().workflow_id}-{said[:12]}"


@workflow.defn
class UserMemoryWorkflow:
    """What becomes of a user's messages once they are stored, one after the other: no two of them race a merge.

    A message's signal begins it, and it ends when nothing is left to do. It outlives the calls that stored them, and
    knows messages by their ids alone: what they say is read where it is needed. Its history holds only what was made of
    them: their assessments, and groups of memories as they were planned.
    """

    @workflow.init
    def __init__(self, params: UserMemoryParams) -> None:
        self._user_id = params.user_id
        self._forming = deque(params.forming)
        self._summarising = dict.fromkeys(params.summarising)
        self._contexts = deque(params.contexts)
        self._placing: asyncio.Task[None] | None = None

    @workflow.signal
    def message_stored(self, message: StoredMessage) -> None:
        """A message that arrives twice forms its memory once: `form_memory` sees to that."""
        if message.significant:
            self._forming.append(message.message_id)
        self._summarising[message.conversation_id] = None
        self._contexts.extend(message.contexts)
        self._place()

    @workflow.run
    async def run(self, params: UserMemoryParams) -> None:
        # Nothing is awaited between the last look and the end, and Temporal takes neither the end nor a continuation
        # while there is a signal that this hasn't seen.
        done = 0
        self._place()
        while self._is_anything_left or await self._has_more_come():
            if done and done % STEPS_AT_ONCE == 0:
                await workflow.sleep(A_MOMENT)
            done += 1
            if workflow.info().is_continue_as_new_suggested():
                left = UserMemoryParams(
                    user_id=self._user_id,
                    forming=list(self._forming),
                    summarising=list(self._summarising),
                    contexts=list(self._contexts),
                )
                workflow.continue_as_new(left)
            try:
                if self._forming:
                    await self._form(self._forming.popleft())
                elif self._summarising:
                    # Last, so that a burst of messages costs a conversation one update.
                    conversation_id = next(iter(self._summarising))
                    del self._summarising[conversation_id]
                    await self._summarise(conversation_id)
                elif self._placing is not None:
                    await self._placing
            except FailureError as error:
                _leave_out(error)

    @property
    def _is_anything_left(self) -> bool:
        return bool(self._contexts or self._forming or self._summarising)

    async def _has_more_come(self) -> bool:
        """Begin a new workflow task, which tells of the messages that came while the last one ran.

        A workflow that tries to end while there are any takes no more of them until it has done what it has to do then:
        whoever stores a message would wait for that.
        """
        await workflow.sleep(A_MOMENT)
        return self._is_anything_left

    def _place(self) -> None:
        """Put messages into their contexts, beside the memories: those may have to wait long for the text model."""
        if self._contexts and (self._placing is None or self._placing.done()):
            self._placing = asyncio.create_task(self._put_in_context())

    async def _put_in_context(self) -> None:
        """Have messages be found together with the ones before them too, those of a burst in one step."""
        while self._contexts:
            ids = list(islice(self._contexts, CONTEXTS_AT_ONCE))
            keys = MessageKeys(user_id=self._user_id, message_ids=ids)
            try:
                await step(MemoryActivities.put_in_context, keys, attempt=MODEL_ATTEMPT)
            except FailureError as error:
                _leave_out(error)
            # Not before: what isn't done when it continues as new is done then.
            for _ in ids:
                self._contexts.popleft()

    async def _form(self, message_id: str) -> None:
        """Make a memory of a message that is worth one."""
        key = MessageKey(user_id=self._user_id, message_id=message_id)
        assessment = await step(MemoryActivities.assess_message, key, attempt=MODEL_ATTEMPT)
        if assessment is None or assessment.importance < SIGNIFICANCE:
            return
        formed = await step(MemoryActivities.form_memory, FormMemoryParams(**key.model_dump(), assessment=assessment))
        if formed is not None and formed.memory_id is not None:
            await self._consolidate(formed.memory_id)
            await step(MemoryActivities.prune_memories, self._user_id)

    async def _consolidate(self, memory_id: str) -> None:
        """Put a memory under one parent with those that are about the same matter, if there are any.

        Each step may be repeated: a parent's id derives from its children's, and it is stored only while they are as
        they were when it was planned.
        """
        key = MemoryKey(user_id=self._user_id, memory_id=memory_id)
        for _ in range(REGROUPINGS):
            group = await step(MemoryActivities.plan_group, key)
            if group is None:
                return
            summary = await step(MemoryActivities.summarise_group, group, attempt=MODEL_ATTEMPT)
            side = EMBEDDED["memory_nodes"].side
            embedded = await step(BedrockActivities.embed, EmbedParams(texts=[group.content], side=side))
            parent = MemoryParent(**group.model_dump(), summary=summary, embedding=embedded.vectors[0])
            if await step(MemoryActivities.put_parent, parent):
                return

    async def _summarise(self, conversation_id: str) -> None:
        """Bring a conversation's summary up to date, or a step nearer to that."""
        there_may_be_more = await step(
            SummaryActivities.update_summary,
            ConversationKey(user_id=self._user_id, conversation_id=conversation_id),
            attempt=MODEL_ATTEMPT,
        )
        if there_may_be_more:
            self._summarising[conversation_id] = None


def _leave_out(error: FailureError) -> None:
    """What can't be mended, or not within WRITE_GIVE_UP, doesn't keep the others waiting.

    Raises:
        FailureError: where the workflow is cancelled.
    """
    if is_cancelled_exception(error):
        raise error
    workflow.logger.exception("a step for the user's memory is left out")


@workflow.defn
class MemoryRetrievalWorkflow:
    only_reads = True

    @staticmethod
    def embedded(params: RetrieveMemoryParams) -> EmbedParams:
        """What the first step embeds."""
        return EmbedParams(texts=[params.text], side="query")

    @workflow.run
    async def run(self, params: RetrieveMemoryParams) -> RetrieveMemoryResult:
        embedded = await step(BedrockActivities.embed, self.embedded(params), give_up=READ_GIVE_UP)
        query = MemoryQuery(
            **params.model_dump(),
            embedding=embedded.vectors[0],
            retrieval_id=workflow.info().workflow_id,
            now=workflow.now(),
        )
        return await step(MemoryActivities.recall, query, give_up=READ_GIVE_UP)


@workflow.defn
class MemoryListWorkflow:
    only_reads = True

    @workflow.run
    async def run(self, params: ListMemoriesParams) -> MemoryPage:
        return await step(MemoryActivities.list_memories, params, give_up=READ_GIVE_UP)


@workflow.defn
class MemoryPinWorkflow:
    @workflow.run
    async def run(self, params: PinMemoryParams) -> PinMemoryResult:
        return await step(MemoryActivities.pin_memory, params)


@workflow.defn
class MemorySplitWorkflow:
    @workflow.run
    async def run(self, key: MemoryKey) -> SplitMemoryResult:
        return await step(MemoryActivities.split_memory, key)
