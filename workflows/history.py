"""What a workflow did, read from its history, and how far its activities are."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionDescription


@dataclass(frozen=True)
class Step:
    """One activity of a workflow."""

    name: str
    milliseconds: float


async def steps_of(client: Client, workflow_id: str) -> list[Step]:
    """The activities that a workflow has completed, in order, with how long each took, queueing included.

    Local activities record on the workflow's clock only when they were complete, so each is timed from the step before
    it, or from the start of its workflow task.
    """
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    steps: list[Step] = []
    scheduled: dict[int, Any] = {}
    last: datetime | None = None
    for event in history.events:
        now = event.event_time.ToDatetime()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            last = now
        elif event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
            details = event.marker_recorded_event_attributes.details
            if "data" not in details:
                continue
            [data] = await client.data_converter.decode(details["data"].payloads, [dict[str, Any]])
            complete = _moment(data["complete_time"])
            steps.append(Step(data["activity_type"], _elapsed(last, complete)))
            last = complete
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            scheduled[event.event_id] = event
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            begun = scheduled[event.activity_task_completed_event_attributes.scheduled_event_id]
            name = begun.activity_task_scheduled_event_attributes.activity_type.name
            steps.append(Step(name, _elapsed(begun.event_time.ToDatetime(), now)))
    return steps


def _moment(stamp: dict[str, int]) -> datetime:
    return datetime(1970, 1, 1) + timedelta(seconds=stamp["seconds"], microseconds=stamp["nanos"] / 1e3)


def _elapsed(start: datetime | None, end: datetime) -> float:
    return max(0.0, (end - start) / timedelta(milliseconds=1)) if start else 0.0


async def under_way(description: WorkflowExecutionDescription) -> list[tuple[int, int]]:
    """How far activities of a workflow are whose heartbeats say so: (done, total) of each."""
    found: list[tuple[int, int]] = []
    for pending in description.raw_description.pending_activities:
        if len(pending.heartbeat_details.payloads) == 2:
            done, total = await description.data_converter.decode(pending.heartbeat_details.payloads, [int, int])
            found.append((done, total))
    return found
