"""Every tool and command on Atlas: with the connection string alone, and with each thing that may be wrong with it."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from mcp import Client
from secantus import SecantusDBServer  # type: ignore[import-untyped]
from temporalio.client import Client as TemporalClient

from mcp_server.local.stack import Addresses, leased
from mcp_server.runtime import connect
from mcp_server.settings import Settings
from tests.atlas.running import stand_in
from tests.conftest import CORPUS, command, content, environment, error, message, serve, workflow_id
from tests.e2e.test_http import run
from tests.e2e.test_tools import remember, settled

PASSWORD = "hunter2-of-the-cluster"
WRONG_PASSWORD = "hunter3-of-nobody"
SECRETS = (PASSWORD, WRONG_PASSWORD)
ALERT = bytes.fromhex("15030300020250")
"""A fatal alert, internal_error, in a record of TLS 1.2: what Atlas answers to an address that isn't in its list."""

QUESTIONS = {
    "How many seconds slow was H4 when HMS Deptford reached Jamaica?": "john-harrison-and-the-marine-chronometer.md",
    "How do insects with no leader settle an argument about where to live?": "how-honeybees-choose-a-home.md",
}

Server = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants a password."""
    with stand_in(tmp_path_factory.mktemp("atlas"), "--username", "ann", "--password", PASSWORD) as uri:
        yield uri


@pytest.fixture(scope="module")
def server(uri: str) -> Iterator[Server]:
    with Server(uri) as client:
        yield client


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of these tests: nothing but MONGODB_URI is to be set, so no other test's server may share it."""
    return tmp_path_factory.mktemp("atlas-home")


@pytest.fixture(scope="module")
async def stack(place: Path) -> AsyncIterator[Addresses]:
    async with leased(place, ["temporal", "models"]) as addresses:
        yield addresses


@pytest.fixture(scope="module")
async def temporal(place: Path, stack: Addresses) -> TemporalClient:
    return await connect(Settings(durable_context_home=place), stack.temporal)


@pytest.fixture(scope="module")
async def outputs(place: Path, stack: Addresses, uri: str) -> list[str]:
    """What the commands have written so far; the first is `index`, run by two at once."""
    both = await asyncio.gather(*(run(place, "index", MONGODB_URI=uri, COLUMNS="200") for _ in range(2)))
    for status, output in both:
        assert status == 0, output
        assert "All indexes are there and can be queried." in output
    return [output for _, output in both]


@pytest.fixture(scope="module")
async def client(place: Path, outputs: list[str], uri: str) -> AsyncIterator[Client]:
    """A client of a server with the connection string and no other setting."""
    async with serve(place, MONGODB_URI=uri) as client:
        yield client


@pytest.fixture
def lagging(server: Server, client: Client) -> Iterator[None]:
    """The search indexes take in nothing for as long as the test runs."""
    server.admin.command({"standIn": "indexing", "paused": True})
    try:
        yield
    finally:
        server.admin.command({"standIn": "indexing", "paused": False})


async def checked(place: Path, outputs: list[str], *arguments: str, **settings: str) -> str:
    """The output of a command that must succeed."""
    status, output = await run(place, *arguments, COLUMNS="200", **settings)
    outputs.append(output)
    assert status == 0, output
    return output


def logs(place: Path) -> str:
    return "".join(file.read_text() for file in (place / "logs").glob("*.log*"))


async def histories(temporal: TemporalClient) -> bytes:
    """Every event of every workflow, as it is kept."""
    events = [
        event.SerializeToString()
        async for workflow in temporal.list_workflows()
        for event in (await temporal.get_workflow_handle(workflow.id, run_id=workflow.run_id).fetch_history()).events
    ]
    return b"".join(events)


# With the connection string alone


