"""What the embedded Temporal server is given of the machine."""

import os
from pathlib import Path

import pytest

from mcp_server.local import temporal


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", None), ("200000 100000", 2), ("50000 100000", 1), ("", None), (None, None)]
)
def test_a_process_may_use_as_many_processors_as_its_affinity_and_quota_say(
    quota: str | None, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(temporal, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert temporal.processors() == (most or 64)
