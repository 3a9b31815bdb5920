from __future__ import annotations

from qdora_fast.data.clean.rejects import (
    KEEPING,
    REASONS,
    DropCounter,
    RejectedRow,
    after_drops,
    bullet_list,
    total,
)


def test_reasons_are_ranked_and_keep_the_first_places() -> None:
    tally = DropCounter()
    for number in range(5):
        tally.add(RejectedRow("empty_answer"), f"a.csv:{number}")
    tally.add(RejectedRow("wrong_type", "answer is dict"), "a.csv:9")
    first, second = dropped = tally.dropped()
    assert (first.reason, first.count, first.examples) == ("empty_answer", 5, ("a.csv:0", "a.csv:1", "a.csv:2"))
    assert second.examples == ("a.csv:9, answer is dict",)
    assert total(dropped) == 6
    line = "  - 5 x empty_answer: an answer is blank (a.csv:0; a.csv:1; a.csv:2)"
    assert bullet_list(dropped).splitlines()[0] == line


def test_an_error_about_what_is_left_names_what_was_dropped_first() -> None:
    assert after_drops("too few", [], 3) == "too few"
    tally = DropCounter()
    tally.add(RejectedRow("empty_answer"), "a.csv:1")
    for number in range(2):
        tally.add(RejectedRow("role_order", "the assistant speaks first"), f"a.csv:{number}")
    lines = after_drops("too few", tally.dropped(), 9).splitlines()
    assert lines[0] == "3 of 9 rows were dropped:"
    assert lines[1].startswith("  - 2 x role_order: ") and "a.csv:0, the assistant speaks first" in lines[1]
    assert lines[1].endswith("; data.filters.role_order: false keeps them")
    assert lines[2].startswith("  - 1 x empty_answer: ") and lines[3] == "too few"
    assert KEEPING.keys() <= REASONS.keys()
