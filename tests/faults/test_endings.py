"""When a call is answered: what only reads as soon as it is known, everything else once Temporal has its end."""

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.client import Client as TemporalClient
from temporalio.client import WorkflowExecutionStatus

from activities.memory import memory_workflow_id
from mcp_server.local.stack import Addresses
from mcp_server.tasks import IDEMPOTENCY_KEY
from tests.conftest import content, serve, workflow_id
from tests.e2e.test_stdio import stack_gone
from tests.faults.bedrock_endpoint import Endpoint
from tests.faults.test_stack import PLEASE_KEEP, pids, server_of

READ = {"query": "Has it been asked?"}


async def test_a_read_is_answered_though_temporal_hangs_and_made_again_where_its_end_is_lost(
    bedrock: Endpoint, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with serve(home, **bedrock.settings) as client:
        content(await client.call_tool("check_semantic_cache", {"query": "Up?"}))
        begun, bedrock.embeds = bedrock.begun, len(bedrock.embedded)
        reading = asyncio.create_task(client.call_tool("check_semantic_cache", READ))
        async with asyncio.timeout(30):
            while bedrock.begun == begun:
                await asyncio.sleep(0.01)
        supervisor, dev_server = pids(home)
        os.kill(dev_server, signal.SIGSTOP)
        bedrock.embeds = None
        async with asyncio.timeout(30):
            read = await reading
        assert content(read)["hit"] is False
        for pid in (supervisor, server_of(home).pid, dev_server):
            os.kill(pid, signal.SIGKILL)
    async with serve(home, **bedrock.settings) as client, asyncio.timeout(60):
        while True:
            task = content(await client.call_tool("task_status", {"task_id": workflow_id(read)}))
            if task["status"] != "working":
                break
            await asyncio.sleep(0.1)
        assert task["status"] == "completed"
        assert task["result"]["hit"] is False
    assert bedrock.embedded.count(READ["query"]) == 2
    await stack_gone(home)


async def test_a_write_and_a_read_with_a_key_have_ended_once_they_are_answered(
    temporal: TemporalClient, home: Path, user: str
) -> None:
    async with serve(home) as client:
        for number in range(10):
            key: Any = {IDEMPOTENCY_KEY: f"{user}-{number}"}
            kept = {"query": f"What is {number}?", "response": str(number)}
            for tool, arguments, meta in (
                ("semantic_cache_response", kept, None),
                ("store_memory", PLEASE_KEEP, None),
                ("check_semantic_cache", READ, key),
            ):
                result = await client.call_tool(tool, arguments | {"user_id": user}, meta=meta)
                answered = datetime.now(UTC)
                found = await temporal.get_workflow_handle(workflow_id(result)).describe()
                assert found.close_time is not None
                assert found.close_time <= answered, tool


async def test_a_read_ends_though_its_client_leaves_at_once(temporal: TemporalClient, home: Path, user: str) -> None:
    for _ in range(3):
        async with serve(home) as client:
            read = await client.call_tool("check_semantic_cache", READ | {"user_id": user})
        found = await temporal.get_workflow_handle(workflow_id(read)).describe()
        assert found.status == WorkflowExecutionStatus.COMPLETED


async def test_a_memory_forms_though_its_client_leaves_at_once(
    temporal: TemporalClient, stack: Addresses, home: Path, user: str
) -> None:
    assert stack.temporal is not None
    # Nobody else works on this task queue.
    async with serve(home, TEMPORAL_ADDRESS=stack.temporal, TEMPORAL_TASK_QUEUE=user) as client:
        content(await client.call_tool("store_memory", PLEASE_KEEP | {"user_id": user}))
    found = await temporal.get_workflow_handle(memory_workflow_id(user, user)).describe()
    assert found.status == WorkflowExecutionStatus.COMPLETED
