"""Tasks as a client of the extension sees them, and as one without it does."""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import pytest
from mcp import Client
from mcp_types import CallToolResult, ElicitRequestParams, ElicitResult
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client as TemporalClient
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from mcp_server.auth import hash_token
from mcp_server.local.stack import Addresses
from mcp_server.tasks import EXTENSION, IDEMPOTENCY_KEY
from tests.conftest import REPOSITORY, command, content, environment, error, serve, workflow_id
from tests.e2e.test_http import serve_http
from tests.e2e.test_stdio import INITIALIZE, INITIALIZED, ask, raw, request
from tests.faults.bedrock_endpoint import Endpoint
from tests.faults.test_stack import PLEASE_KEEP

THROTTLED = (429, "ThrottlingException", "Too many requests")
INVALID_PARAMS = -32602


class Wire(NamedTuple):
    """A server over HTTP, as a client of 2026-07-28 writes to it."""

    http: httpx.AsyncClient
    address: str
    headers: dict[str, str]

    def body(self, method: str, params: dict[str, Any], meta: dict[str, Any], declared: bool) -> dict[str, Any]:
        capabilities: dict[str, Any] = {"extensions": {EXTENSION: {}}} if declared else {}
        envelope = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": capabilities,
        }
        return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": envelope | meta}}

    def headed(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        named = params.get("taskId") or params.get("name")
        return {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": method,
            **({"Mcp-Name": named} if named else {}),
            **self.headers,
        }

    async def ask(
        self, method: str, params: dict[str, Any], meta: dict[str, Any] | None = None, *, declared: bool = True
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The answer to a request, and the notifications before it."""
        body = self.body(method, params, meta or {}, declared)
        answer = await self.http.post(self.address, json=body, headers=self.headed(method, params))
        if answer.headers["content-type"].startswith("application/json"):
            return answer.json(), []
        messages = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:") and line[5:]]
        return messages[-1], messages[:-1]

    async def __call__(self, method: str, params: dict[str, Any], meta: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result of a request that must not fail."""
        answer, _ = await self.ask(method, params, meta)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def fails(self, method: str, params: dict[str, Any], *, declared: bool = True) -> dict[str, Any]:
        """The error of a request that must fail."""
        answer, _ = await self.ask(method, params, declared=declared)
        failed: dict[str, Any] = answer["error"]
        return failed

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self("tools/call", {"name": tool, "arguments": arguments})

    async def until(self, task_id: str, *statuses: str) -> dict[str, Any]:
        """A task once it has one of some statuses."""
        while (task := await self("tasks/get", {"taskId": task_id}))["status"] not in statuses:
            await asyncio.sleep(0.1)
        return task


@asynccontextmanager
async def wired(address: str, token: str | None = None) -> AsyncIterator[Wire]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=90, limits=httpx.Limits(max_connections=50)) as http:
        yield Wire(http, f"{address}/mcp", headers)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def answers(process: asyncio.subprocess.Process, address: str) -> None:
    """Return once a server process answers."""
    async with httpx.AsyncClient() as http:
        while True:
            try:
                await http.get(address)
                return
            except httpx.TransportError:
                assert process.returncode is None
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
async def fixture_server(stack: Addresses) -> AsyncIterator[str]:
    """The address of the fixture server of the conformance suite."""
    port = free_port()
    line = [sys.executable, "-m", "tests.conformance.server", "--port", str(port), "--temporal", str(stack.temporal)]
    process = await asyncio.create_subprocess_exec(*line, cwd=REPOSITORY, stderr=asyncio.subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        await answers(process, address)
        yield address
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def slow(fixture_server: str) -> AsyncIterator[Wire]:
    async with wired(fixture_server) as wire:
        yield wire


@pytest.fixture
def settings(stack: Addresses, bedrock: Endpoint, user: str) -> dict[str, str]:
    """Of servers with a store of their own that take the test's endpoint for Amazon Bedrock."""
    assert stack.temporal is not None
    own = {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user, "TASK_GRACE_SECONDS": "0.2"}
    return own | bedrock.settings


def throttle(bedrock: Endpoint) -> None:
    """Let the endpoint refuse everything until it is told otherwise."""
    bedrock.failures, bedrock.for_ever = [THROTTLED], True


def recover(bedrock: Endpoint) -> None:
    bedrock.for_ever, bedrock.failures = False, []


async def ended(handle: WorkflowHandle[Any, Any]) -> WorkflowExecutionStatus | None:
    """How a workflow ended, once it has."""
    while (description := await handle.describe()).status == WorkflowExecutionStatus.RUNNING:
        await asyncio.sleep(0.05)
    return description.status


# Clients with the extension


async def test_what_is_done_within_the_grace_is_answered_at_once(
    tmp_path: Path, settings: dict[str, str], bedrock: Endpoint
) -> None:
    async with serve_http(tmp_path, **settings | {"TASK_GRACE_SECONDS": "60"}) as address, wired(address) as wire:
        result = await wire.call("store_memory", **PLEASE_KEEP)
    assert result["resultType"] == "complete"
    assert "taskId" not in result
    assert result["structuredContent"]["message_id"]


async def test_a_task_ends_with_the_very_result_of_the_call(slow: Wire) -> None:
    created = await slow.call("slow_compute", seconds=0.6, label="sum")
    assert created["resultType"] == "task"
    assert created["status"] == "working"
    assert {"inputRequests", "result", "error"}.isdisjoint(created)

    task = await slow.until(created["taskId"], "completed", "failed")

    answer, _ = await slow.ask("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0.1}}, declared=False)
    assert task["result"]["structuredContent"] == {"text": "sum: done after 0.6 s"}
    assert task["result"].keys() == answer["result"].keys()
    assert task["result"]["content"][0].keys() == answer["result"]["content"][0].keys()
    assert task["createdAt"] == created["createdAt"]
    assert task["lastUpdatedAt"] > task["createdAt"]
    assert task["ttlMs"] > 60_000


async def test_a_task_survives_the_server_and_the_worker(
    tmp_path: Path, settings: dict[str, str], bedrock: Endpoint
) -> None:
    throttle(bedrock)
    worker = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
    line = command("serve", "--transport", "http", "--port", str(port := free_port()), "--no-worker")
    server = await asyncio.create_subprocess_exec(*line, env=environment(tmp_path, **settings))
    try:
        await answers(server, address := f"http://127.0.0.1:{port}")
        async with wired(address) as wire:
            task_id = (await wire.call("store_memory", **PLEASE_KEEP))["taskId"]
            while bedrock.refused < 4:
                await asyncio.sleep(0.05)
        for process in (server, worker):
            process.kill()
            await process.wait()
        recover(bedrock)

        async with serve_http(tmp_path, "--no-worker", **settings) as address, wired(address) as wire:
            assert (await wire("tasks/get", {"taskId": task_id}))["status"] == "working"
            worker = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
            task = await wire.until(task_id, "completed", "failed", "cancelled")
            assert task["result"]["structuredContent"]["message_id"].startswith(task_id)
            recalled = await wire.call("retrieve_memory", text="Keep this.")
            if "taskId" in recalled:
                recalled = (await wire.until(recalled["taskId"], "completed"))["result"]
            related = recalled["structuredContent"]["related_conversation"]
            assert [one["message_id"].rpartition("-")[0] for one in related] == [task_id]
    finally:
        for process in (worker, server):
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def test_a_task_is_its_users_alone(tmp_path: Path, settings: dict[str, str], bedrock: Endpoint) -> None:
    throttle(bedrock)
    tokens = ",".join(f"{name}:{hash_token(name * 16)}" for name in ("ann", "bob"))
    async with serve_http(tmp_path, AUTH_TOKENS=tokens, **settings) as address, AsyncExitStack() as wires:
        ann, bob = [await wires.enter_async_context(wired(address, name * 16)) for name in ("ann", "bob")]
        task_id = (await ann.call("store_memory", **PLEASE_KEEP))["taskId"]
        unknown = await bob.fails("tasks/get", {"taskId": "store_memory-1234"})
        assert unknown["code"] == INVALID_PARAMS
        for malformed in ("x" * 2000, "../..", "%"):
            assert await bob.fails("tasks/get", {"taskId": malformed}) == unknown
        for method in ("tasks/get", "tasks/cancel"):
            assert await bob.fails(method, {"taskId": task_id}) == unknown
        assert await bob.fails("tasks/update", {"taskId": task_id, "inputResponses": {}}) == unknown
        answer, _ = await bob.ask("tools/call", {"name": "task_status", "arguments": {"task_id": task_id}})
        assert answer["result"]["isError"]
        assert (await ann("tasks/get", {"taskId": task_id}))["status"] == "working"
        await ann("tasks/cancel", {"taskId": task_id})
        await ann.until(task_id, "cancelled")


async def test_a_task_is_cancelled_during_an_activity(
    tmp_path: Path, settings: dict[str, str], bedrock: Endpoint
) -> None:
    throttle(bedrock)
    async with serve_http(tmp_path, **settings) as address, wired(address) as wire:
        task_id = (await wire.call("store_memory", **PLEASE_KEEP))["taskId"]
        while bedrock.refused < 4:
            await asyncio.sleep(0.05)
        assert await wire("tasks/cancel", {"taskId": task_id}) == {"resultType": "complete"} | {
            key: value for key, value in (await wire("tasks/cancel", {"taskId": task_id})).items() if key == "_meta"
        }
        task = await wire.until(task_id, "cancelled", "completed", "failed")
        assert task["status"] == "cancelled"
        assert await wire("tasks/cancel", {"taskId": task_id})

        recover(bedrock)
        recalled = await wire.call("retrieve_memory", text="Keep this.")
        if "taskId" in recalled:
            recalled = (await wire.until(recalled["taskId"], "completed"))["result"]
        assert recalled["structuredContent"]["related_conversation"] == []


async def test_an_expired_task_is_unknown(slow: Wire, temporal: TemporalClient) -> None:
    task_id = (await slow.call("slow_compute", seconds=0.2))["taskId"]
    await slow.until(task_id, "completed")
    # What Temporal does once the time is over for which it keeps what has ended.
    gone = WorkflowExecution(workflow_id=task_id)
    await temporal.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=gone)
    )
    unknown = await slow.fails("tasks/get", {"taskId": "slow_compute-1234"})
    async with asyncio.timeout(60):
        while "error" not in (answer := (await slow.ask("tasks/get", {"taskId": task_id}))[0]):
            await asyncio.sleep(0.1)
    assert answer["error"] == unknown


async def test_a_thousand_tasks_at_once(slow: Wire) -> None:
    begun = await asyncio.gather(*(slow.call("slow_compute", seconds=1, label=f"{number}") for number in range(1000)))
    # One after the other: to ask for all of them all the time would take longer than the work.
    tasks = [await slow.until(one["taskId"], "completed", "failed", "cancelled") for one in begun]
    texts = [one["result"]["structuredContent"]["text"] for one in tasks]
    assert texts == [f"{number}: done after 1 s" for number in range(1000)]


async def test_a_subscription_tells_of_a_task_until_it_ends(slow: Wire) -> None:
    task_id = (await slow.call("slow_compute", seconds=2, label="watched"))["taskId"]
    filters = {"notifications": {"taskIds": [task_id, "slow_compute-1234"]}}
    body = slow.body("subscriptions/listen", filters, {}, True)
    seen: list[dict[str, Any]] = []
    stream = slow.http.stream("POST", slow.address, json=body, headers=slow.headed("subscriptions/listen", {}))
    async with stream as answer, asyncio.timeout(60):
        async for line in answer.aiter_lines():
            if line.startswith("data:") and line[5:].strip():
                seen.append(json.loads(line[5:]))
                if seen[-1]["params"].get("status") == "completed":
                    break
    assert seen[0]["method"] == "notifications/subscriptions/acknowledged"
    assert seen[0]["params"]["notifications"]["taskIds"] == [task_id]
    assert {one["method"] for one in seen[1:]} == {"notifications/tasks"}
    assert seen[1]["params"]["status"] == "working"
    fetched = await slow("tasks/get", {"taskId": task_id})
    told = {key: value for key, value in seen[-1]["params"].items() if key != "_meta"}
    assert told == {key: value for key, value in fetched.items() if key not in ("_meta", "resultType")}

    refused = await slow.fails("subscriptions/listen", filters, declared=False)
    assert refused["code"] == -32021


async def test_a_header_must_name_the_task_that_the_body_does(slow: Wire) -> None:
    task_id = (await slow.call("slow_compute", seconds=0))["taskId"]
    body = slow.body("tasks/get", {"taskId": task_id}, {}, True)
    headers = slow.headed("tasks/get", {"taskId": "another"})
    answer = await slow.http.post(slow.address, json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)


async def test_progress_is_told_while_a_call_waits(slow: Wire) -> None:
    params = {"name": "slow_compute", "arguments": {"seconds": 2.5, "label": "sums"}}
    answer, notified = await slow.ask("tools/call", params, {"progressToken": "p"}, declared=False)
    assert answer["result"]["structuredContent"]["text"] == "sums: done after 2.5 s"
    assert {(one["method"], one["params"]["progressToken"], one["params"]["message"]) for one in notified} == {
        ("notifications/progress", "p", "Computing sums.")
    }


async def test_a_call_with_the_same_idempotency_key_is_the_same_call(slow: Wire) -> None:
    key = {IDEMPOTENCY_KEY: "once"}
    params = {"name": "slow_compute", "arguments": {"seconds": 0.5, "label": "once"}}
    first, second = await asyncio.gather(*(slow("tools/call", params, key) for _ in range(2)))
    assert first["taskId"] == second["taskId"]
    await slow.until(first["taskId"], "completed")
    third = await slow("tools/call", params, key)
    assert third["structuredContent"] == {"text": "once: done after 0.5 s"}

    other = {"name": "slow_compute", "arguments": {"seconds": 0.5, "label": "twice"}}
    refused = await slow("tools/call", other, key)
    assert refused["isError"]
    assert IDEMPOTENCY_KEY in refused["content"][0]["text"]
    answer, _ = await slow.ask("tools/call", params, {IDEMPOTENCY_KEY: 5})
    assert answer["error"]["code"] == INVALID_PARAMS


async def test_a_key_that_temporal_has_forgotten_replaces_no_message(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    """Used again for another message, it names another one; for the same message, the same."""

    async def keep(key: str, text: str) -> CallToolResult:
        said = PLEASE_KEEP | {"text": text, "user_id": user, "timestamp": "2026-05-03T09:00:00Z"}
        return await client.call_tool("store_memory", said, meta=cast(Any, {IDEMPOTENCY_KEY: key}))

    async def keep_twice(key: str, first: str, second: str) -> list[str]:
        kept = await keep(key, first)
        # It takes Temporal half a minute to delete a workflow.
        task_id = workflow_id(kept)
        delete = DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=task_id)
        )
        await temporal.workflow_service.delete_workflow_execution(delete)
        with contextlib.suppress(RPCError):
            while await temporal.get_workflow_handle(task_id).describe():
                await asyncio.sleep(0.05)
        return [content(one)["message_id"] for one in (kept, await keep(key, second))]

    nuts, table = "I am allergic to nuts.", "Book a table for two."
    other, same = await asyncio.gather(keep_twice(f"{user}-1", nuts, table), keep_twice(f"{user}-2", table, table))
    found = content(await client.call_tool("retrieve_memory", {"text": "nuts, table", "user_id": user}))
    texts = sorted(one["text"] for one in found["related_conversation"])
    assert texts == [table, table, nuts]
    assert other[0] != other[1]
    assert same[0] == same[1]


