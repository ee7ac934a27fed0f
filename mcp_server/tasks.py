"""The MCP Tasks extension on Temporal: a tool call is a workflow, and a workflow is a task.

The extension is `io.modelcontextprotocol/tasks` (SEP-2663). Nothing of a task is kept in this process: its id is its
workflow's, and its owner, progress and open questions are in the workflow's memo. So any server on the same Temporal
namespace and task queue answers for any task, before and after a restart.
"""

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding, RequestHandler
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.server import require_client_extension
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequestFormParams,
    InputRequiredResult,
    RequestId,
    RequestParams,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsListenRequestParams,
    TextContent,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

from mcp_server.runtime import (
    DESCRIBE_SECONDS,
    RETRY_SECONDS,
    CallError,
    Runtime,
    Started,
    UnreachableError,
    explain_failure,
)

if TYPE_CHECKING:
    from temporalio.client import WorkflowExecutionDescription

EXTENSION = "io.modelcontextprotocol/tasks"
WORKFLOW_ID = "durable-context/workflow_id"
"""Key of a tool result's `_meta` that names the workflow which ran."""
IDEMPOTENCY_KEY = "durable-context/idempotency_key"
"""Key of a call's `_meta`: calls of one user that bear the same one are the same call."""

LISTEN = "subscriptions/listen"

POLL_SECONDS = 1.0
"""How often a client is advised to ask for a task, and how often a call that waits looks after its workflow."""
TOLD_SECONDS = 2.0
"""How long an update of a task waits for its workflow to take what it was told."""
CANCEL_SECONDS = 5.0
"""How long a cancelled call tries to cancel its workflow."""
LOOK_SECONDS = 2.0
"""How long a call that waits may be kept by one look after its workflow."""
RESULT_SECONDS = 10.0
"""How long the result of a workflow that has ended may take to be read."""
TICK = 1e-6
"""Progress that is told where there is none."""
MAX_LISTENED = 100
"""Tasks that one subscription may name."""
MAX_KEY = 256
_RESUMING = "task "
"""How the state of a call begins whose client was asked something by its workflow, and not by its tool."""

TaskStatus = Literal["working", "input_required", "completed", "failed", "cancelled"]


class TaskResult(BaseModel):
    """What a call answers in place of its result where it has to answer before the work is done."""

    task_id: str = Field(description="Name it to task_status and cancel_task.")
    status: TaskStatus
    message: str = Field(description="How the work stands.")
    result: Any = Field(
        default=None, description="Of task_status: what the call would have answered, once it is there."
    )


class _TaskParams(RequestParams):
    task_id: str


class _UpdateParams(_TaskParams):
    input_responses: dict[str, Any]


class _UnfinishedError(MCPError):
    """A call answers with something else than a result; it passes the tool's own error handling as an `MCPError`."""

    def __init__(self, answer: HandlerResult) -> None:
        super().__init__(INVALID_PARAMS, "unfinished")
        self.answer = answer


@dataclass(frozen=True)
class _Call:
    """What the tools' code doesn't see of a call."""

    ctx: ServerRequestContext[Any, Any]
    owner: str | None
    key: str | None

    @property
    def takes_tasks(self) -> bool:
        """Whether it may be answered with a task: older revisions have no such result."""
        capabilities = self.ctx.session.client_capabilities
        declared = capabilities.extensions if capabilities else None
        return bool(declared and EXTENSION in declared) and self.is_modern

    @property
    def is_modern(self) -> bool:
        return self.ctx.protocol_version in MODERN_PROTOCOL_VERSIONS

    @property
    def can_be_asked(self) -> bool:
        """Whether it can be asked something before the work is done, other than through a task."""
        capabilities = self.ctx.session.client_capabilities
        if capabilities is None or capabilities.elicitation is None:
            return False
        return self.is_modern or self.ctx.session.can_send_request

    @property
    def reports(self) -> bool:
        """Whether it asked for notifications of progress."""
        return bool(self.ctx.meta and self.ctx.meta.get("progress_token") is not None)


