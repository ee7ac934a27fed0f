"""The stand-in as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """The URI of a stand-in that stores in `folder`, for as long as the context lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.atlas", "--folder", str(folder), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        uri = process.stdout.readline().strip()
        assert uri, f"the stand-in ended with {process.wait()}"
        yield uri
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
