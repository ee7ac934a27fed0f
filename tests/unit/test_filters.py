"""What a metadata filter may say, and how it is told that it mayn't."""

from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.store.filters import Condition, Group, parse_filter


def nested(levels: int) -> dict[str, Any]:
    """A filter of `levels` objects inside each other."""
    return {"a": 1} if levels == 1 else {"$and": [nested(levels - 1)]}


def test_a_bare_value_means_equality() -> None:
    assert parse_filter({"lang": "en"}) == Condition("lang", "$eq", ("en",))
    assert parse_filter({"a.b_1.c": None}) == Condition("a.b_1.c", "$eq", (None,))


def test_fields_and_operators_side_by_side_are_all_required() -> None:
    assert parse_filter({"year": {"$gt": 1, "$lte": 9}, "draft": False}) == Group(
        "$and",
        (
            Group("$and", (Condition("year", "$gt", (1,)), Condition("year", "$lte", (9,)))),
            Condition("draft", "$eq", (False,)),
        ),
    )


def test_combinators_nest() -> None:
    assert parse_filter({"$or": [{"a": 1}, {"$not": {"b": {"$in": [1, "x", None]}}}]}) == Group(
        "$or", (Condition("a", "$eq", (1,)), Group("$not", (Condition("b", "$in", (1, "x", None)),)))
    )
    assert parse_filter({"a": {"$not": {"$gt": 1}}}) == Group("$not", (Condition("a", "$gt", (1,)),))


def test_an_empty_filter_asks_for_nothing() -> None:
    assert parse_filter({}) == Group("$and", ())


def test_limits_are_inclusive() -> None:
    parse_filter(nested(5))
    parse_filter({"$or": [{"a": value} for value in range(100)]})
    parse_filter({"a": {"$in": list(range(100))}})
    parse_filter({"a": -(2**63), "b": 2**63 - 1})


@pytest.mark.parametrize(
    ("filter", "reason"),
    [
        ({"$where": "1"}, "operator '$where' isn't allowed; use one of $eq $ne"),
        ({"a": {"$regex": "x"}}, "operator '$regex' isn't allowed; use one of $eq $ne"),
        ({"a": {"$gt": 1, "b": 2}}, "operator 'b' isn't allowed"),
        ({"$nor": [{"a": 1}]}, "operator '$nor' isn't allowed"),
        ({"": 1}, "field name '' isn't allowed"),
        ({"a b": 1}, "field name"),
        ({"a.": 1}, "field name"),
        ({".a": 1}, "field name"),
        ({"a..b": 1}, "field name"),
        ({"1a": 1}, "field name"),
        ({"a\n": 1}, "field name"),
        ({"é": 1}, "field name"),
        ({'a"]; drop table documents; --': 1}, "field name"),
        ({"a[0]": 1}, "field name"),
        ({"a.$b": 1}, "field name"),
        ({"a": {}}, "field 'a' needs a value or an operator"),
        ({"a": [1]}, "for a list use $in"),
        ({"a": {"$eq": {"b": 1}}}, "field 'a' can be compared with"),
        ({"a": {"$in": 1}}, "$in needs a list"),
        ({"a": {"$in": [[1]]}}, "field 'a' can be compared with"),
        ({"a": {"$in": list(range(101))}}, "at most 100 values"),
        ({"a": {"$exists": 1}}, "$exists needs true or false"),
        ({"a": {"$gt": None}}, "$gt needs a number, a string or a boolean"),
        ({"a": {"$not": 1}}, "$not needs an object of operators"),
        ({"$and": []}, "$and needs a list"),
        ({"$or": {"a": 1}}, "$or needs a list"),
        ({"$or": [1]}, "must be an object"),
        ({"$not": [{"a": 1}]}, "must be an object"),
        ({"a": 2**63}, "64 bits"),
        ({"a": float("nan")}, "isn't finite"),
        ({"a": float("inf")}, "isn't finite"),
        (nested(6), "at most 5 levels"),
        ({"$or": [{"a": 1, "b": 2}] * 51}, "at most 100 conditions"),
        ({f"f{number}": 1 for number in range(101)}, "at most 100 conditions"),
    ],
)
def test_what_isnt_allowed_is_rejected_with_the_reason(filter: dict[str, Any], reason: str) -> None:
    with pytest.raises(ApplicationError) as error:
        parse_filter(filter)
    assert error.value.type == "rejected"
    assert error.value.non_retryable
    assert error.value.message.startswith("filter: ")
    assert reason in error.value.message


def test_a_filter_nested_without_end_is_rejected_before_it_is_walked() -> None:
    deep: dict[str, Any] = {"$gt": 1}
    for _ in range(10_000):
        deep = {"$not": deep}
    for filter in ({"a": deep}, {"$not": deep}):
        with pytest.raises(ApplicationError, match="at most 5 levels"):
            parse_filter(filter)
