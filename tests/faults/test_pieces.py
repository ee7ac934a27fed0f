"""Pieces that are missing, broken or slow: the answer says which and what to do, and the work is done once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from mcp import Client
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client as TemporalClient

from activities.memory import memory_workflow_id
from mcp_server.local.stack import Addresses
from mcp_server.tasks import IDEMPOTENCY_KEY
from tests.conftest import command, content, environment, error, message, serve, task_of, workflow_id
from tests.e2e.test_stdio import INITIALIZE, INITIALIZED, ask, gone, raw, request, stack_gone
from tests.faults.bedrock_endpoint import Endpoint
from tests.faults.test_stack import PLEASE_KEEP, locked, messages_of, pids, until_up

KEY = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture
def shared(stack: Addresses, user: str) -> dict[str, str]:
    """Settings of a server with a store of its own on the Temporal server that tests share."""
    assert stack.temporal is not None
    return {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user}


@pytest.fixture
async def on_bedrock(bedrock: Endpoint, shared: dict[str, str], tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server that takes the test's endpoint for Amazon Bedrock."""
    async with serve(tmp_path, CALL_TIMEOUT_SECONDS="15", **shared, **bedrock.settings) as client:
        yield client


async def test_what_is_begun_before_a_workflow_is_its_own_first_step(bedrock: Endpoint, on_bedrock: Client) -> None:
    """Nothing is embedded twice, and nothing else than the workflow needs."""
    await on_bedrock.call_tool("hybrid_search", {"query": "Where is the harbour?"})
    await on_bedrock.call_tool("retrieve_memory", {"text": "Who keeps the light?"})
    await on_bedrock.call_tool("semantic_cache_response", {"query": "When is high tide?", "response": "At six."})

    assert bedrock.embedded == ["Where is the harbour?", "Who keeps the light?", "When is high tide?"]


async def test_a_question_that_several_tools_are_asked_is_embedded_once(bedrock: Endpoint, on_bedrock: Client) -> None:
    question = "Where is the harbour?"
    await asyncio.gather(
        on_bedrock.call_tool("check_semantic_cache", {"query": question}),
        on_bedrock.call_tool("retrieve_memory", {"text": question}),
        on_bedrock.call_tool("hybrid_search", {"query": question}),
    )
    await on_bedrock.call_tool("semantic_cache_response", {"query": question, "response": "In the bay."})
    found = content(await on_bedrock.call_tool("check_semantic_cache", {"query": "where's the harbour?"}))

    assert found["similarity"] is not None
    assert bedrock.embedded == [question, "where's the harbour?"]


async def test_throttling_is_waited_out(bedrock: Endpoint, on_bedrock: Client) -> None:
    bedrock.failures = [(429, "ThrottlingException", "Too many requests")] * 5

    stored = content(await on_bedrock.call_tool("store_memory", PLEASE_KEEP))

    assert bedrock.refused == 5
    found = content(await on_bedrock.call_tool("retrieve_memory", {"text": "Keep this."}))
    assert [item["message_id"] for item in found["related_conversation"]] == [stored["message_id"]]


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        ((403, "UnrecognizedClientException", f"The security token {KEY} is invalid"), "credentials"),
        ((403, "AccessDeniedException", "You don't have access to the model"), "EMBEDDING_MODEL_ID"),
        ((404, "ResourceNotFoundException", "Could not resolve the model"), "EMBEDDING_MODEL_ID"),
        ((400, "ValidationException", "The provided model identifier is invalid"), "EMBEDDING_MODEL_ID"),
    ],
)
async def test_what_does_not_pass_is_said_at_once(
    bedrock: Endpoint, on_bedrock: Client, failure: tuple[int, str, str], named: str
) -> None:
    bedrock.failures, bedrock.for_ever = [failure], True

    text = error(await on_bedrock.call_tool("store_memory", PLEASE_KEEP))

    assert named in text
    assert KEY not in text
    assert bedrock.refused == 1


