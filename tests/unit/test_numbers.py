"""Which numbers a text has."""

import pytest

from activities.numbers import mark_numbers


def numbers_in(text: str) -> list[str]:
    return sorted(mark_numbers(text)[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I like tea.", "Tea is what I like, and one cake."),
        ("born on 3 March 2015", "On 3 March 2015 he was born"),
        ("two", "2"),
        ("twenty-five men", "25 men"),
        ("two hundred and five thousand", "205,000"),
        ("in 1,5 litres", "in 1.5 litres"),
        ("the second one", "the 2nd"),
        ("World War II", "world war 2"),
        ("at 2:05 pm", "at 14:05"),
        ("at 12 a.m.", "at 0:00"),
        ("2024-05-01", "2024-5-1"),
        ("٤٢", "42"),
        ("ten seconds, not a second more", "10 s"),
    ],
)
def test_the_same_numbers(one: str, other: str) -> None:
    assert numbers_in(one) == numbers_in(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("born on 3 March", "born on 5 March"),
        ("at 9:30", "at 9:03"),
        ("at 7 am", "at 7 pm"),
        ("2015-03-03", "2015-03-05"),
        ("1,000 euros", "1,000 euros and 1 cent"),
        ("two of 3", "3"),
        ("five twenty", "twenty-five"),
        ("version 3.1", "version 3.10"),
        ("-5 degrees", "5 degrees"),
        ("40,000", "400,000"),
    ],
)
def test_other_numbers(one: str, other: str) -> None:
    assert numbers_in(one) != numbers_in(other)
