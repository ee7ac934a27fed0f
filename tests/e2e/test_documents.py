"""Documents in, as a client, a person at a terminal and a web form put them there."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import TextResourceContents
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from temporalio.client import Client as TemporalClient

from mcp_server.auth import hash_token
from mcp_server.local.stack import Addresses
from tests import documents
from tests.conftest import content, error, held, serve
from tests.documents import MAKERS, TITLE, WORDS
from tests.e2e.test_http import connected, run, serve_http
from tests.faults.bedrock_endpoint import serve_endpoint
from tests.serving import served


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that servers here may read."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
async def reader(home: Path, client: Client, shelf: Path) -> AsyncIterator[Client]:
    """A client over stdio of a server that may read the shelf and pages of this machine.

    It is begun after the client that outlives it: their task groups have to nest.
    """
    async with serve(home, INGEST_ROOTS=str(shelf), FETCH_ALLOWED_NETWORKS="127.0.0.1/32") as client:
        yield client


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A web site: a page, an image, a sitemap of both and of one that is missing, a page that robots.txt forbids."""
    pages: dict[str, Response] = {
        "/robots.txt": PlainTextResponse("User-agent: *\nDisallow: /private\n"),
        "/handbook": Response(documents.html(), media_type="text/html"),
        "/sign.png": Response(documents.image("PNG"), media_type="image/png"),
        "/private": PlainTextResponse("Nobody's business."),
        "/film": Response(b"x", media_type="video/mp4"),
    }

    async def answer(request: Any) -> Response:
        if request.url.path == "/odd.xml":
            long = f"{request.base_url}{'a' * 60_000}"
            odd = ["http://[x", "file:///etc/passwd", "//handbook", long, f"{request.base_url}handbook#lamp"]
            return Response(
                f"<urlset>{''.join(f'<url><loc>{url}</loc></url>' for url in odd)}</urlset>", 200, None, "text/xml"
            )
        if request.url.path == "/sitemap.xml":
            names = "".join(
                f"<url><loc>{request.base_url}{name}</loc></url>" for name in ("handbook", "sign.png", "gone")
            )
            return Response(f"<urlset>{names}</urlset>", media_type="text/xml")
        return pages.get(request.url.path, PlainTextResponse("", 404))

    with served(Starlette(routes=[Route("/{path:path}", answer)])) as url:
        yield url


async def ingest(client: Client, user: str, **arguments: Any) -> dict[str, Any]:
    return content(await client.call_tool("ingest_documents", {"user_id": user, **arguments}))


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {Path(one["source"]).name: one for one in result["sources"]}


async def hits(client: Client, user: str, query: str, **arguments: Any) -> list[dict[str, Any]]:
    found = content(await client.call_tool("hybrid_search", {"query": query, "user_id": user, **arguments}))
    results: list[dict[str, Any]] = found["results"]
    return results


async def read(client: Client, uri: str) -> dict[str, Any]:
    [answer] = (await client.read_resource(uri)).contents
    assert isinstance(answer, TextResourceContents)
    document: dict[str, Any] = json.loads(answer.text)
    return document


# Files


