"""The worker: which workflows and activities it runs, and how."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.mcp import MCPPlugin
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.beating import beating
from workflows.cache import CacheInvalidationWorkflow, CacheStorageWorkflow, SemanticCacheCheckWorkflow
from workflows.conversation import (
    ConversationEndWorkflow,
    ConversationHistoryWorkflow,
    ConversationWorkflow,
    ConverseWorkflow,
)
from workflows.documents import (
    DataIngestionWorkflow,
    DocumentListWorkflow,
    DocumentReadWorkflow,
    DocumentRemovalWorkflow,
)
from workflows.forget import ForgetWorkflow
from workflows.generation import AIGenerationWorkflow
from workflows.images import ImageProcessingWorkflow
from workflows.memory import (
    MemoryListWorkflow,
    MemoryPinWorkflow,
    MemoryRetrievalWorkflow,
    MemorySplitWorkflow,
    MemoryStorageWorkflow,
    UserMemoryWorkflow,
)
from workflows.reembed import ReembeddingWorkflow
from workflows.search import HybridSearchWorkflow
from workflows.web import WebSearchWorkflow

DATA_CONVERTER = pydantic_data_converter

CONCURRENT_ACTIVITIES = 64
"""Most activities that a worker runs at once, and so most connections that it needs."""

WORKFLOWS: list[type[Any]] = [
    AIGenerationWorkflow,
    CacheInvalidationWorkflow,
    CacheStorageWorkflow,
    ConversationEndWorkflow,
    ConversationHistoryWorkflow,
    ConversationWorkflow,
    ConverseWorkflow,
    DataIngestionWorkflow,
    DocumentListWorkflow,
    DocumentReadWorkflow,
    DocumentRemovalWorkflow,
    ForgetWorkflow,
    HybridSearchWorkflow,
    ImageProcessingWorkflow,
    MemoryListWorkflow,
    MemoryPinWorkflow,
    MemoryRetrievalWorkflow,
    MemorySplitWorkflow,
    MemoryStorageWorkflow,
    ReembeddingWorkflow,
    SemanticCacheCheckWorkflow,
    UserMemoryWorkflow,
    WebSearchWorkflow,
]


class _Beating(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if not str(getattr(input.fn, "__module__", "")).startswith("temporalio.mcp."):
            return await self.next.execute_activity(input)
        async with beating():
            return await self.next.execute_activity(input)


class BeatingInterceptor(Interceptor):
    """Has the activities of `temporalio-mcp` heartbeat: the end of their worker is noticed as soon as of others'."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Beating(next)


def build_workflow_runner() -> SandboxedWorkflowRunner:
    """The sandbox that keeps wall clock, randomness and I/O out of workflow code."""
    # Everything a workflow imports is passed through: our own modules hold no state, and importing them anew for each
    # execution would take longer than most executions.
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(
            "activities", "workflows", "pydantic", "mcp", "mcp_types"
        )
    )


def build_worker(
    client: Client, task_queue: str, activities: Sequence[object], servers: MCPPlugin | None = None
) -> Worker:
    """A worker that runs every workflow, and every activity that is a method of one of `activities`.

    Args:
        client: Of the Temporal server.
        task_queue: Whose tasks it takes.
        activities: Objects with activities.
        servers: What calls the tools of other MCP servers, if there are any.
    """
    methods = [
        getattr(group, name)
        for group in activities
        for name in dir(type(group))
        if hasattr(getattr(type(group), name), "__temporal_activity_definition")
    ]
    return Worker(
        client,
        task_queue=task_queue,
        workflows=WORKFLOWS,
        activities=methods,
        workflow_runner=build_workflow_runner(),
        plugins=[servers] if servers else [],
        interceptors=[BeatingInterceptor()] if servers else [],
        graceful_shutdown_timeout=timedelta(seconds=2),
        # What a killed worker had in its cache goes to another one after this; by default after ten seconds.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=4),
        max_concurrent_local_activities=CONCURRENT_ACTIVITIES,
        max_concurrent_activities=CONCURRENT_ACTIVITIES,
        # Heartbeats carry an ingestion's progress, which somebody is watching.
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
    )
