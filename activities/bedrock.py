"""Amazon Bedrock through boto3: embeddings by InvokeModel, text by Converse.

The embedded models answer the same calls on a loopback endpoint. Nothing is retried here: Temporal does that, and every
error is classed once, in `bedrock_errors`.
"""

import asyncio
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.bedrock_errors import Called, explain
from activities.embedding_models import embedding_family, embedding_model, shown_model_id
from activities.errors import failure
from activities.models import (
    EmbeddingModel,
    Embeddings,
    EmbedParams,
    Generated,
    GenerateParams,
    Side,
    pack_vector,
)

if TYPE_CHECKING:
    from botocore.loaders import Loader
    from botocore.session import Session
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient
    from mypy_boto3_bedrock_runtime.type_defs import (
        ContentBlockUnionTypeDef,
        ConverseRequestTypeDef,
        ConverseResponseTypeDef,
        ImageBlockTypeDef,
    )

# boto3 takes 0.4 s to import, so that is left to the thread that makes the first call.

CONNECT_SECONDS = 3.0
EMBED_SECONDS = 20.0
TEXT_SECONDS = 60.0
CALLS_AT_ONCE = 16
KEPT_TEXTS = 256
"""Of how many single texts vectors are kept: a turn of an agent's asks for the same question's up to four times."""
JOINED_SECONDS = 5.0
"""How old a call may be that another one waits for too: one that takes longer may never be answered."""

T = TypeVar("T")


class BedrockRuntime:
    """One boto3 client, made by the first call, and the threads its calls run in."""

    def __init__(
        self, model_id: str, setting: str, region: str | None, endpoint_url: str | None, read_seconds: float
    ) -> None:
        self.local = model_id.startswith("local.")
        if self.local and endpoint_url is None:
            raise ValueError(f"{model_id} needs the address of the endpoint that serves it")
        self.model_id = model_id
        self._setting = setting
        self._region = region
        self._endpoint_url = endpoint_url
        self._read_seconds = read_seconds
        self._client: BedrockRuntimeClient | None = None
        self._making = threading.Lock()
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "bedrock")

    @property
    def called(self) -> Called:
        region = self._client.meta.region_name if self._client else self._region
        return Called(self.model_id, self._setting, region, self.local)

    async def run(self, call: "Callable[[BedrockRuntimeClient], T]") -> T:
        """Run `call` in a thread, with the client.

        Raises:
            ApplicationError: for whatever it raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, call)

    def _run(self, call: "Callable[[BedrockRuntimeClient], T]") -> T:
        try:
            return call(self._connected())
        except ApplicationError:
            raise
        except Exception as error:
            # Not chained: AWS's own words may hold accounts and roles, and a cause would take them to the history.
            raise explain(error, self.called) from None

    def _connected(self) -> "BedrockRuntimeClient":
        with self._making:
            if self._client is None:
                self._client = self.make_client()
            return self._client

    def make_client(self) -> "BedrockRuntimeClient":
        """A client that isn't connected yet."""
        import boto3
        import botocore
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=self._read_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=CALLS_AT_ONCE,
            tcp_keepalive=True,
        )
        if not self.local:
            return boto3.Session(botocore_session=_new_session(), region_name=self._region).client(
                "bedrock-runtime", endpoint_url=self._endpoint_url, config=config
            )
        # The user's profile, credentials and proxy are for AWS: calls to this machine neither need nor read them.
        unset: tuple[Any, Any, Any, Any] = (None, None, None, None)
        session = _new_session(profile=unset, config_file=unset, credentials_file=unset)
        return boto3.Session(botocore_session=session, region_name="us-east-1").client(
            "bedrock-runtime",
            endpoint_url=self._endpoint_url,
            config=config.merge(
                Config(
                    signature_version=botocore.UNSIGNED,
                    proxies={},
                    use_fips_endpoint=False,
                    use_dualstack_endpoint=False,
                    defaults_mode="legacy",  # type: ignore[arg-type]  # the stubs have it as a bool
                )
            ),
        )


