"""Brings the pieces up in the background, and runs one workflow for each tool call."""

import asyncio
import contextlib
import functools
import gc
import importlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, cast

from mcp_server.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel
    from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle
    from temporalio.common import WorkerDeploymentVersion

    from activities.bedrock import BedrockEmbeddings, BedrockText
    from activities.bedrock_converse import BedrockChat
    from activities.fetch import WebClient
    from activities.memory import MemoryActivities
    from activities.models import EmbedParams, PartialAnswer
    from activities.store.atlas import AtlasStore
    from activities.store.base import OpenedStore
    from activities.store.contents import Contents
    from mcp_server.local.stack import Addresses, Piece
    from workflows.endings import Ending, Endings

# Temporal, boto3 and the store are imported inside functions: a client is answered before they have loaded.

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
DESCRIBE_SECONDS = 10.0
"""How long Temporal may take to say how a workflow stands: one with thousands of them at once takes its time."""
EMBEDDED_CONNECT_SECONDS = 20.0
ENDS_HERE_SECONDS = 1.0
"""How long a workflow that began in this process may take before Temporal is asked how it ends as well."""
LONG_IMPORTS = ("temporalio.api.workflowservice.v1", "temporalio.envconfig", "workflows.worker")
_MAYBE_STARTED = "It isn't known whether the work was started."


