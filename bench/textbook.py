"""What the tools' speed is compared with: an empty workflow, and the same workflows run as a textbook shows it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from temporalio import workflow
from temporalio.client import Client
from temporalio.common import Priority
from temporalio.worker import (
    Interceptor,
    StartActivityInput,
    StartLocalActivityInput,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from temporalio.workflow import ActivityCancellationType, ActivityHandle

from mcp_server.local.temporal import LOOPBACK, find_executable, free_port
from mcp_server.runtime import connect_embedded
from workflows.worker import CONCURRENT_ACTIVITIES, DATA_CONVERTER, WORKFLOWS, activity_methods

FLOOR_QUEUE = "floor"
TEXTBOOK_QUEUE = "textbook"


@workflow.defn
class EmptyWorkflow:
    """The least that a durable call can be."""

    @workflow.run
    async def run(self, number: int) -> int:
        return number


def floor_worker(client: Client) -> Worker:
    """What runs the empty workflow as fast as can be: eagerly, without a sandbox."""
    return Worker(
        client, task_queue=FLOOR_QUEUE, workflows=[EmptyWorkflow], workflow_runner=UnsandboxedWorkflowRunner()
    )


class _RegularActivities(WorkflowOutboundInterceptor):
    def start_local_activity(self, input: StartLocalActivityInput) -> ActivityHandle[Any]:
        return self.start_activity(
            StartActivityInput(
                activity=input.activity,
                args=input.args,
                activity_id=None,
                task_queue=None,
                schedule_to_close_timeout=input.schedule_to_close_timeout,
                schedule_to_start_timeout=None,
                start_to_close_timeout=input.start_to_close_timeout,
                heartbeat_timeout=None,
                retry_policy=input.retry_policy,
                cancellation_type=ActivityCancellationType.TRY_CANCEL,
                headers=input.headers,
                disable_eager_execution=False,
                versioning_intent=None,
                arg_types=input.arg_types,
                ret_type=input.ret_type,
                summary=None,
                priority=Priority.default,
            )
        )


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_RegularActivities(outbound))


class _Textbook(Interceptor):
    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _Inbound


def textbook_worker(client: Client, activities: Sequence[object]) -> Worker:
    """The product's workflows with every step a regular activity; what the SDK's defaults are stays as it is.

    Only the sandbox is left out, as in the product: by default it would import our modules anew for each execution,
    which would be no fair comparison.
    """
    return Worker(
        client,
        task_queue=TEXTBOOK_QUEUE,
        workflows=WORKFLOWS,
        activities=activity_methods(activities),
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_concurrent_activities=CONCURRENT_ACTIVITIES,
        interceptors=[_Textbook()],
    )


@contextlib.asynccontextmanager
async def default_dev_server(folder: Path) -> AsyncIterator[Client]:
    """A client of a dev server of its own with its default settings, its database in `folder`."""
    port = free_port()
    with (folder / "textbook.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(find_executable(), "server", "start-dev", "--headless", "--log-level", "error"),
            *("--ip", LOOPBACK, "--port", str(port), "--db-filename", str(folder / "textbook.db")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            address = f"{LOOPBACK}:{port}"
            await connect_embedded(address)
            # By that one it is known to be healthy; this one is as the SDK makes it, with compression.
            yield await Client.connect(address, data_converter=DATA_CONVERTER)
        finally:
            process.terminate()
            await process.wait()
