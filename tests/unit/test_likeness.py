"""Which texts have the same numbers."""

import pytest

from activities.store.likeness import numbers_in


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("I like tea.", "Tea is what I like.", True),
        ("born on 3 March 2015", "On 3 March 2015 he was born", True),
        ("born on 3 March", "born on 5 March", False),
        ("at 9:30", "at 9:03", False),
        ("2015-03-03", "2015-03-05", False),
        ("1,000 euros", "1,000 euros and 1 cent", False),
        ("two of 3", "3", False),
    ],
)
def test_numbers(one: str, other: str, same: bool) -> None:
    assert (numbers_in(one) == numbers_in(other)) is same
