"""How the benchmark of the semantic cache counts, and what its pairs are."""

from collections import Counter
from itertools import product

import pytest

from bench.cache import Compared, Pair, guarded, rates, read_pairs, unguarded


def test_the_pairs_are_many_of_both_labels_in_both_halves_and_none_twice() -> None:
    pairs = read_pairs()

    counts = Counter((pair.half, pair.label) for pair in pairs)
    assert set(counts) == set(product(("development", "held_out"), ("paraphrase", "near_miss")))
    assert min(counts.values()) >= 100
    assert len({frozenset((pair.query, pair.other)) for pair in pairs}) == len(pairs)


def test_rates_count_hits_of_either_label() -> None:
    def compared(label: str, similarity: float, other: str = "Is it on?") -> Compared:
        return Compared(Pair("held_out", label, "", "Is it on?", other), similarity)  # type: ignore[arg-type]

    some = [
        compared("paraphrase", 0.9),
        compared("paraphrase", 0.7),
        compared("near_miss", 0.95, "Is it off?"),
        compared("near_miss", 0.8),
        compared("near_miss", 0.1),
    ]

    assert rates(some, unguarded(0.8)) == pytest.approx((1 / 2, 2 / 3, 1 / 3))
    assert rates(some, guarded(0.8)) == pytest.approx((1 / 2, 1 / 3, 1 / 2))
    assert rates(some, unguarded(1)) == (0, 0, 1)
