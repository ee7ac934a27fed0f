"""Conversations by Bedrock's Converse and ConverseStream: what a model is sent, and what it answers."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from activities.bedrock import BedrockRuntime, sendable
from activities.embedding_models import shown_model_id
from activities.errors import failure
from activities.models import (
    AnswerParams,
    ChatMessage,
    Invocation,
    ModelReply,
    ModelTurn,
    Reasoning,
    Role,
    ToolUse,
)
from activities.passages import CITING, CITING_VERSION, render, uncited

if TYPE_CHECKING:
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient
    from mypy_boto3_bedrock_runtime.type_defs import ConverseRequestTypeDef, ConverseResponseTypeDef

    from activities.bedrock_errors import Called

PAUSE_SECONDS = 120.0
"""How long a model may be silent: some think for a minute before the first word."""

IMAGE_GONE = "(There was an image here, which isn't kept any longer.)"

EMPTY = "(nothing)"
"""What stands for a message without a text: Converse takes none that is empty."""

_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")

Block = dict[str, Any]
Feature = Literal["temperature", "top_p", "system", "streaming", "streamed tools", "tools"]


class _Ending:
    """Ends the reading of a stream from another thread, also where nothing comes of it."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._raw: Any = None

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    def watch(self, stream: Any) -> None:
        """Have `stream` end when it is wanted."""
        self._raw = getattr(stream, "_raw_stream", None)
        if self.wanted:
            self.want()

    def want(self) -> None:
        self._wanted.set()
        # It may have ended already; and another version of botocore may call it something else.
        with contextlib.suppress(Exception):
            self._raw.shutdown()


class BedrockChat:
    """A text model on Bedrock, or the embedded extractive one, as a partner in conversation.

    Args:
        model_id: Any model that the Converse API serves: its id, an inference profile's id, or the ARN of either.
        region: AWS region; None for what boto3 finds.
        endpoint_url: Address of the Bedrock Runtime API; None for AWS's own. Local models need one.
    """

    def __init__(self, model_id: str, region: str | None, endpoint_url: str | None) -> None:
        # Threads of its own: an answer may take minutes, and others' summaries don't wait for it.
        self._runtime = BedrockRuntime(model_id, "LLM_MODEL_ID", region, endpoint_url, PAUSE_SECONDS)
        self._refused: set[Feature] = set()

    @property
    def generative(self) -> bool:
        """Whether it writes; the embedded one only picks sentences out of passages."""
        return not self._runtime.local

    @property
    def called(self) -> "Called":
        return self._runtime.called

    async def answer(
        self, params: AnswerParams, images: Mapping[str, bytes], told: Callable[[str], None]
    ) -> ModelReply:
        """One invocation of the model.

        Args:
            params: What it is asked.
            images: Those of its messages that are still kept, by their contents' names.
            told: Called in another thread with the text so far, whenever there is more of it.

        Raises:
            ApplicationError: `throttled` or `unavailable`, which pass; `over_limit` for more than the model takes, and
                `rejected`, `access_denied` or `not_configured`, none of which does.
        """
        ending = _Ending()
        try:
            return await self._runtime.run(lambda client: self._answer(client, params, images, told, ending))
        except asyncio.CancelledError:
            # Otherwise the thread, and with it the end of the process, would wait for the model.
            ending.want()
            raise

    def _answer(
        self,
        client: "BedrockRuntimeClient",
        params: AnswerParams,
        images: Mapping[str, bytes],
        told: Callable[[str], None],
        ending: _Ending,
    ) -> ModelReply:
        while True:
            without = frozenset(self._refused)
            request = self._request(params, images, without)
            streams = params.watched and "streaming" not in without
            streams = streams and not (params.tools and "streamed tools" in without)
            try:
                answer = _collected(client, request, told, ending) if streams else client.converse(**request)
            except client.exceptions.ValidationException as error:
                # Nothing but the answer says what a model doesn't take.
                refused = _refused(error.response["Error"]["Message"], request, streams, bool(params.turns))
                if refused is None or refused in without:
                    raise
                self._refused.add(refused)
                continue
            return self._reply(answer, request, params)

    def _request(
        self, params: AnswerParams, images: Mapping[str, bytes], without: frozenset[Feature]
    ) -> "ConverseRequestTypeDef":
        messages = _messages(params, images, always=not self.generative)
        inference: dict[str, Any] = {"maxTokens": params.max_tokens}
        if params.temperature is not None and "temperature" not in without:
            inference["temperature"] = params.temperature
        if params.top_p is not None and "top_p" not in without:
            inference["topP"] = params.top_p
        request: dict[str, Any] = {
            "modelId": self._runtime.model_id,
            "messages": messages,
            "inferenceConfig": inference,
        }
        if system := system_of(params):
            if "system" in without:
                messages[0]["content"].insert(0, {"text": system})
            else:
                request["system"] = [{"text": system}]
        if params.tools and self.generative and "tools" not in without:
            request["toolConfig"] = {
                "tools": [
                    {
                        "toolSpec": {
                            "name": tool.name,
                            "description": sendable(tool.description) or tool.name,
                            "inputSchema": {"json": tool.input_schema},
                        }
                    }
                    for tool in params.tools
                ]
            }
        return cast("ConverseRequestTypeDef", request)

    def _reply(
        self, answer: "ConverseResponseTypeDef", request: "ConverseRequestTypeDef", params: AnswerParams
    ) -> ModelReply:
        inference = request["inferenceConfig"]
        return ModelReply(
            turn=_turn(answer["output"]["message"]["content"]),
            invocation=Invocation(
                model_id=shown_model_id(self._runtime.model_id),
                temperature=inference.get("temperature"),
                top_p=inference.get("topP"),
                max_tokens=inference["maxTokens"],
                system_version=system_version(params),
                input_tokens=answer["usage"]["inputTokens"],
                output_tokens=answer["usage"]["outputTokens"],
                stop_reason=answer["stopReason"],
                latency_ms=answer["metrics"]["latencyMs"],
            ),
        )


