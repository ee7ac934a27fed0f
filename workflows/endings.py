"""How workflows end on this process's workers, for whoever waits for them here: nobody has to ask the server.

A database doesn't wait for its log before it answers what only reads. Neither does a workflow that only reads: its
result may be told as soon as it is known, while the server takes down the end. Where that fails, the workflow goes on
from what the server has, reads again, and nobody waits for it. The result of every other workflow is told once the
server has it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from temporalio.api.common.v1 import Payload
from temporalio.bridge.proto.workflow_activation import RemoveFromCache, WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails

LARGEST_AT_ONCE = 1_000_000
"""Bytes of a result that is told before the server has it: one of 2 MB is refused, and a request holds it twice."""


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
        """Wake whoever waits, before the worker goes on: it takes its turns on the thread of their event loop."""
        if not self.result.done():
            self.result.set_result(result)


class Endings:
    """The workflows that are awaited in this process."""

    def __init__(self) -> None:
        self._awaited: WeakValueDictionary[str, Ending] = WeakValueDictionary()

    def of(self, workflow_id: str, at_once: bool) -> Ending:
        """How the workflow ends that a worker here begins next with this id; never told where none does.

        Args:
            workflow_id: Its id. Who holds the ending waits for it.
            at_once: Whether it only reads, and its result may be told before the server has it.
        """
        ending = self._awaited.get(workflow_id)
        if ending is None or ending.result.done():
            ending = self._awaited[workflow_id] = Ending(asyncio.get_running_loop().create_future(), at_once)
        return ending

    def awaited(self, workflow_id: str) -> Ending | None:
        """The same, where somebody waits for it."""
        return self._awaited.get(workflow_id)

    def close(self) -> None:
        """Have everybody ask the server who still waits: the workers here have ended."""
        for ending in list(self._awaited.values()):
            ending.tell(None)


class EndingsRunner(UnsandboxedWorkflowRunner):
    """Runs workflows without a sandbox, and tells how those end that are awaited.

    Args:
        endings: Who waits.
    """

    def __init__(self, endings: Endings) -> None:
        super().__init__()
        self._endings = endings

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance = super().create_instance(det)
        ending = self._endings.awaited(det.info.workflow_id)
        if ending is not None:
            instance.activate = _Turns(instance, ending).take  # type: ignore[method-assign]
        return instance


class _Turns:
    """The turns of a workflow that is awaited.

    A worker evicts it for the reason WORKFLOW_EXECUTION_ENDING once the server has taken down its end, and for other
    ones where it may go on, here or elsewhere.
    """

    def __init__(self, instance: WorkflowInstance, ending: Ending) -> None:
        self._instance = instance
        self._activate = instance.activate
        self._ending = ending
        self._result: Sequence[Payload] | None = None

    def take(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        completion = self._activate(act)
        for job in act.jobs:
            if job.HasField("remove_from_cache"):
                has_ended = job.remove_from_cache.reason == RemoveFromCache.WORKFLOW_EXECUTION_ENDING
                self._ending.tell(self._result if has_ended else None)
                # Otherwise the two would hold each other, and the result.
                del self._instance.activate
                return completion
        for command in completion.successful.commands:
            if command.HasField("complete_workflow_execution"):
                result = command.complete_workflow_execution.result
                self._result = [result]
                if self._ending.at_once and result.ByteSize() <= LARGEST_AT_ONCE:
                    self._ending.tell(self._result)
        return completion
