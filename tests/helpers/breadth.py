"""How broad a pull request's tests are: fewer generated examples, and of a grid of parameters its pairs of values.

`make test-all` runs everything. What a pull request leaves out is breadth alone: no test is left out whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from hypothesis import settings


def examples(most: int) -> int:
    """How many examples a property test tries that asks for `most`: the share of them that the profile takes of
    Hypothesis' usual 100 (see conftest.py), never fewer than 10."""
    return max(10, most * settings().max_examples // 100)


def beyond_pairs(cases: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[bool]:
    """For each case (test, parameters): whether it shows no two values together that no case before it did.

    Without those cases a fault that takes one value, or two together, is still found. A test with one parameter keeps
    all its cases. Values are told apart as objects, which the cases of one grid share.
    """
    seen: defaultdict[str, set[frozenset[tuple[str, int]]]] = defaultdict(set)
    for test, parameters in cases:
        values = [(name, id(value)) for name, value in parameters.items()]
        pairs = {frozenset(pair) for pair in combinations(values, 2)}
        yield len(values) > 1 and pairs <= seen[test]
        seen[test] |= pairs