def sendable(text: str) -> str:
    """`text` with lone surrogates, which no encoding can carry, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass(eq=False)
class _Call:
    """A call of the embedding model with one text, and how many wait for it."""

    task: asyncio.Task[list[bytes]]
    begun: float = field(default_factory=time.monotonic)
    waiting: int = 0


class BedrockEmbeddings:
    """An embedding model on Bedrock, or the embedded one.

    Args:
        model_id: A foundation model's id, an inference profile's id, or the ARN of either.
        dimensions: Length of the vectors; None for the model's default.
        region: AWS region; None for what boto3 finds.
        endpoint_url: Address of the Bedrock Runtime API; None for AWS's own. Local models need one.

    Raises:
        ApplicationError: `not_configured` where the model isn't known, or can't have these dimensions.
    """

    def __init__(self, model_id: str, dimensions: int | None, region: str | None, endpoint_url: str | None) -> None:
        self._family = embedding_family(model_id)
        self._model = embedding_model(model_id, dimensions)
        self._runtime = BedrockRuntime(model_id, "EMBEDDING_MODEL_ID", region, endpoint_url, EMBED_SECONDS)
        # By digests with a salt: of the texts themselves, which may have to be forgotten, nothing is kept.
        self._salt = os.urandom(32)
        self._kept: dict[bytes, list[bytes]] = {}
        self._under_way: dict[bytes, _Call] = {}

    @property
    def model(self) -> EmbeddingModel:
        return self._model

    @property
    def local(self) -> bool:
        return self._runtime.local

    @property
    def texts_at_once(self) -> int:
        """How many texts of one list are under way at a time."""
        return self._family.batch * self._family.calls

    def begin(self, text: str, side: Side) -> None:
        """Begin the call that the next `embed` of this text alone waits for.

        Where as many are under way as run at once, it is left to `embed`.
        """
        key = self._key(text, side)
        if key not in self._kept and len(self._under_way) < CALLS_AT_ONCE:
            self._call(key, text, side)

    async def embed(self, texts: Sequence[str], side: Side) -> list[bytes]:
        """Vectors of `texts`, in order, each packed by `pack_vector` (4 bytes a dimension, unit length).

        A text longer than the model takes is embedded by its beginning. A text by itself is not embedded again where
        that was done lately, or is under way.

        Raises:
            ApplicationError: `throttled` or `unavailable`, which pass; `rejected`, for example for an empty text;
                `access_denied` or `not_configured`.
        """
        if len(texts) != 1:
            return await self._embed(texts, side)
        key = self._key(texts[0], side)
        if (kept := self._kept.pop(key, None)) is not None:
            # The one that was asked for least lately goes first.
            self._kept[key] = kept
            return [*kept]
        call = self._call(key, texts[0], side)
        call.waiting += 1
        try:
            return [*await asyncio.shield(call.task)]
        finally:
            call.waiting -= 1
            if not call.waiting:
                self._end(key, call)

    def _key(self, text: str, side: Side) -> bytes:
        return hashlib.blake2b(f"{side}\0{text}".encode("utf-8", "surrogatepass"), key=self._salt).digest()

    def _call(self, key: bytes, text: str, side: Side) -> "_Call":
        """The call that embeds a text: one that is under way, if it began lately."""
        call = self._under_way.get(key)
        if call is None or call.task.done() or time.monotonic() > call.begun + JOINED_SECONDS:
            call = self._under_way[key] = _Call(asyncio.create_task(self._embed([text], side)))
            call.task.add_done_callback(functools.partial(self._keep, key, call))
        return call

    def _keep(self, key: bytes, call: "_Call", task: asyncio.Task[list[bytes]]) -> None:
        """Keep what a call came to; where nobody waits for it, its error is nobody's."""
        self._end(key, call)
        if not task.cancelled() and task.exception() is None:
            self._kept[key] = task.result()
            if len(self._kept) > KEPT_TEXTS:
                del self._kept[next(iter(self._kept))]

    def _end(self, key: bytes, call: "_Call") -> None:
        """Have nobody wait for a call from here on."""
        if self._under_way.get(key) is call:
            del self._under_way[key]
        call.task.cancel()

    async def _embed(self, texts: Sequence[str], side: Side) -> list[bytes]:
        limit = self._family.max_characters
        whole = [sendable(text)[:limit] for text in texts]
        batches = [whole[at : at + self._family.batch] for at in range(0, len(whole), self._family.batch)]
        slots = asyncio.Semaphore(self._family.calls)

        async def call(batch: list[str]) -> list[bytes]:
            async with slots:
                return await self._runtime.run(lambda client: self._invoke(client, batch, side))

        calls = [asyncio.ensure_future(call(batch)) for batch in batches]
        try:
            return [vector for vectors in await asyncio.gather(*calls) for vector in vectors]
        finally:
            for pending in calls:
                pending.cancel()

    def _invoke(self, client: "BedrockRuntimeClient", batch: list[str], side: Side) -> list[bytes]:
        body = self._family.body(batch, side, self._model.dimensions)
        answer = client.invoke_model(
            modelId=self._runtime.model_id,
            body=json.dumps(body),
            contentType="application/json",
            accept="application/json",
        )
        content = answer["body"].read()
        try:
            vectors = [pack_vector(vector) for vector in self._family.vectors(json.loads(content))]
        except (ValueError, KeyError, TypeError):
            vectors = []
        if [len(vector) for vector in vectors] != [4 * self._model.dimensions] * len(batch):
            raise failure(
                "rejected",
                f"{self._runtime.called.service} did not answer with {self._model.dimensions} numbers a text for "
                f"{self._runtime.called.model}. Check EMBEDDING_MODEL_ID and EMBEDDING_DIMENSIONS.",
            )
        return vectors

    async def check(self) -> str:
        """Embed one word, and say which model did, with how many dimensions, and where.

        Raises:
            ApplicationError: as `embed`.
        """
        await self._embed(["ready"], "query")
        where = "embedded" if self.local else f"Amazon Bedrock, {self._runtime.called.region}"
        return f"{shown_model_id(self._runtime.model_id)}, {self._model.dimensions} dimensions ({where})"