async def test_a_folder_of_every_format_is_searchable_and_can_be_cited(
    reader: Client, shelf: Path, user: str, home: Path, temporal: TemporalClient
) -> None:
    folder = shelf / user
    folder.mkdir()
    for suffix, maker in MAKERS.items():
        (folder / f"handbook{suffix}").write_bytes(maker())
    (folder / "sign.tiff").write_bytes(documents.image("TIFF"))
    (folder / "notes.exe").write_bytes(b"not looked at")

    result = await ingest(reader, user, sources=[str(folder)])

    names = {f"handbook{suffix}" for suffix in MAKERS} | {"sign.tiff"}
    outcomes = by_name(result)
    assert outcomes.keys() == names
    assert {one["status"] for one in outcomes.values()} == {"stored"}, outcomes
    assert result["stored"] == len(names)
    assert result["chunks"] == sum(one["chunks"] for one in outcomes.values()) >= len(names)
    found = await hits(reader, user, "How many turns is the clockwork wound?", limit=100)
    sources = {Path(hit["metadata"]["source"]).suffix for hit in found[:12]}
    assert {".pdf", ".docx", ".pptx", ".html", ".epub"} <= sources
    [page] = [hit for hit in found if hit["metadata"]["source"].endswith(".pdf") and "Winding" in hit["text"]]
    assert (
        page["metadata"] | {"title": TITLE, "headings": ["Winding the clockwork"], "page": 2, "position": 1}
        == (page["metadata"])
    )
    assert (await hits(reader, user, "fog signal", weight=0, filter={"title": "sign.tiff"}))[0]["text"] == WORDS

    document = await read(reader, f"document://{page['metadata']['document_id']}")
    assert document["source"] == str(folder / "handbook.pdf")
    assert [piece["text"] for piece in document["content"]][1] == page["text"]
    assert document["next_position"] is None
    rest = await read(reader, f"document://{page['metadata']['document_id']}?position=1")
    assert [piece["position"] for piece in rest["content"]] == [1]
    with pytest.raises(MCPError, match="no such document"):
        await read(reader, "document://0123")

    again = await ingest(reader, user, sources=[str(folder)])
    assert (again["stored"], again["unchanged"], again["chunks"]) == (0, len(names), 0)
    (folder / "handbook.txt").write_text("The lamp was replaced by a diode.")
    changed = await ingest(reader, user, sources=[str(folder)], include=["*.txt", "*.md"], exclude=["*.md"])
    assert [(one["source"], one["status"]) for one in changed["sources"]] == [(str(folder / "handbook.txt"), "stored")]
    texts = [
        hit["text"] for hit in await hits(reader, user, "lamp", limit=100) if hit["metadata"]["source"].endswith(".txt")
    ]
    assert texts == ["The lamp was replaced by a diode."]
    # Nothing is left of what travelled by reference.
    assert held(home) == []


async def test_one_bad_source_does_not_keep_the_others_out(reader: Client, shelf: Path, user: str, site: str) -> None:
    good, bad = shelf / f"{user}.md", shelf / f"{user}.pdf"
    good.write_text("# Fine\n\nThe good one.")
    bad.write_bytes(b"%PDF-1.7 broken")
    wrong = {
        str(bad): "damaged",
        str(shelf / "missing.md"): "doesn't exist",
        "notes.md": "neither an absolute path nor",
        "/etc/passwd": "isn't in one of the folders",
        "file:///etc/passwd": "Only http and https",
        f"{site}/gone": "no such page",
        f"{site}/private": "robots.txt",
        f"{site}/film": "video/mp4",
        "http://[::1]:1/": "isn't public",
        "http://u:p@127.0.0.1/": "user or password",
    }
    result = await ingest(reader, user, sources=[str(good), *wrong, str(good)])

    assert (result["stored"], result["failed"]) == (1, len(wrong))
    outcomes = {one["source"]: one for one in result["sources"]}
    assert outcomes.keys() == {str(good), *wrong}
    for source, reason in wrong.items():
        assert reason in outcomes[source]["reason"], outcomes[source]
    assert [hit["text"] for hit in await hits(reader, user, "good one")] == ["# Fine\n\nThe good one."]


async def test_no_link_leads_out_of_the_folders(reader: Client, shelf: Path, user: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.md"
    secret.write_text("The safe's code is 1234.")
    folder = shelf / user
    folder.mkdir()
    (folder / "link.md").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "inside.md").write_text("Inside.")
    (folder / "also.md").symlink_to(folder / "inside.md")
    os.mkfifo(folder / "pipe.md")

    sources = [str(folder), str(folder / "up" / "secret.md"), str(folder / ".." / ".." / tmp_path.name / "secret.md")]
    result = await ingest(reader, user, sources=sources)

    outcomes = {one["source"]: one for one in result["sources"]}
    assert outcomes.pop(str(folder / "inside.md"))["status"] == "stored"
    assert "regular file" in outcomes.pop(str(folder / "pipe.md"))["reason"]
    assert len(outcomes) == 3
    assert all("leads out" in one["reason"] or "doesn't exist" in one["reason"] for one in outcomes.values())
    assert await hits(reader, user, "1234", weight=0) == []


