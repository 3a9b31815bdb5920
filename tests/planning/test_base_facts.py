"""A base's licence, gating, template and head: from its own files, else from a preset, else unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdora_fast.config import presets
from qdora_fast.planning.base_facts import BaseFacts, facts_of

THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def _facts(folder: Path) -> BaseFacts:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return facts_of(str(folder), None, tied=False)


@pytest.mark.parametrize(
    ("card", "licence", "gated"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model", "apache-2.0", None),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research", None),
        ("---\nlicense:\n- mit\ntags: [a]\n---\n", "mit", None),
        ("---\nextra_gated_prompt: Agree first.\nlicense: 'gemma'\n---\n", "gemma", True),
        ("---\r\nlicense: llama3.1\r\n---\r\n", "llama3.1", None),
        ("# A model\n\nlicense: not in the front matter\n", None, None),
        ("---\ntags: [a]\n", None, None),
        ("", None, None),
    ],
)
def test_the_model_card_says_the_licence(card: str, licence: str | None, gated: bool | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, newline="")
    facts = _facts(tmp_path)
    assert (facts.licence, facts.gated) == (licence, gated)
    assert ("licence unknown" in str(facts)) == (licence is None)


def test_a_licence_file_says_it_where_the_card_does_not(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(
        "\n                 Apache License\n           Version 2.0, January 2004\n\nTerms"
    )
    assert _facts(tmp_path).licence == "Apache License, Version 2.0, January 2004"
    (tmp_path / "LICENSE").write_text("MIT License\n\nCopyright (c) somebody")
    assert str(_facts(tmp_path)).startswith("licence MIT License (LICENSE)")


def test_a_preset_says_it_for_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "configs_folder", lambda: tmp_path)
    text = "# A preset\n# card: 24 GB\n# base: {}\nmodel: {{name: Somebody/Model-8B}}\ndata: {{path: rows.jsonl}}\n"
    for line, licence, gated in (
        ("Apache-2.0, not gated", "Apache-2.0", False),
        ("Gemma terms, gated", "Gemma terms", True),
        ("licence unknown", None, None),
    ):
        (tmp_path / "mine.yaml").write_text(text.format(line))
        facts = facts_of("somebody/model-8b", None, tied=True)
        assert (facts.licence, facts.gated, facts.template) == (licence, gated, None)
        assert "head tied" in str(facts)
    assert facts_of("somebody/else", None, tied=True).licence is None


def test_the_chat_template_is_looked_for_where_transformers_looks(tmp_path: Path) -> None:
    facts = _facts(tmp_path)
    assert (facts.template, facts.thinking) == (None, None)
    tokenizer = tmp_path / "tokenizer_config.json"
    tokenizer.write_text("{}")
    assert _facts(tmp_path).template == "none"
    both = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": THINKS}]
    tokenizer.write_text(json.dumps({"chat_template": both}))
    facts = _facts(tmp_path)
    assert (facts.template, facts.thinking) == ("its own (default, tool_use)", "no")
    (tmp_path / "chat_template.jinja").write_text(THINKS)
    facts = _facts(tmp_path)
    assert facts.template == "its own"
    assert facts.thinking and "enable_thinking" in facts.thinking
    tokenizer.write_text("[broken")
    assert _facts(tmp_path).template == "its own"
