# mypy: disable-error-code="import-untyped"
"""Analyzers: what turns a text into the terms that an index holds and a query asks for."""

import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import regex
import snowballstemmer

Analyzer = Callable[[str], list[str]]
TokenFilter = Callable[[list[str]], list[str]]

TOKENIZERS = {
    "edgeGram",
    "keyword",
    "nGram",
    "regexCaptureGroup",
    "regexSplit",
    "standard",
    "uaxUrlEmail",
    "whitespace",
}
TOKEN_FILTERS = {
    "asciiFolding",
    "daitchMokotoffSoundex",
    "edgeGram",
    "englishMinimalStemming",
    "englishPossessive",
    "flattenGraph",
    "icuFolding",
    "icuNormalizer",
    "keywordRepeat",
    "kStemming",
    "length",
    "limitTokenCount",
    "lowercase",
    "nGram",
    "porterStemming",
    "regex",
    "removeDuplicates",
    "reverse",
    "shingle",
    "snowballStemming",
    "spanishPluralStemming",
    "stempel",
    "stopword",
    "trim",
    "wordDelimiterGraph",
}
# Words, roughly as Unicode's text segmentation finds them: ideographs and kana letters one by one.
_WORDS = regex.compile(
    r"[\p{Han}\p{Hiragana}]|(?:(?![\p{Han}\p{Hiragana}])[\p{L}\p{N}\p{M}_])+"
    r"(?:['’.](?:(?![\p{Han}\p{Hiragana}])[\p{L}\p{N}\p{M}_])+)*"
)
_STOPWORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this"
    " to was will with"
)
_ENGLISH_STOPWORDS = frozenset(_STOPWORDS.split())


class InvalidAnalyzer(Exception):
    """A definition of an analyzer that Atlas refuses, or that the stand-in does not know how to follow."""


@lru_cache(maxsize=100_000)
def stem(term: str) -> str:
    # A stemmer has state of its own, so one is made for each term it has not met yet.
    return str(snowballstemmer.stemmer("porter").stemWord(term))


@lru_cache(maxsize=100_000)
def fold(term: str) -> str:
    """ICU's folding, nearly: case, marks and compatibility forms go."""
    bare = "".join(sign for sign in unicodedata.normalize("NFKD", term) if not unicodedata.combining(sign))
    return unicodedata.normalize("NFKC", bare.casefold())


def standard_words(text: str) -> list[str]:
    return [match.group() for match in _WORDS.finditer(text)]


def _standard(text: str) -> list[str]:
    return [word.lower() for word in standard_words(text)]


def _english(text: str) -> list[str]:
    words = (word.removesuffix("'s").removesuffix("’s") for word in _standard(text))
    return [stem(word) for word in words if word not in _ENGLISH_STOPWORDS]


def _keyword(text: str) -> list[str]:
    return [text] if text else []


BUILT_IN: dict[str, Analyzer] = {
    "lucene.standard": _standard,
    "lucene.simple": lambda text: [word.lower() for word in regex.findall(r"\p{L}+", text)],
    "lucene.whitespace": str.split,
    "lucene.keyword": _keyword,
    "lucene.english": _english,
}


