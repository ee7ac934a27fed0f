"""Which time a question speaks of."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.store.periods import FADING, Period, periods_in

ASKED = datetime(2026, 5, 13, 15, 30, tzinfo=UTC)
"""A Wednesday."""


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("What did I say today?", "2026-05-13", "2026-05-14"),
        ("yesterday", "2026-05-12", "2026-05-13"),
        ("three days ago", "2026-05-10", "2026-05-11"),
        ("a couple of days ago", "2026-05-11", "2026-05-12"),
        ("this week", "2026-05-11", "2026-05-18"),
        ("last  week", "2026-05-04", "2026-05-11"),
        ("two weeks ago", "2026-04-27", "2026-05-04"),
        ("this month", "2026-05-01", "2026-06-01"),
        ("Last month", "2026-04-01", "2026-05-01"),
        ("5 months ago", "2025-12-01", "2026-01-01"),
        ("last year", "2025-01-01", "2026-01-01"),
        ("ten years ago", "2016-01-01", "2017-01-01"),
        ("last Monday", "2026-05-11", "2026-05-12"),
        ("this Wednesday", "2026-05-13", "2026-05-14"),
        ("last Wednesday", "2026-05-06", "2026-05-07"),
        ("on 2023-02-28", "2023-02-28", "2023-03-01"),
        ("in 2023-12", "2023-12-01", "2024-01-01"),
        ("7 May 2023", "2023-05-07", "2023-05-08"),
        ("the 7th of May, 2023", "2023-05-07", "2023-05-08"),
        ("May 7, 2023", "2023-05-07", "2023-05-08"),
        ("December 2022", "2022-12-01", "2023-01-01"),
        ("in Sept. 2022", "2022-09-01", "2022-10-01"),
        ("back in 2019?", "2019-01-01", "2020-01-01"),
    ],
)
def test_a_period_is_found(text: str, start: str, end: str) -> None:
    assert periods_in(text, ASKED) == [Period(day(start), day(end))]


@pytest.mark.parametrize(
    ("text", "month", "date"),
    [("in May", 5, None), ("on 3 March", 3, 3), ("since january", 1, None), ("mid-December", 12, None)],
)
def test_a_month_without_a_year_is_any_years(text: str, month: int, date: int | None) -> None:
    (period,) = periods_in(text, ASKED)
    assert (period.month, period.day) == (month, date)
    for year in (1999, 2024):
        assert period.nearness(datetime(year, month, date or 20, 12, tzinfo=UTC)) == 1
        assert period.nearness(datetime(year, (month + 5) % 12 + 1, 15, tzinfo=UTC)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "May I ask something?",
        "how do soldiers march?",
        "who painted this?",
        "30 February 2023",
        "the last waltz",
        "a thousand and 12345",
        "1000 days ago, and 999999999999 years ago",
    ],
)
def test_no_period_is_made_up(text: str) -> None:
    assert periods_in(text, ASKED) == []


def test_a_question_may_name_several() -> None:
    assert periods_in("Was it in 2019 or in 2021?", ASKED) == [
        Period(day("2019-01-01"), day("2020-01-01")),
        Period(day("2021-01-01"), day("2022-01-01")),
    ]


def test_a_period_is_counted_from_the_day_that_it_is_in_utc() -> None:
    late = datetime.fromisoformat("2026-05-13T23:30:00-05:00")
    assert periods_in("yesterday", late) == [Period(day("2026-05-13"), day("2026-05-14"))]


def test_nearness_falls_to_nothing_on_either_side() -> None:
    period = Period(day("2026-05-01"), day("2026-05-02"))
    assert period.nearness(day("2026-05-01")) == 1
    assert period.nearness(day("2026-05-02") + FADING / 2) == 0.5
    assert period.nearness(day("2026-05-01") - FADING / 4) == 0.75
    assert period.nearness(day("2026-05-01") - FADING) == period.nearness(day("2027-01-01")) == 0


def test_the_turn_of_a_year_is_near_to_december_and_january() -> None:
    (december,) = periods_in("in December", ASKED)
    assert december.nearness(day("2026-01-01") + FADING / 2) == 0.5
    (leap_day,) = periods_in("on 29 February", ASKED)
    assert leap_day.nearness(day("2024-02-29")) == 1
    assert leap_day.nearness(day("2023-03-01")) == 0
    assert december.nearness(datetime.max.replace(tzinfo=UTC)) == 0


NUMBER = st.one_of(st.integers(0, 10**12), st.sampled_from(["a", "one", "two", "seven", "couple of", "few"]))
UNITS = st.sampled_from(["day", "days", "week", "weeks", "month", "months", "year", "years"])
MONTHS = st.sampled_from(["May", "march", "Sept", "February", "Dec."])
WORDS = st.one_of(
    st.builds("{} {} ago".format, NUMBER, UNITS),
    st.builds("{} {} {}".format, st.integers(0, 99), MONTHS, st.integers(0, 2100)),
    st.builds("{:04}-{:02}-{:02}".format, st.integers(0, 9999), st.integers(0, 99), st.integers(0, 99)),
    st.builds("in {}".format, MONTHS),
    st.sampled_from(["last week", "this month", "last friday", "yesterday"]),
    st.text(max_size=20),
)
MOMENTS = st.datetimes(timezones=st.just(UTC)) | st.sampled_from([datetime.min, datetime.max]).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(st.lists(WORDS, max_size=4).map(" ".join), st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)), MOMENTS)
def test_whatever_is_asked_whenever_nearness_is_from_0_to_1(text: str, asked: datetime, moment: datetime) -> None:
    for period in periods_in(text, asked):
        assert 0 <= period.nearness(moment) <= 1


@given(st.integers(0, 999), st.sampled_from(["day", "week"]), st.datetimes(datetime(1990, 1, 1), datetime(9000, 1, 1)))
def test_what_is_so_long_ago_lies_in_the_period(count: int, unit: str, asked: datetime) -> None:
    asked = asked.replace(tzinfo=UTC)
    (period,) = periods_in(f"{count} {unit}s ago", asked)
    assert period.start <= asked - count * timedelta(**{f"{unit}s": 1}) < period.end


def test_no_text_names_more_periods_than_are_worth_comparing() -> None:
    assert len(periods_in("1 jan " * 5000, ASKED)) == 1
    many = " ".join(f"{day} jan {year}" for year in range(2000, 2020) for day in range(1, 20))
    assert len(periods_in(many, ASKED)) == 16
    assert periods_in("may " * 8000, ASKED) == []
    assert periods_in("x " * 5000 + "in May 2023", ASKED) == []
