"""Reading in processes of their own: what goes wrong there takes nothing with it."""

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from activities.reading import Reader
from tests import documents
from tests.conftest import REPOSITORY
from tests.contract.records import fails


def readers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        # One of another test may be ending.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "to_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


def alone(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own.

    The loop that tests share has another root task for each, with which AnyIO ends its processes.
    """

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    del run.__wrapped__
    return run


@alone
async def test_documents_are_read_in_another_process() -> None:
    reader = Reader(200, 20)
    found = await asyncio.gather(*(reader.read(maker(), suffix) for suffix, maker in documents.MAKERS.items()))
    assert all(document.pieces for document in found)
    assert found[0].title == documents.TITLE
    assert readers_of(os.getpid())


@alone
async def test_a_refusal_crosses_whole() -> None:
    with fails("rejected", "encrypted"):
        await Reader(200, 20).read(documents.pdf(password="x"), ".pdf")


@alone
async def test_what_takes_too_long_is_ended_and_the_next_is_read() -> None:
    reader = Reader(200, 20, seconds=0.3)
    with fails("over_limit", "0.3 seconds"):
        await reader.read(b"word " * 8_000_000, ".txt")
    patient = Reader(200, 20)
    assert (await patient.read(documents.text(), ".txt")).pieces


@alone
async def test_a_process_that_dies_takes_one_document_with_it() -> None:
    reader = Reader(200, 20)
    await reader.read(documents.text(), ".txt")
    begun = sum(child.cpu_times().user for child in readers_of(os.getpid()))
    reading = asyncio.create_task(reader.read(b"word " * 8_000_000, ".txt"))
    async with asyncio.timeout(30):
        while sum(child.cpu_times().user for child in readers_of(os.getpid())) < begun + 0.5:
            await asyncio.sleep(0.02)
    while not reading.done():
        for child in readers_of(os.getpid()):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        await asyncio.sleep(0.02)
    with fails("over_limit", "was ended"):
        await reading
    assert (await reader.read(documents.text(), ".txt")).pieces


@alone
async def test_a_document_is_read_though_its_process_is_ended_once_or_its_group_interrupted() -> None:
    reader, text = Reader(200, 20), b"word " * 400_000
    expected = await reader.read(text, ".txt")
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        [idle] = readers_of(os.getpid())
        begun = idle.cpu_times().user
        reading = asyncio.create_task(reader.read(text, ".txt"))
        async with asyncio.timeout(30):
            while idle.cpu_times().user < begun + 0.05:
                await asyncio.sleep(0.005)
        assert not reading.done()
        idle.send_signal(how)
        assert await reading == expected


@alone
async def test_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(200, 20)
    with fails("over_limit", "memory"):
        await reader._run(bytearray, 7 * 1024**3)


def test_no_process_outlives_the_one_that_reads(tmp_path: Path) -> None:
    """Killed in the middle of a document."""
    program = textwrap.dedent("""
        import asyncio
        from activities.reading import Reader

        async def main() -> None:
            reader = Reader(200, 20)
            await reader.read(b"ready", ".txt")
            print("ready", flush=True)
            await reader.read(b"word " * 20_000_000, ".txt")

        if __name__ == "__main__":
            asyncio.run(main())
    """)
    script = tmp_path / "reads.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    children = readers_of(parent.pid)
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs(children, timeout=30)[1] == []
