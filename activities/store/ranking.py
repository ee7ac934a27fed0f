"""How strong a memory is, in which order memories are recalled and listed, and which are forgotten first.

Pure functions that both engines use. All of it is evaluated when it is read: time passing changes no record.
"""

from array import array
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt
from operator import mul

from activities.embedding_models import relevance
from activities.errors import failure
from activities.models import MemoryOrder, SimilarMemory
from activities.statements import Topic, same_statement, statement_keys, topic
from activities.store.times import micros, moment

LEAST_AGE = timedelta(minutes=1)
"""Age below which memories are as strong as they get: base-level activation has no bound towards 0."""
HALF_STRENGTH = timedelta(days=30)
"""Age at which a memory that was never used has half of its strength."""
DAILY_RECENCY = 0.99
"""What is left of recency after each day."""

WEIGHTS = {"relevance": 1.0, "importance": 0.1, "recency": 0.05, "strength": 0.05}
"""Of the parts of a score."""
CLEAR_LEAD = 0.2
"""Lead in relevance that outweighs all of the other parts together."""
SAME_TOPIC = 0.35
"""Relevance of two memories to each other from which the newer may be what has become of the older."""

_DAY = timedelta(days=1)


def strength(created_at: datetime, last_accessed_at: datetime, access_count: int, now: datetime) -> float:
    """How strong a memory is at `now`, from 0 to 1.

    Base-level learning of ACT-R (Anderson and Schooler, 1991): activation is B = ln Σ t_j^-d over the times t_j since
    each use, with d = 0.5. Of the uses only the last one's time and how many there were are kept, which is the hybrid
    approximation of Petrov ("Computationally efficient approximation of the base-level learning equation in ACT-R",
    2006) for one exact use:

        e^B = t_1^-0.5 + 2 (n - 1) / (√t_n + √t_1)

    n counts the uses, of which the first is that it was said; t_1 is the time since the last use and t_n since the
    first. The result is ACT-R's probability of recall, 1 / (1 + e^((τ - B) / s)), with s = 1 and a threshold τ that
    makes it 0.5 for a memory of HALF_STRENGTH that was never used.
    """
    oldest = max(LEAST_AGE, now - min(created_at, last_accessed_at)) / HALF_STRENGTH
    newest = max(LEAST_AGE, now - max(created_at, last_accessed_at)) / HALF_STRENGTH
    activation = 1 / sqrt(newest) + 2 * access_count / (sqrt(oldest) + sqrt(newest))
    return activation / (1 + activation)


def recency(created_at: datetime, now: datetime) -> float:
    """How recently something was said, from 0 to 1: exponential decay, as in Park et al. (2023), but by the day."""
    return float(DAILY_RECENCY ** (max(timedelta(0), now - created_at) / _DAY))


def score(relevance: float, importance: float, recency: float, strength: float) -> float:
    """What a memory is worth to a question, from 0 to 1: the weighted mean of four values from 0 to 1.

    The retrieval function of Park et al. ("Generative Agents: Interactive Simulacra of Human Behavior", 2023) with
    strength added. There the weights are equal; here relevance decides, and the others order what is about as relevant:
    with a lead of CLEAR_LEAD in relevance no importance, age or use of another memory matters.
    """
    parts = {"relevance": relevance, "importance": importance, "recency": recency, "strength": strength}
    return sum(WEIGHTS[name] * part for name, part in parts.items()) / sum(WEIGHTS.values())


def rank(
    memories: Collection[SimilarMemory], vectors: Mapping[str, bytes], now: datetime, unrelated: float, limit: int
) -> list[SimilarMemory]:
    """The best `limit` of memories that were found, best first, with their strengths and scores filled in.

    Nothing is returned twice: of memories that say the same, only the best stays. Of those on the same topic that are
    about as relevant, the newest comes first, in the place of the best: what was said last holds. None comes before one
    with a clear lead in relevance over it, whatever the topic.

    Args:
        memories: Roots: those that stand alone, and parents.
        vectors: Packed vectors by memory id; a memory without one is on nobody's topic.
        unrelated: Cosine that texts about different things have by the model.
    """
    scored: list[_Scored] = []
    for memory in memories:
        strong = strength(memory.created_at, memory.last_accessed_at, memory.access_count, now)
        relevant = relevance(memory.similarity, unrelated)
        total = score(relevant, memory.importance, recency(memory.created_at, now), strong)
        contents = [child.content for child in memory.children] or [memory.content]
        topics = [found for content in contents if (found := topic(content)) is not None]
        scored.append(_Scored(memory, contents, topics, relevant, strong, total))
    scored.sort(key=lambda one: (-one.score, -one.memory.similarity, one.memory.memory_id))
    waiting = _each_once(scored)
    ranked: list[_Scored] = []
    while waiting and len(ranked) < limit:
        place = _place(waiting[0], waiting, vectors, unrelated)
        # Whoever is clearly ahead of one that moved up comes first, with a place of their own.
        while leader := _ahead(place, waiting):
            place = _place(leader, waiting, vectors, unrelated)
        waiting = [one for one in waiting if one not in place]
        ranked += sorted(place, key=lambda one: -micros(one.memory.created_at))
    return [one.memory.model_copy(update={"strength": one.strength, "score": one.score}) for one in ranked[:limit]]


