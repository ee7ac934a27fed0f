"""How well `hybrid_search` ranks, at several weights and by either of its legs alone, asked about real prose.

The corpus is the sample documents, and the descriptions of packages that `requirements.lock` pins to one version each,
as they stand in the packages' metadata. `durable-context ingest` takes them in, and a client asks the `hybrid_search`
of `durable-context serve`, on an embedded stack in a temporary folder.

Each line of `search_questions.jsonl` is a question, of the kind `words` (asked in other words than the passage's) or
`terms` (identifiers, names and numbers as they stand in it), with what answers it: the document (`source`, a sample's
name or a package's) and a phrase of the passage (`answer`).

Usage: python -m bench.search
"""

import asyncio
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from activities.chunking import split
from activities.formats import parse
from mcp_server.demo import CORPUS, embedded_environment
from mcp_server.local.stack import leased

QUESTIONS = Path(__file__).with_name("search_questions.jsonl")

WEIGHTS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
"""Of the vector leg: 0 is the keyword leg alone, 1 the vector leg alone."""
DEPTH = 10
CHUNKING = (300, 30)
"""The defaults of CHUNK_TOKENS and CHUNK_OVERLAP_TOKENS."""
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

    DCG = Σ gain / log2(1 + rank), ranks from 1 to `depth`, divided by that of the best ranking there can be.
    The measure is that of Järvelin and Kekäläinen, ACM TOIS 20(4), 2002; the discount, which also tells the second rank
    from the first, that of Burges et al., ICML 2005.

    Args:
        gains: 1 for each result that answers and 0 for one that doesn't, best result first.
        relevant: How many chunks in the corpus answer, at least 1.
        depth: How many results count.
    """
    discounts = [1 / math.log2(1 + rank) for rank in range(1, depth + 1)]
    return sum(gain * discount for gain, discount in zip(gains, discounts, strict=False)) / sum(discounts[:relevant])


def read_questions() -> list[Question]:
    return [Question(**json.loads(line)) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def write_corpus(folder: Path, questions: Sequence[Question]) -> list[Path]:
    """Put the samples, and the descriptions of the packages that are asked about, into `folder` under their names."""
    samples = {document.stem: document for document in CORPUS.glob("*.md")}
    for document in samples.values():
        shutil.copy(document, folder)
    for name in {one.source for one in questions} - samples.keys():
        package = metadata(name)
        types = package.get_all("Description-Content-Type") or ()
        markdown = any(one.startswith("text/markdown") for one in types)
        (folder / f"{name}.{'md' if markdown else 'txt'}").write_text(package["Description"], encoding="utf-8")
    return sorted(folder.iterdir())


def count_relevant(questions: Sequence[Question], documents: Sequence[Path]) -> list[int]:
    """How many chunks of the corpus answer each question.

    Raises:
        ValueError: naming the questions that none answers, since a package's new version no longer has the phrase.
    """
    chunks = {
        document.stem: [piece.text for piece in split(parse(document.read_bytes(), document.suffix), *CHUNKING)]
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
    with tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True) as folder:
        home, corpus = Path(folder, "home"), Path(folder, "corpus")
        home.mkdir()
        corpus.mkdir()
        documents = write_corpus(corpus, questions)
        relevant = count_relevant(questions, documents)
        environment = embedded_environment(home)
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
    questions = read_questions()
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
