"""The Temporal dev server as a process: what starts it, and what ends it."""

from pathlib import Path

import psutil
import pytest

from mcp_server.local.temporal import LOG_BYTES, DevServer, DevServerError, Ports, end_leftover, free_port, open_log


@pytest.fixture
def server(tmp_path: Path) -> DevServer:
    return DevServer(tmp_path / "temporal.db", tmp_path / "temporal.log")


async def test_a_leftover_server_is_ended_and_another_process_is_not(server: DevServer, tmp_path: Path) -> None:
    await server.start(Ports(free_port(), free_port()))
    assert server.pid is not None

    end_leftover(server.pid, tmp_path / "other.db")
    assert psutil.pid_exists(server.pid)
    end_leftover(server.pid, tmp_path / "temporal.db")

    assert await server.wait() != 0
    end_leftover(server.pid, tmp_path / "temporal.db")


async def test_a_server_that_cannot_start_says_where_to_look(server: DevServer, tmp_path: Path) -> None:
    (tmp_path / "temporal.db").write_text("This is no database." * 100)

    with pytest.raises(DevServerError, match=r"temporal\.log"):
        await server.start(Ports(free_port(), free_port()))


def test_a_log_that_has_grown_large_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "stack.log"
    path.write_bytes(b"x" * (LOG_BYTES + 1))

    with open_log(path) as log:
        log.write(b"new")

    assert path.read_bytes() == b"new"
    assert (tmp_path / "stack.log.1").stat().st_size == LOG_BYTES + 1
