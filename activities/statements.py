"""When two statements say the same, and when one only says more about what the other says.

Cosines of embeddings can't tell: of two dogs, two flights or two people's birthdays they are higher than of a fact and
its details. So words decide here, and the cosine is a second witness. Where in doubt, statements stay apart: that costs
a little room, while a wrong merge hides one fact behind another.

Content words, numbers and names must agree, in the same order up to moving a part of the sentence to its front; who it
is about must, too. Function words and endings are those of English. In other languages with spaces every word counts as
a content word, and in scripts without spaces only the same text says the same: fewer statements are brought together
there, none more.
"""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import normalize

from activities.numbers import CARDINALS
from activities.store.words import UNSPACED

MAX_CHARACTERS = 1_000
"""Length from which a text isn't taken for one statement: embedding models see only its beginning."""

MIN_SHARED = 2
"""Fewest content words that a statement must have for another to say more about it."""

MAX_REPEATS = 4
"""How often a word of the shorter statement may stand in the longer one before that isn't looked into."""

_OPENING = re.compile(
    r"^\W*(?:(?:please|well|oh|ok|okay|so|actually|by the way|as i (?:said|told you)|and|also|"
    r"remember|note|keep in mind|(?:don't|do not) forget)\b\W*(?:that\b\W*)?)+",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*")
_UNSPACED = re.compile(rf"[{UNSPACED}]")


def _in_order(text: str) -> list[str]:
    return text.split()


def _words(text: str) -> frozenset[str]:
    return frozenset(_in_order(text))


_PERSONS = {
    word: person
    for person, words in {
        "I": "i me my mine myself",
        "we": "we us our ours ourselves",
        "you": "you your yours yourself yourselves",
        "he": "he him his himself",
        "she": "she her hers herself",
        "they": "they them their theirs themselves",
    }.items()
    for word in words.split()
}
_NOMINATIVES = _words("i we you he she they")
_OBJECTIVES = {"me": "I", "us": "we", "him": "he", "them": "they"}
_POSSESSIVES = _words("my our your his her their")
_NAMESAKES = _words("May Will US IT")
"""What only looks like a function word."""
_OWNERS = _words("mine yours ours theirs hers")
_NEGATIONS = _words("not no never nor none nobody nothing neither cannot hardly")
_TENSES = _words("was were had did will would could should might may must can used shall")
_TURNS = _words("from without before after against until till under off except instead above below unless")
"""Prepositions and the like that turn a statement into another one, so that they count as content words."""
_FUNCTION = (
    _words(
        "a about again all also am an and any are as at be because been being both but by do does doing during each "
        "else ever for has have having here how i if in into is it its itself just longer more me most much of on or "
        "other own really same since so some still such than that the then there these this those through to too up "
        "very what when where which while who whom whose why with yet anymore now"
    )
    | frozenset(_PERSONS)
    | _TENSES
) - _TURNS
_NUMBERS = {word: str(number) for word, number in CARDINALS.items() if number > 1}


def stem(word: str) -> str:
    """An English word, in lower case, without the endings of plural, -ing and -ed, nor a final e.

    Plurals as in the S-stemmer (Harman, "How effective is suffixing?", 1991); a consonant that was doubled before the
    other two is single again, as in Porter's (1980).
    """
    if word.endswith("ies") and not word.endswith(("eies", "aies")) and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("us", "ss", "is")) and len(word) > 3:
        word = word[:-1]
    for ending, least in (("ing", 2), ("ed", 3)):
        left = word.removesuffix(ending)
        if left != word and len(left) >= least and re.search("[aeiouy]", left):
            word = left[:-1] if left[-1] == left[-2] and left[-1] not in "lsz" else left
            break
    return word.removesuffix("e") if len(word) > 3 else word


_BEINGS = frozenset(
    stem(being)
    for being in _in_order(
        "aunt baby boss boy boyfriend brother cat child children coach colleague cousin customer dad daughter doctor "
        "dog family father fiance fiancee flatmate friend girl girlfriend grandad granddaughter grandfather grandma "
        "grandmother grandpa grandson guest horse husband kid landlady landlord manager mate mother mum mom neighbour "
        "neighbor nephew niece parent partner people puppy roommate sister son teacher team teammate uncle wife"
    )
)

_COMMON_VERBS = frozenset(
    stem(verb) for verb in _in_order("enjoy feel get go hate know like love make need plan prefer say take think want")
)
_FAMILIES = [
    frozenset(stem(word) for word in _in_order(family))
    for family in (
        "live move relocate reside settle residence",
        "work job quit employed hired fired retired profession career",
        "married engaged divorced single dating widowed separated",
    )
]


@dataclass(frozen=True)
class _Word:
    """A word of a statement.

    Attributes:
        content: What it is compared by; empty for function words.
        person: Whom a pronoun stands for; empty for others.
    """

    text: str
    content: str = ""
    person: str = ""
    name: bool = False
    possessive: bool = False


