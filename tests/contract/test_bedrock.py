"""The real boto3 client against the real embedded endpoint, and against the errors that Bedrock sends."""

import asyncio
import contextlib
import gc
import json
import math
import socket
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.exceptions import ApplicationError

import activities.bedrock
from activities.bedrock import BedrockActivities, BedrockEmbeddings, BedrockText
from activities.bedrock_converse import BedrockChat
from activities.errors import RETRYABLE
from activities.models import AnswerParams, ChatMessage, EmbedParams, GenerateParams, Passage, pack_vector
from mcp_server.local.bedrock import EMBEDDING_MODEL, TEXT_MODEL, create_app
from mcp_server.local.eventstream import event, exception
from tests.serving import served

TITAN = "amazon.titan-embed-text-v2:0"
CLAUDE = "eu.anthropic.claude-opus-4-7"
ACCOUNT, KEY, ROLE = "123456789012", "AKIAIOSFODNN7EXAMPLE", "arn:aws:sts::123456789012:assumed-role/Admin/me"


def half(status: int, body: dict[str, Any]) -> tuple[int, str, bytes]:
    """An answer that breaks off in the middle."""
    return status, "half", json.dumps(body).encode()


@dataclass
class Faults:
    """In front of the endpoint: answers the next requests itself, as told, and remembers all of them.

    Attributes:
        next: For each request to come: (status, error type or "", body), or None to keep it waiting.
        seen: Headers and body of each request that came.
    """

    app: ASGIApp
    next: list[tuple[int, str, bytes] | None] = field(default_factory=list)
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        self.seen.append(({name.decode(): value.decode() for name, value in scope["headers"]}, body))
        if not self.next:
            given = False

            async def again() -> Any:
                nonlocal given
                if given:
                    return await receive()
                given = True
                return {"type": "http.request", "body": body}

            await self.app(scope, again, send)
            return
        fault = self.next.pop(0)
        if fault is None:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        status, kind, answer = fault
        length = len(answer) * (2 if kind == "half" else 1)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        if kind not in ("", "half"):
            headers.append((b"x-amzn-errortype", kind.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer, "more_body": kind == "half"})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Faults, str]]:
    """The endpoint on a loopback port."""
    faults = Faults(create_app())
    with served(faults) as url:
        yield faults, url


@pytest.fixture
def faults(endpoint: tuple[Faults, str]) -> Faults:
    endpoint[0].next.clear()
    endpoint[0].seen.clear()
    return endpoint[0]


@pytest.fixture
def url(endpoint: tuple[Faults, str]) -> str:
    return endpoint[1]


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    # Retrying is Temporal's, whatever the user's AWS settings say.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")


def cosine(left: bytes, right: bytes) -> float:
    return sum(x * y for x, y in zip(array("f", left), array("f", right), strict=True))


def generate(prompt: str, max_tokens: int = 200) -> GenerateParams:
    return GenerateParams(system="Summarise.", prompt=prompt, max_tokens=max_tokens)


# The embedded models


async def test_vectors_keep_order_and_mean_something(url: str) -> None:
    activities_ = BedrockActivities(BedrockEmbeddings(EMBEDDING_MODEL, None, None, url))
    passages = ["The cat sleeps on the sofa.", "Interest rates rose in May.", *(f"Number {n}." for n in range(18))]
    stored = (await activities_.embed(EmbedParams(texts=passages))).vectors
    (query,) = (await activities_.embed(EmbedParams(texts=["Where is the cat?"], side="query"))).vectors
    assert {len(vector) for vector in stored} == {4 * 384}
    assert max(range(len(stored)), key=lambda at: cosine(query, stored[at])) == 0
    (alone,) = (await activities_.embed(EmbedParams(texts=[passages[7]]))).vectors
    assert cosine(alone, stored[7]) > 0.9999
    assert math.isclose(cosine(query, query), 1, rel_tol=1e-5)


