from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.data.clean.split import group_key, hold_out, merge_groups, strata_without
from qdora_fast.data.read.messages import Row
from qdora_fast.system.errors import DataError


def row(question: str, answer: str = "a") -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "tools": None, "meta": {"source": "x:1", "row": 1, "hash": ""}}


def held_groups(groups: Sequence[str], share: float = 0.1, seed: int = 42) -> set[str]:
    return {group for group, held in zip(groups, hold_out(groups, share, seed), strict=True) if held}


def names(count: int, start: str = "question") -> list[str]:
    return [f"{start} {number}" for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("count", "share", "least", "most"),
    [
        (10, 0.01, 1, 1),
        (11, 0.1, 1, 1),  # no number of rows lies between 1.1 and 1.65: the smaller side
        (20, 0.1, 2, 3),
        (30, 0.1, 3, 4),
        (37, 0.25, 10, 13),
        (100, 0.1, 10, 15),
        (2000, 0.1, 200, 300),
        (50, 0.0, 0, 0),
        (20, 0.89, 18, 19),
    ],
)
def test_the_share_lies_between_what_was_asked_for_and_half_as_much_again(
    count: int, share: float, least: int, most: int, seed: int
) -> None:
    assert least <= sum(hold_out(names(count), share, seed)) <= most


questions = st.lists(st.sampled_from("abcdefghijkl"), min_size=10, max_size=80).filter(lambda qs: len(set(qs)) > 1)
shares = st.floats(0.01, 0.89)