# What a model is sent


def _cites(params: AnswerParams) -> bool:
    return bool(params.passages or params.tools)


def system_of(params: AnswerParams) -> str:
    """The whole system prompt: the caller's, and how to cite where there is something to cite."""
    return "\n\n".join(part for part in (sendable(params.system), CITING if _cites(params) else "") if part)


def system_version(params: AnswerParams) -> str:
    """The name of that wording."""
    return "+".join(part for part in (params.system_version, CITING_VERSION if _cites(params) else "") if part)


def _messages(params: AnswerParams, images: Mapping[str, bytes], always: bool) -> list[Block]:
    """The conversation in Converse's form: it begins with the user, and speakers take turns.

    Args:
        params: What is asked.
        images: Those that are still kept.
        always: Whether there is a block of passages also where there are none.
    """
    *earlier, asked = params.messages
    said: list[tuple[Role, list[Block]]] = [
        (message.role, [*_images(message, images), *_text(_said(message))]) for message in earlier
    ]
    given = [{"text": sendable(render(params.passages))}] if params.passages or always else []
    said.append(("user", [*_images(asked, images), *given, *(_text(asked.text) or [{"text": EMPTY}])]))
    said += [(turn.role, _blocks(turn)) for turn in params.turns]
    messages: list[Block] = []
    for role, content in said:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += content
        elif messages or role == "user":
            messages.append({"role": role, "content": content})
    for message in messages:
        message["content"] = message["content"] or [{"text": EMPTY}]
    return messages


def _said(message: ChatMessage) -> str:
    return uncited(message.text) if message.role == "assistant" else message.text


def _text(text: str) -> list[Block]:
    text = sendable(text).strip()
    return [{"text": text}] if text else []


def _images(message: ChatMessage, images: Mapping[str, bytes]) -> list[Block]:
    if message.image is None:
        return []
    content = images.get(message.image.content)
    if content is None:
        return [{"text": IMAGE_GONE}]
    return [{"image": {"format": message.image.media_type.removeprefix("image/"), "source": {"bytes": content}}}]


def _blocks(turn: ModelTurn) -> list[Block]:
    """A turn as Converse has it; a model that thought is given its thoughts back, unchanged and first."""
    blocks: list[Block] = []
    for thought in turn.reasoning:
        if thought.redacted is not None:
            blocks.append({"reasoningContent": {"redactedContent": thought.redacted}})
        else:
            signed = {"signature": thought.signature} if thought.signature else {}
            blocks.append({"reasoningContent": {"reasoningText": {"text": thought.text} | signed}})
    blocks += [
        {
            "toolResult": {
                "toolUseId": outcome.tool_use_id,
                "content": [{"text": sendable(outcome.text).strip() or EMPTY}],
                "status": "error" if outcome.error else "success",
            }
        }
        for outcome in turn.tool_outcomes
    ]
    blocks += _text(turn.text)
    blocks += [
        {"toolUse": {"toolUseId": use.id, "name": _NO_NAME.sub("_", use.name)[:64] or "_", "input": use.input}}
        for use in turn.tool_uses
    ]
    return blocks


