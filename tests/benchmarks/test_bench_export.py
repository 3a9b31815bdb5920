"""bench-export: the gate over its figures, the tables made of them, and the merge of large shards in small."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.export import export_bench, export_cases
from benchmarks.export.export_bench import run_export_benchmark
from benchmarks.export.export_table import tables
from benchmarks.options import ExportOptions
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
    "command": "qdora-fast bench-export",
}
SURVIVAL = {"base": 6.5, "trained": 5.5, "exported": 5.51, "kept": 0.99}
EXPORT = {
    "seconds": 30.0,
    "merge_seconds": 0.2,
    "bytes": 2**21,
    "own_bytes": 2**29,
    "mapped_bytes": 2**30,
    "passed": True,
    "kl": 2e-4,
    "top1": 1.0,
    "survival": SURVIVAL,
    "held_out": True,
    "checks": {"weights": True},
}
RUN = {
    "exports": {"merged_16bit": EXPORT, "merged_4bit_forced": EXPORT},
    "peft": {"seconds": 1.0, "kl": 0.2, "top1": 0.8, "survival": {**SURVIVAL, "exported": 6.3, "kept": 0.2}},
    "controls": {"merged_16bit": {"another base": ["kl_to_trained"]}},
}
MERGE = {
    "format": "merged_16bit",
    "workers": 2,
    "seconds": 4.0,
    "cpu_s": 5.0,
    "bytes": 2**31,
    "own_bytes": 2**28,
    "mapped_bytes": 2**29,
    "process_s": 5.0,
    "resumed": 0,
}
LARGE = {
    "bytes": 2e9,
    "merges": [MERGE],
    "copy_s": [2.0],
    "resumed": {"shards": 1, "of": 3, "seconds": 3.0, "same": True},
}


def record_of(**changed: Any) -> dict[str, Any]:
    """A record with invented figures."""
    return copy.deepcopy({"kind": "export", "machine": MACHINE, "runs": {"light": RUN}, "large": LARGE} | changed)


def test_the_gate_is_green_when_all_holds() -> None:
    assert export_bench._gate(record_of()) == {"passed": True, "red": []}


@pytest.mark.parametrize(
    ("run", "large", "why"),
    [
        ({"exports": {"merged_16bit": {**EXPORT, "passed": False}}}, {}, "light: merged_16bit failed its proof"),
        ({"controls": {"merged_16bit": {"another base": []}}}, {}, "light: merged_16bit with another base passed"),
        ({}, {"merges": [{**MERGE, "own_bytes": 2**31}]}, "large: merged_16bit took 2,048 MiB"),
        ({}, {"resumed": {**LARGE["resumed"], "same": False}}, "large: the resumed merge is not the uninterrupted one"),
        ({}, {"resumed": {**LARGE["resumed"], "shards": 0}}, "large: the resumed merge is not the uninterrupted one"),
    ],
)
def test_what_does_not_hold_makes_it_red(run: dict[str, Any], large: dict[str, Any], why: str) -> None:
    gate = export_bench._gate(record_of(runs={"light": RUN | run}, large=LARGE | large))
    assert not gate["passed"] and gate["red"] == [why]


def test_every_export_and_peft_have_a_row_and_failed_controls_their_checks() -> None:
    costs, close, controls, merges = tables(record_of())
    assert costs.rows[0] == ("light", "merged_16bit", "30.0", "0.20", "512", "1,024", "2")
    assert [row[:2] for row in close.rows] == [
        ("light", "merged_16bit"),
        ("light", "merged_4bit_forced"),
        ("light", "PEFT merge_and_unload, 4 bits"),
    ]
    assert [row[-1] for row in close.rows] == ["99.0%", "99.0%", "20.0%"]
    assert controls.rows == [("light", "merged_16bit", "another base", "kl_to_trained")]
    assert merges.rows == [("merged_16bit", "2", "4.0", "0.50", "1.00", "256", "512")]


def test_the_record_becomes_part_of_the_document() -> None:
    record = record_of()
    said = records.render({"two-cores": record | {"gate": export_bench._gate(record)}})
    assert "## Exports" in said and "| light | merged_4bit_forced | 30.0 | 0.20 |" in said
    assert "took 1 of 3 shards from before and needed 3.0 s more; the same bytes as in one go" in said


def test_an_unknown_case_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--case huge: there are demo, light, wide, large"):
        run_export_benchmark(ExportOptions(cases=("huge",)))


@pytest.mark.exhaustive
def test_large_shards_are_merged_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_cases, "LARGE_ROWS", 2048)
    monkeypatch.setattr(export_cases, "LARGE_WIDTH", 1024)
    options = ExportOptions(cases=("large",), shards=3, workers=(1,), folder=str(tmp_path))
    record = run_export_benchmark(options, command=["bench-export"])
    assert record["gate"]["passed"], record["gate"]["red"]
    assert [merge["format"] for merge in record["large"]["merges"]] == list(export_bench.MERGES)
    assert record["large"]["bytes"] > 3 * 2 * 2048 * 1024 * 2
    assert not list(tmp_path.iterdir())