@dataclass(frozen=True)
class _State:
    """A task as it stands.

    Attributes:
        memo: What the workflow was started with and has reported since (`workflows.steps`).
        result: Of a completed task.
        error: Of a failed one, as JSON-RPC has it.
    """

    task_id: str
    status: TaskStatus
    message: str
    created_at: datetime
    updated_at: datetime
    lifetime: timedelta | None
    memo: Mapping[str, Any]
    result: CallToolResult | None = None
    error: dict[str, Any] | None = None

    @property
    def requests(self) -> dict[str, Any]:
        """What it waits to be told, by keys."""
        found: dict[str, Any] = self.memo.get("input_requests") or {}
        return found

    @property
    def has_ended(self) -> bool:
        return self.status not in ("working", "input_required")

    @property
    def progress(self) -> dict[str, Any]:
        """What the workflow reported last: stage, fraction, message and time."""
        found: dict[str, Any] = self.memo.get("progress") or {}
        return found

    def wire(self) -> dict[str, Any]:
        """As `tasks/get` answers it, without `resultType`."""
        task: dict[str, Any] = {
            "taskId": self.task_id,
            "status": self.status,
            "createdAt": _stamp(self.created_at),
            "lastUpdatedAt": _stamp(self.updated_at),
            "ttlMs": None if self.lifetime is None else round(self.lifetime / timedelta(milliseconds=1)),
            "pollIntervalMs": round(POLL_SECONDS * 1000),
        }
        if self.message:
            task["statusMessage"] = self.message
        if self.status == "input_required":
            task["inputRequests"] = self.requests
        if self.result is not None:
            task["result"] = self.result.model_dump(by_alias=True, mode="json", exclude_none=True)
        if self.error is not None:
            task["error"] = self.error
        return task


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unknown_task() -> MCPError:
    """The same for a task that isn't there, that has expired, and that is somebody else's."""
    return MCPError(INVALID_PARAMS, "There is no such task. It may have expired.")


def result_of(content: Any, workflow_id: str) -> CallToolResult:
    """A tool's result, given its workflow's as JSON values."""
    return CallToolResult(
        content=[TextContent(text=json.dumps(content, ensure_ascii=False))],
        structured_content=content,
        _meta={WORKFLOW_ID: workflow_id},
    )


def error_of(message: str, workflow_id: str | None) -> CallToolResult:
    """A tool's result where it couldn't do what it was asked."""
    meta = {WORKFLOW_ID: workflow_id} if workflow_id else None
    return CallToolResult(content=[TextContent(text=message)], is_error=True, _meta=meta)


class _TaskNotification(BaseModel):
    method: Literal["notifications/tasks"] = "notifications/tasks"
    params: dict[str, Any]


class _ListenedSession:
    """The session of a `subscriptions/listen` whose acknowledgement also names tasks."""

    def __init__(self, session: ServerSession, task_ids: list[str]) -> None:
        self._session = session
        self._task_ids = task_ids
        self.acknowledged = asyncio.Event()

    async def send_notification(self, notification: Any, related_request_id: RequestId | None = None) -> None:
        if isinstance(notification, SubscriptionsAcknowledgedNotification):
            honored = notification.params.notifications
            named = SubscriptionFilter.model_validate(
                honored.model_dump(by_alias=True, exclude_none=True) | {"taskIds": self._task_ids}
            )
            params = notification.params.model_copy(update={"notifications": named})
            notification = notification.model_copy(update={"params": params})
        await self._session.send_notification(notification, related_request_id)
        self.acknowledged.set()