# Clients without it


async def test_a_call_that_takes_too_long_goes_on_as_a_task(
    tmp_path: Path, settings: dict[str, str], bedrock: Endpoint
) -> None:
    throttle(bedrock)
    async with serve(tmp_path, CALL_TIMEOUT_SECONDS="4", **settings) as client:
        late = content(await client.call_tool("store_memory", PLEASE_KEEP))
        assert late["status"] == "working"
        assert "throttling" in late["message"]
        assert "task_status" in late["message"]
        task = {"task_id": late["task_id"]}
        status = content(await client.call_tool("task_status", task))
        assert (status["status"], status["result"]) == ("working", None)

        recover(bedrock)
        while (status := content(await client.call_tool("task_status", task)))["status"] == "working":
            await asyncio.sleep(0.1)
        assert status["status"] == "completed"
        assert status["result"]["message_id"].startswith(late["task_id"])

        throttle(bedrock)
        other = content(await client.call_tool("store_memory", PLEASE_KEEP | {"text": "Not this."}))
        task = {"task_id": other["task_id"]}
        await client.call_tool("cancel_task", task)
        while (status := content(await client.call_tool("task_status", task)))["status"] == "working":
            await asyncio.sleep(0.1)
        assert status["status"] == "cancelled"
        assert "no such task" in error(await client.call_tool("task_status", {"task_id": "store_memory-1"}))
        assert "no such task" in error(await client.call_tool("cancel_task", {"task_id": "store_memory-1"}))


