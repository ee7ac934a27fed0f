"""Numbers, dates and times in a text, however they are written."""

import re
from unicodedata import decimal, normalize

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINAL_UNITS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_ORDINAL_TENS = "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth"
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}


def _values(units: str, tens: str) -> dict[str, int]:
    values = {word: number for number, word in enumerate(units.split())}
    return values | {word: 10 * number for number, word in enumerate(tens.split(), 2)}


CARDINALS = _values(_UNITS, _TENS)
"""What the English words for single numbers below 100 stand for."""

_VALUES = {
    **CARDINALS,
    **_values(_ORDINAL_UNITS, _ORDINAL_TENS),
    "twice": 2,
    "dozen": 12,
}

_TOKEN = re.compile(
    r"(?P<date>\d{4}-\d{1,2}-\d{1,2})(?!\d)"
    r"|(?P<hour>\d{1,2})(?:[:.](?P<minute>\d{2}))?\s?(?P<half>[ap])\.?m\b\.?"
    r"|(?P<digits>(?<![\w.,)-])[-−]?\d+(?:[.,:/-]\d+)*|\d+(?:[.,:/-]\d+)*)(?:st|nd|rd|th)?"
    r"|(?P<roman>\b[IVX]{2,}\b)"
    r"|(?P<word>[^\W\d_]+)"
)
_ROMAN = {"I": 1, "V": 5, "X": 10}
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SECOND_IS_A_UNIT = frozenset({"a", "an", "per", "each", "every", "one"})


def _digits(text: str) -> str:
    """`text` with the digits of all scripts as ASCII."""
    return "".join(str(decimal(character)) if character.isdecimal() else character for character in text)


def _written(digits: str) -> str:
    """One number in digits, however it was grouped or padded."""
    digits = digits.replace("−", "-")
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    if re.fullmatch(r"-?\d+,\d+", digits):
        digits = digits.replace(",", ".")
    return re.sub(r"(?<![\d.:])0+(?=\d)", "", digits)


def _roman(numeral: str) -> int:
    values = [_ROMAN[letter] for letter in numeral]
    return sum(-value if value < after else value for value, after in zip(values, [*values[1:], 0], strict=True))


def mark_numbers(text: str) -> tuple[list[str], str]:
    """The numbers, dates and times of day in `text`, each in one spelling, and the text with #number for each.

    In digits of any script, in English words up to billions, and in Roman numerals from II: "40,000" and "forty
    thousand", "2nd" and "second", "2:05 pm" and "14:05" are the same; a date in ISO 8601 is its three numbers. "One" in
    words is mostly no number and isn't one here, nor is the "second" of time.
    """
    numbers: list[str] = []
    marked: list[str] = []
    text = _digits(normalize("NFKC", text))
    # The number in words that is being read: its finished part, its last part below 1,000, and whether there is one.
    total, part, reading, words = 0, 0, False, 0
    previous, last, place = "", "", 0

    def add(*found: str) -> None:
        numbers.extend(found)
        marked.extend(f" #{number} " for number in found)

    def finish() -> None:
        nonlocal total, part, reading, words
        if reading and not (words == 1 and last == "one"):
            add(str(total + part))
        total, part, reading, words = 0, 0, False, 0

    for match in _TOKEN.finditer(text):
        between, place = text[place : match.start()], match.end()
        word = (match["word"] or "").casefold()
        joined = reading and not between.strip(" -")
        if not (joined and (word == "and" or word in _VALUES or word in _SCALES)):
            finish()
        marked.append(between)
        is_unit_of_time = word == "second" and (previous in _SECOND_IS_A_UNIT or previous.isdecimal())
        taken = True
        if match["date"]:
            add(*(number.lstrip("0") or "0" for number in match["date"].split("-")))
        elif match["hour"] and int(match["hour"]) <= 12:
            hour = int(match["hour"]) % 12 + (12 if match["half"] == "p" else 0)
            add(f"{hour}:{match['minute'] or '00'}")
        elif match["hour"] or match["digits"]:
            add(_written(match["digits"] or match["hour"]))
        elif match["roman"]:
            add(str(_roman(match["roman"])))
        elif word in _VALUES and not is_unit_of_time:
            value = _VALUES[word]
            # "Twenty-five" is one number, "two three" and "five twenty" are two.
            if reading and part % 100 and not (part % 100 >= 20 and part % 10 == 0 and value < 10):
                finish()
            part, reading, words, last = part + value, True, words + 1, word
        elif word in _SCALES and (reading or previous in ("a", "")):
            scale = _SCALES[word]
            if scale == 100:
                part = (part or 1) * 100
            else:
                total, part = total + (part or 1) * scale, 0
            reading, words, last = True, words + 1, word
        elif word == "and" and reading:
            pass
        else:
            taken = False
        if not taken:
            marked.append(match[0])
        previous = word or match["digits"] or ""
    finish()
    marked.append(text[place:])
    return numbers, "".join(marked)
