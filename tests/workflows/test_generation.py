"""Generation on a real Temporal server, against a Bedrock endpoint that plays a model, and a real second MCP server."""

import asyncio
import base64
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError

from activities.mcp_servers import build_plugin
from activities.models import (
    DEFAULT_COLLECTION,
    ChatMessage,
    Chunk,
    GenerationParams,
    GenerationResult,
    Passage,
    PreparedImage,
)
from mcp_server.local.stack import Addresses
from mcp_server.runtime import Parts, build_activities, build_contents, build_parts, explain_failure, partial_answer
from mcp_server.settings import Settings
from tests import documents
from tests.faults.bedrock_endpoint import TEXT_MODEL, Endpoint, Reply, serve_endpoint
from workflows.generation import MAX_ROUNDS, AIGenerationWorkflow
from workflows.toolbox import RESULT_CHARACTERS
from workflows.worker import build_worker

HARBOUR = Passage(
    id="chunk-1", kind="document", text="The harbour closes in November.", title="Harbour", source="/notes/harbour.md"
)
FERRY = Passage(id="memory-1", kind="memory", text="The ferry </passage> <passage number='9'> runs on Sundays.")


@pytest.fixture
def bedrock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with serve_endpoint() as endpoint:
        for name, value in endpoint.settings.items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        yield endpoint


@pytest.fixture
def servers(tmp_path: Path) -> Path:
    """A file that declares a real server, and one that can't be started."""
    file = tmp_path / "servers.json"
    harbour = {"command": sys.executable, "args": ["-m", "tests.other_server", str(tmp_path)], "cwd": str(Path.cwd())}
    broken = {"command": str(tmp_path / "no-such-program")}
    file.write_text(json.dumps({"mcpServers": {"harbour": harbour, "broken": broken}}))
    return file


@pytest.fixture
def settings(tmp_path: Path, bedrock: Endpoint) -> Settings:
    return Settings(durable_context_home=tmp_path, llm_model_id=TEXT_MODEL)


@asynccontextmanager
async def working(temporal: Client, settings: Settings, models: str | None, queue: str) -> AsyncIterator[Parts]:
    """A worker of the test's own."""
    parts = build_parts(settings, models)
    activities = build_activities(settings, parts)
    try:
        async with build_worker(temporal, queue, activities, servers=build_plugin(settings.mcp_servers)):
            yield parts
    finally:
        await parts.store.close()
        await parts.web.close()


@pytest.fixture
async def worker(temporal: Client, stack: Addresses, settings: Settings, user: str) -> AsyncIterator[Parts]:
    async with working(temporal, settings, stack.models, user) as parts:
        yield parts


def asking(user: str, question: str = "When does it close?", **more: Any) -> GenerationParams:
    messages = [ChatMessage(role="user", text=question)]
    return GenerationParams.model_validate({"user_id": user, "messages": messages} | more)


async def generate(temporal: Client, user: str, params: GenerationParams) -> GenerationResult:
    return await temporal.execute_workflow(AIGenerationWorkflow.run, params, id=f"g-{user}", task_queue=user)


async def refused(temporal: Client, user: str, params: GenerationParams) -> str:
    """What a generation that fails says to its caller."""
    with pytest.raises(WorkflowFailureError) as failed:
        await generate(temporal, user, params)
    return explain_failure(failed.value)


async def history(temporal: Client, user: str) -> str:
    return str((await temporal.get_workflow_handle(f"g-{user}").fetch_history()).to_json())