@pytest.mark.parametrize("cancels", [True, False])
async def test_cancelling_a_call_cancels_its_workflow_and_leaving_does_not(
    tmp_path: Path, settings: dict[str, str], bedrock: Endpoint, temporal: TemporalClient, user: str, cancels: bool
) -> None:
    throttle(bedrock)
    key = {IDEMPOTENCY_KEY: user}
    async with raw(tmp_path, "--no-worker", **settings) as process:
        await ask(process, INITIALIZE)
        assert process.stdin is not None
        process.stdin.write(INITIALIZED)
        process.stdin.write(request(2, "tools/call", name="store_memory", arguments=PLEASE_KEEP, _meta=key))
        await process.stdin.drain()
        query = f"TaskQueue = '{user}'"
        while not (found := [one async for one in temporal.list_workflows(query)]):
            await asyncio.sleep(0.1)
        handle = temporal.get_workflow_handle(found[0].id)
        if cancels:
            line = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
            process.stdin.write(json.dumps(line).encode() + b"\n")
            await process.stdin.drain()
        else:
            process.stdin.close()
            await process.wait()
        recover(bedrock)
        worker = await asyncio.create_subprocess_exec(*command("worker"), env=environment(tmp_path, **settings))
        try:
            expected = WorkflowExecutionStatus.CANCELED if cancels else WorkflowExecutionStatus.COMPLETED
            assert await ended(handle) == expected
            if cancels:
                call = request(3, "tools/call", name="store_memory", arguments=PLEASE_KEEP, _meta=key)
                again = await ask(process, call)
                assert again["result"]["structuredContent"]["message_id"].startswith(found[0].id), again
        finally:
            worker.terminate()
            await worker.wait()


