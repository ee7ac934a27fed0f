"""Images as vision models take them, and the text in them. Everything here runs in a process with limits."""

import io
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

from activities.errors import failure

MAX_PIXELS = 100_000_000
"""Width times height of an image, at most."""

MAX_BYTES = 3_750_000
"""Size of a prepared image, at most: what Amazon Bedrock's Converse API takes."""

_LOSSLESS = frozenset({"PNG", "GIF", "TIFF"})
_QUALITIES = (90, 80, 65, 50, 35)


@dataclass(frozen=True)
class Picture:
    """A prepared image; width and height in pixels."""

    content: bytes
    media_type: Literal["image/png", "image/jpeg"]
    width: int
    height: int


def prepare(content: bytes, max_side: int) -> Picture:
    """An image as a vision model takes it: upright, in sRGB, its first frame, without metadata.

    What was stored without loss stays so (PNG) where it is small enough; everything else is JPEG.

    Args:
        content: An image of one of `formats.IMAGE_SUFFIXES`.
        max_side: Pixels of its longer side, at most; a smaller one isn't enlarged.

    Raises:
        ApplicationError: `rejected` for what is no image, `over_limit` for one of too many pixels.
    """
    from PIL import Image, ImageOps

    image = _open(content)
    lossless = image.format in _LOSSLESS
    image.draft("RGB", (max_side, max_side))
    try:
        image.load()
        image = _in_srgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise failure("rejected", f"The image is damaged ({type(error).__name__}).") from None
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if lossless:
        encoded = _encode(image, "PNG", optimize=True)
        if len(encoded) <= MAX_BYTES:
            return Picture(encoded, "image/png", image.width, image.height)
    flat = image.convert("RGB") if image.mode != "RGBA" else _on_white(image)
    while True:
        for quality in _QUALITIES:
            encoded = _encode(flat, "JPEG", quality=quality)
            if len(encoded) <= MAX_BYTES:
                return Picture(encoded, "image/jpeg", flat.width, flat.height)
        flat.thumbnail((flat.width * 3 // 4, flat.height * 3 // 4), Image.Resampling.LANCZOS)


def _open(content: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError
    from pillow_heif import register_heif_opener

    register_heif_opener()
    # Whoever decodes one of twice as many is stopped by Pillow; this is before anything is decoded.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "GIF", "HEIF", "TIFF"))
    except UnidentifiedImageError:
        raise failure("rejected", "It is damaged, or no image of a known format.") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise failure("rejected", f"The image is damaged ({type(error).__name__}).") from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()
    return image


def _too_many_pixels() -> Exception:
    return failure("over_limit", f"The image has more than {MAX_PIXELS // 1_000_000} million pixels. Shrink it.")


def _in_srgb(image: Any) -> Any:
    """An image in RGB or RGBA, its colours converted from those of its profile."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    mode = "RGBA" if has_alpha else "RGB"
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            alpha = image.getchannel("A") if image.mode == "RGBA" else None
            plain = image.convert("RGB") if image.mode == "RGBA" else image
            converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                if alpha is not None:
                    converted.putalpha(alpha)
                return converted
        except (ImageCms.PyCMSError, OSError):
            # A profile that is damaged, or for another mode, says nothing.
            pass
    if image.mode.startswith(("I", "F")):
        # Sixteen bits and more: convert() would clip what is above 255.
        low, high = image.getextrema()
        image = image.point(lambda value: (value - low) * (255 / ((high - low) or 1))).convert("L")
    return image.convert(mode)


def _on_white(image: Any) -> Any:
    from PIL import Image

    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _encode(image: Any, image_format: str, **options: Any) -> bytes:
    image.info.clear()
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@cache
def _engine() -> Any:
    import logging

    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.WARNING)
    return RapidOCR()


def recognises_text() -> bool:
    """Whether the optional text recognition is installed."""
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


def recognise(content: bytes) -> str:
    """The text in an image, a line each, in reading order; empty where there is none."""
    found = _engine()(content)
    return "\n".join(found.txts or ())
