"""The worker: which workflows and activities it runs, and how."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

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


def build_workflow_runner() -> SandboxedWorkflowRunner:
    """The sandbox that keeps wall clock, randomness and I/O out of workflow code."""
    # Everything a workflow imports is passed through: our own modules hold no state, and importing them anew for each
    # execution would take longer than most executions.
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules("activities", "workflows", "pydantic")
    )


def build_worker(client: Client, task_queue: str, activities: Sequence[object]) -> Worker:
    """A worker that runs every workflow, and every activity that is a method of one of `activities`."""
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
        graceful_shutdown_timeout=timedelta(seconds=2),
        # What a killed worker had in its cache goes to another one after this; by default after ten seconds.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=4),
        max_concurrent_local_activities=CONCURRENT_ACTIVITIES,
        max_concurrent_activities=CONCURRENT_ACTIVITIES,
        # Heartbeats carry an ingestion's progress, which somebody is watching.
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
    )
