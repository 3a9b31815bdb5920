"""Rows with one fault each, and the reason for which `prepare` has to drop them.

A fault is put into a good row, so that nothing else is wrong with it. Not all of them can be found: a filter that
gives way to text about songs, templates or code gives way here as well, and lines of sums look like code.

What only a table, a formatter or a weight can bring about is not here (wrong_columns, formatter_failed, left_out,
thinned), nor what needs another template than Alpaca's (template_error, answer_not_located), nor refusals, which are
looked for on request only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.data.seed_text import AlpacaRow, Writer


class Fault(NamedTuple):
    """`make(row, writer)` gives the line of a row that has the fault; `reason` is of `rejects.REASONS`."""

    name: str
    reason: str
    make: Callable[[AlpacaRow, Writer], bytes]


def as_line(row: object) -> bytes:
    """One JSON line."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def as_chat(row: AlpacaRow, **answer: object) -> dict[str, Any]:
    """The row as a conversation."""
    turns = [
        {"role": "user", "content": row["instruction"]},
        {"role": "assistant", "content": row["output"], **answer},
    ]
    return {"id": row["id"], "messages": turns}


def _with(change: Callable[[AlpacaRow, Writer], AlpacaRow]) -> Callable[[AlpacaRow, Writer], bytes]:
    return lambda row, writer: as_line(row | change(row, writer))


def _output(change: Callable[[str, random.Random], object]) -> Callable[[AlpacaRow, Writer], bytes]:
    return _with(lambda row, writer: {"output": change(row["output"], writer.rng)})


def _without(key: str) -> Callable[[AlpacaRow, Writer], bytes]:
    return lambda row, writer: as_line({name: value for name, value in row.items() if name != key})


def _insert(text: str, piece: str, rng: random.Random) -> str:
    words = text.split(" ")
    words.insert(rng.randrange(len(words) + 1), piece)
    return " ".join(words)


def _cut(row: AlpacaRow, writer: Writer) -> bytes:
    plain = [sentence for sentence in writer.sentences if not set(sentence) & set("=<>/+")]
    words = " ".join(writer.rng.sample(plain, 4)).split(" ")
    return as_line(row | {"output": f"{' '.join(words)} After that the {' '.join(words[:9])} and the"})


def _cut_sum(row: AlpacaRow, writer: Writer) -> bytes:
    words = " ".join(writer.rng.sample(writer.sentences, 4))
    return as_line(row | {"output": f"{words} After that the price is 3 * 14 = <<3*14=42>>42 and the"})


def _cut_code(row: AlpacaRow, writer: Writer) -> bytes:
    return as_line(row | {"output": f"{row['output']}\n\n```python\nfor number in range(10):\n    print(num"})


def _long(row: AlpacaRow, writer: Writer) -> bytes:
    sentences = writer.rng.choices(writer.sentences, k=max(3_000, len(writer.sentences)))
    return as_line(row | {"output": " ".join(sentences)[:30_000] + " This is the end."})


def _loop(row: AlpacaRow, writer: Writer) -> bytes:
    return as_line(row | {"output": " ".join([writer.rng.choice(writer.sentences)] * 20)})


def _garbled(text: str, rng: random.Random) -> str:
    broken = "the café in Zürich is “quite good”".encode().decode("cp1252", "replace").replace("\ufffd", "")
    return _insert(text, broken, rng)


