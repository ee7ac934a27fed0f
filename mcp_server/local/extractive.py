"""Extractive summaries without a model: the most central sentences of a text, as they stand, in their order."""

import re
from collections import Counter
from dataclasses import dataclass
from math import log, sqrt

MAX_SENTENCES = 5
POSITION_WEIGHT = 0.2
NOVELTY_WEIGHT = 0.3
FULL_LENGTH = 8
DUPLICATE = 0.95

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
# Scripts that end sentences without a space after it, and those that need one to tell an end from "3.14".
_END = re.compile(r"""[。！？｡।॥؟۔]+[」』】）”’"')]*|(?<![.!?…])[.!?…]++[”’»"')\]]*+(?=\s|$)""")  # noqa: RUF001
_ABBREVIATION = re.compile(r"(?:^|[\s.(])(?:\w|mr|mrs|ms|dr|prof|st|vs|etc|fig|approx|inc|ltd)\.$", re.IGNORECASE)
_WORD_OR_MARK = re.compile(r"\S")
_SPEAKER = re.compile(r"(?:\d{4}-\d{2}-\d{2}\s+)?[^\W\d][\w-]{0,31}\s?(?::(?=\s|$)|：)\s*")  # noqa: RUF001


@dataclass(frozen=True)
class Sentence:
    """A sentence, the line it stands in, and who the line says is speaking (`human: `, or nothing)."""

    text: str
    line: int
    speaker: str


@dataclass(frozen=True)
class Summary:
    """Extracted text; `clipped` where not even one sentence fitted and the best one was cut."""

    text: str
    clipped: bool = False


def tokens(text: str) -> list[str]:
    """Lower-case words; each ideograph or kana is one."""
    return _TOKEN.findall(text.casefold())


def _lines(text: str) -> list[str]:
    """Lines, with white space collapsed; one that goes on in lower case was merely wrapped."""
    lines: list[str] = []
    wrapped = False
    for raw in text.splitlines():
        line = " ".join(raw.split())
        if wrapped and line[:1].islower() and not _SPEAKER.match(line):
            lines[-1] += " " + line
        elif line:
            lines.append(line)
        wrapped = bool(line) and not _END.search(line[-1])
    return lines


def _goes_on(line: str, start: int, end: re.Match[str]) -> bool:
    """Whether the sentence from `start` goes on after what looks like its end."""
    after = _WORD_OR_MARK.search(line, end.end())
    if after is None:
        return False
    # An ellipsis or quoted speech can stand within a sentence.
    if end.group() not in (".", "!", "?") and after.group().islower():
        return True
    if end.group()[-1] in "」』”" and after.start() == end.end() and after.group() not in "「『“":
        return True
    return end.group() == "." and _ABBREVIATION.search(line[max(start, end.end() - 12) : end.end()]) is not None


def sentences(text: str) -> list[Sentence]:
    """The sentences of `text`, in order; what has no word in it isn't one."""
    found: list[Sentence] = []
    for number, line in enumerate(_lines(text)):
        label = _SPEAKER.match(line)
        speaker = label.group() if label else ""
        spoken = line[len(speaker) :]
        start = 0
        for end in [*_END.finditer(spoken), None]:
            if end is not None and _goes_on(spoken, start, end):
                continue
            sentence = spoken[start : end.end() if end else None].strip()
            start = end.end() if end else start
            if tokens(sentence):
                found.append(Sentence(sentence, number, speaker))
    return found


def _cosine(left: dict[str, float], right: dict[str, float]) -> float:
    """Dot product of two sparse vectors; their cosine where both have unit length."""
    if len(left) > len(right):
        left, right = right, left
    return sum(weight * right.get(token, 0.0) for token, weight in left.items())


def _unit(vector: dict[str, float]) -> dict[str, float]:
    norm = sqrt(sum(weight * weight for weight in vector.values())) or 1.0
    return {token: weight / norm for token, weight in vector.items()}


def _vectors(bags: list[Counter[str]]) -> list[dict[str, float]]:
    """Unit tf-idf vectors of the sentences, each sentence counting as a document."""
    spread = Counter(token for bag in bags for token in bag)
    rarity = {token: log((1 + len(bags)) / (1 + count)) + 1 for token, count in spread.items()}
    return [_unit({token: count * rarity[token] for token, count in bag.items()}) for bag in bags]


def _centrality(bags: list[Counter[str]], vectors: list[dict[str, float]]) -> list[float]:
    """How much each sentence says of what the text says, from 0 to 1 + POSITION_WEIGHT.

    The centroid and position features of MEAD (Radev, Jing, Styś and Tam, "Centroid-based summarization of multiple
    documents", 2004): cosine to the tf-idf centroid over the highest one, plus a value that falls linearly from the
    first sentence to the last. Its length cut-off is a ramp here, because talk has short sentences that matter.
    """
    total: dict[str, float] = {}
    for vector in vectors:
        for token, weight in vector.items():
            total[token] = total.get(token, 0.0) + weight
    centroid = _unit(total)
    cosines = [_cosine(vector, centroid) for vector in vectors]
    highest = max(cosines)
    return [
        min(1.0, bag.total() / FULL_LENGTH) * (cosine / highest + POSITION_WEIGHT * (1 - index / len(bags)))
        for index, (bag, cosine) in enumerate(zip(bags, cosines, strict=True))
    ]


def summarise(text: str, max_tokens: int, max_sentences: int = MAX_SENTENCES) -> Summary:
    """The most central sentences of `text`, in its order.

    Picked one by one by maximal marginal relevance (Carbonell and Goldstein, "The use of MMR", 1998): centrality, less
    the greatest similarity to a sentence already picked. A line's speaker is kept before what was picked from it.

    Args:
        text: Prose or dialogue; of any length, the time is linear in it.
        max_tokens: Length of the result at most, in `tokens`.
        max_sentences: Number of sentences at most.
    """
    found = sentences(text)
    if not found:
        return Summary("")
    bags = [Counter(tokens(sentence.text)) for sentence in found]
    vectors = _vectors(bags)
    centrality = _centrality(bags, vectors)
    sizes = [bag.total() + len(tokens(sentence.speaker)) for bag, sentence in zip(bags, found, strict=True)]

    left = max_tokens
    nearest = [0.0] * len(found)
    open_ones = {index for index, size in enumerate(sizes) if size <= left}
    picked: list[int] = []
    while open_ones and len(picked) < max_sentences:
        best = max(open_ones, key=lambda at: (centrality[at] - NOVELTY_WEIGHT * nearest[at], -at))
        picked.append(best)
        left -= sizes[best]
        for at in open_ones:
            nearest[at] = max(nearest[at], _cosine(vectors[at], vectors[best]))
        open_ones = {at for at in open_ones if at != best and sizes[at] <= left and nearest[at] < DUPLICATE}
    if not picked:
        best = max(range(len(found)), key=lambda at: (centrality[at], -at))
        return Summary(_clip(found[best].text, max_tokens), clipped=True)

    pieces: list[str] = []
    line = None
    for at in sorted(picked):
        sentence = found[at]
        if sentence.line == line:
            pieces.append(" " + sentence.text)
        else:
            pieces.append(("\n" if pieces else "") + sentence.speaker + sentence.text)
        line = sentence.line
    return Summary("".join(pieces))


def _clip(text: str, max_tokens: int) -> str:
    """The first `max_tokens` words of `text`."""
    words = list(_TOKEN.finditer(text))[:max_tokens]
    return text[: words[-1].end()] if words else ""
