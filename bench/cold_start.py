"""How soon after its start a server answers `initialize`, beside a bare one-tool server started in turn with it.

Usage: python bench/cold_start.py [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

BARE = """
from mcp.server import MCPServer

server = MCPServer("bare")

@server.tool()
def ping() -> str:
    return "pong"

server.run()
"""

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
}


def seconds_to_answer(command: list[str], home: str) -> float:
    """Seconds from starting a server to its answer to `initialize`; the server is ended and waited for."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"DURABLE_CONTEXT_HOME": home},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    took = time.perf_counter() - begun
    assert answer["id"] == 1, answer
    assert "result" in answer, answer
    process.stdin.close()
    process.wait()
    return took


def main(rounds: int) -> None:
    commands = {
        "bare MCPServer": [sys.executable, "-c", BARE],
        "durable-context serve": [sys.executable, "-m", "mcp_server.cli", "serve"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        for number in range(rounds + 1):
            for name, command in commands.items():
                took = seconds_to_answer(command, home)
                # The first round warms the disk cache and isn't counted.
                if number:
                    times[name].append(took)
    print(f"{'':24}{'median s':>10}{'least s':>10}")
    for name, values in times.items():
        print(f"{name:24}{statistics.median(values):>10.3f}{min(values):>10.3f}")
    bare, ours = times.values()
    ratio = statistics.median(our / base for our, base in zip(ours, bare, strict=True))
    print(f"\nmedian ratio of pairs: {ratio:.2f} (bound: 1.5)")
    sys.exit(0 if ratio <= 1.5 else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
