"""When two texts that look alike don't say the same."""

import re
from collections import Counter

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")


def numbers_in(text: str) -> Counter[str]:
    """How often each number, date or time of day stands in `text`, in digits."""
    return Counter(_NUMBER.findall(text))