@given(questions, shares, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_no_group_lies_on_both_sides_in_any_order(
    groups: list[str], share: float, seed: int, shuffler: random.Random
) -> None:
    held = hold_out(groups, share, seed)
    inside = {group for group, side in zip(groups, held, strict=True) if side}
    assert inside.isdisjoint(group for group, side in zip(groups, held, strict=True) if not side)
    assert 1 <= sum(held) < len(groups)
    shuffler.shuffle(groups)
    assert held_groups(groups, share, seed) == inside


@given(questions, st.floats(0.05, 0.5), st.integers(0, 1000))
def test_the_share_is_missed_by_less_than_a_group(groups: list[str], share: float, seed: int) -> None:
    taken = sum(hold_out(groups, share, seed))
    sizes = Counter(groups)
    smallest, largest = min(sizes.values()), max(sizes.values())
    assert taken <= max(1.5 * share * len(groups), smallest)
    assert taken > share * len(groups) - largest


def test_a_group_too_large_is_passed_over_for_smaller_ones() -> None:
    groups = ["large"] * 40 + names(60)
    assert all(not hold_out(groups, 0.1, seed)[:40].any() for seed in range(50))


def test_if_every_group_is_too_large_the_smallest_is_held_out() -> None:
    groups = ["a"] * 50 + ["b"] * 40 + ["c"] * 60
    assert held_groups(groups) == {"b"}


@pytest.mark.parametrize("seed", range(5))
def test_adding_rows_moves_none_that_are_held_out(seed: int) -> None:
    old = names(3000)
    before = held_groups(old, seed=seed)
    after = held_groups(old + names(300, "new") + old[:100], seed=seed)
    assert after & set(old) == before
    assert 20 <= len(after - before) <= 60


def test_in_small_sets_adding_rows_moves_few() -> None:
    moved = []
    for seed in range(40):
        old = names(100)
        moved.append(len(held_groups(old, seed=seed) ^ (held_groups(old + names(10, "new"), seed=seed) & set(old))))
    assert sum(moved) <= 40  # of about 500 rows held out


def test_the_seed_chooses_other_groups() -> None:
    assert held_groups(names(100), seed=1) != held_groups(names(100), seed=2)


def test_keys_may_be_text_bytes_or_an_array() -> None:
    keys = [f"key {number:03}" for number in range(200)]
    as_array = np.frombuffer("".join(keys).encode(), np.uint8).reshape(200, 7)
    expected = hold_out(keys, 0.1, 1).tolist()
    assert hold_out([key.encode() for key in keys], 0.1, 1).tolist() == expected
    assert hold_out(as_array, 0.1, 1).tolist() == expected


def test_each_stratum_has_its_share() -> None:
    strata = ["hindi"] * 200 + ["telugu"] * 1000 + ["tamil"] * 50
    held = hold_out(names(1250), 0.1, 3, strata=strata)
    counts = Counter(stratum for stratum, side in zip(strata, held, strict=True) if side)
    assert 20 <= counts["hindi"] <= 30
    assert 100 <= counts["telugu"] <= 150
    assert 5 <= counts["tamil"] <= 7
    assert strata_without(held, strata) == []


def test_small_strata_share_one_and_those_left_out_are_named() -> None:
    few = [f"rare {number // 4}" for number in range(60)]  # 15 strata of 4 rows
    held = hold_out(names(160), 0.1, 1, strata=["common"] * 100 + few)
    assert 6 <= sum(held[100:]) <= 9
    left_out = strata_without(held, ["common"] * 100 + few)
    assert len(left_out) >= 15 - 9 and "common" not in left_out
    too_few = ["common"] * 100 + ["rare"] * 9
    held = hold_out(names(109), 0.1, 1, strata=too_few)
    assert strata_without(held, too_few) == ["rare"]
    assert 10 <= sum(held) <= 15


def test_a_stratum_that_is_one_group_is_trained_on() -> None:
    groups = ["same"] * 50 + names(50)
    held = hold_out(groups, 0.1, 1, strata=["one"] * 50 + ["many"] * 50)
    assert not held[:50].any()
    assert 5 <= sum(held[50:]) <= 7
    only = [f"group {number // 20}" for number in range(200)]
    assert 1 <= sum(hold_out(only, 0.1, 1, strata=only)) <= 30  # strata of one group each: as if there were none


@given(questions, shares, st.integers(0, 100), st.randoms(use_true_random=False))
def test_strata_part_no_group_and_do_not_depend_on_the_order(
    groups: list[str], share: float, seed: int, chance: random.Random
) -> None:
    rows = [(group, chance.choice("xyz")) for group in groups]

    def inside() -> set[str]:
        held = hold_out([group for group, _ in rows], share, seed, strata=[stratum for _, stratum in rows])
        chosen = {group for (group, _), side in zip(rows, held, strict=True) if side}
        assert chosen.isdisjoint(group for (group, _), side in zip(rows, held, strict=True) if not side)
        return chosen

    before = inside()
    assert before
    chance.shuffle(rows)
    assert inside() == before


def test_rows_with_one_prompt_or_column_value_or_link_are_one_group() -> None:
    prompts = ["b", "a", "b", "c", "d", "e", "f"]
    columns = [None, "doc", None, "doc", None, "", ""]
    keys = merge_groups(prompts, columns, [(4, 0)])
    assert keys == [b"b", b"doc", b"b", b"doc", b"b", b"e", b"f"]
    assert merge_groups([b"b", "a"], [None, None], [(0, 1)]) == [b"a", b"a"]
    assert merge_groups([], []) == []


def test_a_document_keeps_its_key_whatever_rows_it_gains() -> None:
    before = merge_groups(["m", "n"], ["doc 7", "doc 7"])
    after = merge_groups(["m", "n", "a"], ["doc 7", "doc 7", "doc 7"])
    assert before == after[:2] == [b"doc 7", b"doc 7"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, "x", "y", "z"])), min_size=1, max_size=20),
    st.data(),
)
def test_groups_are_the_same_in_any_order(rows: list[tuple[str, str | None]], data: st.DataObject) -> None:
    number = st.integers(0, len(rows) - 1)
    links = data.draw(st.lists(st.tuples(number, number), max_size=5))
    order = data.draw(st.permutations(range(len(rows))))
    keys = merge_groups([prompt for prompt, _ in rows], [value for _, value in rows], links)
    place = {old: new for new, old in enumerate(order)}
    moved = merge_groups(
        [rows[old][0] for old in order],
        [rows[old][1] for old in order],
        [(place[one], place[other]) for one, other in links],
    )
    assert [moved[place[old]] for old in range(len(rows))] == keys
    for one, other in links:
        assert keys[one] == keys[other]
    for key, (prompt, value) in zip(keys, rows, strict=True):
        for other_key, (other_prompt, other_value) in zip(keys, rows, strict=True):
            if prompt == other_prompt or (value and value == other_value):
                assert key == other_key


def test_what_makes_two_prompts_the_same() -> None:
    assert group_key(row("What  is\nIT?", "a")) == group_key(row("what is it?", "b"))
    assert group_key(row("cafe\u0301")) == group_key(row("caf\u00e9"))
    assert group_key(row("दिन")) != group_key(row("दान"))  # vowel signs carry meaning
    assert group_key(row("x\u00b2")) != group_key(row("x2"))


def test_plain_text_is_its_own_prompt() -> None:
    rows: list[Row] = [row("") | {"messages": [], "text": f"story {i // 2}"} for i in range(20)]
    keys = [group_key(each) for each in rows]
    assert sum(hold_out(keys, 0.1, 1)) == 2
    assert len(held_groups(keys)) == 1


def test_too_few_rows_or_one_group_only_are_refused() -> None:
    with pytest.raises(DataError, match=r"9 usable rows are too few .* set data.held_out: 0"):
        hold_out(names(9), 0.1, 1)
    with pytest.raises(DataError, match="all rows have the same prompt .* check the prompt column and data.group"):
        hold_out(["same"] * 20, 0.1, 1)
    assert hold_out(["q"] * 3, 0, 1).tolist() == [False] * 3
