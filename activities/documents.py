"""Documents: list what there is, fetch it, read it in chunks, embed those, and swap them for the old ones."""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import TypeAdapter
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.beating import beating, beating_for_source
from activities.bedrock import BedrockEmbeddings
from activities.chunking import CHUNKING_VERSION, Piece, shortened
from activities.errors import failure
from activities.fetch import WebClient, check_url
from activities.formats import IMAGE_SUFFIXES, SUFFIXES, suffix_for
from activities.models import (
    EMBEDDED,
    Chunk,
    ContentName,
    ContentNames,
    DocumentKey,
    IngestParams,
    IngestSourceParams,
    ListDocumentsParams,
    Listing,
    Source,
    SourceList,
    SourceLook,
    SourceOutcome,
    SourcePage,
    SourceParams,
    SourceRemoval,
    SourceRemoved,
    SourceRequest,
    StoredDocument,
)
from activities.reading import Reader
from activities.sources import SourceReader, check_globs, list_files, selected
from activities.store.base import OpenedStore, document_id
from activities.store.contents import Contents

PAGE_SOURCES = 200
"""Sources in a page of a listing: at most 4,096 bytes each, so that a page fits a workflow's history."""

SITEMAP_PAGES = 50_000
"""Pages that a sitemap may list, index and all: the limit of one file by sitemaps.org."""

FETCH_ATTEMPTS = 6
"""How often a page or a sitemap is fetched before its failure counts as its own."""

LEAST_BATCH = 32
"""Texts that are embedded before their vectors are kept, at least: what a killed worker embeds anew, at most."""

CONTENTS_KEPT = timedelta(days=8)
"""After how long a content that nobody dropped goes: later than any workflow that knows of it gives up."""

READ_CHARACTERS = 200_000
"""Characters of a document that are read at once."""

_SOURCES = TypeAdapter(list[Source])


