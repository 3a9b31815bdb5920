"""Whatever is trained on can be asked, with its answer and without it, and the question is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config.data import ColumnSettings, SourceSettings
from qdora_fast.data.read.questions import STAND_IN, Question, read_questions, with_stand_in
from qdora_fast.data.read.readers import BadRow, RawRow
from qdora_fast.system.errors import DataError

USER = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}

SHAPES = [
    ({"instruction": "Hello", "input": ""}, {"output": "Hi"}, USER),
    ({"instruction": "Hello"}, {"output": "Hi", "history": []}, USER),
    ({"question": "Hello"}, {"answer": "Hi"}, USER),
    ({"prompt": "Hello"}, {"completion": "Hi"}, USER),
    ({"prompt": "Hello"}, {"response": "Hi"}, USER),
    ({"prompt": USER}, {"completion": [{"role": "assistant", "content": "Hi"}]}, USER),
    ({"prompt": "Hello"}, {"chosen": "Hi", "rejected": "No"}, USER),
    ({"query": "Hello"}, {"response": "Hi"}, USER),
    ({"problem": "Hello"}, {"solution": "Hi"}, USER),
    ({"input": "Hello"}, {"output": "Hi"}, USER),
    ({"instruction": "Hello"}, {"response": "Hi"}, USER),
    ({"messages": USER}, {"messages": [*USER, {"role": "assistant", "content": "Hi"}]}, USER),
    ({"messages": USER}, {"messages": [*USER, {"role": "assistant", "content": "Hi", "weight": 0}]}, USER),
    ({"messages": '[{"role": "user", "content": "Hello"}]'}, {}, USER),
    (
        {"conversations": [{"from": "human", "value": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        USER,
    ),
    ({"messages": USER}, {"messages": [*USER, {"role": "assistant", "content": "a"}, CALL]}, USER),
    ({"question": "Hello", "label": False}, {"answer": "Hi"}, USER),
    ({"system": "Be brief", "question": "Hello"}, {"answer": "x"}, [{"role": "system", "content": "Be brief"}, *USER]),
]


def _ask(*rows: dict, **settings: object) -> list[Question]:
    raw = [RawRow(row, f"row {number}") for number, row in enumerate(rows, 1)]
    return list(read_questions(raw, SourceSettings(path="rows.jsonl", **settings)).rows)


@pytest.mark.parametrize(("question", "answer", "expected"), SHAPES)
def test_the_question_is_the_same_with_and_without_its_answer(question: dict, answer: dict, expected: list) -> None:
    for row in (question, question | answer):
        (asked,) = _ask(row)
        plain = [{key: each[key] for key in ("role", "content")} for each in asked.messages]
        assert (plain, asked.problem) == (expected, "")


def test_a_conversation_is_asked_up_to_its_last_answer() -> None:
    turns = [*USER, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]
    for row in (turns, [*turns, {"role": "assistant", "content": "So"}]):
        (asked,) = _ask({"messages": row})
        assert [each["content"] for each in asked.messages] == ["Hello", "Hi", "And?"]
    tools = [*USER, CALL, {"role": "tool", "content": "3"}]
    (asked,) = _ask({"messages": [*tools, {"role": "assistant", "content": "It is 3"}], "tools": [TOOL]})
    assert [each["role"] for each in asked.messages] == ["user", "assistant", "tool"]
    assert asked.tools == [TOOL]


def test_columns_of_the_user_need_no_answer_column() -> None:
    columns = {"prompt": "ask", "response": "nowhere", "context": "passage"}
    (asked,) = _ask({"ask": "Who?", "passage": "It was me.", "answer": "I"}, columns=ColumnSettings(**columns))
    assert asked.messages[0]["content"] == "Who?\n\nIt was me."
    with pytest.raises(DataError, match="'ask', but the columns are"):
        _ask({"question": "Who?"}, columns=ColumnSettings(prompt="ask", response="nowhere"))


def test_bad_rows_stay_in_their_place_and_say_why() -> None:
    good = [RawRow({"question": f"Q{number}"}, f"q.jsonl:{number}") for number in range(1, 4)]
    bad = [BadRow("bad_json", "broken JSON", "q.jsonl:4"), RawRow({"question": " "}, "q.jsonl:5")]
    found = read_questions([bad[0], *good, bad[1]], SourceSettings(path="q.jsonl"))
    assert [bool(each.problem) for each in found.rows] == [True, False, False, False, True]
    assert [each.source for each in found.bad] == ["q.jsonl:4", "q.jsonl:5"]
    with pytest.raises(DataError, match=r"4 of 5 rows cannot be asked"):
        read_questions([good[0], *[RawRow({"question": ""}, "x")] * 4], SourceSettings(path="q.jsonl"))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows in it"),
        ([{"text": "some text"}], "rows of plain text ask nothing; name the column .*data.columns.prompt"),
        ([{"frage": "Wer?"}], "cannot tell the format"),
        ([{"question": None}], "rows cannot be asked"),
    ],
)
def test_what_asks_nothing_is_refused_with_the_setting(rows: list, match: str) -> None:
    with pytest.raises(DataError, match=match):
        _ask(*rows)


def test_text_that_is_not_asked_is_named_unless_it_is_an_answer() -> None:
    text = "a passage of more than five words that may matter"
    rows = [RawRow({"question": f"Q{n}", "passage": text, "gold_answer": text, "id": "7"}, "x") for n in range(3)]
    assert read_questions(rows, SourceSettings(path="x")).texts_left_out() == ["passage"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
_NAMES = st.sampled_from(["messages", "conversations", "prompt", "completion", "question", "instruction", "label", "x"])


@given(st.dictionaries(_NAMES, _VALUES, max_size=5))
def test_any_row_is_asked_or_refused_and_never_shows_its_stand_in(row: dict) -> None:
    before = repr(row)
    try:
        found = _ask(row)
    except DataError:
        found = []
    assert repr(row) == before
    assert not any(STAND_IN in str(each.messages) for each in found)


def test_a_stand_in_is_put_in_a_copy() -> None:
    row = {"question": "Q", "answer": "A"}
    assert with_stand_in(row) == {"question": "Q", "answer": STAND_IN}
    assert row == {"question": "Q", "answer": "A"}
