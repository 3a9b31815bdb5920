"""The meter counts tokens per second; the metrics file is one valid JSON object a line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from qdora_fast.callbacks import Meter, training_callbacks


def test_throughput_is_tokens_over_time() -> None:
    meter = Meter(tokens_per_epoch=1000)
    assert meter.tokens_per_second(0.0, 100.0) is None
    assert meter.tokens_per_second(0.5, 110.0) == pytest.approx(50)
    assert meter.tokens_per_second(0.5, 111.0) is None  # no progress, no figure
    assert meter.tokens_per_second(1.5, 121.0) == pytest.approx(100)


@pytest.fixture
def watch(tmp_path: Path):
    console = Console(file=io.StringIO(), width=120)
    (callback,) = training_callbacks(metrics=tmp_path / "metrics.jsonl", tokens_per_epoch=1000, console=console)
    return SimpleNamespace(callback=callback, metrics=tmp_path / "metrics.jsonl", out=console.file)


def _state(step: int) -> SimpleNamespace:
    return SimpleNamespace(epoch=step / 10, global_step=step, max_steps=10)


def test_each_log_is_one_json_line_even_when_the_loss_is_not_finite(watch) -> None:
    watch.callback.on_train_begin(None, _state(0), None)
    watch.callback.on_log(None, _state(1), None, logs={"loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.0})
    watch.callback.on_log(None, _state(2), None, logs={"loss": float("nan"), "learning_rate": 1e-4})
    watch.callback.on_log(None, _state(2), None, logs={"eval_loss": 2.0, "a_table": [1]})
    watch.callback.on_train_end(None, _state(2), None)
    first, second, third = [json.loads(line) for line in watch.metrics.read_text().splitlines()]
    assert (first["step"], first["loss"], first["learning_rate"]) == (1, 2.5, 1e-4)
    assert first["memory_gib"] > 0
    assert second["loss"] == "nan"
    assert third == {"step": 2, "seconds": third["seconds"], "eval_loss": 2.0}
    assert "step 1/10: loss 2.5000" in watch.out.getvalue()
    assert "step 2/10: held-out loss 2.0000" in watch.out.getvalue()
