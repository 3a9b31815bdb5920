"""`make real`: its rows, its session that goes on where it stopped, and, where the package can be had, all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.real import stages
from benchmarks.real.model import PACKAGE, model_folder
from benchmarks.real.rows import make_rows
from benchmarks.real.session import run_real
from benchmarks.real.work import Figures, StageFailed, Work, as_booking, question
from qdora_fast.system.errors import ConfigError


def test_rows_are_the_same_every_time_and_none_occurs_twice() -> None:
    rows = make_rows(300)
    assert rows == make_rows(300)
    assert rows != make_rows(300, seed=1)
    assert len({row["input"] for row in rows}) == 300


def test_a_booking_is_what_the_message_says() -> None:
    for row in make_rows(300):
        booking = json.loads(row["output"])
        assert booking["name"] in row["input"] and booking["day"] in row["input"]
        assert booking.keys() == question()[1].keys()


@pytest.mark.parametrize(
    ("time", "said"),
    [("19:30", "half past seven in the evening"), ("11:45", "quarter to twelve in the morning"), ("12:00", "12 pm")],
)
def test_times_are_said_as_people_say_them(time: str, said: str) -> None:
    with_it = [row for row in make_rows(3000) if said in row["input"]]
    assert with_it and all(json.loads(row["output"])["time"] == time for row in with_it)


def test_only_json_with_the_four_keys_is_a_booking() -> None:
    wanted = question()[1]
    assert as_booking(json.dumps(wanted)) == wanted
    assert as_booking(f"Sure! {json.dumps(wanted)}") is None
    assert as_booking('{"name": "Selma Brandt"}') is None
    assert as_booking("[]") is None


def test_a_session_repeats_what_failed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def good(work: Work) -> Figures:
        calls.append("answer")
        return {"passed": True, "right": True, "answer": "{}"}

    def fails_once(work: Work) -> Figures:
        calls.append("chat")
        if calls.count("chat") == 1:
            raise StageFailed("train ended with exit code 13")
        return {"passed": True, "right": {"run": True}}

    monkeypatch.setattr(stages, "SHORT", {"answer": good, "chat": fails_once})
    first = run_real(tmp_path, model=tmp_path)
    assert not first["gate"]["passed"] and "exit code 13" in first["gate"]["red"][0]
    assert run_real(tmp_path, model=tmp_path)["gate"] == {"passed": True, "red": []}
    assert calls == ["answer", "chat", "chat"]
    run_real(tmp_path, model=tmp_path, steps=5)  # another question
    assert calls[3:] == ["answer", "chat"]


@pytest.mark.exhaustive
def test_a_real_model_is_tuned_proven_and_asked(tmp_path: Path) -> None:
    try:
        model = model_folder(tmp_path / "model")
    except ConfigError as error:
        pytest.skip(f"the package {PACKAGE} cannot be had here: {error}")
    record = run_real(tmp_path / "session", model=model, steps=16, rows=200, questions=16)
    assert record["gate"] == {"passed": True, "red": []}
