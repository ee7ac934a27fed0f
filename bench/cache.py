"""How well the semantic cache tells questions that mean the same from those that only look it.

Each line of `cache_pairs.jsonl` is a pair of questions: a paraphrase, whose `kind` is how freely it is worded (or that
it isn't English), or a near miss, whose `kind` is what differs. Both questions are embedded as the product embeds them
and compared by the function that decides on a hit. The guard and the threshold were tuned on the `development` half.

The embedding model is the configured one (EMBEDDING_MODEL_ID, AWS_REGION, CACHE_THRESHOLD and the others), so that the
threshold of any can be measured.

Usage: python -m bench.cache
"""

import asyncio
import json
import sys
import tempfile
from array import array
from collections.abc import Callable, Sequence
from operator import mul
from pathlib import Path
from typing import Literal, NamedTuple

from activities.bedrock import BedrockEmbeddings
from activities.cache import default_threshold, is_hit
from activities.models import EMBEDDED
from mcp_server.local.stack import leased
from mcp_server.runtime import build_embeddings
from mcp_server.settings import Settings, load_settings

PAIRS = Path(__file__).with_name("cache_pairs.jsonl")

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
LEAST_RECALL = 0.5
MOST_FALSE_HITS = 0.01
"""What the default promises: the share of paraphrases that hit, and that of near misses that do."""


class Pair(NamedTuple):
    half: Literal["development", "held_out"]
    label: Literal["paraphrase", "near_miss"]
    kind: str
    query: str
    other: str


class Compared(NamedTuple):
    pair: Pair
    similarity: float


class Rates(NamedTuple):
    """Recall: hits among paraphrases. False hits: hits among near misses. Precision: paraphrases among hits."""

    recall: float
    false_hits: float
    precision: float


def read_pairs() -> list[Pair]:
    return [Pair(**json.loads(line)) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def rates(compared: Sequence[Compared], hits: Callable[[Compared], bool]) -> Rates:
    """How a rule does on pairs of both labels; a rule without a hit has a precision of 1."""
    hit = {"paraphrase": 0, "near_miss": 0}
    count = {"paraphrase": 0, "near_miss": 0}
    for one in compared:
        count[one.pair.label] += 1
        hit[one.pair.label] += hits(one)
    right, wrong = hit["paraphrase"], hit["near_miss"]
    precision = right / (right + wrong) if right + wrong else 1.0
    return Rates(right / count["paraphrase"], wrong / count["near_miss"], precision)


def guarded(threshold: float) -> Callable[[Compared], bool]:
    return lambda one: is_hit(one.pair.query, one.pair.other, one.similarity, threshold)


def unguarded(threshold: float) -> Callable[[Compared], bool]:
    return lambda one: one.similarity >= threshold


async def compare(embeddings: BedrockEmbeddings, pairs: Sequence[Pair]) -> list[Compared]:
    """Each pair with the cosine of its questions, which are embedded as cached ones are."""
    texts = sorted({text for pair in pairs for text in (pair.query, pair.other)})
    vectors = dict(zip(texts, await embeddings.embed(texts, EMBEDDED["cache"].side), strict=True))
    return [
        Compared(pair, sum(map(mul, array("f", vectors[pair.query]), array("f", vectors[pair.other]))))
        for pair in pairs
    ]


async def measure(settings: Settings) -> tuple[str, list[Compared]]:
    """The model's name, and all pairs compared by it."""
    pairs = read_pairs()
    if not settings.embeddings_are_local:
        embeddings = build_embeddings(settings, None)
        return settings.shown_embedding_model, await compare(embeddings, pairs)
    async with leased(settings.durable_context_home, ["models"]) as addresses:
        embeddings = build_embeddings(settings, addresses.models)
        return settings.shown_embedding_model, await compare(embeddings, pairs)


def print_thresholds(compared: Sequence[Compared], default: float) -> None:
    print(f"{'':10}{'by cosine alone':^30}{'with the guard':^30}")
    print(f"{'threshold':10}" + f"{'recall':>8}{'false hits':>12}{'precision':>10}" * 2)
    for threshold in sorted({*THRESHOLDS, default}):
        cells = [rates(compared, rule(threshold)) for rule in (unguarded, guarded)]
        row = "".join(f"{one.recall:>8.1%}{one.false_hits:>12.1%}{one.precision:>10.1%}" for one in cells)
        print(f"{threshold:<10.2f}{row}{'  default' if threshold == default else ''}")


def print_kinds(compared: Sequence[Compared], default: float) -> None:
    """Hits at the default by kind."""
    print(f"\n{'hits at the default':28}{'pairs':>7}{'cosine alone':>14}{'guarded':>9}")
    for label, kind in dict.fromkeys((one.pair.label, one.pair.kind) for one in compared):
        some = [one for one in compared if (one.pair.label, one.pair.kind) == (label, kind)]
        alone, both = (sum(map(rule(default), some)) for rule in (unguarded, guarded))
        print(f"{label + ' ' + kind:28}{len(some):>7}{alone:>14}{both:>9}")


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        settings = load_settings(durable_context_home=Path(home))
        model, compared = asyncio.run(measure(settings))
    default = settings.cache_threshold
    if default is None:
        default = default_threshold(settings.embedding_model_id)
    held = True
    for half in ("development", "held_out"):
        some = [one for one in compared if one.pair.half == half]
        of_label = {label: sum(one.pair.label == label for one in some) for label in ("paraphrase", "near_miss")}
        print(f"\n{model}, {half}: {of_label['paraphrase']} paraphrases, {of_label['near_miss']} near misses\n")
        print_thresholds(some, default)
        print_kinds(some, default)
        now = rates(some, guarded(default))
        good = now.recall >= LEAST_RECALL and now.false_hits <= MOST_FALSE_HITS
        held = held and good
        print(
            f"\nat {default:.2f}: {now.recall:.1%} of paraphrases hit (at least {LEAST_RECALL:.0%}), "
            f"{now.false_hits:.1%} of near misses (at most {MOST_FALSE_HITS:.0%}): "
            f"{'holds' if good else 'DOES NOT HOLD'}"
        )
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
