"""Amazon Bedrock through boto3: embeddings by InvokeModel, text by Converse.

The embedded models answer the same calls on a loopback endpoint. Nothing is retried here: Temporal does that, and every
error is classed once, in `explain`.
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.errors import Kind, failure
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
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient
    from mypy_boto3_bedrock_runtime.type_defs import ConverseRequestTypeDef, ConverseResponseTypeDef

# boto3 takes 0.4 s to import, so that is left to the thread that makes the first call.

CONNECT_SECONDS = 3.0
EMBED_SECONDS = 20.0
TEXT_SECONDS = 60.0
CALLS_AT_ONCE = 16

T = TypeVar("T")
Body = dict[str, Any]


# Embedding models: what each one is asked, and where its answer holds the vectors


@dataclass(frozen=True)
class EmbeddingFamily:
    """How one sort of embedding model is called.

    Attributes:
        dimensions: Lengths its vectors can have, the default first.
        batch: Texts in a call, at most.
        calls: Calls in flight for one list of texts.
        max_characters: Length of a text beyond which the model refuses it; the rest of it is left out.
        body: Builds a request's body from texts, side and dimensions.
        vectors: Reads the vectors, one for each text in order, from the body of the answer.
    """

    dimensions: tuple[int, ...]
    batch: int
    calls: int
    max_characters: int | None
    body: Callable[[Sequence[str], Side, int], Body]
    vectors: Callable[[Body], list[list[float]]]


def _titan_v1_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    return {"inputText": texts[0]}


def _titan_v2_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    return {"inputText": texts[0], "dimensions": dimensions, "normalize": True}


def _titan_vectors(answer: Body) -> list[list[float]]:
    return [answer["embedding"]]


def _cohere_v3_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    input_type = "search_query" if side == "query" else "search_document"
    return {"texts": list(texts), "input_type": input_type, "truncate": "END"}


def _cohere_v4_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    # Version 4 renamed the truncation sides.
    return _cohere_v3_body(texts, side, dimensions) | {
        "truncate": "RIGHT",
        "embedding_types": ["float"],
        "output_dimension": dimensions,
    }


def _cohere_vectors(answer: Body) -> list[list[float]]:
    # Keyed by type where types were asked for; the documentation of version 4 shows a bare list for a single one.
    embeddings = answer["embeddings"]
    vectors: list[list[float]] = embeddings["float"] if isinstance(embeddings, dict) else embeddings
    return vectors


def _nova_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    return {
        "schemaVersion": "nova-multimodal-embed-v1",
        "taskType": "SINGLE_EMBEDDING",
        "singleEmbeddingParams": {
            "embeddingPurpose": "TEXT_RETRIEVAL" if side == "query" else "GENERIC_INDEX",
            "embeddingDimension": dimensions,
            "text": {"truncationMode": "END", "value": texts[0]},
        },
    }


def _nova_vectors(answer: Body) -> list[list[float]]:
    return [item["embedding"] for item in answer["embeddings"]]


_COHERE_V3 = EmbeddingFamily((1024,), 96, 4, 2048, _cohere_v3_body, _cohere_vectors)

FAMILIES: dict[str, EmbeddingFamily] = {
    "amazon.titan-embed-text-v1": EmbeddingFamily((1536,), 1, 8, 50_000, _titan_v1_body, _titan_vectors),
    "amazon.titan-embed-text-v2:0": EmbeddingFamily((1024, 512, 256), 1, 8, 50_000, _titan_v2_body, _titan_vectors),
    "amazon.nova-2-multimodal-embeddings-v1:0": EmbeddingFamily(
        (3072, 1024, 384, 256), 1, 8, 8192, _nova_body, _nova_vectors
    ),
    "cohere.embed-english-v3": _COHERE_V3,
    "cohere.embed-multilingual-v3": _COHERE_V3,
    "cohere.embed-v4:0": EmbeddingFamily((1536, 1024, 512, 256), 96, 4, None, _cohere_v4_body, _cohere_vectors),
    # It computes on this machine, one slice at a time: small calls, one after the other, keep clear of the time-out.
    "local.multilingual-e5-small": EmbeddingFamily((384,), 8, 1, 2048, _cohere_v3_body, _cohere_vectors),
}


def base_model_id(model_id: str) -> str:
    """The foundation model's id, without what an ARN or a cross-region inference profile (`eu.…`) puts before it."""
    name = model_id.rsplit("/", 1)[-1] if model_id.startswith("arn:") else model_id
    return re.sub(r"^[a-z]+(-gov)?\.(?=[a-z0-9-]+\.)", "", name)


