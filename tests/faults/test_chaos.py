"""A short run of `bench.chaos` on either store: everything breaks at once, and every answer is true."""

import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, environment

SEED = "7"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("store", ["embedded", "atlas"])
def test_nothing_is_lost_doubled_or_untrue_where_everything_breaks(
    store: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = [sys.executable, "-m", "bench.chaos", "--seed", SEED, "--minutes", "0.4", "--calls", "400", "--store", store]
    # It looks for what is left over itself.
    ran = subprocess.run(
        line, cwd=REPOSITORY, env=environment(tmp_path_factory.mktemp("unused")), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = {name: int(count) for name, count in re.findall(r"^(\S.*?) {2,}(\d+)$", ran.stdout, re.MULTILINE)}
    assert counts["faults"] > 0
    assert counts["lost"] == counts["doubled"] == counts["untrue"] == counts["stuck"] == counts["left over"] == 0
    calls = re.search(r"^(\d+) calls +(\d+)", ran.stdout, re.MULTILINE)
    assert calls
    assert int(calls[2]) > 0, "no call was done"