class CallError(Exception):
    """A tool call that has no result.

    Attributes:
        workflow_id: The workflow that was started for it, if one was.
    """

    def __init__(self, message: str, workflow_id: str | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class UnreachableError(CallError):
    """A piece can't be reached now, and may be back in a moment."""


@dataclass(frozen=True)
class Started:
    """A workflow that was started.

    Attributes:
        ending: How it ends, where a worker in this process has begun it.
    """

    workflow_id: str
    ending: "Ending | None" = None


@dataclass(frozen=True)
class Parts:
    """What activities work with."""

    embeddings: "BedrockEmbeddings"
    text: "BedrockText"
    chat: "BedrockChat"
    store: "OpenedStore"
    contents: "Contents"
    web: "WebClient"


def build_embeddings(settings: Settings, endpoint: str | None) -> "BedrockEmbeddings":
    """The embedding model; nothing is connected yet.

    Args:
        settings: Which it is.
        endpoint: Where the local models answer.

    Raises:
        ApplicationError: `not_configured` where the model or its dimensions can't be used.
    """
    from activities.bedrock import BedrockEmbeddings

    return BedrockEmbeddings(
        settings.embedding_model_id,
        settings.embedding_dimensions,
        settings.aws_region,
        endpoint if settings.embeddings_are_local else None,
    )


def build_text(settings: Settings, endpoint: str | None) -> "BedrockText":
    """The text model; nothing is connected yet. Arguments as for `build_embeddings`."""
    from activities.bedrock import BedrockText

    return BedrockText(settings.llm_model_id, settings.aws_region, endpoint if settings.text_is_local else None)


def build_chat(settings: Settings, endpoint: str | None) -> "BedrockChat":
    """The text model as a partner in conversation. Arguments as for `build_embeddings`."""
    from activities.bedrock_converse import BedrockChat

    return BedrockChat(settings.llm_model_id, settings.aws_region, endpoint if settings.text_is_local else None)


def build_vision(settings: Settings) -> "BedrockText | None":
    """What describes images; None where no model does."""
    from activities.bedrock import BedrockText

    model_id = settings.described_by
    return BedrockText(model_id, settings.aws_region, None, "VISION_MODEL_ID") if model_id else None


def build_atlas(settings: Settings) -> "AtlasStore":
    """The store in MongoDB Atlas; nothing is connected yet."""
    from activities.store.atlas import AtlasStore
    from workflows.worker import CONCURRENT_ACTIVITIES

    assert settings.mongodb_uri is not None
    return AtlasStore(
        settings.mongodb_uri.get_secret_value(),
        settings.db_name,
        names=settings.collection_names,
        quantization=settings.vector_quantization,
        external=settings.external_collections,
        pool_size=CONCURRENT_ACTIVITIES,
    )


def build_store(settings: Settings, embeddings: "BedrockEmbeddings") -> "OpenedStore":
    """The store, to be filled by `embeddings`; opened at its first use."""
    from activities.store.base import OpenedStore

    if settings.store_is_remote:
        return OpenedStore(build_atlas(settings), embeddings.model)
    from activities.store.sqlite import SqliteStore

    return OpenedStore(SqliteStore(settings.store_path), embeddings.model)


def build_contents(settings: Settings) -> "Contents":
    """What holds contents that don't travel through histories: GridFS in Atlas, or a folder."""
    if settings.mongodb_uri is not None:
        from activities.store.atlas import AtlasContents

        return AtlasContents(settings.mongodb_uri.get_secret_value(), settings.db_name, settings.collection_names)
    from activities.store.contents import FileContents

    return FileContents(settings.contents_path)


def build_parts(settings: Settings, endpoint: str | None) -> Parts:
    """All of them. Arguments and errors as for `build_embeddings`."""
    from activities.fetch import WebClient

    embeddings = build_embeddings(settings, endpoint)
    return Parts(
        embeddings,
        build_text(settings, endpoint),
        build_chat(settings, endpoint),
        build_store(settings, embeddings),
        build_contents(settings),
        WebClient(settings.fetch_allowed_networks, settings.ingest_max_bytes),
    )


def build_activities(settings: Settings, parts: Parts) -> list[object]:
    """Everything a worker runs activities of."""
    from activities.bedrock import BedrockActivities
    from activities.cache import CacheActivities, default_threshold
    from activities.conversation import ConversationActivities
    from activities.documents import DocumentActivities
    from activities.forget import ForgetActivities, default_likeness
    from activities.generation import GenerationActivities
    from activities.images import ImageActivities
    from activities.memory import MemoryActivities
    from activities.reading import Reader
    from activities.reembed import ReembedActivities
    from activities.search import SearchActivities
    from activities.sources import SourceReader
    from activities.summaries import SummaryActivities
    from activities.web import WebActivities

    threshold = settings.cache_threshold
    if threshold is None:
        threshold = default_threshold(parts.embeddings.model.model_id)
    key = settings.tavily_api_key
    contents = parts.contents
    sources = SourceReader(contents, settings.ingest_max_bytes)
    reader = Reader(settings.chunk_tokens, settings.chunk_overlap_tokens)
    vision = build_vision(settings)
    describer = vision.model_id if vision else ""
    memory = MemoryActivities(parts.store, parts.embeddings, parts.text, settings.memory_budget)
    search = SearchActivities(parts.store)
    return [
        BedrockActivities(parts.embeddings),
        CacheActivities(parts.store, parts.embeddings, threshold),
        ConversationActivities(parts.store, memory, search, parts.embeddings, parts.text),
        DocumentActivities(parts.store, contents, parts.embeddings, sources, reader, parts.web, describer),
        ForgetActivities(parts.store, default_likeness(parts.embeddings.model.model_id)),
        GenerationActivities(parts.chat, contents, key is not None, list(settings.mcp_servers)),
        ImageActivities(sources, contents, reader, vision, settings.image_max_side),
        memory,
        ReembedActivities(parts.store.unopened, parts.embeddings),
        search,
        SummaryActivities(parts.store, parts.text),
        WebActivities(key.get_secret_value() if key else None, settings.tavily_base_url),
    ]


def needed_pieces(settings: Settings, run_worker: bool) -> "list[Piece]":
    """What this process needs of the embedded stack; nothing where all of it is remote."""
    pieces: list[Piece] = []
    if not settings.temporal_is_remote:
        pieces.append("temporal")
    if run_worker and (settings.embeddings_are_local or settings.text_is_local):
        pieces.append("models")
    return pieces


def _load(store: str) -> None:
    """Import everything that takes long, the module of the store included."""
    for name in (*LONG_IMPORTS, store):
        importlib.import_module(name)


@functools.cache
def _forward_core_logs() -> None:
    """Have Temporal's core log through Python's logging: by itself it writes to stdout, which is the protocol's."""
    from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

    forwarding = LogForwardingConfig(logger=logging.getLogger("temporalio.core"))
    log = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding=forwarding)
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=log)), error_if_already_set=False)


