from __future__ import annotations

from datetime import datetime
from pathlib import Path

from qdora_fast.evaluation import log


def test_entries_are_appended_and_found_by_kind(tmp_path: Path) -> None:
    assert log.entries(tmp_path) == []
    path = log.append(tmp_path, "data_review", {"good": 40, "reviewer": "Asha \u0906\u0936\u093e"})
    before = path.read_bytes()
    log.append(tmp_path, "held_out", {"n": 3})
    assert path.read_bytes().startswith(before), "what is written stays"
    assert [entry["kind"] for entry in log.entries(tmp_path)] == ["data_review", "held_out"]
    (review,) = log.entries(tmp_path, "data_review")
    assert review["reviewer"] == "Asha \u0906\u0936\u093e"
    assert datetime.fromisoformat(review["at"]).tzinfo is not None


def test_half_a_line_of_a_killed_process_is_dropped_and_what_comes_next_is_whole(tmp_path: Path) -> None:
    path = log.append(tmp_path, "held_out", {"n": 1})
    path.write_bytes(path.read_bytes() + b'{"kind": "held_o')
    assert [entry["n"] for entry in log.entries(tmp_path)] == [1]
    log.append(tmp_path, "held_out", {"n": 2})
    assert [entry["n"] for entry in log.entries(tmp_path)] == [1, 2]
