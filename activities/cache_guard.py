"""Whether two questions that an embedding model takes for alike ask for the same.

Cosines can't tell: "Who is the mayor of Hamburg?" is as near to the one about Munich as to its own paraphrases. The
guard reads both questions and refuses them wherever one says something that the other doesn't. Everything in here is
pure, and symmetric in the two questions.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from unicodedata import normalize

from activities.cache_words import (
    ARTICLES,
    DIRECTIONS,
    EMPTY,
    KINDS,
    LIGHT,
    MODALITY,
    NOUNS_OF_KIND,
    OTHER_EMPTY,
    PERSONS,
    PHRASES,
    POLAR,
    SAME,
    TENSES,
)
from activities.numbers import mark_numbers
from activities.store.words import UNSPACED

ENGLISH = "english"


def _by_word(table: dict[str, str]) -> dict[str, str]:
    return {word: name for name, words in table.items() for word in words.split()}


_KIND_OF = _by_word(KINDS)
_NOUN_KIND = _by_word(NOUNS_OF_KIND)
_MODALITY_OF = _by_word(MODALITY)
_TENSE_OF = _by_word(TENSES)
_PERSON_OF = _by_word(PERSONS)
_POLAR = frozenset(POLAR.split())
_ENGLISH_EMPTY = frozenset(EMPTY.split())
_ARTICLES = frozenset(ARTICLES.split())
_DIRECTIONS = frozenset(DIRECTIONS.split())
_PHRASES = [(re.compile(rf"(?<!\w){pattern}(?!\w)"), replacement) for pattern, replacement in PHRASES]
_EMPTY = {ENGLISH: _ENGLISH_EMPTY} | {language: frozenset(words.split()) for language, words in OTHER_EMPTY.items()}

# A number, a character of an unspaced script, a word (C++ and C# are words), or a sign that isn't mere punctuation.
_TOKEN = re.compile(
    rf"#[-\d.,:/]*\d|[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])(?:(?![{UNSPACED}])\w)*(?:\+\+|\#)?"
    r"|[^\s\w.,;:!?¿¡'\"()\[\]{}‘’“”„«»、。？！…–—/\\-]+"
)
_CONTRACTIONS = (
    (re.compile(r"\b(?:can't|cannot)\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b(what|where|when|who|how|there|it|that)'s\b"), r"\1 is"),
    (re.compile(r"'(?:s|re|ve|ll|d|m)?(?!\w)"), " "),
)
# Forms of a word that say the same of who does what to whom.
_FORM_OF = _by_word({"i": "me", "he": "him", "she": "her", "we": "us", "they": "them", "who": "whom"}) | _by_word(
    {"do": "did does", "is": "are am was were", "have": "has had", "will": "would shall", "can": "could may might"}
)
_ACRONYM = re.compile(r"(?<!\w)[A-Z]{2,}(?!\w)")


def normalised(query: str) -> str:
    """A query without what spelling alone can change: case, white space, Unicode composition."""
    return " ".join(normalize("NFC", query).casefold().split())


@lru_cache(maxsize=8192)
def _stem(language: str, word: str) -> str:
    if language not in _STEMMED or not word.isalpha():
        return word
    # It imports all of its languages, which takes longer than a server's start should wait.
    from snowballstemmer import stemmer

    # A stemmer keeps the word that it is at: each call has its own.
    stem: str = stemmer(language).stemWord(word)
    return stem


_STEMMED = frozenset({ENGLISH, *OTHER_EMPTY}) - {"japanese", "chinese", "polish"}


@cache
def _groups() -> dict[str, frozenset[int]]:
    """Which groups of words of the same meaning each stem is in."""
    groups: dict[str, set[int]] = {}
    for number, group in enumerate(SAME.split("|")):
        for word in group.split():
            groups.setdefault(_stem(ENGLISH, word), set()).add(number)
    return {word: frozenset(numbers) for word, numbers in groups.items()}


@cache
def _light() -> frozenset[str]:
    return frozenset(_stem(ENGLISH, word) for word in LIGHT.split())


@dataclass(frozen=True)
class Reading:
    """What a question says.

    Attributes:
        words: Stems of the words that matter and #numbers, in order.
        numbers: The numbers alone, sorted.
        kind: Which kind of answer it asks for: a key of KINDS, `many`, `polar` for yes or no; empty where it says none.
        modality: Of a question for yes or no: whether it asks what can, should or must be.
        persons: Whose things it is about, as keys of PERSONS.
        tense: Of its first auxiliary; empty where it has none.
        sides: What stands on which side of a relation, as (preposition, one of the words that follow at once).
        whole: Stems of all words but articles.
    """

    words: tuple[str, ...]
    numbers: tuple[str, ...]
    kind: str = ""
    modality: str = ""
    persons: frozenset[str] = frozenset()
    tense: str = ""
    sides: frozenset[tuple[str, str]] = frozenset()
    whole: tuple[str, ...] = ()


def _prepared(query: str) -> tuple[list[str], str]:
    """The numbers in a question, and its text in lower case, with acronyms that look like other words set apart."""
    text = normalize("NFKC", query).replace("’", "'")
    numbers, text = mark_numbers(text)
    if text.upper() != text:
        text = _ACRONYM.sub(lambda match: f"{match[0]}_" if match[0].lower() in _ENGLISH_EMPTY else match[0], text)
    return numbers, " ".join(text.casefold().split())


def _language(texts: list[str]) -> str:
    """The language that most of the words belong to that add nothing; English where none do."""
    tokens = [token for text in texts for token in _TOKEN.findall(text)]
    counts = {language: sum(token in words for token in tokens) for language, words in _EMPTY.items()}
    return max(counts, key=lambda language: (counts[language], language == ENGLISH, language))


def _read(numbers: list[str], text: str, language: str) -> Reading:
    numbers = sorted(numbers)
    if language != ENGLISH:
        empty = _EMPTY[language]
        kept = [_stem(language, token) for token in _TOKEN.findall(text) if token not in empty]
        return Reading(tuple(kept), tuple(numbers), whole=tuple(_TOKEN.findall(text)))
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.strip(" ?!.").split())
    for phrase, replacement in _PHRASES:
        text = " ".join(phrase.sub(replacement, text).split())
    tokens = _TOKEN.findall(text)
    kind, at = "", -1
    if tokens and tokens[0] in _POLAR:
        kind = "polar"
    elif tokens and tokens[0] == "there":
        kind = "there"
    else:
        for place, token in enumerate(tokens):
            if token in _KIND_OF or token == "many":
                kind, at = _KIND_OF.get(token, token), place
                break
    spent = {at}
    if kind in ("what", ""):
        for place, token in enumerate(tokens):
            if token in _NOUN_KIND:
                kind = _NOUN_KIND[token]
                spent.add(place)
                break
    elif kind in ("why", "when"):
        spent |= {place for place, token in enumerate(tokens) if _NOUN_KIND.get(token) == kind}
    words: list[str] = []
    sides: set[tuple[str, str]] = set()
    side, awaiting = "", False
    for place, token in enumerate(tokens):
        if token in _DIRECTIONS:
            side, awaiting = token, True
        is_spare_kind = token in _KIND_OF and kind != "" and place != at and token not in ("what", "which", "who")
        if place in spent or (token in _ENGLISH_EMPTY and not is_spare_kind):
            # "From the old house to" is over once a word that matters has come and another that doesn't.
            side = side if awaiting else ""
            continue
        stem = _stem(ENGLISH, token)
        words.append(stem)
        if side and token != side:
            sides.add((side, stem))
            awaiting = False
    modality = next((_MODALITY_OF[token] for token in tokens if token in _MODALITY_OF), "") if kind == "polar" else ""
    tense = next((_TENSE_OF[token] for token in tokens if token in _TENSE_OF), "")
    persons = frozenset(_PERSON_OF[token] for token in tokens if token in _PERSON_OF)
    whole = tuple(_stem(ENGLISH, _FORM_OF.get(token, token)) for token in tokens if token not in _ARTICLES)
    return Reading(tuple(words), tuple(numbers), kind, modality, persons, tense, frozenset(sides), whole)


MAX_CHARACTERS = 1_000
"""Length of a question beyond which it is compared with none: how long that takes grows with its square."""


def _same(one: str, other: str) -> bool:
    groups = _groups()
    return one == other or (one in groups and other in groups and not groups[one].isdisjoint(groups[other]))


_OF_FRAGMENTS = frozenset({"", "what", "how", "who", "many"})


def _unmatched(one: Reading, other: Reading) -> list[str]:
    """Words of one question that have no counterpart in the other."""
    groups, held = _groups(), set(other.words)
    meant = {group for word in held for group in groups.get(word, ())}
    return [word for word in one.words if word not in held and meant.isdisjoint(groups.get(word, ()))]


def _kinds_differ(one: Reading, other: Reading) -> bool:
    """Whether two questions of the same words ask for answers of different kinds."""
    kinds = {one.kind, other.kind}
    if len(kinds) == 1 or kinds == {"what", "who"}:
        return False
    # How many people work there isn't which; how many miles 5 kilometres are is what they are in miles.
    if kinds == {"what", "many"} and one.numbers:
        return False
    # "Are there …?" wants to know which.
    if "there" in kinds and kinds <= {"there", "polar", "what", "where", "many", ""}:
        return False
    # A fragment ("iron deficiency symptoms") says no kind.
    return not ("" in kinds and kinds <= _OF_FRAGMENTS)


def _tenses_differ(one: Reading, other: Reading) -> bool:
    """Whether two questions of the same words are about different times."""
    tenses = {one.tense, other.tense}
    if "" in tenses or set(one.words) != set(other.words):
        return False
    # "When does it start?" asks what "when will it start?" asks.
    return len(tenses) == 2 and not (one.kind == "when" and tenses == {"present", "future"})


def _swapped(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two words have changed places, around another, in sequences that are equal but for that."""
    if len(one) != len(other):
        return False
    places = [place for place, (word, match) in enumerate(zip(one, other, strict=True)) if not _same(word, match)]
    if len(places) != 2 or places[1] - places[0] == 1:
        return False
    first, second = places
    return _same(one[first], other[second]) and _same(one[second], other[first])


