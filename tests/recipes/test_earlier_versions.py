"""Runs, checkpoints, adapters and caches of commit 7aa6e70 resume, export, verify, evaluate and answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from earlier_run import unpack
from safetensors.torch import load_file

import qdora_fast
from qdora_fast.inference.conversation import answer
from qdora_fast.recipes.chat import load
from qdora_fast.recipes.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder; the working directory is where it was started."""
    run = unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "cache"))
    return run


def test_a_stopped_run_resumes_and_ends_with_the_same_adapter(earlier: Path) -> None:
    for name in ("finished.json", "report.html"):
        (earlier / name).unlink()
    shutil.rmtree(earlier / "checkpoints" / "checkpoint-4")
    before = load_file(shutil.move(earlier / "adapter", earlier.parent / "before") / "adapter_model.safetensors")
    run = qdora_fast.train(earlier / "config.yaml", resume=True, run={"name": "old"})
    assert run.path.resolve() == earlier and run.finished
    steps = [json.loads(line)["step"] for line in (earlier / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 4
    after = load_file(run.adapter / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in after.items():  # another processor may sum in another order
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5)


def test_its_model_is_exported_and_proven(earlier: Path) -> None:
    report = qdora_fast.export(earlier, to="merged_16bit")
    assert report["proof"]["passed"]
    merged = Path(report["path"])
    for folder in (merged, earlier / "adapter", *(earlier / "checkpoints").iterdir()):
        parts = list(verify(folder))
        assert parts and not [part for part in parts if part.problems], folder
    adapter = qdora_fast.export(earlier, to="adapter", out=earlier.parent / "given")
    assert adapter["path"] == str(earlier.parent / "given")


def test_it_is_evaluated_and_asked(earlier: Path) -> None:
    before = json.loads((earlier / "evaluation" / "evaluation.json").read_text())
    now = qdora_fast.evaluate(earlier)
    for side in ("base", "tuned"):
        assert now["heldout_loss"][side] == pytest.approx(before["heldout_loss"][side], rel=1e-4)
    assert isinstance(answer(load(earlier), [{"role": "user", "content": "Name the capital of Peru."}]).text, str)


def test_its_rows_are_the_same_and_its_cache_does_no_harm(earlier: Path) -> None:
    before: dict[str, Any] = json.loads((earlier / "data" / "report.json").read_text())
    data = qdora_fast.prepare_data(earlier / "config.yaml")
    assert data.report.hash == before["hash"]
    assert data.report.content_hash == before["content_hash"]
