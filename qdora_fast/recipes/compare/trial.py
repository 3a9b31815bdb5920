"""One training of a comparison, measured: held-out loss along the way, answers at the end, time and memory.

A trial leaves nothing but its figures: no checkpoint, no adapter, no export. The held-out loss is taken on the same
rows by the same function for every arm, about twenty times a run, outside of the time that is counted as step time.

Memory. On a GPU it is the allocator's peak while training. On the CPU the size of a process says little about one arm
(an allocator keeps what earlier arms gave back), so bytes are added up instead: weights as they are held, what is
trained, its gradients, the optimizer's state, and the weights that the engine keeps. Activations are not in it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.evaluation.auto import resolve_auto
from qdora_fast.evaluation.heldout import choose_rows, make_questions, mean_loss, row_losses
from qdora_fast.evaluation.metrics import find_metric
from qdora_fast.evaluation.task import ask, judging
from qdora_fast.models.backend import captured_prints, open_backend
from qdora_fast.models.loading import Base, attach, fuse_layers, load_base
from qdora_fast.models.targets import Targets
from qdora_fast.recipes.compare.arms import FULL, Trial, settings_for
from qdora_fast.recipes.compare.full import unfreeze_blocks
from qdora_fast.system.errors import NonFiniteError
from qdora_fast.training.trainer import Recipe, build_trainer, sft_arguments


@dataclass(frozen=True)
class Material:
    """What all trials share."""

    config: Config
    base_name: str
    targets: Targets
    """The same for every method."""
    recipe: Recipe
    """The same for every arm and seed."""
    prepared: Any
    """data.dataset.Prepared."""
    held_out: Sequence[int]
    """Numbers of the held-out rows that are asked and measured."""
    options: Sequence[str] = ()
    """What to choose from, for metric `choice`."""

    @property
    def steps(self) -> int:
        """Optimizer steps of every trial."""
        return self.recipe.steps

    @property
    def every(self) -> int:
        """Steps between two measurements of the held-out loss."""
        return max(1, self.steps // POINTS)


POINTS = 20
"""Measurements of the held-out loss in a run, besides the one before it."""


def run_trial(trial: Trial, material: Material) -> dict[str, Any]:
    """Train one arm with one seed and return its figures, as JSON.

    Raises:
        RefusedError: the base cannot be trained in this arm's way.
        ConfigError: the metric does not fit the references.
    """
    begun = time.monotonic()
    config = settings_for(material.config, trial)
    base = load_base(
        material.base_name,
        config.model,
        config.adapter,
        config.train,
        targets=material.targets,
        precision=material.recipe.precision,
    )
    _set_template(base, config)
    model = _trainable(base, config, trial)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    examples = [material.prepared.held_out_examples[number] for number in material.held_out]
    watch = _watch(model, examples, material.every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, base, config, material, Path(folder), watch)
        diverged = False
        try:
            with captured_prints():
                trainer.train()
        except NonFiniteError:
            diverged = True
    losses = [loss for _, loss in watch.curve]
    return {
        "arm": trial.arm.name,
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
        "steps": int(trainer.state.global_step),
        "curve": [[step, _finite(loss)] for step, loss in watch.curve],
        "loss": None if diverged else _finite(losses[-1]),
        "best_loss": min((loss for loss in losses if math.isfinite(loss)), default=None),
        "scores": _scores(model, base, config, material),
        "step_seconds": statistics.median(watch.seconds),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "memory": {"total": watch.peak} if watch.peak else _memory(model, trained, trainer.optimizer),
        "seconds": round(time.monotonic() - begun, 1),
        "notes": [f"step {note.step}: {note.message}" for note in trainer.notes],
    }


def _set_template(base: Base, config: Config) -> None:
    from qdora_fast.data import choose_template

    choose_template(base.tokenizer, config.data.template)


def _trainable(base: Base, config: Config, trial: Trial) -> Any:
    if trial.arm.method == FULL:
        return unfreeze_blocks(base)
    model = attach(base, config.adapter, config.train)
    fuse_layers(model, config.engine)
    return model


def _trainer(model: Any, base: Base, config: Config, material: Material, folder: Path, watch: Any) -> Any:
    recipe, length = material.recipe, config.model.length
    arguments = sft_arguments(config.train, recipe, folder=folder, max_length=length, evaluates=False)
    return build_trainer(
        model,
        base.tokenizer,
        (material.prepared.tokens.dataset(), None),
        config.train,
        recipe=recipe,
        arguments=arguments | {"save_strategy": "no"},
        callbacks=[watch],
    )


def _watch(model: Any, examples: Sequence[Mapping[str, Any]], every: int) -> Any:
    """A callback of the trainer: `.curve`, pairs of step and held-out loss; `.seconds` of each step; `.peak`, bytes of
    the GPU in a step, measuring left out."""
    import torch
    from transformers import TrainerCallback

    gpu = torch.cuda.is_available()

    class Watch(TrainerCallback):
        """Measures between the steps."""

        def __init__(self) -> None:
            self.curve: list[tuple[int, float]] = []
            self.seconds: list[float] = []
            self.since = 0.0
            self.peak = 0

        def measure(self, step: int) -> None:
            """One point of the curve; the model goes on training as it was."""
            model.eval()
            self.curve.append((step, mean_loss(row_losses(model, examples))))
            model.train()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.measure(0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            self.since = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
                self.peak = max(self.peak, int(torch.cuda.max_memory_allocated()))
            self.seconds.append(time.perf_counter() - self.since)
            if state.global_step % every == 0 and state.global_step < state.max_steps:
                self.measure(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.measure(state.global_step)

    return Watch()


def _scores(model: Any, base: Base, config: Config, material: Material) -> list[float]:
    """How right the answers to the held-out questions are, in the questions' order; [] without questions, and where no
    metric judges answers."""
    rows = [material.prepared.held_out[number] for number in material.held_out]
    data = config.data
    questions = make_questions(
        rows, base.tokenizer, max_length=config.model.length, date=data.date, thinking=data.thinking
    )
    chosen = resolve_auto(config.evaluation, questions)
    name = judging(chosen.settings)
    if name is None:
        return []
    open_backend().FastLanguageModel.for_inference(model)
    asked = [questions[i] for i in choose_rows([question.row for question in questions], chosen.written)]
    replies = ask(model, base.tokenizer, asked, chosen.settings, base.stop_ids, options=material.options)
    metric = find_metric(name, pattern=chosen.settings.pattern)
    pairs = zip(replies, asked, strict=True)
    return [float(metric.score(reply.text, question.reference, question.row)) for reply, question in pairs]


def _memory(model: Any, trained: Sequence[Any], optimizer: Any) -> dict[str, int]:
    """Bytes by what they are for, and their sum, `total`."""
    import torch

    from qdora_fast.engine.patch import residency

    kept = residency(model)
    state = getattr(optimizer, "optimizer", optimizer).state
    moments = [value for values in state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    parts = {
        "weights": sum(_bytes(parameter) for parameter in model.parameters() if not parameter.requires_grad),
        "trained": sum(_bytes(parameter) for parameter in trained),
        "gradients": sum(_bytes(parameter) for parameter in trained),
        "optimizer": sum(_bytes(moment) for moment in moments),
        "kept": kept.bytes if kept else 0,
    }
    return {**parts, "total": sum(parts.values())}


def _bytes(tensor: Any) -> int:
    """Of a tensor; of a 4-bit weight with its scales."""
    count = int(tensor.numel() * tensor.element_size())
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        count += int(state.absmax.numel() * state.absmax.element_size())
        state = getattr(state, "state2", None)
    return count


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
