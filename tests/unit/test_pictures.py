"""Images as vision models take them."""

import io

import pytest
from PIL import Image, ImageCms

from activities.pictures import MAX_BYTES, Picture, prepare, recognise
from tests.contract.records import fails
from tests.documents import WORDS, image

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "HEIF", "TIFF"]


def opened(picture: Picture) -> Image.Image:
    shown = Image.open(io.BytesIO(picture.content))
    assert shown.size == (picture.width, picture.height)
    assert shown.format == {"image/png": "PNG", "image/jpeg": "JPEG"}[picture.media_type]
    shown.load()
    return shown


def encoded(picture: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_of_each_format_is_prepared(image_format: str) -> None:
    picture = prepare(image(image_format), 450)
    shown = opened(picture)
    assert shown.size == (450, 80)
    assert shown.mode in ("RGB", "P", "L")
    assert picture.media_type == ("image/png" if image_format in ("PNG", "GIF", "TIFF") else "image/jpeg")


def test_a_small_image_is_not_enlarged() -> None:
    assert opened(prepare(image("PNG", size=(40, 30), words=""), 1568)).size == (40, 30)


def test_an_image_is_turned_upright_and_says_nothing_of_where_it_was_taken() -> None:
    plain = Image.new("RGB", (60, 20), "blue")
    plain.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by ninety degrees.
    exif[0x010E] = "taken at home"
    shown = opened(prepare(encoded(plain, "JPEG", exif=exif, quality=95), 1568))
    assert shown.size == (20, 60)
    red, _, blue = shown.convert("RGB").getpixel((10, 5))  # type: ignore[misc]
    assert red > 200
    assert blue < 60
    assert not shown.getexif()
    assert b"home" not in prepare(encoded(plain, "PNG", exif=exif), 1568).content


def test_colours_are_converted_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    rgb = Image.new("RGB", (8, 8), (200, 30, 30))
    damaged = prepare(encoded(rgb, "PNG", icc_profile=b"no profile"), 100)
    assert opened(damaged).convert("RGB").getpixel((4, 4)) == (200, 30, 30)
    assert opened(prepare(encoded(rgb, "PNG", icc_profile=lab.tobytes()), 100)).size == (8, 8)
    cmyk = opened(prepare(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), 100))
    red, green, _ = cmyk.convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    assert red > 200
    assert green < 60


def test_what_shines_through_is_white() -> None:
    clear = Image.effect_noise((1300, 1300), 100).convert("RGBA")
    clear.putalpha(0)
    noisy = prepare(encoded(clear, "WEBP", lossless=True, exact=True), 1300)
    assert noisy.media_type == "image/jpeg"
    assert opened(noisy).convert("RGB").getpixel((600, 600)) == (255, 255, 255)
    assert opened(prepare(encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 0)), "PNG"), 100)).mode in ("RGBA", "P", "LA")


def test_an_image_of_sixteen_bits_keeps_its_shades() -> None:
    deep = Image.new("I;16", (4, 1))
    for x, value in enumerate((0, 20_000, 40_000, 65_535)):
        deep.putpixel((x, 0), value)
    shown = opened(prepare(encoded(deep, "PNG"), 100)).convert("L")
    shades = list(shown.tobytes())
    assert shades == sorted(set(shades))


def test_a_large_image_is_small_enough_for_the_model() -> None:
    noise = Image.effect_noise((2400, 2400), 120).convert("RGB")
    picture = prepare(encoded(noise, "PNG"), 8000)
    assert picture.media_type == "image/jpeg"
    assert len(picture.content) <= MAX_BYTES
    opened(picture)


def test_of_a_moving_image_the_first_frame_is_shown() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert opened(prepare(moving, 100)).convert("RGB").getpixel((4, 4)) == (255, 0, 0)


def test_what_is_no_image_is_refused() -> None:
    with fails("rejected", "no image"):
        prepare(b"<svg/>", 100)
    with fails("rejected", "damaged"):
        prepare(image("PNG")[:400], 100)
    with fails("rejected"):
        prepare(b"", 100)


def test_an_image_that_explodes_is_refused() -> None:
    bomb = encoded(Image.new("1", (11_000, 11_000)), "PNG")
    assert len(bomb) < 100_000
    with fails("over_limit", "100 million pixels"):
        prepare(bomb, 100)


def test_text_in_an_image_is_recognised() -> None:
    assert recognise(image("PNG")) == WORDS
    assert recognise(prepare(image("JPEG"), 600).content) == WORDS
    assert recognise(image("PNG", words="")) == ""
