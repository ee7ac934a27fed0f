"""Reading documents of every format: from bytes to text with its headings, pages and tables."""

import codecs
import csv
import datetime
import email
import email.policy
import io
import itertools
import json
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from activities.chunking import Document, Part
from activities.errors import failure

# The libraries are imported by what uses them: each process reads a few formats only.

MAX_TEXT = 50 * 1024 * 1024
"""Characters of text in one document, at most."""
MAX_UNPACKED = 500 * 1024 * 1024
"""Bytes that a zipped format may unpack to."""
MAX_MEMBERS = 10_000
"""Files that a zipped format may hold."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".heic", ".heif", ".tif", ".tiff"})

_MEDIA_TYPES = {
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/json": ".json",
    "application/ld+json": ".json",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "application/epub+zip": ".epub",
    "message/rfc822": ".eml",
    "application/rtf": ".rtf",
    "text/rtf": ".rtf",
    "text/plain": ".txt",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/heif": ".heif",
    "image/tiff": ".tiff",
}
_VAGUE = frozenset({"", "application/octet-stream", "text/plain", "binary/octet-stream"})
"""Types that servers and clients give to what they don't know."""
_ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "iso8859_2"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
"""Encodings of texts that aren't in UTF-8: those that were the default somewhere. All others are likelier mistakes."""
_OLE = b"\xd0\xcf\x11\xe0"
"""How the files of older Office formats begin, and encrypted ones of today's."""


def suffix_for(media_type: str, filename: str | None) -> str | None:
    """Which format a content has that is called so and said to be of this type; None where it can't be read.

    A media type decides where it says something, and otherwise the name's suffix.
    """
    media_type = media_type.partition(";")[0].strip().lower()
    suffix = PurePosixPath(filename or "").suffix.lower()
    named = suffix if suffix in SUFFIXES | IMAGE_SUFFIXES else None
    if media_type in _VAGUE:
        return named or _MEDIA_TYPES.get(media_type)
    if (typed := _MEDIA_TYPES.get(media_type)) is not None:
        return typed
    return named if media_type.startswith("text/") and named is not None else None


def parse(content: bytes, suffix: str) -> Document:
    """The text of a document.

    Args:
        content: The file's bytes.
        suffix: Its format: one of `SUFFIXES`.

    Raises:
        ApplicationError: `rejected` for what is damaged, encrypted or a scan, `over_limit` for what unpacks to too
            much.
    """
    from temporalio.exceptions import ApplicationError

    try:
        document = _READERS[suffix](content)
        if sum(len(part.text) for part in document.parts) > MAX_TEXT:
            raise failure("over_limit", f"It holds more than {MAX_TEXT // 1024 // 1024} MiB of text. Split it.")
        document = _encodable(document)
    except ApplicationError:
        raise
    except MemoryError:
        raise failure("over_limit", "Reading it takes more memory than is allowed. Split it.") from None
    except RecursionError:
        raise failure("over_limit", "It is nested too deeply to be read.") from None
    except Exception as error:
        # Every library has errors of its own for what is damaged.
        raise failure("rejected", f"It is damaged, or no {suffix} file ({type(error).__name__}).") from None
    return document


_UNENCODABLE = re.compile(r"[\ud800-\udfff\0]")


def _encodable(document: Document) -> Document:
    """A document of characters only: halves of one are joined, those that miss the other and NULs are marked as such.

    JSON, RTF and mail can hold what no encoding has.
    """

    def mended(text: str) -> str:
        if not _UNENCODABLE.search(text):
            return text
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return whole.replace("\0", "\ufffd")

    parts = [
        replace(
            part,
            text=mended(part.text),
            headings=tuple(map(mended, part.headings)),
            table_header=mended(part.table_header),
        )
        for part in document.parts
    ]
    return Document(document.title and mended(document.title), parts)


