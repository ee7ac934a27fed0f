"""Who computes next on the embedding model's thread."""

import threading
import time

import pytest

from mcp_server.local import bedrock
from mcp_server.local.bedrock import Turns


class Computing:
    """Turns on a thread, and the order in which what was put there was computed."""

    def __init__(self) -> None:
        self.turns, self.order = Turns(), list[str]()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.turns.run)

    def job(self, name: str) -> None:
        with self._changed:
            self.order.append(name)
            self._changed.notify()

    def short(self, name: str, *, is_wanted: bool = True) -> None:
        self.turns.put_short(lambda: self.job(name), is_wanted=is_wanted)

    def long(self, name: str, latest: float) -> None:
        self.turns.put_long(lambda: self.job(name), latest)

    def start(self) -> None:
        self._thread.start()

    def wait_for(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.order) >= len(names), 30)
        assert self.order == list(names)

    def end(self) -> None:
        self.turns.end()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_what_is_short_goes_first_and_each_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bedrock, "QUIET_SECONDS", 0.0)
    computing = Computing()
    for number in range(2):
        computing.long(f"long {number}", time.monotonic() + 600)
        computing.short(f"short {number}")
    computing.start()
    computing.wait_for("short 0", "short 1", "long 0", "long 1")
    computing.end()


def test_what_is_long_waits_for_quiet_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bedrock, "QUIET_SECONDS", 3600.0)
    computing = Computing()
    computing.start()
    now = time.monotonic()
    # Nothing short was wanted yet: nobody is there to wait for.
    computing.short("measured", is_wanted=False)
    computing.long("at once", now + 600)
    computing.wait_for("measured", "at once")
    computing.short("short")
    computing.wait_for("measured", "at once", "short")
    computing.long("impatient", now)
    computing.wait_for("measured", "at once", "short", "impatient")
    computing.long("patient", now + 600)
    computing.short("another")
    computing.wait_for("measured", "at once", "short", "impatient", "another")
    computing.end()
    assert computing.order[-1] == "another"
