"""When memory runs out in a step, the step is repeated in smaller parts instead of ending the run.

Gradients of a micro-batch that failed half-way are already added to those of the micro-batches before it. So nothing
of the step is retained: gradients are dropped, what can be freed is freed (`models/out_of_memory.py`: cached weights,
buffers, the allocator's cache), the random generators return to where the step began, and all its micro-batches are
computed again. If cached weights were freed, the step is first tried as it was; otherwise each micro-batch is computed
in 2, 4, 8, … parts from then on, down to one conversation. The rows stay the same, and the loss is divided by the
tokens of the whole step, as before: the step is the same to the rounding of sums. (With dropout a part has other masks
than the whole micro-batch, equally random.)

An evaluation has its own parts and leaves those of training alone.

What is not repeated: the optimizer's step, for weights may be half updated; one conversation that does not fit; and
anything in a run of several processes, where the others would wait for ever. Those end with OutOfMemory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdora_fast.models.out_of_memory import (
    OutOfMemoryEvent,
    attempt,
    first_sentence,
    freed_message,
    give_back,
    is_out_of_memory,
)
from qdora_fast.system import distributed
from qdora_fast.system.errors import OutOfMemory
from qdora_fast.system.run_folder import newest_checkpoint
from qdora_fast.training.microbatch import Batch, CannotSplit, halves, split, trained_tokens
from qdora_fast.training.state import random_state, set_random_state

ADVICE = (
    "What helps, each by itself: other programs off the card; train.optimizer: paged_adamw_8bit; "
    "train.gradient_checkpointing: unsloth; a smaller model.max_length or adapter.r; adapter.method: qdora, with its "
    "4-bit base. `qdora-fast plan CONFIG` says what fits"
)


@dataclass(frozen=True)
class Note:
    """Something that happened while training and did not end it."""

    step: int
    kind: str
    """memory, skipped, evaluation or tracker."""
    message: str
    """For the user: what happened, and what was done."""
    rows: tuple[str, ...] = ()
    """Sources of the rows it is about, such as rows.jsonl:12."""


@dataclass
class AccumulationWindow:
    """The micro-batches of one optimizer step, as far as they were drawn."""

    inputs: list[Batch] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    """One for each of `inputs` that is done: tensors without dimensions."""
    items: Any = None
    """Trained tokens of the whole step, by which its loss is divided; None: each micro-batch by its own."""
    before: Any = None
    """Random generators and TRL's counts before the first micro-batch, from `_saved_state`."""


