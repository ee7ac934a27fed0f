"""Documents in: read a file, cut it into chunks, embed them, and swap them for what was stored before."""

import asyncio
import hashlib
import re
from pathlib import Path

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.bedrock import BedrockEmbeddings
from activities.errors import failure
from activities.models import EMBEDDED, Chunk, IngestSourceParams, SourceOutcome
from activities.store.base import OpenedStore

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
TEXT_SUFFIXES = frozenset({".txt", ".text"})
SUFFIXES = MARKDOWN_SUFFIXES | TEXT_SUFFIXES

MAX_BYTES = 50 * 1024 * 1024

# E5 reads 512 tokens, about 2,000 characters of English; shorter chunks match a question more sharply.
CHUNK_CHARACTERS = (600, 1000)
OVERLAP_CHARACTERS = 100
CHUNKING = "characters 600-1000 overlap 100 v1"
"""Part of every content hash: a new way of chunking makes every source a changed one."""

EMBEDDING_BATCH = 32

_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)


def title_of(text: str, path: Path) -> str:
    """A Markdown document's first heading, otherwise the file's name."""
    if path.suffix.lower() in MARKDOWN_SUFFIXES and (heading := _HEADING.search(text)):
        return heading.group(1)
    return path.name


def chunk_text(text: str, markdown: bool) -> list[str]:
    """Cut a document into overlapping pieces, at the most meaningful boundary that fits."""
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    splitter = (MarkdownSplitter if markdown else TextSplitter)(CHUNK_CHARACTERS, overlap=OVERLAP_CHARACTERS)
    return [chunk for chunk in splitter.chunks(text) if chunk.strip()]


def read_text(path: Path) -> tuple[str, str]:
    """A file's text, and the hash of its bytes and of the way it will be chunked.

    Raises:
        ApplicationError: `rejected` where the file isn't UTF-8 text of a known format and size.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise failure("rejected", f"'{path.suffix}' files can't be read yet; {', '.join(sorted(SUFFIXES))} can.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise failure("over_limit", f"The file is larger than {MAX_BYTES // 1024 // 1024} MiB. Split it.")
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise failure("rejected", "The file doesn't exist.") from None
    except IsADirectoryError:
        raise failure("rejected", "This is a folder, not a file.") from None
    except PermissionError:
        raise failure("rejected", "The file can't be read: permission denied.") from None
    except UnicodeDecodeError:
        raise failure("rejected", "The file isn't UTF-8 text. Convert it to UTF-8.") from None
    if "\0" in text:
        raise failure("rejected", "The file holds NUL bytes: it isn't text.")
    return text, hashlib.sha256(CHUNKING.encode() + b"\0" + content).hexdigest()


class DocumentActivities:
    """
    Args:
        store: Where chunks live.
        embeddings: What embeds them.
    """

    def __init__(self, store: OpenedStore, embeddings: BedrockEmbeddings) -> None:
        self._store = store
        self._embeddings = embeddings

    @activity.defn
    async def ingest_source(self, params: IngestSourceParams) -> SourceOutcome:
        """Bring one file up to date in one collection; an unchanged file is skipped.

        Heartbeats after each batch of embeddings with (chunks embedded, chunks in all).

        Raises:
            ApplicationError: retryable ones only. What is wrong with the file itself is in the outcome.
        """
        path = Path(params.path)
        try:
            text, content_hash = await asyncio.to_thread(read_text, path)
        except ApplicationError as error:
            return SourceOutcome(source=params.path, error=error.message)
        store = await self._store()
        stored_hash = await store.source_hash(params.user_id, params.collection, params.path)
        # A file without text leaves nothing behind by which it could be recognised.
        if stored_hash == content_hash or (stored_hash is None and not text.strip()):
            return SourceOutcome(source=params.path, skipped=True)
        markdown = path.suffix.lower() in MARKDOWN_SUFFIXES
        pieces = await asyncio.to_thread(chunk_text, text, markdown)
        vectors: list[bytes] = []
        for start in range(0, len(pieces), EMBEDDING_BATCH):
            batch = pieces[start : start + EMBEDDING_BATCH]
            vectors += await self._embeddings.embed(batch, EMBEDDED["documents"].side)
            activity.heartbeat(len(vectors), len(pieces))
        title = title_of(text, path)
        # The model's id is not part of a chunk's id: the store keeps one model for a collection.
        prefix = f"{params.user_id}\0{params.collection}\0{params.path}\0{content_hash}"
        chunks = [
            Chunk(
                chunk_id=hashlib.sha256(f"{prefix}\0{position}".encode()).hexdigest()[:32],
                user_id=params.user_id,
                collection=params.collection,
                source=params.path,
                content_hash=content_hash,
                position=position,
                text=piece,
                embedding=vector,
                metadata={"title": title},
            )
            for position, (piece, vector) in enumerate(zip(pieces, vectors, strict=True))
        ]
        await store.replace_source(params.user_id, params.collection, params.path, chunks)
        return SourceOutcome(source=params.path, chunks=len(chunks))
