"""A notebook sees a bar that moves, cards in which foreign text is text, and errors without a traceback."""

from __future__ import annotations

import io

import pytest
from stand_in_notebook import open_notebook

from qdora_fast.system import console, notebook
from qdora_fast.system.charts import Series
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.terminal import Terminal


def test_a_bar_is_one_display_that_is_updated_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = open_notebook(monkeypatch)
    monkeypatch.setattr(notebook, "SECONDS", 0.0)
    with console.counting_rows("<b>rows", 4) as on_rows:
        on_rows(1)
        on_rows(2)
    assert "3/4" in shown[-2]["text/plain"] and "width:75.00%" in shown[-2]["text/html"]
    assert "&lt;b&gt;rows" in shown[-2]["text/html"] and "<b>rows" not in shown[-2]["text/html"]
    assert shown[-1] == {"text/html": "", "text/plain": ""}


def test_a_bar_is_drawn_about_twice_a_second_however_often_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = open_notebook(monkeypatch)
    with console.counting_rows("rows", 1000) as on_rows:
        for _ in range(1000):
            on_rows(1)
    assert len(shown) < 50


def test_the_training_bar_stays_with_its_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = open_notebook(monkeypatch)
    curve = Series("training", "train", [(1, 3.0), (2, 2.0), (3, 1.0)])
    with console.progress(stays=True) as progress:
        task = progress.add_task("training", total=3, message="")
        progress.update(task, completed=3, message="loss 1.0", curves=lambda: [curve])
    assert "<polyline" in shown[-1]["text/html"] and "loss 1.0" in shown[-1]["text/plain"]


def test_a_terminal_and_a_pipe_see_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = open_notebook(monkeypatch, kernel=None)  # IPython in a terminal
    with console.counting_rows("rows", 4) as on_rows:
        on_rows(4)
    monkeypatch.undo()
    shown += open_notebook(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    with console.counting_rows("rows", 4) as on_rows:
        on_rows(4)
    assert shown == []


def test_a_notebook_is_no_terminal_whatever_its_stream_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel does
    assert Terminal(file=Stream()).is_terminal
    open_notebook(monkeypatch)
    terminal = Terminal(file=(stream := Stream()))
    terminal.print("a line", style="bold")
    assert not terminal.is_terminal and stream.getvalue() == "a line\n"


def test_foreign_text_and_secrets_in_a_card() -> None:
    html = notebook.card("<script>", "hf_" + "a" * 34, columns=("",), table=[("<img>", "x")], notes=["<i>"], file="<b>")
    assert "<script>" not in html and "<img>" not in html and "<i>" not in html and "aaaa" not in html


def test_ipython_shows_an_error_by_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConfigError("data.path: nothing there")
    open_notebook(monkeypatch)
    lines = error._render_traceback_()
    assert lines[0] == "ConfigError: data.path: nothing there" and len(lines) <= 5
    assert "%xmode Plain" in lines[-1]
    open_notebook(monkeypatch, mode="Plain")
    assert error._render_traceback_() == ["the traceback"]
