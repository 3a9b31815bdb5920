"""The longest batch, tried on the GPU before step 1: what does not fit shows now, and not hours later.

Two steps and an evaluation are made on the longest rows with all that the run itself will use: trainer, engine,
optimizer. At learning rate 0; and two steps, because only in the second are gradients and optimizer state all there.
Then weights, random generators, modes and the model's own attributes are put back, and the trainer is thrown away:
what the run learns is the same (tested to the bit, on the CPU).

If memory runs out, the trainer computes each micro-batch in 2, 4, 8, … parts, down to one row (oom.py). That is
halving the micro-batch and doubling the accumulation; the run begins with as many, and without the cached weights that
the engine released. What does not fit even so ends with OutOfMemory, before anything was trained.

What it does not do: answer questions or export, which come after training; run on the CPU, where memory does not run
out with an error; or in several processes, where the others would wait for one that failed. With fp16 the scaler may
skip both steps, and then the optimizer's state is missing from the peak. bitsandbytes never frees the state of a paged
optimizer: that of the two steps stays, in pages that nobody touches again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qdora_fast.config import TrainSettings
from qdora_fast.models.backend import captured_prints
from qdora_fast.models.out_of_memory import release_memory
from qdora_fast.planning.memory.estimate import in_gib
from qdora_fast.system.errors import OutOfMemory
from qdora_fast.training.state import random_state, set_random_state
from qdora_fast.training.trainer import Recipe, build_trainer, sft_arguments

STEPS = 2
SPARE = 1.2
"""Rows are packed with gaps: so much more is taken than would fill the sequences exactly."""


class Meter(Protocol):
    """Measures memory, in bytes."""

    def begin(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """The most that was in use since."""

    def total(self) -> int:
        """All that may be in use."""


class CardMeter:
    """Of the current GPU. Beside what PyTorch has reserved, all that the driver sees in use counts."""

    def begin(self) -> None:
        """Forget the peak so far."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """The most that was in use since."""
        import torch

        from qdora_fast.engine.residency import beside_torch

        return beside_torch() + int(torch.cuda.max_memory_reserved())

    def total(self) -> int:
        """The card's; less where `train.vram` holds PyTorch to a share of it."""
        from qdora_fast.engine.residency import card_total

        return card_total()


def meter_here() -> Meter | None:
    """What measures this machine's memory; None without a GPU."""
    import torch

    return CardMeter() if torch.cuda.is_available() else None


@dataclass(frozen=True)
class Probed:
    """What the longest batch needs."""

    rows: int
    """Of a micro-batch: rows or packed sequences."""
    tokens: int
    """Of the longest row, or of a packed sequence."""
    parts: int
    """In which a micro-batch is computed, so that it fits."""
    eval_parts: int
    given_back: bool
    """The engine's cached weights did not fit beside it."""
    peak_bytes: int
    total_bytes: int
    estimated_bytes: int | None
    """Of a whole micro-batch; None: this architecture is not counted."""

    def as_dict(self) -> dict[str, Any]:
        """For fit.json."""
        return asdict(self)

    def summary(self) -> list[str]:
        """Sentences for the user."""
        guess = f" ({in_gib(self.estimated_bytes)} estimated)" if self.estimated_bytes else ""
        left = in_gib(max(0, self.total_bytes - self.peak_bytes))
        what = f"the longest batch, {self.rows} x {self.tokens:,} tokens, was tried"
        lines = [f"{what}: peak {in_gib(self.peak_bytes)}{guess}, {left} left of {in_gib(self.total_bytes)}"]
        if self.given_back:
            lines.append("it does not fit beside cached merged weights, so none are cached")
        for batches, parts in (("micro-batches", self.parts), ("held-out batches", self.eval_parts)):
            if parts > 1:
                lines.append(f"{batches} are computed in {parts} parts: at once they do not fit; same rows a step")
        return lines