async def test_index_is_idempotent_and_check_only_reports(place: Path, outputs: list[str], uri: str) -> None:
    again = await checked(place, outputs, "index", MONGODB_URI=uri)
    report = await checked(place, outputs, "index", "--check", MONGODB_URI=uri)

    for output in (again, report):
        assert "All indexes are there and can be queried." in output
        for collection in ("documents", "conversations", "memory_nodes", "cache"):
            assert re.search(rf"ok +{collection} +durable_context_vector", output), output


async def test_doctor_finds_all_usable(place: Path, outputs: list[str], uri: str) -> None:
    output = await checked(place, outputs, "doctor", MONGODB_URI=uri)

    assert re.search(r"ok +store +remote +MongoDB 8\.\S+ with Atlas Search", output), output
    assert "Everything that is needed is usable." in output


async def test_ingest_makes_documents_searchable_and_stores_nothing_twice(
    client: Client, place: Path, outputs: list[str], uri: str, user: str
) -> None:
    files = [str(CORPUS / name) for name in sorted(set(QUESTIONS.values()))]
    first = await checked(place, outputs, "ingest", *files, "--user-id", user, MONGODB_URI=uri)
    assert re.search(rf"{len(files)} documents stored in \d+ chunks, 0 unchanged, 0 failed", first), first
    second = await checked(place, outputs, "ingest", *files, "--user-id", user, MONGODB_URI=uri)
    assert f"0 documents stored in 0 chunks, {len(files)} unchanged, 0 failed" in second

    for question, source in QUESTIONS.items():
        hits = content(await client.call_tool("hybrid_search", {"query": question, "user_id": user}))["results"]
        assert Path(hits[0]["metadata"]["source"]).name == source, question
        assert len({hit["id"] for hit in hits}) == len(hits)
        title = hits[0]["metadata"]["title"]
        for condition, expected in ({"title": title}, True), ({"title": {"$ne": title}}, False):
            only = {"query": question, "user_id": user, "filter": condition}
            some = content(await client.call_tool("hybrid_search", only))["results"]
            assert some
            assert {hit["metadata"]["title"] == title for hit in some} == {expected}
    assert (
        content(await client.call_tool("hybrid_search", {"query": question, "user_id": f"{user}-x"}))["results"] == []
    )


async def test_every_tool_answers(client: Client, temporal: TemporalClient, user: str) -> None:
    stored = await remember(client, user, "Please remember that I live in Oslo with my sister Ines.")
    assert stored["memory_forming"]
    await settled(temporal, user)
    recalled = content(await client.call_tool("retrieve_memory", {"text": "Where do I live?", "user_id": user}))
    assert [one["message_id"] for one in recalled["related_conversation"]] == [stored["message_id"]]
    assert [one["source_messages"] for one in recalled["similar_memories"]] == [[stored["message_id"]]]

    query = {"query": "How tall is Mount Everest?", "user_id": user}
    content(await client.call_tool("semantic_cache_response", query | {"response": "8,849 m."}))
    assert content(await client.call_tool("check_semantic_cache", query))["response"] == "8,849 m."

    shown = content(await client.call_tool("forget", {"query": "Ines", "user_id": user, "threshold": 1}))
    assert {one["kind"] for one in shown["matches"]} == {"message", "memory"}
    confirmed = {"query": "Ines", "user_id": user, "threshold": 1, "confirmation": shown["confirmation"]}
    assert content(await client.call_tool("forget", confirmed))["memories"] == 1
    everything = {"everything": True, "confirm": True, "user_id": user}
    assert content(await client.call_tool("forget", everything))["cached_answers"] == 1
    assert not content(await client.call_tool("check_semantic_cache", query))["hit"]

    assert content(await client.call_tool("hybrid_search", {"query": "anything", "user_id": user}))["results"] == []
    assert "TAVILY_API_KEY" in error(await client.call_tool("search_web", {"query": "news"}))
    assert "nowhere" in error(await client.call_tool("hybrid_search", {"query": "x", "collection": "nowhere"}))
    health: Any = (await client.read_resource("health://status")).contents[0]
    pieces = {piece["piece"]: piece for piece in json.loads(health.text)["pieces"]}
    assert pieces["store"]["remote"]
    assert pieces["store"]["usable"]


