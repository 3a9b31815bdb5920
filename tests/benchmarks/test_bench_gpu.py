"""The GPU protocol's machinery on the CPU: a random model of two narrow layers, real Unsloth, every task once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import heard

from benchmarks import records
from benchmarks.gpu import gpu, gpu_arm
from benchmarks.gpu.gpu import run_gpu_benchmark
from benchmarks.gpu.gpu_model import checkpoint
from benchmarks.options import GpuOptions
from qdora_fast.system.errors import ConfigError, DiskSpaceError

TINY = GpuOptions(
    minutes=0.01,
    warmup=1,
    steps=3,
    shapes=((2, 16, 2), (1, 32, 1)),
    layers=2,
    hidden=128,
    intermediate=192,
    heads=2,
    kv_heads=1,
    vocabulary=256,
    rank=4,
    device="cpu",
    arms=("qlora-unsloth", "qdora-unsloth", "qdora-ours"),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_is_a_wrong_request() -> None:
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU") as raised:
        run_gpu_benchmark(GpuOptions())
    assert raised.value.exit_code == 2


@pytest.mark.exhaustive
def test_the_whole_protocol_on_a_tiny_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "child", _in_this_process)
    with heard(width=120):
        record = run_gpu_benchmark(TINY, command=["gpu"])
    assert record["gate"]["passed"], record["gate"]
    assert [case["case"] for case in record["cases"]] == ["2 x 16, grad-accum 2", "1 x 32, grad-accum 1"]
    for case in record["cases"]:
        assert set(case["arms"]) == set(TINY.arms)
        assert set(case["ratios"]) == {f"{a}/{b}" for a, b in gpu.PAIRS[:3]}
        assert all(figures["step_s_spread"]["count"] >= 3 for figures in case["arms"].values())
    assert record["engines"]["qdora-ours"]["engine"]["layers"] == 14
    rows = record["kernels"]["rows"]
    assert {row["kernel"].split(",")[0] for row in rows} == {"dequantize", "row_norms", "column_dot", "glu_backward"}
    assert all(row["roofline_share"] > 0 for row in rows)
    said = records.render({"tiny": record})
    assert "| qdora-ours |" in said and "| glu_backward |" in said


def test_the_random_model_is_written_once_and_loads_in_nf4(cache: Path) -> None:
    folder = checkpoint(TINY)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert checkpoint(TINY) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    from bitsandbytes.nn import Linear4bit

    model = gpu_arm.load(gpu.GPU_ARMS[1], TINY, str(folder))
    packed = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(packed) == 14
    assert all(module.weight.quant_state.nested for module in packed)


def test_a_model_that_does_not_fit_on_the_disk_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdora_fast.system.hardware.free_disk_gib", lambda folder: 3.0)
    with pytest.raises(DiskSpaceError, match=r"needs 5\.\d GiB"):
        checkpoint(GpuOptions())


def test_a_child_that_fails_is_an_answer_not_a_crash() -> None:
    answer = gpu.child({"task": "no such task"}, TINY, 0.0)
    assert answer["error"].startswith("exit code 1: ") and "no such task" in answer["error"]


def test_arms_that_compute_something_else_lose_their_ratios() -> None:
    shape = {"first_loss": 5.0, "gradient_norms": {"lora_A": 1.0, "lora_B": 1.0, "lora_magnitude_vector": 1.0}}
    results = {
        "qdora-unsloth": {"shapes": [shape]},
        "qdora-ours": {"shapes": [{**shape, "first_loss": 5.001}]},
        "qdora-ours-no-resident": {"shapes": [{**shape, "gradient_norms": {**shape["gradient_norms"], "lora_B": 2.0}}]},
    }
    assert gpu.disagreements(results) == ["qdora-ours-no-resident: gradient norm of lora_B is 2 and Unsloth's is 1"]
    results["qdora-ours"]["shapes"][0]["first_loss"] = float("nan")
    assert len(gpu.disagreements(results)) == 2


def test_a_failed_arm_takes_no_other_with_it() -> None:
    shape = {"step_s": 2.0}
    results: dict[str, Any] = {
        "qlora-unsloth": {"shapes": [shape]},
        "qdora-unsloth": {"error": "out of memory"},
        "qdora-ours": {"shapes": [{"step_s": 1.0}]},
    }
    assert gpu.ratios(results, 0) == {"qdora-ours/qlora-unsloth": 0.5}


def _in_this_process(task: dict[str, Any], options: GpuOptions, seconds: float) -> dict[str, Any]:
    """What a child does, without the seconds its imports take."""
    if task["task"] == "arm":
        return gpu_arm.train(task["arm"], options, task["folder"], time.monotonic())
    run = {"checkpoint": gpu_arm.write_checkpoint, "gate": gpu_arm.gate, "kernels": gpu_arm.kernels}
    return run[task["task"]](options)
