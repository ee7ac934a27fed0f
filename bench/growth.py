"""Whether `hybrid_search` stays fast in a large store: beside others' chunks, and as a user's own become more.

Two data folders are filled through the store. In one a user with 1,000 chunks is alone; in the other are the same user,
and users with 3,000, 10,000, 30,000 and 100,000. The texts are paragraphs of real prose (Python's manual, packages'
descriptions) put together anew, so that words are as frequent as in prose; a chunk's vector is a mixture of the
embeddings of its paragraphs, made by the real model, with noise. Searches at the weights 0, 0.5 and 1, of rare and of
common words, with and without a filter, go round the users: through a client over stdio, and to the store itself.

Recall is the share of the ten best of an exhaustive search that are among the ten found.

    python -m bench.growth --rounds 3
"""

import argparse
import asyncio
import hashlib
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from numpy.typing import NDArray

from activities.bedrock import BedrockEmbeddings
from activities.models import DEFAULT_COLLECTION, Chunk, DocumentQuery
from activities.store import sqlite_documents, sqlite_search
from activities.store.sqlite import SqliteStore
from activities.store.sqlite_shares import chunks_of
from mcp_server.demo import embedded_environment
from mcp_server.local.stack import leased
from mcp_server.settings import LOCAL_EMBEDDING_MODEL, Settings

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
WEIGHTS = (0.0, 0.5, 1.0)
FILTER: dict[str, Any] = {"year": {"$gte": 2010}}
"""What about six chunks in ten meet."""
QUERIES = (
    *("traceback formatting of chained exceptions", "unicode identifier normalization", "metaclass conflict"),
    *("value object function", "python code example use", "list of string names in the class"),
)
"""Of words that few chunks hold, and of words that many do."""

PARAGRAPHS = 2_000
EMBEDDED = 300
"""How many of the paragraphs the model embeds; the vectors of the others are mixed from these."""
SOURCE = 50
"""Chunks of a source."""
AT_ONCE = 20
"""Sources stored in one transaction."""

BESIDE_OTHERS = 1.2
GROWTH = 10.0
RECALL = 0.97

Vectors = NDArray[np.float32]
Search = Callable[[str, float, dict[str, Any] | None], Awaitable[list[str]]]


def paragraphs() -> list[str]:
    """Paragraphs of prose, each once, in the order of their texts."""
    texts = [*topics.values(), *(one.metadata["Description"] or "" for one in distributions())]
    found = {" ".join(part.split()): None for text in texts for part in re.split(r"\n\s*\n", text)}
    prose = [one for one in found if 60 < len(one) < 500 and sum(c.isalpha() or c == " " for c in one) > 0.8 * len(one)]
    return prose[:PARAGRAPHS]


def chunks(user: str, count: int, prose: list[str], vectors: Vectors) -> Iterator[list[Chunk]]:
    """`count` chunks of a user, a source at a time: three paragraphs in a row, and three from anywhere."""
    random = np.random.default_rng(count)
    for at in range(0, count, SOURCE):
        source, made = f"{user}/{at}.md", []
        for position in range(min(SOURCE, count - at)):
            first = int(random.integers(len(prose)))
            places = [(first + step) % len(prose) for step in range(3)] + random.integers(0, len(prose), 3).tolist()
            noise = random.standard_normal(vectors.shape[1]) * 0.35 / vectors.shape[1] ** 0.5
            vector = (
                0.75 * vectors[first % EMBEDDED]
                + 0.25 * vectors[[one % EMBEDDED for one in places[1:]]].mean(0)
                + noise
            )
            made.append(
                Chunk(
                    chunk_id=hashlib.sha256(f"{user} {at + position}".encode()).hexdigest()[:32],
                    user_id=user,
                    collection=DEFAULT_COLLECTION,
                    source=source,
                    position=position,
                    content_hash=source,
                    text="\n\n".join(prose[place] for place in places),
                    metadata={"title": source, "year": 2000 + int(random.integers(25))},
                    embedding=(vector / np.linalg.norm(vector)).astype(np.float32).tobytes(),
                )
            )
        yield made


async def fill(store: SqliteStore, sizes: tuple[int, ...], prose: list[str], vectors: Vectors) -> None:
    """Store the chunks of users, as `replace_source` does, but many sources to a transaction."""
    for size in sizes:
        user, sources = f"user-{size}", chunks(f"user-{size}", size, prose, vectors)
        while some := list(itertools.islice(sources, AT_ONCE)):

            def put(db: Any, some: list[list[Chunk]] = some, user: str = user) -> None:
                for source in some:
                    share, embeddings = chunks_of(user, DEFAULT_COLLECTION), [one.embedding for one in source]
                    sqlite_documents.replace(db, share, source[0].source, source, list(embeddings))

            await store._write(put)


def tool(client: Client, user: str, numbers: Iterator[int]) -> Search:
    async def search(query: str, weight: float, filter: dict[str, Any] | None) -> list[str]:
        # A question that was asked before wouldn't be embedded again.
        asked = f"{query} ({next(numbers)})"
        arguments = {"query": asked, "user_id": user, "weight": weight, "filter": filter}
        result = await client.call_tool("hybrid_search", arguments, read_timeout_seconds=60)
        if result.is_error or result.structured_content is None:
            raise RuntimeError(f"hybrid_search failed: {result.content}")
        return [hit["id"] for hit in result.structured_content["results"]]

    return search


def direct(store: SqliteStore, user: str, embedded: dict[str, bytes]) -> Search:
    async def search(query: str, weight: float, filter: dict[str, Any] | None) -> list[str]:
        asked = DocumentQuery(query=query, user_id=user, weight=weight, filter=filter, embedding=embedded[query])
        return [hit.id for hit in await store.search_documents(asked)]

    return search