class Tasks(Extension):
    """Runs tool calls as workflows, and answers for them as tasks.

    Args:
        runtime: What reaches Temporal.
        owner_of: The authenticated user of a request; None where there is none, who may see every task.
    """

    identifier = EXTENSION

    def __init__(self, runtime: Runtime, owner_of: Callable[[Any], str | None]) -> None:
        self._runtime = runtime
        self._owner_of = owner_of
        self._call: ContextVar[_Call] = ContextVar("call")
        self._retention: timedelta | None = None

    # Calls

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        await self._runtime.loaded()
        key = (params.meta or {}).get(IDEMPOTENCY_KEY)
        if key is not None and not (isinstance(key, str) and 1 <= len(key) <= MAX_KEY):
            raise MCPError(INVALID_PARAMS, f"_meta: {IDEMPOTENCY_KEY} must be a string of 1 to {MAX_KEY} characters")
        call = _Call(ctx, self._owner_of(ctx.request), key)
        token = self._call.set(call)
        try:
            if params.request_state is not None and params.request_state.startswith(_RESUMING):
                task_id = params.request_state.removeprefix(_RESUMING)
                return await self._resume(call, task_id, params.input_responses or {})
            return await call_next(ctx)
        except _UnfinishedError as unfinished:
            return unfinished.answer
        finally:
            self._call.reset(token)

    @property
    def can_ask(self) -> bool:
        """Whether the present call's user can be asked something while the work waits."""
        call = self._call.get()
        return call.takes_tasks or call.can_be_asked

    async def run(self, tool: str, workflow: Any, params: BaseModel, held: str | None = None) -> CallToolResult:
        """Answer the present call of a tool with the result of its workflow, or with what went wrong as a tool error.

        The work goes on whether or not anybody waits for it; only `notifications/cancelled` ends it with the call.

        Args:
            tool: Its name, with which the workflow's id begins.
            workflow: The workflow class. What its first step embeds, if it says so by `embedded`, begins while Temporal
                writes down the start.
            params: Its argument.
            held: Name of a content that was held for it.
        """
        call, settings = self._call.get(), self._runtime.settings
        workflow_id, memo = self._identify(call, tool, params)
        deadline = time.monotonic() + settings.call_timeout_seconds
        is_needed = True
        try:
            if call.key is not None:
                # Whose work it is isn't known yet: cancelling the call must not end another's.
                # What one call of a key is told, the next ones are too: only what Temporal has lasts.
                started = await self._runtime.start(workflow, params, workflow_id, memo, deadline, at_once=False)
                await self._check_same(call, workflow_id, memo["task"]["arguments"], deadline)
            async with self._cancelled_with(call, workflow_id):
                if call.key is None:
                    if hasattr(workflow, "embedded"):
                        self._runtime.begin_embedding(workflow.embedded(params))
                    started = await self._runtime.start(workflow, params, workflow_id, memo, deadline)
                result = await self._await(call, started, deadline)
                # The workflow drops it at its end. Where that was before this call held it again, nobody else would.
                is_needed = False
                return result
        except CallError as error:
            # What was never begun needs nothing, unless another call of the same key has begun it.
            is_needed = error.workflow_id is not None or call.key is not None
            return error_of(str(error), error.workflow_id)
        finally:
            if held is not None and not is_needed:
                await self._drop(held)

    def _identify(self, call: _Call, tool: str, params: BaseModel) -> tuple[str, dict[str, Any]]:
        """The id and the memo of the workflow that a call runs."""
        arguments = hashlib.sha256(f"{tool}\0{params.model_dump_json()}".encode()).hexdigest()
        memo = {"task": {"tool": tool, "owner": call.owner, "arguments": arguments}}
        return f"{tool}-{self._name(call, tool)}", memo

    def _name(self, call: _Call, *parts: str) -> str:
        """A name for something of a call: the same for calls of the same idempotency key."""
        if call.key is None:
            return uuid.uuid4().hex
        key = [self._runtime.settings.temporal_task_queue, call.owner, *parts, call.key]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    async def hold(self, content: bytes) -> str:
        """Keep what is too large for a history where the workflow finds it that is to be run; answer its name.

        Raises:
            ToolError: where there is no room for it, or it can't be reached.
        """
        from temporalio.exceptions import ApplicationError

        call = self._call.get(None)
        digest = hashlib.sha256(content).hexdigest()
        name = self._name(call, "content", digest) if call is not None else uuid.uuid4().hex
        try:
            await self._runtime.contents.put(name, content)
        except ApplicationError as error:
            raise ToolError(error.message) from None
        return name

    async def _drop(self, name: str) -> None:
        """Drop a content; where that can't be done now it goes with those that are too old."""
        from temporalio.exceptions import ApplicationError

        with contextlib.suppress(ApplicationError):
            await self._runtime.contents.drop(name)

    async def _check_same(self, call: _Call, workflow_id: str, arguments: str, deadline: float) -> None:
        """Whether the workflow of a key that was used before has these arguments.

        Raises:
            CallError: where it has others, or nobody answers that before the deadline.
        """
        while True:
            try:
                state = await self._state_of(call.owner, workflow_id)
                break
            except UnreachableError as error:
                if time.monotonic() >= deadline:
                    unknown = "It isn't known whether the work was started; a call with the same key answers that."
                    raise CallError(f"{error} {unknown}", workflow_id) from None
                await asyncio.sleep(RETRY_SECONDS)
        if state.memo["task"]["arguments"] != arguments:
            raise CallError(f"_meta: {IDEMPOTENCY_KEY} was used for other arguments. Give every new call a new key.")

    async def _resume(self, call: _Call, task_id: str, responses: Mapping[str, Any]) -> HandlerResult:
        """Go on with a call whose client was asked something and has called again with what it was told."""
        deadline = time.monotonic() + self._runtime.settings.call_timeout_seconds
        try:
            await self._state_of(call.owner, task_id)
            await self._tell(task_id, responses)
            async with self._cancelled_with(call, task_id):
                return await self._await(call, Started(task_id), deadline, set(responses))
        except CallError as error:
            return error_of(str(error), error.workflow_id)

    async def _await(
        self,
        call: _Call,
        started: Started,
        deadline: float,
        answered: set[str] | None = None,
    ) -> CallToolResult:
        """Wait for a workflow as long as its caller does.

        Raises:
            _UnfinishedError: with what the call answers before it has ended.
            CallError: for what went wrong.
            MCPError: where the workflow failed with one.
        """
        answered, told = answered or set(), -TICK
        grace = time.monotonic() + self._runtime.settings.task_grace_seconds
        workflow_id = started.workflow_id
        result = asyncio.create_task(self._result(started))
        try:
            while True:
                now = time.monotonic()
                until = min(deadline, grace) if call.takes_tasks else deadline
                # Who neither takes tasks nor can be told anything needs no looking after.
                looks = call.reports or call.can_be_asked
                wait = min(until - now, POLL_SECONDS) if looks else until - now
                done, _ = await asyncio.wait({result}, timeout=max(0.0, wait))
                if done:
                    return result.result()
                try:
                    state = await self._state_of(call.owner, workflow_id, LOOK_SECONDS)
                except CallError as error:
                    # Nothing can be said of the work now, but that it was begun.
                    if time.monotonic() >= deadline:
                        raise _UnfinishedError(self._goes_on(workflow_id, "working", str(error))) from None
                    grace = time.monotonic() + POLL_SECONDS
                    continue
                if state.has_ended:
                    await asyncio.wait({result}, timeout=max(0.0, deadline - time.monotonic()))
                    if result.done():
                        return result.result()
                    raise _UnfinishedError(self._goes_on(workflow_id, "working", state.message))
                if time.monotonic() >= until and call.takes_tasks:
                    raise _UnfinishedError({"resultType": "task"} | self._handle_of(state))
                if state.progress and call.reports:
                    # It has to grow with each notification, also where only time passes.
                    told = max(state.progress["fraction"] or 0.0, told + TICK)
                    await call.ctx.session.report_progress(told, 1.0, state.message)
                if not call.takes_tasks and (fresh := state.requests.keys() - answered):
                    answered |= fresh
                    await self._ask(call, workflow_id, {key: state.requests[key] for key in fresh})
                if time.monotonic() >= deadline:
                    raise _UnfinishedError(self._goes_on(workflow_id, state.status, state.message))
        finally:
            result.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await result

    @staticmethod
    def _handle_of(state: _State) -> dict[str, Any]:
        """A task without what its state holds, as the call that creates it answers."""
        return {key: value for key, value in state.wire().items() if key not in ("inputRequests", "result", "error")}

    async def _ask(self, call: _Call, workflow_id: str, requests: Mapping[str, Any]) -> None:
        """Have the client ask its user, and tell the workflow what the user says.

        Raises:
            _UnfinishedError: asking it to, on revisions where the client calls again with the answer.
        """
        if not call.can_be_asked:
            return
        if call.is_modern:
            raise _UnfinishedError(
                InputRequiredResult.model_validate(
                    {"resultType": "input_required", "inputRequests": requests, "requestState": _RESUMING + workflow_id}
                )
            )
        responses: dict[str, Any] = {}
        for key, request in requests.items():
            form = ElicitRequestFormParams.model_validate(request["params"])
            said = await call.ctx.session.elicit_form(
                form.message, form.requested_schema, related_request_id=call.ctx.request_id
            )
            responses[key] = said.model_dump(by_alias=True, mode="json", exclude_none=True)
        await self._tell(workflow_id, responses)

    @staticmethod
    def _goes_on(task_id: str, status: TaskStatus, reason: str) -> CallToolResult:
        """What a client is told at its deadline."""
        message = (
            f"{reason or 'The work is taking longer than CALL_TIMEOUT_SECONDS.'} Not done yet, and not lost: it goes "
            f"on as task {task_id}. task_status with this task_id answers the result once it is there; cancel_task "
            "ends it. Don't call again for the same thing."
        )
        return result_of(TaskResult(task_id=task_id, status=status, message=message).model_dump(mode="json"), task_id)

    async def _result(self, started: Started) -> CallToolResult:
        """A workflow's end as a tool's result.

        Raises:
            CallError: where it failed.
            MCPError: where it failed with one.
        """
        from temporalio.client import WorkflowFailureError

        try:
            return result_of(await self._runtime.result(started), started.workflow_id)
        except WorkflowFailureError as error:
            if (protocol := _protocol_error(error)) is not None:
                raise protocol from None
            raise CallError(explain_failure(error), started.workflow_id) from None

    @contextlib.asynccontextmanager
    async def _cancelled_with(self, call: _Call, workflow_id: str) -> AsyncIterator[None]:
        """The workflow is cancelled where the client cancels the call in the block; where it is only gone, it isn't."""
        try:
            yield
        except asyncio.CancelledError:
            if call.ctx.session._request_outbound.cancel_requested.is_set():
                with anyio.move_on_after(CANCEL_SECONDS, shield=True):
                    await self._cancel(workflow_id)
            raise

    # Tasks

    def methods(self) -> Sequence[MethodBinding]:
        modern = frozenset(MODERN_PROTOCOL_VERSIONS)
        return (
            MethodBinding("tasks/get", _TaskParams, _answering(self._get), modern),
            MethodBinding("tasks/update", _UpdateParams, _answering(self._update), modern),
            MethodBinding("tasks/cancel", _TaskParams, _answering(self._end), modern),
        )

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> HandlerResult:
        call = await self._enter(ctx, params)
        state = await self._state_of(call.owner, params.task_id)
        return {"resultType": "complete"} | state.wire()

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: _UpdateParams) -> HandlerResult:
        call = await self._enter(ctx, params)
        for key, response in _plain(params.input_responses).items():
            if not isinstance(response, dict):
                raise MCPError(INVALID_PARAMS, f"inputResponses: {key} must be what the request is answered with")
        state = await self._state_of(call.owner, params.task_id)
        told = state.requests.keys() & params.input_responses.keys()
        await self._tell(params.task_id, params.input_responses)
        # The signal isn't lost any more. Mostly the workflow takes it at once, and the next tasks/get can say so.
        deadline = time.monotonic() + TOLD_SECONDS
        while told & state.requests.keys() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            state = await self._state_of(call.owner, params.task_id)
        return {"resultType": "complete"}

    async def _end(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> HandlerResult:
        call = await self._enter(ctx, params)
        await self._state_of(call.owner, params.task_id)
        await self._cancel(params.task_id)
        return {"resultType": "complete"}

    async def _enter(self, ctx: ServerRequestContext[Any, Any], params: _TaskParams) -> _Call:
        """Check that a request about a task may be made.

        Raises:
            MCPError: where its client hasn't declared the extension, or its header names another task.
        """
        require_client_extension(ctx, EXTENSION)
        headers = getattr(ctx.request, "headers", None)
        if headers is not None and headers.get("mcp-name") != params.task_id:
            raise MCPError(HEADER_MISMATCH, "the mcp-name header doesn't match the body's taskId")
        await self._runtime.loaded()
        return _Call(ctx, self._owner_of(ctx.request), None)

    def publish(self, server: Server[Any]) -> None:
        """Let clients of a server subscribe to tasks by `subscriptions/listen`."""
        entry = server.get_request_handler(LISTEN)
        assert entry is not None
        listen = entry.handler

        async def handler(
            ctx: ServerRequestContext[Any, Any], params: SubscriptionsListenRequestParams
        ) -> HandlerResult:
            task_ids = (params.notifications.model_extra or {}).get("taskIds")
            if not task_ids:
                return await listen(ctx, params)
            if not isinstance(task_ids, list) or not all(isinstance(one, str) for one in task_ids):
                raise MCPError(INVALID_PARAMS, "taskIds must be a list of strings")
            task_ids = list(dict.fromkeys(task_ids))
            if len(task_ids) > MAX_LISTENED:
                raise MCPError(INVALID_PARAMS, f"taskIds must name at most {MAX_LISTENED} tasks")
            require_client_extension(ctx, EXTENSION)
            await self._runtime.loaded()
            call = _Call(ctx, self._owner_of(ctx.request), None)
            agreed: dict[str, dict[str, Any]] = {}
            for task_id in task_ids:
                with contextlib.suppress(MCPError, CallError):
                    agreed[task_id] = (await self._state_of(call.owner, task_id)).wire()
            session = _ListenedSession(ctx.session, list(agreed))
            watching = asyncio.create_task(self._watch(call, session, agreed))
            try:
                return await listen(replace(ctx, session=cast(ServerSession, session)), params)
            finally:
                watching.cancel()

        server.add_request_handler(LISTEN, SubscriptionsListenRequestParams, handler)

    async def _watch(self, call: _Call, session: "_ListenedSession", seen: dict[str, dict[str, Any]]) -> None:
        """Notify of every change of some tasks until all have ended.

        Args:
            seen: The tasks by their ids, as they were when the client subscribed.
        """
        await session.acknowledged.wait()
        sent: dict[str, dict[str, Any]] = {}
        meta = {SUBSCRIPTION_ID_META_KEY: call.ctx.request_id}
        while seen:
            for task_id, task in list(seen.items()):
                if sent.get(task_id) != task:
                    sent[task_id] = task
                    notification = _TaskNotification(params={**task, "_meta": meta})
                    await session.send_notification(notification, call.ctx.request_id)
                if task["status"] not in ("working", "input_required"):
                    del seen[task_id]
            await asyncio.sleep(POLL_SECONDS)
            for task_id in list(seen):
                try:
                    seen[task_id] = (await self._state_of(call.owner, task_id)).wire()
                except CallError:
                    continue
                except MCPError:
                    del seen[task_id]

    # The same for clients without the extension

    async def status(self, task_id: str) -> CallToolResult:
        """What a task of the present call's user has come to: its result, or how it stands.

        Raises:
            MCPError: as `tasks/get`.
        """
        state = await self._state_of(self._call.get().owner, task_id)
        if state.result is not None and state.result.is_error:
            return state.result
        return result_of(self._shown(state).model_dump(mode="json"), task_id)

    async def cancel(self, task_id: str) -> CallToolResult:
        """Ask a task of the present call's user to end.

        Raises:
            MCPError: as `tasks/cancel`.
        """
        await self._state_of(self._call.get().owner, task_id)
        await self._cancel(task_id)
        return await self.status(task_id)

    # The same for what isn't MCP

    async def begin(self, owner: str | None, tool: str, workflow: Any, params: BaseModel) -> str:
        """Start what a call of a tool would; answer the id of its task.

        Args:
            owner: The authenticated user; None where there is none.
            tool: Its name, with which the workflow's id begins.
            workflow: The workflow class.
            params: Its argument.

        Raises:
            CallError: saying which piece is missing and what to do.
        """
        await self._runtime.loaded()
        task_id = f"{tool}-{uuid.uuid4().hex}"
        memo = {"task": {"tool": tool, "owner": owner, "arguments": ""}}
        deadline = time.monotonic() + self._runtime.settings.call_timeout_seconds
        await self._runtime.start(workflow, params, task_id, memo, deadline)
        return task_id

    async def stands(self, owner: str | None, task_id: str) -> TaskResult:
        """How a task of a user's stands. What its work failed with is its message.

        Raises:
            MCPError: where the user has no such task.
            CallError: saying which piece is missing and what to do.
        """
        await self._runtime.loaded()
        return self._shown(await self._state_of(owner, task_id))

    @staticmethod
    def _shown(state: _State) -> TaskResult:
        task = TaskResult(task_id=state.task_id, status=state.status, message=state.message)
        if state.result is not None and state.result.is_error:
            [said] = state.result.content
            return task.model_copy(update={"status": "failed", "message": cast(TextContent, said).text})
        content = state.result.structured_content if state.result is not None else None
        return task.model_copy(update={"result": content})

    # Workflows

    async def _state_of(self, owner: str | None, task_id: str, within: float = DESCRIBE_SECONDS) -> _State:
        """A task as it stands, if its user may know of it; None may know of all.

        Raises:
            MCPError: otherwise, and where there is none.
        """
        description = await self._runtime.described(task_id, within)
        memo = await description.memo() if description is not None else {}
        if description is None or "task" not in memo or owner not in (None, memo["task"].get("owner")):
            raise unknown_task()
        return await self._state(description, memo)

    async def _state(self, description: "WorkflowExecutionDescription", memo: Mapping[str, Any]) -> _State:
        """A workflow as a task."""
        from temporalio.client import WorkflowExecutionStatus

        progress = memo.get("progress") or await self._runtime.heard(description)
        memo = {**memo, "progress": progress}
        updated = datetime.fromisoformat(progress["at"]) if progress else description.start_time
        parts: dict[str, Any] = {"message": progress.get("message", ""), "lifetime": None}
        status: TaskStatus = "working"
        if description.status in (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW):
            if memo.get("input_requests"):
                status = "input_required"
            elif (reason := self._runtime.why_it_waits(description)) is not None:
                parts["message"] = reason
            elif progress.get("share"):
                memo, parts["message"] = await _closer(description, memo)
        else:
            updated = description.close_time or updated
            kept = await self._kept()
            parts["lifetime"] = updated - description.start_time + kept if kept is not None else None
            if description.status == WorkflowExecutionStatus.CANCELED:
                status, parts["message"] = "cancelled", "The task was cancelled."
            else:
                try:
                    status, parts["message"] = "completed", "The task is done."
                    async with asyncio.timeout(RESULT_SECONDS):
                        parts["result"] = await self._result(Started(description.id))
                except TimeoutError:
                    raise UnreachableError("The result can't be read now. Try again later.", description.id) from None
                except CallError as error:
                    parts["result"] = error_of(str(error), description.id)
                except MCPError as error:
                    status, parts["error"] = "failed", error.error.model_dump(mode="json", exclude_none=True)
                    parts["message"] = error.error.message
        return _State(
            task_id=description.id,
            status=status,
            created_at=description.start_time,
            updated_at=updated,
            memo=memo,
            **parts,
        )

    async def _kept(self) -> timedelta | None:
        """How long Temporal keeps a workflow once it has ended."""
        if self._retention is None:
            self._retention = await self._runtime.retention()
        return self._retention

    async def _cancel(self, task_id: str) -> None:
        """Ask a workflow to end; nothing where it has."""
        with self._gone_by():
            await (await self._runtime.handle(task_id)).cancel()

    async def _tell(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """Tell a workflow what it waits for; nothing where it has ended."""
        with self._gone_by():
            await (await self._runtime.handle(task_id)).signal("input_responses", _plain(responses))

    @staticmethod
    @contextlib.contextmanager
    def _gone_by() -> Iterator[None]:
        """It is all right that the workflow has ended."""
        from temporalio.service import RPCError, RPCStatusCode

        try:
            yield
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise CallError(f"Temporal doesn't take it ({error.status.name}). Try again later.") from None


def _answering(handler: RequestHandler) -> RequestHandler:
    """A handler whose client hears which piece is missing."""

    async def answer(ctx: ServerRequestContext[Any, Any], params: Any) -> HandlerResult:
        try:
            return await handler(ctx, params)
        except CallError as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from None

    return answer


def _protocol_error(error: BaseException) -> MCPError | None:
    """The error of JSON-RPC that a workflow failed with, if it did (`workflows.steps.protocol_error`)."""
    from temporalio.exceptions import ApplicationError

    from activities.errors import PROTOCOL_ERROR

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.type == PROTOCOL_ERROR:
            return MCPError(int(cause.details[0]), cause.message)
        cause = cause.__cause__
    return None


async def _closer(
    description: "WorkflowExecutionDescription", memo: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str]:
    """A memo whose progress counts the parts of what is under way, and what that is in words."""
    from workflows.history import under_way

    progress: dict[str, Any] = memo["progress"]
    found = [(done, total) for done, total in await under_way(description) if total]
    if not found:
        return memo, progress["message"]
    fraction = progress["fraction"] + progress["share"] * sum(done / total for done, total in found)
    done, total = map(sum, zip(*found, strict=True))
    message = f"{progress['message']} {done} of {total} chunks of what is under way are embedded."
    return {**memo, "progress": {**progress, "fraction": fraction, "message": message}}, message


def _plain(responses: Mapping[str, Any]) -> dict[str, Any]:
    """Responses as JSON values."""
    return {
        key: one.model_dump(by_alias=True, mode="json", exclude_none=True) if isinstance(one, BaseModel) else one
        for key, one in responses.items()
    }