async def test_no_path_is_read_where_none_is_allowed(client: Client, user: str, shelf: Path) -> None:
    refused = await client.call_tool("ingest_documents", {"sources": [str(shelf)], "user_id": user})
    assert "INGEST_ROOTS" in error(refused)
    result = await ingest(client, user, sources=["http://127.0.0.1:9/"])
    assert "FETCH_ALLOWED_NETWORKS" in result["sources"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({}, "either sources or text"),
        ({"sources": ["/a"], "text": "x", "name": "y"}, "either sources or text"),
        ({"text": "x"}, "name"),
        ({"sources": ["/a"], "name": "x"}, "name"),
        ({"sources": []}, "sources"),
        ({"sources": ["a\nb"]}, "control characters"),
        ({"text": " ", "name": "x"}, "text must not be empty"),
        ({"sources": ["/a"], "include": [""]}, "include"),
    ],
)
async def test_wrong_arguments_are_named(client: Client, arguments: dict[str, Any], part: str) -> None:
    assert part in error(await client.call_tool("ingest_documents", arguments))


async def test_a_text_is_stored_under_its_name(client: Client, user: str) -> None:
    first = await ingest(client, user, text="# Tides\n\nHigh water at Dover is at noon.", name="tides")
    assert first["sources"][0] == {**first["sources"][0], "source": "tides", "status": "stored", "chunks": 1}
    [hit] = await hits(client, user, "When is high water?")
    assert hit["metadata"] == {**hit["metadata"], "title": "Tides", "headings": ["Tides"], "source": "tides"}
    again = await ingest(client, user, text="# Tides\n\nHigh water at Dover is at noon.", name="tides")
    assert again["unchanged"] == 1
    await ingest(client, user, text="# Tides\n\nHigh water at Dover is at one.", name="tides")
    assert [hit["text"][-3:] for hit in await hits(client, user, "When is high water?")] == ["ne."]
    # Longer than a workflow's history could carry.
    long = await ingest(client, user, text="\N{EM SPACE}" * 900_000 + "The end.", name="long")
    assert long["sources"][0]["chunks"] == 1
    assert await hits(client, "another", "high water") == []


async def test_progress_is_told(reader: Client, shelf: Path, user: str) -> None:
    folder = shelf / user
    folder.mkdir()
    for number in range(25):
        (folder / f"{number}.md").write_text(f"# Note {number}\n\n" + f"Station {number} reports calm water. " * 40)
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    result = await reader.call_tool(
        "ingest_documents", {"sources": [str(folder)], "user_id": user}, progress_callback=on_progress
    )
    assert content(result)["stored"] == 25
    assert any(message and "of 25 sources are done" in message for _, message in told), told
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)


# Pages and images


async def test_the_pages_of_a_sitemap_are_ingested(reader: Client, user: str, site: str) -> None:
    result = await ingest(reader, user, sources=[f"{site}/sitemap.xml"])
    outcomes = by_name(result)
    assert {name: one["status"] for name, one in outcomes.items()} == {
        "handbook": "stored",
        "sign.png": "stored",
        "gone": "failed",
    }
    found = await hits(reader, user, "How often is the wick trimmed?")
    assert found[0]["metadata"]["source"] == f"{site}/handbook"
    assert found[0]["metadata"]["title"] == TITLE
    assert "Cookie settings" not in found[0]["text"]
    chosen = await ingest(reader, user, sources=[f"{site}/sitemap.xml"], include=["hand*"])
    assert [(one["source"], one["status"]) for one in chosen["sources"]] == [(f"{site}/handbook", "unchanged")]


async def test_a_sitemap_may_name_what_it_wants(reader: Client, user: str, site: str) -> None:
    result = await ingest(reader, user, sources=[f"{site}/odd.xml", f"{site}/handbook"])
    reasons = [one["reason"] for one in result["sources"] if one["status"] == "failed"]
    for reason, part in zip(reasons, ("valid URL", "Only http", "Only http", "4,096 characters"), strict=True):
        assert part in reason
    # The same page is one document, however it is named.
    assert [one["source"] for one in result["sources"] if one["status"] == "stored"] == [f"{site}/handbook"]
    assert all(len(one["source"]) < 400 for one in result["sources"])


async def test_globs_that_stand_for_too_many_are_refused(reader: Client, user: str, shelf: Path) -> None:
    for name in ("include", "exclude"):
        arguments = {"sources": [str(shelf)], "user_id": user, name: ["{1..2000}"]}
        assert f"{name}: these globs can't be used" in error(await reader.call_tool("ingest_documents", arguments))


