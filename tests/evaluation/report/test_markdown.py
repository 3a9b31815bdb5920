from __future__ import annotations

import re

import pytest
from html_pages import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.evaluation.report.markdown import code, escaped, fenced

wild = st.text(alphabet=st.sampled_from("ab <>&;#*`[]()|\\\n!/")) | st.sampled_from(HOSTILE)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("p < 0.001, 3 & 4", "p < 0.001, 3 & 4"),
        ("normalized_match", "normalized_match"),
        ("a <b> &lt; c", "a &lt;b\\> &amp;lt; c"),
        ("x | *y* [z](u) `v` \\", "x \\| \\*y\\* \\[z\\](u) \\`v\\` \\\\"),
        ("two\nlines", "two lines"),
        (None, "None"),
    ],
)
def test_only_what_would_be_markup_is_escaped(value: object, said: str) -> None:
    assert escaped(value) == said


@given(wild)
def test_an_escaped_text_is_one_line_and_gives_the_text_back(text: str) -> None:
    line = escaped(text)
    assert "\n" not in line and not re.search(r"<[A-Za-z/!?]", line)
    plain = re.sub(r"\\([\\`*\[\]|>])", r"\1", line).replace("&lt;", "<").replace("&amp;", "&")
    folded = " ".join(text.split())
    assert plain == folded or "&" in folded  # a text may hold an entity of its own


@given(wild)
def test_code_stays_between_its_backticks(text: str) -> None:
    assert "`" not in code(text) and "\n" not in code(text)


@given(wild)
def test_no_line_of_a_block_closes_its_fence(text: str) -> None:
    start, inside, end = fenced(text, "yaml")
    assert (start, inside) == (f"{end}yaml", text)
    assert not any(line.strip().startswith(end) for line in text.split("\n"))
