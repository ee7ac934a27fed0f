"""What counts as a word: one definition for both engines, so that they look up the same terms of a query."""

import re
from collections.abc import Sequence
from itertools import pairwise
from unicodedata import category, normalize

MAX_TERMS = 64
"""Most terms of a query that are looked up."""

UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Ranges of the scripts written without spaces, as they stand in a regular expression's brackets.

Each of their characters is indexed alone: taken as words, a whole sentence would be one.
"""

_UNSPACED = re.compile(rf"[{UNSPACED}]")

_TERM = re.compile(rf"([{UNSPACED}]+)|[^\W_{UNSPACED}]+")

_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")

_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after again all also am an and any are as at be because been before being between both but by
        can could did do does doing down during each few for from further had has have having he her here hers
        him his how i if in into is it its just me more most my no nor not of off on once only or other our ours
        out over own s same she should so some such t than that the their theirs them then there these they this
        those through to too under until up very was we were what when where which while who whom why will with
        would you your yours
        """,
    )
)


def terms_of(query: str) -> list[str]:
    """The terms of `query`, each once and at most MAX_TERMS: words, and phrases whose words are parted by a space.

    A run of an unspaced script becomes phrases of two characters. English function words count only where there is
    nothing else: they match nearly every text, and in a small collection BM25 takes the rarer ones for what the
    question is about.
    """
    terms: dict[str, None] = {}
    for word in _TERM.finditer(normalize("NFC", query)):
        run = word[1]
        if run is None:
            terms[word[0].lower()] = None
        else:
            terms.update(dict.fromkeys(" ".join(run[i : i + 2]) for i in range(max(1, len(run) - 1))))
        if len(terms) >= MAX_TERMS:
            break
    return ([term for term in terms if term not in _FUNCTION_WORDS] or list(terms))[:MAX_TERMS]


def indexed(text: str) -> str:
    """`text` as an index that knows words takes it: characters of unspaced scripts stand alone."""
    return _UNSPACED.sub(r" \g<0> ", normalize("NFC", text))


def _folded(text: str) -> str:
    """`text` without case and accents."""
    return "".join(mark for mark in normalize("NFKD", text).casefold() if category(mark) != "Mn")


def matches(terms: Sequence[str], text: str) -> int:
    """How many of a query's terms `text` holds word for word; the full-text indexes also know other forms of them."""
    words = _TOKEN.findall(_folded(normalize("NFC", text)))
    held = set(words) | {" ".join(pair) for pair in pairwise(words)}
    return sum(1 for term in terms if _folded(term) in held)


def cut(text: str, length: int) -> str:
    """A text of at most `length` characters: its beginning, where there is more of it."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def opening(text: str, length: int) -> str:
    """The beginning of a text in one line, at most `length` characters, cut between words."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rsplit(" ", 1)[0] + "…"
