"""The file that declares other MCP servers: what can't be used is named, and no value is shown."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from activities.mcp_servers import ServersError, read_servers
from mcp_server.settings import SettingsError, load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.json"


def declare(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({"mcpServers": entries}))


def test_commands_and_addresses(file: Path) -> None:
    declare(
        file,
        files={"command": "npx", "args": ["-y", "files"], "env": {"ROOT": "/srv"}, "alwaysAllow": ["read"]},
        web={"type": "http", "url": "https://example.com/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}},
        off={"command": "x", "disabled": True},
    )

    servers = read_servers(file, {"TOKEN": "secret"})

    assert list(servers) == ["files", "web"]
    assert (servers["files"].command, servers["files"].args) == ("npx", ["-y", "files"])
    assert servers["web"].headers == {"Authorization": "Bearer secret"}


def test_variables_have_defaults(file: Path) -> None:
    declare(file, one={"command": "${PROGRAM:-python}", "args": ["${A}", "$B", "${C:-}"]})
    one = read_servers(file, {"A": "a"})["one"]
    assert (one.command, one.args) == ("python", ["a", "$B", ""])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({}, "either a command or a url"),
        ({"command": "x", "url": "http://localhost/"}, "either a command or a url"),
        ({"command": ["x"]}, "one.command"),
        ({"command": "x", "args": "y"}, "one.args"),
        ({"url": "ftp://example.com"}, "one.url"),
        ({"type": "sse", "url": "http://localhost/"}, "one.type"),
        ({"command": "x", "env": {"KEY": "${MISSING}"}}, "environment variable MISSING"),
        ("x", "one"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(file: Path, entry: Any, says: str) -> None:
    declare(file, one=entry)
    with pytest.raises(ServersError, match=says) as raised:
        read_servers(file, {})
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mcpServers": []}', "{'mcpServers': {}}"])
def test_a_file_of_another_form_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ServersError, match=r"servers\.json"):
        read_servers(file)


def test_the_setting_is_named_at_the_start(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MCP_SERVERS_FILE.*can't be read"):
        load_settings(durable_context_home=tmp_path, mcp_servers_file=file)
    declare(file, one={"command": "x", "env": {"KEY": 7}})
    with pytest.raises(SettingsError, match=r"MCP_SERVERS_FILE.*one\.env\.KEY"):
        load_settings(durable_context_home=tmp_path, mcp_servers_file=file)
    declare(file, one={"command": "x"})
    assert list(load_settings(durable_context_home=tmp_path, mcp_servers_file=file).mcp_servers) == ["one"]


def test_a_worker_without_other_servers_needs_no_mcp_sdk() -> None:
    code = (
        "import sys, mcp_server.cli, mcp_server.runtime, workflows.worker, activities.mcp_servers; print(*sys.modules)"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "temporalio.worker" in imported
    assert not {"mcp", "mcp_types", "starlette"} & set(imported)
