"""Conversations: each one a workflow that takes messages one at a time, for as long as there are any."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from datetime import timedelta

from temporalio import exceptions, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.conversation import MOVED, ConversationActivities, conversation_workflow_id
    from activities.documents import FETCH_ATTEMPTS, DocumentActivities, fetched_content
    from activities.errors import KINDS
    from activities.models import (
        DEFAULT_COLLECTION,
        Accepted,
        ContentNames,
        ConversationClosed,
        ConversationHistory,
        ConversationKey,
        ConversationParams,
        ConversationReply,
        ConversationState,
        ConversationTurn,
        ConverseParams,
        HistoryParams,
        ImageParams,
        PreparedImage,
        Prompt,
        SendParams,
        Source,
        SourceParams,
    )
    from activities.summaries import SummaryActivities
    from activities.turn import tokens_of
    from workflows.images import ImageProcessingWorkflow
    from workflows.steps import (
        DURABLY,
        HEARTBEAT,
        READ_GIVE_UP,
        TO_ITS_END,
        WRITE_GIVE_UP,
        end_if_cancelled,
        step,
    )
    from workflows.turn import Turn

MOST_CARRIED = 200_000
"""Tokens of messages that are carried while they wait: Temporal refuses payloads of 2 MB."""

MOST_EVENTS = 20_000
"""Length of a history at which whoever waits is sent on to the next run: far from Temporal's limit of 51,200."""

REFUSALS_KEPT = 100
"""Of how many messages that weren't answered a conversation knows why."""

SEND_ATTEMPT = timedelta(hours=1)
"""How long one attempt may wait for an answer; the next one attaches to the same message."""

_FETCHING = RetryPolicy(
    initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30), maximum_attempts=FETCH_ATTEMPTS
)