ALPACA_FAULTS = (
    Fault("cut line", "bad_json", lambda row, writer: as_line(row)[: len(as_line(row)) // 2] + b"\n"),
    Fault("single quotes", "bad_json", lambda row, writer: repr(row).encode() + b"\n"),
    Fault("list", "not_an_object", lambda row, writer: as_line(list(row.values()))),
    Fault("number", "not_an_object", lambda row, writer: as_line(writer.rng.randrange(10**6))),
    Fault("no output", "missing_field", _without("output")),
    Fault("no instruction", "missing_field", _without("instruction")),
    Fault("output is an object", "wrong_type", _output(lambda text, rng: {"text": text})),
    Fault("output is true", "wrong_type", _output(lambda text, rng: True)),
    Fault("image part", "wrong_type", _output(lambda text, rng: [{"type": "image_url", "image_url": {"url": "a"}}])),
    Fault(
        "Latin-1 byte",
        "broken_unicode",
        lambda row, writer: as_line(row | {"output": row["output"] + " caf#"}).replace(b"caf#", b"caf\xe9"),
    ),
    Fault(
        "half a surrogate",
        "broken_unicode",
        lambda row, writer: as_line(row | {"output": row["output"] + " caf#"}).replace(b"caf#", b"caf\\ud83d"),
    ),
    Fault("output is null", "empty_answer", _output(lambda text, rng: None)),
    Fault("blank output", "empty_answer", _output(lambda text, rng: rng.choice(("", " \n ", "\t", "\u00a0")))),
    Fault("instruction is null", "empty_prompt", _with(lambda row, writer: {"instruction": None})),
    Fault("blank instruction", "empty_prompt", _with(lambda row, writer: {"instruction": "  \n"})),
    Fault(
        "stand-in",
        "placeholder_answer",
        _output(lambda text, rng: rng.choice(("TODO", "[insert answer here]", "...", "<your answer here>"))),
    ),
    Fault("unfilled field", "placeholder_answer", _output(lambda text, rng: f"Dear {{{{customer_name}}}}, {text}")),
    Fault("cut sentence", "truncated_answer", _cut),
    Fault("cut calculation", "truncated_answer", _cut_sum),
    Fault("open code block", "truncated_answer", _cut_code),
    Fault("wrong decoding", "mojibake", _output(_garbled)),
    Fault("NUL", "control_characters", _output(lambda text, rng: _insert(text, "a\x00b", rng))),
    Fault("escape sequence", "control_characters", _output(lambda text, rng: _insert(text, "\x1b[31mred", rng))),
    Fault("U+FFFD", "control_characters", _output(lambda text, rng: _insert(text, "caf\ufffd", rng))),
    Fault("loop", "repetition", _loop),
    Fault(
        "short",
        "too_short",
        lambda row, writer: as_line({"id": row["id"], "instruction": f"Case {row['id']}?", "output": "No."}),
    ),
    Fault("long", "too_long", _long),
    Fault("special token", "special_token_in_text", _output(lambda text, rng: _insert(text, "<eos>", rng))),
)
"""For a file of Alpaca rows. The special token is that of the demo's tokenizer."""


def _turns(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[AlpacaRow, Writer], bytes]:
    return lambda row, writer: as_line({"id": row["id"], "messages": change(as_chat(row)["messages"])})


CHAT_FAULTS = (
    Fault("assistant first", "role_order", _turns(lambda turns: [turns[1], *turns])),
    Fault(
        "result without a call",
        "role_order",
        _turns(lambda turns: [turns[0], {"role": "tool", "content": "42 of 42"}, turns[1]]),
    ),
    Fault("unknown role", "unknown_role", _turns(lambda turns: [turns[0], turns[1] | {"role": "critic"}])),
    Fault(
        "late system",
        "system_not_first",
        _turns(lambda turns: [turns[0], {"role": "system", "content": "Be brief."}, turns[1]]),
    ),
    Fault(
        "no user", "no_user_turn", _turns(lambda turns: [{"role": "system", "content": turns[0]["content"]}, turns[1]])
    ),
    Fault("no answer", "no_assistant_turn", _turns(lambda turns: turns[:1])),
    Fault("nothing trained", "nothing_to_train", _turns(lambda turns: [turns[0], turns[1] | {"weight": 0}])),
    Fault(
        "marks differ",
        "same_role_twice",
        _turns(lambda turns: [*turns, {"role": "assistant", "content": "Yes.", "weight": 0}]),
    ),
    Fault("broken tools", "broken_tool_json", lambda row, writer: as_line(as_chat(row) | {"tools": '[{"name": '})),
    Fault(
        "broken call",
        "broken_tool_json",
        lambda row, writer: as_line(as_chat(row, tool_calls=[{"function": {"name": "f", "arguments": "{"}}])),
    ),
    Fault("blank answer", "empty_answer", _turns(lambda turns: [turns[0], turns[1] | {"content": "\n"}])),
)
"""For a file of conversations."""
