"""The time that a question speaks of: dates, months and years (English), and days counted from when it was asked."""

import re
from calendar import month_name
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

DAY = timedelta(days=1)
_EVER = datetime(1, 1, 1, tzinfo=UTC)
FADING = timedelta(days=7)
"""How far outside a period what was said may still be about it."""

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "couple of": 2, "three": 3, "few": 3, "four": 4, "five": 5, "six": 6}
_NUMBERS |= {"seven": 7, "eight": 8, "nine": 9, "ten": 10}
_WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTH = "|".join(rf"{name[:3]}(?:{name[3:]})?" for name in map(str.lower, month_name[1:])) + "|sept"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:19|20)\d\d"
_ISO = re.compile(rf"\b({_YEAR})-(\d\d)(?:-(\d\d))?\b")
_DATE = re.compile(
    rf"(?:\b(?P<before>{_DAY})(?:\s+of)?\s+)?\b(?P<month>{_MONTH})\b\.?(?:\s+(?P<after>{_DAY})\b)?"
    rf"(?:,?\s+(?:of\s+)?(?P<year>{_YEAR})\b)?"
)
_ONLY_YEAR = re.compile(rf"\b{_YEAR}\b")
_COUNTED = re.compile(rf"\b({'|'.join(_NUMBERS)}|\d{{1,3}})\s+(day|week|month|year)s?\s+ago\b")
_NAMED = re.compile(rf"\b(today|yesterday|(?:this|last)\s+(?:week|month|year|{'|'.join(_WEEKDAYS)}))\b")
# These are words of their own too: "may" and "march" are months after a word that leads to a time.
_AMBIGUOUS = ("may", "mar", "march")
_LEADING = re.compile(
    r"\b(?:in|on|of|during|early|late|mid|since|until|till|by|before|after|around|last|this|from)[\s-]+$"
)


MAX_CHARACTERS = 4_000
"""How much of a text is read."""
MAX_PERIODS = 16
"""How many periods a text can name."""
LED_WITHIN = 32
"""How many characters before a month what leads to it can stand."""


@dataclass(frozen=True)
class Period:
    """A stretch of time, `start` included and `end` not; where `month` is set, any year's.

    Attributes:
        month: 1 to 12 for a month, or a day of it, whose year the text leaves open.
        day: That day.
    """

    start: datetime = _EVER
    end: datetime = _EVER
    month: int | None = None
    day: int | None = None

    def nearness(self, moment: datetime) -> float:
        """1 for a moment within the period, falling linearly to 0 at FADING before or after it."""
        if self.month is None:
            stretches = [(self.start, self.end)]
        else:
            years = (moment.year - 1, moment.year, moment.year + 1)
            stretches = [stretch for year in years if (stretch := _dates(year, self.month, self.day))]
        gaps = [max(start - moment, moment - end, timedelta()) for start, end in stretches]
        return max(0.0, 1 - min(gaps) / FADING) if gaps else 0.0


def _dates(year: int, month: int | None, day: int | None) -> tuple[datetime, datetime] | None:
    """A year, a month of it or a day of that; None where the calendar has none, or no day after it."""
    try:
        start = datetime(year, month or 1, day or 1, tzinfo=UTC)
        if day:
            return start, start + DAY
        if month:
            return start, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return start, datetime(year + 1, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _since(unit: str, count: int, today: datetime) -> tuple[datetime, datetime]:
    """The day, week, month or year that lies so many before the one of `today`."""
    if unit == "day":
        start = today - count * DAY
        return start, start + DAY
    if unit == "week":
        start = today - (today.weekday() + 7 * count) * DAY
        return start, start + 7 * DAY
    months = today.year * 12 + today.month - 1 - (12 * count if unit == "year" else count)
    return _dates(months // 12, months % 12 + 1 if unit == "month" else None, None) or (today, today + DAY)


def periods_in(text: str, asked_at: datetime) -> list[Period]:
    """The periods that `text` names, in UTC; those counted back ("last week", "three days ago") from `asked_at`.

    At most MAX_PERIODS, each once, of the first MAX_CHARACTERS: each is compared with every message found.
    """
    today = asked_at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return list(islice(dict.fromkeys(_periods(text[:MAX_CHARACTERS].lower(), today)), MAX_PERIODS))


def _periods(text: str, today: datetime) -> Iterator[Period]:
    for count, unit in _COUNTED.findall(text):
        number = _NUMBERS.get(count) or int(count)
        # Nobody stored anything before the first year.
        if number < 1000:
            yield Period(*_since(unit, min(number, today.year - 1), today))
    for (name,) in (match.groups() for match in _NAMED.finditer(text)):
        which, _, unit = " ".join(name.split()).partition(" ")
        if unit in _WEEKDAYS:
            back = (today.weekday() - _WEEKDAYS.index(unit)) % 7
            yield Period(*_since("day", back or 7 * (which == "last"), today))
        elif unit:
            yield Period(*_since(unit, which == "last", today))
        else:
            yield Period(*_since("day", which == "yesterday", today))
    dated = False
    for year, month, day in _ISO.findall(text):
        if (dates := _dates(int(year), int(month), int(day) if day else None)) is not None:
            dated = True
            yield Period(*dates)
    for match in _DATE.finditer(text):
        day_text, year_text = match["before"] or match["after"], match["year"]
        begin = match.start("month")
        led = _LEADING.search(text[max(0, begin - LED_WITHIN) : begin])
        if match["month"] in _AMBIGUOUS and not (day_text or year_text or led):
            continue
        month = [name[:3].lower() for name in month_name].index(match["month"][:3])
        day = int(re.sub(r"\D", "", day_text)) if day_text else None
        if day is not None and not 1 <= day <= 31:
            day = None
        dated = True
        if not year_text:
            yield Period(month=month, day=day)
        elif (dates := _dates(int(year_text), month, day)) is not None:
            yield Period(*dates)
    if not dated:
        yield from (Period(*dates) for year in _ONLY_YEAR.findall(text) if (dates := _dates(int(year), None, None)))