class BedrockText:
    """A text model on Bedrock, or the embedded extractive one.

    Args:
        model_id: Any model that the Converse API serves: its id, an inference profile's id, or the ARN of either.
        region: AWS region; None for what boto3 finds.
        endpoint_url: Address of the Bedrock Runtime API; None for AWS's own. Local models need one.
        setting: Which setting names the model.
    """

    def __init__(
        self, model_id: str, region: str | None, endpoint_url: str | None, setting: str = "LLM_MODEL_ID"
    ) -> None:
        self._runtime = BedrockRuntime(model_id, setting, region, endpoint_url, TEXT_SECONDS)
        self._takes_temperature = True
        self._takes_tools = True

    @property
    def model_id(self) -> str:
        return self._runtime.model_id

    @property
    def local(self) -> bool:
        return self._runtime.local

    @property
    def generative(self) -> bool:
        """Whether it writes; the embedded one only picks sentences out of its prompt."""
        return not self.local

    async def generate(self, params: GenerateParams, image: "ImageBlockTypeDef | None" = None) -> Generated:
        """One answer to one prompt, and to an image where there is one.

        Where the answer has a schema, the model is made to give it as a tool's argument, and the text is that as JSON.
        A model that takes no tools is asked without: check what it answers.

        Raises:
            ApplicationError: `throttled` or `unavailable`, which pass; `rejected`, `access_denied` or
                `not_configured`, which don't.
        """
        return await self._runtime.run(lambda client: self._read(self._converse(client, params, image)))

    def _read(self, answer: "ConverseResponseTypeDef") -> Generated:
        # Reasoning, where a model shows it, comes in blocks of its own.
        blocks = answer["output"]["message"]["content"]
        tool = next((block["toolUse"] for block in blocks if "toolUse" in block), None)
        return Generated(
            text=json.dumps(tool["input"]) if tool else "".join(block.get("text", "") for block in blocks),
            model_id=shown_model_id(self._runtime.model_id),
            stop_reason=answer["stopReason"],
            input_tokens=answer["usage"]["inputTokens"],
            output_tokens=answer["usage"]["outputTokens"],
        )

    def _converse(
        self, client: "BedrockRuntimeClient", params: GenerateParams, image: "ImageBlockTypeDef | None"
    ) -> "ConverseResponseTypeDef":
        while True:
            takes_tools, takes_temperature = self._takes_tools, self._takes_temperature
            try:
                return client.converse(**self._request(params, image, takes_tools, takes_temperature))
            except client.exceptions.ValidationException as error:
                # Recent Claude models refuse a temperature, and others tools. Nothing but the answer says which do.
                if takes_temperature and "temperature" in str(error):
                    self._takes_temperature = False
                elif takes_tools and params.answer_schema and "tool" in str(error).lower():
                    self._takes_tools = False
                else:
                    raise

    def _request(
        self,
        params: GenerateParams,
        image: "ImageBlockTypeDef | None",
        with_tools: bool,
        with_temperature: bool,
    ) -> "ConverseRequestTypeDef":
        content: list[ContentBlockUnionTypeDef] = [{"text": sendable(params.prompt)}]
        if image is not None:
            content.insert(0, {"image": image})
        request: ConverseRequestTypeDef = {
            "modelId": self._runtime.model_id,
            "messages": [{"role": "user", "content": content}],
            "inferenceConfig": {"maxTokens": params.max_tokens},
        }
        if with_temperature:
            request["inferenceConfig"] = {"maxTokens": params.max_tokens, "temperature": params.temperature}
        if params.answer_schema and with_tools and self.generative:
            name = "answer"
            request["toolConfig"] = {
                "tools": [{"toolSpec": {"name": name, "inputSchema": {"json": params.answer_schema}}}],
                "toolChoice": {"tool": {"name": name}},
            }
        if params.system:
            request["system"] = [{"text": sendable(params.system)}]
        return request

    async def check(self) -> str:
        """Have a few words written, and say which model did, and where.

        Raises:
            ApplicationError: as `generate`.
        """
        await self.generate(GenerateParams(system="", prompt="Answer with the one word: ready.", max_tokens=16))
        remote = f"Amazon Bedrock, {self._runtime.called.region}"
        where = "embedded; picks sentences, writes none" if self.local else remote
        return f"{shown_model_id(self._runtime.model_id)} ({where})"


class BedrockActivities:
    """
    Args:
        embeddings: What embeds.
    """

    def __init__(self, embeddings: BedrockEmbeddings) -> None:
        self._embeddings = embeddings

    @activity.defn
    async def embed(self, params: EmbedParams) -> Embeddings:
        """Vectors of some texts, in order."""
        return Embeddings(vectors=await self._embeddings.embed(params.texts, params.side))


@functools.cache
def _data_loader(path: str | None) -> "Loader":
    """What reads boto3's descriptions of AWS. They come to 9 MB, which the clients of a process share."""
    from botocore.loaders import create_loader

    return create_loader(path)


def _new_session(**variables: Any) -> "Session":
    from botocore.session import Session

    session = Session(session_vars=variables)
    session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
    return session


def preload() -> None:
    """Import boto3 and read what every client needs, without connecting to anything."""
    BedrockText("local.preload", None, "http://127.0.0.1")._runtime.make_client()