async def exhaustive(search: Search, query: str, weight: float, filter: dict[str, Any] | None) -> list[str]:
    """What the store finds where it compares every vector and scores every text."""
    limits = sqlite_search.RESCORED, sqlite_search.ACCUMULATORS
    try:
        sqlite_search.RESCORED = sqlite_search.ACCUMULATORS = 10**9
        return await search(query, weight, filter)
    finally:
        sqlite_search.RESCORED, sqlite_search.ACCUMULATORS = limits


async def median_times(
    users: dict[str, Search], weight: float, filter: dict[str, Any] | None, rounds: int
) -> dict[str, float]:
    """Milliseconds of a search by user, the median of all queries and rounds after a first round that warms up."""
    times: dict[str, list[float]] = {user: [] for user in users}
    for number in range(rounds + 1):
        for query in QUERIES:
            for user, search in users.items():
                start = time.perf_counter()
                await search(query, weight, filter)
                if number:
                    times[user].append(1e3 * (time.perf_counter() - start))
    return {user: statistics.median(values) for user, values in times.items()}


def missed(label: str, times: dict[str, float]) -> list[str]:
    """The bounds that some times miss."""
    alone, *own = times.values()
    found = []
    if own[0] > BESIDE_OTHERS * alone:
        found.append(f"{label}: {own[0] / alone:.2f} times as long beside others (at most {BESIDE_OTHERS})")
    if own[-1] >= GROWTH * own[0]:
        found.append(f"{label}: {own[-1] / own[0]:.1f} times as long with 100 times the chunks (below {GROWTH:g})")
    for (size, before), (more, after) in itertools.pairwise(zip(SIZES, own, strict=False)):
        if after / before > more / size:
            found.append(f"{label}: {after / before:.1f} times as long with {more / size:.1f} times the chunks")
    return found


async def measure(own: tuple[int, ...], rounds: int) -> list[str]:
    """Print every figure; answer the bounds that were missed."""
    prose, failures = paragraphs(), []
    async with AsyncExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="durable-context-bench-")))
        homes = {"alone": SIZES[:1], "others": own}
        stores: dict[str, SqliteStore] = {}
        clients: dict[str, Client] = {}
        for name, sizes in homes.items():
            addresses = await stack.enter_async_context(leased(place / name, ["temporal", "models"]))
            embeddings = BedrockEmbeddings(LOCAL_EMBEDDING_MODEL, None, None, addresses.models)
            if not stores:
                began = time.perf_counter()
                packed = await embeddings.embed(prose[:EMBEDDED], "passage")
                vectors = np.frombuffer(b"".join(packed), dtype=np.float32).reshape(EMBEDDED, -1)
                embedded = dict(zip(QUERIES, await embeddings.embed(QUERIES, "query"), strict=True))
                print(f"{EMBEDDED} paragraphs embedded in {time.perf_counter() - began:.0f} s", flush=True)
            began = time.perf_counter()
            stores[name] = SqliteStore(Settings(durable_context_home=place / name).store_path)
            await stores[name].open(embeddings.model)
            stack.push_async_callback(stores[name].close)
            await fill(stores[name], sizes, prose, vectors)
            print(f"{sum(sizes):,} chunks stored in {time.perf_counter() - began:.0f} s", flush=True)
            server = StdioServerParameters(
                command=sys.executable,
                args=["-m", "mcp_server.cli", "serve"],
                env=embedded_environment(place / name),
                cwd=place,
            )
            clients[name] = await stack.enter_async_context(Client(stdio_client(server)))
        subjects = {"1,000 alone": ("alone", SIZES[0])} | {f"{size:,}": ("others", size) for size in own}
        numbers = itertools.count()
        sides = {
            "tool": {one: tool(clients[name], f"user-{size}", numbers) for one, (name, size) in subjects.items()},
            "store": {one: direct(stores[name], f"user-{size}", embedded) for one, (name, size) in subjects.items()},
        }
        print(f"{'ms, median':<24}" + "".join(f"{one:>13}" for one in subjects) + "   beside others   growth")
        for weight, filter in itertools.product(WEIGHTS, (None, FILTER)):
            for side, searches in sides.items():
                times = await median_times(searches, weight, filter, rounds)
                label = f"{side}, weight {weight:g}{', filter' if filter else ''}"
                alone, *beside = times.values()
                figures = "".join(f"{value:>13.1f}" for value in times.values())
                print(f"{label:<24}{figures}{beside[0] / alone:>16.2f}{beside[-1] / beside[0]:>9.1f}", flush=True)
                if side == "tool":
                    failures += missed(label, times)
        print("recall at 10 against an exhaustive search")
        for weight, filter in itertools.product(WEIGHTS, (None, FILTER)):
            label = f"weight {weight:g}{', filter' if filter else ''}"
            recalls = []
            for search in list(sides["store"].values())[1:]:
                shares = []
                for query in QUERIES:
                    exact = await exhaustive(search, query, weight, filter)
                    shares.append(len(set(exact) & set(await search(query, weight, filter))) / len(exact))
                recalls.append(statistics.mean(shares))
            print(f"{label:<24}{'':>13}" + "".join(f"{value:>13.3f}" for value in recalls), flush=True)
            if min(recalls) < RECALL:
                failures.append(f"{label}: recall at 10 of {min(recalls):.3f} (at least {RECALL})")
    return failures


def main() -> int:
    """Run the benchmark; 0 where every bound is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each search is measured (default: 3)")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave out users with more chunks than this")
    options = parser.parse_args()
    failures = asyncio.run(measure(tuple(size for size in SIZES if size <= options.largest), options.rounds))
    print("\n".join(["", *(f"missed: {one}" for one in failures)]) if failures else "\nevery bound is met")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
