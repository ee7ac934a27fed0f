"""Documents of every format, made by real writers: each has a title, two sections and a sentence in either."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from email.message import EmailMessage

from PIL import Image, ImageDraw, ImageFont

TITLE = "The Lighthouse Keeper's Handbook"
SECTIONS = {
    "Trimming the lamp": "The wick is trimmed every four hours with the brass scissors.",
    "Winding the clockwork": "The clockwork that turns the lens is wound at dusk, three hundred turns.",
}
TABLE = [["Station", "Height in metres"], ["Skagen", "46"], ["Eddystone", "49"]]


def pdf(*, title: str = TITLE, outline: bool = True, password: str | None = None) -> bytes:
    """A section a page."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer, A4, encrypt=StandardEncryption(password) if password else None)
    canvas.setTitle(title)
    for number, (heading, sentence) in enumerate(SECTIONS.items()):
        if outline:
            canvas.bookmarkPage(f"section-{number}")
            canvas.addOutlineEntry(heading, f"section-{number}")
        canvas.drawString(72, 760, heading)
        canvas.drawString(72, 730, sentence)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def scanned_pdf() -> bytes:
    """A page that is a picture."""
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    canvas.drawImage(ImageReader(io.BytesIO(image("PNG"))), 72, 400)
    canvas.save()
    return buffer.getvalue()


def docx() -> bytes:
    import docx

    document = docx.Document()
    document.core_properties.title = TITLE
    for heading, sentence in SECTIONS.items():
        document.add_heading(heading, 1)
        document.add_paragraph(sentence)
    table = document.add_table(rows=0, cols=2)
    for row in TABLE:
        cells = table.add_row().cells
        for cell, value in zip(cells, row, strict=True):
            cell.text = value
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def pptx() -> bytes:
    """A section a slide; a table and notes on the last."""
    from pptx import Presentation
    from pptx.util import Inches

    presentation = Presentation()
    presentation.core_properties.title = TITLE
    for heading, sentence in SECTIONS.items():
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = heading
        slide.placeholders[1].text = sentence
    shape = slide.shapes.add_table(len(TABLE), 2, Inches(1), Inches(3), Inches(6), Inches(1))
    for row, values in enumerate(TABLE):
        for column, value in enumerate(values):
            shape.table.cell(row, column).text = value
    slide.notes_slide.notes_text_frame.text = "Mind the fog signal."
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def xlsx(rows: list[list[str]] | None = None) -> bytes:
    """Two sheets."""
    import openpyxl

    book = openpyxl.Workbook()
    book.properties.title = TITLE
    sheet = book.active
    assert sheet is not None
    sheet.title = "Stations"
    for row in rows or TABLE:
        sheet.append([int(value) if value.isdecimal() else value for value in row])
    other = book.create_sheet("Duties")
    for heading, sentence in SECTIONS.items():
        other.append([heading, sentence])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def html() -> bytes:
    sections = "".join(f"<h2>{heading}</h2><p>{sentence}</p>" for heading, sentence in SECTIONS.items())
    rows = "".join(f"<tr>{''.join(f'<td>{value}</td>' for value in row)}</tr>" for row in TABLE)
    return (
        f"<!doctype html><html><head><title>{TITLE}</title><script>track('visitors')</script></head><body>"
        f"<nav><a href='/'>Home</a> <a href='/shop'>Shop</a></nav><main><article><h1>{TITLE}</h1>{sections}"
        f"<table>{rows}</table></article></main><footer>Cookie settings</footer></body></html>"
    ).encode()


def markdown() -> bytes:
    sections = "\n\n".join(f"## {heading}\n\n{sentence}" for heading, sentence in SECTIONS.items())
    return f"---\ntitle: {TITLE}\ntags: [sea]\n---\n\n{sections}\n".encode()


def delimited(delimiter: str) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(TABLE)
    return buffer.getvalue().encode()


def records() -> list[dict[str, object]]:
    return [{"heading": heading, "text": {"body": sentence}, "tags": []} for heading, sentence in SECTIONS.items()]


def json_lines() -> bytes:
    return "\n".join(json.dumps(record) for record in records()).encode()


def epub(chapters: dict[str, str] | None = None) -> bytes:
    """A section a chapter."""
    buffer = io.BytesIO()
    names = {f"chapter{number}.xhtml": item for number, item in enumerate((chapters or SECTIONS).items())}
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        )
        items = "".join(f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in names)
        spine = "".join(f'<itemref idref="{name}"/>' for name in names)
        archive.writestr(
            "OEBPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
            f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{TITLE}</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        )
        for name, (heading, sentence) in names.items():
            archive.writestr(
                f"OEBPS/{name}",
                '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title>'
                f"</head><body><h1>{heading}</h1><p>{sentence}</p></body></html>",
            )
    return buffer.getvalue()


def eml(*, as_html: bool = False) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "keeper@example.org", "office@example.org", TITLE
    text = "\n\n".join(f"{heading}\n\n{sentence}" for heading, sentence in SECTIONS.items())
    if as_html:
        message.set_content(html().decode(), subtype="html")
    else:
        message.set_content(text)
    message.add_attachment(b"x", maintype="application", subtype="octet-stream", filename="log.bin")
    return message.as_bytes()


def rtf() -> bytes:
    sections = "".join(f"{{\\b {heading}}}\\par {sentence}\\par " for heading, sentence in SECTIONS.items())
    return f"{{\\rtf1\\ansi {sections} caf\\'e9\\par}}".encode()


def text() -> bytes:
    return "\n\n".join(f"{heading}\n{sentence}" for heading, sentence in SECTIONS.items()).encode()


WORDS = "FOG SIGNAL EVERY NINETY SECONDS"


def image(image_format: str, *, size: tuple[int, int] = (900, 160), words: str = WORDS) -> bytes:
    """Words, black on white."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).text((30, 50), words, fill="black", font=ImageFont.load_default(42))
    buffer = io.BytesIO()
    picture.save(buffer, image_format)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[], bytes]] = {
    ".pdf": pdf,
    ".docx": docx,
    ".pptx": pptx,
    ".xlsx": xlsx,
    ".html": html,
    ".md": markdown,
    ".csv": lambda: delimited(";"),
    ".tsv": lambda: delimited("\t"),
    ".json": lambda: json.dumps(records()).encode(),
    ".jsonl": json_lines,
    ".epub": epub,
    ".eml": eml,
    ".rtf": rtf,
    ".txt": text,
}
"""A document of each format, by its suffix."""
