"""A pull request's tests are fewer, and leave out no value, no two values together, and no test."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

from breadth import beyond_pairs, examples
from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_every_two_values_of_a_grid_still_meet(sizes: list[int]) -> None:
    values = [[object() for _ in range(size)] for size in sizes]
    grid: list[dict[str, Any]] = [dict(zip("abcd", case, strict=False)) for case in product(*values)]
    kept = [
        case for case, left_out in zip(grid, beyond_pairs(("test", case) for case in grid), strict=True) if not left_out
    ]
    for width in (1, min(2, len(sizes))):
        for names in combinations("abcd"[: len(sizes)], width):
            assert {tuple(map(id, map(case.get, names))) for case in kept} == {
                tuple(map(id, map(case.get, names))) for case in grid
            }
    if len(sizes) > 2 and min(sizes) > 1:
        assert len(kept) < len(grid)


def test_tests_do_not_speak_for_one_another() -> None:
    case = {"a": 1, "b": 2}
    assert list(beyond_pairs([("one", case), ("one", case), ("other", case)])) == [False, True, False]
    assert list(beyond_pairs([("one", {}), ("one", {}), ("two", {"a": 1}), ("two", {"a": 1})])) == [False] * 4


def test_the_profile_scales_the_examples_a_test_asks_for() -> None:
    share = settings().max_examples
    assert examples(300) == 3 * share
    assert examples(20) == max(10, share // 5)
