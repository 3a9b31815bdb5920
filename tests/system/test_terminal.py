"""Foreign text is shown on a terminal and steers nothing, whichever door it comes through."""

from __future__ import annotations

import io
import sys

import pytest
from heard import heard
from hostile_text import HOSTILE, acting
from rich.text import Text

from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.redact import redact
from qdora_fast.system.terminal import Guarded, Terminal

MARKUP = "[link=http://evil.example]go[/link][/b] :warning: [bold]x"


def test_an_error_shows_what_it_quotes() -> None:
    assert not acting(str(ConfigError(f"no column {HOSTILE}")))


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
    assert not acting(said) and "\x1b" not in said
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
    assert not [each for each in acting(stream.getvalue()) if each != "\r"]
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