def probe(
    model: Any,
    tokenizer: Any,
    train: TrainSettings,
    recipe: Recipe,
    datasets: tuple[Any, Any | None],
    lengths: tuple[np.ndarray, np.ndarray],
    *,
    max_length: int,
    folder: Path,
    meter: Meter,
    estimated: Callable[[int, int], int | None],
) -> Probed:
    """Try the longest batch.

    Args:
        datasets: training and held-out rows, as `build_trainer` takes them.
        lengths: their tokens, row by row.
        max_length: tokens of a packed sequence.
        folder: of the run's checkpoints; nothing is written into it.
        estimated: bytes to be expected of a training step; asked with the tokens of a row and the bytes of the card,
            None where the architecture is not counted.

    Raises:
        OutOfMemory: not even one row fits.
    """
    from qdora_fast.engine.patch import residency

    chosen = _longest(train, recipe, datasets, lengths, max_length)
    peaks: list[int] = []
    with _nothing_changes(model):
        trainer = _still_trainer(model, tokenizer, train, recipe, chosen, folder, max_length)
        trainer.add_callback(_after_steps(meter, peaks))
        trainer.on_note = lambda note: meter.begin() if note.kind == "memory" else None  # what failed does not count
        meter.begin()
        try:
            with captured_prints():
                trainer.train()
        except OutOfMemory as error:
            raise OutOfMemory(f"the longest rows do not fit, so no step was made: {error}") from None
        tokens = max_length if trainer.args.packing else int(lengths[0].max())
        probed = Probed(
            rows=min(train.micro_batch, len(trainer.train_dataset)),
            tokens=tokens,
            parts=trainer.micro_parts,
            eval_parts=trainer.eval_parts,
            given_back=bool((resident := residency(model)) and resident.given_up),
            peak_bytes=max(*peaks, meter.peak()),
            total_bytes=(total := meter.total()),
            estimated_bytes=estimated(tokens, total),
        )
        del trainer
    return probed


def _longest(
    train: TrainSettings,
    recipe: Recipe,
    datasets: tuple[Any, Any | None],
    lengths: tuple[np.ndarray, np.ndarray],
    max_length: int,
) -> tuple[Any, Any | None]:
    """The rows of the steps, and of one held-out batch."""
    size = train.micro_batch
    count = size * min(STEPS, train.accumulation) * STEPS
    wanted = (
        longest_rows(lengths[0], count, max_length if recipe.packing else None),
        longest_rows(lengths[1], size, None),
    )
    rows, held_out = (  # in memory, so that packing them leaves no file beside the prepared ones
        dataset and dataset.from_dict(dataset[numbers], features=dataset.features)
        for dataset, numbers in zip(datasets, wanted, strict=True)
    )
    return rows, held_out


def _still_trainer(
    model: Any,
    tokenizer: Any,
    train: TrainSettings,
    recipe: Recipe,
    datasets: tuple[Any, Any | None],
    folder: Path,
    max_length: int,
) -> Any:
    """The run's trainer, for steps that move nothing, over rows in their order."""
    still = {
        "learning_rate": 0.0,
        "magnitude_learning_rate": None,
        "early_stopping": None,
        "tracker": "none",
        "max_nonfinite": STEPS + 1,  # a row with a NaN is the run's business
    }
    train = train.model_copy(update=still)
    evaluates = datasets[1] is not None
    arguments = sft_arguments(train, recipe, folder=folder, max_length=max_length, evaluates=evaluates)
    arguments |= {
        "max_steps": STEPS,
        "gradient_accumulation_steps": min(STEPS, train.accumulation),
        "eval_steps": STEPS if evaluates else None,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    return build_trainer(model, tokenizer, datasets, train, recipe=recipe, arguments=arguments, callbacks=[])


def longest_rows(lengths: Sequence[int] | np.ndarray, count: int, packed_into: int | None) -> list[int]:
    """Numbers of the rows that make the longest batches, the longest first.

    Args:
        count: rows, or packed sequences, that are wanted.
        packed_into: tokens of a sequence; the longest rows alone would leave gaps, so rows of all lengths are taken,
            enough to fill the sequences. None: rows are padded.
    """
    order = np.argsort(lengths, kind="stable")[::-1]
    if packed_into is not None:
        count = int(SPARE * count * packed_into / max(1.0, float(np.mean(lengths)))) + 1
        order = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    return [int(number) for number in order[:count]]


def _after_steps(meter: Meter, peaks: list[int]) -> Any:
    """A callback that records the peak of the steps: an evaluation that has to be repeated would lose it."""
    from transformers import TrainerCallback

    class AfterSteps(TrainerCallback):
        """Looks at the meter once."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEPS:
                peaks.append(meter.peak())

    return AfterSteps()


@contextmanager
def _nothing_changes(model: Any) -> Iterator[None]:
    """Put weights, gradients, modes, generators and the model's attributes back to what they were.

    What the engine may cache on a GPU is decided by the run's own first step. The allocator's peak is left for
    that decision: it then knows what the longest batch needs.
    """
    import torch

    from qdora_fast.engine.patch import forget_fallbacks, residency

    before = random_state()
    trained = [(each, each.detach().to("cpu", copy=True)) for each in model.parameters() if each.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    attributes = dict(vars(model))  # Accelerate puts its autocast around `forward`, and the next trainer's around that
    resident = residency(model)
    undecided = resident is not None and resident.later
    if resident is not None:
        resident.later = False
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)
                parameter.grad = None
        vars(model).clear()
        vars(model).update(attributes)
        for module, mode in modes:
            module.training = mode
        if resident is not None:
            resident.later = undecided
        forget_fallbacks(model)
        set_random_state(before)
        release_memory()
