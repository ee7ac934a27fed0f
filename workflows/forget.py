"""Forgetting: by ids, by conversation, by a query once its matches were shown, or everything of a user."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.bedrock import BedrockActivities
    from activities.errors import failure
    from activities.forget import ForgetActivities
    from activities.models import (
        EmbedParams,
        ForgetIds,
        ForgetParams,
        ForgetPreview,
        ForgetQuery,
        ForgetResult,
        ForgetTarget,
    )
    from workflows.steps import DURABLY, HEARTBEAT, READ_GIVE_UP, WRITE_GIVE_UP, Questions, report, step

CONFIRM = "Forget everything that is remembered of you: all messages, memories and cached answers? It can't be undone."


@workflow.defn
class ForgetWorkflow:
    """What ids and a query mean is decided first, and kept in its history: a crash in the middle never makes it more.

    Of a conversation, and of everything, what is stored while it is under way goes too.
    """

    def __init__(self) -> None:
        self._questions = Questions()

    @workflow.run
    async def run(self, params: ForgetParams) -> ForgetResult:
        if params.asks and not await self._questions.confirm("confirm", CONFIRM):
            raise failure("rejected", "everything: the user didn't agree; nothing was removed.")
        target = ForgetTarget(
            user_id=params.user_id, conversation_id=params.conversation_id, everything=params.everything
        )
        result = ForgetResult()
        if params.query is not None:
            preview = await self._preview(params, params.query)
            if params.confirmation is None:
                return ForgetResult(matches=preview.matches, confirmation=preview.confirmation)
            if params.confirmation != preview.confirmation:
                raise failure(
                    "rejected",
                    "confirmation: it doesn't stand for what query matches now; nothing was removed. Call forget with "
                    "the same query, limit and threshold but without confirmation, look at the matches, and give back "
                    "the confirmation that comes with them.",
                )
            target.ids = [match.id for match in preview.matches]
        elif params.ids is not None:
            selection = await step(ForgetActivities.select_records, ForgetIds(user_id=params.user_id, ids=params.ids))
            target.ids, result.unknown_ids = selection.ids, selection.unknown
        report("forgetting", message="Forgetting; what is gone stays gone.")
        forgotten = await workflow.execute_activity_method(
            ForgetActivities.forget_records,
            target,
            # Heartbeats tell whether it is alive; this only has to be longer than any store takes.
            start_to_close_timeout=timedelta(days=1),
            schedule_to_close_timeout=WRITE_GIVE_UP,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=DURABLY,
        )
        return result.model_copy(update=forgotten.model_dump(exclude={"complete"}))

    @staticmethod
    async def _preview(params: ForgetParams, query: str) -> ForgetPreview:
        """What the query means now."""
        give_up = READ_GIVE_UP if params.confirmation is None else WRITE_GIVE_UP
        embedded = await step(BedrockActivities.embed, EmbedParams(texts=[query], side="query"), give_up=give_up)
        shown = ForgetQuery(
            user_id=params.user_id,
            query=query,
            limit=params.limit,
            threshold=params.threshold,
            embedding=embedded.vectors[0],
        )
        return await step(ForgetActivities.preview_forgetting, shown, give_up=give_up)
