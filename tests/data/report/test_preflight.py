from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data import choose_template, format_preflight, prepare, previews
from qdora_fast.data.tokenize.render import Rendering


@pytest.fixture
def page(tmp_path: Path, base_tokenizer: Any) -> dict[str, str]:
    """The report over a small set with one blank, one long and one doubled row, plain and in colour."""
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}"} for i in range(12)]
    rows += [{"question": "Empty?", "answer": ""}, {"question": "Long?", "answer": "word " * 20 + "another " * 200}]
    rows += [rows[0]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = choose_template(base_tokenizer, "auto")
    rendering = Rendering(base_tokenizer, 256, on_long="truncate")
    settings = DataSettings(path=str(path), held_out=0, on_long="truncate", filters={"max_repetition": 1})
    data = prepare(settings, seed=1, rendering=rendering)
    shown = previews(data.train, data.scored_examples or [], base_tokenizer)
    return {
        "plain": format_preflight(data.report, choice, shown),
        "colour": format_preflight(data.report, choice, shown, colour=True),
        "rows alone": format_preflight(data.report),
    }


@pytest.mark.parametrize(
    "expected",
    [
        "15 rows in, 13 kept",
        "columns (columns question and answer, 100% of the first 15 rows)",
        "1 x empty_answer: an answer is blank",
        "rows.jsonl:13",
        "1 x exact_duplicate",
        "1 exact and 0 near-duplicates in 1 group",
        "13 to train on, 0 held out",
        "fewer than 30 tokens of prompt and answer",
        "data.filters.min_tokens: 0",
        "alpaca (the model has no chat template",
        "1 answers cut at 256 tokens",
        "no double BOS",
        "Version   ",
        "### Response:\n«It is 0<eos>»",
    ],
)
def test_the_page_names_every_decision_and_loss(expected: str, page: dict[str, str]) -> None:
    assert expected in page["plain"]


def test_colour_replaces_the_marks_only_where_asked(page: dict[str, str]) -> None:
    assert "\x1b" not in page["plain"]
    assert "\x1b[32mIt is 0<eos>\x1b[0m" in page["colour"]
    assert "«" not in page["colour"]


def test_rows_alone_have_a_page_without_tokens(page: dict[str, str]) -> None:
    assert "15 rows in, 13 kept" in page["rows alone"]
    assert "Template" not in page["rows alone"]
