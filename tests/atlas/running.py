"""Running the stand-in for the length of a test, or of a run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def stand_in(folder: Path, *options: str) -> Iterator[str]:
    """A stand-in for Atlas in a process of its own, and its connection string."""
    command = [sys.executable, "-m", "tests.atlas", "--folder", str(folder), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            uri = process.stdout.readline().strip()
            assert uri, "the stand-in for Atlas didn't start"
            yield uri
        finally:
            process.terminate()
            process.communicate()
