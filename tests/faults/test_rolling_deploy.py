"""Workers are replaced by those of another build while calls are under way: none is lost, and none is done twice."""

import asyncio
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.deployment.v1 import WorkerDeploymentInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentManagerRequest,
)
from temporalio.client import Client as TemporalClient
from temporalio.common import WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode

from mcp_server.deployment import keep_current, takes_versions
from mcp_server.local.stack import Addresses
from tests.conftest import REPOSITORY, content, environment, message, pollers_of, serve, workflow_id
from tests.faults.bedrock_endpoint import Endpoint
from tests.faults.test_stack import messages_of
from workflows.worker import build_id, build_worker

SECONDS = 60
CALLS = 20
"""Most calls of each caller: as many messages as one retrieval can answer."""


def other_build(folder: Path) -> Path:
    """A copy of the code that isn't quite the same."""
    for room in ("mcp_server", "workflows", "activities"):
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "workflows" / "steps.py").open("a") as module:
        module.write("\n# Another build.\n")
    return folder


@asynccontextmanager
async def worker(code: Path, home: Path, settings: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `durable-context worker` of the code in a folder."""
    variables = environment(home, **settings) | {"PYTHONPATH": str(code)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_server.cli", "worker"), cwd=code, env=variables, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


async def described(temporal: TemporalClient, deployment: str) -> WorkerDeploymentInfo:
    """A deployment as Temporal has it; empty where there is none."""
    request = DescribeWorkerDeploymentRequest(namespace=temporal.namespace, deployment_name=deployment)
    with contextlib.suppress(RPCError):
        return (await temporal.workflow_service.describe_worker_deployment(request)).worker_deployment_info
    return WorkerDeploymentInfo()


async def current_build(temporal: TemporalClient, deployment: str) -> str:
    """The build of a deployment that Temporal gives work to; empty where there is none."""
    return (await described(temporal, deployment)).routing_config.current_deployment_version.build_id


async def until_current(temporal: TemporalClient, deployment: str, *others: str) -> str:
    """The current build, once it is none of `others`."""
    async with asyncio.timeout(SECONDS):
        while (build := await current_build(temporal, deployment)) in ("", *others):
            await asyncio.sleep(0.1)
    return build


async def until_polled(temporal: TemporalClient, task_queue: str, build: str) -> None:
    """Return once a worker of a build asks for tasks."""
    begun = time.time()
    async with asyncio.timeout(SECONDS):
        while True:
            # They are remembered for minutes.
            pollers = await pollers_of(temporal, task_queue)
            polled = [one for one in pollers if one.last_access_time.ToMicroseconds() / 1e6 > begun]
            if any(one.deployment_options.build_id == build for one in polled):
                return
            await asyncio.sleep(0.1)


async def build_of(temporal: TemporalClient, id: str) -> str:
    """The build that completed a workflow."""
    history = await temporal.get_workflow_handle(id).fetch_history()
    tasks = [event.workflow_task_completed_event_attributes for event in history.events]
    return [task.deployment_version.build_id for task in tasks if task.HasField("deployment_version")][-1]


async def test_a_rolling_deploy_loses_no_call_in_flight(
    temporal: TemporalClient, stack: Addresses, bedrock: Endpoint, user: str, tmp_path: Path
) -> None:
    assert stack.temporal is not None
    home = tmp_path / "home"
    home.mkdir()
    settings = {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user, **bedrock.settings}
    stored: list[str] = []
    deployed = asyncio.Event()

    async with serve(home, "--no-worker", **settings) as client:

        async def call(text: str) -> str:
            arguments = {"conversation_id": "c", "text": text, "message_type": "ai"}
            result = await client.call_tool("store_memory", arguments)
            assert "message_id" in content(result), message(result)
            stored.append(text)
            return workflow_id(result)

        async def calls(caller: int) -> None:
            for number in range(CALLS):
                if not deployed.is_set():
                    await call(f"Caller {caller} says {number}.")

        async with worker(REPOSITORY, home, settings) as old:
            first = await until_current(temporal, user)
            assert first == build_id()
            assert await build_of(temporal, await call("Before.")) == first
            callers = [asyncio.create_task(calls(number)) for number in range(4)]
            # In flight for as long as the deploy takes: its steps are tried again until Bedrock answers.
            bedrock.failures, bedrock.for_ever = [(503, "ServiceUnavailableException", "try later")], True
            begun = len(stored)
            async with asyncio.timeout(SECONDS):
                while bedrock.refused < 8:
                    await asyncio.sleep(0.05)
            async with worker(other_build(tmp_path / "new"), home, settings):
                second = await until_current(temporal, user, first)
                old.send_signal(signal.SIGTERM)
                assert await old.wait() == 0
                bedrock.failures, bedrock.for_ever = [], False
                async with asyncio.timeout(SECONDS):
                    while len(stored) < begun + 12:
                        await asyncio.sleep(0.05)
                deployed.set()
                await asyncio.gather(*callers)
                after = await call("After.")
                assert await build_of(temporal, after) == second

                # A restarted worker of the old build doesn't take over again.
                async with worker(REPOSITORY, home, settings):
                    await until_polled(temporal, user, first)
                    assert await build_of(temporal, await call("After a restart.")) == second
                    assert await current_build(temporal, user) == second
                texts = await messages_of(client)
    assert sorted(texts) == sorted(stored)
    # Lists come a little later than what they show.
    done = f"TaskQueue = '{user}' AND WorkflowType = 'MemoryStorageWorkflow' AND ExecutionStatus = 'Completed'"
    async with asyncio.timeout(SECONDS):
        while (await temporal.count_workflows(done)).count < len(stored):
            await asyncio.sleep(0.1)
    query = f"TaskQueue = '{user}' AND ExecutionStatus IN ('Failed', 'Terminated', 'TimedOut', 'Canceled')"
    assert [one.id async for one in temporal.list_workflows(query)] == []


async def test_a_step_whose_worker_is_told_to_end_is_taken_by_another(
    temporal: TemporalClient, stack: Addresses, bedrock: Endpoint, user: str, tmp_path: Path
) -> None:
    assert stack.temporal is not None
    settings = {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user, **bedrock.settings}
    async with serve(tmp_path, "--no-worker", **settings) as client:
        async with worker(REPOSITORY, tmp_path, settings) as old:
            await until_current(temporal, user)
            bedrock.embeds = 0
            arguments = {"conversation_id": "c", "text": "Please remember this.", "message_type": "human"}
            call = asyncio.create_task(client.call_tool("store_memory", arguments))
            async with asyncio.timeout(SECONDS):
                while not bedrock.begun:
                    await asyncio.sleep(0.05)
            old.send_signal(signal.SIGTERM)
            # Its request hangs, so that it doesn't end in order.
            await old.wait()
        async with worker(REPOSITORY, tmp_path, settings):
            bedrock.embeds = None
            assert "message_id" in content(await call)
            assert await messages_of(client) == ["Please remember this."]


async def test_a_temporal_server_that_is_asked_too_much_makes_no_worker_one_without_a_version(
    temporal: TemporalClient, user: str
) -> None:
    """Such a worker would get none of its deployment's work."""
    version = WorkerDeploymentVersion(deployment_name=user, build_id="any")
    request = DescribeWorkerDeploymentRequest(namespace=temporal.namespace, deployment_name=user)
    refused = 0

    async def ask() -> None:
        nonlocal refused
        while refused < 500:
            try:
                await temporal.workflow_service.describe_worker_deployment(request)
            except RPCError as error:
                refused += error.status == RPCStatusCode.RESOURCE_EXHAUSTED

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    async with asyncio.timeout(SECONDS):
        while not refused:
            await asyncio.sleep(0.01)
        taken = await asyncio.gather(*(takes_versions(temporal, version, asyncio.Event()) for _ in range(20)))
        await asyncio.gather(*asking)
    assert taken == [True] * 20


async def test_an_operator_who_manages_a_deployment_is_waited_for(
    temporal: TemporalClient, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, operator = temporal.workflow_service, "operator"
    version, is_current = WorkerDeploymentVersion(deployment_name=user, build_id="new"), asyncio.Event()
    named: dict[str, Any] = {"namespace": temporal.namespace, "deployment_name": user}
    managed = SetWorkerDeploymentManagerRequest(**named, manager_identity=operator, identity=operator)
    promoted = SetWorkerDeploymentCurrentVersionRequest(**named, build_id="new", identity=operator)
    async with build_worker(temporal, user, [], version), asyncio.timeout(SECONDS):
        while not (await described(temporal, user)).version_summaries:
            await asyncio.sleep(0.05)
        await service.set_worker_deployment_manager(managed)
        keeping = asyncio.create_task(keep_current(temporal, version, is_current))
        try:
            while not caplog.messages:
                await asyncio.sleep(0.05)
            assert not is_current.is_set()
            await service.set_worker_deployment_current_version(promoted)
            await is_current.wait()
        finally:
            keeping.cancel()
    [said] = [one for one in caplog.messages if "can't be made the current one" in one]
    assert operator in said
