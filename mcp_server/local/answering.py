"""Extractive answers without a generative model: the sentences of some passages that answer a question best.

A sentence's score is how near it is to the question by the embedding model, how many of the question's words it and its
surroundings hold (the rarer among the passages, the more they count), and a little of how well its passage ranked. What
no passage bears on isn't answered.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import snowballstemmer

from activities.models import Passage
from activities.passages import uncited
from activities.store.words import cut, terms_of
from mcp_server.local.extractive import sentences, tokens

PREFACE = "There is no generative model here, so this only quotes what was found:"
NOTHING = "There is no generative model here, and nothing that was found bears on this."

MAX_SENTENCES = 3
SHORTLIST = 32
"""Sentences that the embedding model compares with the question; it takes some 10 ms for each."""
SENTENCE_CHARACTERS = 600
"""Length to which a sentence is cut: what is longer is mostly a table."""

WORDS_WEIGHT = 0.7
RANK_WEIGHT = 0.3
NEIGHBOUR = 0.3
"""How much a word counts that only the sentence before, the title or the section's heading holds."""
FURTHER = 0.65
"""What part of the best score another sentence must have."""
UNRELATED, RELATED = 0.76, 0.90
"""Cosines of E5 at which a sentence has nothing to do with a question, and at which it surely does."""
BEARS = 0.55
"""What a sentence must score, its passage's rank left aside, to bear on the question at all.

Of 83 questions about the sample documents, this leaves out one in fourteen best sentences where the right document was
retrieved, and seven in ten where it wasn't.
"""

_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|[-*+]\s+|>\s+|\d+[.)]\s+)|(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)")
_HEADING = re.compile(r"#{1,6}\s+(.*)")
_POINTS_BACK = frozenset(re.findall(r"\w+", "it its they them their he him his she her this that these those one ones"))
_stemmer = snowballstemmer.stemmer("english")

Embed = Callable[[list[str], bool], Awaitable[list[list[float]]]]
"""Unit vectors of texts; the flag says whether they are questions."""


class Answer(NamedTuple):
    """`clipped` where what bears on the question is longer than was allowed."""

    text: str
    clipped: bool = False


@dataclass(frozen=True)
class Candidate:
    """A sentence that may be quoted.

    Attributes:
        text: As it stands, without Markdown's marks.
        number: Of its passage; None for what the user said earlier in the conversation.
        place: 0 for the first sentence of its passage.
        around: What stands before it: the title, the heading, and the sentence before.
        label: What is said before it is quoted.
        rank: 1 for the best passage, towards 0 for the last.
    """

    text: str
    number: int | None
    place: int
    around: str
    label: str
    rank: float


def _stems(text: str) -> set[str]:
    return set(_stemmer.stemWords(tokens(text)))


def candidates(passages: Mapping[int, Passage], earlier: Sequence[str]) -> list[Candidate]:
    """Everything that may be quoted: no questions, and nothing that was itself such an answer.

    Args:
        passages: By their numbers, the best first.
        earlier: What the user said before, oldest first.
    """
    found: list[Candidate] = []
    sources: list[tuple[int | None, Passage, float]] = [
        (number, passage, 1 - index / len(passages)) for index, (number, passage) in enumerate(passages.items())
    ]
    sources += [(None, Passage(id="", kind="message", text=text), 0.5) for text in earlier]
    seen: set[str] = set()
    for number, passage, rank in sources:
        if PREFACE in passage.text or NOTHING in passage.text:
            continue
        heading, before = "", ""
        for place, line in enumerate(sentences(passage.text)):
            raw = line.speaker + line.text
            title = _HEADING.match(raw)
            if title is not None and passage.kind == "document":
                heading, before = title[1], ""
                continue
            # A document's own [1] isn't this answer's.
            text = cut(uncited(_MARKUP.sub("", raw)).strip(), SENTENCE_CHARACTERS)
            around = f"{passage.title if passage.kind == 'document' else ''} {heading} {before}"
            before = text
            key = " ".join(tokens(text))
            if not key or key in seen or text.endswith(("?", "？")):  # noqa: RUF001
                continue
            seen.add(key)
            found.append(Candidate(text, number, place, around, _label(number, passage), rank))
    return found


