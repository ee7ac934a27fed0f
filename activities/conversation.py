"""Conversations: what a turn begins with, what bears on it, and what is kept of it; and how a message gets to one."""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from temporalio import activity
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.bedrock import BedrockEmbeddings, BedrockText
from activities.embedding_models import shown_model_id
from activities.errors import failure
from activities.memory import MemoryActivities
from activities.models import (
    EMBEDDED,
    Accepted,
    Context,
    ContextQuery,
    ConversationClosed,
    ConversationHistory,
    ConversationKey,
    ConversationParams,
    ConversationReply,
    ConversationState,
    DocumentQuery,
    HistoryMessage,
    HistoryParams,
    MemoryQuery,
    Message,
    OpenedTurn,
    PartialAnswer,
    Passage,
    RelatedMessage,
    RetrieveMemoryResult,
    SendParams,
    StoredMessage,
    StoreTurnParams,
    TurnKey,
)
from activities.passages import of_documents, of_memory
from activities.search import SearchActivities
from activities.store.base import OpenedStore
from activities.turn import latest, within, without_sources

RETRIEVED = 8
"""Of each kind, how many passages are looked for."""

LATEST_MESSAGES = 200
"""How many of the latest messages are looked at for those that fit into a model's share of them."""

HISTORY_BYTES = 1_000_000
"""Most JSON that a page of a conversation comes to: Temporal refuses payloads of 2 MB."""

BEAT_SECONDS = 0.5

MOVED = "moved"
"""Type of the failure of an update that has to be sent again, since the conversation goes on in another run."""

Result = TypeVar("Result")


def conversation_workflow_id(task_queue: str, user_id: str, conversation_id: str) -> str:
    """Id of the one workflow that a user's conversation is in the deployment that works on a task queue."""
    digest = hashlib.sha256("\0".join((task_queue, user_id, conversation_id)).encode()).hexdigest()
    return f"conversation-{digest[:32]}"


def stored_ids(workflow_id: str, sender_id: str) -> tuple[str, str]:
    """Ids under which a message to a conversation and its answer are stored, whenever and however often it is sent."""
    prompt_id = hashlib.sha256(f"{workflow_id}\0{sender_id}".encode()).hexdigest()[:32]
    return prompt_id, f"{prompt_id}-answer"


def generation_id(prompt_id: str) -> str:
    """Id of the workflow that answers a message."""
    return f"{prompt_id}-generation"


def _tells(message: RelatedMessage) -> bool:
    """Whether a message may hold an answer for a model that only quotes: no question does, nor its own quotations."""
    return message.message_type == "human" and not message.text.rstrip().endswith("?")


async def _none() -> None:
    return None


