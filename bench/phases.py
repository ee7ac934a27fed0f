"""Where the time of one tool call went, read from its workflow's history and the client's own clock."""

from datetime import UTC, datetime
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client


async def phases_of(client: Client, workflow_id: str, begun: float, ended: float) -> dict[str, float]:
    """Milliseconds of each part of a call whose steps were all local activities.

    - call: from the client's call until the server records the workflow's start (MCP in, validation, the request)
    - start: until the worker schedules the first step (commit, eager task, the workflow's first code)
    - each activity, by name: what it ran
    - queueing: between the end of a step and the start of the next, summed
    - result: from the end of the last step until the client has its answer (the workflow's last code, MCP out; of what
      doesn't only read, the completion too)
    - completion: from the end of the last step until the server records the end

    Args:
        client: Of the server that has the history; on this machine, so that clocks agree.
        workflow_id: The call's workflow.
        begun: `time.time()` before the call.
        ended: The same after it.
    """
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    started = completed = clock = begun
    steps: list[tuple[str, float, float]] = []
    for event in history.events:
        at = event.event_time.ToDatetime(UTC).timestamp()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            started = at
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            clock = at
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
            completed = at
        elif event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
            payloads = event.marker_recorded_event_attributes.details["data"].payloads
            [data] = await client.data_converter.decode(payloads, [dict[str, Any]])
            # It is scheduled by the wall clock, and completed by the workflow's, which only its steps move.
            ran = _moment(data["complete_time"]) - clock
            clock += ran
            steps.append((data["activity_type"], _moment(data["original_schedule_time"]), ran))
    if not steps:
        return {}
    phases = {"call": started - begun, "start": steps[0][1] - started}
    last = steps[0][1]
    for name, scheduled, ran in steps:
        phases["queueing"] = phases.get("queueing", 0.0) + scheduled - last
        phases[name] = phases.get(name, 0.0) + ran
        last = scheduled + ran
    phases |= {"result": ended - last, "completion": completed - last}
    return {name: seconds * 1e3 for name, seconds in phases.items()}


def _moment(stamp: dict[str, int]) -> float:
    return datetime.fromtimestamp(stamp["seconds"], UTC).timestamp() + stamp["nanos"] / 1e9
