"""What durability costs: each tool over a real MCP client, beside the same work without it, and beside the usual way.

One embedded stack, one run; the sides take turns, a block of calls at a time:

- stdio, http: a call of the tool by an MCP client, over both transports
- direct: the same work as plain function calls
- floor: an empty workflow, started eagerly on the same Temporal server
- textbook: the same workflow with regular activities and no eager start, on a dev server with default settings, called
  by Temporal's client without MCP
- bare: a tool of a bare `MCPServer` that returns a constant

The first calls of each block aren't counted. A dev server with default settings lets the first few tasks after a pause
through without a wait; how long the first call of a block takes on it is printed too.

Then what one question costs that three tools are asked in a turn, beside three questions; and 16 clients at once call
one HTTP server, in turn with as many callers of the floor, each of whom does the direct work too. Prints medians, 99th
percentiles, ratios and where the time goes, and fails where a figure misses its bound, naming it.

    python -m bench.latency --rounds 8
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from temporalio.client import Client as TemporalClient

from bench.phases import phases_of
from bench.textbook import (
    FLOOR_QUEUE,
    TEXTBOOK_QUEUE,
    EmptyWorkflow,
    default_dev_server,
    floor_worker,
    textbook_worker,
)
from bench.tools import CACHED, TTL_SECONDS, DirectCalls, ToolCall, question, tool_calls
from mcp_server.demo import CORPUS, embedded_environment
from mcp_server.local.stack import leased
from mcp_server.local.temporal import LOOPBACK, free_port
from mcp_server.runtime import build_parts, connect_embedded
from mcp_server.settings import Settings
from mcp_server.tasks import WORKFLOW_ID

USER = "bench"
CLIENTS = 16
BLOCK = 16
"""Calls of a side that follow each other and are counted."""
LEAD = 4
"""How many go before them."""
TEXTBOOK_LEAD = 12
"""The same of the textbook way: a dev server with default settings lets about 20 tasks after a pause through without a
wait, of which a call has three to nine."""
MESSAGES = 60
SIDES = ("stdio", "http", "direct", "floor", "textbook", "bare")

BARE = """
from mcp.server import MCPServer

server = MCPServer("bare")

@server.tool()
def constant() -> str:
    return "constant"

server.run()
"""

Call = Callable[[], Awaitable[object]]


def milliseconds(values: list[float], share: float) -> float:
    """The value, in ms, below which `share` of `values` (seconds) are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


@dataclass
class Times:
    """Seconds of each call, and of stdio calls the parts that their histories tell of."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    calls: list[tuple[float, float, str]] = field(default_factory=list)

    def p50(self, side: str) -> float:
        return milliseconds(self.seconds[side], 0.5)

    def p99(self, side: str) -> float:
        return milliseconds(self.seconds[side], 0.99)


class Verdict:
    """Which figures were to be reached, and which were missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def check(self, name: str, value: float, bound: float, *, at_least: bool = False) -> None:
        """Print a figure beside its bound."""
        fine = value >= bound if at_least else value <= bound
        limit = f"{'at least' if at_least else 'at most'} {bound:.2f}"
        print(f"  {'ok    ' if fine else 'MISSED'} {name}: {value:.2f} ({limit})")
        if not fine:
            self.missed.append(name)


def server_of(arguments: list[str], environment: dict[str, str], folder: Path) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=arguments, env=environment, cwd=folder)


