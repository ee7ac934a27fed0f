"""The thin side of a forked `serve`: it looks where the settings say, and leaves alone what isn't its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.settings import load_settings
from mcp_server.standin import data_folder, pack, serve_by_fork, unpack


@pytest.mark.parametrize("named", ["/data", "relative/folder", "~/data", "", None])
@pytest.mark.parametrize("line", [None, "durable_context_home = '~/from the file'\n", "DEFAULT_USER_ID=ann\n", "\n"])
def test_the_data_folder_is_the_one_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, line: str | None
) -> None:
    for name in [name for name in os.environ if name.lower() == "durable_context_home"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data of applications"))
    monkeypatch.chdir(tmp_path)
    if named is not None:
        monkeypatch.setenv("DURABLE_CONTEXT_HOME", named)
    if line is not None:
        (tmp_path / ".env").write_text(line)
    found = data_folder()
    # What the settings read of the file stays in the environment.
    with monkeypatch.context() as patch:
        for name in ("DEFAULT_USER_ID", "durable_context_home"):
            patch.setenv(name, "")
            patch.delenv(name)
        assert found == str(load_settings().durable_context_home)


@pytest.mark.parametrize(
    "arguments",
    [[], ["worker"], ["serve", "--transport", "http"], ["serve", "--help"], ["serve", "--port", "1"], ["--version"]],
)
def test_other_commands_are_left_alone(arguments: list[str]) -> None:
    assert serve_by_fork(arguments) is None


def test_without_a_stack_it_is_left_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_CONTEXT_HOME", str(tmp_path))
    assert serve_by_fork(["serve"]) is None
    # What a killed fork server leaves behind.
    (tmp_path / "serve.socket").touch()
    assert serve_by_fork(["serve"]) is None


def test_a_message_is_read_as_it_was_written() -> None:
    parts = [b"", b"one", bytes(range(256)) * 300, b""]
    assert unpack(pack(parts)[8:]) == parts


def test_the_thin_side_imports_next_to_nothing() -> None:
    code = "import sys, mcp_server.__main__; print(*sorted(sys.modules))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mcp_server.standin" in imported
    assert not {"asyncio", "argparse", "json", "logging", "pathlib", "pydantic", "mcp", "temporalio"} & set(imported)