async def test_headless_workers_do_the_work(place: Path, outputs: list[str], uri: str, user: str) -> None:
    settings = {"TEMPORAL_TASK_QUEUE": user, "MONGODB_URI": uri}
    worker = await asyncio.create_subprocess_exec(*command("worker"), env=environment(place, **settings))
    try:
        async with serve(place, "--no-worker", **settings) as client:
            stored = await remember(client, user, "Anybody?")
            assert stored["message_id"]
    finally:
        worker.terminate()
        assert await worker.wait() == 0


# Reads follow one's own writes, however late the search indexes are


async def test_a_message_is_found_at_once(client: Client, lagging: None, user: str) -> None:
    first = await remember(client, user, "The spare key hangs behind the larder.")
    second = await remember(client, user, "Tickets for the opera are booked.")

    for text in ("The spare key hangs behind the larder.", "Where can I find a key to the house?"):
        found = content(await client.call_tool("retrieve_memory", {"text": text, "user_id": user}))
        ids = [one["message_id"] for one in found["related_conversation"]]
        assert ids[0] == first["message_id"]
        assert set(ids) == {first["message_id"], second["message_id"]}


async def test_an_ingested_document_is_found_at_once_and_what_it_replaced_is_not(
    client: Client, lagging: None, place: Path, outputs: list[str], server: Server, uri: str, user: str, tmp_path: Path
) -> None:
    note = tmp_path / "note.md"
    note.write_text("# Boiler\n\nThe boiler was serviced by Okafor.\n")
    await checked(place, outputs, "ingest", str(tmp_path), "--user-id", user, MONGODB_URI=uri)
    search = {"query": "Who serviced the boiler? Okafor?", "user_id": user}
    [hit] = content(await client.call_tool("hybrid_search", search))["results"]
    assert "Okafor" in hit["text"]

    # Now the indexes know the first version, and stay behind with the second.
    server.admin.command({"standIn": "indexing", "paused": False})
    content(await client.call_tool("hybrid_search", search))
    server.admin.command({"standIn": "indexing", "paused": True})
    note.write_text("# Boiler\n\nThe boiler was serviced by Lindqvist.\n")
    await checked(place, outputs, "ingest", str(tmp_path), "--user-id", user, MONGODB_URI=uri)

    for weight in (0, 0.5, 1):
        [hit] = content(await client.call_tool("hybrid_search", search | {"weight": weight}))["results"]
        assert "Lindqvist" in hit["text"]


async def test_a_cached_answer_is_hit_at_once(client: Client, lagging: None, user: str) -> None:
    query = {"query": "How tall is Mount Everest?", "user_id": user}
    content(await client.call_tool("semantic_cache_response", query | {"response": "8,849 m."}))

    for text in (query["query"], "What is the height of Mount Everest?"):
        cached = content(await client.call_tool("check_semantic_cache", query | {"query": text}))
        assert cached["response"] == "8,849 m."


async def test_what_is_said_twice_at_once_makes_one_memory(
    client: Client, lagging: None, temporal: TemporalClient, user: str
) -> None:
    text = "Please remember that I'm allergic to peanuts and my sister Ines lives in Lisbon."
    first = await remember(client, user, text)
    again = await remember(client, user, text)
    await settled(temporal, user)

    found = content(await client.call_tool("retrieve_memory", {"text": "food allergies", "user_id": user}))
    [memory] = found["similar_memories"]
    assert memory["source_messages"] == [first["message_id"], again["message_id"]]


# What may be wrong