def _roles_differ(one: Reading, other: Reading) -> bool:
    """Whether the same words stand on other sides: from A to B, A than B, A bites B."""
    for preposition in _DIRECTIONS:
        mine = {word for side, word in one.sides if side == preposition}
        theirs = {word for side, word in other.sides if side == preposition}
        if mine and theirs and not any(_same(word, match) for word in mine for match in theirs):
            return True
    for word in {word for _, word in one.sides}:
        mine = {side for side, match in one.sides if match == word}
        theirs = {side for side, match in other.sides if _same(word, match)}
        if theirs and mine.isdisjoint(theirs):
            return True
    return _swapped(one.whole, other.whole)


def agree(one: str, other: str) -> bool:
    """Whether the answer to one question can be given to another, as far as their words tell.

    It can't where they differ in a number, date or time; in a word that matters and has no counterpart, which is one of
    the same stem or of the same meaning by `cache_words` (so names, places, things, opposites, negations, quantifiers,
    units and added conditions all have to be in both); in the kind of answer asked for (when, where, why, how, yes or
    no); in what can, should or must be; in tense, where nothing else differs; or in who does what to whom.

    English is read as described. Of a few other languages the words that add nothing are known; of the rest, every word
    matters. Questions that are equal up to case and white space always agree; of others, those longer than
    MAX_CHARACTERS never do.
    """
    if normalised(one) == normalised(other):
        return True
    if max(len(one), len(other)) > MAX_CHARACTERS:
        return False
    prepared = [_prepared(one), _prepared(other)]
    # A character may stand for eighteen.
    if max(len(text) for _, text in prepared) > MAX_CHARACTERS:
        return False
    language = _language([text for _, text in prepared])
    mine, theirs = (_read(numbers, text, language) for numbers, text in prepared)
    if mine.numbers != theirs.numbers:
        return False
    if not mine.words or not theirs.words:
        return False
    lacking, left = _unmatched(mine, theirs), _unmatched(theirs, mine)
    if (lacking and left) or not {*lacking, *left} <= _light():
        return False
    if _kinds_differ(mine, theirs) or mine.modality != theirs.modality:
        return False
    if mine.persons and theirs.persons and mine.persons.isdisjoint(theirs.persons):
        return False
    if _tenses_differ(mine, theirs):
        return False
    return not _roles_differ(mine, theirs)
