"""Masks over all chat templates that ship inside TRL's wheel, with whatever people say in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.chat_text import as_taken
from qdora_fast.data.tokenize.left_out import EARLIER, Accountant
from qdora_fast.data.tokenize.masking import IGNORED, Masked, tokenize_with_spans
from qdora_fast.data.tokenize.templates import choose_template
from qdora_fast.data.tokenize.vocabulary import Vocabulary

MARKS = re.compile(r"<\|?[^\s<>|'\"{}]+\|?>|<\uff5c[^\s<>'\"{}]+\uff5c>|\[/?[A-Z_]+\]")
NOT_SPECIAL = {"<think>", "</think>"}  # data may spell these out
STOPS_OF_TOOL_CALLS = ("<|call|>", "<|eom_id|>", "<|tool_response>", "<|observation|>")


def _shipped_templates() -> dict[str, str]:
    spec = find_spec("trl")  # found, not imported
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


TEMPLATES = _shipped_templates()
IMAGE_TEMPLATES = {name for name in TEMPLATES if name.startswith(("idefics3", "smolvlm", "llava_next"))}
TEXT_TEMPLATES = sorted(set(TEMPLATES) - IMAGE_TEMPLATES)
TWINS = [name for name in TEXT_TEMPLATES if name.endswith("_training")]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [user("What is the capital of France?"), answer("Paris.")],
    "system": [system("Be brief."), user("Hi"), answer("Hello there.")],
    "whitespace": [user("  spaced  "), answer("\n  indented answer \n\n")],
    "code": [user("Write add"), answer("```python\ndef add(a, b):\n    return a + b\n```")],
    "repeated": [user("Paris"), answer("Paris"), user("Paris"), answer("Paris")],
    "indic": [user("भारत की राजधानी?"), answer("नई दिल्ली क्\u200dष"), user("தமிழ்?"), answer("తెలుగు క్\u200dష")],
    "thinking": [user("2+2?"), answer("<think>\nTwo and two.\n</think>\n\nFour.")],
    "thinking twice": [
        user("2+2?"),
        answer("<think>\nTwo and two is Four.\n</think>\n\nFour."),
        user("3+3?"),
        answer("<think>\nIt is Six. Yes.\n</think>\n\nSix."),
    ],
    "words of the template": [user("assistant"), answer("assistant user system n"), user("n"), answer("a")],
    "many turns": [
        system("Count."),
        *(turn for word in ("first", "second", "third") for turn in (user(f"say {word}"), answer(word))),
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "a city"}}},
        },
    }
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOL_CONVERSATION = [
    user("Weather?"),
    answer("", tool_calls=[CALL]),
    {"role": "tool", "content": "degrees 21", "name": "get_weather", "tool_call_id": "abcdefghi"},
    answer("It is warm."),
    user("thanks"),
    answer("Welcome."),
]


@pytest.fixture(scope="module")
def vocabulary_for(make_tokenizer: Callable[..., Any]) -> Callable[[str], Vocabulary]:
    """A template's text -> a vocabulary with its marks as special tokens, which stops where its answers end."""

    def build(template: str) -> Vocabulary:
        tokenizer = make_tokenizer(sorted(set(MARKS.findall(template)) - NOT_SPECIAL), bos="<bos>")
        tokenizer.chat_template = template
        tail = tokenizer.apply_chat_template(CONVERSATIONS["plain"], tokenize=False).rpartition("Paris.")[2]
        stops = (MARKS.findall(tail) or ["<|user|>"]) + [mark for mark in STOPS_OF_TOOL_CALLS if mark in template]
        return Vocabulary(tokenizer, [tokenizer.convert_tokens_to_ids(stop) for stop in stops])

    return build


def segments(row: Masked, vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokenizer.decode(row.input_ids[start:end]) for start, end in row.segments]


