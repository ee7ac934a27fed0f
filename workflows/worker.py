"""The worker: which workflows and activities it runs, and how."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import CompositePayloadConverter, DataConverter
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
    WorkerDeploymentConfig,
)

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
from workflows.endings import Endings, EndingsRunner
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

if TYPE_CHECKING:
    from temporalio.mcp import MCPPlugin

_ENCODINGS = tuple(PydanticPayloadConverter().converters.values())


class SharedPayloadConverter(CompositePayloadConverter):
    """Pydantic's, in parts that are made once: a worker makes several converters in each turn of a workflow."""

    def __init__(self) -> None:
        super().__init__(*_ENCODINGS)


DATA_CONVERTER = DataConverter(payload_converter_class=SharedPayloadConverter)

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


def activity_methods(groups: Sequence[object]) -> list[Callable[..., Any]]:
    """Every activity that is a method of one of `groups`."""
    return [
        getattr(group, name)
        for group in groups
        for name in dir(type(group))
        if hasattr(getattr(type(group), name), "__temporal_activity_definition")
    ]


@functools.cache
def build_id() -> str:
    """The name of this code: the package's version, and a digest of its workflows and activities."""
    rooms = (Path(__file__).parent, Path(__file__).parents[1] / "activities")
    digest = hashlib.sha256()
    for module in sorted(module for room in rooms for module in room.rglob("*.py")):
        digest.update(module.read_bytes())
    return f"{version('durable-context')}-{digest.hexdigest()[:12]}"


def build_worker(
    client: Client,
    task_queue: str,
    activities: Sequence[object],
    deployment: WorkerDeploymentVersion | None = None,
    servers: "MCPPlugin | None" = None,
    endings: Endings | None = None,
) -> Worker:
    """A worker that runs every workflow, and every activity that is a method of one of `activities`.

    Args:
        client: Temporal's.
        task_queue: What it polls.
        activities: Objects that have them.
        deployment: Which version of a deployment it is; None for a worker that takes what any build has begun.
        servers: What calls the tools of other MCP servers, if there are any.
        endings: Who waits in this process for workflows.
    """
    versions = None
    if deployment is not None:
        versions = WorkerDeploymentConfig(
            version=deployment, use_worker_versioning=True, default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE
        )
    return Worker(
        client,
        task_queue=task_queue,
        workflows=WORKFLOWS,
        activities=activity_methods(activities),
        # A quarter of a worker's time for a short call was the sandbox's. What it guards against, the wall clock,
        # randomness and I/O in workflow code, the tests look for: they replay every workflow inside it.
        workflow_runner=EndingsRunner(endings or Endings()),
        # A workflow's turn then runs on the event loop's thread: handing it to another one and back was a twentieth of
        # a short call. What is given up is the detection of a turn that never ends.
        debug_mode=True,
        deployment_config=versions,
        # By default a hash over every module that is loaded, which takes long to read.
        build_id=None if versions else build_id(),
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
