"""Ingestion whose workers are killed: it goes on where it was, and nothing is lost or doubled."""

import asyncio
import contextlib
import random
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import apsw
import pytest
import sqlite_vec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle

from activities.models import ConverseParams, IngestParams, IngestResult, Source, SourceRequest
from mcp_server.local.stack import Addresses
from mcp_server.local.temporal import DYNAMIC_CONFIG, DevServer, Ports, free_port
from mcp_server.runtime import connect
from mcp_server.settings import Settings
from tests import documents
from tests.conftest import command, content, environment, held, serve, workflow_id
from tests.faults.bedrock_endpoint import Endpoint
from tests.serving import served
from workflows.conversation import ConverseWorkflow
from workflows.documents import CONCURRENCY, DataIngestionWorkflow

CHUNK_SETTINGS = {"CHUNK_TOKENS": "40", "CHUNK_OVERLAP_TOKENS": "0"}
BATCH = 32


@pytest.fixture
def settings(stack: Addresses, user: str, bedrock: Endpoint) -> dict[str, str]:
    """Settings of workers with a store of their own on the Temporal server that tests share."""
    assert stack.temporal is not None
    place = {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user}
    return {**place, **bedrock.settings, **CHUNK_SETTINGS}


class Workers:
    """Worker processes that are killed and replaced."""

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        self._environment = environment(home, **settings)
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        quiet = asyncio.subprocess.DEVNULL
        self.running.append(
            await asyncio.create_subprocess_exec(*command("worker"), env=self._environment, stderr=quiet)
        )

    async def kill(self) -> None:
        """The one that has run longest."""
        worker = self.running.pop(0)
        worker.kill()
        await worker.wait()

    @asynccontextmanager
    async def ending(self) -> AsyncIterator["Workers"]:
        try:
            yield self
        finally:
            for worker in self.running:
                worker.terminate()
                assert await worker.wait() == 0


async def ingestion(
    temporal: Client, queue: str, source: Path | list[SourceRequest], user: str
) -> WorkflowHandle[Any, IngestResult]:
    """Ingest a folder, or whatever else."""
    sources = [SourceRequest(path=str(source))] if isinstance(source, Path) else source
    # Pages need none.
    roots = [one.path for one in sources if one.path is not None]
    params = IngestParams(user_id=user, sources=sources, roots=roots)
    return await temporal.start_workflow(
        DataIngestionWorkflow.run, params, id=f"ingest-{uuid.uuid4().hex}", task_queue=queue
    )


class HeldUp:
    """A web site whose pages are answered once they may be; `settings` let a worker fetch them."""

    settings: ClassVar[dict[str, str]] = {"FETCH_ALLOWED_NETWORKS": "127.0.0.1/32"}

    def __init__(self, response: Response) -> None:
        self._response = response
        self._asked, self._allowed = threading.Event(), threading.Event()
        self.app = Starlette(routes=[Route("/{page}", self._page)])

    async def _page(self, request: Request) -> Response:
        self._asked.set()
        await asyncio.to_thread(self._allowed.wait, 60)
        return self._response

    async def cancel_while_it_is_asked(self, handle: WorkflowHandle[Any, Any]) -> None:
        """Cancel a workflow that waits for a page, which is answered then, and wait for its end."""
        assert await asyncio.to_thread(self._asked.wait, 60)
        await handle.cancel()
        self._allowed.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()


class StoreFile:
    """What the store holds, looked at from outside; nothing before it is there."""

    def __init__(self, home: Path) -> None:
        self._file = home / "store.db"

    def rows(self, sql: str, *arguments: object) -> list[Any]:
        if not self._file.exists():
            return []
        db = apsw.Connection(str(self._file))
        try:
            db.set_busy_timeout(5000)
            db.enable_load_extension(True)
            db.load_extension(sqlite_vec.loadable_path())
            return db.execute(sql, arguments).fetchall()
        except apsw.SQLError as missing:
            if "no such table" not in str(missing):
                raise
            return []
        finally:
            db.close()

    def chunks(self, user: str) -> list[Any]:
        """Every chunk of a user, with its vector, and whether the keyword index holds it."""
        return self.rows(
            "select d.source, d.position, d.text, d.content_hash, json_remove(d.metadata, '$.document_id'), "
            "vec_to_json(v.embedding), exists (select 1 from documents_text_docsize t where t.id = d.id) "
            "from documents d join documents_vectors v on v.rowid = d.id where d.user_id = ? order by 1, 2",
            user,
        )


