"""The same path on an NVIDIA GPU: Unsloth's own kernels, bf16 or fp16, paged 8-bit AdamW, packing.

Run by `make test-gpu`; deselected everywhere else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.recipes.export import export
from qdora_fast.recipes.train import train


@pytest.mark.gpu
def test_the_demo_tunes_and_exports_on_a_gpu(tmp_path: Path) -> None:
    run = train("demo", run={"dir": str(tmp_path)})
    figures = run.read_json("evaluation/evaluation.json")["task"]
    assert figures["base"] <= 0.20
    assert figures["tuned"] >= 0.80
    assert run.read_json("merged_16bit/export.json")["proof"]["passed"]
    tried = run.read_json("fit.json")["probe"]
    assert tried["parts"] == 1
    assert 0 < tried["peak_bytes"] < tried["total_bytes"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["qdora", "dora", "qlora", "lora"])
def test_every_method_trains_and_exports_on_a_gpu(tiny_config, method: str) -> None:
    run = train(tiny_config(adapter={"method": method}))
    assert export(run)["proof"]["passed"]
