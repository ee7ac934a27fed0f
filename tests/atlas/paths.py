"""Values of a document at a dotted path, as an index reads them."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from bson import Decimal128, ObjectId


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a path that leads through documents alone, or None."""
    found: Any = record
    for step in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(step)
    return found


def values(record: object, path: str) -> Iterator[Any]:
    """Every value at a path; arrays on the way and at its end stand for their elements."""
    yield from _walk(record, path.split("."))


def _walk(found: object, steps: list[str]) -> Iterator[Any]:
    if isinstance(found, list):
        for one in found:
            if steps or not isinstance(one, list):
                yield from _walk(one, steps)
    elif not steps:
        yield found
    elif isinstance(found, Mapping) and steps[0] in found:
        yield from _walk(found[steps[0]], steps[1:])


def typed(value: object) -> tuple[object, object] | None:
    """A value as an index keeps it, with its kind: 1 and 1.0 are one number, True is none."""
    if value is None or isinstance(value, bool):
        return type(value), value
    if isinstance(value, int | float):
        return float, value
    if isinstance(value, Decimal128):
        return float, float(value.to_decimal())
    if isinstance(value, str):
        return str, str(value)
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return datetime.datetime, aware.astimezone(datetime.UTC)
    if isinstance(value, ObjectId):
        return ObjectId, value
    return None


def scalars(record: object, path: str) -> Iterator[tuple[object, object]]:
    """The indexable values at a path, each once."""
    seen: set[tuple[object, object]] = set()
    for value in values(record, path):
        kept = typed(value)
        if kept is not None and kept not in seen:
            seen.add(kept)
            yield kept
