"""The sentence about the mode of the rows, what it means for servers, and the report it stands in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thinking_templates import PLAIN, THINKING

from qdora_fast.config.loader import make_config
from qdora_fast.data import prepare
from qdora_fast.data.report.preflight import format_preflight
from qdora_fast.data.report.thinking import describe_thinking
from qdora_fast.data.tokenize.modes import Setting
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.data.tokenize.templates import TemplateChoice
from qdora_fast.data.tokenize.thinking import thinking_of

ASKED = {"role": "user", "content": "How much is that?"}
BARE = {"role": "assistant", "content": "That is four, all in all."}
THOUGHT = BARE | {"reasoning_content": "Two and two."}


@pytest.mark.parametrize(
    ("name", "setting", "flags", "mode", "said"),
    [
        (
            "hybrid",
            "auto",
            {"reasoned": 9},
            "on",
            "all 9 rows have reasoning, which is learned (enable_thinking: true, the",
        ),
        ("hybrid", "auto", {}, "off", 'ask other servers with "chat_template_kwargs": {"enable_thinking": false}'),
        ("asked", "auto", {}, "off", "(thinking: false, the template's default)"),
        ("asked", "auto", {"reasoned": 9}, "on", 'ask other servers with "chat_template_kwargs": {"thinking": true}'),
        (
            "hybrid",
            "auto",
            {"reasoned": 4},
            "mixed",
            "4 of 9 rows have reasoning, which is learned (enable_thinking: true)",
        ),
        ("channels", "auto", {"reasoned": 4}, "mixed", "4 of 9 rows have reasoning, which is learned, 5 have none"),
        ("channels", "auto", {}, "off", "no row has reasoning"),
        ("hybrid", "on", {"reasoned": 4}, "on", "the rest learns to go without"),
        ("hybrid", "on", {}, "on", "no row has reasoning: the model learns to answer without"),
        ("hybrid", "off", {"reasoning_removed": 3}, "off", "the reasoning of 3 of 9 rows is left out"),
        ("budget", "auto", {}, "off", 'ask other servers with "chat_template_kwargs": {"thinking_budget": 0}'),
    ],
)
def test_the_mode_of_the_rows_is_said_with_its_reason(
    name: str, setting: Setting, flags: dict[str, int], mode: str, said: str
) -> None:
    thinking = thinking_of(THINKING[name])
    assert thinking is not None
    report = describe_thinking(thinking, setting, 9, flags)
    assert (report.mode, report.asked) == (mode, None if mode == "mixed" else mode)
    assert said in report.sentence


@pytest.mark.parametrize(("setting", "template", "said"), [("auto", "hybrid", True), ("as_is", "hybrid", False)])
def test_the_report_has_it_where_the_template_is_asked(
    setting: Setting, template: str, said: bool, tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    rows = [{"messages": [ASKED | {"content": f"{number}: how much?"}, THOUGHT, ASKED, THOUGHT]} for number in range(9)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = THINKING[template]
    data = {"path": str(path), "thinking": setting, "cache": False, "held_out": 0, "dedup": {"near": False}}
    config = make_config({"model": {"name": "demo"}, "data": data})
    report = prepare(config.data, seed=1, rendering=Rendering(tokenizer, 400, thinking=setting)).report
    page = format_preflight(report, TemplateChoice("model", "its own", THINKING[template]))
    assert (report.as_json()["thinking"] is not None) is said
    assert ("Thinking  on: all" in page) is said
    assert ("such answers are not learned" in page) is said


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_a_setting_without_effect_is_said(setting: Setting, tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({"messages": [ASKED | {"content": f"{n}?"}, BARE]}) for n in range(9)), "utf-8"
    )
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = PLAIN
    data = {"path": str(path), "thinking": setting, "cache": False, "held_out": 0, "dedup": {"near": False}}
    config = make_config({"model": {"name": "demo"}, "data": data})
    report = prepare(config.data, seed=1, rendering=Rendering(tokenizer, 400, thinking=setting)).report
    assert any("no effect" in note for note in report.notes) is (setting == "off")
    assert report.thinking is None


def test_the_version_of_data_is_that_of_before_where_the_template_is_not_asked(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({"messages": [ASKED | {"content": f"{n}?"}, BARE]}) for n in range(9)), "utf-8"
    )
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"])

    def version(template: str, setting: Setting) -> str:
        tokenizer.chat_template = template
        data = {"path": str(path), "thinking": setting, "cache": False, "held_out": 0, "dedup": {"near": False}}
        config = make_config({"model": {"name": "demo"}, "data": data})
        return prepare(config.data, seed=1, rendering=Rendering(tokenizer, 400, thinking=setting)).report.hash

    plain = "{% for m in messages %}<|im_start|>{{ m.role + m.content }}<|im_end|>{% endfor %}"
    assert version(plain, "auto") == version(plain, "as_is") == version(plain, "off")
    assert version(THINKING["hybrid"], "auto") != version(THINKING["hybrid"], "as_is")
