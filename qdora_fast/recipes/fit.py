"""The training itself: rows, model and settings become a trainer, and the trainer is let run.

What decides the course (recipe, batch, steps) is `trainer.py`'s business, what happens at a step that of its
callbacks. Here they are put together: on a GPU the longest batch is tried first, and what a signal asked for is
carried out at the end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.models.backend import captured_prints
from qdora_fast.planning.cards import Card
from qdora_fast.planning.history import earlier_speed
from qdora_fast.planning.memory.base import base_config, sizes_of
from qdora_fast.planning.memory.estimate import estimate
from qdora_fast.planning.memory.job import JobSettings, job_of
from qdora_fast.recipes import messages
from qdora_fast.recipes.data import Ready
from qdora_fast.recipes.evaluation_time import evaluation_lines
from qdora_fast.recipes.plan import shape_of_config, shape_of_run
from qdora_fast.system import console, distributed
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.callbacks import OnStep, record_notes, step_callback, training_callbacks
from qdora_fast.training.probe import Probed, meter_here, probe
from qdora_fast.training.resume import identity, require_same
from qdora_fast.training.signals import listening, signal_callback
from qdora_fast.training.throughput import Expected, ProcessorTime, Slow, Throughput, causes, observe
from qdora_fast.training.trackers import continued, name_of, take_back_events, tracker_callback
from qdora_fast.training.trainer import Recipe, build_trainer, describe, make_recipe, sft_arguments, trained_groups


def fit(
    model: Any,
    base: Any,
    config: Config,
    folder: RunFolder,
    ready: Ready,
    recipe: Recipe,
    checkpoint: Path | None,
    on_step: OnStep | None = None,
) -> None:
    """Train `model` on the prepared rows, and say how.

    Args:
        recipe: from `recipe_of`, by these rows.
        checkpoint: to resume from; None: from step 0.
        on_step: see `train`.

    Raises:
        CheckpointError: the checkpoint is of another run.
        Stopped: a signal ended it; a checkpoint was saved.
        NonFiniteError, OutOfMemory: see `nonfinite.py`, `oom.py` and `probe.py`.
    """
    prepared, identity = ready.prepared, identity_of(config, ready, recipe)
    if checkpoint is not None:
        require_same(checkpoint, identity, ready.base_name)
    messages.recipe(describe(recipe, config.train, trained_groups(model, config.train)))
    messages.evaluation_time(evaluation_lines(config, folder, ready, recipe))
    trackers = config.train.trackers if distributed.is_main() else []
    arguments = sft_arguments(
        config.train,
        recipe,
        folder=folder.path / "checkpoints",
        max_length=config.model.length,
        evaluates=bool(prepared.held_out_examples),
        run_name=name_of(folder, trackers),
    )
    held_out = prepared.held_out_examples
    datasets = (prepared.tokens.dataset(), held_out.dataset() if held_out else None)
    probed = _try_longest(model, base.tokenizer, config, folder, ready, recipe, datasets)
    watching = training_callbacks(
        metrics=folder.metrics_file,
        throughput=Throughput(prepared.train_tokens, _expected(config, folder)),
        find_causes=partial(_why_slow, model, config, ready, packed=recipe.packing, since=ProcessorTime.now()),
    )
    with (
        listening(lambda text: console.note(text)) as requests,
        watching as callbacks,
        continued(folder, trackers),
    ):
        told = [step_callback(on_step, requests)] if on_step else []
        trainer = build_trainer(
            model,
            base.tokenizer,
            datasets,
            config.train,
            recipe=recipe,
            arguments=arguments,
            callbacks=[*callbacks, tracker_callback(folder, trackers), *told, signal_callback(requests)],
            identity=identity,
            source_of=prepared.source_of,
            on_note=record_notes(folder.metrics_file),
        )
        if checkpoint is not None and "tensorboard" in trackers:
            take_back_events(trainer, int(checkpoint.name.rpartition("-")[2]))
        if probed is not None:
            trainer.micro_parts, trainer.eval_parts = probed.parts, probed.eval_parts
        with captured_prints():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        requests.raise_if_stopped(f"checkpoint-{trainer.state.global_step} of {folder.path}")
    messages.trained(trainer.state, trainer.notes)
    messages.engine_afterwards(model)


def _try_longest(
    model: Any,
    tokenizer: Any,
    config: Config,
    folder: RunFolder,
    ready: Ready,
    recipe: Recipe,
    datasets: tuple[Any, Any | None],
) -> Probed | None:
    """What the longest batch takes, said and recorded; None where it is not tried. A resumed run tries it again: it may
    be on another card, or not alone on it."""
    meter = meter_here()
    if meter is None or not config.train.probe:
        return None
    if distributed.world_size() > 1:
        why = "if memory ran out in one process, the others would wait for it"
        console.note(f"the longest batch is not tried before step 1 with several processes: {why}")
        return None
    prepared = ready.prepared
    lengths = prepared.columns.tokens[prepared.per_epoch], prepared.columns.tokens[prepared.held]
    try:
        probed = probe(
            model,
            tokenizer,
            config.train,
            recipe,
            datasets,
            lengths,
            max_length=config.model.length,
            folder=folder.path / "checkpoints",
            meter=meter,
            estimated=partial(estimated_step, config, ready.base_name),
        )
    except Exception as error:
        error.add_note("while the longest batch was tried; train.probe: false starts without that")
        raise
    messages.probed(probed)
    folder.add_to_json("fit.json", {"probe": probed.as_dict()})
    return probed


def estimated_step(config: Config, base_name: str, tokens: int, memory: int) -> int | None:
    """Bytes to be expected of a training step; None: this architecture is not counted.

    Args:
        tokens: of a row, or of a packed sequence.
        memory: bytes of the card.
    """
    try:
        base = base_config(base_name, config.model.revision)
        sizes = sizes_of(base.values, base.name, config.model.revision)
        settings = JobSettings(config.adapter, config.train, config.engine)
        job = replace(job_of(settings, sizes, length=config.model.length, on_gpu=True), length=tokens)
    except ConfigError:  # nothing depends on it
        return None
    return estimate(job, Card("", memory)).phases["step"]


def _expected(config: Config, folder: RunFolder) -> Expected | None:
    """Tokens/s of the newest comparable run; when resuming, of this run. None if nothing was logged."""
    name = config.run.name or folder.first_name
    speed = earlier_speed(Path(config.run.dir), name, shape_of_config(config), shape_of_run)
    return Expected(speed.tokens_per_second, speed.run) if speed else None


def _why_slow(model: Any, config: Config, ready: Ready, slow: Slow, *, packed: bool, since: ProcessorTime) -> list[str]:
    lengths, batch = ready.prepared.columns.tokens[ready.prepared.per_epoch], config.train.micro_batch
    found = observe(model, lengths, batch_size=batch, packed=packed, waiting=slow.waiting, since=since)
    return causes(found)


def identity_of(config: Config, ready: Ready, recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint and this run must share for the run to be resumed from it; see `training/resume.py`."""
    return identity(
        config.model,
        config.adapter,
        config.train,
        base=ready.base_name,
        data=ready.prepared.report.hash,
        rendering=ready.rendering.identity(),
        recipe=recipe,
    )


def recipe_of(config: Config, ready: Ready, precision: str) -> Recipe:
    """What the settings come to with these rows, on this machine; `precision`: from `choose_precision`."""
    rows, tokens = ready.prepared.report.per_epoch, ready.prepared.train_tokens
    return make_recipe(config.train, rows=rows, tokens=tokens, max_length=config.model.length, precision=precision)
