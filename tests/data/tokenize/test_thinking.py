"""What templates do about reasoning, rows in their modes, and replies taken apart, over a template of each kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from thinking_templates import PLAIN, THINKING

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.left_out import EARLIER, Accountant
from qdora_fast.data.tokenize.masking import Masked, tokenize_with_spans
from qdora_fast.data.tokenize.modes import Setting
from qdora_fast.data.tokenize.replies import ReplyReader
from qdora_fast.data.tokenize.thinking import thinking_of
from qdora_fast.data.tokenize.vocabulary import Vocabulary

MARKS = re.compile(r"<\|[A-Za-z_]+\|>|\[/?(?:INST|gMASK)\]|<sop>")
ASKED = {"role": "user", "content": "What is 2+2?"}
BARE = {"role": "assistant", "content": "Four."}
FIELD = BARE | {"reasoning_content": "Two and two."}
SPELLED = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."}


@pytest.fixture(scope="module")
def vocabulary_of(make_tokenizer: Callable[..., Any]) -> Callable[..., Vocabulary]:
    """Name of a template and `data.thinking` -> a vocabulary in which its marks are special tokens."""
    made: dict[str, Any] = {}

    def build(name: str, thinking: Setting = "auto", **more: Any) -> Vocabulary:
        if name not in made:
            template = THINKING.get(name, PLAIN)
            made[name] = make_tokenizer(sorted(set(MARKS.findall(template))))
            made[name].chat_template = template
        ends = [made[name].convert_tokens_to_ids(each) for each in ("<|im_end|>", "<|return|>", "<|user|>")]
        stops = [each for each in ends if each is not None]
        return Vocabulary(made[name], stops, thinking=thinking, **more)

    return build


def learned(row: Masked, vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokenizer.decode(row.input_ids[start:end]) for start, end in row.segments]


def prompt_of(messages: list[dict[str, Any]], vocabulary: Vocabulary) -> str:
    """What a server would ask for the last answer, in the row's mode."""
    asked, in_mode = vocabulary.of(messages)
    return in_mode.render(asked[:-1], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "switch", "default", "marks"),
    [
        ("hybrid", "enable_thinking", "on", ("<think>", "</think>")),
        ("opened", "enable_thinking", "on", ("<think>", "</think>")),
        ("system", "enable_thinking", "on", ("<think>", "</think>")),
        ("asked", "thinking", "off", ("<think>", "</think>")),
        (
            "channels",
            None,
            "on",
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ),
        ("nothink", "enable_thinking", "on", ("<think>", "</think>")),
        ("cut", None, "on", ("<think>", "</think>")),
        ("parts", None, "on", ("[THINK]", "[/THINK]")),
        ("budget", "thinking_budget", "on", ("<seed:think>", "</seed:think>")),
        ("effort", "reasoning_effort", "off", ("<think>", "</think>")),
    ],
)
def test_the_switch_its_default_and_the_marks_are_asked_of_the_template(
    name: str, switch: str | None, default: str, marks: tuple[str, str]
) -> None:
    thinking = thinking_of(THINKING[name])
    assert thinking is not None
    assert (thinking.switch, thinking.default, (thinking.opens, thinking.closes)) == (switch, default, marks)
    assert thinking.opened is (name in ("opened", "cut"))
    assert thinking.completed is (name == "cut")
    assert thinking.summary.startswith(switch or ("always" if name == "cut" else "where a row"))


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "",
        "{{ no jinja",
        PLAIN.replace("m.content", "m.content.replace('think', 'thought')"),
        "{%- set thinking = false -%}{%- if thinking -%}a{%- endif -%}" + PLAIN,
        PLAIN.replace(
            "<|im_start|>assistant\\n' }}{%- endif", "<|im_start|>assistant\\n' }}{#- no reasoning -#}{%- endif"
        ),
    ],
)
def test_a_template_that_knows_of_no_reasoning_has_nothing_to_be_asked(text: str) -> None:
    assert thinking_of(text) is None


