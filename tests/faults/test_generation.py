"""Workers that are killed while a model answers, or while it waits for a tool: another goes on, and nothing doubles."""

import asyncio
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle

from activities.models import ChatMessage, GenerationParams, GenerationResult
from mcp_server.local.stack import Addresses
from mcp_server.runtime import partial_answer
from tests.conftest import REPOSITORY, command, environment
from tests.e2e.test_stdio import gone
from tests.faults.bedrock_endpoint import Reply, serve_endpoint
from workflows.generation import AIGenerationWorkflow


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_while_the_model_answers(
    temporal: Client, stack: Addresses, tmp_path: Path, user: str, end: signal.Signals
) -> None:
    assert stack.temporal is not None
    declared = {"harbour": {"command": sys.executable, "args": ["-m", "tests.other_server", str(tmp_path)]}}
    declared["harbour"]["cwd"] = str(REPOSITORY)
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": declared}))
    never, call = threading.Event(), [("harbour__book_berth", '{"port": "Oslo", "metres": 30}')]
    with serve_endpoint() as bedrock:
        bedrock.replies = [Reply(tools=call), Reply("Half an answer", goes_on=never), Reply("Berth 7.")]
        settings = (
            bedrock.settings
            | bedrock.text_settings
            | {
                "TEMPORAL_ADDRESS": stack.temporal,
                "TEMPORAL_TASK_QUEUE": user,
                "MCP_SERVERS_FILE": str(tmp_path / "servers.json"),
            }
        )
        workers = [await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))]
        try:
            params = GenerationParams(
                user_id=user, messages=[ChatMessage(role="user", text="Book a berth.")], use_tools=True
            )
            handle: WorkflowHandle[Any, GenerationResult] = await temporal.start_workflow(
                AIGenerationWorkflow.run, params, id=f"g-{user}", task_queue=user
            )
            async with asyncio.timeout(60):
                while (partial := await partial_answer(await handle.describe())) is None or not partial.text:
                    await asyncio.sleep(0.1)
            assert (partial.text, partial.round) == ("Half", 2)
            workers[0].send_signal(end)
            # Nor does it wait for the model.
            async with asyncio.timeout(30):
                await workers[0].wait()
            workers.append(
                await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
            )
            async with asyncio.timeout(90):
                result = await handle.result()
        finally:
            never.set()
            for process in workers:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
    await gone(workers[0].pid)
    assert result.text == "Berth 7."
    assert len(result.invocations) == 2
    assert len(bedrock.chats) == 3
    assert (tmp_path / "calls").read_text() == "book_berth Oslo 30.0\n"
