"""Thousands of damaged files: each of their rows is kept or rejected with a reason, and none is a crash.

The rows go the way they go in a run: `open_source`, then `formats.convert`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdora_fast.config.data import SourceSettings
from qdora_fast.data.clean.rejects import REASONS, RejectedRow
from qdora_fast.data.read import large_json, readers
from qdora_fast.data.read.formats import convert
from qdora_fast.data.read.readers import BadRow
from qdora_fast.data.read.sources import open_source
from qdora_fast.system.errors import DataError

TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
GOOD: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Name a colour.", "input": "", "output": "Blue.", "history": [["Hi", "Hello"]]},
    "chatml": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "How warm is it?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "21", "name": "weather"},
            {"role": "assistant", "content": "21 degrees.", "weight": 1},
        ],
        "tools": [TOOL],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "How warm?"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "21"},
            {"from": "gpt", "value": "21 degrees."},
        ],
        "system": "Be brief.",
        "tools": json.dumps([TOOL]),
    },
    "prompt_completion": {"prompt": "Name a colour.", "completion": [{"role": "assistant", "content": "नीला"}]},
    "text": {"text": "Once upon a time"},
}

ODD_WORDS = [
    "\ud800",
    "\udfff x",
    "\0",
    "\u2028",
    "\r\n",
    "\ufeff",
    " ",
    "",
    "user",
    "assistant",
    "system",
    "{",
    "[]",
    "null",
]
KEYS = ["role", "content", "type", "text", "value", "name"]
words = st.text(st.characters(), max_size=5) | st.sampled_from(ODD_WORDS)
wild = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**4000) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged_rows(draw: Callable[..., Any], form: str) -> Any:
    """A good row with up to two values, at any depth, replaced by wild ones, left out, or given another key."""
    row = json.loads(json.dumps(GOOD[form]))
    for _ in range(draw(st.integers(0, 2))):
        inside = row
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inside[key], dict | list) and draw(st.booleans()):
                inside = inside[key]
                continue
            if draw(st.integers(0, 3)):
                inside[key] = draw(wild)
            else:
                del inside[key]
            break
    return row


WHOLE_LINES = [
    b"[]",
    b'"text"',
    b"5",
    b"null",
    b"{}",
    b"",
    b"  ",
    b"\r",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"}{",
    b"[{}]",
]
CHARACTERS = [b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\xe2\x80\xa8", b"\x1b[0m", b"\\ud800"]
MARKS = [b"\\", b'"', b",", b",,", b":", b"}", b"]", b"[", b"{", b"//", b"NaN", b"-Infinity", b"1e999", b"9" * 5_000]
NESTS = [b"[" * 150 + b"]" * 150, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 600 + b"1" + b"}" * 600]
INSIDE = [*CHARACTERS, *MARKS, *NESTS, b'{"a": 1}', b'"instruction": 1,', b'"messages": 1,']


@st.composite
def damaged_lines(draw: Callable[..., Any], form: str) -> bytes:
    """A line of JSON, or what is left of one; never with a line feed in it."""
    line: bytes = json.dumps(draw(damaged_rows(form)), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    kind = draw(st.sampled_from(["as it is", "cut", "insert", "insert", "replace", "comma"]))
    at = draw(st.integers(0, len(line)))
    if kind == "cut":
        return line[:at]
    if kind == "insert":
        return line[:at] + draw(st.sampled_from(INSIDE)) + line[at:]
    if kind == "comma":
        return line[:-1] + b",}"
    return draw(st.sampled_from(WHOLE_LINES)) if kind == "replace" else line


def outcome(path: Path, form: str) -> tuple[int, int]:
    """(kept, rejected) rows of a file, as a run would have them.

    Whatever is kept, and whatever is said about the rest, can be written to a file.
    """
    source = open_source(SourceSettings.model_validate({"path": str(path), "format": form}))
    converter = source.detection.converter()
    kept = rejected = 0
    for raw in source.rows():
        try:
            if isinstance(raw, BadRow):
                raise RejectedRow(raw.reason, raw.detail)
            conversation = convert(raw.row, converter)
        except RejectedRow as reason:
            f"{REASONS[reason.reason]} {reason.detail} {raw.source}".encode()
            rejected += 1
        else:
            said = [conversation.messages, conversation.tools, conversation.text]
            json.dumps(said, sort_keys=True, ensure_ascii=False).encode()
            kept += 1
    return kept, rejected


def outcome_or_error(path: Path, form: str) -> tuple[int, int] | None:
    """The same, or None where the whole file is refused, by name."""
    try:
        return outcome(path, form)
    except DataError as error:
        said = str(error)
    said.encode()
    assert path.name in said
    return None


def is_blank(line: bytes) -> bool:
    return not line.decode(errors="replace").removeprefix("\ufeff").strip()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one file at a time."""
    return tmp_path_factory.mktemp("damaged")


