"""How workflows end on this process's workers, for whoever waits for them here: nobody has to ask the server.

A database doesn't wait for its log before it answers what only reads. Neither does a workflow that only reads: its
result is told as soon as it is known, and the server takes down the end meanwhile. If the process is killed before
that, the workflow reads again on another worker, and nobody waits for it. The result of every other workflow is told
once the server has it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from temporalio.api.common.v1 import Payload
from temporalio.bridge.proto.workflow_activation import RemoveFromCache, WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import _Definition


@dataclass(eq=False)
class Ending:
    """How one workflow ends.

    Attributes:
        result: As payloads; None where the server has to be asked what became of the workflow.
        at_once: Whether it is told before the server has it.
    """

    result: asyncio.Future[Sequence[Payload] | None]
    at_once: bool

    def tell(self, result: Sequence[Payload] | None) -> None:
        """Wake whoever waits."""

        def wake() -> None:
            if not self.result.done():
                self.result.set_result(result)

        # A workflow's turn has an event loop of its own.
        self.result.get_loop().call_soon_threadsafe(wake)


class Endings:
    """The workflows that are awaited in this process."""

    def __init__(self) -> None:
        self._awaited: WeakValueDictionary[str, Ending] = WeakValueDictionary()

    def of(self, workflow: Any, workflow_id: str) -> Ending:
        """How a workflow ends that a worker here begins after this; never told where none does.

        Args:
            workflow: The workflow class; it only reads where its `only_reads` is true.
            workflow_id: Its id. Who holds the ending waits for it.
        """
        ending = self._awaited.get(workflow_id)
        if ending is None or ending.result.done():
            result = asyncio.get_running_loop().create_future()
            ending = self._awaited[workflow_id] = Ending(result, getattr(workflow, "only_reads", False))
        return ending

    def awaited(self, workflow_id: str) -> Ending | None:
        """The same, where somebody waits for it."""
        return self._awaited.get(workflow_id)


class EndingsRunner(WorkflowRunner):
    """Runs workflows without a sandbox, and tells how those end that are awaited.

    Args:
        endings: Who waits.
    """

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self._runner = UnsandboxedWorkflowRunner()

    def prepare_workflow(self, defn: _Definition) -> None:
        self._runner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance = self._runner.create_instance(det)
        ending = self._endings.awaited(det.info.workflow_id)
        if ending is not None:
            instance.activate = _Turns(instance, ending).take  # type: ignore[method-assign]
        return instance


class _Turns:
    """The turns of a workflow that is awaited.

    A worker evicts it for the reason WORKFLOW_EXECUTION_ENDING once the server has taken down its end, and for other
    ones where it may go on elsewhere.
    """

    def __init__(self, instance: WorkflowInstance, ending: Ending) -> None:
        self._activate = instance.activate
        self._ending = ending
        self._result: Sequence[Payload] | None = None

    def take(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        completion = self._activate(act)
        for job in act.jobs:
            if job.HasField("remove_from_cache"):
                has_ended = job.remove_from_cache.reason == RemoveFromCache.WORKFLOW_EXECUTION_ENDING
                self._ending.tell(self._result if has_ended else None)
                return completion
        for command in completion.successful.commands:
            if command.HasField("complete_workflow_execution"):
                self._result = [command.complete_workflow_execution.result]
                if self._ending.at_once:
                    self._ending.tell(self._result)
        return completion
