from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data import choose_template, format_preflight, prepare, render


@pytest.fixture
def page(tmp_path: Path, base_tokenizer: Any) -> dict[str, str]:
    """The report over a small set with one broken and one long row, plain and in colour."""
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}"} for i in range(12)]
    rows += [{"question": "Empty?", "answer": ""}, {"question": "Long?", "answer": "word " * 400}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(DataSettings(path=str(path), held_out=0), seed=1)
    choice = choose_template(base_tokenizer, "auto")
    rendered = render(prepared.train, base_tokenizer, max_length=256, on_long="truncate")
    reports = (prepared.report, rendered.report, choice)
    return {"plain": format_preflight(*reports), "colour": format_preflight(*reports, colour=True)}


@pytest.mark.parametrize(
    "expected",
    [
        "14 rows in, 13 usable",
        "columns (columns question and answer, 100% of the first 14 rows)",
        "1 x empty_answer: an answer is blank",
        "rows.jsonl:13",
        "13 to train on, 0 held out",
        "alpaca (the model has no chat template",
        "1 answers cut at 256 tokens",
        "no double BOS",
        "### Response:\n«It is 0<eos>»",
    ],
)
def test_the_page_names_every_decision_and_loss(expected: str, page: dict[str, str]) -> None:
    assert expected in page["plain"]


def test_colour_replaces_the_marks_only_where_asked(page: dict[str, str]) -> None:
    assert "\x1b" not in page["plain"]
    assert "\x1b[32mIt is 0<eos>\x1b[0m" in page["colour"]
    assert "«" not in page["colour"]
