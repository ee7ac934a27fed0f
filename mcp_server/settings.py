"""Every option, documented once: environment variables, or lines of a `.env` file in the working folder."""

import hashlib
import json
import re
import socket
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from dotenv import load_dotenv
from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from activities.mcp_servers import DeclaredServer, ServersError, read_servers
from activities.models import ExternalCollection
from activities.store.atlas_indexes import all_names

LOCAL_EMBEDDING_MODEL = "local.multilingual-e5-small"
LOCAL_TEXT_MODEL = "local.extractive"

# Strict, so that what is shown as the hosts never holds a piece of a password that wasn't percent-encoded.
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.%-]+)(?::\d{1,5})?"
_CONNECTION_STRING = re.compile(rf"mongodb(?:\+srv)?://(?:[^@/?#\s]*@)?(?P<hosts>{_HOST}(?:,{_HOST})*)(?:[/?][^@\s]*)?")


class SettingsError(Exception):
    """A setting that can't be used; the message names it and says what to do."""


class Settings(BaseSettings):
    """A piece of the stack is remote exactly when its address or model is given; otherwise the embedded one serves."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    durable_context_home: Path = Field(
        default_factory=lambda: user_data_path("durable-context", appauthor=False),
        description="Data folder: the embedded store and workflow engine's databases, and logs.",
    )
    default_user_id: str = Field(
        default="default", min_length=1, max_length=256, description="User of a call that names none."
    )
    call_timeout_seconds: float = Field(
        default=45,
        gt=0,
        le=3600,
        description="How long a tool call waits for its workflow. Desktop hosts drop a call at 60 s without a word.",
    )
    task_grace_seconds: float = Field(
        default=2,
        ge=0,
        le=3600,
        description="How long a call of a client with the Tasks extension waits before it is answered with a task.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe level that is logged, to stderr and to the data folder."
    )

    temporal_address: str | None = Field(
        default=None,
        description="host:port of a Temporal service. TLS, API keys and profiles as in Temporal's own TEMPORAL_… "
        "variables and temporal.toml.",
    )
    temporal_namespace: str = Field(default="default", description="Temporal namespace.")
    temporal_task_queue: str = Field(
        default="durable-context", description="Task queue; deployments that share a namespace need one each."
    )

    mongodb_uri: SecretStr | None = Field(
        default=None,
        description="Connection string of MongoDB Atlas (mongodb+srv://…), where the store is then; TLS, MONGODB-AWS "
        "and X.509 as it says.",
    )
    db_name: str = Field(default="durable_context", description="Atlas: database.")
    documents_collection: str = Field(default="documents", description="Atlas: collection of document chunks.")
    conversations_collection: str = Field(default="conversations", description="Atlas: collection of messages.")
    memory_nodes_collection: str = Field(default="memory_nodes", description="Atlas: collection of memories.")
    cache_collection: str = Field(default="cache", description="Atlas: collection of cached answers.")
    vector_quantization: Literal["none", "scalar"] = Field(
        default="none", description="Atlas: whether vector indexes keep one byte for each dimension instead of four."
    )
    external_collections: Annotated[list[ExternalCollection], NoDecode] = Field(
        default_factory=list,
        description="Atlas: JSON list of collections that are there already and that hybrid_search may search.",
    )

    aws_region: str | None = Field(
        default=None, description="Region of Amazon Bedrock; credentials as boto3 finds them."
    )
    embedding_model_id: str = Field(
        default=LOCAL_EMBEDDING_MODEL,
        description="Embedding model: the local one, or an Amazon Titan, Amazon Nova or Cohere model on Bedrock.",
    )
    embedding_dimensions: int | None = Field(
        default=None, ge=1, description="Length of its vectors, where the model offers a choice."
    )
    llm_model_id: str = Field(
        default=LOCAL_TEXT_MODEL,
        description="Text model: the local extractive one, or any model that Bedrock's Converse API serves.",
    )

    vision_model_id: str | None = Field(
        default=None,
        description="Model on Bedrock that describes images; by default LLM_MODEL_ID where that is on Bedrock.",
    )

    mcp_servers_file: Path | None = Field(
        default=None,
        description="JSON file with the other MCP servers whose tools the text model may call, as mcpServers.",
    )

    chunk_tokens: int = Field(
        default=300,
        ge=32,
        le=4000,
        description="Length of a document's chunks, at most, in tokens of the local embedding model's tokenizer.",
    )
    chunk_overlap_tokens: int = Field(
        default=30, ge=0, description="How many of them a chunk shares with the one before it."
    )
    ingest_roots: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Comma-separated folders of which ingest_documents may read files, over stdio; by default none.",
    )
    ingest_max_bytes: int = Field(
        default=50 * 1024 * 1024, ge=1, le=1024**3, description="Size of a file or page beyond which it is refused."
    )
    image_max_side: int = Field(
        default=1568,
        ge=64,
        le=8000,
        description="Pixels of the longer side to which an image is shrunk before a model sees it.",
    )
    fetch_allowed_networks: Annotated[list[IPv4Network | IPv6Network], NoDecode] = Field(
        default_factory=list,
        description="Comma-separated networks, such as 10.1.0.0/16, from which pages may be fetched although they "
        "aren't public.",
    )

    tavily_api_key: SecretStr | None = Field(default=None, description="Key of Tavily, for search_web.")
    tavily_base_url: str = Field(
        default="https://api.tavily.com", description="Address of Tavily, or of a proxy to it."
    )

    cache_ttl_seconds: int = Field(
        default=86_400, ge=1, le=31_536_000, description="How long a cached answer lives unless the call says."
    )
    cache_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least cosine similarity of two queries for a cache hit; by default the embedding model's own.",
    )
    memory_budget: int = Field(
        default=10_000, ge=1, description="Memories kept for each user; the weakest beyond it are forgotten."
    )

    conversation_idle_seconds: float = Field(
        default=0,
        ge=0,
        le=31_536_000,
        description="Without a message for so long a conversation ends, with a summary; 0 for never.",
    )
    conversation_history_tokens: int = Field(
        default=8_000,
        ge=100,
        le=200_000,
        description="How much of what was said last the model is given again, in tokens; the rest is summarised.",
    )
    conversation_context_tokens: int = Field(
        default=3_000,
        ge=100,
        le=100_000,
        description="How much of documents and memories is retrieved for a message, in tokens.",
    )
    conversation_answer_tokens: int = Field(
        default=1_024, ge=16, le=64_000, description="Length of an answer, at most, in the model's tokens."
    )

    auth_tokens: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Bearer tokens for HTTP: comma-separated user:sha256 pairs, as `durable-context token` makes them.",
    )
    auth_tokens_file: Path | None = Field(default=None, description="The same, one pair a line.")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Comma-separated Host headers accepted over HTTP besides loopback and --host: name or name:port.",
    )
    allowed_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="Comma-separated Origin headers accepted over HTTP besides loopback."
    )

    @field_validator(
        *("auth_tokens", "allowed_hosts", "allowed_origins", "ingest_roots", "fetch_allowed_networks"), mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [item.strip() for item in value.split(",") if item.strip()]
        return value

    @field_validator("mongodb_uri")
    @classmethod
    def _is_connection_string(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _CONNECTION_STRING.fullmatch(value.get_secret_value()):
            raise ValueError(
                "must be mongodb+srv://user:password@host/ or mongodb://…, with special characters of user and "
                "password percent-encoded"
            )
        return value

    @field_validator("db_name")
    @classmethod
    def _is_database(cls, value: str) -> str:
        if not re.fullmatch(r"[^/\\. \"$*<>:|?\0]{1,38}", value):
            raise ValueError('must have 1 to 38 characters, none of them a space or one of / \\ . " $ * < > : | ?')
        return value

    @field_validator("documents_collection", "conversations_collection", "memory_nodes_collection", "cache_collection")
    @classmethod
    def _is_collection(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", value) or value.startswith("system."):
            raise ValueError("must be a letter or underscore and then letters, digits, and _ . -, 100 at most")
        return value

    @field_validator("external_collections", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("must be a JSON list of objects; the README shows one") from None
        return value

    @model_validator(mode="after")
    def _fits_the_store(self) -> Self:
        if self.external_collections and self.mongodb_uri is None:
            raise ValueError("EXTERNAL_COLLECTIONS needs MONGODB_URI")
        names = all_names(self.collection_names)
        if len(set(names.values())) < len(names):
            raise ValueError(
                "DOCUMENTS_COLLECTION, CONVERSATIONS_COLLECTION, MEMORY_NODES_COLLECTION and CACHE_COLLECTION must "
                "differ, also from the names that the store makes of them by adding _sources, _staged, _contents, "
                "_contexts, _summaries and _users"
            )
        for external in self.external_collections:
            if external.name in {f"{self.db_name}.{name}" for name in names.values()}:
                raise ValueError(f"EXTERNAL_COLLECTIONS: {external.name} is the store's own")
        return self

    @field_validator("ingest_roots")
    @classmethod
    def _are_folders(cls, value: list[Path]) -> list[Path]:
        try:
            folders = [folder.expanduser() for folder in value]
        except RuntimeError:
            raise ValueError("its user has no home folder") from None
        if not all(folder.is_absolute() for folder in folders):
            raise ValueError("must be absolute paths, separated by commas")
        return folders

    @model_validator(mode="after")
    def _chunks_fit(self) -> Self:
        if self.chunk_overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError("CHUNK_OVERLAP_TOKENS must be at most half of CHUNK_TOKENS")
        if self.embeddings_are_local and self.chunk_tokens > 500:
            raise ValueError("CHUNK_TOKENS must be at most 500 with the local embedding model, which reads no more")
        return self

    @model_validator(mode="after")
    def _vision_is_remote(self) -> Self:
        if self.vision_model_id is not None and self.vision_model_id.startswith("local."):
            raise ValueError("VISION_MODEL_ID must be a model on Bedrock; no local one sees images")
        return self

    @field_validator("durable_context_home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("its user has no home folder") from None

    @field_validator("tavily_base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address")
        return value

    @model_validator(mode="after")
    def _declares_servers(self) -> Self:
        try:
            self.mcp_servers  # noqa: B018  # read now, so that what is wrong with it is said at once
        except ServersError as error:
            raise ValueError(f"MCP_SERVERS_FILE: {error}") from None
        return self

    @cached_property
    def mcp_servers(self) -> dict[str, DeclaredServer]:
        """The other MCP servers that are declared, by name."""
        return read_servers(self.mcp_servers_file.expanduser()) if self.mcp_servers_file else {}

    @property
    def temporal_is_remote(self) -> bool:
        return self.temporal_address is not None

    @property
    def embeddings_are_local(self) -> bool:
        return self.embedding_model_id.startswith("local.")

    @property
    def text_is_local(self) -> bool:
        return self.llm_model_id.startswith("local.")

    @property
    def store_is_remote(self) -> bool:
        return self.mongodb_uri is not None

    @property
    def collection_names(self) -> dict[str, str]:
        """What the store's four collections are called in Atlas."""
        return {
            "documents": self.documents_collection,
            "conversations": self.conversations_collection,
            "memory_nodes": self.memory_nodes_collection,
            "cache": self.cache_collection,
        }

    @property
    def store_name(self) -> str:
        """Which store it is, in a few words without a secret: the file, or Atlas's hosts and database."""
        if self.mongodb_uri is None:
            return str(self.store_path)
        parts = _CONNECTION_STRING.fullmatch(self.mongodb_uri.get_secret_value())
        return f"{parts['hosts'] if parts else ''}/{self.db_name}"

    @property
    def store_path(self) -> Path:
        return self.durable_context_home / "store.db"

    @property
    def contents_path(self) -> Path:
        return self.durable_context_home / "contents"

    @property
    def described_by(self) -> str | None:
        """Which model describes images; None where there is none."""
        return self.vision_model_id or (None if self.text_is_local else self.llm_model_id)

    @property
    def files_queue(self) -> str:
        """Task queue of the processes that have this machine's files and this store."""
        place = hashlib.sha256(f"{socket.gethostname()}\0{self.store_name}".encode()).hexdigest()[:16]
        return f"{self.temporal_task_queue}-files-{place}"

    @property
    def logs(self) -> Path:
        return self.durable_context_home / "logs"

    @property
    def shown_embedding_model(self) -> str:
        """The embedding model's id fit to be shown: an ARN's account is nobody's business."""
        return self.embedding_model_id.rsplit("/", 1)[-1]

    @property
    def shown_text_model(self) -> str:
        """The text model's id, likewise."""
        return self.llm_model_id.rsplit("/", 1)[-1]

    @property
    def shown_tavily_url(self) -> str:
        """Tavily's address without a user or password in it."""
        parts = urlsplit(self.tavily_base_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def redacted(self) -> dict[str, Any]:
        """Every setting as JSON, with secrets and token hashes replaced by `***`."""
        shown = self.model_dump(mode="json")
        if shown["auth_tokens"]:
            shown["auth_tokens"] = ["***"] * len(shown["auth_tokens"])
        for name in shown:
            if isinstance(getattr(self, name), SecretStr):
                shown[name] = "***"
        shown["tavily_base_url"] = self.shown_tavily_url
        shown["embedding_model_id"] = self.shown_embedding_model
        shown["llm_model_id"] = self.shown_text_model
        shown["vision_model_id"] = self.vision_model_id and self.vision_model_id.rsplit("/", 1)[-1]
        return {name.upper(): value for name, value in shown.items()}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment, to which a `.env` file in the working folder adds what isn't there.

    What other libraries read from the environment (AWS credentials, Temporal's API key) may stand in that file too.

    Raises:
        SettingsError: naming each setting that can't be used, and why; never its value.
    """
    try:
        load_dotenv(Path.cwd() / ".env")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Can't read the file .env ({type(error).__name__}). It must be UTF-8 text.") from None
    try:
        return Settings(**overrides)
    except ValidationError as error:
        # What may be one of several kinds has an error for each.
        problems = dict.fromkeys(
            f"{_setting(item['loc'])}{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise SettingsError(f"Can't use the settings. {'; '.join(problems)}.") from None


def _setting(location: tuple[int | str, ...]) -> str:
    """The name of the setting that is wrong, and the place in it; nothing where several don't fit together."""
    # pydantic's own names of kinds aren't places.
    name, *rest = [part for part in map(str, location) if "[" not in part] or [""]
    return f"{name.upper()}{''.join(f'[{part}]' for part in rest)}: " if name else ""
