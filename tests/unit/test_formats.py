"""Documents of every format, as real writers make them, read into text with headings, pages and tables."""

import contextlib
import io
import json
import zipfile

import pytest
from temporalio.exceptions import ApplicationError

from activities.chunking import Document
from activities.formats import IMAGE_SUFFIXES, SUFFIXES, parse, suffix_for
from tests import documents
from tests.contract.records import fails
from tests.documents import MAKERS, SECTIONS, TITLE

TITLED = {".pdf", ".docx", ".pptx", ".xlsx", ".html", ".md", ".epub", ".eml"}
PAGED = {".pdf", ".pptx"}
TABLED = {".docx", ".pptx", ".xlsx", ".html", ".csv", ".tsv"}


def text_of(document: Document) -> str:
    return "\n".join(f"{part.table_header}\n{part.text}" for part in document.parts)


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_document_of_each_format_is_read(suffix: str) -> None:
    document = parse(MAKERS[suffix](), suffix)
    text = text_of(document)

    assert document.title == (TITLE if suffix in TITLED else None)
    if suffix not in (".csv", ".tsv"):
        for heading, sentence in SECTIONS.items():
            assert heading in text
            assert sentence in text
            assert text.index(heading) < text.index(sentence)
    if suffix in TABLED:
        assert "| Station | Height in metres |" in text
        assert text.index("Skagen") < text.index("Eddystone")
    if suffix in PAGED:
        assert [part.page for part in document.parts] == [1, 2]
    assert "\ufffd" not in text


def test_every_format_that_is_read_has_been_read() -> None:
    alike = {".htm", ".xhtml", ".markdown", ".ndjson", ".text", ".rst", ".log", ".xls", ".ods"}
    assert MAKERS.keys() | alike == SUFFIXES


def test_the_pages_of_a_pdf_are_under_the_headings_of_its_outline() -> None:
    parts = parse(documents.pdf(), ".pdf").parts
    assert [part.headings for part in parts] == [(heading,) for heading in SECTIONS]
    assert [part.headings for part in parse(documents.pdf(outline=False), ".pdf").parts] == [(), ()]


def test_a_web_page_is_read_without_what_surrounds_it() -> None:
    text = text_of(parse(documents.html(), ".html"))
    for noise in ("track(", "Shop", "Cookie settings"):
        assert noise not in text
    assert f"# {TITLE}" in text
    assert "## Trimming the lamp" in text


def test_a_page_that_is_no_article_is_read_as_it_is() -> None:
    rows = "".join(f"<li>Fee {number}: {number} shillings</li>" for number in range(30))
    text = text_of(parse(f"<html><body><ul>{rows}</ul></body></html>".encode(), ".html"))
    assert "Fee 0: 0 shillings" in text
    assert "Fee 29: 29 shillings" in text


def test_a_mail_is_read_as_text_whatever_it_is_written_in() -> None:
    for content in (documents.eml(), documents.eml(as_html=True)):
        text = text_of(parse(content, ".eml")).strip()
        assert text.startswith("From: keeper@example.org\nTo: office@example.org\nSubject:")
        assert "Attachments: log.bin" in text
        assert "<p>" not in text
        assert "track(" not in text


def test_the_front_matter_of_markdown_gives_its_title_alone() -> None:
    document = parse(b"---\ntitle: 'A name'\nsecret: 1\n---\n# Another\n\nText.", ".md")
    assert document.title == "A name"
    assert "secret" not in text_of(document)
    assert parse(b"# Another\n\nText.", ".md").title == "Another"


def test_a_title_is_a_heading_of_either_kind_and_no_comment_in_code() -> None:
    code = b"```sh\n# install\n```\n\n"
    assert parse(code + b"# The `lamp` room\n\nText.", ".md").title == "The lamp room"
    assert parse(code + b"The lamp room\n=============\n\nText.", ".md").title == "The lamp room"
    assert parse(code + b"Text.", ".md").title is None