def embedding_family(model_id: str) -> EmbeddingFamily:
    """How the embedding model `model_id` is called.

    Raises:
        ApplicationError: `not_configured` for a model that this server doesn't know.
    """
    family = FAMILIES.get(base_model_id(model_id))
    if family is None:
        known = ", ".join(FAMILIES)
        raise failure(
            "not_configured",
            f"EMBEDDING_MODEL_ID '{_shown(model_id)}' isn't an embedding model this server knows; use one of {known}, "
            "or an inference profile named after one.",
        )
    return family


# Errors: each one is classed here, once

_THROTTLED = {"ThrottlingException", "Throttling", "TooManyRequestsException", "ServiceQuotaExceededException"}
_NOT_READY = {"ModelTimeoutException", "ModelNotReadyException", "ServiceUnavailableException"}
_EXPIRED = {"ExpiredTokenException", "ExpiredToken", "RequestExpired"}
_BAD_CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
}
_TOO_LONG = re.compile(r"too long|too many (input )?tokens|maxlength|max(imum)? (context|input|tokens)|context window")


def _shown(model_id: str) -> str:
    """A model id fit for messages: an ARN's account is nobody's business."""
    return model_id.rsplit("/", 1)[-1] if model_id.startswith("arn:") else model_id


def _scrubbed(message: str) -> str:
    """AWS's words without ARNs, accounts, key ids and whatever they quote, cut to 200 characters."""
    message = re.sub(r'arn:\S+|"[^"]*"|\[[^\]]*\]', "…", message)
    message = re.sub(r"\b(?:[A-Z]{4}[A-Z0-9]{12,}|\d{12})\b", "…", message)
    return " ".join(message.split())[:200].rstrip(".")


@dataclass(frozen=True)
class Called:
    """What was called, as messages tell it.

    Attributes:
        model_id: As the setting has it.
        setting: The environment variable that chose the model.
        region: AWS's name of it; None where it isn't known.
        local: Whether the embedded endpoint was called.
    """

    model_id: str
    setting: str
    region: str | None
    local: bool

    @property
    def service(self) -> str:
        return "The embedded model endpoint" if self.local else "Amazon Bedrock"

    @property
    def model(self) -> str:
        """The model and, where that matters, its region."""
        where = f" in region {self.region}" if self.region and not self.local else ""
        return f"model {_shown(self.model_id)}{where}"


def explain(error: Exception, called: Called) -> ApplicationError:
    """The one failure that `error` is to the rest of the system.

    Args:
        error: What boto3 raised.
        called: What it was calling.
    """
    from botocore import exceptions as aws
    from botocore.parsers import ResponseParserError

    match error:
        case aws.ClientError():
            return failure(*_explain_answer(error, called))
        case aws.NoCredentialsError() | aws.NoAuthTokenError():
            return failure(
                "not_configured",
                f"No AWS credentials were found for {called.model}. Give them as boto3 reads them: environment "
                "variables, a profile (AWS_PROFILE), or a role.",
            )
        case aws.PartialCredentialsError() | aws.ProfileNotFound() | aws.ConfigNotFound() | aws.ConfigParseError():
            return failure(
                "not_configured",
                f"The AWS credentials can't be read ({type(error).__name__}). Check AWS_ACCESS_KEY_ID with "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and the AWS configuration files.",
            )
        case (
            aws.SSOError()
            | aws.LoginError()
            | aws.TokenRetrievalError()
            | aws.CredentialRetrievalError()
            | aws.RefreshWithMFAUnsupportedError()
        ):
            return failure(
                "access_denied",
                f"The AWS credentials can't be renewed ({type(error).__name__}). Sign in again, for single sign-on by "
                "`aws sso login`.",
            )
        case aws.BaseEndpointResolverError() | aws.InvalidRegionError() | aws.EndpointProviderError() | ValueError():
            return failure(
                "not_configured",
                f"There is no usable Amazon Bedrock endpoint for {called.model}. Set AWS_REGION to a region that has "
                "the model, and AWS_ENDPOINT_URL_BEDROCK_RUNTIME, if at all, to a URL.",
            )
        case aws.InvalidConfigError() | aws.InvalidRetryConfigurationError() | aws.InvalidProxiesConfigError():
            return failure(
                "not_configured",
                f"The AWS configuration can't be used ({type(error).__name__}). Check the AWS_… environment variables "
                "and configuration files.",
            )
        case aws.ParamValidationError():
            return failure(
                "rejected",
                f"The request to {called.model} isn't a valid one, so it wasn't sent. Check {called.setting}.",
            )
        case aws.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return failure(
                "not_configured",
                f"The TLS certificate of {called.service} can't be verified. Behind a proxy that replaces "
                "certificates, set AWS_CA_BUNDLE to its authority's.",
            )
        case aws.ReadTimeoutError() | aws.ConnectTimeoutError():
            return failure("unavailable", f"{called.service} did not answer for {called.model} in time. Try again.")
        case aws.HTTPClientError() | aws.ConnectionError() | aws.IncompleteReadError() | OSError():
            advice = "Try again." if called.local else "Check the network and AWS_REGION, or try again."
            return failure(
                "unavailable",
                f"{called.service} can't be reached for {called.model} ({type(error).__name__}). {advice}",
            )
        case ResponseParserError():
            return failure("unavailable", f"{called.service}'s answer for {called.model} is garbled. Try again.")
    return failure("rejected", f"The call of {called.model} failed ({type(error).__name__}). Check {called.setting}.")


