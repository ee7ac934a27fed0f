"""Times as the stores keep them, exact: in microseconds since 1970."""

from datetime import UTC, datetime, timedelta

STAGED_FOR = timedelta(days=7)
"""How long a vector is kept whose chunk isn't stored."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(micros: int) -> datetime:
    """The same in UTC, given microseconds since 1970."""
    return _EPOCH + micros * _MICROSECOND
