"""YAML that would cost time, memory or trust is refused before it is loaded; the rest comes as plain values."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config.yaml import read_value, read_yaml, write_yaml
from qdora_fast.system.errors import ConfigError


def _bomb(levels: int, item: str) -> str:
    """Nine aliases of nine aliases of ..."""
    lines = [item.format(n=n, inner=",".join([f"*a{n - 1}"] * 9)) for n in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1, y: 2}", *lines])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_bomb(10, "a{n}: &a{n} [{inner}]"), "aliases that multiply"),
        (_bomb(10, "a{n}: &a{n} {{k: [{inner}]}}"), "aliases that multiply"),
        (_bomb(40, "a{n}: &a{n} {{<<: [{inner}]}}"), "100 aliases"),
        ("a: " + "[" * 5_000, "nested more than 20 levels"),
        ("a: [" + "1," * 20_000 + "1]", "more than 10,000 values"),
        ("a: " + "b" * 300_000, "300,003 bytes, which is no config"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !mine b", "the tag !mine"),
        ("a: 1\nb: 2\na: 3\n", "line 3: found duplicate key"),
        ("a: 1\n---\nb: 1\n", "another document"),
        ("a: '\x00'", "special characters are not allowed"),
    ],
    ids=range(11),
)
def test_what_no_config_holds_is_refused_and_not_built(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_yaml(tmp_path / "a.yaml")


def test_merged_keys_are_read_and_few_aliases_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\nc: [*a, *a]\n")
    values, lines = read_yaml(tmp_path / "a.yaml")
    assert values == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
    assert lines[("b", "y")] == "line 4"


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name the YAML file in it"):
        read_yaml(tmp_path)
    (tmp_path / "a.yaml").write_bytes("a: 1\nb: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a.yaml, line 2: not UTF-8 \(byte 0xe9\)"):
        read_yaml(tmp_path / "a.yaml")


MARKS = st.sampled_from([*"abc:-[]{}&*!|>#%@,?'\"\n \t", "<<: *a", "&a ", "*a", "- ", ": ", "!!set ", "\n  "])


@given(st.lists(MARKS).map("".join) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        read_value(text)


def test_what_holds_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="aliases that multiply"):
        read_value("&a {b: [*a, *a]}")


LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.sampled_from("abcde")
PLAIN = st.recursive(
    SCALARS | st.text(LETTERS, max_size=20),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(NAMES, PLAIN, min_size=1))
def test_what_is_written_is_read_back(values: dict[str, object]) -> None:
    assert read_value(write_yaml(values)) == values
