"""Metadata filters of a document search: a small subset of MongoDB's query language, checked before any engine sees it.

A filter is a JSON object over the built-in fields `source` and `position` and over the metadata stored with a chunk;
a dot goes into nested objects. What each operator means is MongoDB's: a field that holds a list matches where one of
its items does, `$ne` and `$nin` also match chunks that lack the field, null equals a missing field, and values of
different types (numbers, strings, booleans) never match each other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias, get_args

from temporalio.exceptions import ApplicationError

from activities.errors import failure

MAX_DEPTH = 5
MAX_CONDITIONS = 100
MAX_VALUES = 100
"""Most values in the list of one `$in` or `$nin`."""

Scalar: TypeAlias = str | int | float | bool | None
Operator = Literal["$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte", "$exists"]
Combinator = Literal["$and", "$or", "$not"]

_OPERATORS: tuple[Operator, ...] = get_args(Operator)
_COMBINATORS: tuple[Combinator, ...] = get_args(Combinator)
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True)
class Condition:
    """One test of one field. `values` holds one value, or any number of them for `$in` and `$nin`."""

    field: str
    operator: Operator
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Group:
    """Filters combined; `$and` without members matches everything, `$not` has exactly one member."""

    combinator: Combinator
    members: tuple["Node", ...]


Node: TypeAlias = Condition | Group


def parse_filter(filter: dict[str, Any]) -> Node:
    """Check `filter` and turn it into a tree.

    Raises:
        ApplicationError: `rejected`, naming what isn't allowed and what is.
    """
    node = _parse_object(filter, 1)
    if sum(1 for _ in _conditions(node)) > MAX_CONDITIONS:
        raise _rejected(f"at most {MAX_CONDITIONS} conditions are allowed")
    return node


def fields_of(node: Node) -> set[str]:
    """The fields that a filter names."""
    return {condition.field for condition in _conditions(node)}


def _rejected(reason: str) -> ApplicationError:
    return failure("rejected", f"filter: {reason}")


def _conditions(node: Node) -> Iterator[Condition]:
    if isinstance(node, Condition):
        yield node
    else:
        for member in node.members:
            yield from _conditions(member)


def _all(members: list[Node]) -> Node:
    return members[0] if len(members) == 1 else Group("$and", tuple(members))


def _parse_object(filter: Any, depth: int) -> Node:
    """Parse fields and combinators: `{"year": {"$gt": 2020}, "$or": […]}`."""
    if not isinstance(filter, dict):
        raise _rejected("it must be an object, as must each member of $and, $or and $not")
    if depth > MAX_DEPTH:
        raise _rejected(f"at most {MAX_DEPTH} levels of nesting are allowed")
    if len(filter) > MAX_CONDITIONS:
        raise _rejected(f"at most {MAX_CONDITIONS} conditions are allowed")
    members: list[Node] = []
    for name, value in filter.items():
        if name == "$not":
            members.append(Group("$not", (_parse_object(value, depth + 1),)))
        elif name == "$and" or name == "$or":
            if not isinstance(value, list) or not 0 < len(value) <= MAX_CONDITIONS:
                raise _rejected(f"{name} needs a list of 1 to {MAX_CONDITIONS} objects")
            members.append(Group(name, tuple(_parse_object(member, depth + 1) for member in value)))
        elif name.startswith("$"):
            raise _unknown_operator(name)
        elif not _FIELD.fullmatch(name):
            raise _rejected(
                f"field name {name[:60]!r} isn't allowed; use letters, digits and underscores, with dots between names"
            )
        else:
            members.append(_parse_field(name, value, depth))
    return _all(members)


def _parse_field(field: str, value: Any, depth: int) -> Node:
    """Parse what is asked of one field: a value that it equals, or operators."""
    if not isinstance(value, dict):
        return Condition(field, "$eq", (_scalar(field, value),))
    if not value:
        raise _rejected(f"field {field!r} needs a value or an operator")
    if depth > MAX_DEPTH:
        raise _rejected(f"at most {MAX_DEPTH} levels of nesting are allowed")
    members: list[Node] = []
    for operator, operand in value.items():
        if operator == "$not":
            if not isinstance(operand, dict):
                raise _rejected("$not needs an object of operators")
            members.append(Group("$not", (_parse_field(field, operand, depth + 1),)))
        elif operator not in _OPERATORS:
            raise _unknown_operator(operator)
        else:
            members.append(Condition(field, operator, _values(field, operator, operand)))
    return _all(members)


def _values(field: str, operator: Operator, operand: Any) -> tuple[Scalar, ...]:
    """Check what an operator is given."""
    if operator in ("$in", "$nin"):
        if not isinstance(operand, list) or len(operand) > MAX_VALUES:
            raise _rejected(f"{operator} needs a list of at most {MAX_VALUES} values")
        return tuple(_scalar(field, value) for value in operand)
    if operator == "$exists" and not isinstance(operand, bool):
        raise _rejected("$exists needs true or false")
    if operator in ("$gt", "$gte", "$lt", "$lte") and operand is None:
        raise _rejected(f"{operator} needs a number, a string or a boolean")
    return (_scalar(field, operand),)


def _scalar(field: str, value: Any) -> Scalar:
    """Check one value; integers must fit into the 64 bits that both engines store."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _rejected(f"the integer for field {field!r} doesn't fit into 64 bits")
    if isinstance(value, float) and not isfinite(value):
        raise _rejected(f"the number for field {field!r} isn't finite")
    if value is None or isinstance(value, str | int | float):
        return value
    raise _rejected(f"field {field!r} can be compared with a string, a number, a boolean or null; for a list use $in")


def _unknown_operator(name: Any) -> ApplicationError:
    allowed = " ".join((*_OPERATORS, *_COMBINATORS))
    return _rejected(f"operator '{str(name)[:60]}' isn't allowed; use one of {allowed}")