@dataclass(frozen=True)
class Statement:
    """A text as it is compared with others."""

    plain: str
    words: tuple[_Word, ...]
    comparable: bool
    question: bool
    negated: bool
    tenses: frozenset[str]

    @property
    def contents(self) -> tuple[str, ...]:
        return tuple(word.content for word in self.words if word.content)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(word.content for word in self.words if word.name)

    @property
    def persons(self) -> frozenset[str]:
        return frozenset(word.person for word in self.words if word.person)

    @property
    def subjects(self) -> frozenset[str]:
        """Whom its nominative pronouns stand for."""
        return frozenset(word.person for word in self.words if word.text in _NOMINATIVES)

    @property
    def objects(self) -> frozenset[str]:
        return frozenset(_OBJECTIVES[word.text] for word in self.words if word.text in _OBJECTIVES)


@lru_cache(maxsize=4096)
def read(text: str) -> Statement:
    """A text as a statement."""
    text = normalize("NFC", text).replace("’", "'")
    plain = " ".join(text.casefold().split())
    body = text[opening.end() :] if (opening := _OPENING.match(text)) else text
    words: list[_Word] = []
    negated = False
    tenses: set[str] = set()
    for found in _TOKEN.finditer(body[: 2 * MAX_CHARACTERS]):
        base, apostrophe, ending = found[0].partition("'")
        lower = base.casefold()
        if ending.casefold() == "t" and lower.endswith("n"):
            negated = True
            lower = {"ca": "can", "wo": "will", "sha": "shall"}.get(lower[:-1], lower[:-1])
        elif apostrophe and ending.casefold() in ("ll", "d"):
            tenses.add(ending.casefold())
        elif apostrophe and ending.casefold() not in ("s", "m", "re", "ve"):
            # Not an English contraction: l'eau, o'clock, O'Hara.
            base, lower = found[0], found[0].casefold()
        if lower in _NEGATIONS:
            negated = True
            continue
        if lower in _TENSES and base not in _NAMESAKES:
            tenses.add(lower)
        if (
            lower in _FUNCTION
            and base not in _NAMESAKES
            and (lower not in _OWNERS or (words and words[-1].text == "of"))
        ):
            words.append(_Word(lower, person=_PERSONS.get(lower, "")))
            continue
        starts = not words or body[: found.start()].rstrip().endswith((".", "!", "?", ":"))
        name = base[0].isupper() and not starts
        if name and len(words) > 1 and words[-2].text in _POSSESSIVES and words[-1].content and not words[-1].name:
            # In "my sister Ines" the name alone says who it is.
            words.pop()
        if lower.endswith("ed"):
            tenses.add(lower)
        content = _NUMBERS.get(lower, lower if lower in _TURNS else stem(lower))
        words.append(_Word(lower, content, _PERSONS.get(lower, ""), name=name, possessive=ending.casefold() == "s"))
    return Statement(
        plain=plain,
        words=tuple(words),
        comparable=len(text) <= MAX_CHARACTERS and not _UNSPACED.search(text),
        question=text.rstrip().endswith("?"),
        negated=negated,
        tenses=frozenset(tenses),
    )


