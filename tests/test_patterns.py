"""No regular expression of ours grows with the square of a text: a row of 100 kB must not take minutes.

Every compiled pattern of the package is run over bad repetitions of two lengths, four times apart. One that is linear
takes four times as long; the limit is a factor of ten. Times are this process' own CPU time, the better of two.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import regex

import qdora_fast

BITS = (
    *("a", " ", "\n", "\t", "=", ":", ".", ",", "-", "_", "/", "\\", "|", "`", "```", "~~~", "{", "{{ a", "[", "<"),
    *("(", '"', "'", "0", "1,", "1 ", "#", "#### (", "-1 1/", "$1", "a.", "a b ", "sk-", "eyJaaaaaaaaaaa.", "token="),
    *("token ", "bearer ", "authorization: bearer ", "?token", "://", "http://", "http://a:", "hf_", "xoxb-", "the "),
    *("-----BEGIN PRIVATE KEY-----", "repeat ", "say ", "write a ", "I am ", "I'm sorry, ", "as an ai ", "Ã", "é"),
    *("漢", "lorem ipsum ", "lora_A.weight", "x.0.", "%", "&a", "<think>", "</think>", "<|im_start|>"),
)
SHORT, LONG = 4_000, 16_000
FASTEST = 0.02
"""Seconds for the longer text that nobody would notice: no pattern that grows with the square stays below."""
ANCHORED = {
    *("config.code._FUNCTION", "config.code._MODULE", "data.clean.filters._FILLER", "models.base_files._PACKED_PART"),
    *("data.clean.filters._LIST_LINE", "exports.merge.base._PACKED_STATE", "models.adapter._LORA_KEY"),
    *("exports.merge.base._BLOCK_WEIGHT", "data.tokenize.modes._HALF", "data.tokenize.modes._SPELLED"),
    *("data.clean.filters._WHOLE", "evaluation.auto._NUMBER", "data.read.detection.WRITTEN_TURNS"),
}
"""Used with match or fullmatch alone, so that they are tried at the start of a text and nowhere else."""


def _patterns() -> Iterator[tuple[str, Any]]:
    seen = set()
    for info in pkgutil.walk_packages(qdora_fast.__path__, "qdora_fast."):
        if "kernels" in info.name or info.name.endswith(("__main__", "preloaded")):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            for each in value if isinstance(value, list | tuple) else [value]:
                text = isinstance(each, re.Pattern | regex.Pattern) and isinstance(each.pattern, str)
                if text and (each.pattern, each.flags) not in seen:
                    seen.add((each.pattern, each.flags))
                    yield f"{info.name.removeprefix('qdora_fast.')}.{name}", each


@pytest.mark.exhaustive
def test_no_pattern_grows_with_the_square_of_its_text() -> None:
    slow, count = [], 0
    for name, form in _patterns():
        count += 1
        for bit in BITS:
            for end in ("", "\0"):
                use = _anchored(form) if name in ANCHORED else _everywhere(form)
                if _seconds(use, bit, end, LONG) > max(FASTEST, 10 * _seconds(use, bit, end, SHORT)):
                    slow.append(f"{name}: {bit!r} repeated")
    assert count > 50
    assert not slow


def _everywhere(form: Any) -> Callable[[str], object]:
    return lambda text: [None for _ in form.finditer(text)]


def _anchored(form: Any) -> Callable[[str], object]:
    return lambda text: form.fullmatch(text) or form.match(text)


def _seconds(use: Callable[[str], object], bit: str, end: str, length: int) -> float:
    text, times = bit * (length // len(bit)) + end, []
    for _ in range(2):
        began = time.process_time()
        use(text)
        times.append(time.process_time() - began)
        if times[0] < FASTEST:
            break
    return min(times)