@pytest.mark.timeout(600)
async def test_an_ingestion_killed_at_ten_moments_stores_what_an_undisturbed_one_does(
    temporal: Client, user: str, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, home = tmp_path / "notes", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for number in range(500):
        sentences = 20 if number % 100 == 50 else 1
        text = "\n\n".join(f"Buoy {number} drifts {n} yards past rock {n * number}." for n in range(sentences))
        (folder / f"{number:03}.md").write_text(f"# Buoy {number}\n\n{text}\n")
    moments = sorted(random.Random(user).sample(range(5, 480), 10))
    store, workers = StoreFile(home), Workers(home, settings)
    sources = "select count(*) from sources where user_id = 'disturbed'"

    async with workers.ending():
        for _ in range(3):
            await workers.start()
        handle = await ingestion(temporal, user, folder, "disturbed")
        async with asyncio.timeout(540):
            for moment in moments:
                while not store.rows(sources) or store.rows(sources)[0][0] < moment:
                    await asyncio.sleep(0.02)
                await workers.kill()
                await workers.start()
            result = await handle.result()
            assert (result.stored + result.unchanged, result.failed) == (500, 0), result
            undisturbed = await (await ingestion(temporal, user, folder, "undisturbed")).result()
    assert (undisturbed.stored, undisturbed.failed) == (500, 0)

    stored = store.chunks("disturbed")
    assert stored == store.chunks("undisturbed")
    assert len(stored) == undisturbed.chunks
    assert len({row[0] for row in stored}) == 500
    assert all(indexed for *_, indexed in stored)
    counts = "select sum(chunks), count(*) from sources where user_id = 'disturbed'"
    assert store.rows(counts) == [(undisturbed.chunks, 500)]
    tables = ("documents", "documents_vectors", "documents_text_docsize")
    assert [store.rows(f"select count(*) from {table}")[0][0] for table in tables] == [2 * undisturbed.chunks] * 3
    assert store.rows("select count(*) from staged_vectors") == [(0,)]
    assert list((home / "contents").iterdir()) == []


async def test_what_a_killed_worker_has_embedded_is_not_embedded_again(
    temporal: Client, user: str, bedrock: Endpoint, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, home = tmp_path / "book", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    text = "\n\n".join(
        f"Chapter {n} tells of ship {n * 7} and her cargo of {n * 13} casks of wine." for n in range(600)
    )
    (folder / "book.txt").write_text(text)
    store, workers = StoreFile(home), Workers(home, settings)
    staged = "select count(*) from staged_vectors"

    async with workers.ending():
        await workers.start()
        handle = await ingestion(temporal, user, folder, user)
        async with asyncio.timeout(100):
            while not store.rows(staged) or store.rows(staged)[0][0] < 3 * BATCH:
                await asyncio.sleep(0.01)
            await workers.kill()
            assert store.rows("select count(*) from documents") == [(0,)]
            await workers.start()
            result = await handle.result()

    assert (result.stored, result.failed) == (1, 0)
    assert result.chunks > 5 * BATCH
    # At most the batch that was under way, and the one whose vectors weren't kept yet.
    assert result.chunks <= len(bedrock.embedded) <= result.chunks + 2 * BATCH
    assert len(store.chunks(user)) == result.chunks
    assert store.rows(staged) == [(0,)]


async def test_one_cancelled_at_any_moment_leaves_nothing_behind(
    temporal: Client, user: str, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, home = tmp_path / "notes", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for number in range(20):
        (folder / f"{number}.md").write_text(f"# Buoy {number}\n\nIt drifts.")
    contents, workers = home / "contents", Workers(home, settings)
    async with workers.ending():
        await workers.start()
        async with asyncio.timeout(100):
            assert (await (await ingestion(temporal, user, folder, user)).result()).stored == 20
            for moment in range(12):
                handle = await ingestion(temporal, user, folder, f"{user}-{moment}")
                await asyncio.sleep(moment / 40)
                await handle.cancel()
                with contextlib.suppress(WorkflowFailureError):
                    await handle.result()
                assert (await handle.describe()).status is not WorkflowExecutionStatus.FAILED
                assert list(contents.iterdir()) == []


async def test_what_is_fetched_or_prepared_for_one_that_is_cancelled_is_dropped(
    temporal: Client, user: str, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, home = tmp_path / "signs", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "sign.png").write_bytes(documents.image("PNG"))
    pages = HeldUp(Response(documents.html(), media_type="text/html"))
    workers = Workers(home, settings | pages.settings)
    with served(pages.app) as site:
        async with workers.ending():
            await workers.start()
            async with asyncio.timeout(100):
                handle = await ingestion(temporal, user, [SourceRequest(url=f"{site}/page")], user)
                await pages.cancel_while_it_is_asked(handle)
                for moment in range(10):
                    handle = await ingestion(temporal, user, folder, f"{user}-{moment}")
                    await asyncio.sleep(moment / 20)
                    await handle.cancel()
                    with contextlib.suppress(WorkflowFailureError):
                        await handle.result()
    # Whatever the workers had under way has ended.
    assert held(home) == []


async def test_one_cancelled_while_pages_are_fetched_takes_up_no_other_source(
    temporal: Client, user: str, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, home = tmp_path / "notes", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "note.md").write_text("# Buoy\n\nIt drifts.")
    pages = HeldUp(Response(status_code=404))
    workers = Workers(home, settings | pages.settings)
    with served(pages.app) as site:
        async with workers.ending(), asyncio.timeout(100):
            await workers.start()
            urls = [SourceRequest(url=f"{site}/{number}") for number in range(CONCURRENCY)]
            handle = await ingestion(temporal, user, [*urls, SourceRequest(path=str(folder))], user)
            await pages.cancel_while_it_is_asked(handle)
    assert StoreFile(home).rows("select * from documents") == []
    assert held(home) == []


async def test_a_message_cancelled_while_its_image_is_prepared_is_not_sent(
    temporal: Client, user: str, settings: dict[str, str], tmp_path: Path
) -> None:
    picture, home = tmp_path / "sign.png", tmp_path / "home"
    picture.write_bytes(documents.image("PNG"))
    home.mkdir()
    image = Source(source=str(picture), path=str(picture), filename=picture.name)
    params = ConverseParams(
        user_id=user, conversation_id="c", prompt="What is this?", image=image, roots=[str(tmp_path)]
    )
    workers = Workers(home, settings)
    async with workers.ending(), asyncio.timeout(100):
        await workers.start()
        handle = await temporal.start_workflow(ConverseWorkflow.run, params, id=f"converse-{user}", task_queue=user)
        begun = EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED
        while begun not in [event.event_type for event in (await handle.fetch_history()).events]:
            await asyncio.sleep(0.005)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
    assert held(home) == []


async def test_progress_within_a_document_is_told(
    user: str, bedrock: Endpoint, settings: dict[str, str], tmp_path: Path
) -> None:
    book, home = tmp_path / "book.txt", tmp_path / "home"
    book.write_text(
        "\n\n".join(f"Chapter {n} tells of ship {n * 7} and her cargo of casks of wine." for n in range(80))
    )
    bedrock.embeds = BATCH
    told: list[tuple[float, str]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message or ""))
        if f" {BATCH} of " in told[-1][1]:
            bedrock.embeds = None

    async with serve(home, **settings, INGEST_ROOTS=str(tmp_path), CALL_TIMEOUT_SECONDS="200") as client:
        arguments = {"sources": [str(book)], "user_id": user}
        result = content(await client.call_tool("ingest_documents", arguments, progress_callback=on_progress))
    assert result["stored"] == 1
    [within] = {(round(fraction, 3), message) for fraction, message in told if f" {BATCH} of " in message}
    share = round(BATCH / result["chunks"], 3)
    chunks = f"{BATCH} of {result['chunks']} chunks of what is under way are embedded."
    assert within == (share, f"0 of 1 sources are done. {chunks}")


async def test_a_run_of_any_length_fits_a_history(
    tmp_path: Path, user: str, bedrock: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, home = tmp_path / "notes", tmp_path / "home"
    folder.mkdir()
    for number in range(110):
        (folder / f"{number}.md").write_text(f"# Buoy {number}\n\nIt drifts past rock {number * 7}.")
    # A server suggests it after 4,096 events.
    monkeypatch.setitem(DYNAMIC_CONFIG, "limit.historyCount.suggestContinueAsNew", "100")
    server, ports = DevServer(tmp_path / "temporal.db", tmp_path / "temporal.log"), Ports(free_port(), free_port())
    await server.start(ports)
    try:
        place = {"TEMPORAL_ADDRESS": f"127.0.0.1:{ports.frontend}", "INGEST_ROOTS": str(folder)}
        told: list[tuple[float, str]] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            told.append((progress, message or ""))

        async with serve(home, **place, **bedrock.settings, CALL_TIMEOUT_SECONDS="200") as client:
            arguments = {"sources": [str(folder)], "user_id": user}
            result = await client.call_tool("ingest_documents", arguments, progress_callback=on_progress)
            assert (content(result)["stored"], content(result)["chunks"]) == (110, 110)
            status = content(await client.call_tool("task_status", {"task_id": workflow_id(result)}))
            assert (status["status"], status["result"]["stored"]) == ("completed", 110)
        temporal = await connect(Settings(durable_context_home=home), place["TEMPORAL_ADDRESS"])
        lengths = []
        run: str | None = None
        while run is None or run:
            history = await temporal.get_workflow_handle(workflow_id(result), run_id=run).fetch_history()
            lengths.append(len(history.events))
            run = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    finally:
        await server.stop()
    assert len(lengths) > 3
    assert max(lengths) < 250
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert any("of 110 sources are done" in message for _, message in told)
    assert len(StoreFile(home).chunks(user)) == 110
    assert list((home / "contents").iterdir()) == []


async def test_a_throttled_model_is_waited_for(
    temporal: Client, user: str, bedrock: Endpoint, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, home = tmp_path / "notes", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for number in range(8):
        (folder / f"{number}.md").write_text(f"# Buoy {number}\n\nIt drifts.")
    bedrock.failures = [(429, "ThrottlingException", "Too many requests")] * 6
    workers = Workers(home, settings)
    async with workers.ending():
        await workers.start()
        async with asyncio.timeout(100):
            result = await (await ingestion(temporal, user, folder, user)).result()
    assert (result.stored, result.chunks, result.failed) == (8, 8, 0)
    assert bedrock.refused == 6