def check(row: Masked, messages: list[dict[str, Any]], vocabulary: Vocabulary, tools: Any = None) -> None:
    """What must hold of every masked conversation, whatever the template."""
    tokenizer = vocabulary.tokenizer
    answers = [message for message in messages if message["role"] == "assistant"]
    texts = segments(row, vocabulary)
    assert len(texts) == len(answers)
    for message, text in zip(answers, texts, strict=True):
        expected = message["content"].rpartition("</think>")[2].strip()
        assert expected in text, "an answer is not inside its own segment"
        assert all(call["function"]["name"] in text for call in message.get("tool_calls", []))
    for message in messages:
        words = message["content"].strip()
        if message["role"] != "assistant" and len(words) > 4 and all(words not in each["content"] for each in answers):
            assert all(words not in text for text in texts), "words of somebody else are trained"
    assert all(start < end <= after for (start, end), (after, _) in pairwise([*row.segments, (len(row.input_ids), 0)]))
    assert row.input_ids[row.segments[-1][1] - 1] in vocabulary.stop_ids
    trained = {k for start, end in row.segments for k in range(start, end)}
    assert row.labels == [token if k in trained else IGNORED for k, token in enumerate(row.input_ids)]
    taken = as_taken(tokenizer, messages, tools)
    whole = tokenizer.apply_chat_template(taken, tools=tools, tokenize=True, return_dict=False)
    appended = [tokenizer.eos_token_id] if "eos_appended" in row.flags else []
    assert row.input_ids == whole + appended
    assert row.input_ids[:2] != [vocabulary.bos_id] * 2


def test_the_wheel_holds_the_templates_that_this_file_was_written_for() -> None:
    assert len(TEXT_TEMPLATES) >= 66
    assert len(TWINS) >= 28


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_every_conversation_is_masked_with_every_template(
    name: str, vocabulary_for: Callable[[str], Vocabulary]
) -> None:
    vocabulary = vocabulary_for(TEMPLATES[name])
    accountant = Accountant(vocabulary)
    drops_thoughts = name in ("deepseek_r1_distill", "deepseekv3", "deepseekv3_training")
    for title, messages in CONVERSATIONS.items():
        if messages[0]["role"] == "system" and name in ("gemma", "gemma_training"):
            with pytest.raises(RejectedRow, match="template_error: System role not supported"):
                tokenize_with_spans(messages, vocabulary)
            continue
        row = tokenize_with_spans(messages, vocabulary)
        check(row, messages, vocabulary)
        assert row.flags <= ({"eos_appended"} if name == "glm4moe" else set()), title
        lost = accountant.left_out_of(messages)
        assert lost <= ({"thinking"} if drops_thoughts else {EARLIER}), title
        assert not drops_thoughts or ("thinking" in lost) is title.startswith("thinking")


def test_tool_calls_are_masked_or_refused_but_never_guessed(vocabulary_for: Callable[[str], Vocabulary]) -> None:
    masked: list[str] = []
    refusals: dict[str, str] = {}
    for name in TEXT_TEMPLATES:
        vocabulary = vocabulary_for(TEMPLATES[name])
        try:
            row = tokenize_with_spans(TOOL_CONVERSATION, vocabulary, tools=TOOLS)
        except RejectedRow as rejected:
            refusals[name] = rejected.reason
            continue
        check(row, TOOL_CONVERSATION, vocabulary, TOOLS)
        lost = Accountant(vocabulary).left_out_of(TOOL_CONVERSATION, TOOLS)
        assert lost == ({"tools"} if name.startswith("deepseekv3") else set()), name
        masked.append(name)
    assert len(masked) >= 45
    assert set(refusals.values()) <= {"template_error", "answer_not_located"}
    assert {"llama3_1", "qwen2_5", "qwen3", "gptoss", "glm4moe", "gemma4_v5"} <= set(masked)


