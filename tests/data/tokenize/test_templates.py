from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.data.tokenize.masking import tokenize_with_spans
from qdora_fast.data.tokenize.templates import BUNDLED, choose_template
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.system.errors import ConfigError

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd\n\n### Input:\n2, 2\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd\n\n### Response:\n"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
LONG_CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "Add 2"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "four"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Welcome."},
]


def text_of(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_a_base_without_template_gets_the_classic_alpaca_text(base_tokenizer: Any) -> None:
    choice = choose_template(base_tokenizer, "auto")
    assert choice.name == "alpaca"
    assert "no chat template" in choice.why
    question = {"role": "user", "content": "Add\n\n2, 2", "instruction": "Add", "input": "2, 2"}
    answer = {"role": "assistant", "content": "4"}
    assert text_of(base_tokenizer, [question], add_generation_prompt=True) == WITH_INPUT
    assert text_of(base_tokenizer, [question, answer]) == WITH_INPUT + "4<eos>"
    plain = {"role": "user", "content": "Add", "instruction": None, "input": None}  # as Arrow would fill them in
    assert text_of(base_tokenizer, [plain, answer]) == WITHOUT_INPUT + "4<eos>"


def test_alpaca_speaks_system_turns_and_tools(base_tokenizer: Any) -> None:
    choose_template(base_tokenizer, "alpaca")
    text = text_of(base_tokenizer, LONG_CHAT, tools=TOOLS)
    assert text.startswith("Be exact.\n\nBelow is an instruction")
    assert '### Tools:\n{"name": "add"}\n\n### Instruction:\nAdd 2\n\n' in text
    assert '### Response:\n### Tool call:\n{"name": "add", "arguments": {"a": 2}}<eos>\n\n' in text
    assert "<eos>\n\n### Tool result:\nfour\n\n### Response:\nIt is 4.<eos>" in text
    assert text.endswith("It is 4.<eos>\n\n### Instruction:\nThanks\n\n### Response:\nWelcome.<eos>")


@pytest.mark.parametrize("setting", ["alpaca", "chatml"])
@pytest.mark.parametrize("special", [(), ("<|im_start|>", "<|im_end|>")])
def test_bundled_templates_end_every_answer_with_eos(
    setting: str, special: tuple[str, ...], make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(special)
    choose_template(tokenizer, setting)
    row = tokenize_with_spans(LONG_CHAT, Vocabulary(tokenizer), tools=TOOLS)
    assert row.flags == set()
    assert len(row.segments) == 3
    assert all(row.input_ids[end - 1] == tokenizer.eos_token_id for _, end in row.segments)


def test_bos_is_written_where_the_tokenizer_would_add_it(make_tokenizer: Callable[..., Any]) -> None:
    messages = [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "4"}]
    adding, merely_having = make_tokenizer(bos="<bos>", adds_bos=True), make_tokenizer(bos="<bos>")
    for tokenizer in (adding, merely_having):
        choose_template(tokenizer, "auto")
    assert text_of(adding, messages) == "<bos>" + WITHOUT_INPUT + "4<eos>"
    assert text_of(merely_having, messages) == WITHOUT_INPUT + "4<eos>"


def test_a_model_keeps_its_own_template(base_tokenizer: Any) -> None:
    own = "{% for m in messages %}{{ m.content }}{% endfor %}"
    base_tokenizer.chat_template = own
    assert choose_template(base_tokenizer, "auto").text == own == base_tokenizer.chat_template
    assert "may be untrained" in choose_template(base_tokenizer, "model", is_base=True).why
    assert choose_template(base_tokenizer, "alpaca").name == "alpaca"
    assert base_tokenizer.chat_template != own


def test_chatml_says_what_becomes_of_its_tokens(make_tokenizer: Callable[..., Any]) -> None:
    assert "not in the vocabulary" in choose_template(make_tokenizer(), "chatml").why
    known = choose_template(make_tokenizer(("<|im_start|>", "<|im_end|>")), "chatml")
    assert "answers end with <|im_end|><eos>" in known.why


def test_a_file_is_used_as_it_is(base_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    choice = choose_template(base_tokenizer, str(path))
    assert choice.name == str(path)
    assert base_tokenizer.chat_template == path.read_text()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{% for m in messages %}\n{{ m.content }", r"mine.jinja:2: "),
        ("hello", "does not print the `content`"),
        ("{{ messages[5].content }}", "cannot render a question and an answer"),
        ("{{ raise_exception('never') }}", "cannot render a question and an answer: never"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
    ],
)
def test_a_broken_file_is_refused(content: str | bytes, expected: str, base_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=expected):
        choose_template(base_tokenizer, str(path))


def test_wrong_settings_name_the_right_ones(base_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this model has no chat template; use auto or alpaca"):
        choose_template(base_tokenizer, "model")
    with pytest.raises(ConfigError, match=r"did you mean chatml\?"):
        choose_template(base_tokenizer, "chat-ml")
    (tmp_path / "mine.jinja").write_text("")
    with pytest.raises(ConfigError, match=r"no such file; that folder holds mine\.jinja"):
        choose_template(base_tokenizer, str(tmp_path / "min.jinja"))
    base_tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="this tokenizer has none"):
        choose_template(base_tokenizer, "alpaca")


def test_bundled_templates_use_only_filters_that_other_engines_know() -> None:
    """llama.cpp renders the template in a GGUF with an engine of its own, which has no `default` for objects."""
    import jinja2
    from jinja2.nodes import Filter

    for name in BUNDLED:
        text = (resources.files("qdora_fast.data") / "tokenize" / "chat_templates" / f"{name}.jinja").read_text(
            encoding="utf-8"
        )
        used = {node.name for node in jinja2.Environment().parse(text).find_all(Filter)}
        assert used <= {"first", "selectattr", "tojson"}, name


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_several_templates_are_kept_and_said(base_tokenizer: Any) -> None:
    named = {"default": PLAIN, "tool_use": "{{ tools | tojson }}" + PLAIN}
    base_tokenizer.chat_template = dict(named)
    choice = choose_template(base_tokenizer, "auto")
    assert "default, tool_use; tool_use for rows with tools" in choice.why
    assert base_tokenizer.chat_template == named
    assert choose_template(base_tokenizer, "alpaca").text == base_tokenizer.chat_template


def test_a_list_of_one_template_is_that_template(base_tokenizer: Any) -> None:
    base_tokenizer.chat_template = {"default": PLAIN}
    assert choose_template(base_tokenizer, "auto").text == PLAIN == base_tokenizer.chat_template


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ({"rag": PLAIN, "tool_use": PLAIN}, "named rag, tool_use and none is named default"),
        ("{% for m in messages %}\n{{ m.content }", "the model's own chat template:2: "),
        ({"default": PLAIN, "rag": "{{ }}"}, "the model's own chat template `rag`:1: "),
        (PLAIN + "{{ [1, 2] | random }}", "prints something else each time"),
    ],
)
def test_a_model_with_a_template_that_cannot_be_used_is_refused(
    template: Any, expected: str, base_tokenizer: Any
) -> None:
    base_tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=expected):
        choose_template(base_tokenizer, "auto")


@pytest.mark.parametrize("setting", ["alpaca-think", "chatml-think"])
def test_bundled_templates_print_reasoning_from_the_last_question_on(setting: str, base_tokenizer: Any) -> None:
    choose_template(base_tokenizer, setting)
    turns = [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "4", "reasoning_content": "two\n"}]
    row = tokenize_with_spans([*turns, *turns], Vocabulary(base_tokenizer))
    first, last = (base_tokenizer.decode(row.input_ids[start:end]) for start, end in row.segments)
    assert first.startswith("4") and "<think>" not in first
    assert last.startswith("<think>\ntwo\n</think>\n\n4")
    bare = [{key: value for key, value in turn.items() if key != "reasoning_content"} for turn in turns]
    assert "think" not in text_of(base_tokenizer, bare)
