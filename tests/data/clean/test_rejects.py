from __future__ import annotations

from qdora_fast.data.clean.rejects import DropCounter, RejectedRow, bullet_list, total


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
