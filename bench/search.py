"""How well `hybrid_search` ranks, at several weights and by either of its legs alone, asked about real prose.

The corpus is the sample documents, and the descriptions that packages of `requirements.lock` carry in their metadata.
They are ingested by `durable-context ingest` and searched by the tool of a `durable-context serve`, on an embedded stack
of its own. Each line of `search_questions.jsonl` is a question, of the kind `words` (asked in other words than the
passage's) or `terms` (identifiers, names and numbers as they stand in it), with the document (`source`) and a phrase of
the passage (`answer`) that answers it.

Usage: python -m bench.search
"""

import asyncio
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from activities.documents import MARKDOWN_SUFFIXES, chunk_text
from mcp_server.demo import CORPUS
from mcp_server.local.stack import leased
from mcp_server.settings import Settings

QUESTIONS = Path(__file__).with_name("search_questions.jsonl")

PACKAGES = (
    *("annotated-types", "attrs", "boto3", "charset-normalizer", "click", "dnspython", "h11", "httpcore", "httpx"),
    *("idna", "jmespath", "jsonschema", "markdown-it-py", "motor", "pathspec", "platformdirs", "pluggy", "psutil"),
    *("pycparser", "pymongo", "pytest-timeout", "python-dateutil", "python-dotenv", "python-multipart", "regex"),
    *("requests", "rich", "ruff", "semantic-text-splitter", "snowballstemmer", "sse-starlette", "starlette"),
    *("tavily-python", "temporalio", "tiktoken", "truststore", "urllib3", "uvicorn"),
)
"""Those with prose in their descriptions, each pinned to one version for every platform and Python."""

WEIGHTS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
"""Of the vector leg: 0 is the keyword leg alone, 1 the vector leg alone."""
DEPTH = 10
CALLS_AT_ONCE = 4


class Question(NamedTuple):
    question: str
    kind: str
    source: str
    answer: str

    def gain(self, source: str, text: str) -> int:
        """1 for a chunk of the right document that holds the answer, however its whitespace runs; otherwise 0."""
        return int(source == self.source and self.answer in " ".join(text.split()))


def ndcg(gains: Sequence[int], relevant: int, depth: int) -> float:
    """Normalised discounted cumulative gain of one ranking, from 0 to 1.

    DCG = Σ gain / log2(1 + rank), ranks from 1 to `depth`, divided by that of the best ranking there can be. The measure
    is that of Järvelin and Kekäläinen, ACM TOIS 20(4), 2002; the discount the smooth one of Burges et al., ICML 2005.

    Args:
        gains: 1 for each result that answers and 0 for one that doesn't, best result first.
        relevant: How many chunks in the corpus answer, at least 1.
        depth: How many results count.
    """
    discounts = [1 / math.log2(1 + rank) for rank in range(1, depth + 1)]
    return sum(gain * discount for gain, discount in zip(gains, discounts, strict=False)) / sum(discounts[:relevant])


def write_corpus(folder: Path) -> list[Path]:
    """Put the documents into `folder`, each under the name by which the questions know it."""
    for document in CORPUS.glob("*.md"):
        shutil.copy(document, folder)
    for name in PACKAGES:
        package = metadata(name)
        markdown = (package["Description-Content-Type"] or "").startswith("text/markdown")
        (folder / f"{name}.{'md' if markdown else 'txt'}").write_text(str(package.get_payload()), encoding="utf-8")
    return sorted(folder.iterdir())


def count_relevant(questions: Sequence[Question], documents: Sequence[Path]) -> list[int]:
    """How many chunks of the corpus answer each question.

    Raises:
        ValueError: naming the questions that none answers, since a package's new version no longer has the phrase.
    """
    chunks = {
        document.stem: chunk_text(document.read_text(encoding="utf-8"), document.suffix in MARKDOWN_SUFFIXES)
        for document in documents
    }
    counts = [sum(one.gain(one.source, text) for text in chunks[one.source]) for one in questions]
    if lost := [one.question for one, count in zip(questions, counts, strict=True) if not count]:
        raise ValueError(f"no chunk holds the answer to: {lost}")
    return counts


async def search(client: Client, question: Question, weight: float) -> list[int]:
    """Gains of what the tool finds, best first."""
    answer = await client.call_tool(
        "hybrid_search", {"query": question.question, "limit": DEPTH, "weight": weight}, read_timeout_seconds=60
    )
    if answer.is_error or answer.structured_content is None:
        raise RuntimeError(f"hybrid_search failed: {answer.content}")
    hits = answer.structured_content["results"]
    return [question.gain(Path(hit["metadata"]["source"]).stem, hit["text"]) for hit in hits]


async def measure(questions: Sequence[Question]) -> dict[float, list[float]]:
    """nDCG at DEPTH of each question, by weight; a question is asked at all weights before the next one is."""
    ours = {name.upper() for name in Settings.model_fields}
    with tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True) as folder:
        home, corpus = Path(folder, "home"), Path(folder, "corpus")
        home.mkdir()
        corpus.mkdir()
        documents = write_corpus(corpus)
        relevant = count_relevant(questions, documents)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.upper() not in ours and not name.startswith(("AWS_", "TEMPORAL_"))
        }
        environment = kept | {"DURABLE_CONTEXT_HOME": str(home), "LOG_LEVEL": "ERROR"}
        line = [sys.executable, "-m", "mcp_server.cli"]
        server = StdioServerParameters(command=line[0], args=[*line[1:], "serve"], env=environment, cwd=home)
        async with leased(home, ["temporal", "models"]):
            ingest = await asyncio.create_subprocess_exec(*line, "ingest", str(corpus), env=environment, cwd=home)
            if await ingest.wait():
                raise RuntimeError("the corpus can't be ingested: see above")
            async with Client(stdio_client(server)) as client:
                places = asyncio.Semaphore(CALLS_AT_ONCE)

                async def score(question: Question, count: int, weight: float) -> float:
                    async with places:
                        return ndcg(await search(client, question, weight), count, DEPTH)

                pairs = list(zip(questions, relevant, strict=True))
                scores = await asyncio.gather(*(score(*pair, weight) for pair in pairs for weight in WEIGHTS))
    return {weight: list(scores[place :: len(WEIGHTS)]) for place, weight in enumerate(WEIGHTS)}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    questions = [Question(**json.loads(line)) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    scores = asyncio.run(measure(questions))
    kinds = sorted({one.kind for one in questions})
    best = max(mean(scores[0.0]), mean(scores[1.0]))
    print(f"nDCG@{DEPTH} over {len(questions)} questions")
    print(f"{'weight':>6}{'all':>9}" + "".join(f"{kind:>9}" for kind in kinds) + "   to the better leg")
    for weight, values in scores.items():
        by_kind = [
            mean([value for one, value in zip(questions, values, strict=True) if one.kind == kind]) for kind in kinds
        ]
        leg = {0.0: "keyword leg", 1.0: "vector leg"}.get(weight, f"{mean(values) / best:.3f}")
        print(f"{weight:>6}{mean(values):>9.4f}" + "".join(f"{value:>9.4f}" for value in by_kind) + f"   {leg}")
    behind = [weight for weight in WEIGHTS if 0 < weight < 1 and mean(scores[weight]) <= best]
    print(f"\nbehind a leg at: {behind}" if behind else "\nahead of both legs at every weight between")
    sys.exit(1 if behind else 0)


if __name__ == "__main__":
    main()
