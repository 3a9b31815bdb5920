"""The console: what it says, to whom, and how times are written."""

from __future__ import annotations

import pytest
from heard import heard

from qdora_fast.system import console
from qdora_fast.system.console import clock, time_range


def test_times_are_said_as_people_say_them() -> None:
    assert [clock(seconds) for seconds in (95, 3599, 5400)] == ["1:35 min", "59:59 min", "1:30 h"]
    assert [time_range(each) for each in ((130, 160), (95, 95.2), (3500, 5400))] == [
        "2:10 to 2:40 min",
        "1:35 min",
        "58:20 min to 1:30 h",
    ]


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with heard() as out:
        console.note("from the first")
        monkeypatch.setenv("RANK", "1")
        console.note("from the second")
        console.line("engine", "from the second")
    assert out.getvalue() == "Note      from the first\n"


def test_secrets_and_control_characters_are_not_printed() -> None:
    with heard() as out:
        console.line("base", "token hf_" + "a" * 34 + " \x1b[31m")
    assert "aaaa" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_results_go_to_standard_output(capsys: pytest.CaptureFixture) -> None:
    console.result("found [it]")
    console.print("looking")
    said = capsys.readouterr()
    assert said.out == "found [it]\n" and said.err == "looking\n"


def test_names_are_no_markup_in_tables_bars_and_spinners(capsys: pytest.CaptureFixture) -> None:
    name = "[bold]my [/] run[/red]"
    table = console.grid("run")
    table.add_row(name)
    console.result(table)
    assert name in capsys.readouterr().out
    with console.status(name), console.progress() as progress:
        progress.add_task(name, message=name)
