"""What happens at every step besides learning: the progress bar and metrics.jsonl.

The meter is plain arithmetic; one small class at the end hangs it into the Trainer, and is
defined inside a function because transformers may only be imported after Unsloth.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qdora_fast import processes


@dataclass
class Meter:
    """Throughput from the Trainer's own count of epochs: exact on average, free to compute."""

    tokens_per_epoch: int
    _since: tuple[float, float] | None = field(default=None, repr=False)

    def tokens_per_second(self, epoch: float, now: float) -> float | None:
        """Training tokens a second since the last call; None on the first, or without progress."""
        before, self._since = self._since, (epoch, now)
        if before is None or epoch <= before[0] or now <= before[1]:
            return None
        return (epoch - before[0]) * self.tokens_per_epoch / (now - before[1])


def memory_gib() -> float:
    """Peak memory of this process in GiB: the GPU's where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved()) / 2**30
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**30


def training_callbacks(*, metrics: Path, tokens_per_epoch: int, console: Console) -> list[Any]:
    """Callbacks for the Trainer: progress on the console, metrics to a file.

    Args:
        metrics: file that gets one JSON object a line, flushed at once.
        tokens_per_epoch: tokens of the training rows together.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Hangs meter and progress bar into the Trainer."""

        def __init__(self) -> None:
            self.meter = Meter(tokens_per_epoch)
            self.started = 0.0
            self.progress: Progress | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.time()
            self.meter.tokens_per_second(float(state.epoch or 0.0), self.started)
            self.progress = _progress_bar(console)
            self.progress.add_task("training", total=state.max_steps, completed=state.global_step, said="")
            self.progress.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            now = time.time()
            record = _record(logs or {}, state.global_step, now - self.started)
            if "loss" in record:
                speed = self.meter.tokens_per_second(float(state.epoch or 0.0), now)
                record |= {"tokens_per_second": round(speed, 1) if speed else None}
                record |= {"memory_gib": round(memory_gib(), 2)}
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            place = f"  step {state.global_step}/{state.max_steps}: "
            if self.progress and "loss" in record:
                self.progress.update(self.progress.task_ids[0], completed=state.global_step, said=_said(record))
                if not console.is_terminal and state.global_step % max(1, state.max_steps // 10) == 0:
                    console.print(place + _said(record))
            elif "eval_loss" in record:
                console.print(f"{place}held-out loss {float(record['eval_loss']):.4f}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.progress:
                self.progress.stop()
                self.progress = None

    return [Watch()] if processes.first() else []


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[said]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _said(record: dict[str, Any]) -> str:
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
