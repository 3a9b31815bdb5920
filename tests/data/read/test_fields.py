"""What of a row is not read: found without names, counted, and told apart into labels, copies and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config import DataSettings
from qdora_fast.data import format_preflight, prepare
from qdora_fast.data.read.fields import Fields, UnusedFields

QUESTION = "What does this number mean to a person who likes counting?"
ANSWER = "It is the count that comes after one number and before another one."
OTHER = "The quick brown fox jumps over the lazy dog, again and again."
LINE = "Unused    "


def unused_lines(path: Path, rows: list[dict[str, Any]], **more: Any) -> list[str]:
    """What the page says is not used of these rows."""
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(file), "held_out": 0, "cache": False, "dedup": {"exact": False, "near": False}, **more}
    page = format_preflight(prepare(DataSettings.model_validate(data), seed=0).report).splitlines()
    hints = [number + 1 for number, line in enumerate(page) if ": text of " in line and page[number + 1][:3] == "  -"]
    return [line for number, line in enumerate(page) if line.startswith(LINE) or number in hints]


def test_what_is_asked_for_is_read_and_the_rest_is_told_at_any_depth() -> None:
    fields = Fields({"a": 1, "b": "", "c": {"d": None}, "e": [2], "messages": [{"role": "user", "name": "x"}]})
    assert fields.get("a") == 1
    assert fields.peek("e") == [2]
    turn = fields.inner("messages[]", fields.get("messages")[0])
    turn.get("role")
    assert list(fields.unread()) == [("e", [2]), ("messages[].name", "x")]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(row=st.dictionaries(st.text(st.characters()), values, max_size=5), data=st.data())
def test_any_value_is_either_read_blank_or_told(row: dict[str, Any], data: st.DataObject) -> None:
    fields = Fields(row)
    read = data.draw(st.sets(st.sampled_from(sorted(row)))) if row else set()
    for key in read:
        fields.get(key)
    told = {name for name, _ in fields.unread()}
    assert told.isdisjoint(read)
    written = {
        key for key, value in row.items() if isinstance(value, int) or (isinstance(value, str) and value.strip())
    }
    assert told >= written - read
    counts = UnusedFields()
    counts.see(fields.unread(), [QUESTION, ANSWER], "rows.jsonl:1")
    assert set(counts.by_name) == told


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"id": "a-1", "source": "web", "category": "closed_qa", "score": 0.5, "url": "https://example.org/a/b/c"},
        {"text": f"Below is an instruction.\n\n### Instruction:\n{QUESTION}\n\n### Response:\n{ANSWER}"},
        {"question_again": QUESTION, "messages_again": [{"role": "user", "content": QUESTION}], "nothing": [None, {}]},
    ],
)
def test_labels_and_copies_cost_one_short_line_at_most(more: dict[str, Any], tmp_path: Path) -> None:
    lines = unused_lines(tmp_path, [{"instruction": QUESTION, "input": "", "output": ANSWER, **more}] * 12)
    names = [name for name, value in more.items() if name != "nothing"]
    assert lines == ([f"{LINE}{', '.join(names)}: not learned"] if names else [])


def test_text_that_is_not_read_is_told_with_its_rows_and_the_setting_that_reads_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": QUESTION, "answer": ANSWER, "id": number} for number in range(12)]
    for number in (3, 4, 7):
        rows[number]["passage"] = OTHER
    assert unused_lines(tmp_path, rows) == [
        f"{LINE}passage: text of 12 words a row is not used in 3 of 12 rows, first rows.jsonl:4",
        "  - if it belongs to the question: data.columns: {prompt: question, context: passage, response: answer}",
        f"{LINE}id: not learned",
    ]
    columns = {"prompt": "question", "context": "passage", "response": "answer"}
    assert unused_lines(tmp_path, rows, columns=columns) == [f"{LINE}id: not learned"]


def test_what_messages_hold_beside_their_content_is_told_as_well(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": ANSWER, "refusal": OTHER, "annotations": [], "audio": None}
    row = {"messages": [{"role": "user", "content": QUESTION}, answer], "documents": [{"text": OTHER}]}
    first, second, hint = unused_lines(tmp_path, [row] * 12)
    assert first.startswith(f"{LINE}documents: text of 12 words a row is not used in 12 of 12 rows")
    assert second.startswith(f"{LINE}messages[].refusal: text of 12 words")
    assert "data.formatter" in hint


def test_columns_that_shape_the_split_are_used(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "answer": ANSWER, "doc": str(number), "kind": "a"} for number in range(12)]
    assert unused_lines(tmp_path, rows, group="doc", stratify="kind") == []


def test_counts_of_pieces_are_those_of_the_whole_and_names_have_an_end() -> None:
    whole, first, second = UnusedFields(), UnusedFields(), UnusedFields()
    for number in range(300):
        unread = [("passage", OTHER), (f"key {number}", 1), ("messages[].name", "x"), ("messages[].name", "y")]
        for counts in (whole, first if number < 100 else second):
            counts.see(unread, [QUESTION, ANSWER], f"rows.jsonl:{number + 1}")
    first.add(second)
    assert (first.rows, first.by_name) == (whole.rows, whole.by_name)
    assert len(whole.by_name) == 200
    passage = whole.by_name["passage"]
    assert (passage.rows, passage.texts, passage.words, passage.first) == (300, 300, 3600, "rows.jsonl:1")
    assert whole.by_name["messages[].name"].rows == 300
