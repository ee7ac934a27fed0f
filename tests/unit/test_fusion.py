"""Reciprocal rank fusion, checked against numbers worked out by hand."""

import pytest

from activities.store.fusion import candidates, fuse


def test_a_record_first_in_every_leg_scores_one() -> None:
    for weight in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0):
        assert fuse([(weight, ["a"]), (1 - weight, ["a"])]) == [("a", 1.0)]


def test_scores_follow_the_formula() -> None:
    assert fuse([(0.75, ["a", "b"]), (0.25, ["b", "c"])]) == [
        ("b", 0.75 * 61 / 62 + 0.25),
        ("a", 0.75),
        ("c", 0.25 * 61 / 62),
    ]


def test_a_leg_of_weight_zero_is_ignored() -> None:
    assert fuse([(1.0, ["a"]), (0.0, ["b"])]) == [("a", 1.0)]


def test_ties_go_to_the_lower_id() -> None:
    assert [record_id for record_id, _ in fuse([(0.5, ["b", "a"]), (0.5, ["a", "b"])])] == ["a", "b"]
    assert [record_id for record_id, _ in fuse([(0.5, ["z"]), (0.5, ["y"])])] == ["y", "z"]


def test_nothing_to_fuse() -> None:
    assert fuse([]) == []
    assert fuse([(0.5, []), (0.5, [])]) == []


@pytest.mark.parametrize(("limit", "expected"), [(1, 50), (10, 50), (11, 55), (100, 500), (1000, 500)])
def test_candidates_are_five_times_the_limit_from_50_to_500(limit: int, expected: int) -> None:
    assert candidates(limit) == expected
