"""The types of tool arguments: bounds, and what a model is told about them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

MAX_QUERY = 4_000
MAX_TEXT = 32_000
MAX_RESPONSE = 200_000
MAX_NAME = 256
MAX_WEB_QUERY = 400
MAX_CURSOR = 1_000
MAX_SOURCE = 4_096
MAX_CONTENT = 1_000_000
MAX_GLOB = 256

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
CLOCK_SKEW = timedelta(minutes=5)
"""How far a caller's clock may be ahead. What is dated later could not be replaced by what comes after it."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _says_something(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    if _SURROGATE.search(value):
        raise ValueError("must be valid Unicode, without lone surrogates")
    return value


def check_name(value: str) -> str:
    """A name of a user, a conversation or a collection, as it is.

    Raises:
        ValueError: saying what a name must be.
    """
    if not 1 <= len(value) <= MAX_NAME:
        raise ValueError(f"must have 1 to {MAX_NAME} characters")
    return _check_line(value)


def _check_line(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not hold control characters")
    return _says_something(value)


def _parse_time(value: Any) -> Any:
    if value is None or isinstance(value, datetime):
        return value
    try:
        parsed = datetime.fromisoformat(value)
        parsed = parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time, such as 2026-05-03T14:30:00Z") from None
    if not EARLIEST <= parsed <= datetime.now(UTC) + CLOCK_SKEW:
        raise ValueError("must be between 1970 and now; leave it out for now")
    return parsed


Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY), AfterValidator(_says_something)]
WebQuery = Annotated[str, Field(min_length=1, max_length=MAX_WEB_QUERY), AfterValidator(_says_something)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_says_something)]
Response = Annotated[str, Field(min_length=1, max_length=MAX_RESPONSE), AfterValidator(_says_something)]
Content = Annotated[str, Field(min_length=1, max_length=MAX_CONTENT), AfterValidator(_says_something)]
SourceName = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE), AfterValidator(_check_line)]
Glob = Annotated[str, Field(min_length=1, max_length=MAX_GLOB), AfterValidator(_check_line)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(check_name)]
MemoryId = Annotated[Name, Field(description="As list_memories and retrieve_memory give it.")]
Cursor = Annotated[str, Field(min_length=1, max_length=MAX_CURSOR)]
UserId = Annotated[
    Name | None,
    Field(description="Whose records. Leave out for the authenticated user, or the server's default one."),
]
Timestamp = Annotated[
    datetime | None,
    BeforeValidator(_parse_time),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
    Field(description="ISO 8601, such as 2026-05-03T14:30:00Z; UTC where it has no offset. Now, if left out."),
]