class ConversationActivities:
    """
    Args:
        store: Where messages and summaries live.
        memory: What recalls and stores messages.
        search: What searches documents.
        embeddings: What embeds messages.
        text: The model that answers.
    """

    def __init__(
        self,
        store: OpenedStore,
        memory: MemoryActivities,
        search: SearchActivities,
        embeddings: BedrockEmbeddings,
        text: BedrockText,
    ) -> None:
        self._store = store
        self._memory = memory
        self._search = search
        self._embeddings = embeddings
        self._text = text

    # A turn

    @activity.defn
    async def open_turn(self, key: TurnKey) -> OpenedTurn:
        """What was said before a message, as the store has it now: what was forgotten isn't part of it."""
        store = await self._store()
        answered = await store.read_message(key.user_id, key.answer_id)
        messages, before = await store.read_conversation(key.user_id, key.conversation_id, LATEST_MESSAGES)
        history = latest(messages, key.history_tokens)
        return OpenedTurn(
            answer=answered.text if answered else None,
            history=history,
            is_whole=before is None and len(history) == len(messages),
            summary=await self.conversation_summary(key),
            model_id=shown_model_id(self._text.model_id),
            generative=self._text.generative,
        )

    @activity.defn
    async def conversation_summary(self, key: ConversationKey) -> str:
        """The summary of a conversation; empty where there is none."""
        store = await self._store()
        return "".join(one.text for one in await store.summaries(key.user_id, [key.conversation_id]))

    @activity.defn
    async def recall_context(self, query: ContextQuery) -> Context:
        """Documents, messages and memories that bear on a message, as many as its budget holds."""
        recalling = self._recalled(query) if query.use_memory else _none()
        searching = self._found(query) if query.use_search else _none()
        recalled, found = await asyncio.gather(recalling, searching)
        messages, memories = recalled or ([], [])
        return Context(passages=within(query.tokens, found or [], messages, memories))

    async def _found(self, query: ContextQuery) -> list[Passage]:
        search = DocumentQuery(user_id=query.user_id, query=query.text, limit=RETRIEVED, embedding=query.embedding)
        return of_documents(await self._search.search_documents(search))

    async def _recalled(self, query: ContextQuery) -> tuple[list[Passage], list[Passage]]:
        """Messages that the model isn't given anyway, and memories of others than those."""
        recollection = await self._memory.recollect(
            MemoryQuery(
                user_id=query.user_id,
                text=query.text,
                # Those that it is given come first, as often as not.
                limit=2 * RETRIEVED,
                embedding=query.embedding,
                retrieval_id=query.retrieval_id,
                now=query.now,
            )
        )
        known = set(query.known)
        messages = [
            message.model_copy(update={"text": without_sources(message.text)})
            for message in recollection.related_conversation
            if message.message_id not in known and (self._text.generative or _tells(message))
        ][:RETRIEVED]
        known |= {message.message_id for message in messages}
        memories = [memory for memory in recollection.similar_memories if not known.issuperset(memory.source_messages)]
        found = of_memory(
            RetrieveMemoryResult(
                related_conversation=messages,
                similar_memories=memories[:RETRIEVED],
                conversation_summary="",
                summary_model=None,
            )
        )
        return [one for one in found if one.kind == "message"], [one for one in found if one.kind == "memory"]

    @activity.defn
    async def store_turn(self, turn: StoreTurnParams) -> StoredMessage:
        """Store a message and its answer."""
        texts = [turn.prompt, turn.answer]
        asked, answered = await self._embeddings.embed(texts, EMBEDDED["conversations"].side)
        human = Message(
            message_id=turn.prompt_id,
            user_id=turn.user_id,
            conversation_id=turn.conversation_id,
            message_type="human",
            text=turn.prompt,
            timestamp=turn.asked_at,
            embedding=asked,
        )
        said = {"message_type": "ai", "text": turn.answer, "timestamp": turn.answered_at, "embedding": answered}
        stored = await self._memory.store_message(human)
        answer = await self._memory.store_message(human.model_copy(update={"message_id": turn.answer_id, **said}))
        return stored.model_copy(update={"contexts": [*stored.contexts, *answer.contexts]})

    # A caller's side

    @activity.defn
    async def send_message(self, params: SendParams) -> ConversationReply | Accepted:
        """Put a message into a conversation, which begins or opens again where it isn't open, and wait for its answer.

        An attempt after this one attaches to what this one has sent. While it waits, it heartbeats what there is of
        the answer, as progress.

        Raises:
            ApplicationError: not to be retried, for what keeps the message from being answered.
        """
        client, info = activity.client(), activity.info()
        workflow_id = conversation_workflow_id(info.task_queue, params.user_id, params.conversation_id)
        prompt_id, _ = stored_ids(workflow_id, params.prompt.message_id)
        begun = ConversationParams(
            user_id=params.user_id, conversation_id=params.conversation_id, limits=params.prompt.limits
        )
        if not params.wait:
            with _reaching():
                await client.start_workflow(
                    "ConversationWorkflow",
                    begun,
                    id=workflow_id,
                    task_queue=info.task_queue,
                    start_signal="say",
                    start_signal_args=[params.prompt],
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                )
            return Accepted(conversation_id=params.conversation_id, message_id=prompt_id)
        with _reaching():
            return await _beating(
                client,
                generation_id(prompt_id),
                client.execute_update_with_start_workflow(
                    "converse",
                    params.prompt,
                    start_workflow_operation=WithStartWorkflowOperation(
                        "ConversationWorkflow",
                        begun,
                        id=workflow_id,
                        task_queue=info.task_queue,
                        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    ),
                    # A call that failed and is made again is another run, and asks again.
                    id=f"{info.workflow_id}-{info.workflow_run_id}",
                    result_type=ConversationReply,
                ),
            )

    @activity.defn
    async def end_conversation(self, key: ConversationKey) -> ConversationClosed:
        """Have a conversation end once all that was sent to it is answered, and wait for its closing summary."""
        client, info = activity.client(), activity.info()
        handle = client.get_workflow_handle(conversation_workflow_id(info.task_queue, key.user_id, key.conversation_id))
        try:
            with _reaching():
                return await _beating(
                    client,
                    None,
                    handle.execute_update("close", id=info.workflow_id, result_type=ConversationClosed),
                )
        except ApplicationError as error:
            if error.type != _NOT_OPEN:
                raise
        summary = await self.conversation_summary(key)
        await self._check_exists(key)
        return ConversationClosed(conversation_id=key.conversation_id, summary=summary)

    async def _check_exists(self, key: ConversationKey) -> None:
        store = await self._store()
        messages, _ = await store.read_conversation(key.user_id, key.conversation_id, 1)
        if not messages:
            raise _unknown(key)

    @activity.defn
    async def read_history(self, params: HistoryParams) -> ConversationHistory:
        """A page of a conversation: what is stored, and with the latest page what is still to be answered.

        Raises:
            ApplicationError: `rejected` where the user has no such conversation.
        """
        # Before the store is read: what has been stored since is waiting no more.
        state = await self._state(params)
        store = await self._store()
        messages, cursor = await store.read_conversation(
            params.user_id, params.conversation_id, params.limit, params.cursor
        )
        if not messages and state is None and params.cursor is None:
            raise _unknown(params)
        stored = {message.message_id for message in messages}
        workflow_id = conversation_workflow_id(activity.info().task_queue, params.user_id, params.conversation_id)
        waiting = [
            prompt.text
            for prompt in (state.waiting if state and params.cursor is None else [])
            if stored_ids(workflow_id, prompt.message_id)[0] not in stored
        ]
        replies = {turn.reply.answer_id: turn.reply for turn in state.turns} if state else {}
        shown: list[HistoryMessage] = []
        for message in messages:
            reply = replies.get(message.message_id)
            known = {"citations": reply.citations, "cached": reply.cached is not None} if reply else {}
            shown.append(HistoryMessage(**message.model_dump(), **known))
        while len(shown) > 1 and sum(len(one.model_dump_json().encode()) for one in shown) > HISTORY_BYTES:
            # The later half; the cursor for what is before it comes with it.
            half = len(shown) // 2
            _, cursor = await store.read_conversation(params.user_id, params.conversation_id, half, params.cursor)
            shown = shown[-half:]
        return ConversationHistory(
            conversation_id=params.conversation_id,
            is_open=state is not None,
            messages=shown,
            waiting=waiting,
            summary=await self.conversation_summary(params),
            next_cursor=cursor,
        )

    async def _state(self, key: ConversationKey) -> ConversationState | None:
        """An open conversation's; None where it isn't open."""
        handle = activity.client().get_workflow_handle(
            conversation_workflow_id(activity.info().task_queue, key.user_id, key.conversation_id)
        )
        try:
            with _reaching():
                if (await handle.describe()).status != WorkflowExecutionStatus.RUNNING:
                    return None
                state: ConversationState = await handle.query("state", result_type=ConversationState)
                return state
        except ApplicationError as error:
            if error.type != _NOT_OPEN:
                raise
            return None


