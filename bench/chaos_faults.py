"""The faults of `bench.chaos`: what is broken, when and for how long, drawn from the seed; and how it is mended.

Two tracks run beside each other, so that processes are also killed while something else is amiss: one kills and stops
processes, the other one spoils what they work with.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import apsw

from bench.chaos_stage import ALONE, ROLES, Stage
from tests.faults.wire import Moment

WORKERS = ("worker-1", "worker-2", "stdio-1")
SERVERS = ("http", "stdio-1", "stdio-2")
SKEWS = (-7200.0, -600.0, -20.0, 20.0, 600.0, 10_800.0)
"""How many seconds a clock is set ahead. That of Temporal itself stays right: every step is dated by it."""

_COMMANDS = ("find", "aggregate", "update", "insert", "commitTransaction")


@dataclass(frozen=True)
class Fault:
    """One fault as it is drawn.

    Attributes:
        kind: Its name in the table.
        rest: Seconds until it begins.
        seconds: How long it lasts.
        place: Which of several it hits, as a share of them.
        other: Another such choice.
    """

    kind: str
    rest: float
    seconds: float
    place: float
    other: float

    def among(self, names: tuple[str, ...]) -> str:
        """The one that it hits."""
        return names[int(self.place * len(names))]


Work = Callable[[Stage, Fault], Awaitable[str]]
"""Does a fault and mends it; answers what it hit, or nothing where there was nothing to hit."""


# What kills


async def _kill(stage: Stage, roles: tuple[str, ...], how: signal.Signals, seconds: float) -> str:
    """Kill processes at once; those that don't come back by themselves are started after a while."""
    hit = [role for role in roles if how == signal.SIGTERM or stage.send(role, how)]
    await asyncio.sleep(seconds)
    for role in roles:
        if role in stage.processes:
            # One that was asked to end may take its time.
            await stage.processes[role].end(how)
            await stage.processes[role].start()
    return ", ".join(hit)


async def kill_worker(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, (fault.among(WORKERS[:2]),), signal.SIGKILL, fault.seconds / 2)


async def kill_every_worker(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, WORKERS, signal.SIGKILL, fault.seconds / 2)


async def restart_worker(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, (fault.among(WORKERS[:2]),), signal.SIGTERM, 0)


async def kill_server(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, (fault.among(SERVERS),), signal.SIGKILL, fault.seconds / 3)


async def kill_temporal(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, ("temporal",), signal.SIGKILL, fault.seconds / 2)


async def kill_supervisor(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, ("supervisor",), signal.SIGKILL, fault.seconds / 2)


async def kill_everything(stage: Stage, fault: Fault) -> str:
    return await _kill(stage, ("supervisor", "temporal", *ROLES), signal.SIGKILL, fault.seconds / 3)


async def stop_process(stage: Stage, fault: Fault) -> str:
    """A process stands still, and then goes on as if nothing had been."""
    role = fault.among((*ALONE, "temporal"))
    pid = stage.pid_of(role)
    if pid is None:
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds * 2)
        finally:
            os.kill(pid, signal.SIGCONT)
    return role


# What spoils


async def throttle_bedrock(stage: Stage, fault: Fault) -> str:
    return await _in_mood(stage, fault, "throttling")


async def fail_bedrock(stage: Stage, fault: Fault) -> str:
    return await _in_mood(stage, fault, "failing")


async def slow_bedrock(stage: Stage, fault: Fault) -> str:
    return await _in_mood(stage, fault, "slow")


async def silence_bedrock(stage: Stage, fault: Fault) -> str:
    return await _in_mood(stage, fault, "silent")


async def _in_mood(stage: Stage, fault: Fault, mood: str) -> str:
    stage.bedrock.mood = mood  # type: ignore[assignment]
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        stage.bedrock.mood = "well"
    return "Bedrock"


async def lock_store(stage: Stage, fault: Fault) -> str:
    """Another process takes the store's write lock, longer than anybody waits for it."""
    if not (stage.home / "store.db").exists():
        return ""
    lock = apsw.Connection(str(stage.home / "store.db"))
    try:
        lock.set_busy_timeout(2000)
        await asyncio.to_thread(lock.execute, "begin immediate")
        await asyncio.sleep(fault.seconds)
    except apsw.Error:
        # The disk may be full.
        return ""
    finally:
        lock.close()
    return "store.db"


async def lose_store(stage: Stage, fault: Fault) -> str:
    """No connection to MongoDB, and those that there are break."""
    assert stage.wire is not None
    await stage.wire.down()
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        await stage.wire.up()
    return "MongoDB"


async def slow_store(stage: Stage, fault: Fault) -> str:
    """Commands of a kind, or their answers, are held up."""
    assert stage.wire is not None
    command, moment = fault.among(_COMMANDS), _moment(fault)
    trap = stage.wire.hold(command, moment, 1000)
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        trap.open()
    return f"{command}, {moment}"


