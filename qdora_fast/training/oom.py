"""When memory runs out in a step, the step is repeated in smaller parts instead of ending the run.

Gradients of a micro-batch that failed half-way are already mixed with those of the micro-batches before it. So nothing
is saved of the step: gradients go, what can be freed is (out_of_memory.py: kept weights, buffers, cache), the random
generators return to where the step began, and all its micro-batches are computed again. If giving back freed something
that is tried first, as it was; from then on each micro-batch is computed in 2, 4, 8, … parts, down to one conversation.
What was drawn from the data stays, and the loss is divided by the tokens of the whole step, as before: the step is the
same to the rounding of sums. (With dropout the masks of a part are others than those of the whole, equally random.)

An evaluation has its own parts and leaves those of training alone.

What is not repeated: the optimizer's step, for weights may be half updated; one conversation that does not fit; and
anything in a run of several processes, where the others would wait for ever. Those end with OutOfMemory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdora_fast.models.out_of_memory import Lack, attempt, first_sentence, give_back, is_out_of_memory
from qdora_fast.system import distributed
from qdora_fast.system.errors import OutOfMemory
from qdora_fast.system.run_folder import newest_checkpoint
from qdora_fast.training.microbatch import Batch, Whole, halves, parts, trained_tokens
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
    said: str
    """For the user: what happened, and what was done."""
    rows: tuple[str, ...] = ()
    """Places of the rows it is about."""


@dataclass
class Window:
    """The micro-batches of one optimizer step so far."""

    inputs: list[Batch] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    """One for each of `inputs` that is done: tensors without dimensions."""
    items: Any = None
    """Trained tokens of the whole step, by which its loss is divided; None: each micro-batch by its own."""
    before: Any = None
    """Random generators, and what TRL had counted, before the first."""


class BackOff:
    """Put before SFTTrainer. `micro_parts` belongs into a checkpoint: a resumed run then adds in the same order."""

    micro_parts = 1
    """In how many parts a micro-batch is computed while training: 1, 2, 4, …"""
    eval_parts = 1
    """The same while evaluating."""
    on_note: Callable[[Note], None] | None = None
    """Told of every note when it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.notes: list[Note] = []
        self.window = Window()
        self._part: Batch = {}
        self._share: Any = None
        self._in_update = False
        super().__init__(*args, **kwargs)

    def note(self: Any, kind: str, said: str, rows: tuple[str, ...] = (), *, step: int) -> None:
        """Make a note of something that happened in this step, or after it."""
        self.notes.append(Note(step, kind, said, rows))
        if self.on_note is not None:
            self.on_note(self.notes[-1])

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; memory that runs out where nothing can be repeated is said in words."""
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            step, lack = self.state.global_step + 1, Lack(first_sentence(error))
            if self._in_update:
                half = "That is never repeated: some weights may be updated and others not"
                raise self._out_of_memory(lack, f"inside the optimizer's step {step}", half) from error
            raise self._out_of_memory(lack, f"around step {step}", "Nothing there can be computed in parts") from error

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's: where a step begins."""
        self.window = Window()
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def training_step(self: Any, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Any:
        """The loss of one micro-batch; its gradients are added. If memory runs out, the step so far is repeated."""
        window = self.window
        window.items = num_items_in_batch
        if not window.inputs:
            window.before = self._standing()
        window.inputs.append(inputs)
        while isinstance(lack := attempt(lambda: self._compute_rest(model)), Lack):
            window.losses.clear()
            model.zero_grad()
            self._return_to(window.before)
            step = self.state.global_step + 1
            told = (
                "the step is repeated with each micro-batch in {} parts, and so are later ones; its rows stay the same"
            )
            self.micro_parts = self._smaller(lack, f"in step {step}", self.micro_parts, step, told)
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
            whole, total = trained_tokens(inputs), 0.0
            for part in parts(inputs, self.eval_parts):
                self._part = part
                loss = predict(model, part, True, ignore_keys)[0]
                total = loss if part is inputs else total + loss * (trained_tokens(part) / whole)
            return total

        while isinstance(found := attempt(mean_loss), Lack):
            step = self.state.global_step
            told = "held-out batches are computed in {} parts from here on, training as before"
            self.eval_parts = self._smaller(found, f"in the evaluation after step {step}", self.eval_parts, step, told)
        return found, None, None

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
        for part in parts(inputs, self.micro_parts):
            self._part = part
            if self.window.items is None and part is not inputs:
                self._share = trained_tokens(part) / trained_tokens(inputs)
            try:
                loss = super().training_step(model, part, self.window.items)  # type: ignore[misc]
            finally:
                self._share = None
            total = loss if part is inputs else total + loss
        return total

    def _smaller(self: Any, lack: Lack, where: str, now: int, step: int, told: str) -> int:
        """Free what can be freed; in how many parts to try next, which is noted as `told`.

        Raises:
            OutOfMemory: no smaller part is left, or other processes would wait.
        """
        if distributed.world_size() > 1:
            alone = "With several processes no step is repeated, for the others would wait: take a smaller"
            raise self._out_of_memory(lack, where, f"{alone} train.batch_size with the same train.effective_batch")
        given = give_back(self.model)
        if given:
            freed = f"the engine gave back {given / 2**20:,.3g} MiB of kept weights, and the same is tried again"
            self.note("memory", f"memory ran out ({lack.why}); {freed}", step=step)
            return now
        try:
            halves(self._part)
        except Whole as whole:
            tried = f"What is left is {whole}; it was tried in {now} parts, with everything given back that was kept"
            raise self._out_of_memory(lack, where, tried) from None
        self.note("memory", f"memory ran out ({lack.why}); {told.format(2 * now)}", step=step)
        return 2 * now

    def _out_of_memory(self: Any, lack: Lack, where: str, why_final: str) -> OutOfMemory:
        good = newest_checkpoint(Path(self.args.output_dir))
        said = f"memory ran out {where} ({lack.why})"
        return OutOfMemory(f"{said}.\n  {why_final}.\n  {good[0].upper()}{good[1:]}.\n  {ADVICE}")

    def _standing(self: Any) -> Any:
        """What computing a micro-batch changes besides gradients: random generators, TRL's counts."""
        counts = {name: list(values) for name, values in self._metrics["train"].items()}
        return random_state(), counts, self._total_train_tokens

    def _return_to(self: Any, standing: Any) -> None:
        generators, counts, self._total_train_tokens = standing
        set_random_state(generators)
        self._metrics["train"].clear()
        self._metrics["train"].update({name: list(values) for name, values in counts.items()})
