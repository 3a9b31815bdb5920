"""The metrics file is one valid JSON object a line, and a slow run is told so there and on the console."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from heard import heard

from qdora_fast.training.callbacks import record_notes, training_callbacks
from qdora_fast.training.oom import Note
from qdora_fast.training.throughput import Expected, Slow, Throughput


class _Both:
    """All callbacks as one, called in order as the Trainer does."""

    def __init__(self, callbacks) -> None:
        self.callbacks = callbacks

    def __getattr__(self, event: str):
        def call(*args, **kwargs) -> None:
            for callback in self.callbacks:
                getattr(callback, event)(*args, **kwargs)

        return call


def _callbacks(metrics: Path, find_causes=lambda slow: []):
    throughput = Throughput(1000, Expected(1e12, "an earlier run"))
    return training_callbacks(metrics=metrics, throughput=throughput, find_causes=find_causes)


@pytest.fixture
def watch(tmp_path: Path):
    asked: list[Slow] = []

    def find_causes(slow: Slow) -> list[str]:
        asked.append(slow)
        return ["it is tired"]

    metrics = tmp_path / "metrics.jsonl"
    with heard() as out, _callbacks(metrics, find_causes) as callbacks:
        yield SimpleNamespace(callback=_Both(callbacks), metrics=metrics, out=out, asked=asked)


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


def test_a_slow_run_says_so_once_and_keeps_it(watch) -> None:
    watch.callback.on_train_begin(None, _state(0), None)
    for step in range(1, 101):
        watch.callback.on_step_begin(None, _state(step), None)
        watch.callback.on_step_end(None, _state(step), None)
        watch.callback.on_log(None, _state(step), None, logs={"loss": 1.0, "learning_rate": 1e-4})
        watch.callback.on_evaluate(None, _state(step), None)
        watch.callback.on_save(None, _state(step), None)
    watch.callback.on_train_end(None, _state(100), None)
    kept = [record for line in watch.metrics.read_text().splitlines() if (record := json.loads(line)).get("event")]
    assert len(watch.asked) == len(kept) == watch.out.getvalue().count("slow:") == 1
    assert kept[0]["event"] == "slow"
    assert "an earlier run made; likely because it is tired" in kept[0]["said"]


def test_the_bar_is_gone_however_training_ends(tmp_path: Path) -> None:
    with (
        heard(force_terminal=True) as out,
        pytest.raises(RuntimeError),
        _callbacks(tmp_path / "metrics.jsonl") as callbacks,
    ):
        _Both(callbacks).on_train_begin(None, _state(0), None)
        raise RuntimeError("training broke")
    hidden, shown = (out.getvalue().count(f"\x1b[?25{letter}") for letter in "lh")
    assert hidden == shown == 1, "the cursor is back"


def test_a_note_is_said_once_and_kept_each_time(tmp_path: Path) -> None:
    keep = record_notes(tmp_path / "metrics.jsonl")
    with heard() as out:
        keep(Note(4, "evaluation", "the evaluation failed [x]"))
        keep(Note(8, "evaluation", "the evaluation failed [x]"))
        keep(Note(9, "skipped", "skipped", ("rows.jsonl:7",)))
    assert out.getvalue() == "  step 4: the evaluation failed [x]\n  step 9: skipped\n"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["event"], line["rows"]) for line in lines] == [
        (4, "evaluation", []),
        (8, "evaluation", []),
        (9, "skipped", ["rows.jsonl:7"]),
    ]
