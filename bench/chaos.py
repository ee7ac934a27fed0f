"""What is lost where everything breaks: many clients' calls under faults, and then whether each answer was true.

Clients over stdio and HTTP call tools for several users, while workers, servers, the Temporal server and the stack's
supervisor are killed with SIGKILL, Bedrock throttles and fails, the store is slow or away, the disk of the data folder
is full, and clocks are wrong. Then all is mended, and what every client was told is compared with the workflows and
with the store. Calls and faults are drawn from the seed; when they meet, the machine decides.

    python -m bench.chaos --minutes 10 --seed 7
"""

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos_calls import Caller, Ledger, connected
from bench.chaos_checks import (
    Findings,
    compare,
    compare_contents,
    compare_leftovers,
    records_of,
    search,
    settled,
    workflows_of,
)
from bench.chaos_faults import Faults, left_out
from bench.chaos_stage import Process, Stage, StoreName, own_disk, own_mounts, staged
from mcp_server.runtime import connect_embedded

SHARE = 0.72
"""Which part of the time calls are made in; the rest is to start, to settle and to check."""
START_SECONDS = 120.0
"""How long it may take until every client has been answered once."""
CLIENTS = (("a", "stdio-1", "auto"), ("b", "stdio-2", "legacy"), ("c", "http", "auto"), ("d", "http", "legacy"))
"""Name, server and protocol of each."""


@dataclass
class Report:
    """What one run came to."""

    store: StoreName
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def print(self) -> None:
        """A table of counts."""
        outcomes = ("done", "goes on", "failed", "no answer")
        print(f"\n{self.store:<34}" + "".join(f"{outcome:>11}" for outcome in outcomes))
        for tool in sorted({tool for tool, _ in self.calls}):
            print(f"{tool:<34}" + "".join(f"{self.calls[tool, outcome]:>11}" for outcome in outcomes))
        totals = [sum(count for (_, said), count in self.calls.items() if said == outcome) for outcome in outcomes]
        print(f"{f'{sum(totals)} calls':<34}" + "".join(f"{total:>11}" for total in totals))
        print()
        for kind, count in sorted(self.faults.items()):
            print(f"{kind:<34}{count:>11}")
        for kind, why in self.left_out.items():
            print(f"{kind:<34}{'left out':>11}: {why}")
        print(f"{'faults':<34}{sum(self.faults.values()):>11}")
        print()
        for name, count in self.wrong.items():
            print(f"{name:<34}{count:>11}")
        for note in self.notes:
            print(note)
        for detail in self.details:
            print(f"  {detail}", file=sys.stderr)