@dataclass(frozen=True, eq=False)
class _Scored:
    """A memory that was found, and how it stands to the question.

    Attributes:
        contents: What it says: its children's, or its own.
        topics: Of those that are statements.
    """

    memory: SimilarMemory
    contents: list[str]
    topics: list[Topic]
    relevance: float
    strength: float
    score: float


def _each_once(memories: Sequence[_Scored]) -> list[_Scored]:
    """Those that say nothing that one before them says."""
    kept: list[_Scored] = []
    said: dict[Hashable, list[str]] = {}
    for memory in memories:
        contents = [(content, key) for content in memory.contents for key in statement_keys(content)]
        if not any(same_statement(content, other) for content, key in contents for other in said.get(key, [])):
            kept.append(memory)
            for content, key in contents:
                said.setdefault(key, []).append(content)
    return kept


def _place(best: _Scored, waiting: Sequence[_Scored], vectors: Mapping[str, bytes], unrelated: float) -> list[_Scored]:
    """The best, and those on its topic, of whom none has a clear lead over another."""
    place, least, most = [best], best.relevance, best.relevance
    for one in waiting:
        low, high = min(least, one.relevance), max(most, one.relevance)
        if one is not best and high - low < CLEAR_LEAD and _is_same_topic(best, one, vectors, unrelated):
            place.append(one)
            least, most = low, high
    return place


def _ahead(place: Sequence[_Scored], waiting: Sequence[_Scored]) -> _Scored | None:
    """The first that has a clear lead over one of a place; none of the place has."""
    least = min(one.relevance for one in place)
    return next((one for one in waiting if one.relevance - least >= CLEAR_LEAD), None)


def _is_same_topic(best: _Scored, other: _Scored, vectors: Mapping[str, bytes], unrelated: float) -> bool:
    """Whether two memories may be an older and a newer word on the same thing."""
    if not any(mine.is_shared_with(theirs) for mine in best.topics for theirs in other.topics):
        return False
    left, right = vectors.get(best.memory.memory_id), vectors.get(other.memory.memory_id)
    if left is None or right is None:
        return False
    cosine = float(sum(map(mul, array("f", left), array("f", right))))
    return relevance(cosine, unrelated) >= SAME_TOPIC


@dataclass(frozen=True)
class Vitals:
    """What lists and pruning go by, of one root: a memory that stands alone, or a parent."""

    memory_id: str
    importance: float
    access_count: int
    created_at: datetime
    last_accessed_at: datetime
    pinned: bool

    def strength(self, now: datetime) -> float:
        return strength(self.created_at, self.last_accessed_at, self.access_count, now)


def weakest(roots: Sequence[Vitals], budget: int, now: datetime) -> list[str]:
    """Ids of the roots to forget so that `budget` of them are left: the lowest strength × importance first.

    Pinned ones count, but are never forgotten.
    """
    loose = [one for one in roots if not one.pinned]
    loose.sort(key=lambda one: (one.strength(now) * one.importance, one.created_at, one.memory_id))
    return [one.memory_id for one in loose[: max(0, len(roots) - max(0, budget))]]


def page(
    roots: Sequence[Vitals], order: MemoryOrder, limit: int, cursor: str | None, now: datetime
) -> tuple[list[tuple[str, str]], datetime]:
    """One page of a list of memories.

    Args:
        cursor: That of the last memory of the page before.

    Returns:
        Ids in order, each with the cursor to go on after it, and as of when strengths are given: all pages of a list
        have them as of its first.

    Raises:
        ApplicationError: `rejected` for a cursor of another list.
    """
    after: tuple[float, str] | None = None
    if cursor is not None:
        try:
            which, as_of, value, memory_id = cursor.split(":", 3)
            now, after = moment(int(as_of)), (float(value), memory_id)
        except (ValueError, OverflowError):
            which = None
        if which != order:
            raise failure("rejected", "cursor: give the next_cursor of a list in the same order, or leave it out")

    def place(one: Vitals) -> tuple[float, str]:
        return (-one.strength(now) if order == "strongest" else -float(micros(one.created_at))), one.memory_id

    places = sorted(place(one) for one in roots)
    rest = [one for one in places if after is None or one > after][:limit]
    return [(memory_id, f"{order}:{micros(now)}:{value!r}:{memory_id}") for value, memory_id in rest], now