class DocumentActivities:
    """
    Args:
        store: Where chunks live.
        contents: Where contents are kept that don't travel through histories.
        embeddings: What embeds chunks.
        sources: What reads files and contents.
        reader: What makes chunks of them.
        web: What fetches pages.
        vision: Which model describes images; part of what makes an image a changed one.
    """

    def __init__(
        self,
        store: OpenedStore,
        contents: Contents,
        embeddings: BedrockEmbeddings,
        sources: SourceReader,
        reader: Reader,
        web: WebClient,
        vision: str,
    ) -> None:
        self._store = store
        self._contents = contents
        self._embeddings = embeddings
        self._sources = sources
        self._reader = reader
        self._web = web
        self._vision = vision

    # What there is

    @activity.defn
    async def list_sources(self, params: IngestParams) -> Listing:
        """List every source that the requests name, each once, in pages that are kept as contents.

        Raises:
            ApplicationError: `rejected` for globs that can't be used; what is wrong with a source is in the list.
        """
        info = activity.info()
        async with beating():
            await self._contents.purge(datetime.now(UTC) - CONTENTS_KEPT)
            found = await self._listed(params)
            total, pages = 0, list[str]()
            try:
                while page := await asyncio.to_thread(lambda: list(islice(found, PAGE_SOURCES))):
                    pages.append(listing_page(str(info.workflow_id), len(pages)))
                    await self._contents.put(pages[-1], _SOURCES.dump_json(page))
                    total += len(page)
            except asyncio.CancelledError:
                # Nobody will know of them.
                with contextlib.suppress(ApplicationError):
                    await self.drop_contents(ContentNames(names=pages))
                raise
            return Listing(pages=pages, total=total)

    async def _listed(self, params: IngestParams) -> Iterator[Source]:
        check_globs(params.include, params.exclude)
        lists: list[Iterable[Source]] = []
        for request in params.sources:
            if request.path is not None:
                lists.append(list_files(Path(request.path), params.roots, params.include, params.exclude))
            elif request.url is not None:
                lists.append(await self._list_pages(request.url, params))
            else:
                lists.append([_held(request)])
        return _each_once(chain.from_iterable(lists))

    async def _list_pages(self, url: str, params: IngestParams) -> list[Source]:
        """A page, or the pages of a sitemap: what has an address that ends in .xml or .xml.gz."""
        try:
            url = check_url(url)
            if not urlsplit(url).path.lower().endswith((".xml", ".xml.gz")):
                return [Source(source=url, url=url)]
            pages = await self._web.sitemap(url, SITEMAP_PAGES)
        except ApplicationError as error:
            if not error.non_retryable and activity.info().attempt < FETCH_ATTEMPTS:
                raise
            return [Source(source=url, error=error.message)]
        return [page for page in map(_page, pages) if page.url is None or _is_selected(page.url, params)]

    @activity.defn
    async def listed_sources(self, page: ContentName) -> SourceList:
        """One page of a listing."""
        content = await self._contents.get(page.name)
        if content is None:
            raise failure("rejected", "The list of sources isn't held any more. Ingest them again.")
        return SourceList(sources=_SOURCES.validate_json(content))

    # One source

    @activity.defn
    async def fetch_source(self, params: SourceParams) -> Source:
        """Fetch a page; it comes back as a content that the server holds.

        Raises:
            ApplicationError: as `WebClient.fetch`.
        """
        source = params.source
        assert source.url is not None
        async with beating():
            page = await self._web.fetch(source.url, lambda media, name: suffix_for(media, name) is not None)
            name = fetched_content(str(activity.info().workflow_id), source)
            await self._contents.put(name, page.content)
            return source.model_copy(update={"content": name, "media_type": page.media_type, "filename": page.filename})

    @activity.defn
    async def look_at_source(self, params: SourceParams) -> SourceLook:
        """What a source is, and whether anything is left to do for it."""
        source = params.source
        async with beating_for_source():
            try:
                suffix = _suffix(source)
                content = await self._sources.read(source, params.roots)
            except ApplicationError as error:
                if not error.non_retryable:
                    raise
                return SourceLook(outcome=_failed(source, error))
            content_hash = await asyncio.to_thread(self._hash, content, suffix)
            store = await self._store()
            if await store.source_hash(params.user_id, params.collection, source.source) == content_hash:
                key = document_id(params.user_id, params.collection, source.source)
                return SourceLook(outcome=SourceOutcome(source=source.source, status="unchanged", document_id=key))
        return SourceLook(is_image=suffix in IMAGE_SUFFIXES)

    def _hash(self, content: bytes, suffix: str) -> str:
        """Hash of a content and of the way it is read: a new way makes every source a changed one."""
        way = f"{CHUNKING_VERSION}\0{self._reader.way}\0{suffix}"
        if suffix in IMAGE_SUFFIXES:
            way += f"\0{self._vision}"
        return hashlib.sha256(way.encode() + b"\0" + content).hexdigest()

    @activity.defn
    async def ingest_source(self, params: IngestSourceParams) -> SourceOutcome:
        """Bring one source up to date in one collection.

        Heartbeats with (chunks embedded, chunks in all). Vectors are kept as they are made: an attempt after this one
        goes on behind them.

        Raises:
            ApplicationError: retryable ones only. What is wrong with the source itself is in the outcome.
        """
        source, progress = params.source, [0, 0]
        async with beating_for_source(progress):
            try:
                suffix = _suffix(source)
                content = await self._sources.read(source, params.roots)
                content_hash = await asyncio.to_thread(self._hash, content, suffix)
                if params.description is None:
                    document = await self._reader.read(content, suffix)
                else:
                    document = await self._reader.read(params.description.encode(), ".md")
            except ApplicationError as error:
                if not error.non_retryable:
                    raise
                return _failed(source, error)
            title = document.title or source.filename or source.source
            if params.description is not None:
                title = source.filename or source.source
            key = document_id(params.user_id, params.collection, source.source)
            chunks = [
                Chunk(
                    # The model's id is no part of it: the store keeps one model for a collection.
                    chunk_id=hashlib.sha256(f"{key}\0{content_hash}\0{position}".encode()).hexdigest()[:32],
                    user_id=params.user_id,
                    collection=params.collection,
                    source=source.source,
                    content_hash=content_hash,
                    position=position,
                    text=piece.text,
                    embedding=b"",
                    metadata=_metadata(shortened(title), piece),
                )
                for position, piece in enumerate(document.pieces)
            ]
            await self._embed(chunks, progress)
            store = await self._store()
            await store.replace_source(params.user_id, params.collection, source.source, chunks)
        if not chunks:
            return SourceOutcome(source=source.source, status="skipped", reason="There is no text in it.")
        return SourceOutcome(source=source.source, status="stored", chunks=len(chunks), document_id=key)

    async def _embed(self, chunks: list[Chunk], progress: list[int]) -> None:
        """Give chunks their vectors, those of an earlier attempt where it has left any."""
        store = await self._store()
        size = max(LEAST_BATCH, self._embeddings.texts_at_once)
        progress[1] = len(chunks)
        staged: dict[str, bytes] = {}
        # What fits one batch leaves nothing behind.
        if len(chunks) > size:
            staged = await store.staged([chunk.chunk_id for chunk in chunks])
            for chunk in chunks:
                chunk.embedding = staged.get(chunk.chunk_id, b"")
        left = [chunk for chunk in chunks if not chunk.embedding]
        progress[0] = len(chunks) - len(left)
        for start in range(0, len(left), size):
            batch = left[start : start + size]
            vectors = await self._embeddings.embed([chunk.text for chunk in batch], EMBEDDED["documents"].side)
            for chunk, vector in zip(batch, vectors, strict=True):
                chunk.embedding = vector
            progress[0] += len(batch)
            if start + size < len(left):
                await store.stage({chunk.chunk_id: chunk.embedding for chunk in batch})

    @activity.defn
    async def drop_contents(self, contents: ContentNames) -> None:
        """Drop contents that are used no more."""
        for name in contents.names:
            await self._contents.drop(name)

    @activity.defn
    async def drop_listing(self, pages: ContentNames) -> None:
        """Drop the pages of a listing, and what its sources still hold."""
        for name in pages.names:
            content = await self._contents.get(name)
            if content is not None:
                for source in _SOURCES.validate_json(content):
                    if source.content is not None:
                        await self._contents.drop(source.content)
                await self._contents.drop(name)

    # What is stored

    @activity.defn
    async def list_documents(self, params: ListDocumentsParams) -> SourcePage:
        """A page of a user's documents."""
        store = await self._store()
        return await store.list_sources(params.user_id, params.collection, params.limit, params.cursor)

    @activity.defn
    async def remove_document(self, params: SourceRemoval) -> SourceRemoved:
        """Remove a document and all of its chunks."""
        store = await self._store()
        return SourceRemoved(chunks=await store.remove_source(params.user_id, params.collection, params.source))

    @activity.defn
    async def read_document(self, key: DocumentKey) -> StoredDocument:
        """Some chunks of a document, in order.

        Raises:
            ApplicationError: `rejected` where the user has no such document.
        """
        store = await self._store()
        found = await store.read_document(key.document_id, key.user_id, key.position, READ_CHARACTERS)
        if found is None:
            raise failure("rejected", "There is no such document. Search hits name theirs as document_id.")
        return found


