"""The whole run on tiny shapes: what is printed, what the JSON line holds, and that a red gate gives no ratio."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from heard import heard

from benchmarks.engine import session
from benchmarks.engine.arms import Arm
from benchmarks.engine.cases import Case
from benchmarks.engine.session import run_benchmark
from benchmarks.engine.subjects import Subject, adapted, build
from benchmarks.options import Options

TINY = Options(
    case="linear",
    widths=(64,),
    tokens=(16,),
    grad_accum=(2,),
    dtypes=("fp32",),
    rounds=3,
    warmup=1,
    sample_s=0.0,
    rank=4,
    model_width=64,
    model_layers=1,
)


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], str]:
    with heard(width=100) as out:
        record = run_benchmark(TINY, command=["engine", "--widths", "64"])
    return record, out.getvalue()


def test_the_record_is_the_contract(measured: tuple[dict[str, Any], str]) -> None:
    record, _ = measured
    json.dumps(record)
    assert record["gate"] == {"passed": True, "red": []}
    assert record["headline"] == record["cases"][0]["case"] == "linear 64, 16 tokens, grad-accum 2, fp32"
    for figures in record["arms"].values():
        assert figures["step_s"] > 0
        assert figures["tokens_per_s"] == pytest.approx(32 / figures["step_s"])
        assert figures["step_s_spread"]["count"] == 3
        assert {"peak_bytes", "saved_bytes", "held_bytes", "operations", "resident_bytes"} <= figures.keys()
    assert {"qdora-ours/qdora-peft", "qdora-ours/qlora-peft", "qdora-peft/qlora-peft"} <= record["ratios"].keys()


def test_the_machine_is_part_of_it(measured: tuple[dict[str, Any], str]) -> None:
    machine = measured[0]["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["packages"]["torch"] == torch.__version__
    assert machine["command"] == "engine --widths 64"
    assert machine["commit"] and machine["date"]


def test_the_tables_show_every_arm(measured: tuple[dict[str, Any], str]) -> None:
    record, said = measured
    assert "gate green" in said
    for name in record["arms"]:
        assert said.count(name) >= 2


def test_resident_weights_are_counted_beside_the_arms_that_keep_them(measured: tuple[dict[str, Any], str]) -> None:
    kept = {name: figures["resident_bytes"] for name, figures in measured[0]["arms"].items()}
    assert kept["qdora-ours"] == 64 * 64 * 4
    assert kept["qdora-ours-merged"] == 0
    assert kept["qdora-peft"] is None


def test_a_red_gate_gives_no_ratio_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Case, arm: Arm) -> Subject:
        subject = build(case, arm)
        if arm.name == "qdora-ours":
            ((_, layer),) = adapted(subject.model)
            layer.lora_magnitude_vector["default"].weight.data.mul_(1.01)
        return subject

    monkeypatch.setattr(session, "build", wrong)
    with heard() as out:
        record = run_benchmark(TINY)
    assert record["gate"] == {"passed": False, "red": [record["headline"]]}
    assert record["ratios"] == {} and record["cases"][0]["ratios"] == {}
    assert record["arms"]["qdora-ours"]["step_s"] > 0
    assert "RED qdora-ours: output is off by" in out.getvalue()


def test_the_model_is_counted_by_the_layer() -> None:
    options = Options(**{**TINY.__dict__, "case": "model", "arms": ("qdora-ours",), "checkpointing": (False,)})
    record = run_benchmark(options)
    (case,) = record["cases"]
    peft, ours = case["arms"]["qdora-peft"], case["arms"]["qdora-ours"]
    assert peft["operations"]["forward"]["gemms"] == 7 * 5  # seven layers; attention is not a GEMM here
    assert ours["engine"]["blocks"]["mlp"] == 1
    assert 0 < ours["layer_saved_bytes"] < peft["layer_saved_bytes"]