async def test_missing_indexes_are_named_and_their_coming_needs_no_restart(
    place: Path, outputs: list[str], uri: str, user: str
) -> None:
    settings = {"MONGODB_URI": uri, "DB_NAME": user, "TEMPORAL_TASK_QUEUE": user}
    status, output = await run(place, "doctor", COLUMNS="200", **settings)
    assert status == 1
    assert "durable-context index" in output
    status, output = await run(place, "index", "--check", COLUMNS="200", **settings)
    assert status == 1
    assert "missing" in output
    assert "durable-context index" in output

    before = set((place / "logs").glob("serve-*.log"))
    async with serve(place, **settings) as client:
        assert "durable-context index" in error(await client.call_tool("check_semantic_cache", {"query": "Up?"}))
        [log] = set((place / "logs").glob("serve-*.log")) - before
        async with asyncio.timeout(30):
            while "durable-context index" not in log.read_text():
                await asyncio.sleep(0.05)
        health: Any = (await client.read_resource("health://status")).contents[0]
        assert "durable-context index" in health.text

        await checked(place, outputs, "index", **settings)

        assert content(await client.call_tool("check_semantic_cache", {"query": "Up?"}))["hit"] is False


def plain_server(folder: Path) -> SecantusDBServer:
    """MongoDB without Atlas Search."""
    server = SecantusDBServer(port=0, storage_path=str(folder))
    server.start()
    return server


def stop(server: SecantusDBServer) -> None:
    # Closing a socket doesn't wake the thread that accepts from it; this does.
    server._socket.shutdown(socket.SHUT_RDWR)
    server.stop()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """The port of a server that gives whoever says something this answer, and closes the connection."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4096):
            writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await listener.wait_closed()


async def doctors_word(place: Path, uri: str) -> str:
    """What `doctor` says about a store that it can't use, on one line."""
    status, output = await run(place, "doctor", MONGODB_URI=uri, COLUMNS="400")
    assert status == 1, output
    assert "Traceback" not in output
    for secret in SECRETS:
        assert secret not in output
    found = re.search(r"^no +store .*\n(.*)$", output, re.MULTILINE)
    assert found, output
    return found[1].strip()


async def test_a_wrong_password_is_named(place: Path, stack: Addresses, uri: str, user: str) -> None:
    wrong = uri.replace(PASSWORD, WRONG_PASSWORD)
    assert "refused the user or the password of MONGODB_URI" in await doctors_word(place, wrong)
    status, output = await run(place, "index", MONGODB_URI=wrong)
    assert status == 1
    assert "refused the user or the password of MONGODB_URI" in output
    async with serve(place, MONGODB_URI=wrong, TEMPORAL_TASK_QUEUE=user) as client:
        text = error(await client.call_tool("check_semantic_cache", {"query": "Up?"}))
    assert "refused the user or the password of MONGODB_URI" in text


@pytest.mark.parametrize("options", ["", "?replicaSet=atlas-x&timeoutMS=1000"])
async def test_that_nothing_listens_is_named(place: Path, stack: Addresses, options: str) -> None:
    assert "nothing listens at the host and port of MONGODB_URI" in await doctors_word(
        place, f"mongodb://ann:{PASSWORD}@127.0.0.1:1/{options}"
    )


async def test_a_host_that_dns_does_not_know_is_named(place: Path, stack: Addresses) -> None:
    hosts = "a.nowhere.invalid,b.nowhere.invalid"
    said = await doctors_word(place, f"mongodb://ann:{PASSWORD}@{hosts}/?replicaSet=atlas-x&timeoutMS=1000")
    # A machine without DNS can't tell.
    assert "isn't known to DNS" in said or "can't be looked up: DNS doesn't answer" in said


async def test_a_cluster_that_dns_does_not_know_is_named(place: Path, stack: Addresses) -> None:
    said = await doctors_word(place, f"mongodb+srv://ann:{PASSWORD}@cluster0.nowhere.invalid/")
    # A machine without DNS can't tell.
    assert "isn't known to DNS" in said or "can't be looked up: DNS doesn't answer" in said


