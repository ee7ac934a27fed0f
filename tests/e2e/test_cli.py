"""The other commands, as a person runs them."""

import re
from pathlib import Path

import pytest
from mcp import Client

from mcp_server.auth import hash_token
from mcp_server.local.stack import Addresses
from tests.conftest import CORPUS, content
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


@pytest.mark.parametrize("name", ["", "serve", "worker", "ingest", "doctor", "demo", "token"])
async def test_every_command_has_help_with_an_example(home: Path, name: str) -> None:
    status, output = await run(home, *([name] if name else []), "--help")

    assert status == 0
    assert "example:" in output


async def test_ingest_makes_documents_searchable_and_stores_nothing_twice(
    client: Client, home: Path, user: str
) -> None:
    status, first = await run(home, "ingest", str(CORPUS), "--user-id", user)
    assert status == 0, first
    stored = re.search(r"12 files stored in (\d+) chunks, 0 unchanged, 0 failed", first)
    assert stored, first

    status, second = await run(home, "ingest", str(CORPUS), "--user-id", user)
    assert status == 0, second
    assert "0 files stored in 0 chunks, 12 unchanged, 0 failed" in second

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
    assert "1 files stored" in output

    query = {"query": "Who serviced the boiler?", "user_id": user, "collection": "house"}
    [hit] = content(await client.call_tool("hybrid_search", query))["results"]
    assert "Lindqvist" in hit["text"]
    assert hit["metadata"]["title"] == "Boiler"


async def test_one_bad_file_does_not_stop_the_others(home: Path, stack: Addresses, user: str, tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("# Good\n\nRead me.\n")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    other = tmp_path / "picture.png"
    other.write_bytes(b"\x89PNG")

    status, output = await run(home, "ingest", str(tmp_path), str(other), "--user-id", user)

    assert status == 1
    assert "2 files stored in 1 chunks, 0 unchanged, 2 failed" in output
    assert "latin.txt: The file isn't UTF-8 text" in output
    assert "picture.png: '.png' files can't be read yet" in output


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
        ("MONGODB_URI", "mongodb://user:hunter2@example.com"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
async def test_a_bad_setting_is_named_without_its_value(home: Path, setting: str, value: str) -> None:
    status, output = await run(home, "doctor", **{setting: value})

    assert status == 2
    assert setting in output
    assert value not in output
    assert "Traceback" not in output


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
    assert named == {name.upper() for name in Settings.model_fields} - {"MONGODB_URI"}


def test_readme_names_every_setting() -> None:
    from mcp_server.settings import Settings

    text = (CORPUS.parents[1] / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name.upper()}`" in text
