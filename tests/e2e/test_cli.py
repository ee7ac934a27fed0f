"""The other commands, as a person runs them."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
from mcp import Client

from activities.sources import list_files
from mcp_server.auth import hash_token
from mcp_server.ingest import requests_for
from mcp_server.local.stack import Addresses
from mcp_server.settings import SettingsError
from tests.conftest import CORPUS, command, content, environment, serve
from tests.e2e.test_http import run

QUESTIONS = {
    "How many seconds slow was H4 when HMS Deptford reached Jamaica?": "john-harrison-and-the-marine-chronometer.md",
    "What percentage of the Moon's tide-raising force is the Sun's?": "why-the-tide-rises-twice.md",
    "How do insects with no leader settle an argument about where to live?": "how-honeybees-choose-a-home.md",
    "Which naval clerk put his cheese in the ground to save it?": "the-great-fire-of-london.md",
    "What cavity volume do honeybee scouts prefer in nest boxes?": "how-honeybees-choose-a-home.md",
    "How can software avoid billing a customer twice when a server dies before saving the reply?": (
        "why-long-running-programs-keep-a-history.md"
    ),
}


@pytest.mark.parametrize(
    "name", ["", "serve", "worker", "ingest", "documents", "chat", "reembed", "doctor", "demo", "token"]
)
async def test_every_command_has_help_with_an_example(home: Path, name: str) -> None:
    status, output = await run(home, *([name] if name else []), "--help")

    assert status == 0
    assert "example:" in output


async def test_ingest_makes_documents_searchable_and_stores_nothing_twice(
    client: Client, home: Path, user: str
) -> None:
    status, first = await run(home, "ingest", str(CORPUS), "--user-id", user)
    assert status == 0, first
    stored = re.search(r"15 documents stored in (\d+) chunks, 0 unchanged, 0 failed", first)
    assert stored, first

    status, second = await run(home, "ingest", str(CORPUS), "--user-id", user)
    assert status == 0, second
    assert "0 documents stored in 0 chunks, 15 unchanged, 0 failed" in second

    everything = content(
        await client.call_tool("hybrid_search", {"query": "the", "user_id": user, "limit": 100, "weight": 0})
    )["results"]
    assert len({hit["id"] for hit in everything}) == len(everything)
    for question, source in QUESTIONS.items():
        hits = content(await client.call_tool("hybrid_search", {"query": question, "user_id": user}))["results"]
        assert Path(hits[0]["metadata"]["source"]).name == source, question
        assert hits[0]["metadata"]["title"]
        assert hits[0]["score"] <= 1
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
        only = {"query": question, "user_id": user, "filter": {"title": {"$ne": hits[0]["metadata"]["title"]}}}
        others = content(await client.call_tool("hybrid_search", only))["results"]
        assert source not in {Path(hit["metadata"]["source"]).name for hit in others}


async def test_ingest_replaces_a_changed_file(client: Client, home: Path, user: str, tmp_path: Path) -> None:
    note = tmp_path / "note.md"
    note.write_text("# Boiler\n\nThe boiler was serviced by Okafor.\n")
    await run(home, "ingest", str(tmp_path), "--user-id", user, "--collection", "house")
    note.write_text("# Boiler\n\nThe boiler was serviced by Lindqvist.\n")
    status, output = await run(home, "ingest", str(tmp_path), "--user-id", user, "--collection", "house")
    assert status == 0
    assert "1 documents stored" in output

    query = {"query": "Who serviced the boiler?", "user_id": user, "collection": "house"}
    [hit] = content(await client.call_tool("hybrid_search", query))["results"]
    assert "Lindqvist" in hit["text"]
    assert hit["metadata"]["title"] == "Boiler"


async def test_one_bad_file_does_not_stop_the_others(home: Path, stack: Addresses, user: str, tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("# Good\n\nRead me.\n")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("# Named in Latin-1\n")
    other = tmp_path / "picture.png"
    other.write_bytes(b"\x89PNG")

    status, output = await run(home, "ingest", str(tmp_path), str(other), "--user-id", user)

    assert status == 1
    assert "1 documents stored in 1 chunks, 0 unchanged, 1 skipped, 3 failed" in output
    assert "name isn't valid Unicode" in output
    assert "empty.txt: There is no text in it" in output
    assert "binary.txt: It holds NUL bytes" in output
    assert "picture.png: It is damaged, or no image" in output


async def test_a_file_has_one_name_however_it_is_reached(
    home: Path, stack: Addresses, user: str, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nOnce only.\n")
    (tmp_path / "link").symlink_to(folder)

    for path in (folder / "a.md", folder / ".." / "notes" / "a.md", tmp_path / "link" / "a.md"):
        status, output = await run(home, "ingest", str(path), "--user-id", user)
        assert status == 0, output
    assert "1 unchanged" in output


async def test_an_interrupted_ingest_is_begun_anew(client: Client, home: Path, user: str, tmp_path: Path) -> None:
    first, last = tmp_path / "a.md", tmp_path / "b.md"
    first.write_text("# A\n\nThe gate code is quince.\n")
    last.write_text("# B\n\n" + "A long tale of many words, told slowly to the end. " * 6000)
    ingest = await asyncio.create_subprocess_exec(
        *command("ingest", str(tmp_path), "--user-id", user), env=environment(home)
    )
    query = {"query": "gate code", "user_id": user}
    async with asyncio.timeout(60):
        while not content(await client.call_tool("hybrid_search", query))["results"]:
            await asyncio.sleep(0.05)
    ingest.send_signal(signal.SIGINT)
    assert await ingest.wait() == 130
    first.write_text("# A\n\nThe gate code is medlar.\n")
    last.write_text("# B\n\nShort now.\n")

    status, output = await run(home, "ingest", str(tmp_path), "--user-id", user)

    assert status == 0, output
    assert "medlar" in content(await client.call_tool("hybrid_search", query))["results"][0]["text"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("ingest", "x.md", "--user-id", "a\nb"),
        ("ingest", "x.md", "--user-id", "a" * 257),
        ("ingest", "x.md", "--collection", ""),
        ("token", ""),
        ("token", "a,b"),
        ("serve", "--port", "abc"),
        ("serve", "--port", "65536"),
    ],
)
async def test_a_bad_argument_is_named(home: Path, arguments: tuple[str, ...]) -> None:
    status, output = await run(home, *arguments)

    assert status == 2
    assert "error: argument" in output
    assert "_port" not in output


def test_each_file_is_found_once_under_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    real, blob = folder / "sub" / "real.md", folder / "blob123"
    real.write_text("x")
    blob.write_text("x")
    (folder / "link.md").symlink_to(real)
    (folder / "named.md").symlink_to(blob)
    (folder / ".hidden.md").write_text("x")

    def found(path: Path) -> set[str]:
        sources = list(list_files(path, [str(tmp_path)], [], []))
        assert not any(source.error for source in sources)
        return {source.source for source in sources}

    assert found(folder) == {str(real), str(folder / "named.md")}
    assert found(folder / "link.md") == found(real) == {str(real)}
    assert found(folder / "named.md") == {str(folder / "named.md")}


@pytest.mark.parametrize("name", ["a" * 300, "loop", "~nobody-of-that-name/x"])
def test_a_path_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    with pytest.raises(SettingsError, match="SOURCE"):
        requests_for([name if name.startswith("~") else str(tmp_path / name)])


@pytest.mark.parametrize("target", ["missing", "."])
async def test_nothing_to_ingest_is_said(home: Path, tmp_path: Path, target: str) -> None:
    status, output = await run(home, "ingest", str(tmp_path / target))

    assert status == 2
    assert "Traceback" not in output
    assert ("doesn't exist" in output) == (target == "missing")


async def test_doctor_reports_each_piece(home: Path, stack: Addresses) -> None:
    status, output = await run(home, "doctor", COLUMNS="200")

    assert status == 0, output
    assert "Temporal server" in output
    assert "local.multilingual-e5-small" in output
    assert "local.extractive" in output
    assert "TAVILY_API_KEY" in output
    assert output.count("embedded") >= 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("TEMPORAL_ADDRESS", "127.0.0.1:1"),
        ("EMBEDDING_MODEL_ID", "anthropic.claude"),
        ("EMBEDDING_DIMENSIONS", "17"),
        ("TEMPORAL_ADDRESS", "not an address"),
    ],
)
async def test_doctor_says_what_to_fix(home: Path, stack: Addresses, setting: str, value: str) -> None:
    status, output = await run(home, "doctor", COLUMNS="200", **{setting: value})

    assert status == 1, output
    assert setting in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("CACHE_TTL_SECONDS", "soon"),
        ("CALL_TIMEOUT_SECONDS", "-1"),
        ("MONGODB_URI", "mongodb://user:hun?ter2@example.com"),
        ("MONGODB_URI", "example.com:hunter2"),
        ("DB_NAME", "my.database"),
        ("DOCUMENTS_COLLECTION", "$cmd"),
        ("CACHE_COLLECTION", "documents_sources"),
        ("CACHE_COLLECTION", "conversations_summaries"),
        ("EXTERNAL_COLLECTIONS", '[{"name": "hunter2"}]'),
        ("EXTERNAL_COLLECTIONS", "travel_agency.hunter2"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
async def test_a_bad_setting_is_named_without_its_value(home: Path, setting: str, value: str) -> None:
    status, output = await run(home, "doctor", **{setting: value})

    assert status == 2
    assert setting in output
    assert value not in output
    assert "Traceback" not in output


async def test_doctor_reports_each_piece_where_the_data_folder_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    status, output = await run(file, "doctor", COLUMNS="200")

    assert status == 1
    assert "Traceback" not in output
    for piece in ("workflow engine", "store", "embedding model", "text model", "web search"):
        assert piece in output


async def test_what_is_written_is_its_owner_s_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serve(home) as client:
        content(await client.call_tool("check_semantic_cache", {"query": "x"}))
    for path in (home / "temporal.db", home / "store.db", home / "stack.json", home / "logs", *home.glob("logs/*")):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_token_shows_a_token_and_keeps_only_its_hash(home: Path) -> None:
    status, output = await run(home, "token", "ada")

    assert status == 0
    token = re.search(r"token .*: (\S+)", output)
    entry = re.search(r"entry .*: (\S+)", output)
    assert token
    assert entry
    assert entry[1] == f"ada:{hash_token(token[1])}"


def test_env_example_names_every_setting() -> None:
    from mcp_server.settings import Settings

    text = (CORPUS.parents[1] / ".env.example").read_text()
    named = set(re.findall(r"^# ([A-Z_]+)=", text, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields}


def test_readme_names_every_setting() -> None:
    from mcp_server.settings import Settings

    text = (CORPUS.parents[1] / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name.upper()}`" in text
