"""Conversations as their callers have them: over MCP, over plain HTTP, and in a terminal."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from temporalio.client import Client as TemporalClient

from activities.conversation import conversation_workflow_id
from mcp_server.local.stack import Addresses
from mcp_server.tasks import IDEMPOTENCY_KEY
from tests import documents
from tests.conftest import command, content, environment, error, serve, workflow_id
from tests.e2e.test_http import serve_http
from tests.faults.bedrock_endpoint import Endpoint, Reply, serve_endpoint

FACT = "Please remember that the code of my locker is 7291."


async def say(client: Client, user: str, prompt: str, conversation_id: str = "c", **arguments: Any) -> dict[str, Any]:
    arguments |= {"prompt": prompt, "user_id": user, "conversation_id": conversation_id}
    return content(await client.call_tool("converse", arguments))


async def history(client: Client, user: str, conversation_id: str = "c", **arguments: Any) -> dict[str, Any]:
    arguments |= {"user_id": user, "conversation_id": conversation_id}
    return content(await client.call_tool("conversation_history", arguments))


async def test_an_answer_cites_documents_that_are_there(client: Client, user: str) -> None:
    text = "# Lighthouses\n\nThe lighthouse of Genoa is 77 metres tall.\n\nIt was built in 1543."
    await client.call_tool("ingest_documents", {"text": text, "name": "lighthouses", "user_id": user})

    reply = await say(client, user, "How tall is the lighthouse of Genoa?")

    assert "77 metres" in reply["answer"]
    assert "no generative model" in reply["answer"]
    assert (reply["generative"], reply["model"], reply["stop_reason"]) == (False, "local.extractive", "end_turn")
    [citation] = reply["citations"]
    assert f"[{citation['number']}]" in reply["answer"].partition("Sources:")[0]
    assert f"[{citation['number']}] Lighthouses (lighthouses)" in reply["answer"].partition("Sources:")[2]
    found = await client.read_resource(f"document://{citation['document_id']}")
    chunks = json.loads(found.contents[0].text)["content"]  # type: ignore[union-attr]
    assert citation["text"] in {chunk["text"] for chunk in chunks}
    [invocation] = reply["invocations"]
    assert invocation["model_id"] == "local.extractive"
    assert invocation["system_version"].startswith("conversation-1")
    assert invocation["output_tokens"] > 0


async def test_what_was_said_is_known_in_other_conversations_unless_memory_is_left_out(
    client: Client, user: str
) -> None:
    await say(client, user, FACT, "first")

    elsewhere = await say(client, user, "What is the code of my locker?", "second")
    assert "7291" in elsewhere["answer"]
    assert {citation["kind"] for citation in elsewhere["citations"]} <= {"message", "memory"}
    without = await say(client, user, "What is the code of my locker?", "third", use_memory=False)
    assert "7291" not in without["answer"]
    assert "7291" not in (await say(client, f"{user}-2", "What is the code of my locker?", "first"))["answer"]


async def test_an_answer_is_cached_for_other_conversations_and_says_so(client: Client, user: str) -> None:
    text = "The harbour of Genoa was dredged in 1903."
    await client.call_tool("ingest_documents", {"text": text, "name": "harbour", "user_id": user})
    question = "When was the harbour of Genoa dredged?"

    made = await say(client, user, question, "first")
    again = await say(client, user, question, "second")
    anew = await say(client, user, question, "third", use_cache=False)
    narrower = await say(client, user, question, "fourth", use_memory=False)

    assert made["cached"] is None
    assert again["cached"]["similarity"] == 1
    assert again["cached"]["question"] == question
    assert (again["answer"], again["invocations"]) == (made["answer"], [])
    assert anew["cached"] is narrower["cached"] is None
    # Both messages are part of the conversation all the same.
    assert [one["text"] for one in (await history(client, user, "second"))["messages"]] == [question, made["answer"]]
    assert (await history(client, user, "second"))["messages"][1]["cached"]


async def test_history_is_the_same_while_it_is_open_and_after_its_end(client: Client, user: str) -> None:
    texts = [FACT, "Buoy 7 drifts.", "What is the code of my locker?"]
    replies = [await say(client, user, text) for text in texts]

    is_open = await history(client, user)
    ended = content(await client.call_tool("end_conversation", {"conversation_id": "c", "user_id": user}))
    closed = await history(client, user)
    resource = await client.read_resource(f"conversation://{user}/c")

    expected = [text for text, reply in zip(texts, replies, strict=True) for text in (text, reply["answer"])]
    for found in (is_open, closed, json.loads(resource.contents[0].text)):  # type: ignore[union-attr]
        assert [message["text"] for message in found["messages"]] == expected
        assert [message["message_type"] for message in found["messages"]] == ["human", "ai"] * 3
        assert found["waiting"] == []
    assert (is_open["is_open"], closed["is_open"]) == (True, False)
    assert "7291" in ended["summary"]
    assert closed["summary"] == ended["summary"]
    latest = await history(client, user, limit=2)
    before = await history(client, user, limit=10, cursor=latest["next_cursor"])
    assert [message["text"] for message in before["messages"] + latest["messages"]] == expected
    recalled = content(await client.call_tool("retrieve_memory", {"text": "locker code", "user_id": user}))
    assert ended["summary"] in recalled["conversation_summary"]
    # The next message opens it again.
    assert "7291" in (await say(client, user, "What is the code of my locker?"))["answer"]
    assert (await history(client, user))["is_open"]


async def test_a_forgotten_conversation_is_not_known_to_its_open_workflow(client: Client, user: str) -> None:
    await say(client, user, FACT)
    content(await client.call_tool("forget", {"conversation_id": "c", "user_id": user}))

    reply = await say(client, user, "What is the code of my locker?")

    assert "7291" not in reply["answer"]
    assert len((await history(client, user))["messages"]) == 2


async def test_a_call_that_is_repeated_says_it_once(client: Client, user: str) -> None:
    arguments = {"prompt": FACT, "user_id": user}
    meta: Any = {IDEMPOTENCY_KEY: user}

    first, second = [await client.call_tool("converse", arguments, meta=meta) for _ in range(2)]

    assert content(first) == content(second)
    conversation_id = content(first)["conversation_id"]
    assert len((await history(client, user, conversation_id))["messages"]) == 2


@pytest.mark.parametrize(
    ("tool", "arguments", "parts"),
    [
        ("converse", {"prompt": "  "}, ["prompt", "empty"]),
        ("converse", {"prompt": "x" * 32_001}, ["prompt", "32000"]),
        ("converse", {"prompt": "x", "image": "buoy.png"}, ["image", "absolute path"]),
        ("converse", {"prompt": "x", "image": "/etc/passwd"}, ["image", "INGEST_ROOTS"]),
        ("converse", {"prompt": "x", "image": "http://127.0.0.1/buoy.png"}, ["image", "127.0.0.1"]),
        ("converse", {"prompt": "x", "image": base64.b64encode(b"no image" * 20).decode()}, ["image"]),
        ("converse", {"prompt": "x", "conversation_id": ""}, ["conversation_id"]),
        ("conversation_history", {"conversation_id": "nowhere"}, ["conversation_id", "nowhere"]),
        ("end_conversation", {"conversation_id": "nowhere"}, ["conversation_id", "nowhere"]),
    ],
)
async def test_bad_input_is_named(
    client: Client, user: str, tool: str, arguments: dict[str, Any], parts: list[str]
) -> None:
    said = error(await client.call_tool(tool, arguments | {"user_id": user}))

    assert [part for part in parts if part not in said] == [], said


# With a model that writes


@pytest.fixture(scope="module")
def bedrock() -> Any:
    with serve_endpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
async def writing(
    tmp_path_factory: pytest.TempPathFactory, stack: Addresses, bedrock: Endpoint
) -> AsyncIterator[Client]:
    """A client of a server whose model the tests speak for."""
    assert stack.temporal is not None
    settings = {
        **bedrock.settings,
        **bedrock.text_settings,
        "TEMPORAL_ADDRESS": stack.temporal,
        "TEMPORAL_TASK_QUEUE": "writing",
    }
    async with serve(tmp_path_factory.mktemp("writing") / "home", **settings) as client:
        yield client


async def test_an_answer_arrives_as_progress_while_it_is_written(writing: Client, bedrock: Endpoint, user: str) -> None:
    goes_on = threading.Event()
    bedrock.replies = [Reply("Once upon a time.", goes_on=goes_on)]
    told: list[str] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")
        if message == "Once":
            goes_on.set()

    result = await writing.call_tool(
        "converse", {"prompt": "Tell a story.", "user_id": user}, progress_callback=progress
    )

    assert content(result)["answer"] == "Once upon a time."
    assert "Once" in told


async def test_a_model_is_given_what_was_said_and_the_image(writing: Client, bedrock: Endpoint, user: str) -> None:
    bedrock.chats.clear()
    image = "data:image/png;base64," + base64.b64encode(documents.image("PNG")).decode()
    bedrock.replies = [Reply("A fog horn.")]
    await say(writing, user, "What is this?", image=image)
    bedrock.replies = [Reply("It is brass.")]
    reply = await say(writing, user, "What is it made of?")

    assert reply["answer"] == "It is brass."
    messages = bedrock.chats[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [list(block) for block in messages[0]["content"]] == [["image"], ["text"]]
    assert messages[1]["content"][0]["text"] == "A fog horn."
    assert messages[2]["content"][-1]["text"] == "What is it made of?"


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (Reply("No.", stop_reason="content_filtered"), "filter"),
        (Reply("No.", stop_reason="guardrail_intervened"), "guardrail"),
        (Reply(refusal=(400, "ValidationException", "Input is too long for requested model.")), "long"),
        (Reply(refusal=(404, "ResourceNotFoundException", "no such model")), "LLM_MODEL_ID"),
        (Reply(refusal=(403, "AccessDeniedException", "no access")), "access"),
    ],
)
async def test_what_a_model_refuses_leaves_the_conversation_usable(
    writing: Client, bedrock: Endpoint, user: str, reply: Reply, part: str
) -> None:
    bedrock.replies = [Reply("Hello.")]
    await say(writing, user, "Hello?")
    bedrock.replies = [reply]

    said = error(await writing.call_tool("converse", {"prompt": "x", "user_id": user, "conversation_id": "c"}))

    assert part.lower() in said.lower()
    assert "isn't part of the conversation" in said
    bedrock.replies = [Reply("Still here.")]
    assert (await say(writing, user, "And now?"))["answer"] == "Still here."
    texts = [message["text"] for message in (await history(writing, user))["messages"]]
    assert texts == ["Hello?", "Hello.", "And now?", "Still here."]


async def test_a_cancelled_call_is_withdrawn_and_others_go_on(
    writing: Client, temporal: TemporalClient, bedrock: Endpoint, user: str
) -> None:
    never = threading.Event()
    bedrock.replies = [Reply("For ever and ever.", goes_on=never)]
    conversation = temporal.get_workflow_handle(conversation_workflow_id("writing", user, "c"))
    call = asyncio.create_task(
        writing.call_tool("converse", {"prompt": "Talk for ever.", "user_id": user, "conversation_id": "c"})
    )
    async with asyncio.timeout(60):
        while bedrock.replies:
            await asyncio.sleep(0.05)
    bedrock.replies = [Reply("Here.")]
    [waiting] = (await history(writing, user))["waiting"]
    assert waiting == "Talk for ever."
    state = await conversation.query("state")
    await writing.call_tool("cancel_task", {"task_id": state["waiting"][0]["message_id"]})

    assert "cancelled" in error(await call)
    assert (await say(writing, user, "Are you there?"))["answer"] == "Here."
    assert [one["text"] for one in (await history(writing, user))["messages"]] == ["Are you there?", "Here."]
    never.set()


# Over plain HTTP


@asynccontextmanager
async def http(home: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serve_http(home) as address, httpx2.AsyncClient(base_url=address, timeout=60) as client:
        yield client


async def test_http(client: Client, home: Path, user: str) -> None:
    async with http(home) as web:
        answered = await web.post("/conversation/", json={"prompt": FACT, "user_id": user, "conversation_id": "c"})
        assert answered.status_code == 200, answered.text
        queued = await web.post(
            "/conversation", json={"prompt": "Buoy 7 drifts.", "user_id": user, "conversation_id": "c", "wait": False}
        )
        assert queued.status_code == 202, queued.text
        assert queued.headers["location"] == "/conversation/c"
        async with asyncio.timeout(60):
            while True:
                found = (await web.get("/conversation/c", params={"user_id": user})).json()
                if not found["waiting"]:
                    break
        assert [message["text"] for message in found["messages"][::2]] == [FACT, "Buoy 7 drifts."]
        assert found["messages"][0]["message_id"] == answered.json()["message_id"]
        assert found["messages"][2]["message_id"] == queued.json()["message_id"]
        # Its summary is brought up to date in the background.
        over_mcp = await history(client, user)
        assert {**found, "summary": ""} == {**over_mcp, "summary": ""}

        for body, part in (
            ({}, "prompt is required"),
            ({"prompt": " "}, "prompt must not be empty"),
            ({"prompt": "x", "colour": "red"}, "colour isn't known"),
            ({"prompt": "x", "image": "/etc/passwd"}, "over HTTP"),
        ):
            refused = await web.post("/conversation/", json=body)
            assert refused.status_code == 400, refused.text
            assert part in refused.json()["error"]
        assert (await web.post("/conversation/", content=b"prompt=x")).status_code == 415
        for malformed in (b"{", b"[]"):
            refused = await web.post("/conversation/", content=malformed, headers={"Content-Type": "application/json"})
            assert (refused.status_code, refused.json()["error"]) == (400, "The body isn't a JSON object.")
        unnamed = await web.get("/conversation/")
        assert (unnamed.status_code, "conversation_id should have" in unnamed.text) == (400, True), unnamed.text
        assert (await web.get("/conversation/nowhere", params={"user_id": user})).status_code == 404
        assert (await web.get("/conversation/c", params={"user_id": user, "limit": "0"})).status_code == 400
        foreign = await web.post("/conversation/", json={"prompt": "x"}, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403


# In a terminal


async def chat(home: Path, lines: str, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command("chat", *arguments),
        env=environment(home),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problems = await process.communicate(lines.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), problems.decode()


async def test_a_terminal_attaches_to_a_conversation_begun_elsewhere(client: Client, home: Path, user: str) -> None:
    await say(client, user, FACT, "desk")

    status, out, problems = await chat(
        home, "What is the code of my locker?\n\n/nonsense\n/end\n", "--conversation", "desk", "--user-id", user
    )

    assert (status, problems) == (0, "")
    assert out.index(f"you: {FACT}") < out.index("7291.\n") < out.index("There is no command /nonsense")
    assert "Ended. Its summary:" in out
    assert not (await history(client, user, "desk"))["is_open"]
    status, out, _ = await chat(home, "Buoy 7 drifts.", "--user-id", user)
    assert status == 0
    name = out.split("durable-context chat --conversation ")[1].strip()
    assert len((await history(client, user, name))["messages"]) == 2
    status, _, problems = await chat(home, "x" * 32_001 + "\n/image /nowhere.png What?\n", "--user-id", user)
    assert status == 1
    assert "32,000 characters" in problems
    assert "/nowhere.png can't be read" in problems


async def test_a_conversation_without_an_id_is_a_new_one(client: Client, user: str) -> None:
    result = await client.call_tool("converse", {"prompt": FACT, "user_id": user})

    assert content(result)["conversation_id"] == workflow_id(result).rpartition("-")[2]
