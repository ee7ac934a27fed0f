"""Records a history of every workflow, by real calls on the embedded stack: `python -m tests.workflows.record`."""

import asyncio
import base64
import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from mcp import Client
from temporalio.client import Client as TemporalClient

from activities.conversation import conversation_workflow_id
from activities.memory import memory_workflow_id
from activities.models import ChatMessage, GenerationParams
from mcp_server.local.stack import leased
from mcp_server.runtime import connect
from mcp_server.settings import Settings
from tests import documents
from tests.conftest import REPOSITORY, serve
from tests.e2e.test_http import run
from tests.faults.bedrock_endpoint import TEXT_MODEL, Endpoint, Reply, serve_endpoint
from tests.workflows.test_replay import HISTORIES
from workflows.generation import AIGenerationWorkflow

IMAGE = "data:image/png;base64," + base64.b64encode(documents.image("PNG", size=(200, 60))).decode()

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "HybridSearchWorkflow": ("hybrid_search", {"query": "Where is the boiler?"}),
    "MemoryStorageWorkflow": (
        "store_memory",
        {
            "conversation_id": "c",
            "text": "Please remember that I live in Oslo.",
            "message_type": "human",
            "timestamp": "2026-05-03T09:00:00Z",
        },
    ),
    "MemoryRetrievalWorkflow": ("retrieve_memory", {"text": "Where do I live?"}),
    "SemanticCacheCheckWorkflow": ("check_semantic_cache", {"query": "Where do I live?"}),
    "CacheStorageWorkflow": ("semantic_cache_response", {"query": "Where do I live?", "response": "In Oslo."}),
    "SemanticCacheCheckWorkflow.identical": ("check_semantic_cache", {"query": "Where do I live?"}),
    "ForgetWorkflow": ("forget", {"ids": ["nowhere"]}),
    "ForgetWorkflow.query": ("forget", {"query": "Where do I live?"}),
    "CacheInvalidationWorkflow": ("invalidate_cache", {"query": "Where do I live?"}),
    "WebSearchWorkflow": ("search_web", {"query": "Oslo"}),
}

CONVERSATION: dict[str, tuple[str, dict[str, Any]]] = {
    "ConverseWorkflow": (
        "converse",
        {"prompt": "Where does the boiler stand in the house?", "conversation_id": "c", "image": IMAGE},
    ),
    # Cached by now.
    "ConverseWorkflow.cached": (
        "converse",
        {"prompt": "How loud is the boiler of the house?", "conversation_id": "c"},
    ),
    "ConversationHistoryWorkflow": ("conversation_history", {"conversation_id": "c"}),
    "ConversationEndWorkflow": ("end_conversation", {"conversation_id": "c"}),
}

COMMANDS = (
    *("DataIngestionWorkflow", "DocumentListWorkflow", "DocumentReadWorkflow", "DocumentRemovalWorkflow"),
    *("ImageProcessingWorkflow", "ReembeddingWorkflow"),
)
"""Workflows that no tool's result names."""


async def record() -> None:
    """Make each call, and write down what its workflow did."""
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, serve_endpoint() as bedrock:
        home = Path(folder) / "home"
        notes = Path(folder) / "notes"
        notes.mkdir()
        (notes / "boiler.md").write_text("# Boiler\n\nThe boiler is in the cellar.\n")
        async with leased(home, ["temporal", "models"]) as addresses:
            temporal = await connect(Settings(durable_context_home=home), addresses.temporal)
            (notes / "sign.png").write_bytes(documents.image("PNG"))
            (notes / "broken.pdf").write_bytes(b"no PDF")
            await run(home, "ingest", str(notes), "--user-id", "ada")
            await run(home, "documents", "list", "--user-id", "ada")
            await run(home, "documents", "remove", str(notes / "boiler.md"), "--user-id", "ada")
            async with serve(home) as client:
                kept = await client.call_tool("ingest_documents", {"text": "The boiler hums.", "name": "boiler"})
                assert kept.structured_content is not None
                key = kept.structured_content["sources"][0]["document_id"]
                await client.read_resource(f"document://{key}")
                for name, (tool, arguments) in CALLS.items():
                    result = await client.call_tool(tool, arguments)
                    assert result.meta is not None
                    await write(temporal, name, result.meta["durable-context/workflow_id"])
                remembering = temporal.get_workflow_handle(memory_workflow_id("durable-context", "default"))
                await remembering.result()
                await write(temporal, "UserMemoryWorkflow", remembering.id)
                await record_group(client, temporal)
                await record_conversation(client, temporal)
            await record_continued(temporal, home)
            assert addresses.temporal is not None
            settings = bedrock.settings | {"TEMPORAL_ADDRESS": addresses.temporal}
            bedrock.failures = [(429, "ThrottlingException", "slow down")] * 4
            async with serve(Path(folder) / "throttled", **settings) as client:
                tool, arguments = CALLS["MemoryStorageWorkflow"]
                result = await client.call_tool(tool, arguments)
                assert result.meta is not None
                await write(temporal, "MemoryStorageWorkflow.throttled", result.meta["durable-context/workflow_id"])
            await record_generation(temporal, bedrock, Path(folder) / "generating", settings)
            await run(home, "reembed", **settings)
            named = ", ".join(f"'{name}'" for name in COMMANDS)
            async for execution in temporal.list_workflows(f"WorkflowType IN ({named})"):
                if execution.id.startswith("ingest_documents-"):
                    await write(temporal, "DataIngestionWorkflow.text", execution.id)
                else:
                    await write(temporal, execution.workflow_type, execution.id)


