"""Generation: ask the model, call the tools that it wants, and ask again until it has answered."""

import json
from datetime import datetime, timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.errors import failure
    from activities.generation import GenerationActivities
    from activities.images import ImageActivities
    from activities.models import (
        AnswerParams,
        GenerationMeans,
        GenerationParams,
        GenerationResult,
        Invocation,
        ModelReply,
        ModelTurn,
        Passage,
        PreparedImage,
        ToolCall,
        ToolOutcome,
        ToolUse,
    )
    from activities.passages import cited
    from activities.store.words import cut
    from workflows.steps import ATTEMPT, DURABLY, HEARTBEAT, report
    from workflows.toolbox import Toolbox

ANSWER_SECONDS = timedelta(minutes=10)
"""How long one invocation may take: the longest answers of thinking models do."""

ANSWER_GIVE_UP = timedelta(minutes=15)
"""How long a model that is throttled or down is tried: a person waits, and others' messages behind this one."""

IMAGE_GIVE_UP = timedelta(minutes=2)

MAX_ROUNDS = 8
"""Rounds of tools before the model has to answer: a question that needs more is a plan, and loops look like that."""

MAX_CALLS = 8
"""Tools called in one round, at once: one invocation must not start a crowd of them."""

TOOLS_TIME = timedelta(minutes=5)
"""After how long no more tools are called: the answer is waited for."""

TOOLS_CHARACTERS = 120_000
"""Length of all tools' answers together: some 30,000 tokens, which most models and every history hold."""

ARGUMENTS_CHARACTERS = 2_000
"""Length to which the arguments of a tool's call are cut in a result; the history has them whole."""

MALFORMED = {
    "malformed_tool_use": "Your call of a tool couldn't be read. Call it again with valid JSON, or answer without it.",
    "malformed_model_output": "Your answer couldn't be read. Give it again.",
}

REFUSALS = {
    "guardrail_intervened": "A guardrail of Amazon Bedrock stopped the answer. Say it in other words, or ask for "
    "something else.",
    "content_filtered": "The model's content filter stopped the answer. Say it in other words, or ask for something "
    "else.",
}

OVERFLOW = "The conversation is longer than the model takes. Send less of it."