async def test_a_text_by_itself_is_embedded_once(faults: Faults, url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    text = "Where is the cat?"
    embeddings.begin(text, "query")
    embeddings.begin(text, "query")
    first, second = await asyncio.gather(embeddings.embed([text], "query"), embeddings.embed([text], "query"))
    assert first == second == await embeddings.embed([text], "query")
    assert len(faults.seen) == 1

    # Other texts, this one on another side and among others have nothing to do with it.
    await embeddings.embed(["Where is the dog?"], "query")
    await embeddings.embed([text], "passage")
    again, _ = await embeddings.embed([text, "Where is the dog?"], "query")
    assert cosine(again, first[0]) > 0.9999
    assert len(faults.seen) == 4

    # What looks whether the model answers isn't answered from memory.
    await embeddings.check()
    await embeddings.check()
    assert len(faults.seen) == 6


async def test_whoever_stops_waiting_for_a_text_leaves_it_to_the_others(faults: Faults, url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    leaving, staying = (asyncio.create_task(embeddings.embed(["Where is the cat?"], "query")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert len(await staying) == 1
    assert leaving.cancelled()
    assert len(faults.seen) == 1

    # The last one to leave ends it.
    faults.next.append(None)
    leaving = asyncio.create_task(embeddings.embed(["Where is the dog?"], "query"))
    await asyncio.sleep(0)
    [call] = embeddings._under_way.values()
    leaving.cancel()
    await asyncio.wait([call.task])
    assert call.task.cancelled()
    assert not embeddings._under_way


async def test_nobody_joins_a_call_that_has_waited_long(
    faults: Faults, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities.bedrock, "JOINED_SECONDS", 0.0)
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    faults.next.append(None)
    waiting = asyncio.create_task(embeddings.embed(["Where is the cat?"], "query"))
    while not faults.seen:
        await asyncio.sleep(0.01)
    assert len(await embeddings.embed(["Where is the cat?"], "query")) == 1
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize("fails", [False, True])
async def test_nothing_of_who_asked_is_kept_with_a_vector(faults: Faults, url: str, *, fails: bool) -> None:
    class Request:
        pass

    of_a_call: ContextVar[Request] = ContextVar("of_a_call")
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)

    async def ask() -> "weakref.ref[Request]":
        request = Request()
        of_a_call.set(request)
        with contextlib.suppress(ApplicationError):
            await embeddings.embed(["Where is the cat?"], "query")
        return weakref.ref(request)

    if fails:
        faults.next.append(error(429, "ThrottlingException"))
    asked = await asyncio.create_task(ask())
    # The thread that made the call may be about to let go of it.
    while asked() is not None:
        gc.collect()
        await asyncio.sleep(0.01)
    assert len(embeddings._kept) == (0 if fails else 1)


async def test_a_call_for_a_text_that_failed_is_not_kept(faults: Faults, url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    text = "Where is the cat?"
    # What goes wrong while it is waited for is said.
    faults.next.append(error(429, "ThrottlingException"))
    embeddings.begin(text, "query")
    with pytest.raises(ApplicationError) as refused:
        await embeddings.embed([text], "query")
    assert refused.value.type == "throttled"
    assert len(await embeddings.embed([text], "query")) == 1

    # What went wrong before may have passed.
    faults.next.append(error(429, "ThrottlingException"))
    embeddings.begin("Where is the dog?", "query")
    while embeddings._under_way:
        await asyncio.sleep(0.01)
    assert len(await embeddings.embed(["Where is the dog?"], "query")) == 1
    assert len(faults.seen) == 4


async def test_no_more_calls_are_begun_than_run_at_once(faults: Faults, url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    for number in range(100):
        embeddings.begin(f"Where is cat {number}?", "query")
    await asyncio.wait([call.task for call in embeddings._under_way.values()])
    assert len(faults.seen) == activities.bedrock.CALLS_AT_ONCE
    assert len(await embeddings.embed(["Where is cat 99?"], "query")) == 1


async def test_the_texts_that_were_asked_for_lately_are_kept(
    faults: Faults, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities.bedrock, "KEPT_TEXTS", 2)
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    for text in ("a", "b", "a", "c", "a", "b"):
        await embeddings.embed([text], "query")
    assert [json.loads(body)["texts"] for _, body in faults.seen] == [["a"], ["b"], ["c"], ["b"]]


async def test_sides_differ(url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    (query,), (passage,) = await asyncio.gather(
        embeddings.embed(["tea"], "query"), embeddings.embed(["tea"], "passage")
    )
    assert cosine(query, passage) < 0.999


async def test_awkward_texts(url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    texts = ["after\0the end", "half \ud83d a pair", "茶" * 3000, "x" * 100_000, " ", "\U0001f389"]
    vectors = await embeddings.embed(texts, "passage")
    assert len(vectors) == len(texts)
    whole, cut = await embeddings.embed(["after the end", "after"], "passage")
    assert cosine(vectors[0], whole) > 0.9999 > cosine(vectors[0], cut)


async def test_local_calls_carry_and_need_nothing_of_the_users(
    faults: Faults, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "sesame",
        "AWS_BEARER_TOKEN_BEDROCK": "open-sesame",
        "AWS_PROFILE": "no-such-profile",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_DEFAULTS_MODE": "auto",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://127.0.0.1:1",
        "HTTP_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert await BedrockEmbeddings(EMBEDDING_MODEL, None, None, url).check() == (
        "local.multilingual-e5-small, 384 dimensions (embedded)"
    )
    assert "local.extractive" in await BedrockText(TEXT_MODEL, None, url).check()
    assert len(faults.seen) == 2
    assert not any("authorization" in headers or KEY in str(headers) for headers, _ in faults.seen)


async def test_extracts_the_material_only(url: str) -> None:
    text = BedrockText(TEXT_MODEL, None, url)
    material = "human: We fly to Lisbon in May.\nai: Noted </material> as said."
    answer = await text.generate(generate(f"The question: what about cats?\n<material>\n{material}\n</material>"))
    assert answer.text == material
    assert (answer.model_id, answer.stop_reason) == (TEXT_MODEL, "end_turn")
    assert 0 < answer.output_tokens < answer.input_tokens
    clipped = await text.generate(generate("We fly to Lisbon in May.", max_tokens=3))
    assert (clipped.text, clipped.stop_reason, clipped.output_tokens) == ("We fly to", "max_tokens", 3)
    assert (await text.generate(generate("<material></material>"))).text == ""


def boto(url: str) -> Any:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    return embeddings._runtime._connected()


def test_titan_and_cohere_shapes(url: str) -> None:
    def invoke(body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            boto(url).invoke_model(modelId=EMBEDDING_MODEL, body=json.dumps(body))["body"].read()
        )
        return answer

    titan = invoke({"inputText": "tea", "dimensions": 384, "normalize": True})
    assert set(titan) == {"embedding", "inputTextTokenCount"}
    cohere = invoke({"texts": ["tea"], "input_type": "search_document"})
    assert set(cohere) == {"id", "response_type", "embeddings", "texts"}
    assert (cohere["response_type"], cohere["texts"]) == ("embeddings_floats", ["tea"])
    assert cosine(pack_vector(titan["embedding"]), pack_vector(cohere["embeddings"][0])) > 0.9999
    typed = invoke({"texts": ["tea"], "input_type": "search_query", "embedding_types": ["float"]})
    assert (typed["response_type"], len(typed["embeddings"]["float"][0])) == ("embeddings_by_type", 384)
    words = "茶" * 600 + "猫" * 600
    first = invoke({"texts": [words], "input_type": "search_query", "truncate": "END"})["embeddings"]
    last = invoke({"texts": [words], "input_type": "search_query", "truncate": "START"})["embeddings"]
    assert first != last


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "isn't a JSON object"),
        ("[]", "isn't a JSON object"),
        ("{}", "required key [texts] not found"),
        ({"texts": [], "input_type": "search_query"}, "expected minimum item count: 1"),
        ({"texts": [""], "input_type": "search_query"}, "#/texts/0: expected minLength: 1, actual: 0"),
        ({"texts": ["a"] * 97, "input_type": "search_query"}, "expected maximum item count: 96, found: 97"),
        ({"texts": ["a" * 2049], "input_type": "search_query"}, "expected maxLength: 2048, actual: 2049"),
        ({"texts": ["茶" * 600], "input_type": "search_query"}, "Too many input tokens. Max input tokens: 512"),
        ({"texts": [7], "input_type": "search_query"}, "#/texts/0"),
        ({"texts": ["a"], "input_type": "song"}, "#/input_type"),
        ({"texts": ["a"]}, "required key [input_type] not found"),
        ({"texts": ["a"], "input_type": "search_query", "mood": 1}, "extraneous key [mood] is not permitted"),
        ({"inputText": "", "normalize": True}, "expected minLength: 1"),
        ({"inputText": "a", "dimensions": 256}, "#/dimensions"),
        ({"inputText": "茶" * 600}, "Too many input tokens"),
    ],
)
def test_endpoint_refuses(url: str, body: Any, message: str) -> None:
    client = boto(url)
    with pytest.raises(client.exceptions.ValidationException) as caught:
        client.invoke_model(modelId=EMBEDDING_MODEL, body=body if isinstance(body, str) else json.dumps(body))
    assert message in caught.value.response["Error"]["Message"]


def test_endpoint_knows_its_models(url: str) -> None:
    client = boto(url)
    asked: list[Any] = [{"role": "user", "content": [{"text": "Hello."}]}]
    arn = "arn:aws:bedrock:us-east-1::foundation-model/amazon.titan-embed-text-v2:0"
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: client.invoke_model(modelId=arn, body="{}"), "identifier is invalid"),
        (lambda: client.invoke_model(modelId=TEXT_MODEL, body="{}"), "doesn't support the model"),
        (lambda: client.converse(modelId=EMBEDDING_MODEL, messages=asked), "doesn't support the model"),
        (lambda: client.converse(modelId=TEXT_MODEL, messages=[]), "#/messages"),
        (
            lambda: client.converse(modelId=TEXT_MODEL, messages=[{"role": "assistant", "content": [{"text": "Hi."}]}]),
            "start with a user message",
        ),
    ]
    for call, message in refused:
        with pytest.raises(client.exceptions.ValidationException, match=message):
            call()


async def test_a_query_is_not_stuck_behind_a_list(url: str) -> None:
    embeddings = BedrockEmbeddings(EMBEDDING_MODEL, None, None, url)
    bulk = asyncio.create_task(embeddings.embed(["A passage of some length, repeated. " * 20] * 12, "passage"))
    await asyncio.sleep(0.05)
    await embeddings.embed(["short"], "query")
    assert not bulk.done()
    assert len(await bulk) == 12


# Bedrock's errors

LEAKY = f'User: {ROLE} with {KEY} said [my diary] and "my letter" in account {ACCOUNT}'
NOT_MODEL = "Invocation of model ID x with on-demand throughput isn’t supported. Retry with an inference profile"


def error(status: int, kind: str, message: str = LEAKY, **more: Any) -> tuple[int, str, bytes]:
    return status, kind, json.dumps({"message": message, **more}).encode()


ERRORS = [
    (error(429, "ThrottlingException"), "throttled", "throttling"),
    (error(400, "ServiceQuotaExceededException"), "throttled", "quota"),
    (error(429, "ModelNotReadyException"), "unavailable", "now"),
    (error(408, "ModelTimeoutException"), "unavailable", "now"),
    (error(500, "InternalServerException"), "unavailable", "now"),
    (error(503, "ServiceUnavailableException"), "unavailable", "now"),
    ((502, "", b"<html>Bad gateway</html>"), "unavailable", "now"),
    (error(424, "ModelErrorException", originalStatusCode=500), "unavailable", "now"),
    (error(424, "ModelErrorException"), "unavailable", "now"),
    (error(424, "ModelErrorException", originalStatusCode=429), "throttled", "throttling"),
    (error(424, "ModelErrorException", originalStatusCode=400), "rejected", "rejected"),
    (error(403, "AccessDeniedException"), "access_denied", "refused access"),
    (error(403, "UnrecognizedClientException"), "access_denied", "credentials"),
    (error(403, "InvalidSignatureException"), "access_denied", "clock"),
    (error(403, "ExpiredTokenException"), "access_denied", "expired"),
    (error(404, "ResourceNotFoundException"), "not_configured", "_MODEL_ID"),
    (error(400, "ValidationException", "The provided model identifier is invalid."), "not_configured", "_MODEL_ID"),
    (error(400, "ValidationException", NOT_MODEL), "not_configured", "inference profile"),
    (error(400, "ValidationException", "Operation not allowed"), "access_denied", "refused access"),
    (error(400, "ValidationException", "Input is too long for requested model."), "rejected", "longer than"),
    (error(400, "ValidationException", "expected maxLength: 50000, actual: 60000"), "rejected", "longer than"),
    (error(400, "ValidationException", "expected minLength: 1, actual: 0"), "rejected", "empty text"),
    (error(400, "ValidationException"), "rejected", "rejected the request"),
    (error(418, "TeapotException"), "rejected", "rejected the request"),
    (half(200, {"embedding": [1.0] * 1024}), "unavailable", "can't be reached"),
    ((200, "", b'{"embedding": [1.0, 2.0]}'), "rejected", "1024"),
    ((200, "", b'{"embedding": "yes"}'), "rejected", "1024"),
    ((200, "", b"<html>Sign in to the guest network</html>"), "rejected", "1024"),
]


def assert_fit_for_callers(failure: ApplicationError, kind: str, word: str) -> None:
    assert failure.type == kind
    assert failure.non_retryable == (kind not in RETRYABLE)
    assert word in failure.message
    assert len(failure.message) < 400
    assert failure.__cause__ is None
    for secret in (ACCOUNT, KEY, ROLE, "sesame", "Admin", "diary", "letter", "my secret text", "Traceback"):
        assert secret not in failure.message


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(("fault", "kind", "word"), ERRORS)
async def test_error_of_invoke_model(
    faults: Faults, url: str, fault: tuple[int, str, bytes], kind: str, word: str
) -> None:
    faults.next.append(fault)
    with pytest.raises(ApplicationError) as caught:
        await BedrockEmbeddings(TITAN, None, "eu-west-1", url).embed(["my secret text"], "query")
    assert_fit_for_callers(caught.value, kind, word)
    assert len(faults.seen) == 1
    assert "authorization" in faults.seen[0][0]


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(("fault", "kind", "word"), [row for row in ERRORS if row[0][0] != 200])
async def test_error_of_converse(faults: Faults, url: str, fault: tuple[int, str, bytes], kind: str, word: str) -> None:
    faults.next.append(fault)
    with pytest.raises(ApplicationError) as caught:
        await BedrockText(CLAUDE, "eu-west-1", url).generate(generate("my secret text"))
    assert_fit_for_callers(caught.value, "over_limit" if word == "longer than" else kind, word)
    assert len(faults.seen) == 1
    if "region" in caught.value.message:
        assert f"model {CLAUDE} in region eu-west-1" in caught.value.message


def answering(text: str, watched: bool = True, *passages: Passage) -> AnswerParams:
    messages = [ChatMessage(role="user", text=text)]
    return AnswerParams(user_id="ann", messages=messages, passages=list(passages), watched=watched)


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(("fault", "kind", "word"), [row for row in ERRORS if row[0][0] != 200])
async def test_error_in_a_conversation(
    faults: Faults, url: str, fault: tuple[int, str, bytes], kind: str, word: str, watched: bool
) -> None:
    faults.next.append(fault)
    with pytest.raises(ApplicationError) as caught:
        await BedrockChat(CLAUDE, "eu-west-1", url).answer(answering("my secret text", watched), {}, print)
    assert_fit_for_callers(caught.value, "over_limit" if word == "longer than" else kind, word)
    assert len(faults.seen) == 1


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(
    ("stream", "kind", "word"),
    [
        (exception("throttlingException", LEAKY), "throttled", "throttling"),
        (exception("internalServerException", LEAKY), "unavailable", "now"),
        (exception("serviceUnavailableException", LEAKY), "unavailable", "now"),
        (exception("modelStreamErrorException", LEAKY), "unavailable", "now"),
        (exception("validationException", LEAKY), "rejected", "rejected the request"),
        (exception("validationException", "prompt is too long: 9 tokens > 8 maximum"), "over_limit", "longer than"),
        (event("messageStop", {"stopReason": "end_turn"}), "unavailable", "broke off"),
        (event("messageStop", {"stopReason": "end_turn"})[:-2], "unavailable", "broke off"),
        (event("messageStop", {"stopReason": "end_turn"})[:-2] + b"no", "unavailable", "garbled"),
        (b"", "unavailable", "broke off"),
    ],
)
async def test_error_in_a_stream(faults: Faults, url: str, stream: bytes, kind: str, word: str) -> None:
    begun = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Well"}})
    faults.next.append((200, "", begun + stream))
    said: list[str] = []
    with pytest.raises(ApplicationError) as caught:
        await BedrockChat(CLAUDE, "eu-west-1", url).answer(answering("my secret text"), {}, said.append)
    assert_fit_for_callers(caught.value, kind, word)
    assert said == ["Well"]


async def test_a_conversation_with_the_embedded_model(url: str) -> None:
    harbour = Passage(id="h", kind="document", text="The harbour closes in November. Tea is served at four.")
    chat = BedrockChat(TEXT_MODEL, None, url)
    said: list[str] = []

    streamed = await chat.answer(answering("When does the harbour close?", True, harbour), {}, said.append)
    whole = await chat.answer(answering("When does the harbour close?", False, harbour), {}, said.append)

    assert not chat.generative
    assert "The harbour closes in November. [1]" in streamed.turn.text
    assert streamed.turn == whole.turn
    assert len(said) > 1
    assert said[-1] == streamed.turn.text
    assert all(after.startswith(before) for before, after in pairwise(said))
    assert streamed.invocation.stop_reason == "end_turn"
    assert streamed.invocation.input_tokens > streamed.invocation.output_tokens > 0


@pytest.mark.usefixtures("_credentials")
async def test_converse_answer_without_a_message(faults: Faults, url: str) -> None:
    faults.next.append((200, "", b"{}"))
    with pytest.raises(ApplicationError) as caught:
        await BedrockText(CLAUDE, "eu-west-1", url).generate(generate("Hello."))
    assert_fit_for_callers(caught.value, "rejected", "LLM_MODEL_ID")


@pytest.mark.usefixtures("_credentials")
async def test_model_that_refuses_temperature_is_asked_without(faults: Faults, url: str) -> None:
    answer = {
        "output": {
            "message": {
                "role": "assistant",
                "content": [{"reasoningContent": {"reasoningText": {"text": "Hm."}}}, {"text": "Yes."}],
            }
        },
        "stopReason": "end_turn",
        "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
        "metrics": {"latencyMs": 1},
    }
    good = (200, "", json.dumps(answer).encode())
    faults.next += [error(400, "ValidationException", "`temperature` is deprecated for this model."), good, good]
    text = BedrockText(CLAUDE, "eu-west-1", url)
    for _ in range(2):
        assert (await text.generate(generate("Well?"))).text == "Yes."
    sent = [json.loads(body) for _, body in faults.seen]
    assert ["temperature" in body["inferenceConfig"] for body in sent] == [True, False, False]
    assert sent[0]["system"] == [{"text": "Summarise."}]
    assert sent[0]["messages"] == [{"role": "user", "content": [{"text": "Well?"}]}]


@pytest.mark.usefixtures("_credentials")
async def test_an_answer_with_a_schema_is_a_tools_argument_where_the_model_takes_tools(
    faults: Faults, url: str
) -> None:
    def good(*content: dict[str, Any]) -> tuple[int, str, bytes]:
        answer = {
            "output": {"message": {"role": "assistant", "content": list(content)}},
            "stopReason": "tool_use",
            "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
            "metrics": {"latencyMs": 1},
        }
        return 200, "", json.dumps(answer).encode()

    used = {"toolUse": {"toolUseId": "t", "name": "answer", "input": {"importance": 0.7}}}
    refused = error(400, "ValidationException", "This model doesn't support tool use.")
    faults.next += [good({"text": "Let me see."}, used), refused, good({"text": "{}"}), good({"text": "{}"})]
    schema = {"type": "object", "properties": {"importance": {"type": "number"}}}
    params = generate("Well?").model_copy(update={"answer_schema": schema})
    text = BedrockText(CLAUDE, "eu-west-1", url)

    assert json.loads((await text.generate(params)).text) == {"importance": 0.7}
    for _ in range(2):
        assert (await text.generate(params)).text == "{}"

    sent = [json.loads(body) for _, body in faults.seen]
    assert ["toolConfig" in body for body in sent] == [True, True, False, False]
    assert sent[0]["toolConfig"]["tools"][0]["toolSpec"]["inputSchema"] == {"json": schema}
    assert sent[0]["toolConfig"]["toolChoice"] == {"tool": {"name": "answer"}}


@pytest.mark.usefixtures("_credentials")
async def test_single_text_models_keep_order(faults: Faults, url: str) -> None:
    count = 24
    faults.next += [(200, "", json.dumps({"embedding": [1.0] * 256}).encode())] * count
    vectors = await BedrockEmbeddings(TITAN, 256, "eu-west-1", url).embed([f"{n}" for n in range(count)], "passage")
    assert len(vectors) == count
    assert sorted(int(json.loads(body)["inputText"]) for _, body in faults.seen) == list(range(count))
    assert array("f", vectors[0])[0] == pytest.approx(1 / 16)


# What happens before, and instead of, an answer


@pytest.mark.usefixtures("_credentials")
async def test_stalled_endpoint(faults: Faults, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activities.bedrock, "EMBED_SECONDS", 0.3)
    monkeypatch.setattr(activities.bedrock, "TEXT_SECONDS", 0.3)
    faults.next += [None, None]
    with pytest.raises(ApplicationError) as caught:
        await BedrockEmbeddings(TITAN, None, "eu-west-1", url).embed(["my secret text"], "query")
    assert_fit_for_callers(caught.value, "unavailable", "did not answer")
    with pytest.raises(ApplicationError) as caught:
        await BedrockText(CLAUDE, "eu-west-1", url).generate(generate("my secret text"))
    assert_fit_for_callers(caught.value, "unavailable", "did not answer")
    assert len(faults.seen) == 2


@pytest.mark.usefixtures("_credentials")
async def test_dropped_and_refused_connections() -> None:
    attempts = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def drop() -> None:
            nonlocal attempts
            connection, _ = listener.accept()
            attempts += 1
            connection.recv(1)
            connection.close()

        dropper = threading.Thread(target=drop)
        dropper.start()
        with pytest.raises(ApplicationError) as caught:
            await BedrockEmbeddings(TITAN, None, "eu-west-1", url).embed(["my secret text"], "query")
        dropper.join()
        assert_fit_for_callers(caught.value, "unavailable", "can't be reached")
        assert attempts == 1
    with pytest.raises(ApplicationError) as caught:
        await BedrockEmbeddings(TITAN, None, "eu-west-1", url).embed(["my secret text"], "query")
    assert_fit_for_callers(caught.value, "unavailable", "AWS_REGION")
    with pytest.raises(ApplicationError) as caught:
        await BedrockEmbeddings(EMBEDDING_MODEL, None, None, url).embed(["my secret text"], "query")
    assert_fit_for_callers(caught.value, "unavailable", "embedded model endpoint")


@pytest.mark.parametrize(
    ("environment", "region", "kind", "word"),
    [
        ({}, "eu-west-1", "not_configured", "No AWS credentials"),
        ({"AWS_ACCESS_KEY_ID": KEY}, "eu-west-1", "not_configured", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "eu-west-1", "not_configured", "AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "sesame"}, None, "not_configured", "AWS_REGION"),
        ({"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "sesame"}, "no/where", "not_configured", "AWS_REGION"),
        ({"AWS_PROFILE": "single"}, "eu-west-1", "access_denied", "aws sso login"),
        (
            {
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": "sesame",
                "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "nowhere at all",
            },
            "eu-west-1",
            "not_configured",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
        ),
    ],
)
async def test_credentials_and_region(
    environment: dict[str, str],
    region: str | None,
    kind: str,
    word: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config").write_text(
        "[profile single]\nsso_session = work\nsso_account_id = 123456789012\nsso_role_name = Admin\n"
        "[sso-session work]\nsso_region = eu-west-1\nsso_start_url = https://example.awsapps.com/start\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ApplicationError) as caught:
        await BedrockEmbeddings(TITAN, None, region, None).embed(["my secret text"], "query")
    assert_fit_for_callers(caught.value, kind, word)


async def test_wrong_model_id_of_the_text_model(url: str) -> None:
    with pytest.raises(ApplicationError) as caught:
        await BedrockText("local.poet", None, url).generate(generate("Sing."))
    assert_fit_for_callers(caught.value, "not_configured", "LLM_MODEL_ID")