class OomRetry:
    """A mixin before SFTTrainer. `micro_parts` is saved in checkpoints: a resumed run then adds in the same order."""

    micro_parts = 1
    """In how many parts a micro-batch is computed while training: 1, 2, 4, …"""
    eval_parts = 1
    """The same while evaluating."""
    on_note: Callable[[Note], None] | None = None
    """Called with every note when it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.notes: list[Note] = []
        self.window = AccumulationWindow()
        self._part: Batch = {}
        self._share: Any = None
        self._in_update = False
        super().__init__(*args, **kwargs)

    def note(self: Any, kind: str, message: str, rows: tuple[str, ...] = (), *, step: int) -> None:
        """Make a note of something that happened in this step, or after it."""
        self.notes.append(Note(step, kind, message, rows))
        if self.on_note is not None:
            self.on_note(self.notes[-1])

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; memory that runs out where nothing can be repeated raises OutOfMemory."""
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            step, event = self.state.global_step + 1, OutOfMemoryEvent(first_sentence(error))
            if self._in_update:
                half = "That is never repeated: some weights may be updated and others not"
                raise self._out_of_memory(event, f"inside the optimizer's step {step}", half) from error
            raise self._out_of_memory(event, f"around step {step}", "Nothing there can be computed in parts") from error

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's: where a step begins."""
        self.window = AccumulationWindow()
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def training_step(self: Any, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Any:
        """The loss of one micro-batch; its gradients are added. If memory runs out, the step so far is repeated."""
        window = self.window
        window.items = num_items_in_batch
        if not window.inputs:
            window.before = self._saved_state()
        window.inputs.append(inputs)
        while isinstance(event := attempt(lambda: self._compute_rest(model)), OutOfMemoryEvent):
            window.losses.clear()
            model.zero_grad()
            self._restore(window.before)
            step = self.state.global_step + 1
            then = "the step is repeated with each micro-batch in {} parts, as are later steps; the rows stay the same"
            self.micro_parts = self._next_parts(event, f"in step {step}", self.micro_parts, step, then)
        return window.losses[-1]

    def compute_loss(self: Any, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; of a part whose loss is a mean over its own tokens, the share in the micro-batch's mean."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        return loss if self._share is None else loss * self._share

    def prediction_step(
        self: Any, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """The Trainer's, in `eval_parts` parts; if memory runs out, in twice as many."""
        predict = super().prediction_step  # type: ignore[misc]
        if not prediction_loss_only:  # answers of parts are not put together again: nobody asks for them
            return predict(model, inputs, False, ignore_keys)

        def mean_loss() -> Any:
            tokens, total = trained_tokens(inputs), 0.0
            for part in split(inputs, self.eval_parts):
                self._part = part
                loss = predict(model, part, True, ignore_keys)[0]
                total = loss if part is inputs else total + loss * (trained_tokens(part) / tokens)
            return total

        while isinstance(loss := attempt(mean_loss), OutOfMemoryEvent):
            step = self.state.global_step
            where = f"in the evaluation after step {step}"
            then = "held-out batches are computed in {} parts from here on, training as before"
            self.eval_parts = self._next_parts(loss, where, self.eval_parts, step, then)
        return loss, None, None

    def _get_grad_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; the optimizer's step follows."""
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        self._in_update = True
        return norm

    def _maybe_log_save_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._in_update = False
        return super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _compute_rest(self: Any, model: Any) -> None:
        """Forward and backward of those micro-batches of the window that have no loss yet."""
        window = self.window
        while len(window.losses) < len(window.inputs):
            window.losses.append(self._compute(model, window.inputs[len(window.losses)]))

    def _compute(self: Any, model: Any, inputs: Batch) -> Any:
        """Forward and backward of one micro-batch in its parts; the sum of their losses."""
        total: Any = 0.0
        for part in split(inputs, self.micro_parts):
            self._part = part
            if self.window.items is None and part is not inputs:
                self._share = trained_tokens(part) / trained_tokens(inputs)
            try:
                loss = super().training_step(model, part, self.window.items)  # type: ignore[misc]
            finally:
                self._share = None
            total = loss if part is inputs else total + loss
        return total

    def _next_parts(self: Any, event: OutOfMemoryEvent, where: str, parts: int, step: int, then: str) -> int:
        """Free what can be freed, and note what is done.

        Args:
            parts: in which memory ran out.
            then: the note, with a place for the number of parts.

        Returns:
            In how many parts to try next: as many where something was freed, else twice as many.

        Raises:
            OutOfMemory: no smaller part is left, or other processes would wait.
        """
        if distributed.world_size() > 1:
            alone = "With several processes no step is repeated, for the others would wait: take a smaller"
            raise self._out_of_memory(event, where, f"{alone} train.batch_size with the same train.effective_batch")
        ran_out = f"memory ran out ({event.reason})"
        freed = give_back(self.model)
        if freed:
            self.note("memory", f"{ran_out}; {freed_message(freed)}", step=step)
            return parts
        try:
            halves(self._part)
        except CannotSplit as smallest:
            tried = f"The smallest part is {smallest}; a micro-batch was tried in {parts} parts, with all caches freed"
            raise self._out_of_memory(event, where, tried) from None
        self.note("memory", f"{ran_out}; {then.format(2 * parts)}", step=step)
        return 2 * parts

    def _out_of_memory(self: Any, event: OutOfMemoryEvent, where: str, why_final: str) -> OutOfMemory:
        checkpoint = newest_checkpoint(Path(self.args.output_dir))
        ran_out = f"memory ran out {where} ({event.reason})"
        return OutOfMemory(f"{ran_out}.\n  {why_final}.\n  {checkpoint[0].upper()}{checkpoint[1:]}.\n  {ADVICE}")

    def _saved_state(self: Any) -> Any:
        """What computing a micro-batch changes besides gradients: random generators, TRL's counts."""
        counts = {name: list(values) for name, values in self._metrics["train"].items()}
        return random_state(), counts, self._total_train_tokens

    def _restore(self: Any, saved: Any) -> None:
        generators, counts, self._total_train_tokens = saved
        set_random_state(generators)
        self._metrics["train"].clear()
        self._metrics["train"].update({name: list(values) for name, values in counts.items()})