@workflow.defn
class ConversationWorkflow:
    """A conversation of a user.

    It begins with its first message. It ends when it is told to, or after a time without a message, with a summary of
    what was said; its next message begins it again, with what is stored of it. A message and its answer are stored
    before the answer is given and the next message's turn comes. A message that can't be answered leaves no trace.

    It continues as new where Temporal suggests it, or where more was said than a model is given again. The store has
    all of it: what is carried is what the store has not, and what is asked for most.
    """

    @workflow.init
    def __init__(self, params: ConversationParams) -> None:
        self._key = ConversationKey(user_id=params.user_id, conversation_id=params.conversation_id)
        self._limits = params.limits
        self._turns = list(params.turns)
        self._summary = params.summary
        self._waiting = deque(params.waiting)
        self._last_at = params.last_at
        self._ending = params.ending
        self._closings = 0
        self._is_full = False
        self._leaving = False
        self._replies = {turn.sender_id: turn.reply for turn in params.turns}
        self._refusals: dict[str, ApplicationError] = {}
        self._current: Prompt | None = None
        self._answering: asyncio.Task[None] | None = None
        self._turn: Turn | None = None
        self._withdrawn = False

    # What it is told and asked

    @workflow.update
    async def converse(self, prompt: Prompt) -> ConversationReply:
        """Answer a message. One that is sent again under its id is answered as it was the first time.

        Raises:
            ApplicationError: for what keeps it from being answered; MOVED where it has to be sent again.
        """
        self._take_in(prompt)
        key = prompt.message_id
        await workflow.wait_condition(lambda: key in self._replies or key in self._refusals or self._leaving)
        if key in self._replies:
            return self._replies[key]
        raise self._refusals.get(key, _moved())

    @converse.validator
    def _check(self, prompt: Prompt) -> None:
        if not prompt.text.strip():
            raise ApplicationError("prompt: it must not be empty", type="rejected")

    @workflow.signal
    def say(self, prompt: Prompt) -> None:
        """Take a message whose sender doesn't wait for the answer."""
        if prompt.text.strip():
            self._take_in(prompt)

    @workflow.signal
    def withdraw(self, message_id: str) -> None:
        """Leave out the message that was sent under this id, unless it is answered already."""
        for prompt in [waiting for waiting in self._waiting if waiting.message_id == message_id]:
            self._waiting.remove(prompt)
            self._refuse(prompt, _withdrawn())
        if self._current and self._current.message_id == message_id and self._answering:
            self._withdrawn = True
            self._answering.cancel()

    @workflow.signal
    def end(self) -> None:
        """End once all messages are answered."""
        self._ending = True

    @workflow.update
    async def close(self) -> ConversationClosed:
        """The same, and wait for the closing summary."""
        self._ending = True
        before = self._closings
        await workflow.wait_condition(lambda: self._closings > before or self._leaving)
        if self._closings == before:
            raise _moved()
        return self._closed()

    @workflow.query
    def state(self) -> ConversationState:
        """What was said last, and what is under way."""
        waiting = [*([self._current] if self._current else []), *self._waiting]
        answering = self._turn.generation_id if self._turn else None
        return ConversationState(turns=self._turns, waiting=waiting, summary=self._summary, generation_id=answering)

    @workflow.query
    def history(self) -> list[ConversationTurn]:
        """The last turns, oldest first."""
        return self._turns

    @workflow.query
    def summary(self) -> str:
        """What was said, as far as it has been summarised."""
        return self._summary

    def _take_in(self, prompt: Prompt) -> None:
        key = prompt.message_id
        under_way = [*([self._current] if self._current else []), *self._waiting]
        if key in self._replies or any(other.message_id == key for other in under_way):
            return
        # What failed, and is sent again, is answered again.
        self._refusals.pop(key, None)
        self._limits = prompt.limits
        self._waiting.append(prompt)

    def _refuse(self, prompt: Prompt, why: ApplicationError) -> None:
        self._refusals[prompt.message_id] = why
        while len(self._refusals) > REFUSALS_KEPT:
            del self._refusals[next(iter(self._refusals))]

    def _closed(self) -> ConversationClosed:
        return ConversationClosed(conversation_id=self._key.conversation_id, summary=self._summary)

    # Its course

    @workflow.run
    async def run(self, params: ConversationParams) -> ConversationClosed:
        while True:
            if self._is_full or workflow.info().is_continue_as_new_suggested():
                await self._go_on_as_new()
            if self._overflows():
                await self._let_go()
            elif self._waiting:
                await self._take(self._waiting.popleft())
            elif self._ending or not await self._another():
                await self._close()
                await workflow.wait_condition(lambda: bool(self._waiting) or workflow.all_handlers_finished())
                # Nothing is awaited between this look and the end, and Temporal takes no end while there is something
                # that this hasn't seen.
                if not self._waiting:
                    return self._closed()

    async def _another(self) -> bool:
        """Wait for a message; false where it is time to end."""
        idle = timedelta(seconds=self._limits.idle_seconds) or None
        try:
            await workflow.wait_condition(lambda: bool(self._waiting) or self._ending, timeout=idle)
        except TimeoutError:
            return False
        return bool(self._waiting)

    def _overflows(self) -> bool:
        """Whether more was said than a model is given again."""
        return len(self._turns) > 1 and sum(map(_tokens, self._turns)) > self._limits.history_tokens

    async def _go_on_as_new(self) -> None:
        """Continue as new; where somebody waits for an answer that comes first, as long as the history has room."""
        finished = workflow.all_handlers_finished
        await workflow.wait_condition(lambda: bool(self._waiting) or finished())
        if sum(tokens_of(prompt.text) for prompt in self._waiting) > MOST_CARRIED:
            return
        if not finished():
            if workflow.info().get_current_history_length() < MOST_EVENTS:
                return
            self._leaving = True
            await workflow.wait_condition(finished)
        workflow.continue_as_new(
            ConversationParams(
                **self._key.model_dump(),
                turns=self._turns,
                summary=self._summary,
                waiting=list(self._waiting),
                last_at=self._last_at,
                limits=self._limits,
                ending=self._ending,
            )
        )

    async def _let_go(self) -> None:
        """Keep of the last turns what half of the room holds; the summary has the others."""
        await self._summarise()
        room = self._limits.history_tokens // 2
        kept = 0
        while kept < len(self._turns) and (room := room - _tokens(self._turns[-1 - kept])) >= 0:
            kept += 1
        kept = max(kept, 1)
        await _drop(turn.image for turn in self._turns[:-kept])
        self._turns = self._turns[-kept:]
        self._is_full = True

    async def _close(self) -> None:
        """Bring the summary that memory keeps up to date, and let go of what nobody needs any more."""
        if self._turns:
            await self._summarise()
            await _drop(turn.image for turn in self._turns)
            self._turns = [turn.model_copy(update={"image": None}) for turn in self._turns]
        self._closings += 1
        self._ending = False

    async def _summarise(self) -> None:
        """Have all that is stored of the conversation in its summary, as far as that can be had now."""
        try:
            more = True
            while more:
                more = await workflow.execute_activity_method(
                    SummaryActivities.update_summary,
                    self._key,
                    start_to_close_timeout=timedelta(minutes=2),
                    schedule_to_close_timeout=timedelta(minutes=10),
                    heartbeat_timeout=HEARTBEAT,
                    retry_policy=DURABLY,
                )
            self._summary = await step(ConversationActivities.conversation_summary, self._key, give_up=READ_GIVE_UP)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            # The workflow of the user's memory goes on trying.
            workflow.logger.exception("the summary of a conversation isn't up to date")

    async def _take(self, prompt: Prompt) -> None:
        """Answer a message, store both, and only then give the answer."""
        self._current, self._withdrawn = prompt, False
        self._turn = turn = Turn(self._key, prompt, self._turns, self._last_at)
        self._answering = asyncio.create_task(turn.answer())
        try:
            await self._answering
            # From here on it can't be withdrawn.
            self._answering = None
            if (done := await turn.store()) is not None:
                self._keep(turn, done)
            assert turn.reply is not None
            self._replies[prompt.message_id] = turn.reply
        except (FailureError, asyncio.CancelledError) as error:
            if not is_cancelled_exception(error):
                self._refuse(prompt, _refusal(error))
            elif self._withdrawn:
                self._refuse(prompt, _withdrawn())
            else:
                raise
            await _drop([prompt.image])
        finally:
            self._current = self._turn = self._answering = None

    def _keep(self, turn: Turn, done: ConversationTurn) -> None:
        """Add a turn to the last ones, without those that were forgotten since."""
        opened = turn.opened
        assert opened is not None
        said = {message.message_id for message in opened.history}
        first = opened.history[0].timestamp if opened.history else done.asked_at
        self._turns = [before for before in self._turns if before.reply.message_id in said or before.asked_at < first]
        self._turns.append(done)
        self._summary = opened.summary
        self._last_at = done.answered_at


