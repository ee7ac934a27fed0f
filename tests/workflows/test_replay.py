"""Recorded histories of every workflow, replayed against today's code: a change that breaks work in flight fails here.

`python -m tests.workflows.record` records them anew, for a workflow whose change is meant to be incompatible.
"""

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import NondeterminismError

from workflows.worker import DATA_CONVERTER, WORKFLOWS

HISTORIES = Path(__file__).parent / "histories"


def replayer() -> Replayer:
    # Workers run without the sandbox, which refuses wall clock, randomness and I/O: here is where it looks for them.
    modules = ("activities", "workflows", "pydantic", "mcp", "mcp_types")
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*modules)
    return Replayer(
        workflows=WORKFLOWS,
        data_converter=DATA_CONVERTER,
        workflow_runner=SandboxedWorkflowRunner(restrictions=restrictions),
    )


def read(text: str) -> WorkflowHistory:
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started["workflowId"], text)


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
async def test_history_replays(path: Path) -> None:
    await replayer().replay_workflow(read(path.read_text()))


def test_every_workflow_has_a_history() -> None:
    recorded = {path.stem.split(".")[0] for path in HISTORIES.glob("*.json")}
    assert recorded == {workflow.__name__ for workflow in WORKFLOWS}


async def test_a_history_of_other_steps_is_refused() -> None:
    text = (HISTORIES / "WebSearchWorkflow.json").read_text().replace('"search_web"', '"search_library"')
    with pytest.raises(NondeterminismError):
        await replayer().replay_workflow(read(text))