many = settings(max_examples=examples(70), deadline=None, suppress_health_check=list(HealthCheck))
forms = pytest.mark.parametrize("form", list(GOOD))


@forms
@many
@given(data=st.data())
def test_of_json_lines_every_line_is_kept_or_rejected(form: str, data: st.DataObject, files: Path) -> None:
    lines = [json.dumps(GOOD[form]).encode(), *data.draw(st.lists(damaged_lines(form), min_size=2, max_size=6))]
    path = files / "damaged.jsonl"
    path.write_bytes(data.draw(st.sampled_from([b"\n", b"\r\n"])).join(lines))
    kept, rejected = outcome(path, form)
    assert kept >= 1
    assert kept + rejected == sum(not is_blank(line) for line in lines)


@forms
@many
@given(data=st.data())
def test_of_an_array_every_element_is_kept_or_rejected(form: str, data: st.DataObject, files: Path) -> None:
    elements = [GOOD[form], *data.draw(st.lists(damaged_rows(form) | wild, max_size=4))]
    path = files / "damaged.json"
    path.write_bytes(json.dumps(elements).encode())
    with pytest.MonkeyPatch.context() as patch:
        kept, rejected = outcome(path, form)
        assert kept >= 1
        assert kept + rejected == len(elements)
        patch.setattr(readers, "LARGE_JSON", 10)
        patch.setattr(large_json, "WINDOW", 64)
        assert outcome(path, form) == (kept, rejected)


@forms
@many
@given(data=st.data(), limit=st.sampled_from([10, 10**6]))
def test_a_broken_array_is_rows_or_one_error(form: str, data: st.DataObject, limit: int, files: Path) -> None:
    path = files / "damaged.json"
    path.write_bytes(b"[" + b",".join(data.draw(st.lists(damaged_lines(form), max_size=4))) + b"]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "LARGE_JSON", limit)
        counts = outcome_or_error(path, form)
    assert counts is None or sum(counts) == len(json.loads(path.read_bytes()))


@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(words.map(lambda text: text.replace("\ufeff", "x")), min_size=1, max_size=4), max_size=6),
    spoilt=st.sets(st.integers(0, 5)),
    delimiter=st.sampled_from([",", "\t"]),
)
def test_of_a_table_every_row_is_kept_or_rejected(
    rows: list[list[str]], spoilt: set[int], delimiter: str, files: Path
) -> None:
    rows = [["Wo?", "Hier"], *(["spoilt \udcff", *row] if number in spoilt else row for number, row in enumerate(rows))]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt", "completion"], *rows])
    path = files / ("damaged.csv" if delimiter == "," else "damaged.tsv")
    path.write_bytes(text.getvalue().encode(errors="surrogatepass"))  # halves of pairs are not UTF-8
    kept, rejected = outcome(path, "prompt_completion")
    assert kept >= 1
    assert kept + rejected == sum(len(row) > 1 or bool(row[0].strip()) for row in rows)


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": [{"type": "half a pair \ud800"}]}]},
        {"tools": '[{"name": "x", "parameters": ' + "[" * 500 + "]" * 500 + "}]"},
    ],
    ids=["a type that cannot be written", "tools nested deeply inside a text"],
)
def test_what_is_wrong_inside_a_part_or_a_text_of_json_costs_the_row(more: dict[str, Any], files: Path) -> None:
    path = files / "damaged.jsonl"
    path.write_text(json.dumps(GOOD["chatml"] | more))
    assert outcome(path, "chatml") == (0, 1)


PIECES = [b"q,a\n", b"1,2\n", b'"x",y', b'"', b",", b"\n", b"\r", b"\r\n", b"\xff", b"\0", b"\xef\xbb\xbf", b"\t"]


@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), form=st.sampled_from(["auto", "prompt_completion"]))
def test_a_broken_table_is_rows_or_one_error(pieces: list[bytes], form: str, files: Path) -> None:
    path = files / "damaged.csv"
    path.write_bytes(b"".join(pieces))
    outcome_or_error(path, form)