@pytest.mark.parametrize(("name", "elsewhere"), [("gemma4_v5", True), ("qwen3", False), ("llama3_1", False)])
def test_words_beside_a_call_that_are_printed_behind_the_result_are_flagged(
    name: str, elsewhere: bool, vocabulary_for: Callable[[str], Vocabulary]
) -> None:
    messages = [each | {"content": "Looking."} if "tool_calls" in each else each for each in TOOL_CONVERSATION]
    row = tokenize_with_spans(messages, vocabulary_for(TEMPLATES[name]), tools=TOOLS)
    assert ("words_elsewhere" in row.flags) is elsewhere


@pytest.mark.parametrize("name", TWINS)
def test_generation_marks_where_a_template_has_them_agree(
    name: str, vocabulary_for: Callable[[str], Vocabulary]
) -> None:
    """TRL's own training templates mark the answers; they differ from us in headers and line ends, not in words."""
    vocabulary = vocabulary_for(TEMPLATES[name])
    for title, messages in CONVERSATIONS.items():
        if title == "indic" or (messages[0]["role"] == "system" and name == "gemma_training"):
            continue  # the marks lose the last byte of letters that span several tokens
        ours = [label != IGNORED for label in tokenize_with_spans(messages, vocabulary).labels]
        out = vocabulary.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        theirs = [bool(mark) for mark in out["assistant_masks"]]
        only_ours = [k for k in range(len(ours)) if ours[k] and not theirs[k]]
        only_theirs = [out["input_ids"][k] for k in range(len(ours)) if theirs[k] and not ours[k]]
        assert not only_ours, title
        words = MARKS.sub("", vocabulary.tokenizer.decode(only_theirs)).replace("assistant", "").strip()
        assert not words, title


def test_templates_for_images_are_refused(vocabulary_for: Callable[[str], Vocabulary]) -> None:
    with pytest.raises(RejectedRow, match="answer_not_located"):
        tokenize_with_spans(CONVERSATIONS["plain"], vocabulary_for(TEMPLATES["smolvlm"]))


@pytest.fixture(scope="module")
def vocabulary_of(
    make_tokenizer: Callable[..., Any], vocabulary_for: Callable[[str], Vocabulary]
) -> Callable[[str], Vocabulary]:
    """The vocabulary of a template by name, made once; `alpaca` is our own."""
    base = make_tokenizer()
    choose_template(base, "alpaca")
    made = {"alpaca": Vocabulary(base)} | {name: vocabulary_for(TEMPLATES[name]) for name in ("qwen3", "llama3_1")}
    return made.__getitem__


@pytest.mark.parametrize("name", ["gemma3", "phi3", "qwen3", "llama3_1", "deepseekv3", "gptoss"])
def test_tokenizers_that_mark_spaces_are_masked_as_well(name: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(sorted(set(MARKS.findall(TEMPLATES[name])) - NOT_SPECIAL), bos="<bos>", metaspace=True)
    tokenizer.chat_template = TEMPLATES[name]
    messages = [user("What is the capital"), answer("Paris is the capital"), user("What is Paris"), answer("Paris")]
    tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition("Paris")[2]
    vocabulary = Vocabulary(tokenizer, [tokenizer.convert_tokens_to_ids(stop) for stop in MARKS.findall(tail)])
    check(tokenize_with_spans(messages, vocabulary), messages, vocabulary)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=examples(100), deadline=None)
@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
@pytest.mark.parametrize("name", ["alpaca", "qwen3", "llama3_1"])
def test_whatever_is_said_the_answers_and_nothing_else_are_trained(
    turns: list[tuple[str, str]], name: str, vocabulary_of: Callable[[str], Vocabulary]
) -> None:
    vocabulary = vocabulary_of(name)
    messages = [turn for question, reply in turns for turn in (user(question), answer(reply))]
    row = tokenize_with_spans(messages, vocabulary)
    learned = [text.removeprefix("<think>\n\n</think>\n\n") for text in segments(row, vocabulary)]
    stop = "<eos>" if name == "alpaca" else {"qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>"}[name]
    assert [text.removesuffix(stop).strip() for text in learned] == [reply.strip() for _, reply in turns]
    assert all(text.endswith(stop) for text in learned)
