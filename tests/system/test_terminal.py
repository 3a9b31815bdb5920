"""Foreign text is shown on a terminal and steers nothing, whichever door it comes through."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest
from heard import heard
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.redact import redact
from qdora_fast.system.terminal import Guarded, Terminal
from qdora_fast.system.visible import escaped, visible

HOSTILE = "\x1b]0;OWNED\x07\x1b[2J\x9b31m \u202eabc\u2066 \U000e0041 \ud800 \r\b"
MARKUP = "[link=http://evil.example]go[/link][/b] :warning: [bold]x"


def _acts(text: str) -> list[str]:
    """Characters that act on a terminal or on the order of what is read."""
    bidi = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE0080))}
    return [
        each for each in text if each in bidi or (unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t")
    ]


@given(st.text(st.characters() | st.sampled_from(HOSTILE)))
def test_nothing_acts_in_visible_text_and_the_rest_stays(text: str) -> None:
    shown = visible(text)
    assert not _acts(shown) and len(shown) == len(text)
    assert all(new == old for new, old in zip(shown, text, strict=True) if not _acts(old))


@pytest.mark.parametrize("text", ["مرحبا\u200f (abc)\u200e", "שלום", "👩‍👩‍👧 🏳️‍🌈", "a\u0301\ttab\nline", "中文"])
def test_writing_of_the_world_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(HOSTILE)))
def test_json_for_the_terminal_has_the_same_values(text: str) -> None:
    shown = escaped(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(shown) == json.loads(json.dumps({text: [text]})) and not _acts(shown)


def test_an_error_shows_what_it_quotes() -> None:
    assert not _acts(str(ConfigError(f"no column {HOSTILE}")))


@pytest.mark.parametrize("text", [HOSTILE, MARKUP])
def test_strings_act_through_no_function_of_the_console(text: str, capsys: pytest.CaptureFixture) -> None:
    table = console.grid(text, text)
    table.add_row(text, text)
    with heard() as out:
        console.line("base", text)
        console.note(text)
        console.print(text, text)
        console.aside(text)
        console.print(table)
        with console.status(text), console.progress() as progress:
            progress.add_task(text, message=text)
    console.result(text)
    console.result(table)
    said = out.getvalue() + capsys.readouterr().out
    assert not _acts(said) and "\x1b" not in said
    if text == MARKUP:
        assert said.count(MARKUP) >= 8


def test_a_console_styles_its_own_text_on_a_terminal() -> None:
    stream = io.StringIO()
    Terminal(file=stream, force_terminal=True, color_system="standard").print("a\x1b[31mb", style="bold")
    assert "\x1b[1m" in stream.getvalue() and "\x1b[31m" not in stream.getvalue()


def test_the_last_net_holds_whatever_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", Guarded(stream, redact))
    print(HOSTILE, file=sys.stderr)
    assert not [each for each in _acts(stream.getvalue()) if each != "\r"]
    sys.stderr.writelines([f"{HOSTILE}\n", "x\n"])
    assert "\x1b" not in stream.getvalue()


def test_bars_of_libraries_and_our_own_styles_pass_the_last_net(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm import tqdm

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", Guarded(stream, redact))
    with tqdm(total=2, file=sys.stderr) as outer, tqdm(total=2, file=sys.stderr) as inner:
        inner.update(2)
        outer.update(2)
    assert "\x1b[A" in stream.getvalue() and "\r" in stream.getvalue() and "␛" not in stream.getvalue()
    Terminal(stderr=True, force_terminal=True, color_system="standard").print(Text("x", style="bold"))
    assert "\x1b[1m" in stream.getvalue()