def test_a_book_whose_chapters_are_beside_its_package_is_read() -> None:
    source = zipfile.ZipFile(io.BytesIO(documents.epub()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name).replace(b'href="chapter', b'href="../Text/chapter')
            target.writestr(name.replace("OEBPS/chapter", "Text/chapter"), content)
    text = text_of(parse(buffer.getvalue(), ".epub"))
    assert all(sentence in text for sentence in SECTIONS.values())


def test_a_record_may_hold_what_ends_a_line_elsewhere() -> None:
    lines = [json.dumps({"note": note}, ensure_ascii=False) for note in ("fog\u2028horn", "bell\x85buoy")]
    assert text_of(parse("\r\n".join(lines).encode(), ".jsonl")).strip() == "note: fog\u2028horn\n\nnote: bell\x85buoy"


def test_a_mail_in_an_encoding_that_nobody_knows_is_read() -> None:
    mail = b"Subject: Fog\nContent-Type: text/plain; charset=x-unheard-of\n\nThe horn sounds."
    assert "The horn sounds." in text_of(parse(mail, ".eml"))


def test_numbers_and_dates_of_a_sheet_read_as_a_person_writes_them() -> None:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["day", "hour", "count", "share", "note"])
    book.active.append([datetime.date(2026, 5, 3), datetime.datetime(2026, 5, 3, 14, 30), 3.0, 0.25, "a|b\nc"])
    buffer = io.BytesIO()
    book.save(buffer)
    assert "| 2026-05-03 | 2026-05-03T14:30:00 | 3 | 0.25 | a\\|b c |" in text_of(parse(buffer.getvalue(), ".xlsx"))


@pytest.mark.parametrize(
    "content",
    [
        "Grüße aus Malmö — žluťoučký".encode(),
        b"\xef\xbb\xbf" + "Grüße aus Malmö — žluťoučký".encode(),
        "Grüße aus Malmö — žluťoučký".encode("utf-16"),
    ],
)
def test_text_is_read_in_its_encoding(content: bytes) -> None:
    assert text_of(parse(content, ".txt")).strip() == "Grüße aus Malmö — žluťoučký"


def test_text_of_an_old_encoding_is_read() -> None:
    german = "Die Wärter grüßten die Möwen über dem Hafen, während der Öltank im Süden rußte. " * 5
    assert "Wärter grüßten" in text_of(parse(german.encode("cp1252"), ".txt"))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Les bouées dérivent près du rocher, à midi. L’été fut doux."),
        ("cp1252", "Não há informação sobre a estação."),
        ("cp1252", "El señor dijo: mañana habrá más café, ¿verdad?"),
        ("cp1252", "Price: 5 £ – “in words” that’s five pounds"),
        ("cp1250", "Maják stojí na skále, žluťoučký kůň úpěl."),
        ("cp1250", "Latarnia morska stoi na skale, zażółć gęślą jaźń."),
        ("cp1251", "Маяк стоит на скале."),
        ("koi8-r", "Маяк стоит на скале. Смотритель зажигает лампу вечером."),
        ("cp1253", "Ο φάρος στέκεται πάνω στον βράχο."),
        ("cp1254", "Deniz feneri kayanın üzerinde duruyor, ışığı görünür."),
        ("gbk", "灯塔矗立在岩石上，看守人每晚点灯。"),
        ("big5", "燈塔矗立在岩石上，看守人每晚點燈。"),
        ("euc-kr", "등대는 바위 위에 서 있다."),
    ],
)
def test_a_sentence_in_an_old_encoding_is_read(encoding: str, text: str) -> None:
    assert text_of(parse(text.encode(encoding), ".txt")).strip() == text


def test_halves_of_a_character_are_joined_or_marked() -> None:
    """No store and no model takes them."""
    whole = parse(rb"{\rtf1\ansi Fog \u-10179?\u-8704? horn\par}", ".rtf")
    assert text_of(whole).strip() == "Fog \N{GRINNING FACE} horn"
    for content, suffix in (
        (rb'{"fog": "a\ud800b", "horn": "c\u0000d"}', ".json"),
        (rb'{"fog": "a\ud800b", "horn": "c\u0000d"}', ".jsonl"),
        (b"Subject: Fog\nContent-Type: text/plain; charset=utf-7\n\na+2AA-b c\n", ".eml"),
        (rb"{\rtf1\ansi a\u-10240?b c\par}", ".rtf"),
    ):
        document = parse(content, suffix)
        assert "a\ufffdb" in text_of(document)
        assert not {"\0", "\ud800"} & {*text_of(document), *(document.title or "")}


# What can't be read


