"""What happens at every step besides learning: the progress bar, metrics.jsonl, a message when a run is slow.

The arithmetic is `throughput.py`'s; the class that hangs it into the Trainer is defined inside a
function because transformers may only be imported after Unsloth.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from qdora_fast.system import console, distributed
from qdora_fast.system.charts import Point
from qdora_fast.system.json_files import end_last_line
from qdora_fast.training.curves import loss_curves
from qdora_fast.training.oom import Note
from qdora_fast.training.signals import Requests
from qdora_fast.training.throughput import Slow, Throughput

OnStep = Callable[[dict[str, Any]], object]
"""Called after each optimizer step with step, steps, epoch, loss, learning_rate and what else the trainer logs."""
_BLOCKS = "▁▂▃▄▅▆▇█"


def memory_gib() -> float:
    """Peak memory of this process in GiB: the GPU's where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved()) / 2**30
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**30


@contextmanager
def training_callbacks(
    *, metrics: Path, throughput: Throughput, find_causes: Callable[[Slow], list[str]]
) -> Iterator[list[Any]]:
    """Callbacks for the Trainer: progress on the console, metrics to a file. However training ends, the bar goes.

    Args:
        metrics: file that gets one JSON object a line, flushed at once.
        throughput: informed of every step.
        find_causes: called, once at most, for why a run is slow.
    """
    watch, stopwatch = _watch(metrics, throughput), _stopwatch(metrics, throughput, find_causes)
    try:
        yield [watch, stopwatch] if distributed.is_main() else []
    finally:
        watch.on_train_end()


def _watch(metrics: Path, throughput: Throughput) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Hangs progress bar and metrics into the Trainer."""

        def __init__(self) -> None:
            self.started = 0.0
            self.progress: Progress | None = None
            self.losses: list[Point] = []
            self.held_out: list[Point] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.time()
            end_last_line(metrics)  # a run that was killed may have left half a line
            self.progress = console.progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[message]}"),
                stays=True,
            )
            self.progress.add_task("training", total=state.max_steps, completed=state.global_step, message="")
            self.progress.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            record = _record(logs or {}, state.global_step, time.time() - self.started)
            if "loss" in record:
                speed = throughput.tokens_per_second()
                record |= {"tokens_per_second": round(speed, 1) if speed else None}
                record |= {"memory_gib": round(memory_gib(), 2)}
            _append(metrics, record)
            step = f"  step {state.global_step}/{state.max_steps}: "
            if self.progress and "loss" in record:
                left = throughput.left(state.max_steps - state.global_step)
                message = _summary(record) + (f"  {console.time_range(left)} left" if left and left[1] >= 1 else "")
                self.losses.append((state.global_step, float(record["loss"])))
                shown = f"{sparkline([loss for _, loss in self.losses])}  {message}"
                self._draw(completed=state.global_step, message=shown)
                if not console.shows_progress() and state.global_step % max(1, state.max_steps // 10) == 0:
                    console.print(step + message)
            elif "eval_loss" in record:
                self.held_out.append((state.global_step, float(record["eval_loss"])))
                self._draw()
                console.print(f"{step}held-out loss {float(record['eval_loss']):.4f}")

        def _draw(self, **how: Any) -> None:
            if self.progress:
                self.progress.update(
                    self.progress.task_ids[0], curves=partial(loss_curves, self.losses, self.held_out), **how
                )

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if self.progress:
                self.progress.stop()
                self.progress = None

    return Watch()


def _stopwatch(metrics: Path, throughput: Throughput, find_causes: Callable[[Slow], list[str]]) -> Any:
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        """Informs throughput of every step, and the user when the run is slow. Comes last: what other callbacks do is
        between steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            throughput.begin(float(state.epoch or 0.0), time.monotonic())

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            throughput.step_begins(time.monotonic())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            throughput.step_ends(float(state.epoch or 0.0), time.monotonic())
            slow = throughput.slow()
            if slow is not None:
                message = slow.message(find_causes(slow))
                console.print(f"  step {state.global_step}: {message}")
                _append(metrics, {"step": state.global_step, "event": "slow", "said": message})

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            throughput.between_ends(time.monotonic())

        on_evaluate = on_save = on_log

    return Stopwatch()


def step_callback(on_step: OnStep, requests: Requests) -> Any:
    """Calls `on_step` after each step with what was logged of it. Its exception is a request to stop, as Ctrl-C is."""
    from transformers import TrainerCallback

    class OnStepCallback(TrainerCallback):
        """Told on the main process alone."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" not in (logs or {}) or not distributed.is_main() or requests.error is not None:
                return
            record = {key: value for key, value in logs.items() if isinstance(value, int | float)}
            try:
                on_step({"step": state.global_step, "steps": state.max_steps, **record})
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised once the checkpoint is saved
                requests.fail(error)

    return OnStepCallback()


def record_notes(metrics: Path) -> Callable[[Note], None]:
    """Appends notes to `metrics`, a line with an `event` each, and prints them; the same message is printed once."""
    printed: set[str] = set()

    def record(note: Note) -> None:
        if not distributed.is_main():
            return
        if note.message not in printed:
            console.print(f"  step {note.step}: {note.message}")
            printed.add(note.message)
        _append(metrics, {"step": note.step, "event": note.kind, "said": note.message, "rows": note.rows})

    return record


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The whole curve in at most `width` characters, each the mean of as many values; what is not finite is left
    out."""
    finite = [value for value in values if math.isfinite(value)]
    size = max(1, math.ceil(len(finite) / width))
    means = [sum(part := finite[at : at + size]) / len(part) for at in range(0, len(finite), size)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in means)


def _append(metrics: Path, record: dict[str, Any]) -> None:
    with metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _summary(record: dict[str, Any]) -> str:
    speed = f"{record['tokens_per_second']:,.0f} tok/s" if record.get("tokens_per_second") else ""
    loss, rate = float(record["loss"]), float(record["learning_rate"])
    return f"loss {loss:.4f}  lr {rate:.2e}  {speed}  {record['memory_gib']:.1f} GiB"


def _record(logs: dict[str, Any], step: int, seconds: float) -> dict[str, Any]:
    """The Trainer's log as JSON: numbers only; what is not finite becomes a word, never invalid JSON."""
    record: dict[str, Any] = {"step": step, "seconds": round(seconds, 2)}
    for key, value in logs.items():
        if isinstance(value, int | float):
            record[key] = value if math.isfinite(value) else str(value)
    return record