def decode(content: bytes) -> str:
    """The text that bytes stand for: by their byte order mark, as UTF-8, or in the encoding they most likely have.

    Raises:
        ApplicationError: `rejected` for what isn't text.
    """
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    if b"\0" in content:
        raise failure("rejected", "It holds NUL bytes: it isn't text.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        found = from_bytes(content, cp_isolation=list(_ENCODINGS)) or from_bytes(content)
        best = found.best()
        if best is None:
            raise failure("rejected", "It isn't text, or of an unknown encoding. Convert it to UTF-8.") from None
        for match in found:
            # Of encodings that fit as well, the most common one by far: it shares most letters with its neighbours.
            if match.encoding == "cp1252" and match.chaos <= best.chaos and match.coherence >= best.coherence - 0.05:
                return str(match)
        return str(best)


# Text


def _plain(content: bytes) -> Document:
    return Document(None, [Part(decode(content))])


_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<fields>.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TITLE_FIELD = re.compile(r"^title:[ \t]*(?P<title>\S.*?)[ \t]*$", re.MULTILINE)


def _markdown(content: bytes) -> Document:
    text = decode(content).replace("\r\n", "\n")
    title = None
    if front := _FRONT_MATTER.match(text):
        if field := _TITLE_FIELD.search(front["fields"]):
            title = field["title"].strip("\"'")
        text = text[front.end() :]
    return Document(title or _first_heading(text), [Part(text, markdown=True)])


def _first_heading(markdown: str) -> str | None:
    from markdown_it import MarkdownIt

    # A heading that comes later is no title.
    tokens = MarkdownIt("commonmark").parse(markdown[:20_000])
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0:
            texts = [child.content for child in inline.children or () if child.type in ("text", "code_inline")]
            if title := " ".join("".join(texts).split()):
                return title
    return None


def _rtf(content: bytes) -> Document:
    from striprtf.striprtf import rtf_to_text

    if not content.lstrip().startswith(b"{\\rtf"):
        raise ValueError("no RTF")
    return Document(None, [Part(rtf_to_text(content.decode("latin-1"), errors="replace"))])


# Tables


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time.min:
        value = value.date()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return " ".join(str(value).replace("|", "\\|").split())


def _table(rows: Iterable[Sequence[object]], page: int | None = None, headings: tuple[str, ...] = ()) -> Part | None:
    """Rows as a table whose first row that isn't empty is its header; None where there is none."""
    lines = (cells for row in rows if any(cells := [_cell(value) for value in row]))
    header = next(lines, None)
    if header is None:
        return None
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    head = f"| {' | '.join(header)} |\n|{'---|' * len(header)}"
    return Part(text, page=page, headings=headings, table_header=head) if text else Part(head, True, page, headings)


def _csv(content: bytes, delimiter: str | None = None) -> Document:
    text = decode(content)
    csv.field_size_limit(MAX_TEXT)
    if delimiter is None:
        try:
            delimiter = csv.Sniffer().sniff(text[:65_536], delimiters=",;\t|").delimiter
        except csv.Error:
            delimiter = ","
    table = _table(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    return Document(None, [table] if table else [])


def _tsv(content: bytes) -> Document:
    return _csv(content, "\t")


def _workbook(content: bytes) -> Document:
    from python_calamine import CalamineWorkbook, PasswordError

    _check_archive(content)
    encrypted = failure("rejected", "It is encrypted. Save it without a password.")
    # An .xls is an OLE file too, but has no stream of this name.
    if content.startswith(_OLE) and "EncryptedPackage".encode("utf-16-le") in content:
        raise encrypted
    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(content))
    except PasswordError:
        raise encrypted from None
    tables = [
        _table(book.get_sheet_by_name(name).to_python(skip_empty_area=True), number, (name,))
        for number, name in enumerate(book.sheet_names, 1)
    ]
    return Document(_office_title(content), [table for table in tables if table])


# Records


def _records(value: Any, path: str = "") -> Iterator[str]:
    """A JSON value as lines of `path: value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _records(inner, f"{path}.{key}" if path else str(key))
    elif value in ([], "", None):
        return
    elif isinstance(value, list):
        if all(not isinstance(inner, dict | list) for inner in value):
            yield f"{path}: {', '.join(_scalar(inner) for inner in value)}" if path else ", ".join(map(_scalar, value))
        else:
            for index, inner in enumerate(value):
                yield from _records(inner, f"{path}[{index}]")
    else:
        yield f"{path}: {_scalar(value)}" if path else _scalar(value)


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(content: bytes) -> Document:
    value = json.loads(decode(content))
    records = value if isinstance(value, list) and any(isinstance(one, dict) for one in value) else [value]
    return Document(None, [Part("\n\n".join("\n".join(_records(record)) for record in records))])


def _jsonl(content: bytes) -> Document:
    # Strings may hold what else splitlines() takes for the end of a line.
    lines = [line for line in decode(content).split("\n") if line.strip()]
    return Document(None, [Part("\n\n".join("\n".join(_records(json.loads(line))) for line in lines))])


# HTML


def _to_markdown(html: str) -> str:
    from markdownify import markdownify

    text: str = markdownify(html, heading_style="ATX", table_infer_header=True, strip=["img", "script", "style"])
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _html(content: bytes) -> Document:
    import trafilatura

    tree = trafilatura.load_html(content)
    if tree is None:
        raise ValueError("no HTML")
    metadata = trafilatura.extract_metadata(tree)
    title = metadata.title if metadata else None
    # A table whose header isn't marked as one would be written without any.
    for cell in tree.xpath("//table[not(.//th)]//tr[1]/td[not(ancestor::tr/preceding-sibling::tr)]"):
        cell.tag = "th"
    text = trafilatura.extract(
        tree,
        output_format="markdown",
        favor_recall=True,
        include_tables=True,
        include_formatting=True,
        include_comments=False,
    )
    everything = _to_markdown(_body(trafilatura.load_html(content)))
    # A page that is no article: what stands on it is taken as it is.
    if text is None or len(text) < len(everything) // 10:
        text = everything
    return Document(title or _first_heading(text), [Part(text, markdown=True)])


def _body(tree: Any) -> str:
    """The body of a page without what isn't read, as HTML."""
    from lxml import etree

    for element in tree.xpath("//script | //style | //noscript | //template | //nav | //footer"):
        element.drop_tree()
    body = tree.find("body")
    return str(etree.tostring(tree if body is None else body, encoding="unicode", method="html"))


# Office


def _check_archive(content: bytes) -> None:
    """Refuse a zipped format that declares to unpack to too much.

    Python's zipfile reads no more than is declared; what calamine reads beyond it, the process's limits end.

    Raises:
        ApplicationError: `over_limit`.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise failure("over_limit", f"It is an archive of more than {MAX_MEMBERS:,} files.")
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise failure("over_limit", f"It unpacks to more than {MAX_UNPACKED // 1024 // 1024} MiB.")
    if any(member.flag_bits & 1 for member in members):
        raise failure("rejected", "It is encrypted. Save it without a password.")


def _xml(content: bytes) -> Any:
    from lxml import etree

    return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))


def _office_title(content: bytes) -> str | None:
    """The title in the properties of an Office document, if it has one."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if "docProps/core.xml" not in archive.namelist():
            return None
        found = _xml(archive.read("docProps/core.xml")).findtext("{http://purl.org/dc/elements/1.1/}title")
    return (found or "").strip() or None


def _refuse_encrypted(content: bytes) -> None:
    if content.startswith(_OLE):
        raise failure("rejected", "It is encrypted, or of an older format. Save it anew without a password.")


def _docx(content: bytes) -> Document:
    import mammoth

    _refuse_encrypted(content)
    _check_archive(content)
    html = mammoth.convert_to_html(io.BytesIO(content), convert_image=mammoth.images.img_element(lambda image: {}))
    text = _to_markdown(html.value)
    return Document(_office_title(content) or _first_heading(text), [Part(text, markdown=True)])


def _pptx(content: bytes) -> Document:
    from pptx import Presentation

    _refuse_encrypted(content)
    _check_archive(content)
    parts: list[Part] = []
    for number, slide in enumerate(Presentation(io.BytesIO(content)).slides, 1):
        title_shape = slide.shapes.title
        title = " ".join(title_shape.text_frame.text.split()) if title_shape is not None else ""
        texts = [f"# {title}"] if title else []
        texts += _shapes(
            shape for shape in slide.shapes if title_shape is None or shape.shape_id != title_shape.shape_id
        )
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None and notes.text.strip():
            texts.append(f"Notes: {notes.text.strip()}")
        if texts:
            parts.append(Part("\n\n".join(texts), markdown=True, page=number))
    first = next((part.text for part in parts), "")
    return Document(_office_title(content) or _first_heading(first), parts)


def _shapes(shapes: Iterable[Any]) -> Iterator[str]:
    for shape in shapes:
        if shape.shape_type == 6:  # MSO_SHAPE_TYPE.GROUP
            yield from _shapes(shape.shapes)
        elif getattr(shape, "has_table", False):
            table = _table([[cell.text for cell in row.cells] for row in shape.table.rows])
            if table:
                yield f"{table.table_header}\n{table.text}".strip()
        elif shape.has_text_frame and shape.text_frame.text.strip():
            yield "\n\n".join(line.strip() for line in shape.text_frame.text.splitlines() if line.strip())


# PDF

_HYPHENATED = re.compile(r"[\ufffe\u0002]\n?")


def _pdf(content: bytes) -> Document:
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower() or "security" in str(error).lower():
            raise failure("rejected", "It is encrypted. Save it without a password.") from None
        raise
    with pdf:
        outline = _outline(pdf)
        parts: list[Part] = []
        path: tuple[str, ...] = ()
        total = 0
        for number in range(len(pdf)):
            page = pdf[number]
            text_page = page.get_textpage()
            text = _reflowed(_HYPHENATED.sub("", text_page.get_text_bounded().replace("\r\n", "\n")))
            text_page.close()
            page.close()
            total += len(text)
            if total > MAX_TEXT:
                raise failure("over_limit", f"It holds more than {MAX_TEXT // 1024 // 1024} MiB of text. Split it.")
            begun = outline.get(number, [])
            for under, stretch in _sections(text, path, begun):
                if stretch.strip():
                    parts.append(Part(stretch, page=number + 1, headings=under))
            path = begun[-1] if begun else path
        if not parts:
            raise failure(
                "rejected", "None of its pages has text: it is a scan. Recognise its text first, or ingest its images."
            )
        title = pdf.get_metadata_dict().get("Title", "").strip()
    return Document(title or None, parts)


def _sections(
    text: str, path: tuple[str, ...], begun: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """A page's text cut where its headings stand, each stretch with the path of the heading that it is under.

    Args:
        text: Of the page.
        path: Of the heading that is above the page.
        begun: Paths of the headings that the outline has on it, in order.
    """
    start = 0
    for heading in begun:
        words = r"\s+".join(re.escape(word) for word in heading[-1].split())
        found = re.compile(rf"^\s*{words}", re.MULTILINE | re.IGNORECASE).search(text, start)
        if found is not None:
            yield path, text[start : found.start()]
            start = found.start()
        elif start:
            continue
        # Where the outline's first heading is drawn otherwise, all of the page is taken to be under it.
        path = heading
    yield path, text[start:]


def _reflowed(text: str) -> str:
    """A page's text with the lines of a paragraph joined: where a line is full and no sentence ends, it goes on."""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    full = max(map(len, lines), default=0) * 0.6
    return "".join(
        line + (" " if len(line) > full and not line.endswith((".", "!", "?", ":", ";")) else "\n") for line in lines
    )


def _outline(pdf: Any) -> dict[int, list[tuple[str, ...]]]:
    """The paths of the headings that begin on each page, by its index."""
    found: dict[int, list[tuple[str, ...]]] = {}
    path: list[str] = []
    for bookmark in pdf.get_toc():
        title = " ".join((bookmark.get_title() or "").split())
        destination = bookmark.get_dest()
        del path[bookmark.level :]
        path.append(title)
        if title and destination is not None and (index := destination.get_index()) is not None:
            found.setdefault(index, []).append(tuple(part for part in path if part))
    return found


# Books and mail

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_DC = "{http://purl.org/dc/elements/1.1/}"


def _epub(content: bytes) -> Document:
    _check_archive(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        container = _xml(archive.read("META-INF/container.xml"))
        package_name = container.find(f".//{_CONTAINER}rootfile").get("full-path")
        package = _xml(archive.read(package_name))
        folder = PurePosixPath(package_name).parent
        hrefs = {item.get("id"): unquote(item.get("href")) for item in package.iter(f"{_OPF}item")}
        names = set(archive.namelist())
        parts: list[Part] = []
        for reference in package.iter(f"{_OPF}itemref"):
            name = posixpath.normpath(folder / hrefs.get(reference.get("idref"), ""))
            if name not in names:
                continue
            text = _to_markdown(_chapter(decode(archive.read(name))))
            if text:
                parts.append(Part(text, markdown=True))
        title = package.findtext(f".//{_DC}title")
    return Document((title or "").strip() or None, parts)


def _chapter(text: str) -> str:
    """What is read of an HTML document that is all content."""
    from lxml import html

    # As bytes: a text that declares an encoding is refused.
    return _body(html.document_fromstring(text.encode(), parser=html.HTMLParser(encoding="utf-8")))


def _mail_text(body: Any) -> str:
    try:
        return str(body.get_content())
    except LookupError:
        # It names an encoding that nobody knows.
        return decode(body.get_payload(decode=True))


def _eml(content: bytes) -> Document:
    message = email.message_from_bytes(content, policy=email.policy.default)
    if not message.keys():
        raise ValueError("no mail")
    lines = [f"{name}: {message[name]}" for name in ("From", "To", "Cc", "Date", "Subject") if message[name]]
    body = message.get_body(preferencelist=("plain", "html"))
    text = _mail_text(body) if body is not None else ""
    is_html = body is not None and body.get_content_subtype() == "html"
    if is_html and text.strip():
        text = _to_markdown(_chapter(text))
    names = [name for part in message.iter_attachments() if (name := part.get_filename())]
    if names:
        text += f"\n\nAttachments: {', '.join(names)}"
    return Document(str(message["Subject"] or "").strip() or None, [Part("\n".join(lines) + "\n\n" + text, is_html)])


_READERS: dict[str, Callable[[bytes], Document]] = {
    ".pdf": _pdf,
    ".docx": _docx,
    ".pptx": _pptx,
    ".xlsx": _workbook,
    ".xls": _workbook,
    ".ods": _workbook,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".md": _markdown,
    ".markdown": _markdown,
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".epub": _epub,
    ".eml": _eml,
    ".rtf": _rtf,
    ".txt": _plain,
    ".text": _plain,
    ".rst": _plain,
    ".log": _plain,
}

SUFFIXES = frozenset(_READERS)
