"""How fast documents come in: chunks a second end to end, beside the embedding model alone, in the same run.

End to end is a call of `ingest_documents` over stdio on the embedded stack: files are listed, read in their formats,
cut into chunks, embedded and stored, each step through Temporal. The model alone embeds the same chunks in batches of
the same size, with nothing else to do. Both take turns.

    python -m bench.ingest --rounds 3
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from activities.bedrock import BedrockEmbeddings
from activities.chunking import split
from activities.documents import LEAST_BATCH
from activities.formats import parse
from mcp_server.demo import CORPUS, embedded_environment
from mcp_server.local.stack import leased
from mcp_server.settings import LOCAL_EMBEDDING_MODEL, Settings

BOUND = 0.8
"""What end to end must reach of the model alone."""


def copies(folder: Path, count: int) -> list[Path]:
    """The sample documents `count` times over, in a folder."""
    made = []
    for number in range(count):
        for document in sorted(CORPUS.iterdir()):
            target = folder / f"{number}-{document.name}"
            target.write_bytes(document.read_bytes())
            made.append(target)
    return made


def chunks_of(files: list[Path]) -> list[str]:
    """The chunks that the files come to with the default settings."""
    tokens, overlap = (Settings.model_fields[name].default for name in ("chunk_tokens", "chunk_overlap_tokens"))
    return [
        piece.text for file in files for piece in split(parse(file.read_bytes(), file.suffix.lower()), tokens, overlap)
    ]


async def embed_alone(embeddings: BedrockEmbeddings, texts: list[str]) -> float:
    """Seconds for the model alone."""
    size = max(LEAST_BATCH, embeddings.texts_at_once)
    start = time.perf_counter()
    for begin in range(0, len(texts), size):
        await embeddings.embed(texts[begin : begin + size], "passage")
    return time.perf_counter() - start


async def ingest(client: Client, folder: Path, user: str, expected: int) -> float:
    """Seconds for one call that ingests a folder for a user who has nothing yet."""
    start = time.perf_counter()
    result = await client.call_tool("ingest_documents", {"sources": [str(folder)], "user_id": user})
    took = time.perf_counter() - start
    content = result.structured_content or {}
    if content.get("chunks") != expected:
        raise RuntimeError(f"{expected} chunks were expected: {result.content}")
    return took


async def measure(count: int, rounds: int) -> float:
    """Print both sides of each round; answer the median ratio."""
    with tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True) as place:
        home, folder = Path(place) / "home", Path(place) / "documents"
        folder.mkdir()
        files = copies(folder, count)
        texts = chunks_of(files)
        environment = embedded_environment(home) | {"INGEST_ROOTS": str(folder), "CALL_TIMEOUT_SECONDS": "3600"}
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "mcp_server.cli", "serve"], env=environment, cwd=place
        )
        print(f"{len(files)} documents, {len(texts)} chunks")
        print(f"{'round':>6} {'model alone':>16} {'end to end':>16} {'ratio':>8}")
        ratios = []
        async with leased(home, ["temporal", "models"]) as addresses, Client(stdio_client(server)) as client:
            embeddings = BedrockEmbeddings(LOCAL_EMBEDDING_MODEL, None, None, addresses.models)
            await embed_alone(embeddings, texts[:LEAST_BATCH])
            for number in range(1, rounds + 1):
                alone = await embed_alone(embeddings, texts)
                whole = await ingest(client, folder, f"user-{number}", len(texts))
                ratios.append(alone / whole)
                rates = (f"{len(texts) / seconds:.1f} chunks/s" for seconds in (alone, whole))
                print(f"{number:>6} {next(rates):>16} {next(rates):>16} {ratios[-1]:>8.2f}")
        median = statistics.median(ratios)
        print(f"median ratio {median:.2f} (at least {BOUND})")
        return median


def main() -> int:
    """Run the benchmark; 0 where the pipeline reaches its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=3, help="how often the sample documents are taken (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    return 0 if asyncio.run(measure(options.copies, options.rounds)) >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