_NOT_OPEN = "not_open"


def _unknown(key: ConversationKey) -> ApplicationError:
    return failure("rejected", f"conversation_id: this user has no conversation '{key.conversation_id}'")


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """What goes wrong on the way to a conversation passes; what it answers doesn't.

    Raises:
        ApplicationError: of type _NOT_OPEN where there is no such workflow.
    """
    try:
        yield
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        if not isinstance(cause, ApplicationError) or cause.type in (MOVED, "AcceptedUpdateCompletedWorkflow"):
            raise failure("unavailable", "The conversation goes on in another run.") from None
        raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from None
    except WorkflowUpdateRPCTimeoutOrCancelledError:
        raise failure("unavailable", "Temporal doesn't take the message now.") from None
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise ApplicationError("The conversation isn't open.", type=_NOT_OPEN) from None
        raise failure("unavailable", f"Temporal doesn't take the message now ({error.status.name}).") from None


async def _beating(client: Client, generation: str | None, waited_for: Awaitable[Result]) -> Result:
    """Heartbeat until something is there, with what another workflow has of an answer as progress."""
    waiting = asyncio.ensure_future(waited_for)
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=BEAT_SECONDS)
            if done:
                return waiting.result()
            told = await partial_answer(client, generation) if generation else ""
            activity.heartbeat({"stage": "answering", "fraction": None, "message": told})
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await waiting


async def partial_answer(client: Client, generation: str) -> str:
    """What there is of an answer that a workflow is generating, or why it takes long; empty where nothing is known."""
    with contextlib.suppress(RPCError, TimeoutError):
        async with asyncio.timeout(BEAT_SECONDS * 4):
            description = await client.get_workflow_handle(generation).describe()
            for pending in description.raw_description.pending_activities:
                if pending.heartbeat_details.payloads:
                    told = await client.data_converter.decode(pending.heartbeat_details.payloads[:1], [PartialAnswer])
                    return str(told[0].text)
    return ""