async def test_a_vision_model_describes_images(home: Path, shelf: Path, user: str) -> None:
    horn = shelf / f"{user}.png"
    Image.effect_noise((3000, 1500), 60).convert("RGB").save(horn)
    with serve_endpoint() as endpoint:
        credentials = {name: value for name, value in endpoint.settings.items() if not name.startswith("EMBEDDING")}
        settings = {**credentials, "VISION_MODEL_ID": "us.amazon.nova-lite-v1:0", "IMAGE_MAX_SIDE": "600"}
        # Workers of other servers here have no such model.
        settings["TEMPORAL_TASK_QUEUE"] = user
        async with serve(home, INGEST_ROOTS=str(shelf), **settings) as client:
            result = await ingest(client, user, sources=[str(horn)])
            assert result["stored"] == 1, result
            [hit] = await hits(client, user, "fog horn")
            assert (await ingest(client, user, sources=[str(horn)]))["unchanged"] == 1
        [(image_format, seen)] = endpoint.seen
    assert hit["text"] == "A brass fog horn on a granite quay."
    assert hit["metadata"]["title"] == horn.name
    prepared = shelf / "prepared"
    prepared.write_bytes(seen)
    with Image.open(prepared) as image:
        assert image.size == (600, 300)
        assert image.format is not None
        assert image.format.lower() == image_format


# At a terminal