async def test_work_waits_for_bedrock_beyond_the_call(
    bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    bedrock.failures, bedrock.for_ever = [(503, "ServiceUnavailableException", "try later")], True
    async with serve(tmp_path, CALL_TIMEOUT_SECONDS="4", **shared, **bedrock.settings) as client:
        assert "Bedrock" in task_of(await client.call_tool("store_memory", PLEASE_KEEP))["message"]
        assert "Bedrock" in task_of(await client.call_tool("hybrid_search", {"query": "x"}))["message"]
        bedrock.failures = []
        async with asyncio.timeout(60):
            while "task_id" in content(await client.call_tool("retrieve_memory", {"text": "Keep this."})):
                await asyncio.sleep(0.1)
            while not (texts := await messages_of(client)):
                await asyncio.sleep(0.1)
        assert texts == ["Keep this."]


async def test_a_locked_store_is_named_and_the_work_is_done_once(
    temporal: TemporalClient, bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    async with serve(tmp_path, CALL_TIMEOUT_SECONDS="20", **shared, **bedrock.settings) as client:
        content(await client.call_tool("check_semantic_cache", {"query": "Up?"}))
        async with locked(tmp_path):
            late = await client.call_tool("store_memory", PLEASE_KEEP)
            assert "store.db is locked" in task_of(late)["message"]
        stored = await temporal.get_workflow_handle(workflow_id(late)).result()
        assert stored["message_id"].startswith(workflow_id(late))
        assert await messages_of(client) == ["Keep this."]


async def test_a_store_filled_by_another_model_is_refused(
    bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    async with serve(tmp_path, **shared, **bedrock.settings) as client:
        content(await client.call_tool("store_memory", PLEASE_KEEP))
    changed = bedrock.settings | {"EMBEDDING_DIMENSIONS": "512"}
    async with serve(tmp_path, **shared, **changed) as client:
        text = error(await client.call_tool("store_memory", PLEASE_KEEP))
    assert "256 dimensions" in text
    assert "512 dimensions" in text


async def test_a_damaged_store_is_named(bedrock: Endpoint, shared: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"This is no database." * 100)
    async with serve(tmp_path, **shared, **bedrock.settings) as client:
        assert "store.db is damaged" in error(await client.call_tool("store_memory", PLEASE_KEEP))
    assert (tmp_path / "store.db").read_bytes().startswith(b"This is no database.")


async def test_a_temporal_that_is_not_there_is_named(bedrock: Endpoint, tmp_path: Path) -> None:
    settings = {"TEMPORAL_ADDRESS": "127.0.0.1:1", "CALL_TIMEOUT_SECONDS": "3"} | bedrock.settings
    async with serve(tmp_path, **settings) as client:
        text = error(await client.call_tool("store_memory", PLEASE_KEEP))
    assert "TEMPORAL_ADDRESS" in text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("EMBEDDING_MODEL_ID", "foo.bar"), ("EMBEDDING_DIMENSIONS", "17"), ("TEMPORAL_ADDRESS", "not an address")],
)
async def test_what_keeps_the_server_from_starting_is_named(
    shared: dict[str, str], tmp_path: Path, setting: str, value: str
) -> None:
    async with serve(tmp_path, **(shared | {"CALL_TIMEOUT_SECONDS": "3", setting: value})) as client:
        text = error(await client.call_tool("store_memory", PLEASE_KEEP))
        health = str((await client.read_resource("health://status")).contents)
    assert setting in text
    assert "isn't known" not in text
    assert setting in health


async def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    async with raw(file, CALL_TIMEOUT_SECONDS="3") as process:
        await ask(process, INITIALIZE)
        assert process.stdin is not None
        process.stdin.write(INITIALIZED)
        for number in (2, 3):
            call = request(number, "tools/call", name="check_semantic_cache", arguments={"query": "Up?"})
            result = (await ask(process, call))["result"]
            assert result["isError"]
            assert str(file) in result["content"][0]["text"]


async def test_a_temporal_that_hangs_is_named_and_the_work_is_done_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serve(home, CALL_TIMEOUT_SECONDS="4") as client:
        await until_up(client)
        dev_server = pids(home)[1]
        os.kill(dev_server, signal.SIGSTOP)
        try:
            text = error(await client.call_tool("store_memory", PLEASE_KEEP))
            assert "Temporal" in text
        finally:
            os.kill(dev_server, signal.SIGCONT)
        async with asyncio.timeout(60):
            while (recalled := await client.call_tool("retrieve_memory", {"text": "Keep this."})).is_error:
                await asyncio.sleep(0.1)
        assert len(content(recalled)["related_conversation"]) <= 1
    await stack_gone(home)


async def test_a_worker_killed_between_the_embedding_and_the_write_stores_once(
    bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    """The store is locked so that the write can't have happened when the worker is killed, and embedding has."""
    settings = shared | bedrock.settings
    first = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
    second = None
    try:
        async with serve(tmp_path, "--no-worker", **settings) as client:
            # The first call makes the store, and shows that the worker works.
            content(await client.call_tool("check_semantic_cache", {"query": "Up?"}))
            async with locked(tmp_path):
                storing = asyncio.create_task(client.call_tool("store_memory", PLEASE_KEEP))
                async with asyncio.timeout(30):
                    while PLEASE_KEEP["text"] not in bedrock.embedded:
                        await asyncio.sleep(0.01)
                first.kill()
                await first.wait()
                assert count_messages(tmp_path) == 0
            second = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
            stored = content(await storing)
            assert count_messages(tmp_path) == 1
            found = content(await client.call_tool("retrieve_memory", {"text": "Keep this."}))
            assert [item["message_id"] for item in found["related_conversation"]] == [stored["message_id"]]
    finally:
        for process in (first, second):
            if process is not None and process.returncode is None:
                process.terminate()
                await process.wait()
    await gone(first.pid)


async def test_a_worker_killed_while_memories_form_loses_and_doubles_none(
    temporal: TemporalClient, bedrock: Endpoint, shared: dict[str, str], tmp_path: Path, user: str
) -> None:
    """The store is locked so that the first memory is still being written when the worker is killed."""
    settings = shared | bedrock.settings | {"LLM_MODEL_ID": "us.amazon.nova-lite-v1:0"}
    remembering = temporal.get_workflow_handle(memory_workflow_id(user, "default"))
    bedrock.answers.clear()
    first = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
    second = None
    try:
        async with serve(tmp_path, "--no-worker", **settings) as client:
            for number in range(3):
                text = f"Please remember that I live at number {number}."
                content(await client.call_tool("store_memory", PLEASE_KEEP | {"text": text}))
            async with asyncio.timeout(30):
                while not bedrock.asked:
                    await asyncio.sleep(0.01)
                async with locked(tmp_path):
                    bedrock.answers.set()
                    while (await remembering.describe()).raw_description.pending_activities:
                        await asyncio.sleep(0.01)
                    first.kill()
                    await first.wait()
            second = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
            await remembering.result()

            found = content(await client.call_tool("retrieve_memory", {"text": "Where do I live?"}))
    finally:
        for process in (first, second):
            if process is not None and process.returncode is None:
                process.terminate()
                await process.wait()
    messages = [item["message_id"] for item in found["related_conversation"]]
    assert len(messages) == 3
    assert sorted(memory["source_messages"] for memory in found["similar_memories"]) == [
        [one] for one in sorted(messages)
    ]
    assert "They live somewhere." in found["conversation_summary"]
    assert found["summary_model"] == "us.amazon.nova-lite-v1:0"


async def test_a_worker_killed_while_the_model_answers_is_taken_over_soon(
    temporal: TemporalClient, bedrock: Endpoint, shared: dict[str, str], tmp_path: Path, user: str
) -> None:
    """Nobody waits as long as a model may take."""
    settings = shared | bedrock.settings | {"LLM_MODEL_ID": "us.amazon.nova-lite-v1:0"}
    bedrock.answers.clear()
    first = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
    second = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
    workers = [first, second]
    try:
        async with serve(tmp_path, "--no-worker", **settings) as client:
            text = "Please remember that I live at number 7."
            stored = content(await client.call_tool("store_memory", PLEASE_KEEP | {"text": text}))
            remembering = temporal.get_workflow_handle(memory_workflow_id(user, "default"))
            async with asyncio.timeout(30):
                while not bedrock.asked:
                    await asyncio.sleep(0.01)
            started = EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED
            tasks = [one async for one in remembering.fetch_history_events() if one.event_type == started]
            identity = tasks[-1].workflow_task_started_event_attributes.identity
            [busy] = [one for one in workers if str(one.pid) == identity.partition("@")[0]]
            busy.kill()
            await busy.wait()
            bedrock.answers.set()
            async with asyncio.timeout(60):
                await remembering.result()
            [memory] = content(await client.call_tool("list_memories", {}))["memories"]
            assert memory["source_messages"] == [stored["message_id"]]
    finally:
        for process in workers:
            if process.returncode is None:
                process.terminate()
                await process.wait()


def count_messages(home: Path) -> int:
    db = apsw.Connection(str(home / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        count: int = db.execute("select count(*) from conversations").get
        return count
    finally:
        db.close()


async def test_the_web_key_never_shows(shared: dict[str, str], bedrock: Endpoint, tmp_path: Path) -> None:
    settings = shared | bedrock.settings | {"TAVILY_API_KEY": "tvly-hunter2", "TAVILY_BASE_URL": "http://127.0.0.1:1"}
    async with serve(tmp_path, CALL_TIMEOUT_SECONDS="5", **settings) as client:
        result = await client.call_tool("search_web", {"query": "x"})
        assert "Tavily can't be reached" in task_of(result)["message"]
        shown = str((await client.read_resource("config://settings")).contents)
    assert "hunter2" not in message(result) + shown
    assert "hunter2" not in "".join(file.read_text() for file in (tmp_path / "logs").glob("*.log"))


async def test_a_text_is_held_no_longer_than_an_ingestion_needs_it(
    bedrock: Endpoint, shared: dict[str, str], tmp_path: Path
) -> None:
    """Made again with its key, cancelled, or never begun, a call leaves no copy of its text in the data folder."""
    contents = tmp_path / "contents"
    text = {"text": "# Tide table\n\nHigh water is at noon.", "name": "tides"}
    key: Any = {IDEMPOTENCY_KEY: "tides"}
    async with serve(tmp_path, CALL_TIMEOUT_SECONDS="6", **shared, **bedrock.settings) as client:
        for _ in range(2):
            stored = content(await client.call_tool("ingest_documents", text, meta=key))
            assert (stored["stored"], stored["failed"]) == (1, 0)
            assert list(contents.iterdir()) == []

        bedrock.failures, bedrock.for_ever = [(503, "ServiceUnavailableException", "try later")], True
        late = task_of(await client.call_tool("ingest_documents", {**text, "text": "# Tide table\n\nNo water."}))
        assert len(list(contents.iterdir())) == 2
        await client.call_tool("cancel_task", {"task_id": late["task_id"]})
        async with asyncio.timeout(30):
            while list(contents.iterdir()):
                await asyncio.sleep(0.05)
        status = content(await client.call_tool("task_status", {"task_id": late["task_id"]}))
        assert status["status"] in ("working", "cancelled")
    nowhere = {"TEMPORAL_ADDRESS": "127.0.0.1:1", "CALL_TIMEOUT_SECONDS": "3"} | bedrock.settings
    async with serve(tmp_path, **nowhere) as client:
        assert "nothing was started" in error(await client.call_tool("ingest_documents", text))
    assert list(contents.iterdir()) == []