@pytest.mark.parametrize("suffix", sorted(MAKERS.keys() - {".txt", ".md", ".csv", ".tsv", ".html"}))
def test_a_damaged_file_is_said_to_be(suffix: str) -> None:
    with fails("rejected", "damaged", suffix):
        parse(b"\x01 this is nothing of the kind", suffix)
    whole = MAKERS[suffix]()
    # The beginning of a mail is a mail, and so is that of RTF; a PDF can be mended to one without pages.
    if suffix not in (".eml", ".rtf", ".pdf"):
        with fails("rejected", "damaged", suffix):
            parse(whole[: len(whole) // 3], suffix)


def test_what_is_encrypted_or_a_scan_is_said_to_be() -> None:
    with fails("rejected", "encrypted"):
        parse(documents.pdf(password="x"), ".pdf")
    with fails("rejected", "scan"):
        parse(documents.scanned_pdf(), ".pdf")
    for suffix in (".docx", ".pptx", ".xlsx"):
        with fails("rejected", "encrypted"):
            parse(b"\xd0\xcf\x11\xe0" + bytes(2000) + "EncryptedPackage".encode("utf-16-le"), suffix)
    with fails("rejected", "NUL bytes"):
        parse(b"a\0b", ".txt")


def test_an_archive_that_explodes_is_cut_off() -> None:
    for suffix in (".docx", ".pptx", ".xlsx", ".epub"):
        buffer = io.BytesIO(MAKERS[suffix]())
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb", "w") as member:
            for _ in range(501):
                member.write(bytes(1024 * 1024))
        assert buffer.tell() < 2 * 1024 * 1024
        with fails("over_limit", "unpacks to more than"):
            parse(buffer.getvalue(), suffix)


def test_an_archive_of_very_many_files_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(10_001):
            archive.writestr(str(number), b"")
    with fails("over_limit", "10,000 files"):
        parse(buffer.getvalue(), ".epub")


# Where each format has a text, and how that begins.
TEXTS = {
    ".epub": ("OEBPS/book.opf", "The Lighthouse"),
    ".docx": ("word/document.xml", "The wick"),
    ".pptx": ("ppt/slides/slide1.xml", "The wick"),
    ".xlsx": ("xl/worksheets/sheet2.xml", "The wick"),
}


@pytest.mark.parametrize("suffix", TEXTS)
def test_entities_are_not_expanded(suffix: str) -> None:
    laughs = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "ha">{laughs}]>'
    outside = '<!DOCTYPE x [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>'
    name, begin = TEXTS[suffix]
    source = zipfile.ZipFile(io.BytesIO(MAKERS[suffix]()))
    whole = source.read(name).decode("latin-1")
    assert begin in whole
    for doctype in (bomb, outside):
        end = whole.index("?>") + 2 if whole.startswith("<?xml") else 0
        content = whole[:end] + doctype + whole[end:].replace(begin, "&e9;", 1)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
            for member in source.namelist():
                target.writestr(member, content.encode("latin-1") if member == name else source.read(member))
        text = ""
        with contextlib.suppress(ApplicationError):
            document = parse(buffer.getvalue(), suffix)
            text = f"{document.title}\n{text_of(document)}"
        assert "haha" not in text
        assert "root:" not in text


def test_deep_nesting_is_refused() -> None:
    with fails("over_limit", "nested"):
        parse(b"[" * 100_000 + b"]" * 100_000, ".json")
    deep: dict[str, object] = {"x": "y"}
    for _ in range(900):
        deep = {"x": deep}
    parse(json.dumps(deep).encode(), ".json")
    with fails("rejected", "damaged"):
        parse(b"<div>" * 5000 + b"text", ".html")


def test_empty_documents_have_no_text() -> None:
    for suffix in (".txt", ".md", ".csv", ".jsonl"):
        assert not text_of(parse(b"", suffix)).strip()


# Which format it is


@pytest.mark.parametrize(
    ("media_type", "filename", "suffix"),
    [
        ("", "a.PDF", ".pdf"),
        ("application/pdf", "a.txt", ".pdf"),
        ("text/html; charset=utf-8", "", ".html"),
        ("text/plain", "notes.md", ".md"),
        ("text/plain", "notes", ".txt"),
        ("text/x-markdown", "notes.md", ".md"),
        ("application/octet-stream", "a.docx", ".docx"),
        ("application/octet-stream", "a.exe", None),
        ("image/png", "", ".png"),
        ("image/svg+xml", "a.svg", None),
        ("video/mp4", "a.txt", None),
        ("", "", None),
        ("", None, None),
    ],
)
def test_the_format_is_told_by_type_and_name(media_type: str, filename: str | None, suffix: str | None) -> None:
    assert suffix_for(media_type, filename) == suffix
    assert suffix is None or suffix in SUFFIXES | IMAGE_SUFFIXES
