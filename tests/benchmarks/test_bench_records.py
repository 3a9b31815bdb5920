"""Records become the generated part of BENCHMARKS.md, and that part is what the records give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from qdora_fast.system.errors import ConfigError

MACHINE = {
    "cpu": "a processor",
    "threads": 2,
    "python": "3.11.7",
    "packages": {
        "torch": "2.13.0",
        "triton": None,
        "unsloth": None,
        "transformers": "5.17.0",
        "peft": "0.21.2",
        "bitsandbytes": "0.50.2",
    },
    "gpus": [],
    "date": "2026-11-25",
    "commit": "abc",
    "command": "qdora-fast bench",
}
OPERATIONS = {part: {"gemms": 3, "launches": 9} for part in ("forward", "backward")}
FIGURES = {
    "step_s": 0.05,
    "step_s_spread": {"median": 0.05, "lower": 0.04, "upper": 0.06, "count": 15},
    "tokens_per_s": 20480.0,
    "peak_bytes": 2**20,
    "resident_bytes": 2**22,
    "layer_saved_bytes": 2**19,
    "layer_held_bytes": 2**19,
    "operations": OPERATIONS,
}


def _cpu() -> dict[str, Any]:
    case = {
        "case": "linear 1024",
        "arms": {"qdora-ours": FIGURES},
        "gate": {"passed": True},
        "ratios": {"qdora-ours/qdora-peft": {"median": 0.5}, "qdora-ours/qlora-peft": {"median": 0.9}},
    }
    return copy.deepcopy({"kind": "cpu", "machine": MACHINE, "cases": [case]})


def test_benchmarks_md_is_what_the_records_give() -> None:
    document = records.DOCUMENT.read_text(encoding="utf-8")
    assert document == records.renewed(document, records.load()), "run `make benchmarks`"


def test_figures_come_with_machine_versions_and_command() -> None:
    said = records.render({"a-machine": _cpu()})
    assert "| qdora-ours | 50.0 | 40.0-60.0 | 20,480 | 0.50 | 0.90 | 1.0 | 4.0 | 0.5 | 0.5 | 3+3 | 9+9 |" in said
    for part in ("a processor, 2 threads", "torch 2.13.0", "qdora_fast abc", "2026-11-25", "qdora-fast bench"):
        assert part in said


def test_what_was_not_measured_says_so() -> None:
    said = records.render({"a-machine": _cpu()})
    assert "not measured" in said.split("## Engine, GPU")[1]
    assert "not measured" not in said.split("## Engine, GPU")[0]
    assert records.render({}).count("not measured") == 3  # on a CPU, on a GPU, with a real model


def test_a_red_gate_is_told_and_has_no_ratio() -> None:
    red = _cpu()
    red["cases"][0] |= {"ratios": {}, "gate": {"passed": False}}
    said = records.render({"a-machine": red})
    assert "gate red: no ratios" in said
    assert "| 20,480 |  |  |" in said


def test_keeping_a_record_renews_the_document_and_nothing_else_of_it(tmp_path: Path) -> None:
    document = tmp_path / "BENCHMARKS.md"
    document.write_text(f"by hand\n\n{records.BEGIN}\nold\n{records.END}\nalso by hand\n")
    path = records.keep("two-cores", _cpu(), tmp_path / "records", document)
    assert records.load(tmp_path / "records") == {"two-cores": _cpu()}
    assert path.name == "two-cores.json"
    text = document.read_text()
    assert text.startswith("by hand\n") and text.endswith("also by hand\n")
    assert "`two-cores`" in text and "old" not in text


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--record"):
        records.keep("../x", _cpu(), tmp_path, tmp_path / "none")


def test_a_document_without_the_markers_is_refused() -> None:
    with pytest.raises(ConfigError, match="engine figures: begin"):
        records.renewed("no markers", {})