def _keys(definition: object, where: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    if not isinstance(definition, Mapping):
        raise InvalidAnalyzer(f'"{where}" must be a document')
    for name in sorted(required - set(definition)):
        raise InvalidAnalyzer(f'"{where}.{name}" is required')
    for name in definition:
        if name not in required | optional:
            raise InvalidAnalyzer(f'"{where}" unrecognized field "{name}"')
    return definition


def _pattern(text: object, where: str) -> "regex.Pattern[str]":
    if not isinstance(text, str):
        raise InvalidAnalyzer(f'"{where}.pattern" must be a string')
    try:
        return regex.compile(text)
    except regex.error as error:
        raise InvalidAnalyzer(f'"{where}" {error}') from error


def _tokenizer(definition: object, where: str) -> Analyzer:
    kind = definition.get("type") if isinstance(definition, Mapping) else None
    if kind is not None and kind not in TOKENIZERS:
        raise InvalidAnalyzer(f'"{where}.type" must be one of [{", ".join(sorted(TOKENIZERS))}]')
    if kind == "regexCaptureGroup":
        checked = _keys(definition, where, {"type", "pattern", "group"}, set())
        pattern, group = _pattern(checked["pattern"], where), checked["group"]
        if not isinstance(group, int) or isinstance(group, bool) or group < 0:
            raise InvalidAnalyzer(f'"{where}.group" must be non-negative')
        if group > pattern.groups:
            raise InvalidAnalyzer(
                f'"{where}" invalid group specified: pattern only has: {pattern.groups} capturing groups'
            )
        return lambda text: [term for match in pattern.finditer(text) if (term := match.group(group))]
    if kind == "regexSplit":
        splitter = _pattern(_keys(definition, where, {"type", "pattern"}, set())["pattern"], where)
        return lambda text: [term for term in splitter.split(text) if term]
    if kind in ("keyword", "standard", "whitespace"):
        _keys(definition, where, {"type"}, {"maxTokenLength"})
        plain: dict[str, Analyzer] = {"keyword": _keyword, "standard": standard_words, "whitespace": str.split}
        return plain[kind]
    if kind is not None:
        raise InvalidAnalyzer(f"the stand-in has no tokenizer {kind!r}")
    raise InvalidAnalyzer(f'"{where}.type" is required')


def _token_filter(definition: object, where: str) -> TokenFilter:
    kind = definition.get("type") if isinstance(definition, Mapping) else None
    if kind is None:
        raise InvalidAnalyzer(f'"{where}.type" is required')
    if kind not in TOKEN_FILTERS:
        raise InvalidAnalyzer(f'"{where}.type" must be one of [{", ".join(sorted(TOKEN_FILTERS))}]')
    if kind == "stopword":
        checked = _keys(definition, where, {"type", "tokens"}, {"ignoreCase"})
        stopped, ignoring = set(checked["tokens"]), checked.get("ignoreCase", True)
        return lambda terms: [term for term in terms if (term.lower() if ignoring else term) not in stopped]
    if kind == "length":
        checked = _keys(definition, where, {"type"}, {"min", "max"})
        least, most = int(checked.get("min", 0)), int(checked.get("max", 255))
        return lambda terms: [term for term in terms if least <= len(term) <= most]
    each: dict[str, Callable[[str], str]] = {
        "icuFolding": fold,
        "lowercase": str.lower,
        "porterStemming": stem,
        "trim": str.strip,
    }
    if kind not in each:
        raise InvalidAnalyzer(f"the stand-in has no token filter {kind!r}")
    _keys(definition, where, {"type"}, set())
    change = each[kind]
    return lambda terms: [changed for term in terms if (changed := change(term))]


def custom(definition: object, where: str) -> tuple[str, Analyzer]:
    """The name and the working of one entry of a definition's `analyzers`."""
    checked = _keys(definition, where, {"name", "tokenizer"}, {"charFilters", "tokenFilters"})
    name = checked["name"]
    if not isinstance(name, str) or name.startswith(("lucene.", "builtin.", "mongodb.")):
        raise InvalidAnalyzer(f'"{where}.name" must be a string that does not begin with "lucene."')
    if checked.get("charFilters"):
        raise InvalidAnalyzer("the stand-in has no character filters")
    tokenize = _tokenizer(checked["tokenizer"], f"{where}.tokenizer")
    listed = checked.get("tokenFilters") or []
    filters = [_token_filter(one, f"{where}.tokenFilters[{place}]") for place, one in enumerate(listed)]

    def analyze(text: str) -> list[str]:
        terms = tokenize(text)
        for change in filters:
            terms = change(terms)
        return terms

    return name, analyze