@pytest.mark.parametrize("options", ["timeoutMS=1000", "replicaSet=atlas-x&timeoutMS=1000"])
async def test_a_server_that_never_answers_is_named(place: Path, stack: Addresses, options: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = await doctors_word(place, f"mongodb://ann:{PASSWORD}@127.0.0.1:{port}/?{options}")
    assert "no server behind MONGODB_URI answers" in said
    assert "paused" in said
    assert "access list" in said


async def test_a_server_without_atlas_search_is_named(place: Path, stack: Addresses, tmp_path: Path) -> None:
    with ExitStack() as ended:
        plain = plain_server(tmp_path / "plain")
        ended.callback(stop, plain)
        where = f"mongodb://127.0.0.1:{plain.address[1]}/?directConnection=true"
        assert "has no Atlas Search" in await doctors_word(place, where)
        status, output = await run(place, "index", MONGODB_URI=where)
    assert status == 1
    assert "has no Atlas Search" in output


async def test_a_server_without_tls_is_named(place: Path, stack: Addresses) -> None:
    # What isn't a message of its protocol, MongoDB answers by closing the connection.
    async with answering(b"") as port:
        said = await doctors_word(place, f"mongodb://ann:{PASSWORD}@127.0.0.1:{port}/?tls=true&timeoutMS=1000")
    assert "TLS handshake" in said
    assert "tls=false" in said


async def test_an_address_that_atlas_does_not_let_in_is_named(place: Path, stack: Addresses) -> None:
    async with answering(ALERT) as port:
        where = f"mongodb://ann:{PASSWORD}@127.0.0.1:{port}/?tls=true&timeoutMS=1000&replicaSet=atlas-x"
        assert "isn't in the project's IP access list" in await doctors_word(place, where)


# The password


async def test_the_password_never_shows(
    client: Client, temporal: TemporalClient, place: Path, outputs: list[str], uri: str, user: str
) -> None:
    """Whatever the commands and tools of this test write, with the right password and with a wrong one."""
    await checked(place, outputs, "doctor", MONGODB_URI=uri, LOG_LEVEL="DEBUG")
    note = place / f"{user}.md"
    note.write_text("# Note\n\nSomething to keep.\n")
    await checked(place, outputs, "ingest", str(note), "--user-id", user, MONGODB_URI=uri, LOG_LEVEL="DEBUG")
    shown = list(outputs)
    wrong = uri.replace(PASSWORD, WRONG_PASSWORD)
    for line in (("doctor",), ("index",), ("index", "--check"), ("ingest", str(note), "--user-id", f"{user}-2")):
        status, output = await run(place, *line, MONGODB_URI=wrong, LOG_LEVEL="DEBUG", CALL_TIMEOUT_SECONDS="10")
        assert status != 0
        assert "refused the user or the password" in output
        shown.append(output)

    for given in (uri, wrong):
        settings = {"MONGODB_URI": given, "TEMPORAL_TASK_QUEUE": f"{user}-{given == uri}", "LOG_LEVEL": "DEBUG"}
        async with serve(place, **settings) as one:
            for tool, arguments in {
                "store_memory": {"conversation_id": "c", "text": "Keep this.", "message_type": "human"},
                "retrieve_memory": {"text": "Keep this."},
                "hybrid_search": {"query": "Keep this."},
                "check_semantic_cache": {"query": "Keep this."},
                "semantic_cache_response": {"query": "Why?", "response": "Because."},
            }.items():
                result = await one.call_tool(tool, arguments)
                assert result.is_error == (given == wrong)
                assert workflow_id(result)
                shown.append(message(result))
            for resource in ("config://settings", "health://status"):
                shown.append(str((await one.read_resource(resource)).contents))

    kept = await histories(temporal)
    assert user.encode() in kept
    assert "refused the user or the password" in logs(place)
    for secret in SECRETS:
        assert not [text for text in shown if secret in text]
        assert secret not in logs(place)
        assert secret.encode() not in kept