def _label(number: int | None, passage: Passage) -> str:
    if number is None or passage.title == "said by the user":
        return "You said: "
    return {"memory": "Remembered: ", "image": "In the image: "}.get(passage.kind, "")


def word_scores(question: str, found: Sequence[Candidate]) -> list[float]:
    """How much of the question's words each candidate holds, from 0 to 1; rare words weigh more.

    The weights are inverse document frequencies as in BM25 (Robertson and Zaragoza, 2009), each candidate counting as a
    document; a sentence either holds a word or doesn't.
    """
    asked = _stems(" ".join(terms_of(question)))
    bags = [(_stems(one.text), _stems(one.around)) for one in found]
    spread = Counter(stem for own, _ in bags for stem in own & asked)
    weights = {stem: log(1 + (len(found) - spread[stem] + 0.5) / (spread[stem] + 0.5)) for stem in asked}
    whole = sum(weights.values()) or 1.0
    return [
        sum(weights[stem] * (1 if stem in own else NEIGHBOUR) for stem in asked & (own | around)) / whole
        for own, around in bags
    ]


def asked_of(question: str, earlier: Sequence[str]) -> str:
    """The question as it can be understood alone: one that points back is read with the message before it."""
    words = tokens(question)
    content = set(terms_of(question)) - _POINTS_BACK
    if earlier and (len(content) < 2 or _POINTS_BACK.intersection(words)):
        return f"{earlier[-1]} {question}"
    return question


async def scored(question: str, found: Sequence[Candidate], embed: Embed) -> list[tuple[float, Candidate]]:
    """The candidates that bear on a question, with their scores, best first."""
    words = await asyncio.to_thread(word_scores, question, found)
    order = sorted(range(len(found)), key=lambda at: -(words[at] + RANK_WEIGHT * found[at].rank))[:SHORTLIST]
    [asked] = await embed([question], True)
    vectors = await embed([found[at].text for at in order], False)
    scores: list[tuple[float, Candidate]] = []
    for at, vector in zip(order, vectors, strict=False):
        cosine = sum(left * right for left, right in zip(asked, vector, strict=True))
        near = min(1.0, max(0.0, (cosine - UNRELATED) / (RELATED - UNRELATED)))
        bears = near + WORDS_WEIGHT * words[at]
        if bears >= BEARS:
            scores.append((bears + RANK_WEIGHT * found[at].rank, found[at]))
    return sorted(scores, key=lambda one: -one[0])


async def answer(
    question: str, passages: Mapping[int, Passage], earlier: Sequence[str], max_tokens: int, embed: Embed
) -> Answer:
    """Quote what answers a question, each sentence with the number of its passage.

    Args:
        question: The user's message.
        passages: What was retrieved for it, by number, best first.
        earlier: What the user said before in the conversation, oldest first.
        max_tokens: Length of the answer at most, in `extractive.tokens`.
        embed: The embedding model.
    """
    found = await asyncio.to_thread(candidates, passages, earlier)
    if not found or not tokens(question):
        return Answer(NOTHING)
    ranked = await scored(asked_of(question, earlier), found, embed)
    if not ranked:
        return Answer(NOTHING)
    picked = [one for score, one in ranked if score >= FURTHER * ranked[0][0]][:MAX_SENTENCES]
    lines: list[str] = []
    left = max_tokens - len(tokens(PREFACE))
    for one in picked:
        left -= len(tokens(one.text)) + 1
        if lines and left < 0:
            return Answer("\n".join([PREFACE, *lines]), clipped=True)
        lines.append(f"- {one.label}{one.text}" + (f" [{one.number}]" if one.number is not None else ""))
    return Answer("\n".join([PREFACE, *lines]))