def _refused(words: str, request: "ConverseRequestTypeDef", streams: bool, has_turns: bool) -> Feature | None:
    """Which feature of a request a model turned down; None where it is none that can be left out.

    Args:
        words: What AWS says.
        request: What it was sent.
        streams: Whether the answer was to be streamed.
        has_turns: Whether tools were used already: then they can't be left out.
    """
    said = words.lower()
    sent = request["inferenceConfig"]
    if "topP" in sent and ("top_p" in said or "topp" in said):
        return "top_p"
    if "temperature" in sent and "temperature" in said:
        return "temperature"
    if "support" not in said:
        return None
    if streams and "streaming mode" in said and "toolConfig" in request:
        return "streamed tools"
    if streams and "stream" in said:
        return "streaming"
    if "system" in request and ("system message" in said or "system prompt" in said):
        return "system"
    if "toolConfig" in request and "tool" in said and not has_turns:
        return "tools"
    return None


# What a model answers


def _collected(
    client: "BedrockRuntimeClient",
    request: "ConverseRequestTypeDef",
    told: Callable[[str], None],
    ending: _Ending,
) -> "ConverseResponseTypeDef":
    """A streamed answer as Converse would have given it whole.

    Raises:
        ApplicationError: `unavailable` where it breaks off.
    """
    blocks: dict[int, Block] = {}
    answer: dict[str, Any] = {"metrics": {"latencyMs": 0}}
    written = ""
    stream = client.converse_stream(**cast(Any, request))["stream"]
    ending.watch(stream)
    try:
        for event in cast("Sequence[dict[str, Any]]", stream):
            if ending.wanted:
                break
            if start := event.get("contentBlockStart"):
                tool = start["start"].get("toolUse")
                if tool is not None:
                    blocks[start["contentBlockIndex"]] = {"toolUse": {**tool, "input": ""}}
            elif delta := event.get("contentBlockDelta"):
                block = blocks.setdefault(delta["contentBlockIndex"], {})
                _add(block, delta["delta"])
                if piece := delta["delta"].get("text"):
                    written += piece
                    told(written)
            elif stop := event.get("messageStop"):
                answer["stopReason"] = stop["stopReason"]
            elif metadata := event.get("metadata"):
                answer |= {"usage": metadata["usage"], "metrics": metadata["metrics"]}
    finally:
        stream.close()
    if not {"stopReason", "usage"} <= answer.keys():
        raise failure("unavailable", "The model's answer broke off. Try again.")
    answer["output"] = {"message": {"role": "assistant", "content": [blocks[index] for index in sorted(blocks)]}}
    return cast("ConverseResponseTypeDef", answer)


def _add(block: Block, delta: Mapping[str, Any]) -> None:
    """Add a piece of a content block to what there is of it."""
    if "text" in delta:
        block["text"] = block.get("text", "") + delta["text"]
    elif "toolUse" in delta:
        block.setdefault("toolUse", {"input": ""})["input"] += delta["toolUse"]["input"]
    elif "reasoningContent" in delta:
        piece = delta["reasoningContent"]
        thought = block.setdefault("reasoningContent", {})
        if "redactedContent" in piece:
            thought["redactedContent"] = thought.get("redactedContent", b"") + piece["redactedContent"]
        else:
            text = thought.setdefault("reasoningText", {"text": ""})
            text["text"] += piece.get("text", "")
            if "signature" in piece:
                text["signature"] = piece["signature"]


def _turn(content: Sequence[Mapping[str, Any]]) -> ModelTurn:
    """A model's turn, given its content blocks."""
    turn = ModelTurn(role="assistant", text="".join(block.get("text", "") for block in content).strip())
    for block in content:
        if "toolUse" in block:
            turn.tool_uses.append(_tool_use(block["toolUse"]))
        elif thought := block.get("reasoningContent"):
            said = thought.get("reasoningText", {})
            turn.reasoning.append(
                Reasoning(
                    text=said.get("text", ""),
                    signature=said.get("signature"),
                    redacted=thought.get("redactedContent"),
                )
            )
    return turn


def _tool_use(block: Mapping[str, Any]) -> ToolUse:
    """A tool call, whatever the model made of its arguments: a stream gives them as JSON, which can be malformed."""
    given, problem = block.get("input"), ""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            problem = "The arguments aren't valid JSON."
    if not problem and not isinstance(given, dict):
        problem = "The arguments must be a JSON object."
    read = {} if problem or not isinstance(given, dict) else given
    return ToolUse(id=block.get("toolUseId") or "tool", name=block.get("name") or "", input=read, problem=problem)
