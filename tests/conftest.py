"""What every test shares: one embedded stack, and ways to reach a server on it as a client would."""

import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from hypothesis import settings
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client as TemporalClient

from mcp_server.local.stack import Addresses, leased
from mcp_server.runtime import connect
from mcp_server.settings import Settings
from mcp_server.tasks import WORKFLOW_ID
from tests.atlas.running import stand_in
from tests.faults.bedrock_endpoint import Endpoint, serve_endpoint

REPOSITORY = Path(__file__).parents[1]
CORPUS = REPOSITORY / "mcp_server" / "corpus"

# Whatever is set up on the machine, tests choose their pieces themselves.
OURS = (
    *("TEMPORAL_", "AWS_", "MONGODB_", "DB_", "DOCUMENTS_", "CONVERSATIONS_", "VECTOR_", "EXTERNAL_", "EMBEDDING_"),
    "MCP_",
    *(
        "LLM_",
        "TAVILY_",
        "AUTH_",
        "ALLOWED_",
        "CACHE_",
        "MEMORY_",
        "CHUNK_",
        "INGEST_",
        "IMAGE_",
        "FETCH_",
        "VISION_",
        "CONVERSATION_",
    ),
)


# How long an example takes says nothing on a busy machine.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> Iterator[None]:
    # Run in a shell's background, this process ignores it, and so would every process that a test means to interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(OURS):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder that tests share; they keep apart by user."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
async def stack(home: Path) -> AsyncIterator[Addresses]:
    """The real Temporal dev server and the real model endpoint, one each for the whole run."""
    async with leased(home, ["temporal", "models"]) as addresses:
        yield addresses


@pytest.fixture(scope="session")
async def temporal(home: Path, stack: Addresses) -> TemporalClient:
    return await connect(Settings(durable_context_home=home), stack.temporal)


@pytest.fixture
def user() -> str:
    """A user whom no other test knows."""
    return f"user-{uuid.uuid4().hex[:12]}"


def command(*arguments: str) -> list[str]:
    """The command line of `durable-context`, as a process of this Python."""
    return [sys.executable, "-m", "mcp_server", *arguments]


def environment(home: Path, **settings: str) -> dict[str, str]:
    """A process environment with nothing of the tests' own but the data folder and `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | {"DURABLE_CONTEXT_HOME": str(home), "LOG_LEVEL": "INFO"} | settings


@asynccontextmanager
async def serve(home: Path, *arguments: str, mode: str = "auto", **settings: str) -> AsyncIterator[Client]:
    """A client of a `durable-context serve` of its own, over stdio."""
    home.mkdir(exist_ok=True)
    line = command("serve", *arguments)
    parameters = StdioServerParameters(command=line[0], args=line[1:], env=environment(home, **settings), cwd=home)
    async with Client(stdio_client(parameters), mode=mode) as client:
        yield client


@pytest.fixture(scope="session")
async def client(home: Path, stack: Addresses) -> AsyncIterator[Client]:
    """A client over stdio that tests share."""
    async with serve(home) as client:
        yield client


async def pollers_of(temporal: TemporalClient, task_queue: str) -> list[PollerInfo]:
    """Who has asked for workflow tasks of a task queue lately."""
    request = DescribeTaskQueueRequest(
        namespace=temporal.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    return list((await temporal.workflow_service.describe_task_queue(request)).pollers)


def content(result: CallToolResult) -> dict[str, Any]:
    """The structured content of a result that must not be an error."""
    assert not result.is_error, message(result)
    assert result.structured_content is not None
    assert json.loads(message(result)) == result.structured_content
    assert workflow_id(result)
    structured: dict[str, Any] = result.structured_content
    return structured


def task_of(result: CallToolResult) -> dict[str, Any]:
    """What a call answered that goes on as a task."""
    structured = content(result)
    assert structured["task_id"] == workflow_id(result)
    assert structured["status"] == "working"
    assert "not lost" in structured["message"]
    return structured


def message(result: CallToolResult) -> str:
    """The text of a result."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def error(result: CallToolResult) -> str:
    """The text of a result that must be a tool error, worded for a caller."""
    assert result.is_error, message(result)
    text = message(result)
    assert "Traceback" not in text
    assert "pydantic" not in text
    assert "Error executing tool" not in text
    return text


def workflow_id(result: CallToolResult) -> str:
    assert result.meta is not None
    found: str = result.meta[WORKFLOW_ID]
    return found


def held(home: Path) -> list[str]:
    """The contents that are kept for workflows."""
    folder = home / "contents"
    return os.listdir(folder) if folder.exists() else []


@pytest.fixture
def bedrock() -> Iterator[Endpoint]:
    """What a server takes for Amazon Bedrock whose settings it is given."""
    with serve_endpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Whatever TEST_MONGODB_URI names, otherwise the stand-in."""
    if uri := os.environ.get("TEST_MONGODB_URI"):
        yield uri
        return
    with stand_in(tmp_path_factory.mktemp("atlas")) as uri:
        yield uri


@pytest.fixture(scope="session")
def mongodb(mongodb_uri: str) -> Iterator[pymongo.MongoClient[dict[str, object]]]:
    with pymongo.MongoClient[dict[str, object]](mongodb_uri) as client:
        yield client