def _tokens(turn: ConversationTurn) -> int:
    return tokens_of(turn.prompt) + tokens_of(turn.reply.answer)


def _moved() -> ApplicationError:
    return ApplicationError("The conversation goes on in another run.", type=MOVED)


def _withdrawn() -> ApplicationError:
    return ApplicationError("The message was withdrawn before it was answered.", type="rejected")


def _about_image(error: BaseException) -> ApplicationError:
    """Why an image can't be used."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.type in KINDS:
            return ApplicationError(f"image: {cause.message}", type=cause.type, non_retryable=True)
        cause = cause.__cause__
    return ApplicationError("image: it couldn't be got in time. Try again later.", type="unavailable")


def _refusal(error: BaseException) -> ApplicationError:
    """Why a message can't be answered, in what an activity worded for its sender, if one did."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    left = "The message isn't part of the conversation; the conversation goes on with the next one."
    for found in causes:
        if isinstance(found, ApplicationError) and found.type in KINDS:
            return ApplicationError(f"{found.message.rstrip('.')}. {left}", type=found.type)
    if any(isinstance(found, exceptions.TimeoutError) for found in causes):
        return ApplicationError(f"A step of the answer didn't come in time. {left}", type="unavailable")
    return ApplicationError(f"It can't be answered; the workflow's history says why. {left}", type="unavailable")


