"""An array read through a small window gives what the whole text would have given, or an error where it would."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.read import large_json
from qdora_fast.data.read.large_json import array_items

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True, params=[1, 7, 1000])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "WINDOW", request.param)


def items(text: str) -> list[Any]:
    return list(array_items(io.StringIO(text)))


def outcome(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError:
        return "an error"


@settings(max_examples=examples(60), deadline=None)
@given(array=st.lists(values, max_size=6), ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_any_array_comes_back_whatever_the_window(array: list[Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(array, ensure_ascii=ascii_only, indent=indent)
    assert items(text) == array
    assert items(json.dumps({"before": {"data": array}, "data": array}, ensure_ascii=ascii_only)) == array


@settings(max_examples=examples(100), deadline=None)
@given(text=st.text('{}[]":,\\u1e5tn- \n', max_size=40))
def test_anything_else_is_an_error_as_it_is_for_the_whole_text(text: str) -> None:
    assert outcome(items, f"[{text}]") == outcome(json.loads, f"[{text}]")


def test_numbers_and_words_may_be_cut_anywhere() -> None:
    text = '[12345678901234567890123, -1.5e-10, true, null, -Infinity, "\\ud83d\\ude00", "\\ud800"]'
    assert items(text) == json.loads(text)


def test_no_more_than_the_broken_place_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "WINDOW", 100)
    stream = io.StringIO('[{"a": 1}, {"a": oops}' + ', {"a": 1}' * 10_000 + "]")
    found = array_items(stream)
    assert next(found) == {"a": 1}
    with pytest.raises(ValueError, match="Expecting value"):
        next(found)
    assert stream.tell() < 1_000
