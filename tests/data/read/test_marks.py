"""Marks of other tools: what keeps an answer out of the loss here, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.formats import FORMATS, convert
from qdora_fast.data.read.marks import MARKS

QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


def learned(*messages: dict[str, Any], **more: Any) -> list[bool]:
    """Whether each answer of a row is learned."""
    conversation = convert({"messages": list(messages), **more}, FORMATS["chatml"])
    return [each.get("train", True) for each in conversation.messages if each["role"] == "assistant"]


def reason(*messages: dict[str, Any], **more: Any) -> tuple[str, str]:
    with pytest.raises(RejectedRow) as caught:
        learned(*messages, **more)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("key", MARKS)
@pytest.mark.parametrize("off", [False, 0, 0.0])
def test_zero_and_false_keep_an_answer_out_of_the_loss(key: str, off: Any) -> None:
    assert learned(QUESTION, ANSWER | {key: off}, QUESTION | {key: off}, ANSWER) == [False, True]
    assert learned(QUESTION, ANSWER | {key: 1}, QUESTION | {key: None}, ANSWER | {key: True}) == [True, True]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, 0.5) for key in MARKS],
        *[(key, "false") for key in MARKS],
        ("loss_mask", [0, 1]),
        ("train_detail", [{"begin_offset": 0, "end_offset": 9, "train": False}]),
        ("mask", 1),
        ("is_masked", True),
        ("lossWeight", 0),
        ("no_loss", True),
    ],
)
def test_other_marks_are_refused_by_message_and_key(key: str, value: Any) -> None:
    code, detail = reason(QUESTION, ANSWER | {key: value}, QUESTION, ANSWER)
    assert code == "wrong_type"
    assert f"messages[1].{key} is " in detail


@pytest.mark.parametrize("key", ["constraint", "closs", "brain", "masquerade", "weights_note"])
def test_a_key_that_only_looks_like_a_mark_is_none(key: str) -> None:
    assert learned(QUESTION, ANSWER | {key: 0.5}) == [True]


def test_a_question_that_is_to_be_learned_is_refused_and_a_weight_on_it_is_not() -> None:
    code, detail = reason(QUESTION | {"training": True}, ANSWER)
    assert (code, "data.train_on: all" in detail) == ("wrong_type", True)
    conversation = convert({"messages": [QUESTION | {"weight": 1}, ANSWER]}, FORMATS["chatml"])
    assert conversation.unread == [("messages[].weight", 1)]


def test_answers_without_a_mark_beside_marked_ones_are_learned_and_counted() -> None:
    row = {"messages": [QUESTION, ANSWER, QUESTION, ANSWER | {"train": True}]}
    assert convert(row, FORMATS["chatml"]).repairs == ["unmarked_learned"]
    row["messages"][1] = ANSWER | {"train": True}
    assert convert(row, FORMATS["chatml"]).repairs == []


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ({"train": False}, "nothing_to_train"),
        ({"weight": 0}, "nothing_to_train"),
        ({"loss_scale": 0}, "nothing_to_train"),
        ({"weight": 0.5}, "wrong_type"),
        ({"loss_mask": [0, 1]}, "wrong_type"),
        ({"mask": [0, 1]}, "wrong_type"),
        ({"train_detail": [{"train": False}]}, "wrong_type"),
        ({"label": False}, "labelled_bad"),
        ({"kto_tag": False}, "labelled_bad"),
    ],
)
def test_marks_of_a_whole_row_count_for_the_row(mark: dict[str, Any], expected: str) -> None:
    assert reason(QUESTION, ANSWER, **mark)[0] == expected


@pytest.mark.parametrize("more", [{"train": True}, {"label": True}, {"label": 0}, {"loss": 1.5}, {"weight": None}])
def test_a_row_that_is_to_be_learned_or_only_measured_is_learned(more: dict[str, Any]) -> None:
    assert learned(QUESTION, ANSWER, **more) == [True]


def test_a_part_of_an_answer_that_is_not_to_be_learned_is_refused() -> None:
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "5", "train": False}]
    assert "messages[1].content[1].train is false" in reason(QUESTION, ANSWER | {"content": parts})[1]