async def connect_embedded(address: str) -> "Client":
    """Connect to the embedded Temporal server, which listens a moment before it is healthy.

    Raises:
        RuntimeError: where it doesn't become so.
    """
    from temporalio.client import Client, GrpcCompression

    from workflows.worker import DATA_CONVERTER

    _forward_core_logs()
    deadline = time.monotonic() + EMBEDDED_CONNECT_SECONDS
    while True:
        try:
            # By default both ends compress what never leaves the machine.
            return await Client.connect(address, data_converter=DATA_CONVERTER, grpc_compression=GrpcCompression.NONE)
        except RuntimeError:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.05)


async def connect(settings: Settings, address: str | None) -> "Client":
    """Connect to Temporal: at `address` of the embedded stack, or as the settings and Temporal's own variables say.

    Raises:
        RuntimeError: where it can't be reached.
        ValueError: where the address isn't one.
    """
    import os

    from temporalio.client import Client
    from temporalio.envconfig import ClientConfig

    from workflows.worker import DATA_CONVERTER

    if address is not None:
        return await connect_embedded(address)
    _forward_core_logs()
    variables = os.environ | {"TEMPORAL_ADDRESS": settings.temporal_address or ""}
    if "temporal_namespace" in settings.model_fields_set:
        variables |= {"TEMPORAL_NAMESPACE": settings.temporal_namespace}
    config = ClientConfig.load_client_connect_config(override_env_vars=variables)
    return await Client.connect(**config, data_converter=DATA_CONVERTER)