async def test_documents_are_listed_and_removed(home: Path, stack: Addresses, user: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\nFirst.")
    (tmp_path / "b.txt").write_text("Second.")
    options = ("--user-id", user)
    assert (await run(home, "ingest", str(tmp_path), *options, "--exclude", "*.pdf"))[0] == 0
    assert (await run(home, "ingest", str(tmp_path / "a.md"), *options, "--collection", "other"))[0] == 0

    status, output = await run(home, "documents", "list", *options)
    assert status == 0
    assert "3 documents in 3 chunks" in output
    lines = [line.split() for line in output.splitlines() if line.endswith("b.txt")]
    status, output = await run(home, "documents", "remove", lines[0][0], str(tmp_path / "a.md"), "gone.md", *options)
    assert status == 1
    assert "removed" in output
    assert "no document is called gone.md" in output
    status, output = await run(home, "documents", "list", *options)
    assert "0 documents in 0 chunks" in output


async def test_a_document_is_removed_by_its_name_where_a_file_has_it_too(
    home: Path, stack: Addresses, user: str, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "note.md"
    note.write_text("# A\n\nOf the file.")
    options = ("--user-id", user)
    await ingest(client, user, text="By itself.", name="note.md")
    await run(home, "ingest", str(note), *options)
    monkeypatch.chdir(tmp_path)
    left = [[str(note)], []]
    for sources in left:
        status, output = await run(home, "documents", "remove", "note.md", *options)
        assert (status, "removed note.md" in output) == (0, True), output
        _, output = await run(home, "documents", "list", *options)
        assert [line.split()[-1] for line in output.splitlines() if "note.md" in line] == sources
    assert (await run(home, "documents", "remove", "note.md", *options))[0] == 1


async def test_files_that_a_folder_no_longer_has_stay_until_they_are_removed(
    home: Path, stack: Addresses, user: str, tmp_path: Path
) -> None:
    note = tmp_path / "note.md"
    note.write_text("# A\n\nText.")
    await run(home, "ingest", str(tmp_path), "--user-id", user)
    note.unlink()
    status, output = await run(home, "documents", "remove", str(note), "--user-id", user)
    assert (status, "1 chunks" in output) == (0, True), output


# Over HTTP


@pytest.fixture(scope="module")
async def address(home: Path, stack: Addresses) -> AsyncIterator[str]:
    async with serve_http(home, FETCH_ALLOWED_NETWORKS="127.0.0.1/32", INGEST_MAX_BYTES="200000") as address:
        yield address


@asynccontextmanager
async def browser(token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        yield http


async def test_files_and_pages_are_uploaded(address: str, user: str, site: str, home: Path) -> None:
    files = [
        ("file", ("handbook.pdf", documents.pdf(), "application/pdf")),
        ("file", ("notes", b"Plain notes of the keeper.", "text/plain")),
        ("file", ("broken.docx", b"x", "application/octet-stream")),
        ("file", ("huge.txt", b"x" * 200_001, "text/plain")),
    ]
    async with browser() as http:
        answer = await http.post(f"{address}/upload", files=files, data={"user_id": user, "url": [f"{site}/handbook"]})
        assert answer.status_code == 200, answer.text
        task = answer.json()
        outcomes = by_name(task["result"])
        assert {name: one["status"] for name, one in outcomes.items()} == {
            "handbook.pdf": "stored",
            "notes": "stored",
            "handbook": "stored",
            "broken.docx": "failed",
            "huge.txt": "failed",
        }
        assert "INGEST_MAX_BYTES" in outcomes["huge.txt"]["reason"]
        assert task["message"] == "The task is done."
        looked = await http.get(f"{address}/upload/{task['task_id']}")
        assert looked.json() == task
        assert (await http.get(f"{address}/upload/nothing")).status_code == 404
    async with connected(address) as client:
        assert (await hits(client, user, "keeper's notes"))[0]["metadata"]["source"] == "notes"
        assert "POST /upload" in error(await client.call_tool("ingest_documents", {"sources": ["/etc/passwd"]}))
        assert "POST /upload" in error(await client.call_tool("ingest_documents", {"sources": ["~/x", f"{site}/a"]}))
    assert held(home) == []


@pytest.mark.parametrize(
    ("form", "status", "part"),
    [
        ({"data": {"user_id": "x"}, "files": {"none": (None, "")}}, 400, "no field 'none'"),
        ({"data": {"file": "x"}, "files": {"f": ("a.txt", b"x")}}, 400, "attached as"),
        ({"data": {"collection": "x"}, "files": [("url", (None, ""))]}, 400, "no file and no url"),
        ({"data": {"colection": "x"}, "files": {"f": ("a.txt", b"x")}}, 400, "no field 'colection'"),
        ({"data": {"user_id": "a\nb"}, "files": {"f": ("a.txt", b"x")}}, 400, "user_id"),
        ({"data": {"user_id": ["a", "b"]}, "files": {"f": ("a.txt", b"x")}}, 400, "once"),
        ({"files": [("f", ("a.txt", b"x")), ("f", ("b.txt", b"x")), ("g", ("a.txt", b"y"))]}, 400, "are called a.txt"),
        ({"json": {"url": "x"}}, 415, "multipart"),
        ({"files": [("f", (f"{n}.txt", b"x" * 200_000)) for n in range(11)]}, 413, "2,000,000 bytes"),
        ({"files": [("f", (f"{n}.txt", b"x")) for n in range(101)]}, 400, "files"),
    ],
)
async def test_a_wrong_upload_says_what_is_wrong(
    address: str, form: dict[str, Any], status: int, part: str, home: Path
) -> None:
    async with browser() as http:
        answer = await http.post(f"{address}/upload", **form)
    assert answer.status_code == status, answer.text
    assert part in answer.json()["error"]
    assert held(home) == []


async def test_an_endless_upload_is_cut_off(address: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 100_000

    async with browser() as http:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = await http.post(f"{address}/upload", content=endless(), headers=headers)
    assert answer.status_code == 413, answer.text


async def test_no_page_of_another_site_uploads(address: str) -> None:
    async with browser() as http:
        for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 421)):
            answer = await http.post(f"{address}/upload", files={"f": ("a.txt", b"x")}, headers=headers)
            assert answer.status_code == status


async def test_an_upload_belongs_to_its_token(home: Path, stack: Addresses, user: str) -> None:
    tokens = f"{user}:{hash_token('ann')},{user}-b:{hash_token('bob')}"
    async with serve_http(home, AUTH_TOKENS=tokens) as address, browser("ann") as ann, browser("bob") as bob:
        form: dict[str, Any] = {"files": {"f": ("note.md", b"# Mine\n\nThe key is under the mat.")}}
        async with browser() as nobody:
            assert (await nobody.post(f"{address}/upload", **form)).status_code == 401
        assert (await ann.post(f"{address}/upload", **form, data={"user_id": f"{user}-b"})).status_code == 403
        task = (await ann.post(f"{address}/upload", **form)).json()
        assert (await bob.get(f"{address}/upload/{task['task_id']}")).status_code == 404
        assert (await ann.get(f"{address}/upload/{task['task_id']}")).status_code == 200
        key = task["result"]["sources"][0]["document_id"]
        async with connected(address, token="ann") as client:
            assert (await read(client, f"document://{key}"))["title"] == "Mine"
        async with connected(address, token="bob") as client:
            assert content(await client.call_tool("hybrid_search", {"query": "key"}))["results"] == []
            with pytest.raises(MCPError, match="no such document"):
                await read(client, f"document://{key}")


async def test_a_server_without_a_worker_takes_uploads(home: Path, stack: Addresses, user: str, reader: Client) -> None:
    async with serve_http(home, "--no-worker") as address, browser() as http:
        answer = await http.post(f"{address}/upload", files={"f": ("a.md", b"# A\n\nText.")}, data={"user_id": user})
        assert answer.json()["result"]["stored"] == 1, answer.text
        async with connected(address) as client:
            assert (await ingest(client, user, text="More.", name="b"))["stored"] == 1


async def until_ready(http: httpx.AsyncClient, address: str) -> None:
    """Return once a server has reached Temporal and the others: until then its calls spend their time waiting."""
    async with asyncio.timeout(60):
        while (await http.get(f"{address}/health")).status_code != 200:
            await asyncio.sleep(0.1)


async def test_a_long_upload_is_answered_with_its_task(home: Path, stack: Addresses, user: str) -> None:
    text = "Station reports calm water and light wind. " * 2000
    async with serve_http(home, CALL_TIMEOUT_SECONDS="3") as address, browser() as http:
        await until_ready(http, address)
        answer = await http.post(f"{address}/upload", files={"f": ("a.txt", text.encode())}, data={"user_id": user})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/upload/{answer.json()['task_id']}"
        async with asyncio.timeout(60):
            while (looked := await http.get(address + answer.headers["location"])).status_code == 202:
                await asyncio.sleep(0.1)
        assert looked.json()["result"]["stored"] == 1


@pytest.mark.parametrize("globs", [["{1..2000}"], []])
async def test_nothing_is_kept_of_an_upload_that_comes_to_nothing(
    home: Path, stack: Addresses, user: str, globs: list[str]
) -> None:
    long = "Station reports calm water and light wind. " * 4000
    files = [("f", (f"{number}.txt", f"{number} {long}".encode())) for number in range(8)]
    async with serve_http(home, CALL_TIMEOUT_SECONDS="5") as address, browser() as http:
        await until_ready(http, address)
        answer = await http.post(f"{address}/upload", files=files, data={"user_id": user, "include": globs})
        task = answer.json()
        async with connected(address) as client:
            if globs:
                assert (answer.status_code, "include" in task["message"]) == (500, True), task
            else:
                assert len(held(home)) >= 8
                await client.call_tool("cancel_task", {"task_id": task["task_id"]})
            async with asyncio.timeout(60):
                while (await http.get(f"{address}/upload/{task['task_id']}")).status_code == 202:
                    await asyncio.sleep(0.1)
            assert await hits(client, user, "calm water") == []
    assert held(home) == []


# Refused settings


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"CHUNK_TOKENS": "10"}, "CHUNK_TOKENS"),
        ({"CHUNK_TOKENS": "501"}, "CHUNK_TOKENS must be at most 500"),
        ({"CHUNK_TOKENS": "50", "CHUNK_OVERLAP_TOKENS": "26"}, "CHUNK_OVERLAP_TOKENS must be at most half"),
        ({"INGEST_ROOTS": "notes"}, "INGEST_ROOTS: must be absolute"),
        ({"FETCH_ALLOWED_NETWORKS": "intranet"}, "FETCH_ALLOWED_NETWORKS"),
        ({"VISION_MODEL_ID": "local.extractive"}, "VISION_MODEL_ID"),
        ({"IMAGE_MAX_SIDE": "9000"}, "IMAGE_MAX_SIDE"),
    ],
)
async def test_settings_that_cannot_be_used_are_named(home: Path, settings: dict[str, str], part: str) -> None:
    status, output = await run(home, "doctor", **settings)
    assert status == 2
    assert part in output


async def test_the_size_of_chunks_is_a_setting(home: Path, stack: Addresses, user: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Station reports calm water and light wind. " * 40)
    counts = []
    for tokens in ("40", "400"):
        status, output = await run(
            home, "ingest", str(tmp_path), "--user-id", user, CHUNK_TOKENS=tokens, CHUNK_OVERLAP_TOKENS="0"
        )
        assert status == 0, output
        counts.append(int(output.split("stored in ")[1].split()[0]))
    assert counts[0] > 3 * counts[1]