async def record_group(client: Client, temporal: TemporalClient) -> None:
    """Say more of what was said, and write down what becomes of both memories."""
    remembering = temporal.get_workflow_handle(memory_workflow_id("durable-context", "default"))
    tool, arguments = CALLS["MemoryStorageWorkflow"]
    await client.call_tool(tool, arguments | {"text": "Please remember that I live in Oslo near the harbour."})
    await remembering.result()
    await write(temporal, "UserMemoryWorkflow.consolidating", remembering.id)
    listed = await client.call_tool("list_memories", {})
    assert listed.structured_content is not None
    (parent,) = listed.structured_content["memories"]
    key = {"memory_id": parent["memory_id"]}
    pinned, split = await client.call_tool("pin_memory", key), await client.call_tool("split_memory", key)
    for name, result in (("MemoryList", listed), ("MemoryPin", pinned), ("MemorySplit", split)):
        assert result.meta is not None
        await write(temporal, f"{name}Workflow", result.meta["durable-context/workflow_id"])


async def record_conversation(client: Client, temporal: TemporalClient) -> None:
    """Talk, ask what is cached, continue as new, end; and write down each call and both runs of the conversation."""
    question = {"prompt": "How loud is the boiler of the house?", "conversation_id": "b"}
    for _ in range(2):
        await client.call_tool("converse", question)
    for name, (tool, arguments) in CONVERSATION.items():
        result = await client.call_tool(tool, arguments)
        assert result.meta is not None
        assert not result.is_error, result.content
        await write(temporal, name, result.meta["durable-context/workflow_id"])
    await write(temporal, "ConversationWorkflow", conversation_workflow_id("durable-context", "default", "c"))


async def record_continued(temporal: TemporalClient, home: Path) -> None:
    """Say more than a model is given again, and write down how a conversation lets go of it, and goes on."""
    async with serve(home, CONVERSATION_HISTORY_TOKENS="100") as client:
        for number in range(6):
            await client.call_tool("converse", {"prompt": f"Buoy {number} drifts past rock 7.", "conversation_id": "d"})
    async with serve(home) as client:
        await client.call_tool("converse", {"prompt": "Which buoy drifts?", "conversation_id": "d"})
    workflow_id = conversation_workflow_id("durable-context", "default", "d")
    latest = (await temporal.get_workflow_handle(workflow_id).fetch_history()).events[0]
    before = latest.workflow_execution_started_event_attributes.continued_execution_run_id
    assert before
    await write(temporal, "ConversationWorkflow.full", workflow_id, before)
    await write(temporal, "ConversationWorkflow.continued", workflow_id)


async def record_generation(temporal: TemporalClient, bedrock: Endpoint, home: Path, settings: dict[str, str]) -> None:
    """Have a question answered with tools of both sorts, some of which fail, and write down how."""
    home.mkdir()
    declared = {"command": sys.executable, "args": ["-m", "tests.other_server", str(home)], "cwd": str(REPOSITORY)}
    (home / "servers.json").write_text(json.dumps({"mcpServers": {"harbour": declared}}))
    search, tide = ("hybrid_search", '{"query": "boiler"}'), ("harbour__tide", '{"port": "Oslo"}')
    bedrock.failures, bedrock.replies = (
        [],
        [
            Reply(tools=[search, tide, ("harbour__book_berth", '{"port": "Oslo", "metres": 400}'), ("nothing", "{")]),
            Reply(stop_reason="malformed_tool_use"),
            Reply("It is high at 14:32."),
        ],
    )
    generating = {
        "LLM_MODEL_ID": TEXT_MODEL,
        "MCP_SERVERS_FILE": str(home / "servers.json"),
        "TEMPORAL_TASK_QUEUE": "g",
    }
    params = GenerationParams(
        user_id="ada", messages=[ChatMessage(role="user", text="When is high tide?")], use_tools=True
    )
    async with serve(home, **settings | generating):
        await temporal.execute_workflow(AIGenerationWorkflow.run, params, id="generation", task_queue="g")
    await write(temporal, "AIGenerationWorkflow", "generation")


async def write(temporal: TemporalClient, name: str, workflow_id: str, run_id: str | None = None) -> None:
    history = await temporal.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    recorded = json.dumps(_anonymous(json.loads(history.to_json())), indent=1)
    (HISTORIES / f"{name}.json").write_text(recorded.replace(socket.gethostname(), "host") + "\n")


def _anonymous(value: Any) -> Any:
    """A history without what is of the machine that recorded it: replay needs none of it."""
    if isinstance(value, list):
        return [_anonymous(item) for item in value]
    if not isinstance(value, dict):
        return value
    machine = {"identity", "stackTrace", "binaryChecksum", "workerVersion", "meteringMetadata"}
    return {key: _anonymous(item) for key, item in value.items() if key not in machine}


if __name__ == "__main__":
    asyncio.run(record())