def _explain_answer(error: Any, called: Called) -> tuple[Kind, str]:
    """Kind and message of an error that AWS answered with, a `botocore.exceptions.ClientError`."""
    code: str = error.response["Error"].get("Code", "")
    words: str = error.response["Error"].get("Message", "")
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "ModelErrorException":
        # AWS wraps what the model's own server answered; without a status, it is the model that failed.
        status = error.response.get("originalStatusCode") or 500

    if code in _NOT_READY or status >= 500 or status == 408:
        return "unavailable", f"{called.service} can't serve {called.model} now ({code}). Try again."
    if code in _THROTTLED or status == 429:
        return (
            "throttled",
            f"{called.service} is throttling {called.model} ({code}). Call it less often, or raise its quota in the "
            "AWS account.",
        )
    if code in _EXPIRED:
        return "access_denied", "The AWS credentials have expired. Renew them, for single sign-on by `aws sso login`."
    if code in _BAD_CREDENTIALS:
        return (
            "access_denied",
            f"AWS doesn't accept the credentials in use ({code}). Check them, and that this computer's clock is right.",
        )
    if error.operation_name not in ("InvokeModel", "Converse"):
        return (
            "access_denied",
            f"The AWS credentials can't be had: {error.operation_name} failed ({code}). Check the profile or role that "
            "they come from.",
        )
    if code == "AccessDeniedException" or status in (401, 403) or "operation not allowed" in words.lower():
        return (
            "access_denied",
            f"Amazon Bedrock refused access to {called.model}: the credentials in use need bedrock:InvokeModel on it, "
            "and the account needs access to it there.",
        )
    if code == "ResourceNotFoundException" or status == 404:
        return (
            "not_configured",
            f"{called.service} doesn't offer {called.model}, or the account may not use it yet. Check {called.setting} "
            "and AWS_REGION, and the model's page in the Bedrock console.",
        )
    return _explain_validation(words, called)


def _explain_validation(words: str, called: Called) -> tuple[Kind, str]:
    """Kind and message of a ValidationException, which AWS uses for wrong settings and for wrong requests alike."""
    said = words.lower()
    if "identifier is invalid" in said:
        return "not_configured", f"{called.service} knows no {called.model}. Check {called.setting} and AWS_REGION."
    if "on-demand throughput" in said:
        name = base_model_id(called.model_id)
        return (
            "not_configured",
            f"Amazon Bedrock serves {called.model} by inference profile only. Set {called.setting} to the profile's "
            f"id, such as us.{name} or global.{name}.",
        )
    if "support the model that you provided" in said:
        return "not_configured", f"{called.service} can't use {called.model} this way. Check {called.setting}."
    if "minlength" in said or "blank" in said or "non-empty" in said:
        return "rejected", f"An empty text can't be given to {called.model}. Send some text."
    if _TOO_LONG.search(said):
        return "rejected", f"The text is longer than {called.model} takes. Send less of it."
    return "rejected", f"{called.service} rejected the request to {called.model}: {_scrubbed(words)}."


class _Runtime:
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
                self._client = self._make_client()
            return self._client

    def _make_client(self) -> "BedrockRuntimeClient":
        import boto3
        import botocore
        from botocore.config import Config
        from botocore.session import Session

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=self._read_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=CALLS_AT_ONCE,
            tcp_keepalive=True,
        )
        if not self.local:
            return boto3.Session(region_name=self._region).client(
                "bedrock-runtime", endpoint_url=self._endpoint_url, config=config
            )
        # The user's profile, credentials and proxy are for AWS: calls to this machine neither need nor read them.
        unset: tuple[Any, Any, Any, Any] = (None, None, None, None)
        session = Session(session_vars={"profile": unset, "config_file": unset, "credentials_file": unset})
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


