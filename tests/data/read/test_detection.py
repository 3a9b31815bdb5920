from __future__ import annotations

import json
from typing import Any

import pytest

from qdora_fast.config.data import SourceSettings
from qdora_fast.data.read.detection import choose_format, detect
from qdora_fast.data.read.formats import Columns
from qdora_fast.data.read.readers import RawRow
from qdora_fast.system.errors import DataError

TURN = {"role": "user", "content": "x"}
ALPACA = {"instruction": "x", "output": "y"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (ALPACA | {"input": "", "text": "rendered"}, "alpaca"),
        ({"messages": [TURN]}, "chatml"),
        ({"messages": [{"from": "human", "value": "x"}]}, "sharegpt"),
        ({"conversations": [{"from": "human", "value": "x"}], "id": "1"}, "sharegpt"),
        ({"conversations": [TURN]}, "sharegpt"),
        ({"prompt": "x", "completion": "y"}, "prompt_completion"),
        ({"question": "x", "answer": "y"}, "columns"),
        ({"instruction": "x", "context": "", "response": "y", "category": "z"}, "columns"),
        ({"text": "x"}, "text"),
    ],
)
def test_known_columns_are_recognised(row: dict[str, Any], name: str) -> None:
    found = detect([row] * 3)
    assert (found.name, found.agreement, found.checked) == (name, 1.0, 3)
    assert found.why
    found.converter()


def test_dolly_is_read_with_its_context() -> None:
    columns = detect([{"instruction": "x", "context": "", "response": "y"}]).columns
    assert columns is not None
    assert columns.context == "context"


def test_context_belongs_to_the_question_where_it_is_text() -> None:
    pair = {"question": "x", "answer": "y"}
    with_context = detect([pair | {"context": "z"}] * 50 + [pair] * 50)
    assert (with_context.columns or pair) == Columns("question", "answer", context="context")
    assert "context" in with_context.why
    of_lists = detect([pair | {"context": ["z"]}])
    assert (of_lists.columns or pair) == Columns("question", "answer")


def test_the_fix_for_a_column_that_is_not_read_is_a_line_of_yaml_that_reads_it() -> None:
    found = detect([{"question": "x", "answer": "y", " the: schema": "z"}])
    assert found.fix_for(" the: schema") == (
        "data.columns: {prompt: question, context: ' the: schema', response: answer}"
    )
    assert "data.formatter" in detect([{"messages": [TURN]}]).fix_for("context")


TEXT_TURNS = json.dumps([TURN])


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": TEXT_TURNS}, "chatml"),
        ({"conversations": TEXT_TURNS, "id": 1}, "sharegpt"),
        ({"messages": str([TURN])}, "chatml"),
        ({"system_prompt": "x", "question": "y", "response": "z"}, "columns"),
    ],
)
def test_messages_as_text_and_newer_pairs_are_recognised(row: dict[str, Any], name: str) -> None:
    assert detect([row]).name == name


def test_five_in_a_hundred_may_differ_but_not_six() -> None:
    assert detect([ALPACA] * 95 + [{}] * 5).agreement == 0.95
    with pytest.raises(DataError, match=r"of mixed formats \(94 alpaca, 6 unknown\)"):
        detect([ALPACA] * 94 + [{}] * 6)


def test_the_error_lists_the_columns_and_what_to_write() -> None:
    with pytest.raises(DataError) as caught:
        detect([{"user_query": "x", "label": 3, "reply_text": "y"}], "rows.csv")
    message = str(caught.value)
    assert "rows.csv" in message
    assert "user_query, label, reply_text" in message
    assert "data.columns: {prompt: user_query, response: reply_text}" in message


def test_a_table_of_a_thousand_columns_is_described_in_a_moment_and_in_a_few_lines() -> None:
    with pytest.raises(DataError) as caught:
        detect([{f"measured {number}": 1 for number in range(1_000)}, {"half a pair \ud800": 1}])
    message = str(caught.value)
    assert "measured 39 and 961 more" in message
    assert len(message) < 2_000
    with pytest.raises(DataError, match=r"half a pair \\ud800") as caught:
        detect([{"half a pair \ud800": 1, "other": 2}])
    str(caught.value).encode()


def test_a_table_without_header_is_suspected() -> None:
    with pytest.raises(DataError, match="These look like values: add a first line with column names"):
        detect([{"Janet has sixteen ducks that lay eggs every single day.": "How many?", "18": "3"}])


def test_token_ids_are_refused() -> None:
    with pytest.raises(DataError, match="tokenised already"):
        detect([{"input_ids": [1, 2], "labels": [1, 2]}])


def settings_with(**data: Any) -> SourceSettings:
    return SourceSettings(path="rows.csv", **data)


def test_settings_win_over_detection() -> None:
    rows = [RawRow(ALPACA | {"q": "x", "a": "y"}, "rows.csv:2")]
    chosen = choose_format(rows, settings_with(columns={"prompt": "q", "response": "a"}))
    assert (chosen.name, chosen.why) == ("columns", "set in data.columns")
    assert choose_format(rows, settings_with(format="text")).name == "text"
    assert choose_format(rows, settings_with()).name == "alpaca"


def test_a_column_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"names 'outputs', but the columns are instruction, output; did you mean 'out"):
        choose_format([RawRow(ALPACA, "x:1")], settings_with(columns={"prompt": "instruction", "response": "outputs"}))