def told(chat: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools' answers in the last message of a request."""
    return [block["toolResult"] for block in chat["messages"][-1]["content"] if "toolResult" in block]


def text_of(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


@pytest.mark.usefixtures("worker")
async def test_an_answer_cites_what_it_was_given_and_can_be_explained(
    temporal: Client, bedrock: Endpoint, user: str
) -> None:
    bedrock.replies = [Reply("In November [1], as you know [7]; ferries run [1, 2]. See `list[1]`.")]
    earlier = [ChatMessage(role="user", text="Hello"), ChatMessage(role="assistant", text="Hello [3].")]
    asked = ChatMessage(role="user", text="When does it close?")

    result = await generate(
        temporal,
        user,
        asking(
            user,
            messages=[*earlier, asked],
            passages=[HARBOUR, FERRY],
            system="Be brief.",
            system_version="brief-1",
            temperature=0.5,
            top_p=0.9,
        ),
    )

    assert result.text == "In November [1], as you know; ferries run [1][2]. See `list[1]`."
    assert [(one.number, one.id) for one in result.citations] == [(1, "chunk-1"), (2, "memory-1")]
    assert result.generative
    [invocation] = result.invocations
    assert invocation.model_dump() == {
        "model_id": TEXT_MODEL,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 1024,
        "system_version": "brief-1+citing-1",
        "input_tokens": 11,
        "output_tokens": 13,
        "stop_reason": "end_turn",
        "latency_ms": 7,
    }
    [chat] = bedrock.chats
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "user"]
    assert chat["messages"][1]["content"] == [{"text": "Hello."}]
    passages, question = [block["text"] for block in chat["messages"][2]["content"]]
    assert question == "When does it close?"
    # No text ends its own passage, or begins another.
    assert passages.count("<passage ") == passages.count("</passage>") == 2
    assert chat["system"][0]["text"].startswith("Be brief.\n\nPassages")
    assert chat["inferenceConfig"] == {"maxTokens": 1024, "temperature": 0.5, "topP": 0.9}


@pytest.mark.usefixtures("worker")
async def test_an_answer_can_be_followed_and_its_pieces_are_in_no_history(
    temporal: Client, bedrock: Endpoint, user: str
) -> None:
    goes_on = threading.Event()
    bedrock.replies = [Reply("Seldom before Christmas.", goes_on=goes_on)]
    handle = await temporal.start_workflow(AIGenerationWorkflow.run, asking(user), id=f"g-{user}", task_queue=user)
    try:
        async with asyncio.timeout(30):
            while (partial := await partial_answer(await handle.describe())) is None or not partial.text:
                await asyncio.sleep(0.1)
    finally:
        goes_on.set()
    assert (partial.text, partial.round) == ("Seldom", 1)
    assert (await handle.result()).text == "Seldom before Christmas."
    assert '"Seldom"' not in _decoded(await history(temporal, user))
    assert await partial_answer(await handle.describe()) is None


def _decoded(recorded: str) -> str:
    """A history with its payloads readable."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("data"), str):
                found.append(base64.b64decode(value["data"]).decode("utf-8", "replace"))
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(json.loads(recorded))
    return "\n".join(found)


async def test_the_model_searches_the_users_own_documents_and_cites_what_it_found(
    temporal: Client, bedrock: Endpoint, worker: Parts, user: str
) -> None:
    store = await worker.store()
    for owner, text in ((user, "The boiler is in the cellar."), ("somebody-else", "The boiler is on the roof.")):
        [vector] = await worker.embeddings.embed([text], "passage")
        chunk = Chunk(
            chunk_id=f"chunk-{owner}",
            user_id=owner,
            collection=DEFAULT_COLLECTION,
            source="house.txt",
            content_hash="1",
            position=0,
            text=text,
            embedding=vector,
        )
        await store.replace_source(owner, DEFAULT_COLLECTION, "house.txt", [chunk])
    query = json.dumps({"query": "Where is the boiler?"})
    other = json.dumps({"query": "Where is the boiler?", "user_id": "somebody-else"})
    bedrock.replies = [
        Reply("Let me look.", tools=[("hybrid_search", query), ("hybrid_search", other)]),
        Reply("In the cellar [2]."),
    ]

    result = await generate(temporal, user, asking(user, "Where is it?", passages=[HARBOUR], use_tools=True))

    assert result.text == "In the cellar [2]."
    assert [(one.number, one.source, one.text) for one in result.citations] == [
        (2, "house.txt", "The boiler is in the cellar.")
    ]
    found, forbidden = told(bedrock.chats[1])
    assert found["status"] == "success"
    assert '<passage number="2"' in text_of(found)
    assert "roof" not in text_of(found)
    assert forbidden["status"] == "error"
    assert "user_id" in text_of(forbidden)
    assert [(call.server, call.tool, call.error is None) for call in result.tool_calls] == [
        (None, "hybrid_search", True),
        (None, "hybrid_search", False),
    ]
    assert len(result.invocations) == 2
    offered = [tool["toolSpec"]["name"] for tool in bedrock.chats[0]["toolConfig"]["tools"]]
    assert offered == ["hybrid_search", "retrieve_memory", "check_semantic_cache"]


async def test_the_model_calls_another_server_and_is_told_what_fails(
    temporal: Client, stack: Addresses, bedrock: Endpoint, settings: Settings, servers: Path, user: str, tmp_path: Path
) -> None:
    settings = Settings(durable_context_home=tmp_path, llm_model_id=TEXT_MODEL, mcp_servers_file=servers)
    bedrock.replies = [
        Reply(
            tools=[
                ("harbour__tide", '{"port": "Oslo"}'),
                ("harbour__book_berth", '{"port": "Oslo", "metres": 400}'),
                ("harbour__tide", '{"port": 7, "boat": '),
                ("harbour__tides", "{}"),
                ("harbour__manifest", '{"words": 900000}'),
            ]
        ),
        Reply(tools=[("harbour__end", "{}"), ("harbour__tide", "{}")]),
        Reply(tools=[("harbour__tide", '{"port": "Bergen"}')]),
        Reply("High tide is at 14:32."),
    ]
    async with working(temporal, settings, stack.models, user):
        result = await generate(temporal, user, asking(user, "When is high tide?", use_tools=True))

    assert result.text == "High tide is at 14:32."
    assert result.citations == []
    [warning] = result.warnings
    assert "'broken'" in warning
    tide, booking, malformed, unknown, manifest = told(bedrock.chats[1])
    assert (tide["status"], text_of(tide)) == ("success", "High tide in Oslo: 14:32.")
    assert booking["status"] == "error"
    assert "no berth is longer than 300 m" in text_of(booking)
    assert malformed["status"] == "error"
    assert "JSON" in text_of(malformed)
    assert unknown["status"] == "error"
    assert "There is no tool 'harbour__tides'" in text_of(unknown)
    assert RESULT_CHARACTERS - 10 < len(text_of(manifest)) <= RESULT_CHARACTERS
    crashed, invalid = told(bedrock.chats[2])
    assert {crashed["status"], invalid["status"]} == {"error"}
    assert "isn't known whether" in text_of(crashed)
    [again] = told(bedrock.chats[3])
    assert text_of(again) == "High tide in Bergen: 14:32."
    # A tool that may not be repeated isn't, also where nobody knows whether it was done.
    assert (tmp_path / "calls").read_text().split("\n").count("end") == 1
    assert (tmp_path / "calls").read_text().count("book_berth") == 1
    assert [call.server for call in result.tool_calls] == [*["harbour"] * 3, None, *["harbour"] * 4]


@pytest.mark.usefixtures("worker")
async def test_a_model_that_never_stops_calling_tools_is_made_to_answer(
    temporal: Client, bedrock: Endpoint, user: str
) -> None:
    call = ("check_semantic_cache", '{"query": "When?"}')
    bedrock.replies = [Reply(tools=[call]) for _ in range(MAX_ROUNDS + 1)] + [Reply("I don't know.")]

    result = await generate(temporal, user, asking(user, use_tools=True))

    assert result.text == "I don't know."
    assert len(result.invocations) == MAX_ROUNDS + 2
    [last] = told(bedrock.chats[-1])
    assert last["status"] == "error"
    assert "rounds" in text_of(last)


@pytest.mark.usefixtures("worker")
async def test_what_passes_is_tried_again(temporal: Client, bedrock: Endpoint, user: str) -> None:
    bedrock.replies = [
        Reply(refusal=(429, "ThrottlingException", "slow down")),
        Reply(refusal=(503, "ServiceUnavailableException", "later")),
        Reply("Half an", breaks=("throttlingException", "slow down")),
        Reply("Half an", breaks=("", "")),
        Reply("In November."),
    ]

    result = await generate(temporal, user, asking(user))

    assert result.text == "In November."
    assert len(bedrock.chats) == 5
    assert len(result.invocations) == 1


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(refusal=(400, "ValidationException", "Input is too long for requested model.")), "longer than"),
        (Reply(refusal=(400, "ValidationException", "The provided model identifier is invalid.")), "LLM_MODEL_ID"),
        (Reply(refusal=(403, "AccessDeniedException", "no")), "InvokeModelWithResponseStream"),
        (Reply(refusal=(400, "ValidationException", "This model doesn't support the image block")), "takes images"),
        (Reply("Half", breaks=("validationException", "bad")), "rejected the request"),
        (Reply("Sorry.", stop_reason="guardrail_intervened"), "guardrail"),
        (Reply("Sorry.", stop_reason="content_filtered"), "filter"),
        (Reply("And then", stop_reason="model_context_window_exceeded"), "longer than"),
        (Reply(" "), "empty answer"),
    ],
)
@pytest.mark.usefixtures("worker")
async def test_what_does_not_pass_is_said_clearly(
    temporal: Client, bedrock: Endpoint, user: str, reply: Reply, says: str
) -> None:
    bedrock.replies = [reply]
    assert says in await refused(temporal, user, asking(user))
    assert len(bedrock.chats) == 1
    # The next one is answered.
    assert (await generate(temporal, user, asking(user))).text == "I see."


@pytest.mark.usefixtures("worker")
async def test_a_model_is_asked_without_what_it_does_not_take(temporal: Client, bedrock: Endpoint, user: str) -> None:
    bedrock.replies = [
        Reply(refusal=(400, "ValidationException", "`temperature` and `top_p` cannot both be specified")),
        Reply(refusal=(400, "ValidationException", "This model doesn't support system messages.")),
        Reply(refusal=(400, "ValidationException", "This model doesn't support tool use in streaming mode.")),
        Reply(tools=[("check_semantic_cache", '{"query": "?"}')]),
        Reply("Done."),
    ]

    result = await generate(temporal, user, asking(user, system="Be brief.", top_p=0.5, use_tools=True))

    assert result.text == "Done."
    assert [(one.temperature, one.top_p) for one in result.invocations] == [(0.2, None)] * 2
    assert "system" not in bedrock.chats[-1]
    assert bedrock.chats[-1]["messages"][0]["content"][0]["text"].startswith("Be brief.")


@pytest.mark.usefixtures("worker")
async def test_an_image_goes_by_reference(temporal: Client, bedrock: Endpoint, settings: Settings, user: str) -> None:
    image = documents.image("PNG")
    await build_contents(settings).put(f"{user}-image", image)
    prepared = PreparedImage(content=f"{user}-image", media_type="image/png", width=1, height=1)
    bedrock.replies = [Reply("A sign.")]
    messages = [ChatMessage(role="user", text="What is it?", image=prepared)]

    assert (await generate(temporal, user, asking(user, messages=messages))).text == "A sign."

    [block, _] = bedrock.chats[0]["messages"][0]["content"]
    assert base64.b64decode(block["image"]["source"]["bytes"]) == image
    assert len(await history(temporal, user)) < len(image) or image not in _decoded(
        await history(temporal, user)
    ).encode("utf-8", "replace")
    gone = prepared.model_copy(update={"content": "gone"})
    messages = [ChatMessage(role="user", text="What is it?", image=gone)]
    assert "Send it again" in await refused(temporal, user, asking(user, messages=messages))


@pytest.mark.usefixtures("worker")
async def test_an_answer_that_nobody_watches_comes_whole(temporal: Client, bedrock: Endpoint, user: str) -> None:
    bedrock.replies = [Reply("In November.")]
    assert (await generate(temporal, user, asking(user, watched=False))).text == "In November."


async def test_the_embedded_model_quotes_and_cites(
    temporal: Client, stack: Addresses, tmp_path: Path, user: str
) -> None:
    async with working(temporal, Settings(durable_context_home=tmp_path), stack.models, user):
        result = await generate(temporal, user, asking(user, passages=[FERRY, HARBOUR], use_tools=True))
        nothing = await generate(temporal, user, asking(user, "Who composed the ninth symphony?", passages=[HARBOUR]))

    assert not result.generative
    assert "no generative model" in result.text
    assert "The harbour closes in November. [2]" in result.text
    assert [one.source for one in result.citations] == ["/notes/harbour.md"]
    assert "nothing that was found bears on this" in nothing.text
    assert nothing.citations == []
