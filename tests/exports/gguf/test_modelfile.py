"""Ollama's Modelfile: the same prompt as the trained template, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.data.tokenize.templates import BUNDLED, choose_template
from qdora_fast.exports.gguf.modelfile import go_template, modelfile

CONVERSATION = [
    {"role": "user", "content": "How far is it?"},
    {"role": "assistant", "content": "Two miles."},
    {"role": "user", "content": "On foot?\nOr by bus?"},
]


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few constructs that are used, with Ollama's System and Messages."""
    system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
    head, loop, end = re.fullmatch(r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.DOTALL).groups()
    shown = re.sub(r"\{\{ if \.System \}\}(.*?)\{\{ end \}\}", r"\1" if system else "", head, flags=re.DOTALL)
    parts = re.fullmatch(
        r'\{\{ if eq \.Role "user" \}\}(.*)\{\{ else if eq \.Role "assistant" \}\}(.*)\{\{ end \}\}', loop, re.DOTALL
    ).groups()
    said = dict(zip(("user", "assistant"), parts, strict=True))
    turns = [said.get(each["role"], "").replace("{{ .Content }}", each["content"]) for each in messages]
    return shown.replace("{{ .System }}", system) + "".join(turns) + end


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
@pytest.mark.parametrize("eos", ["<eos>", "<|im_end|>"])
def test_the_prompt_is_the_trained_one(tokenizer: Any, name: str, system: list[dict[str, str]], eos: str) -> None:
    tokenizer.eos_token = eos
    choose_template(tokenizer, name)
    for turns in (CONVERSATION[:1], CONVERSATION):
        wanted = tokenizer.apply_chat_template(system + turns, tokenize=False, add_generation_prompt=True)
        assert go(go_template(tokenizer), system + turns) == wanted


def test_bos_is_left_to_the_file(tokenizer: Any) -> None:
    choose_template(tokenizer, "alpaca")
    plain = go_template(tokenizer)
    tokenizer.chat_template = "{{- bos_token -}}\n" + tokenizer.chat_template
    assert go_template(tokenizer) == plain


def test_a_model_s_own_template_is_left_out_with_a_word(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"
    text = modelfile("m.gguf", tokenizer, [0], longest_row=512, most_positions=2048)
    assert "\nTEMPLATE" not in text
    assert "# No TEMPLATE: the model's own chat template is Jinja" in text


def test_stop_tokens_and_context(tokenizer: Any) -> None:
    choose_template(tokenizer, "alpaca")
    lines = modelfile("m.gguf", tokenizer, [1, 0], longest_row=512, most_positions=131072).splitlines()
    assert lines[1:5] == [
        "FROM ./m.gguf",
        "PARAMETER num_ctx 4096",
        'PARAMETER stop "<eos>"',
        'PARAMETER stop "<pad>"',
    ]
    assert not any(line.startswith("ADAPTER") for line in lines)
    assert "num_ctx 2048" in modelfile("m.gguf", tokenizer, [0], longest_row=512, most_positions=2048)
    assert "num_ctx 8192" in modelfile("m.gguf", tokenizer, [0], longest_row=8192, most_positions=131072)