def test_the_templates_of_trls_wheel_are_understood() -> None:
    """Those of the models themselves, as TRL ships them; a new one that is not understood fails here."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    files = (Path(spec.origin).parent / "chat_templates").glob("*.jinja")
    found = {file.stem: thinking_of(file.read_text("utf-8")) for file in files if not file.stem.endswith("_training")}
    switched = {name for name, each in found.items() if each and each.switch == "enable_thinking"}
    assert {"qwen3", "qwen3_5_think", "qwen3_5_nothink", "glm4moe", "gemma4_v5", "nemotron_3_nano"} <= switched
    none = {"llama3_1", "qwen2_5", "qwen3_instruct_2507", "gemma3", "phi3", "cohere2", "lfm2"}
    assert {name for name in none if found[name]} == set()
    assert {name for name, each in found.items() if each and each.completed} <= {"deepseek_r1_distill", "deepseekv3"}
    assert found["qwen3"].default == found["qwen3_5_think"].default == "on"  # type: ignore[union-attr]
    assert found["qwen3_5_nothink"].default == found["gemma4_v5"].default == "off"  # type: ignore[union-attr]


PRINTING = ("hybrid", "opened", "system", "channels", "nothink", "cut", "parts", "budget", "effort")


@pytest.mark.parametrize("answer", [FIELD, SPELLED], ids=["field", "spelled"])
@pytest.mark.parametrize("name", PRINTING)
def test_reasoning_is_learned_in_whatever_form_a_row_has_it(
    name: str, answer: dict[str, Any], vocabulary_of: Callable[..., Vocabulary]
) -> None:
    vocabulary = vocabulary_of(name)
    row = tokenize_with_spans([ASKED, answer], vocabulary)
    (text,) = learned(row, vocabulary)
    thinking = thinking_of(THINKING[name])
    assert thinking is not None
    assert text.count("Two and two.") == 1
    assert text.count("Four.") == 1
    assert (thinking.opens in text) is not thinking.opened
    assert thinking.closes in text
    assert "reasoned" in row.flags
    assert not row.flags & {"leaves_prompt", "earlier_unlearned"}
    assert not Accountant(vocabulary).left_out_of([ASKED, answer])


@pytest.mark.parametrize("name", THINKING)
def test_a_row_without_reasoning_begins_where_the_prompt_without_thinking_ends(
    name: str, vocabulary_of: Callable[..., Vocabulary]
) -> None:
    vocabulary = vocabulary_of(name)
    row = tokenize_with_spans([ASKED, BARE], vocabulary)
    (text,) = learned(row, vocabulary)
    assert not row.flags & {"reasoned", "leaves_prompt"}
    told = {"channels": "<|channel|>final<|message|>", "cut": "</think>"}.get(name, "")
    assert re.sub(r"<[^>]*>", "", text.replace(told, "", 1)).strip() == "Four."
    if name not in ("channels", "cut"):
        assert text.strip().startswith("Four."), "an empty block is part of the prompt, not of the answer"


@pytest.mark.parametrize("name", ["hybrid", "opened", "nothink"])
def test_an_answer_that_lost_its_reasoning_to_a_later_turn_is_not_learned(
    name: str, vocabulary_of: Callable[..., Vocabulary]
) -> None:
    messages = [ASKED, FIELD, ASKED | {"content": "And 3+3?"}, FIELD | {"content": "Six."}]
    vocabulary = vocabulary_of(name)
    row = tokenize_with_spans(messages, vocabulary)
    (text,) = learned(row, vocabulary)
    assert "Six." in text
    assert {"reasoned", "earlier_unlearned"} <= row.flags
    assert Accountant(vocabulary).left_out_of(messages) == {EARLIER}
    as_is = vocabulary_of(name, "as_is")
    assert len(learned(tokenize_with_spans(messages, as_is), as_is)) == 2


@pytest.mark.parametrize("name", ["hybrid", "nothink", "budget"])
def test_earlier_answers_that_had_none_or_keep_theirs_are_learned(
    name: str, vocabulary_of: Callable[..., Vocabulary]
) -> None:
    vocabulary = vocabulary_of(name)
    thought = FIELD if name == "budget" else BARE
    row = tokenize_with_spans([ASKED, thought, ASKED, FIELD], vocabulary)
    assert len(row.segments) == 2
    assert "earlier_unlearned" not in row.flags


@pytest.mark.parametrize("name", PRINTING)
def test_off_leaves_reasoning_out_and_says_so(name: str, vocabulary_of: Callable[..., Vocabulary]) -> None:
    off = vocabulary_of(name, "off")
    for answer in (FIELD, SPELLED):
        row = tokenize_with_spans([ASKED, answer], off)
        bare = tokenize_with_spans([ASKED, BARE], off)
        assert (row.input_ids, row.labels) == (bare.input_ids, bare.labels)
        assert "reasoning_removed" in row.flags
        assert "reasoning_removed" not in bare.flags
        assert not Accountant(off).left_out_of([ASKED, answer])


def test_on_teaches_rows_without_reasoning_to_go_without(vocabulary_of: Callable[..., Vocabulary]) -> None:
    vocabulary = vocabulary_of("hybrid", "on")
    (text,) = learned(tokenize_with_spans([ASKED, BARE], vocabulary), vocabulary)
    assert text == "<think>\n\n</think>\n\nFour.<|im_end|>"


def test_a_conversation_may_choose_its_mode_in_its_own_words(vocabulary_of: Callable[..., Vocabulary]) -> None:
    vocabulary = vocabulary_of("system")
    system = {"role": "system", "content": "Be brief. /no_think"}
    row = tokenize_with_spans([system, ASKED, BARE], vocabulary)
    (text,) = learned(row, vocabulary)
    assert text == "Four.<|im_end|>"
    assert "Mode: /no_think" in vocabulary.tokenizer.decode(row.input_ids)


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_templates_without_thinking_are_rendered_as_before(
    setting: Setting, vocabulary_of: Callable[..., Vocabulary]
) -> None:
    now, before = vocabulary_of("plain", setting), vocabulary_of("plain", "as_is")
    for messages in ([ASKED, FIELD], [ASKED, SPELLED], [ASKED, BARE, ASKED, SPELLED]):
        assert tokenize_with_spans(messages, now) == tokenize_with_spans(messages, before)
        assert Accountant(now).left_out_of(messages) == Accountant(before).left_out_of(messages)


words = st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=24).filter(str.strip)
thoughts = st.none() | words


@settings(max_examples=examples(60), deadline=None)
@given(
    turns=st.lists(st.tuples(words, thoughts, words), min_size=1, max_size=3),
    spelled=st.booleans(),
    name=st.sampled_from(sorted(THINKING)),
    setting=st.sampled_from(["auto", "off"]),
)
def test_the_prompt_and_what_is_learned_are_the_whole_text(
    turns: list[tuple[str, str | None, str]],
    spelled: bool,
    name: str,
    setting: Setting,
    vocabulary_of: Callable[..., Vocabulary],
) -> None:
    assume(not any("think>" in (part or "") for turn in turns for part in turn))
    messages: list[dict[str, Any]] = []
    for question, thought, reply in turns:
        messages.append({"role": "user", "content": question})
        field = {} if thought is None or spelled else {"reasoning_content": thought}
        inside = f"<think>\n{thought}\n</think>\n\n" if thought is not None and spelled else ""
        messages.append({"role": "assistant", "content": f"{inside}{reply}"} | field)
    vocabulary = vocabulary_of(name, setting)
    try:
        row = tokenize_with_spans(messages, vocabulary)
    except RejectedRow:
        assume(False)
    assert "leaves_prompt" not in row.flags
    asked, in_mode = vocabulary.of(messages)
    whole = in_mode.render(asked)
    prompt = prompt_of(messages, vocabulary)
    assert whole.startswith(prompt)
    encoding = vocabulary.encode(whole)
    start, end = row.segments[-1]
    assert start == encoding.token_at(len(prompt)), "the last answer is learned from where a server hands over"
    assert row.input_ids[: len(encoding.ids)] == encoding.ids
    text = vocabulary.tokenizer.decode(row.input_ids[start:end])
    assert turns[-1][2].strip() in text
    thought = (turns[-1][1] or "").strip()
    if setting == "auto" and name in PRINTING and thought:
        assert thought in text
    tail = encoding.text_of(end, len(encoding.ids)) if end < len(encoding.ids) else ""
    assert not tail.strip()


@pytest.mark.parametrize(
    ("name", "mode", "reply", "expected"),
    [
        ("hybrid", "on", "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>", ("Two and two.", "Four.", False)),
        ("hybrid", "on", "<think>\n\n</think>\n\nFour.", ("", "Four.", False)),
        ("hybrid", "on", "Four.", ("", "Four.", False)),
        ("hybrid", "off", "Four.", ("", "Four.", False)),
        ("hybrid", "on", "<think>\nTwo and", ("Two and", "", True)),
        ("opened", "on", "Two and two.\n</think>\n\nFour.", ("Two and two.", "Four.", False)),
        ("opened", "on", "Two and", ("Two and", "", True)),
        ("opened", "off", "Four.", ("", "Four.", False)),
        ("cut", "on", "Two and two.\n</think>\n\nFour.", ("Two and two.", "Four.", False)),
        ("nothink", "on", "\n<think>Two.</think>\nFour.", ("Two.", "Four.", False)),
        ("parts", "on", "[THINK]Two.[/THINK]Four.", ("Two.", "Four.", False)),
        (
            "channels",
            "on",
            "<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>",
            ("Two.", "Four.", False),
        ),
        ("channels", "on", "<|channel|>final<|message|>Four.<|return|>", ("", "Four.", False)),
        ("channels", "on", "<|channel|>analysis<|message|>Two.", ("Two.", "", True)),
        ("plain", None, "<think>\nTwo.\n</think>\n\nFour.", ("Two.", "Four.", False)),
        ("plain", None, "Four </think> five", ("", "Four </think> five", False)),
    ],
)
def test_a_reply_is_taken_apart(
    name: str, mode: Any, reply: str, expected: tuple[str, str, bool], vocabulary_of: Callable[..., Vocabulary]
) -> None:
    vocabulary = vocabulary_of(name).in_mode(mode)
    prompt = vocabulary.encode(vocabulary.render([ASKED], add_generation_prompt=True)).ids
    read = ReplyReader(vocabulary.tokenizer)(vocabulary.encode(reply).ids, prompt)
    assert (read.thought, read.answer, read.unfinished) == expected