@contextlib.asynccontextmanager
async def http_server(environment: dict[str, str], folder: Path) -> AsyncIterator[str]:
    """The address of a `durable-context serve` over HTTP."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_server", "serve", "--transport", "http", "--port", str(port)),
        env=environment,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(LOOPBACK, port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield f"http://{LOOPBACK}:{port}/mcp"
    finally:
        process.terminate()
        await process.wait()


async def call(client: Client, tool: str, arguments: dict[str, Any]) -> str:
    """Call a tool; answer the id of its workflow.

    Raises:
        RuntimeError: where the tool fails.
    """
    result = await client.call_tool(tool, arguments)
    if result.is_error or "task_id" in (result.structured_content or {}):
        raise RuntimeError(f"{tool} failed: {result.content}")
    return str((result.meta or {}).get(WORKFLOW_ID))


class Bench:
    """Everything that is called, and what was measured."""

    def __init__(
        self,
        clients: dict[str, Client],
        bare: Client,
        temporal: TemporalClient,
        textbook: TemporalClient,
        direct: DirectCalls,
    ) -> None:
        self._clients = clients
        self._bare = bare
        self._temporal = temporal
        self._textbook = textbook
        self.tools = tool_calls(direct)
        self.times = {tool.name: Times() for tool in self.tools}
        self._number = MESSAGES

    async def fill(self) -> None:
        """Documents, messages and a cached answer for the calls to find."""
        client = self._clients["http"]
        for path in sorted(CORPUS.iterdir()):
            if path.suffix == ".md":
                arguments = {"text": path.read_text(), "name": path.name, "user_id": USER}
                await call(client, "ingest_documents", arguments)
        for number in range(MESSAGES):
            arguments = {"conversation_id": f"c{number % 6}", "text": question(number), "message_type": "human"}
            await call(client, "store_memory", arguments | {"user_id": USER})
        kept = {"query": CACHED, "response": "42", "ttl_seconds": TTL_SECONDS, "user_id": USER}
        await call(client, "semantic_cache_response", kept)

    def next_number(self) -> int:
        """That of a call that asks what none before it has asked."""
        self._number += 1
        return self._number

    async def floor(self) -> object:
        return await self._temporal.execute_workflow(
            EmptyWorkflow.run, 0, id=uuid.uuid4().hex, task_queue=FLOOR_QUEUE, request_eager_start=True
        )

    async def call(self, tool: ToolCall, side: str, number: int) -> str:
        return await call(self._clients[side], tool.tool, tool.arguments(number) | {"user_id": USER})

    async def _side(self, tool: ToolCall, side: str, number: int) -> object:
        match side:
            case "stdio" | "http":
                return await self.call(tool, side, number)
            case "direct":
                return await tool.direct(tool.params(USER, tool.arguments(number)))
            case "floor":
                return await self.floor()
            case "textbook":
                params = tool.params(USER, tool.arguments(number))
                return await self._textbook.execute_workflow(
                    tool.workflow.run, params, id=uuid.uuid4().hex, task_queue=TEXTBOOK_QUEUE
                )
            case _:
                return await self._bare.call_tool("constant", {})

    async def take_turns(self, rounds: int) -> None:
        """Time every side of every tool, a block of calls of each in a round, in an order that chance gives.

        Sides of one tool follow each other, so that a machine that gets slower does so for all of them. The textbook
        way has a place in every other round: it takes longest, and its median, set by a server's limits, varies least.
        """
        chance = random.Random(1)
        for turn in range(-1, rounds):
            tools = chance.sample(self.tools, len(self.tools))
            turns = [(tool, side) for tool in tools for side in chance.sample(SIDES, len(SIDES))]
            for tool, side in turns:
                if side == "textbook" and turn > 0 and turn % 2:
                    continue
                lead = TEXTBOOK_LEAD if side == "textbook" else LEAD
                for index in range(lead + BLOCK if turn >= 0 else LEAD):
                    took = await self._time(tool, side, counts=turn >= 0 and index >= lead)
                    if turn >= 0 and side == "textbook" and index == 0:
                        self.times[tool.name].seconds["first"].append(took)

    async def _time(self, tool: ToolCall, side: str, counts: bool) -> float:
        number = self.next_number()
        begun, start = time.time(), time.perf_counter()
        answer = await self._side(tool, side, number)
        took = time.perf_counter() - start
        if counts:
            times = self.times[tool.name]
            times.seconds[side].append(took)
            if side == "stdio":
                times.calls.append((begun, begun + took, str(answer)))
        return took

    def print_tools(self) -> None:
        """Medians and 99th percentiles of each side."""
        print(f"\nmilliseconds, p50 / p99\n\n{'':40}" + "".join(f"{side:>16}" for side in (*SIDES, "textbook, first")))
        for tool in self.tools:
            times = self.times[tool.name]
            cells = (f"{times.p50(side):.1f} / {times.p99(side):.1f}" for side in SIDES)
            print(f"{tool.name:40}" + "".join(f"{cell:>16}" for cell in cells) + f"{times.p50('first'):>16.1f}")

    def check_tools(self, verdict: Verdict) -> None:
        """Print ratios, and hold those that have bounds to them."""
        print("\nratios of medians, over stdio and over HTTP")
        for tool in self.tools:
            times = self.times[tool.name]
            for side in ("stdio", "http"):
                ours, floor = times.p50(side), times.p50("floor")
                name = f"{tool.name}, {side}"
                faster = times.p50("textbook") / ours
                if tool.bounds == "identical":
                    verdict.check(f"{name}: to the floor", ours / floor, 1.5)
                    verdict.check(f"{name}: textbook to it", faster, 4, at_least=True)
                elif tool.bounds == "embedding":
                    verdict.check(
                        f"{name}: to the floor and 1.5 of direct", ours / (floor + 1.5 * times.p50("direct")), 1
                    )
                    verdict.check(f"{name}: textbook to it", faster, 3, at_least=True)
                else:
                    print(f"         {name}: {ours / floor:.2f} of the floor; textbook to it {faster:.2f}")

    async def print_phases(self) -> None:
        """Where the time of a call over stdio goes."""
        print("\nwhere the time goes over stdio, medians in milliseconds\n")
        for tool in self.tools:
            times = self.times[tool.name]
            parts: dict[str, list[float]] = defaultdict(list)
            for begun, ended, workflow_id in times.calls:
                for name, value in (await phases_of(self._temporal, workflow_id, begun, ended)).items():
                    parts[name].append(value)
            shown = ", ".join(f"{name} {statistics.median(values):.1f}" for name, values in parts.items())
            print(f"  {tool.name}: {times.p50('stdio'):.1f}: {shown}; of it MCP {times.p50('bare'):.1f}")


async def burst(calls: list[Call], each: int) -> tuple[float, list[float]]:
    """Calls a second, and the seconds of each, of callers that go on at once with their next call."""
    took: list[float] = []

    async def caller(one: Call) -> None:
        for _ in range(each):
            start = time.perf_counter()
            await one()
            took.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller(one) for one in calls))
    return len(took) / (time.perf_counter() - start), took


async def at_once(bench: Bench, address: str, each: int, verdict: Verdict) -> None:
    """Many clients of one HTTP server, in turn with as many callers of the floor."""
    print(f"\n{CLIENTS} clients at once over HTTP, in turn with {CLIENTS} callers of the floor")
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(address)) for _ in range(CLIENTS)]
        for tool in (tool for tool in bench.tools if tool.bounds):

            async def floor(tool: ToolCall = tool) -> object:
                await bench.floor()
                return await tool.direct(tool.params(USER, tool.arguments(bench.next_number())))

            def caller(client: Client, tool: ToolCall = tool) -> Call:
                return lambda: call(client, tool.tool, tool.arguments(bench.next_number()) | {"user_id": USER})

            callers = [caller(client) for client in clients]
            await burst(callers, 1)
            ratios, ours, spread = [], [], []
            # The ratio of one burst of short calls to another's varies by a sixth.
            for _ in range(9 if tool.bounds == "identical" else 3):
                base, _ = await burst([floor] * CLIENTS, each)
                rate, took = await burst(callers, each)
                ratios.append(rate / base)
                ours.append(rate)
                spread += took
            p50, p99 = milliseconds(spread, 0.5), milliseconds(spread, 0.99)
            print(f"  {tool.name}: {statistics.median(ours):.0f} calls/s; p50 {p50:.0f} ms, p99 {p99:.0f} ms")
            verdict.check(
                f"{tool.name}, {CLIENTS} at once: throughput to the floor's",
                statistics.median(ratios),
                0.7,
                at_least=True,
            )
            verdict.check(f"{tool.name}, {CLIENTS} at once: p99 to p50", p99 / p50, 3)


async def one_turn(bench: Bench, rounds: int) -> None:
    """What an agent asks in one turn: three tools one question, in turn with a question of its own for each."""
    turns = [tool for tool in bench.tools if tool.bounds == "embedding" and tool.tool != "store_memory"]
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for asks_one in (True, False) if turn % 2 else (False, True):
            number, start = bench.next_number(), time.perf_counter()
            for tool in turns:
                await bench.call(tool, "stdio", number if asks_one else bench.next_number())
            took[asks_one].append(time.perf_counter() - start)
    one, three = (milliseconds(took[asks_one], 0.5) for asks_one in (True, False))
    names = ", ".join(tool.tool for tool in turns)
    print(f"\n{names} in turn over stdio: one question {one:.1f} ms, three {three:.1f} ms; {one / three:.2f}")


async def measure(rounds: int) -> list[str]:
    """Run everything; answer the figures that were missed."""
    verdict = Verdict()
    async with contextlib.AsyncExitStack() as stack:
        place = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True)
            )
        )
        home = place / "home"
        environment = embedded_environment(home)
        addresses = await stack.enter_async_context(leased(home, ["temporal", "models"]))
        assert addresses.temporal is not None
        temporal = await connect_embedded(addresses.temporal)
        textbook = await stack.enter_async_context(default_dev_server(place))
        settings = Settings(durable_context_home=home)
        parts = build_parts(settings, addresses.models)
        for closing in (parts.store.close, parts.contents.close, parts.web.close):
            stack.push_async_callback(closing)
        direct = DirectCalls(settings, parts, temporal)
        await stack.enter_async_context(floor_worker(temporal))
        await stack.enter_async_context(textbook_worker(textbook, direct.activities))
        address = await stack.enter_async_context(http_server(environment, place))
        serve = server_of(["-m", "mcp_server", "serve"], environment, place)
        clients = {
            "stdio": await stack.enter_async_context(Client(stdio_client(serve))),
            "http": await stack.enter_async_context(Client(address)),
        }
        bare = await stack.enter_async_context(Client(stdio_client(server_of(["-c", BARE], environment, place))))
        bench = Bench(clients, bare, temporal, textbook, direct)
        await bench.fill()
        await bench.take_turns(rounds)
        bench.print_tools()
        await bench.print_phases()
        bench.check_tools(verdict)
        await one_turn(bench, 4 * rounds)
        await at_once(bench, address, 8, verdict)
    return verdict.missed


def main() -> int:
    """Run the benchmark; 0 where every figure reaches its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=8, help=f"blocks of {BLOCK} calls of each side of each tool (default: 8)"
    )
    missed = asyncio.run(measure(parser.parse_args().rounds))
    print(f"\n{len(missed)} missed: {'; '.join(missed)}" if missed else "\nevery figure is reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
