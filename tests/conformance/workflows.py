"""What the tools of the fixture server do, as workflows."""

import asyncio
from typing import Any

from pydantic import BaseModel
from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.errors import PROTOCOL_ERROR, failure
    from workflows.steps import Questions, report


class Said(BaseModel):
    text: str


class ComputeParams(BaseModel):
    seconds: float
    label: str


class FileParams(BaseModel):
    filename: str


class NameParams(BaseModel):
    name: str


def name_form(message: str, field: str) -> dict[str, Any]:
    """A request for one line of text."""
    schema = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    form = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": form}


@workflow.defn
class SlowCompute:
    @workflow.run
    async def run(self, params: ComputeParams) -> Said:
        report("computing", 0.0, f"Computing {params.label}.")
        await asyncio.sleep(params.seconds)
        return Said(text=f"{params.label}: done after {params.seconds:g} s")


@workflow.defn
class FailingJob:
    @workflow.run
    async def run(self, params: Said) -> Said:
        await asyncio.sleep(1)
        raise failure("rejected", "The job failed, as it always does.")


@workflow.defn
class ProtocolErrorJob:
    @workflow.run
    async def run(self, params: Said) -> Said:
        await asyncio.sleep(0.5)
        raise ApplicationError("The job broke down.", -32603, type=PROTOCOL_ERROR, non_retryable=True)


@workflow.defn
class ConfirmDelete:
    def __init__(self) -> None:
        self._questions = Questions()

    @workflow.run
    async def run(self, params: FileParams) -> Said:
        agreed = await self._questions.confirm("confirm", f"Delete {params.filename}?")
        return Said(text=f"{params.filename}: {'deleted' if agreed else 'kept'}")


@workflow.defn
class MultiInput:
    def __init__(self) -> None:
        self._questions = Questions()

    @workflow.run
    async def run(self, params: Said) -> Said:
        fields = ("first", "second")
        answers = await self._questions.ask({field: name_form(f"The {field} word?", field) for field in fields})
        return Said(text=" ".join(str((answers[field].get("content") or {}).get(field)) for field in fields))


@workflow.defn
class Greet:
    @workflow.run
    async def run(self, params: NameParams) -> Said:
        await asyncio.sleep(0.2)
        return Said(text=f"Hello, {params.name}!")


WORKFLOWS = [SlowCompute, FailingJob, ProtocolErrorJob, ConfirmDelete, MultiInput, Greet]