@workflow.defn
class AIGenerationWorkflow:
    """Its history holds every invocation with its parameters and usage, and every tool's call with its answer.

    What a model streams isn't in it: that is in the details of the heartbeats while an invocation is under way. Where a
    worker ends in the middle of one, another makes it anew.
    """

    @workflow.init
    def __init__(self, params: GenerationParams) -> None:
        self._params = params
        self._passages = list(params.passages)
        self._turns: list[ModelTurn] = []
        self._invocations: list[Invocation] = []
        self._calls: list[ToolCall] = []
        self._warnings: list[str] = []
        self._room = TOOLS_CHARACTERS

    @workflow.run
    async def run(self, params: GenerationParams) -> GenerationResult:
        means = await workflow.execute_local_activity_method(
            GenerationActivities.generation_means, start_to_close_timeout=ATTEMPT
        )
        image = params.messages[-1].image
        if image is not None and not means.generative:
            await self._read(image)
        given = list(self._passages)
        toolbox = await self._toolbox(means)
        no_more_tools = workflow.now() + TOOLS_TIME
        while True:
            reply = await self._ask(toolbox, given)
            rounds = len(self._turns) // 2
            malformed = MALFORMED.get(reply.invocation.stop_reason) if not reply.turn.tool_uses else None
            if (not reply.turn.tool_uses and malformed is None) or rounds > MAX_ROUNDS:
                return self._result(reply, means)
            if malformed is not None:
                answer = ModelTurn(role="user", text=malformed)
            else:
                answer = await self._call(toolbox, reply.turn.tool_uses, rounds, no_more_tools)
            self._turns += [reply.turn, answer]

    async def _read(self, image: PreparedImage) -> None:
        """Have the text in an image read, for a model that sees none."""
        described = await workflow.execute_activity_method(
            ImageActivities.describe_image,
            image,
            start_to_close_timeout=IMAGE_GIVE_UP,
            schedule_to_close_timeout=IMAGE_GIVE_UP,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=DURABLY,
        )
        if described.text:
            read = Passage(id=image.content, kind="image", text=described.text, title="The image of this message")
            self._passages.insert(0, read)
        else:
            self._warnings.append(described.reason or "There is no text in the image that could be read.")

    async def _toolbox(self, means: GenerationMeans) -> Toolbox:
        if not (self._params.use_tools and means.generative):
            return Toolbox(self._params)
        toolbox = await Toolbox.filled(self._params, means)
        self._warnings += toolbox.problems
        return toolbox

    async def _ask(self, toolbox: Toolbox, given: list[Passage]) -> ModelReply:
        """One invocation of the model, which is in the result even where nothing comes of it.

        Raises:
            ApplicationError: `rejected` where a filter stopped it, `over_limit` for a conversation that is too long.
        """
        params = AnswerParams(
            **self._params.model_dump(exclude={"passages"}), passages=given, tools=toolbox.specs, turns=self._turns
        )
        reply = await workflow.execute_activity_method(
            GenerationActivities.generate_answer,
            params,
            start_to_close_timeout=ANSWER_SECONDS,
            schedule_to_close_timeout=ANSWER_GIVE_UP,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=DURABLY,
        )
        self._invocations.append(reply.invocation)
        stop = reply.invocation.stop_reason
        if stop in REFUSALS:
            raise failure("rejected", REFUSALS[stop])
        if stop == "model_context_window_exceeded":
            raise failure("over_limit", OVERFLOW)
        return reply

    async def _call(self, toolbox: Toolbox, uses: list[ToolUse], rounds: int, no_more_tools: datetime) -> ModelTurn:
        """Call what a model wants to be called; whatever goes wrong with a tool is an answer to the model."""
        refused = None
        if rounds >= MAX_ROUNDS:
            refused = f"No more than {MAX_ROUNDS} rounds of tools. Answer now, with what you have."
        elif workflow.now() >= no_more_tools:
            refused = "The time for tools is over. Answer now, with what you have."
        else:
            names = ", ".join(dict.fromkeys(use.name for use in uses))
            report("tools", message=f"The model calls {cut(names, 200)}.")
        outcomes = await toolbox.call([] if refused else uses[:MAX_CALLS])
        turn = ModelTurn(role="user")
        for index, use in enumerate(uses):
            if index < len(outcomes):
                outcome = outcomes[index]
                text = outcome.shown(len(self._passages) + 1)
                error = outcome.text if outcome.failed else None
                if len(text) > self._room:
                    text = error = f"The tools' answers are longer than {TOOLS_CHARACTERS} characters. Answer now."
                else:
                    self._room -= len(text)
                    self._passages += outcome.passages
            else:
                text = error = refused or f"No more than {MAX_CALLS} tools are called at once. Call this one again."
            turn.tool_outcomes.append(ToolOutcome(tool_use_id=use.id, text=text, error=error is not None))
            server, tool = toolbox.origin(use.name)
            self._calls.append(ToolCall(server=server, tool=tool, arguments=_shown_arguments(use), error=error))
        return turn

    def _result(self, reply: ModelReply, means: GenerationMeans) -> GenerationResult:
        """
        Raises:
            ApplicationError: `rejected` where the model gave no answer.
        """
        said = reply.turn.text or "\n\n".join(turn.text for turn in self._turns if turn.role == "assistant").strip()
        if not said and reply.turn.tool_uses:
            raise failure(
                "rejected",
                f"The model went on calling tools beyond {MAX_ROUNDS} rounds and gave no answer. Ask for less at once.",
            )
        if not said:
            raise failure("rejected", "The model gave an empty answer. Ask again, or in other words.")
        text, citations = cited(said, self._passages)
        return GenerationResult(
            text=text.strip(),
            citations=citations,
            model_id=reply.invocation.model_id,
            generative=means.generative,
            stop_reason=reply.invocation.stop_reason,
            invocations=self._invocations,
            tool_calls=self._calls,
            warnings=self._warnings,
        )


def _shown_arguments(use: ToolUse) -> str:
    return cut(json.dumps(use.input, ensure_ascii=False), ARGUMENTS_CHARACTERS)