async def _drop(images: Iterable[PreparedImage | None]) -> None:
    """Drop images that are shown no more; one that can't be reached now goes when contents are purged."""
    if names := [image.content for image in images if image is not None]:
        try:
            await step(DocumentActivities.drop_contents, ContentNames(names=names), give_up=READ_GIVE_UP)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            workflow.logger.exception("images of a conversation aren't dropped")


@workflow.defn
class ConverseWorkflow:
    """A call: a message on its way into its conversation, and the answer on its way back."""

    @workflow.run
    async def run(self, params: ConverseParams) -> ConversationReply | Accepted:
        own_id = workflow.info().workflow_id
        key = ConversationKey(
            user_id=params.user_id,
            # Made again after a failure, the call is about the same new conversation.
            conversation_id=params.conversation_id or own_id.rpartition("-")[2],
        )
        image = await self._prepare(params, params.image) if params.image is not None else None
        send = SendParams(
            **key.model_dump(),
            prompt=Prompt(
                message_id=own_id,
                text=params.prompt,
                image=image,
                **params.model_dump(include={"use_cache", "use_memory", "use_search", "limits"}),
            ),
            wait=params.wait,
        )
        try:
            end_if_cancelled()
            return await workflow.execute_activity_method(
                ConversationActivities.send_message,
                send,
                start_to_close_timeout=SEND_ATTEMPT,
                schedule_to_close_timeout=WRITE_GIVE_UP,
                heartbeat_timeout=HEARTBEAT,
                retry_policy=DURABLY,
                # Once it has ended, it sends the message no more.
                cancellation_type=TO_ITS_END,
            )
        except (FailureError, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                await self._withdraw(key, own_id)
            await _drop([image])
            raise

    async def _withdraw(self, key: ConversationKey, message_id: str) -> None:
        workflow_id = conversation_workflow_id(workflow.info().task_queue, key.user_id, key.conversation_id)
        conversation = workflow.get_external_workflow_handle(workflow_id)
        # Where it isn't open there is nothing to leave out.
        with contextlib.suppress(FailureError):
            await conversation.signal(ConversationWorkflow.withdraw, message_id)

    async def _prepare(self, params: ConverseParams, source: Source) -> PreparedImage:
        """The image as a model takes it, in a content that the conversation drops."""
        contents = [source.content] if source.content is not None else []
        try:
            if source.url is not None:
                contents.append(fetched_content(workflow.info().workflow_id, source))
                source = await workflow.execute_activity_method(
                    DocumentActivities.fetch_source,
                    SourceParams(user_id=params.user_id, collection=DEFAULT_COLLECTION, source=source, roots=[]),
                    start_to_close_timeout=timedelta(minutes=10),
                    heartbeat_timeout=HEARTBEAT,
                    retry_policy=_FETCHING,
                    cancellation_type=TO_ITS_END,
                )
                end_if_cancelled()
            return await workflow.execute_child_workflow(
                ImageProcessingWorkflow.run,
                ImageParams(source=source, roots=params.roots, files_queue=params.files_queue),
            )
        except FailureError as error:
            end_if_cancelled()
            if is_cancelled_exception(error):
                raise
            raise _about_image(error) from error
        finally:
            if contents:
                await step(DocumentActivities.drop_contents, ContentNames(names=contents))


@workflow.defn
class ConversationHistoryWorkflow:
    only_reads = True

    @workflow.run
    async def run(self, params: HistoryParams) -> ConversationHistory:
        return await step(ConversationActivities.read_history, params, give_up=READ_GIVE_UP)


@workflow.defn
class ConversationEndWorkflow:
    @workflow.run
    async def run(self, key: ConversationKey) -> ConversationClosed:
        return await workflow.execute_activity_method(
            ConversationActivities.end_conversation,
            key,
            start_to_close_timeout=SEND_ATTEMPT,
            schedule_to_close_timeout=WRITE_GIVE_UP,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=DURABLY,
        )
