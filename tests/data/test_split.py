from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.data.messages import Row
from qdora_fast.data.split import group_key, hold_out
from qdora_fast.errors import DataError


def row(question: str, answer: str = "a") -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "tools": None, "meta": {"source": "x:1", "row": 1, "hash": ""}}


def held_prompts(rows: list[Row], share: float = 0.1, seed: int = 42) -> set[str]:
    return {group_key(row) for row, held in zip(rows, hold_out(rows, share, seed), strict=True) if held}


@pytest.mark.parametrize(("count", "share", "expected"), [(10, 0.01, 1), (100, 0.1, 10), (37, 0.25, 9), (50, 0.0, 0)])
def test_the_share_is_exact_when_prompts_differ(count: int, share: float, expected: int) -> None:
    assert sum(hold_out([row(f"q{i}") for i in range(count)], share, 1)) == expected


questions = st.lists(st.sampled_from("abcdefghijkl"), min_size=10, max_size=80).filter(lambda qs: len(set(qs)) > 1)


@given(questions, st.floats(0.01, 0.89), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_no_prompt_lies_on_both_sides_in_any_order(
    names: list[str], share: float, seed: int, shuffler: random.Random
) -> None:
    rows = [row(name) for name in names]
    held = hold_out(rows, share, seed)
    inside = {name for name, side in zip(names, held, strict=True) if side}
    assert inside.isdisjoint(name for name, side in zip(names, held, strict=True) if not side)
    assert 1 <= sum(held) < len(rows)
    shuffler.shuffle(rows)
    assert held_prompts(rows, share, seed) == {group_key(row(name)) for name in inside}


@given(questions, st.floats(0.05, 0.5), st.integers(0, 1000))
def test_the_share_is_missed_by_less_than_a_group(names: list[str], share: float, seed: int) -> None:
    taken = sum(hold_out([row(name) for name in names], share, seed))
    target = max(1, round(share * len(names)))
    assert abs(target - taken) < max(names.count(name) for name in names)


def test_adding_rows_moves_few_prompts() -> None:
    old = [row(f"question {i}") for i in range(1000)]
    before = held_prompts(old)
    after = held_prompts(old + [row(f"new question {i}") for i in range(100)])
    assert len(before & after) >= 90


def test_the_seed_chooses_other_prompts() -> None:
    rows = [row(f"question {i}") for i in range(100)]
    assert held_prompts(rows, seed=1) != held_prompts(rows, seed=2)


def test_what_makes_two_prompts_the_same() -> None:
    assert group_key(row("What  is\nIT?", "a")) == group_key(row("what is it?", "b"))
    assert group_key(row("cafe\u0301")) == group_key(row("caf\u00e9"))
    assert group_key(row("दिन")) != group_key(row("दान"))  # vowel signs carry meaning
    assert group_key(row("x\u00b2")) != group_key(row("x2"))


def test_plain_text_is_its_own_prompt() -> None:
    rows: list[Row] = [row("") | {"messages": [], "text": f"story {i // 2}"} for i in range(20)]
    assert sum(hold_out(rows, 0.1, 1)) == 2
    assert len(held_prompts(rows)) == 1


def test_too_few_rows_or_one_prompt_only_are_refused() -> None:
    with pytest.raises(DataError, match=r"9 usable rows are too few .* set data.held_out: 0"):
        hold_out([row(f"q{i}") for i in range(9)], 0.1, 1)
    with pytest.raises(DataError, match="all rows have the same prompt"):
        hold_out([row("same", str(i)) for i in range(20)], 0.1, 1)
    assert hold_out([row("q")] * 3, 0, 1) == [False] * 3
