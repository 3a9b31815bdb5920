"""Nothing that is not finite reaches the weights, and neither an evaluation nor a tracker that fails ends training.

One row with a NaN turns every weight into NaN within one step; a plain Trainer then logs a loss of 0.0, saves it and
ends with success. Here the norm of the gradients and the losses of a step are looked at before the optimizer's step,
in one read of the device. If anything is not finite the gradients go, so that the step changes no weight, no decay and
no optimizer state; its rows are named as the user knows them, and training continues. After `max_nonfinite` such steps
in a row, or ten times as many in all, it ends with NonFiniteError. A trained weight that is not finite itself ends it
at once: no later step could be right.

With fp16 an overflow of the scaled gradients is the scaler's normal business: it skips the step and lowers its scale.
That is left to the scaler, and only ten times as long a streak ends training. With several processes gradients are
averaged before this, so the norm is the same in all of them; losses are not, so the processes agree on skipping a step.

A failure of an evaluation or of a tracker is noted once, and training continues without it. In a run of several
processes a failed evaluation ends the run, for the others would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qdora_fast.system import distributed
from qdora_fast.system.errors import NonFiniteError, QdoraError, first_line
from qdora_fast.system.run_folder import newest_checkpoint
from qdora_fast.training.checkpoint import require_finite
from qdora_fast.training.microbatch import conversations
from qdora_fast.training.oom import OomRetry

PATIENCE = 10
"""Times `max_nonfinite`: skipped steps in all, and overflows of fp16 in a row, that end training."""
ROWS_NAMED = 8
"""Rows that a message names; all of them are in metrics.jsonl."""
TRACKER_FAILURES = 3
"""In a row, after which a tracker is left alone: each may cost a timeout."""


class SkipNonFinite(OomRetry):
    """A mixin before SFTTrainer."""

    max_nonfinite = 3
    """Steps in a row that may be skipped before training ends."""
    source_of: Callable[[Sequence[int]], str | None] | None = None
    """Where a row with these token ids comes from, such as rows.jsonl:12; None where that is not known."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped = 0
        """Steps that changed nothing because something was not finite."""
        self._in_a_row: list[str] = []
        self._skipped_step = -1
        self._guard_trackers()

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a micro-batch, 0 where it is not finite: the Trainer's running sum would never recover."""
        return super().training_step(model, inputs, num_items_in_batch).nan_to_num(0.0, 0.0, 0.0)

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        """The norm, if the step may be made; None, with no gradient left, if not."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        bad_loss, bad_norm = self._not_finite(norm)
        if not (bad_loss or bad_norm):
            self._in_a_row.clear()
            return norm
        overflow = self.accelerator.scaler is not None and not bad_loss
        if overflow:
            self._in_a_row.append(f"step {self.state.global_step + 1}: gradients overflowed fp16")
        else:
            self._skip(model, bad_loss)
        limit = self.max_nonfinite * (PATIENCE if overflow else 1)
        if len(self._in_a_row) >= limit or self.skipped >= self.max_nonfinite * PATIENCE:
            raise self._too_many()
        return None

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's, without the loss of a skipped step: it would be that of the micro-batches that were fine."""
        if self.skipped and "loss" in logs:
            logs["skipped_steps"] = self.skipped
            if self.state.global_step == self._skipped_step:
                del logs["loss"]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's; {} where it failed."""
        gradient_state = self.accelerator.gradient_state
        being_read = gradient_state.dataloader_references
        try:
            return super()._evaluate(*args, **kwargs)  # type: ignore[misc]
        except QdoraError:
            raise
        except Exception as error:  # whatever it was, the training is worth more
            if distributed.world_size() > 1:
                raise
            why = _named(error)
        gradient_state.dataloader_references = being_read  # else the held-out rows would count as being read for ever
        self._metrics["eval"].clear()
        message = f"the evaluation failed ({why}); training continues, its figures are missing"
        self.note("evaluation", message, step=self.state.global_step)
        return {}

    def _determine_best_metric(self: Any, metrics: dict[str, float], trial: Any) -> bool:
        """The Trainer's; an evaluation that failed is not the best."""
        return bool(metrics) and super()._determine_best_metric(metrics=metrics, trial=trial)  # type: ignore[misc]

    def _not_finite(self: Any, norm: Any) -> tuple[bool, bool]:
        """Whether a loss of this step is not finite, in any process, and whether the norm is."""
        import torch

        losses = torch.stack([loss.float() for loss in self.window.losses])
        finite = torch.stack([losses.isfinite().all(), torch.as_tensor(norm, device=losses.device).isfinite()])
        bad_loss, bad_norm = self.accelerator.reduce((~finite).int(), reduction="sum").tolist()
        return bool(bad_loss), bool(bad_norm)

    def _skip(self: Any, model: Any, bad_loss: bool) -> None:
        """Drop the gradients, name the rows, and make sure that the weights are not the reason."""
        self.skipped += 1
        self._skipped_step = step = self.state.global_step + 1
        broken = self._broken_by_loss() if bad_loss else self._broken_by_gradient(model)
        if self.accelerator.scaler is None:
            for parameter in model.parameters():
                parameter.grad = None
        require_finite(self.model, Path(self.args.output_dir))
        rows = {number: [self._source(ids) for ids in conversations(self.window.inputs[number])] for number in broken}
        here = [(self._described(number, sources, bad_loss), sources) for number, sources in rows.items()]
        everywhere = [each for process in distributed.all_gather(here) for each in process]
        named = "; ".join(description for description, _ in everywhere)
        named = named or "gradients are not finite, but those of no micro-batch when it is computed again"
        self._in_a_row.append(f"step {step}: {named}")
        sources = tuple(source for _, sources in everywhere for source in sources)
        self.note("skipped", f"skipped, no weight was changed: {named}", sources, step=step)

    def _described(self: Any, number: int, sources: list[str], bad_loss: bool) -> str:
        micro_batch = f"micro-batch {number + 1} of {len(self.window.inputs)}"
        if distributed.world_size() > 1:
            micro_batch += f" in process {distributed.rank()}"
        loss = float(self.window.losses[number])
        problem = f"the loss of {micro_batch} is {loss}" if bad_loss else f"gradients of {micro_batch} are not finite"
        return f"{problem} ({_listed(sources)})"

    def _broken_by_loss(self: Any) -> list[int]:
        """Numbers of this process's micro-batches whose loss is not finite."""
        return [number for number, loss in enumerate(self.window.losses) if not bool(loss.isfinite())]

    def _broken_by_gradient(self: Any, model: Any) -> list[int]:
        """The same by their gradients, each computed alone; all of them where other processes would have to join.

        Random generators and counts end where they were: the whole step is computed once more.
        """
        window = self.window
        if distributed.world_size() > 1:
            return list(range(len(window.inputs)))
        broken = []
        self._restore(window.before)
        for number, inputs in enumerate(window.inputs):
            model.zero_grad()
            self._compute(model, inputs)
            gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                broken.append(number)
        return broken

    def _source(self: Any, ids: Sequence[int]) -> str:
        source = self.source_of(ids) if self.source_of is not None else None
        return source or f"a row of {len(ids)} tokens"

    def _too_many(self: Any) -> NonFiniteError:
        rows, limit = self._in_a_row, f"train.max_nonfinite: {self.max_nonfinite}"
        how_many = f"{len(rows)} steps in a row" if len(rows) >= self.max_nonfinite else f"{self.skipped} steps in all"
        listed = "\n".join(f"  - {line}" for line in rows[-ROWS_NAMED:])
        checkpoint = newest_checkpoint(Path(self.args.output_dir))
        return NonFiniteError(
            f"training ended at step {self.state.global_step + 1}: losses or gradients were not finite in {how_many} "
            f"({limit}):\n{listed}\n"
            f"  None of these steps changed a weight; {checkpoint}.\n"
            "  Look at these rows first. If they are sound, take a lower train.learning_rate or a wider "
            "train.precision (fp16 < bf16 < fp32);\n  adapter.init_adapter starts a new run from a checkpoint's weights"
        )

    def _guard_trackers(self: Any) -> None:
        """Let no callback of an experiment tracker end training."""
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        kinds = tuple(get_reporting_integration_callbacks(self.args.report_to))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, kinds):
                for event in (name for name in dir(callback) if name.startswith("on_")):
                    report = partial(self._note_tracker, type(callback).__name__.removesuffix("Callback"))
                    setattr(callback, event, _guarded(getattr(callback, event), report))

    def _note_tracker(self: Any, name: str, why: str) -> None:
        message = f"the tracker {name} failed ({why}); training continues, metrics.jsonl has everything"
        if message not in (note.message for note in self.notes):
            self.note("tracker", message, step=self.state.global_step)


def _guarded(event: Callable[..., Any], report: Callable[[str], None]) -> Callable[..., Any]:
    """A callback's event that calls `report` instead of raising, and is no longer called after a few failures."""
    failures = 0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        if failures >= TRACKER_FAILURES:
            return None
        try:
            control = event(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - not ours, and training does not need it
            failures += 1
            report(_named(error))
            return None
        failures = 0
        return control

    return guarded


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return ", ".join(rows[:ROWS_NAMED]) + more


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
