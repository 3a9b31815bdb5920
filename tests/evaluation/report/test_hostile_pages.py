"""Every text of every file that a page is made of, replaced by one that would do harm: the page's elements stay.

What each page shows of its texts is tested where the page is (tests/data, tests/evaluation, tests/comparison).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from heard import heard
from html_pages import HOSTILE, Page
from huggingface_hub import ModelCard
from made_runs import completion, data_report, finished_run
from markdown_it import MarkdownIt

from qdora_fast.config.loader import make_config
from qdora_fast.data.report.pages import report_page, review_page
from qdora_fast.data.tokenize.render import Preview
from qdora_fast.evaluation.report.card import Kind, model_card
from qdora_fast.evaluation.report.completions import completions_page
from qdora_fast.evaluation.report.pages import run_page
from qdora_fast.planning.cards import Card
from qdora_fast.planning.page import write_page
from qdora_fast.recipes import messages
from qdora_fast.recipes.compare.plot import comparison_page
from qdora_fast.recipes.plan import make_plan
from qdora_fast.recipes.report import read_parts
from qdora_fast.system.run_folder import RunFolder

PLAIN = "w1"
TEXTS = [text.encode(errors="replace").decode() for text in HOSTILE]


def _everywhere(value: Any, text: str) -> Any:
    """A JSON value with `text` in place of each text."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [_everywhere(each, text) for each in value]
    return {key: _everywhere(each, text) for key, each in value.items()} if isinstance(value, dict) else value


def _shape(html: str) -> list[tuple[str, list[str]]]:
    """Elements with the names of their attributes; a link or a style must be ours."""
    page = Page(html)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all("alert" not in link and ":" not in link for link in (*page.attributes("href"), *page.attributes("src")))
    assert all("alert" not in style for style in page.attributes("style"))
    return [(tag, sorted(attrs)) for tag, attrs in page.tags]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, every file by hand."""
    return finished_run(tmp_path_factory.mktemp("runs") / "whole").path


def _filled(run: Path, out: Path, text: str) -> RunFolder:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run, out)
    for file in out.rglob("*.json*"):
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        file.write_text("".join(json.dumps(_everywhere(json.loads(line), text)) + "\n" for line in lines if line))
    return RunFolder(out)


@pytest.mark.parametrize("text", TEXTS)
def test_a_runs_page_and_cards(text: str, whole_run: Path, tmp_path: Path) -> None:
    plain, hostile = _filled(whole_run, tmp_path / "plain", PLAIN), _filled(whole_run, tmp_path / "hostile", text)
    assert _shape(run_page(read_parts(hostile))) == _shape(run_page(read_parts(plain)))
    kinds: tuple[Kind, ...] = ("adapter", "merged_16bit")
    for kind in kinds:
        cards = [ModelCard(model_card(read_parts(each), kind=kind)) for each in (plain, hostile)]
        found, expected = (_shape(MarkdownIt().enable("table").render(card.text)) for card in cards)
        assert found == expected


@pytest.mark.parametrize("text", TEXTS)
def test_the_pages_of_data_and_completions(text: str) -> None:
    def shapes(text: str) -> list[Any]:
        row: Any = {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
            "tools": [{"type": "function", "function": {"name": text}}],
            "meta": {"source": text, "row": 1, "hash": text},
        }
        kept = [completion(1, prompt=row["messages"], shown=text, reference=text, base=text, tuned=text)]
        return [
            _shape(report_page(_everywhere(data_report(), text), name=text)),
            _shape(review_page([row], dataset=text, name=text)),
            _shape(completions_page(kept, name=text, about=text, sha256=text)),
        ]

    assert shapes(text) == shapes(PLAIN)


@pytest.mark.parametrize("text", TEXTS)
def test_the_page_of_a_comparison_and_of_a_plan(text: str, tiny_base: Path, tmp_path: Path) -> None:
    config = make_config({"model": {"name": str(tiny_base)}, "data": {"path": "demo"}, "run": {"dir": str(tmp_path)}})

    def shapes(text: str) -> list[Any]:
        plan = write_page(make_plan(config, text, card=Card.of_gib(24)), tmp_path / "plan.html")
        record = {
            "name": text,
            "seeds": [1],
            "steps": 1,
            "metric": text,
            "score_name": text,
            "base": text,
            "arms": {},
            "target": {"loss": 1.0, "from": text},
            "differences": [],
            "clock": text,
            "memory_counts": text,
            "at": text,
            "dataset": {"hash": text, "train": 1, "held_out": 1, "asked": 1},
            "machine": {"cpu": text, "python": text, "packages": {"torch": text}},
        }
        return [_shape(plan.read_text()), _shape(comparison_page(record))]

    assert shapes(text) == shapes(PLAIN)


def test_no_row_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Preview("a\x1b[2Jb", (("[red]q\x1b]0;t\x07", False), ("a\x9b31m\n\tb", True)))]
    monkeypatch.setattr("qdora_fast.data.previews", lambda *_: rows)
    monkeypatch.setattr("qdora_fast.data.format_preflight", lambda _, __, shown, colour: f"{[*shown]}{colour}")
    prepared = SimpleNamespace(train=[], scored_examples=[], report=None)
    ready = SimpleNamespace(prepared=prepared, rendering=SimpleNamespace(tokenizer=None, template=None))
    with heard() as said:
        messages.preflight(ready)
    assert not set("\x1b\x07\x9b") & set(said.getvalue())
    assert "[red]q" in said.getvalue()


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "runs [/b] [red]" / "[/]")
    with heard() as said:
        messages.finished(run)
    assert str(run.path) in said.getvalue()