async def cut_store(stage: Stage, fault: Fault) -> str:
    """Connections break at commands of a kind, before the server has them or after it has done them."""
    assert stage.wire is not None
    command, moment = fault.among(_COMMANDS), _moment(fault)
    trap = stage.wire.cut(command, moment, 1 + int(fault.other * 8))
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        trap.open()
    return f"{command}, {moment}" if trap.caught else ""


def _moment(fault: Fault) -> Moment:
    return "asked" if fault.other < 0.5 else "done"


async def fill_disk(stage: Stage, fault: Fault) -> str:
    """The disk of the data folder has no byte left."""
    filler = stage.home / "filler"
    try:
        with filler.open("wb") as file:
            free = os.statvfs(stage.home)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        await asyncio.sleep(fault.seconds)
    finally:
        filler.unlink()
    return "the data folder's disk"


async def skew_clock(stage: Stage, fault: Fault) -> str:
    """A process's clock is set wrong while it runs, and right again."""
    role, seconds = fault.among(ALONE), SKEWS[int(fault.other * len(SKEWS))]
    stage.clocks.set(role, seconds)
    try:
        await asyncio.sleep(fault.seconds * 1.5)
    finally:
        stage.clocks.set(role, 0)
    return f"{role} by {seconds:+.0f} s"


KILLING: dict[str, tuple[Work, int]] = {
    "worker killed": (kill_worker, 5),
    "every worker killed": (kill_every_worker, 2),
    "worker restarted": (restart_worker, 2),
    "server killed": (kill_server, 5),
    "Temporal killed": (kill_temporal, 3),
    "supervisor killed": (kill_supervisor, 3),
    "everything killed": (kill_everything, 1),
    "process stopped for a while": (stop_process, 3),
}
SPOILING: dict[str, tuple[Work, int]] = {
    "Bedrock throttling": (throttle_bedrock, 3),
    "Bedrock failing": (fail_bedrock, 3),
    "Bedrock slow": (slow_bedrock, 2),
    "Bedrock silent": (silence_bedrock, 1),
    "store locked": (lock_store, 4),
    "store away": (lose_store, 3),
    "store slow": (slow_store, 3),
    "connection to the store cut": (cut_store, 4),
    "disk full": (fill_disk, 3),
    "clock skewed": (skew_clock, 4),
}


def left_out(stage: Stage) -> dict[str, str]:
    """The faults that can't be done here, and why."""
    missing: dict[str, str] = {}
    if stage.store == "embedded":
        missing |= dict.fromkeys(("store away", "store slow", "connection to the store cut"), "needs a store elsewhere")
    else:
        missing["store locked"] = "needs the embedded store"
    if stage.disk is not None:
        missing["disk full"] = stage.disk
    if stage.clocks.missing is not None:
        missing["clock skewed"] = stage.clocks.missing
    return missing


def draw(chances: random.Random, kinds: dict[str, tuple[Work, int]], rest: float) -> Fault:
    """The next fault of a track.

    Args:
        rest: The mean of the seconds between two.
    """
    [kind] = chances.choices(list(kinds), [weight for _, weight in kinds.values()])
    return Fault(kind, chances.uniform(0.3, 1.7) * rest, chances.uniform(1, 5), chances.random(), chances.random())


class Faults:
    """Both tracks.

    Attributes:
        counts: How often each kind was done.
    """

    def __init__(self, stage: Stage, seed: int, told: Callable[[str], None]) -> None:
        self._stage = stage
        self._seed = seed
        self._told = told
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Do one after the other until cancelled; what is amiss then is mended."""
        tracks = [
            asyncio.create_task(self._follow(*track)) for track in (("kill", KILLING, 7.0), ("spoil", SPOILING, 3.0))
        ]
        try:
            await asyncio.gather(*tracks)
        finally:
            for track in tracks:
                track.cancel()
            await asyncio.gather(*tracks, return_exceptions=True)
            await self._mend()

    async def _follow(self, name: str, kinds: dict[str, tuple[Work, int]], rest: float) -> None:
        missing = left_out(self._stage)
        possible = {kind: work for kind, work in kinds.items() if kind not in missing}
        chances = random.Random(f"{self._seed} {name} {self._stage.store}")
        while True:
            fault = draw(chances, possible, rest)
            await asyncio.sleep(fault.rest)
            self._told(f"{fault.kind} begins, for {fault.seconds:.1f} s")
            # Counted as it begins: the end of the run may cut it short.
            if hit := await possible[fault.kind][0](self._stage, fault):
                self.counts[fault.kind] += 1
                self._told(f"{fault.kind}: {hit}")

    async def _mend(self) -> None:
        """Have every process live and run that is to."""
        for role in ALONE:
            self._stage.clocks.set(role, 0)
            self._stage.send(role, signal.SIGCONT)
        self._stage.send("temporal", signal.SIGCONT)
        for process in self._stage.processes.values():
            await process.start()
