"""Weighted reciprocal rank fusion: one ranking out of several, used by every hybrid search of either engine."""

from collections.abc import Iterable, Sequence

from activities.errors import failure
from activities.store.base import RRF_K


def candidates(limit: int) -> int:
    """How many results each leg contributes to a search for `limit`: five times as many, from 50 to 500."""
    return min(500, max(50, 5 * limit))


def check_search(limit: int, weight: float) -> None:
    """Reject what no search can be asked for.

    Raises:
        ApplicationError: `rejected` for a limit below 1, or a weight outside 0 to 1.
    """
    if limit < 1 or not 0 <= weight <= 1:
        raise failure("rejected", "limit must be at least 1 and weight from 0 (keyword) to 1 (vector)")


def fuse(legs: Iterable[tuple[float, Sequence[str]]]) -> list[tuple[str, float]]:
    """Fuse rankings by score = Σ weight * (RRF_K + 1) / (RRF_K + rank), ranks from 1.

    Only ranks count, so legs with scores on different scales (cosine, BM25) can be mixed. A record that a leg missed
    gets nothing from it. The factor RRF_K + 1 makes 1 the score of a record that is first in every leg, where the
    weights add up to 1. The formula is that of Cormack, Clarke and Büttcher, SIGIR 2009, with weights and that factor.

    Args:
        legs: A weight and the record ids, best first and each once, for every leg. A leg of weight 0 is ignored.

    Returns:
        Ids and fused scores, best first; ties go to the lower id.
    """
    scores: dict[str, float] = {}
    for weight, ids in legs:
        if weight == 0:
            continue
        for rank, record_id in enumerate(ids, start=1):
            scores[record_id] = scores.get(record_id, 0.0) + weight * (RRF_K + 1) / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