def _rotated(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two sequences are the same, be it with a part of one moved from its front to its end."""
    if len(left) != len(right):
        return False
    return not left or any(tuple(right[at:]) + tuple(right[:at]) == tuple(left) for at in range(len(right)))


def same_statement(left: str, right: str) -> bool:
    """Whether two texts say the same in nearly the same words. Symmetric; true of a text and itself.

    The same content words in the same order, up to moving a part of the sentence to its front; the same tense and
    negation; the same persons, unless one names none. What opens a request to remember it doesn't count.
    """
    one, other = read(left), read(right)
    if one.plain == other.plain:
        return True
    if not (one.comparable and other.comparable) or one.question != other.question:
        return False
    if (one.negated, one.tenses, one.subjects) != (other.negated, other.tenses, other.subjects):
        return False
    if one.persons != other.persons and one.persons and other.persons:
        return False
    contents = one.contents
    return len(contents) > 0 and _rotated(contents, other.contents)


@lru_cache(maxsize=4096)
def statement_keys(text: str) -> tuple[Hashable, ...]:
    """What texts that say the same have at least one of in common, so that not all of them need be compared."""
    statement = read(text)
    return statement.plain, tuple(sorted(statement.contents))


def same_matter(left: str, right: str) -> bool:
    """Whether one text says what the other says, or denies it, and may say more. Symmetric; not transitive.

    All content words of the shorter one stand in the longer one, close together and in the same order up to moving a
    part to the front, and both are about the same person or thing. Different numbers, names, dates or properties on
    both sides keep statements apart, and so does anybody else whom the longer one is about.
    """
    if same_statement(left, right):
        return True
    one, other = read(left), read(right)
    if not (one.comparable and other.comparable) or one.question or other.question:
        return False
    return _says_more(one, other) or _says_more(other, one)


def _says_more(short: Statement, long: Statement) -> bool:
    """Whether `long` says what `short` says, and may say more."""
    wanted = short.contents
    if not MIN_SHARED <= len(wanted) <= len(long.contents) or set(wanted) - set(long.contents):
        return False
    if (short.subjects & long.objects) - long.subjects:
        return False
    return any(_is_about(short, long, window) for window in _windows(wanted, long))


def _windows(wanted: Sequence[str], long: Statement) -> Iterable[range]:
    """The narrowest stretches of `long` that hold `wanted`, each word once, in order up to rotation."""
    places = [at for at, word in enumerate(long.words) if word.content in wanted]
    size = len(wanted)
    if len(places) > MAX_REPEATS * size:
        return
    for first in range(len(places) - size + 1):
        chosen = places[first : first + size]
        if _rotated(wanted, [long.words[at].content for at in chosen]):
            yield range(chosen[0], chosen[-1] + 1)


def _is_about(short: Statement, long: Statement, window: range) -> bool:
    """Whether what stands in a stretch of `long` is about whom and what `short` is about."""
    shared = set(short.contents)
    if any(long.words[at].content and long.words[at].content not in shared for at in window):
        return False
    ahead = range(max(0, window[0] - 1), window[-1] + 1)
    persons = {long.words[at].person for at in ahead if long.words[at].person}
    if short.persons and persons and not short.persons & persons:
        return False
    if any(long.words[at].text in _TURNS and long.words[at].text not in shared for at in ahead):
        return False
    # "My wife's mother" isn't "my wife".
    if any(
        long.words[at].possessive and (after := long.words[at + 1]).content and after.content not in shared
        for at in window
        if at + 1 < len(long.words)
    ):
        return False
    subject = next((at for at in reversed(range(window[0])) if long.words[at].text in _NOMINATIVES), None)
    mine = _subject(short)
    start = 0 if subject is None else subject + 1
    others = [at for at in range(start, window[0]) if long.words[at].content]
    if any(_is_somebody(long, at) for at in others):
        return False
    first = long.words[window[0]]
    if subject is not None:
        return mine == long.words[subject].person or (mine is None and first.content == short.contents[0])
    if mine is None or first.content == short.contents[0]:
        return mine is None or not others
    # "I live in Lisbon with Ines" isn't about Ines.
    return not others and first.content not in _BEINGS and first.content not in short.names | long.names


@dataclass(frozen=True)
class Topic:
    """What a statement is about.

    Attributes:
        about: Whom; None where that isn't said.
        words: Its content words.
        families: Which of `_FAMILIES` it has a word of.
    """

    about: str | None
    words: frozenset[str]
    families: frozenset[int]

    def is_shared_with(self, other: "Topic") -> bool:
        """Whether one statement may be what has become of what the other says. Symmetric; wider than `same_matter`.

        They may not be about two people, and have in common half of the shorter one's content words, or a word about
        where somebody lives, what they do for a living or whom they love: what changes there is often said in other
        words.
        """
        if self.about != other.about:
            return False
        if self.about is not None and not self.families.isdisjoint(other.families):
            return True
        return len(self.words & other.words) * 2 >= max(1, min(len(self.words), len(other.words)))


@lru_cache(maxsize=4096)
def topic(text: str) -> Topic | None:
    """The topic of a text; None of one that isn't a statement."""
    statement = read(text)
    if not statement.comparable:
        return None
    words = frozenset(statement.contents) - _COMMON_VERBS
    families = frozenset(number for number, family in enumerate(_FAMILIES) if words & family)
    return Topic(_about(statement), words, families)


def _about(statement: Statement) -> str | None:
    """Whom a statement is about: the first pronoun or being that could be its subject."""
    for at, word in enumerate(statement.words):
        if word.text in _NOMINATIVES:
            return word.person
        if word.content and (word.content in _BEINGS or word.name):
            return word.content if _is_somebody(statement, at) else None
    return None


def _subject(statement: Statement) -> str | None:
    """Whom the pronoun stands for that comes before the first content word; None where none does."""
    for word in statement.words:
        if word.text in _NOMINATIVES:
            return word.person
        if word.content:
            return None
    return None


def _is_somebody(statement: Statement, at: int) -> bool:
    """Whether a content word may be whom or what a sentence is about: a name, a being, or whatever is somebody's."""
    word = statement.words[at]
    if word.name or word.content in _BEINGS:
        return True
    return at > 0 and (statement.words[at - 1].text in _POSSESSIVES or statement.words[at - 1].possessive)