class Runtime:
    """One process's Temporal client and, unless it only starts workflows, its worker.

    Args:
        settings: Which pieces are remote, and where.
        run_worker: Whether to run activities here too.
        verify_store: Whether to open the store at once, so that the log says what is wrong with it.
        versioned: Whether the worker is a version of the task queue's deployment.
    """

    def __init__(
        self, settings: Settings, run_worker: bool = True, verify_store: bool = False, versioned: bool = True
    ) -> None:
        self.settings = settings
        self.run_worker = run_worker
        self.verify_store = verify_store
        self.versioned = versioned
        self.addresses: Addresses | None = None
        self.parts: Parts | None = None
        self._client: Client | None = None
        self._contents: Contents | None = None
        self._loading: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._is_current = asyncio.Event()
        self._endings: Endings | None = None
        self._memory: MemoryActivities | None = None
        self._refused = False
        self.problem: str | None = "The server is still starting. Try again in a moment."

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring the pieces up in the background for the length of the block; what fails is tried again."""
        store = "activities.store.atlas" if self.settings.store_is_remote else "activities.store.sqlite"
        self._loading = asyncio.create_task(asyncio.to_thread(_load, store))
        task = asyncio.create_task(self._keep_up())
        try:
            yield
        finally:
            if self._memory is not None and self.problem is None:
                await self._memory.settle()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def contents(self) -> "Contents":
        """Where contents are kept that don't travel through histories; also without a worker here."""
        if self._contents is None:
            self._contents = build_contents(self.settings)
        return self._contents

    @property
    def connected(self) -> "Client | None":
        """The Temporal client, if there is one now."""
        return self._client if self.problem is None else None

    async def loaded(self) -> None:
        """Return once the modules that take long have been imported.

        They are imported in a thread, and nothing else may import any of them meanwhile: protobuf's generated modules
        don't survive being imported by two threads at once.
        """
        assert self._loading is not None
        await asyncio.shield(self._loading)

    async def client(self, deadline: float) -> "Client":
        """The Temporal client, once it is connected.

        Args:
            deadline: `time.monotonic()` after which to stop waiting.

        Raises:
            CallError: saying which piece is missing and what to do.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._settled.wait()
        if self.problem is not None:
            raise CallError(self.problem) if self._refused else UnreachableError(self.problem)
        assert self._client is not None
        return self._client

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._run()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                await self.loaded()
                self._fail(error)
                if self._refused:
                    return
                await asyncio.sleep(RETRY_SECONDS)

    def _fail(self, error: Exception) -> None:
        """Say what keeps the pieces from coming up; what only another setting can mend is said to calls at once."""
        from temporalio.exceptions import ApplicationError
        from temporalio.service import RPCError

        from mcp_server.local.stack import StackError

        known = True
        if isinstance(error, StackError):
            problem = str(error)
        elif isinstance(error, RPCError):
            problem = _unreachable(self.settings) if _passes(error) else _explain_rpc(error, self.settings)
        elif isinstance(error, ApplicationError):
            problem, self._refused = error.message, error.non_retryable
        elif isinstance(error, (RuntimeError, ValueError)) and self.settings.temporal_is_remote:
            problem = (
                f"Temporal can't be reached at {self.settings.temporal_address}. "
                "Check TEMPORAL_ADDRESS (host:port), TEMPORAL_NAMESPACE and the network; nothing was started."
            )
        else:
            known = False
            problem = f"The workflow engine can't be started ({type(error).__name__}); the log says more."
        self.problem = problem
        if self._refused:
            self._settled.set()
        else:
            self._settled.clear()
        logger.error("%s", problem, exc_info=not known or logger.isEnabledFor(logging.DEBUG))

    async def _run(self) -> None:
        """Hold the stack, the client and the worker until cancelled, or until something of them fails."""
        from mcp_server.local.stack import leased

        moved = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            addresses = None
            if need := needed_pieces(self.settings, self.run_worker):

                async def on_move(now: "Addresses") -> None:
                    if now != addresses:
                        moved.set()

                addresses = await stack.enter_async_context(leased(self.settings.durable_context_home, need, on_move))
                self.addresses = addresses
                if addresses.temporal_ui:
                    logger.info("embedded Temporal at %s, web UI at %s", addresses.temporal, addresses.temporal_ui)
            await self.loaded()
            from activities.mcp_servers import build_plugin
            from activities.memory import MemoryActivities
            from mcp_server.deployment import keep_current
            from workflows.endings import Endings
            from workflows.worker import build_worker

            client = await connect(self.settings, addresses.temporal if addresses else None)
            running: list[asyncio.Task[None]] = []
            if self.run_worker:
                self.parts = parts = build_parts(self.settings, addresses.models if addresses else None)
                stack.push_async_callback(parts.store.close)
                stack.push_async_callback(parts.contents.close)
                stack.push_async_callback(parts.web.close)
                activities = build_activities(self.settings, parts)
                deployment = await self._deployment(client)
                servers = build_plugin(self.settings.mcp_servers)
                self._endings = Endings()
                stack.callback(self._endings.close)
                queue = self.settings.temporal_task_queue
                workers = [build_worker(client, queue, activities, deployment, servers, self._endings)]
                if self.settings.ingest_roots:
                    workers.append(build_worker(client, self.settings.files_queue, activities))
                for worker in workers:
                    running.append(asyncio.create_task(worker.run()))
                    stack.push_async_callback(_stop_worker, worker, running[-1])
                [self._memory] = (group for group in activities if isinstance(group, MemoryActivities))
                if deployment is not None:
                    promoting = asyncio.create_task(keep_current(client, deployment, self._is_current))
                    stack.callback(promoting.cancel)
            self._client = client
            self.problem = None
            self._settled.set()
            logger.info("ready: %s", ", ".join(self.describe()))
            if not gc.get_freeze_count():
                # What is there by now stays. To look through it for garbage holds up whoever waits, for 0.1 s.
                gc.freeze()
            if self.parts is not None and self.verify_store:
                verifying = asyncio.create_task(_verify(self.parts.store))
                stack.callback(verifying.cancel)
            waiting = asyncio.create_task(moved.wait())
            try:
                await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
                self._settled.clear()
                self.problem = "The workflow engine is restarting. Try again in a moment."
                for finished in running:
                    if finished.done():
                        await finished
            finally:
                waiting.cancel()

    async def _deployment(self, client: "Client") -> "WorkerDeploymentVersion | None":
        """Which version of which deployment the worker is; None where it is none, or the server knows none."""
        from temporalio.common import WorkerDeploymentVersion

        from mcp_server.deployment import takes_versions
        from workflows.worker import build_id

        self._is_current.clear()
        version = WorkerDeploymentVersion(deployment_name=self.settings.temporal_task_queue, build_id=build_id())
        if self.versioned and await takes_versions(client, version, self._is_current):
            return version
        # What belongs to no version goes to any worker.
        self._is_current.set()
        return None

    def describe(self) -> list[str]:
        """One phrase for each piece: which it is, and why."""
        settings = self.settings
        return [
            f"Temporal {settings.temporal_address} (TEMPORAL_ADDRESS is set)"
            if settings.temporal_is_remote
            else "embedded Temporal (TEMPORAL_ADDRESS isn't set)",
            f"store in MongoDB Atlas, {settings.store_name} (MONGODB_URI is set)"
            if settings.store_is_remote
            else f"embedded store {settings.store_path} (MONGODB_URI isn't set)",
            f"embedding model {settings.shown_embedding_model}",
            f"text model {settings.shown_text_model}",
            "web search by Tavily" if settings.tavily_api_key else "no web search (TAVILY_API_KEY isn't set)",
        ]

    def begin_embedding(self, params: "EmbedParams") -> None:
        """Begin to embed the text that a workflow will that is about to start, where it will do so in this process."""
        if self.parts is not None and self.problem is None and self._is_current.is_set():
            [text] = params.texts
            self.parts.embeddings.begin(text, params.side)

    async def start(
        self,
        workflow: Any,
        params: "BaseModel",
        workflow_id: str,
        memo: dict[str, Any],
        deadline: float,
        at_once: bool = True,
    ) -> Started:
        """Start a workflow, exactly once however often it is asked for.

        Args:
            workflow: The workflow class.
            params: Its argument.
            workflow_id: Its id.
            memo: What is known of it without its history.
            deadline: `time.monotonic()` after which to stop trying.
            at_once: Whether the result may be told before Temporal has it, if the workflow only reads.

        Raises:
            CallError: saying which piece is missing and what to do, and whether it may have been started.
        """
        from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
        from temporalio.exceptions import WorkflowAlreadyStartedError
        from temporalio.service import RPCError

        tried = False
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                while True:
                    try:
                        client = await self.client(deadline)
                    except UnreachableError:
                        if tried:
                            raise TimeoutError from None
                        raise
                    tried = True
                    ending = None
                    # An answered first call then means that Temporal routes work to this version.
                    if self._endings is not None and self._is_current.is_set():
                        ending = self._endings.of(workflow_id, at_once and getattr(workflow, "only_reads", False))
                    try:
                        handle = await client.start_workflow(
                            workflow.run,
                            params,
                            id=workflow_id,
                            task_queue=self.settings.temporal_task_queue,
                            # What failed or was cancelled may be asked for again.
                            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                            request_eager_start=ending is not None,
                            memo=memo,
                        )
                        begins_here = getattr(handle, "__temporal_eagerly_started", False)
                        return Started(workflow_id, ending if begins_here else None)
                    except WorkflowAlreadyStartedError:
                        # An earlier request arrived, and the workflow has ended since.
                        return Started(workflow_id)
                    except RPCError as error:
                        if not _passes(error):
                            raise CallError(_explain_rpc(error, self.settings)) from None
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            if self.problem is not None and not tried:
                raise CallError(self.problem) from None
            raise CallError(f"{_unreachable(self.settings)} {_MAYBE_STARTED}", workflow_id) from None

    async def run(self, workflow: Any, params: "BaseModel", name: str) -> Any:
        """Run a workflow that belongs to no tool call; answer its result as JSON values.

        Args:
            workflow: The workflow class.
            params: Its argument.
            name: With which its id begins.

        Raises:
            CallError: for what went wrong, worded for the caller.
        """
        from temporalio.client import WorkflowFailureError

        workflow_id = f"{name}-{uuid.uuid4().hex}"
        deadline = time.monotonic() + self.settings.call_timeout_seconds
        try:
            async with asyncio.timeout(self.settings.call_timeout_seconds):
                await self.loaded()
                return await self.result(await self.start(workflow, params, workflow_id, {}, deadline))
        except WorkflowFailureError as error:
            raise CallError(explain_failure(error), workflow_id) from None
        except TimeoutError:
            raise CallError("It takes longer than CALL_TIMEOUT_SECONDS. Try again later.", workflow_id) from None

    async def handle(self, workflow_id: str) -> "WorkflowHandle[Any, Any]":
        """A workflow by its id.

        Raises:
            CallError: saying which piece is missing and what to do.
        """
        client = await self.client(time.monotonic() + DESCRIBE_SECONDS)
        return client.get_workflow_handle(workflow_id)

    async def described(
        self, workflow_id: str, within: float = DESCRIBE_SECONDS
    ) -> "WorkflowExecutionDescription | None":
        """What Temporal says of a workflow of this deployment; None where it knows none.

        Args:
            workflow_id: Its id.
            within: Seconds that it may take.

        Raises:
            CallError: saying which piece is missing and what to do.
        """
        from temporalio.service import RPCError, RPCStatusCode

        try:
            async with asyncio.timeout(within):
                found = await (await self.handle(workflow_id)).describe()
        except TimeoutError:
            raise UnreachableError(f"{_unreachable(self.settings)} Try again later.") from None
        except RPCError as error:
            if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                return None
            raise CallError(_explain_rpc(error, self.settings)) from None
        return found if found.task_queue == self.settings.temporal_task_queue else None

    async def retention(self) -> timedelta | None:
        """How long Temporal keeps a workflow once it has ended; None where it doesn't say."""
        from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
        from temporalio.service import RPCError

        try:
            async with asyncio.timeout(DESCRIBE_SECONDS):
                client = await self.client(time.monotonic() + DESCRIBE_SECONDS)
                namespace = await client.workflow_service.describe_namespace(
                    DescribeNamespaceRequest(namespace=client.namespace)
                )
        except (TimeoutError, RPCError, CallError):
            return None
        return namespace.config.workflow_execution_retention_ttl.ToTimedelta()

    async def result(self, started: Started) -> Any:
        """A workflow's result as JSON values, however long it takes, and whether or not Temporal is there meanwhile.

        Raises:
            WorkflowFailureError: where it failed.
            CallError: where Temporal refuses to say, or what only another setting can mend is wrong.
        """
        from workflows.worker import DATA_CONVERTER

        if started.ending is None:
            return await self._asked(started.workflow_id)
        told = started.ending.result
        await asyncio.wait({told}, timeout=ENDS_HERE_SECONDS)
        asked = None
        try:
            if not told.done():
                asked = asyncio.create_task(self._asked(started.workflow_id))
                await asyncio.wait({told, asked}, return_when=asyncio.FIRST_COMPLETED)
            if told.done() and (result := told.result()) is not None:
                [value] = await DATA_CONVERTER.decode(result)
                return value
            return await (asked or self._asked(started.workflow_id))
        finally:
            if asked is not None:
                asked.cancel()

    async def _asked(self, workflow_id: str) -> Any:
        """What Temporal says of a workflow's end. Errors as of `result`."""
        from temporalio.service import RPCError

        while True:
            try:
                # By its id alone it comes as plain values, whatever its workflow says that it is.
                return await (await self.handle(workflow_id)).result()
            except UnreachableError:
                await asyncio.sleep(RETRY_SECONDS)
            except RPCError as error:
                if not _passes(error):
                    raise CallError(_explain_rpc(error, self.settings), workflow_id) from None
                await asyncio.sleep(RETRY_SECONDS)

    async def heard(self, description: "WorkflowExecutionDescription") -> dict[str, Any]:
        """The progress that a workflow's present step tells by its heartbeats, in the form of `workflows.steps.report`.

        Empty where it tells none.
        """
        for item in description.raw_description.pending_activities:
            if self._client is not None and item.heartbeat_details.payloads:
                [told, *_] = await self._client.data_converter.decode(item.heartbeat_details.payloads)
                if isinstance(told, dict) and told.keys() == {"stage", "fraction", "message"}:
                    at = item.last_heartbeat_time.ToDatetime(UTC)
                    return {**told, "at": at.isoformat()}
        return {}

    async def partial_answer(self, workflow_id: str) -> "PartialAnswer | None":
        """What there is so far of the answer that a workflow generates; None where none is being written.

        Raises:
            CallError: saying which piece is missing and what to do.
        """
        description = await self.described(workflow_id)
        return None if description is None else await partial_answer(description)

    def why_it_waits(self, description: "WorkflowExecutionDescription") -> str | None:
        """Why a workflow hasn't ended yet: the last failure of the step that is being retried, if any."""
        from temporalio.api.enums.v1 import PendingWorkflowTaskState

        from activities.errors import KINDS

        raw = description.raw_description
        for item in raw.pending_activities:
            # Others' words aren't meant for callers.
            if item.last_failure.application_failure_info.type in KINDS:
                return str(item.last_failure.message)
        waiting = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        if not self.run_worker and raw.HasField("pending_workflow_task") and raw.pending_workflow_task.state == waiting:
            return (
                "No worker has taken the work: start `durable-context worker` with the same TEMPORAL_ADDRESS, "
                "TEMPORAL_NAMESPACE and TEMPORAL_TASK_QUEUE."
            )
        return None