def listing_page(workflow_id: str, number: int) -> str:
    """The content that is a page of a workflow's listing."""
    return f"{workflow_id}-sources-{number}"


def fetched_content(workflow_id: str, source: Source) -> str:
    """The content that is a page which a workflow fetches."""
    return f"{workflow_id}-{hashlib.sha256(source.source.encode()).hexdigest()[:32]}"


def _held(request: SourceRequest) -> Source:
    return Source(
        source=request.name,
        content=request.content,
        filename=Path(request.name).name,
        media_type=request.media_type,
        error=request.error,
    )


def _page(url: str) -> Source:
    """A page that a sitemap names, called as if it had been named itself."""
    try:
        checked = check_url(url)
    except ApplicationError as error:
        return Source(source=shortened(url), error=error.message)
    return Source(source=checked, url=checked)


def _is_selected(url: str, params: IngestParams) -> bool:
    return selected(urlsplit(url).path.strip("/"), params.include, params.exclude)


def _each_once(sources: Iterable[Source]) -> Iterator[Source]:
    seen: set[str] = set()
    for source in sources:
        if source.source not in seen:
            seen.add(source.source)
            yield source


def _suffix(source: Source) -> str:
    """The format of a source, as the suffix of its files.

    Raises:
        ApplicationError: `rejected` where it can't be read.
    """
    suffix = suffix_for(source.media_type, source.filename)
    if suffix is None:
        what = Path(source.filename).suffix or source.media_type or "Its format"
        known = ", ".join(sorted(SUFFIXES | IMAGE_SUFFIXES))
        raise failure("rejected", f"{what} can't be read; these can: {known}.")
    return suffix


def _failed(source: Source, error: ApplicationError) -> SourceOutcome:
    return SourceOutcome(source=source.source, status="failed", reason=error.message)


def _metadata(title: str, piece: Piece) -> dict[str, object]:
    metadata: dict[str, object] = {"title": title}
    if piece.headings:
        metadata["headings"] = list(piece.headings)
    if piece.page is not None:
        metadata["page"] = piece.page
    return metadata
