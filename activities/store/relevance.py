"""Which messages bear on a question: one ranking out of four searches, speakers, times and neighbours."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from activities.store.periods import periods_in

SPEAKER = 0.3
"""What it counts that the question names the speaker, where being first in every search counts 1."""
TIME = 0.3
"""What it counts that the message is of the time that the question speaks of."""
BEFORE = 0.2
"""What counts of the score of the message before: the question that this one answers."""
AFTER = 0.1
"""What counts of the score of the message after: the answer to this one."""
BEST = (1 + SPEAKER + TIME) * (1 + BEFORE + AFTER)

LABEL_CHARACTERS = 64
"""How much of a message's beginning is enough to tell its speaker."""

# "Ann:" or "Dr. Ann-Marie Lee:", as transcripts begin a line.
_LABEL = re.compile(r"\s*([^\W\d_][\w.'’-]*(?:[ ][^\W\d_][\w.'’-]*){0,3})[ ]?:\s")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """A message that a search has found.

    Attributes:
        previous: Id of the message before it in its conversation.
        beginning: Its first LABEL_CHARACTERS, or more.
    """

    message_id: str
    previous: str | None
    beginning: str
    timestamp: datetime


def scaled(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of one search, scaled so that the best of them is 1 and the worst 0; all 1 where they don't differ.

    The min-max normalisation that Bruch, Gai and Ingber ("An Analysis of Fusion Functions for Hybrid Retrieval", 2023)
    found ahead of fusing by rank: how far apart results are counts, not only their order.
    """
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    return {one: (score - low) / (high - low) if high > low else 1.0 for one, score in scores.items()}


def _names(text: str) -> set[str]:
    """The words of a text that begin with a capital, in lower case."""
    return {word.lower() for word in _WORD.findall(text) if word[0].isupper()}


def rank_messages(
    question: str, asked_at: datetime, searches: Iterable[Mapping[str, float]], candidates: Iterable[Candidate]
) -> list[tuple[str, float]]:
    """Rank messages by how much they bear on a question.

    s = mean of the scaled scores over the searches (0 from one that missed the message)
        + SPEAKER where the message is labelled with a name ("Ann: …") that stands in the question
        + TIME × nearness of its time to the nearest period that the question names, from 0 to 1.
    score = (s + BEFORE × s of the message before + AFTER × the best s of those that came after it) / BEST, where a
    message that no search found counts 0.

    Args:
        question: What the messages should bear on.
        asked_at: When; what periods like "last week" are counted from.
        searches: Scores by message id, higher is better, one mapping for each search.
        candidates: The messages found, in any order.

    Returns:
        Ids and scores from 0 to 1, best first; ties go to the newer message, then to the lower id.
    """
    legs = [scaled(search) for search in searches]
    named = _names(question)
    periods = periods_in(question, asked_at)
    found = {candidate.message_id: candidate for candidate in candidates}
    own: dict[str, float] = {}
    for message_id, candidate in found.items():
        score = sum(leg.get(message_id, 0.0) for leg in legs) / len(legs)
        label = _LABEL.match(candidate.beginning)
        if label and not named.isdisjoint(_names(label[1])):
            score += SPEAKER
        own[message_id] = score + TIME * max((one.nearness(candidate.timestamp) for one in periods), default=0.0)
    after: dict[str, float] = {}
    for message_id, candidate in found.items():
        if candidate.previous in own:
            after[candidate.previous] = max(own[message_id], after.get(candidate.previous, 0.0))
    scores = {
        message_id: (
            own[message_id] + BEFORE * own.get(candidate.previous or "", 0.0) + AFTER * after.get(message_id, 0.0)
        )
        / BEST
        for message_id, candidate in found.items()
    }
    order = sorted(found.values(), key=lambda one: one.message_id)
    order.sort(key=lambda one: (scores[one.message_id], one.timestamp), reverse=True)
    return [(one.message_id, scores[one.message_id]) for one in order]
