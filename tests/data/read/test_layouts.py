"""Rows of other tools that are not read: the error says what they are."""

from __future__ import annotations

from typing import Any

import pytest

from qdora_fast.data.read.detection import detect
from qdora_fast.system.errors import DataError

TURNS = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, r"preference set .* data\.columns: \{prompt: prompt, resp"),
        (
            {"input": {"messages": TURNS}, "preferred_output": [], "non_preferred_output": []},
            "preference set of OpenAI",
        ),
        ({"segments": [{"label": True, "text": "x"}]}, "input_output rows of Axolotl"),
        ({"custom_id": "1", "method": "POST", "url": "/v1", "body": {"messages": TURNS}}, "requests of OpenAI's batch"),
        ({"id": "1", "custom_id": "1", "response": {"body": {}}}, "output of OpenAI's batch"),
        ({"context": "x", "question": "y", "answers": {"text": ["z"], "answer_start": [0]}}, "SQuAD"),
        ({"prompt": TURNS, "reward_model": {"ground_truth": "4"}}, "prompts without a known column of answers"),
        ({"dialog": ["x", "y"], "emotion": [0, 1]}, "dialog is a list of 2 texts whose speakers are not named"),
        ({"conversations": [{"speaker": "a", "text": "x"}] * 2}, "turns with speaker, text, not role and content"),
        ({"conversation": [{"human": "x", "assistant": "y"}] * 2}, "turns with human, assistant"),
        ({"messages": [{"Role": "user", "Content": "x"}] * 2}, "turns with Role, Content"),
        ({"train": [{"text": "x"}], "test": [{"text": "y"}]}, "object of lists of rows"),
    ],
)
def test_a_layout_that_is_not_read_is_called_by_its_name(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"cannot tell the format .*\n.*{said}"):
        detect([row] * 3)
