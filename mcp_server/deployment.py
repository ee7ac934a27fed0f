"""Worker versioning: which build of the workers Temporal gives work to, so that a rolling deploy loses none.

The workers of a task queue are one deployment, and each build of the code is a version of it. Workflows move to the
current version with their next task (auto-upgrade), and never back to an older one: a build replays what earlier ones
began, which tests hold it to, and no build is asked to replay what a later one has done.
"""

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from temporalio.api.deployment.v1 import WorkerDeploymentInfo
    from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentResponse
    from temporalio.client import Client
    from temporalio.common import WorkerDeploymentVersion

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 0.1
"""How soon a version that has just begun to poll is looked for again; half as long again each time."""
MOST_SETTLE_SECONDS = 3.0
"""The same at most: from here on what keeps it is no passing matter, and is said."""
LOOK_SECONDS = 30.0
"""How often it is looked whether the current version still has workers."""
POLL_LIFE = timedelta(seconds=90)
"""A worker polls at least once a minute: one that hasn't for this long is gone."""


async def takes_versions(client: "Client", version: "WorkerDeploymentVersion", is_current: asyncio.Event) -> bool:
    """Whether the Temporal server knows versions of workers, and lets this client see those of a deployment.

    Args:
        client: Temporal's.
        version: Which the worker is to be.
        is_current: Set where that is the current one already.

    Raises:
        RPCError: where it doesn't say.
    """
    from temporalio.service import RPCError, RPCStatusCode

    name = version.deployment_name
    refusals = (RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.INVALID_ARGUMENT)
    delay = SETTLE_SECONDS
    while True:
        try:
            described = await _described(client, name)
            if described and _current_build(described.worker_deployment_info) == version.build_id:
                is_current.set()
            return True
        except RPCError as error:
            if error.status in refusals:
                logger.info("the worker is no version of deployment %s: %s", name, error.message)
                return False
            # A server that is asked by many workers at once answers so. A worker that took it for a no would poll for
            # what belongs to no version, and get none of the work.
            if error.status != RPCStatusCode.RESOURCE_EXHAUSTED:
                raise
            if delay < MOST_SETTLE_SECONDS <= _longer(delay):
                logger.warning("the worker waits: Temporal is asked too much (%s)", error.message)
        await asyncio.sleep(delay)
        delay = _longer(delay)


async def keep_current(client: "Client", version: "WorkerDeploymentVersion", is_current: asyncio.Event) -> None:
    """Make a version that polls the current one of its deployment, as long as this runs.

    A build that is new to the deployment takes over; one that was current before only where the present one has no
    workers left, so that a restarted old worker doesn't undo a deploy, and a rollback works.

    Args:
        client: Temporal's.
        version: Which it is.
        is_current: Set while it is the current one, as far as was seen.
    """
    from temporalio.service import RPCError, RPCStatusCode

    lasting = (
        RPCStatusCode.PERMISSION_DENIED,
        RPCStatusCode.UNAUTHENTICATED,
        RPCStatusCode.UNIMPLEMENTED,
        RPCStatusCode.INVALID_ARGUMENT,
    )
    delay, told = SETTLE_SECONDS, False
    while True:
        problem = ""
        try:
            settled = await _look(client, version, is_current)
            if not settled:
                problem = "Temporal doesn't know it yet"
        except RPCError as error:
            settled, problem = error.status in lasting, error.message
        if not problem:
            told = False
        elif not told and (settled or delay == MOST_SETTLE_SECONDS):
            # Once, until all is well again: what comes next is mostly more of the same.
            told = True
            logger.warning(
                "the worker's version can't be made the current one of deployment %s, or seen to be: %s. It is tried "
                "again; an operator can do it by `temporal worker deployment set-current-version`.",
                version.deployment_name,
                problem,
            )
        await asyncio.sleep(LOOK_SECONDS if settled else delay)
        delay = SETTLE_SECONDS if settled else _longer(delay)


def _longer(delay: float) -> float:
    return min(1.5 * delay, MOST_SETTLE_SECONDS)


async def _look(client: "Client", version: "WorkerDeploymentVersion", is_current: asyncio.Event) -> bool:
    """Take over where that is due, and say by `is_current` which version is the current one.

    Returns:
        Whether that is settled.

    Raises:
        RPCError: where it can't be seen, or an operator is the one to do it (`FAILED_PRECONDITION`).
    """
    from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
    from temporalio.service import RPCError, RPCStatusCode

    name = version.deployment_name
    described = await _described(client, name)
    if described is None:
        is_current.clear()
        return False
    info = described.worker_deployment_info
    if _current_build(info) == version.build_id:
        is_current.set()
        return True
    is_current.clear()
    ours = next((one for one in info.version_summaries if one.deployment_version.build_id == version.build_id), None)
    if ours is None:
        return False
    if ours.HasField("first_activation_time") and await _has_workers(client, info):
        return True
    try:
        await client.workflow_service.set_worker_deployment_current_version(
            SetWorkerDeploymentCurrentVersionRequest(
                namespace=client.namespace,
                deployment_name=name,
                build_id=version.build_id,
                conflict_token=described.conflict_token,
                ignore_missing_task_queues=True,
            )
        )
    except RPCError as error:
        # Somebody else has just changed it, or the server hasn't taken the version in yet.
        if error.status in (RPCStatusCode.ABORTED, RPCStatusCode.NOT_FOUND):
            return False
        raise
    is_current.set()
    logger.info("build %s is the current one of deployment %s", version.build_id, name)
    return True


async def _described(client: "Client", deployment: str) -> "DescribeWorkerDeploymentResponse | None":
    """A deployment as Temporal has it; None where it has none of that name.

    Raises:
        RPCError: where it doesn't say.
    """
    from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest
    from temporalio.service import RPCError, RPCStatusCode

    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=deployment)
    try:
        return await client.workflow_service.describe_worker_deployment(request)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        raise


def _current_build(info: "WorkerDeploymentInfo") -> str:
    return info.routing_config.current_deployment_version.build_id


async def _has_workers(client: "Client", info: "WorkerDeploymentInfo") -> bool:
    """Whether a worker of a deployment's current version has polled lately."""
    from temporalio.api.enums.v1 import TaskQueueType
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

    described = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=info.name),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )
    current = _current_build(info)
    return any(
        poller.deployment_options.build_id == current
        and time.time() - poller.last_access_time.ToMicroseconds() / 1e6 < POLL_LIFE.total_seconds()
        for poller in described.pollers
    )