def _sendable(text: str) -> str:
    """`text` with lone surrogates, which no encoding can carry, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


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
        allowed = self._family.dimensions
        if dimensions is not None and dimensions not in allowed:
            choice = ", ".join(str(number) for number in allowed)
            raise failure(
                "not_configured",
                f"EMBEDDING_DIMENSIONS {dimensions} isn't a length that model {_shown(model_id)} offers; "
                f"use {choice}, or unset it.",
            )
        # An inference profile changes where a model runs, not its vectors: a collection goes by the model.
        self._model = EmbeddingModel(model_id=base_model_id(model_id), dimensions=dimensions or allowed[0])
        self._runtime = _Runtime(model_id, "EMBEDDING_MODEL_ID", region, endpoint_url, EMBED_SECONDS)

    @property
    def model(self) -> EmbeddingModel:
        return self._model

    @property
    def local(self) -> bool:
        return self._runtime.local

    async def embed(self, texts: Sequence[str], side: Side) -> list[bytes]:
        """Vectors of `texts`, in order, each packed by `pack_vector` (4 bytes a dimension, unit length).

        A text longer than the model takes is embedded by its beginning.

        Raises:
            ApplicationError: `throttled` or `unavailable`, which pass; `rejected`, for example for an empty text;
                `access_denied` or `not_configured`.
        """
        limit = self._family.max_characters
        sendable = [_sendable(text)[:limit] for text in texts]
        batches = [sendable[at : at + self._family.batch] for at in range(0, len(sendable), self._family.batch)]
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
        await self.embed(["ready"], "query")
        where = "embedded" if self.local else f"Amazon Bedrock, {self._runtime.called.region}"
        return f"{_shown(self._runtime.model_id)}, {self._model.dimensions} dimensions ({where})"


class BedrockText:
    """A text model on Bedrock, or the embedded extractive one.

    Args:
        model_id: Any model that the Converse API serves: its id, an inference profile's id, or the ARN of either.
        region: AWS region; None for what boto3 finds.
        endpoint_url: Address of the Bedrock Runtime API; None for AWS's own. Local models need one.
    """

    def __init__(self, model_id: str, region: str | None, endpoint_url: str | None) -> None:
        self._runtime = _Runtime(model_id, "LLM_MODEL_ID", region, endpoint_url, TEXT_SECONDS)
        self._takes_temperature = True

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

    async def generate(self, params: GenerateParams) -> Generated:
        """One answer to one prompt.

        Raises:
            ApplicationError: `throttled` or `unavailable`, which pass; `rejected`, `access_denied` or
                `not_configured`, which don't.
        """
        return await self._runtime.run(lambda client: self._read(self._converse(client, params)))

    def _read(self, answer: "ConverseResponseTypeDef") -> Generated:
        # Reasoning, where a model shows it, comes in blocks of its own.
        blocks = answer["output"]["message"]["content"]
        return Generated(
            text="".join(block.get("text", "") for block in blocks),
            model_id=_shown(self._runtime.model_id),
            stop_reason=answer["stopReason"],
            input_tokens=answer["usage"]["inputTokens"],
            output_tokens=answer["usage"]["outputTokens"],
        )

    def _converse(self, client: "BedrockRuntimeClient", params: GenerateParams) -> "ConverseResponseTypeDef":
        if self._takes_temperature:
            try:
                return client.converse(**self._request(params, with_temperature=True))
            except client.exceptions.ValidationException as error:
                # Recent Claude models refuse the parameter itself. Nothing but the answer says which do.
                if "temperature" not in str(error):
                    raise
                self._takes_temperature = False
        return client.converse(**self._request(params, with_temperature=False))

    def _request(self, params: GenerateParams, with_temperature: bool) -> "ConverseRequestTypeDef":
        request: ConverseRequestTypeDef = {
            "modelId": self._runtime.model_id,
            "messages": [{"role": "user", "content": [{"text": _sendable(params.prompt)}]}],
            "inferenceConfig": {"maxTokens": params.max_tokens},
        }
        if with_temperature:
            request["inferenceConfig"] = {"maxTokens": params.max_tokens, "temperature": params.temperature}
        if params.system:
            request["system"] = [{"text": _sendable(params.system)}]
        return request

    async def check(self) -> str:
        """Have a few words written, and say which model did, and where.

        Raises:
            ApplicationError: as `generate`.
        """
        await self.generate(GenerateParams(system="", prompt="Answer with the one word: ready.", max_tokens=16))
        remote = f"Amazon Bedrock, {self._runtime.called.region}"
        where = "embedded; picks sentences, writes none" if self.local else remote
        return f"{_shown(self._runtime.model_id)} ({where})"


class BedrockActivities:
    """
    Args:
        embeddings: What embeds.
        text: What writes.
    """

    def __init__(self, embeddings: BedrockEmbeddings, text: BedrockText) -> None:
        self._embeddings = embeddings
        self._text = text

    @activity.defn
    async def embed(self, params: EmbedParams) -> Embeddings:
        """Vectors of some texts, in order."""
        return Embeddings(vectors=await self._embeddings.embed(params.texts, params.side))

    @activity.defn
    async def generate(self, params: GenerateParams) -> Generated:
        """A text model's answer to a prompt."""
        return await self._text.generate(params)