async def partial_answer(description: "WorkflowExecutionDescription") -> "PartialAnswer | None":
    """What there is so far of the answer that a workflow generates; None where none is being written."""
    from activities.models import PartialAnswer
    from workflows.worker import DATA_CONVERTER

    for pending in description.raw_description.pending_activities:
        if pending.activity_type.name == "generate_answer" and pending.heartbeat_details.payloads:
            [partial] = await DATA_CONVERTER.decode(pending.heartbeat_details.payloads, [PartialAnswer])
            return cast(PartialAnswer, partial)
    return None


async def _stop_worker(worker: Any, finished: "asyncio.Task[None]") -> None:
    if not finished.done():
        await worker.shutdown()
    with contextlib.suppress(Exception):
        await finished


async def _verify(store: "OpenedStore") -> None:
    """Open the store; the log says what keeps it from being used."""
    from temporalio.exceptions import ApplicationError

    try:
        await store()
    except ApplicationError as error:
        logger.error("store: %s", error.message)


def _unreachable(settings: Settings) -> str:
    if settings.temporal_is_remote:
        return f"Temporal at {settings.temporal_address} doesn't answer. Check TEMPORAL_ADDRESS and the network."
    return "The embedded Temporal server doesn't answer. It is being restarted."


def _passes(error: Any) -> bool:
    """Whether an RPC error passes by itself."""
    from temporalio.service import RPCStatusCode

    return error.status in {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.ABORTED,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.UNKNOWN,
        RPCStatusCode.CANCELLED,
    }


def _explain_rpc(error: Any, settings: Settings) -> str:
    from temporalio.service import RPCStatusCode

    if error.status == RPCStatusCode.PERMISSION_DENIED or error.status == RPCStatusCode.UNAUTHENTICATED:
        return "Temporal refused the credentials. Check TEMPORAL_API_KEY or the TLS certificate."
    if error.status == RPCStatusCode.NOT_FOUND:
        return f"Temporal has no namespace '{settings.temporal_namespace}'. Check TEMPORAL_NAMESPACE."
    return f"Temporal refused the request ({error.status.name})."


def explain_failure(error: BaseException) -> str:
    """The message in a workflow's failure that an activity worded for the caller, or what else ended the workflow."""
    from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError

    from activities.errors import KINDS

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    for found in causes:
        if isinstance(found, ApplicationError) and found.type in KINDS:
            return found.message
    for found in causes:
        if isinstance(found, CancelledError):
            return "The call was cancelled."
        if isinstance(found, TerminatedError):
            return "The workflow was terminated by an operator."
        if isinstance(found, TimeoutError):
            return "A step of the work did not answer in time. Try again later."
    return "The work failed; the workflow's history says why."