def play(store: StoreName, options: argparse.Namespace, no_mounts: str | None) -> Report:
    """One run over one store, on a data folder and a disk of its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as place:
        home = Path(place) / "home"
        home.mkdir()
        with own_disk(home, no_mounts) as disk:
            report = asyncio.run(_play(store, options, Path(place), home, disk))
        if sum(report.wrong.values()):
            kept = Path(tempfile.mkdtemp(prefix=f"chaos-{store}-{options.seed}-"))
            shutil.copytree(Path(place) / "logs", kept, dirs_exist_ok=True)
            report.notes.append(f"what servers and workers said is kept in {kept}")
        return report


async def _play(store: StoreName, options: argparse.Namespace, folder: Path, home: Path, disk: str | None) -> Report:
    begun = time.monotonic()

    def tell(what: str) -> None:
        if options.verbose:
            print(f"{time.monotonic() - begun:7.1f} s  {what}", file=sys.stderr, flush=True)

    report, ledger, findings = Report(store), Ledger(), Findings()
    async with staged(store, folder, home, disk) as stage:
        for process in stage.processes.values():
            await process.start()
        report.left_out = left_out(stage)
        report.faults = await break_things(stage, ledger, options, tell)
        assert stage.addresses.temporal is not None
        temporal = await connect_embedded(stage.addresses.temporal)
        took = await settled(temporal, findings, tell)
        tell(f"settled after {took:.1f} s")
        workflows = await workflows_of(temporal)
        tell(f"{len(workflows)} workflows were read")
        records = records_of(stage)
        possible = compare(ledger, workflows, records, findings)
        kept = compare_contents(records, ledger, workflows, findings)
        async with connected(stage, "stdio-1", "auto") as client:
            looked = await search(client, ledger, possible, options.seed, findings)
        await end(list(stage.processes.values()), findings.left)
    await compare_leftovers(stage, findings)

    report.calls = Counter((call.tool, call.outcome) for call in ledger.calls)
    report.wrong = findings.counts
    for name, found in vars(findings).items():
        report.details += [f"{name}: {one}" for one in found]
    states = Counter(one.status for one in workflows)
    report.notes = [
        f"{len(workflows)} workflows: {', '.join(f'{count} {status.lower()}' for status, count in states.items())}",
        f"{stage.bedrock.refused} requests refused by Bedrock; {looked} things looked for by the tools",
        f"settled in {took:.0f} s; {time.monotonic() - begun:.0f} s in all",
    ]
    if kept:
        report.notes.append(f"{kept} texts are kept whose ingestion a killed server never began; they go after 8 days")
    return report


async def break_things(
    stage: Stage, ledger: Ledger, options: argparse.Namespace, tell: Callable[[str], None]
) -> Counter[str]:
    """Have clients call while things break, until the time is over; then mend all. Answers what was done."""
    over = asyncio.Event()
    most = options.calls and -(-options.calls // len(CLIENTS))
    callers = [Caller(stage, ledger, name, role, mode, options.seed) for name, role, mode in CLIENTS]
    calling = asyncio.ensure_future(asyncio.gather(*(caller.run(over, most) for caller in callers)))
    async with asyncio.timeout(START_SECONDS):
        while len({call.client for call in ledger.calls if call.outcome == "done"}) < len(CLIENTS):
            await asyncio.sleep(0.1)
    tell("every client has been answered once")
    faults = Faults(stage, options.seed, tell)
    breaking = asyncio.create_task(faults.run())
    seconds = options.minutes * 60 * SHARE / (2 if options.store == "both" else 1)
    both: list[asyncio.Future[object]] = [breaking, calling]  # type: ignore[list-item]
    await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    tell(f"{len(ledger.calls)} calls were made; all is being mended")
    over.set()
    if not breaking.done():
        breaking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await breaking
    await calling
    return faults.counts


async def end(processes: list[Process], left: list[str]) -> None:
    """End the servers and workers as an operator does; note those that don't end well."""
    for process, status in zip(
        processes, await asyncio.gather(*(one.end(signal.SIGTERM) for one in processes)), strict=True
    ):
        if status != 0:
            left.append(f"{process.role} ended with status {status}")


def main() -> int:
    """Run it; 0 where nothing is lost, doubled, untrue, stuck or left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of calls and faults (default: a new one, which is printed)")
    parser.add_argument("--minutes", type=float, default=10, help="how long it may take in all (default: 10)")
    parser.add_argument("--calls", type=int, help="make this many at most")
    parser.add_argument("--store", choices=("embedded", "atlas", "both"), default="both", help="default: both in turn")
    parser.add_argument("--verbose", action="store_true", help="tell of each fault as it happens")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(100_000)
    print(f"seed {options.seed}", flush=True)
    # Whoever ends this ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    no_mounts = own_mounts()
    stores: list[StoreName] = ["embedded", "atlas"] if options.store == "both" else [options.store]
    wrong = 0
    for store in stores:
        report = play(store, options, no_mounts)
        report.print()
        wrong += sum(report.wrong.values())
    print(f"\n{'nothing is wrong' if not wrong else f'{wrong} things are wrong'} (seed {options.seed})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