# Questions


async def agree(context: Any, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"confirm": True})


async def refuse(context: Any, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="decline")


async def remembered(client: Client, user: str) -> int:
    found = content(await client.call_tool("retrieve_memory", {"text": "Keep this.", "user_id": user}))
    return len(found["related_conversation"])


async def test_a_task_asks_before_everything_is_forgotten(
    home: Path, stack: Addresses, temporal: TemporalClient, user: str
) -> None:
    async with serve_http(home, TASK_GRACE_SECONDS="0") as address, wired(address) as wire:
        for agrees in (False, True):
            stored = await wire.call("store_memory", user_id=user, **PLEASE_KEEP)
            await wire.until(stored["taskId"], "completed")
            task_id = (await wire.call("forget", everything=True, user_id=user))["taskId"]
            task = await wire.until(task_id, "input_required")
            [(key, asked)] = task["inputRequests"].items()
            assert asked["method"] == "elicitation/create"
            assert "everything" in asked["params"]["message"]
            # What is no answer leaves the question open, and the workflow whole.
            answer, _ = await wire.ask("tasks/update", {"taskId": task_id, "inputResponses": {key: "yes"}})
            assert answer["error"]["code"] == INVALID_PARAMS
            await temporal.get_workflow_handle(task_id).signal("input_responses", {key: ["yes"]})
            said: Any = {"confirm": True} if agrees else [1]
            answers = {"nobody asked": {}, key: {"action": "accept", "content": said}}
            await wire("tasks/update", {"taskId": task_id, "inputResponses": answers})
            result = (await wire.until(task_id, "completed"))["result"]
            assert result["isError"] == (not agrees)
            if agrees:
                assert result["structuredContent"]["messages"] == 2


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_client_without_tasks_is_asked_too(home: Path, stack: Addresses, user: str, mode: str) -> None:
    from mcp.client.stdio import StdioServerParameters, stdio_client

    line = command("serve")
    server = StdioServerParameters(command=line[0], args=line[1:], env=environment(home), cwd=home)
    for answer in (refuse, agree):
        async with Client(stdio_client(server), mode=mode, elicitation_callback=answer) as client:
            await client.call_tool("store_memory", PLEASE_KEEP | {"user_id": user})
            forgotten = await client.call_tool("forget", {"everything": True, "user_id": user})
            if answer is agree:
                assert content(forgotten)["messages"] == 2
                assert await remembered(client, user) == 0
            else:
                assert "didn't agree" in error(forgotten)
                assert await remembered(client, user) == 1


async def test_a_client_that_can_not_ask_says_that_the_user_agreed(client: Client, user: str) -> None:
    kept = await client.call_tool("store_memory", PLEASE_KEEP | {"user_id": user})
    assert workflow_id(kept)
    assert "confirm=true" in error(await client.call_tool("forget", {"everything": True, "user_id": user}))
    assert await remembered(client, user) == 1
    assert "everything" in error(
        await client.call_tool("forget", {"conversation_id": "c", "confirm": True, "user_id": user})
    )
    agreed = {"everything": True, "confirm": True, "user_id": user}
    assert content(await client.call_tool("forget", agreed))["messages"] == 1
