"""The training itself: rows, model and settings become a trainer, and the trainer is let run.

What decides the course (recipe, batch, steps) is `trainer.py`'s business, what happens at a step that of its
callbacks. Here they are put together: on a GPU the longest batch is tried first, and what a signal asked for is
carried out at the end.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.models.backend import captured_prints
from qdora_fast.planning.history import earlier_speed
from qdora_fast.recipes import messages
from qdora_fast.recipes.data import Ready
from qdora_fast.system import console, distributed
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.probe import Probed, meter_here, probe
from qdora_fast.training.resume import identity, require_same
from qdora_fast.training.throughput import Expected, ProcessorTime, Slow, Throughput, causes, look_around


def fit(model: Any, base: Any, config: Config, folder: RunFolder, ready: Ready, checkpoint: Path | None) -> None:
    """Train `model` on the prepared rows, and say how.

    Raises:
        CheckpointError: the checkpoint is of another run.
        Stopped: a signal ended it; a checkpoint was saved.
        NonFiniteError, OutOfMemory: see `nonfinite.py`, `oom.py` and `probe.py`.
    """
    from qdora_fast.training.callbacks import keep_notes, training_callbacks
    from qdora_fast.training.signals import listening, signal_callback
    from qdora_fast.training.trainer import build_trainer, describe, sft_arguments, trained_groups

    prepared, recipe, identity = ready.prepared, _recipe(config, ready), identity_of(config, ready)
    if checkpoint is not None:
        require_same(checkpoint, identity, ready.base_name)
    messages.recipe(describe(recipe, config.train, trained_groups(model, config.train)))
    arguments = sft_arguments(
        config.train,
        recipe,
        folder=folder.path / "checkpoints",
        max_length=config.model.length,
        evaluates=bool(prepared.held_out_examples),
    )
    held_out = prepared.held_out_examples
    datasets = (prepared.tokens.dataset(), held_out.dataset() if held_out else None)
    found = _try_longest(model, base.tokenizer, config, folder, ready, datasets)
    watching = training_callbacks(
        metrics=folder.metrics,
        throughput=Throughput(prepared.train_tokens, _expected(config, folder)),
        find_causes=partial(_why_slow, model, config, ready, packed=recipe.packing, since=ProcessorTime.now()),
    )
    with listening(lambda said: console.note(said)) as requests, watching as callbacks:
        trainer = build_trainer(
            model,
            base.tokenizer,
            datasets,
            config.train,
            recipe=recipe,
            arguments=arguments,
            callbacks=[*callbacks, signal_callback(requests)],
            identity=identity,
            place_of=prepared.source_of,
            on_note=keep_notes(folder.metrics),
        )
        if found is not None:
            trainer.micro_parts, trainer.eval_parts = found.parts, found.eval_parts
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
    datasets: tuple[Any, Any | None],
) -> Probed | None:
    """What the longest batch takes, said and recorded; None where it is not tried. A run that is gone on with tries it
    again: it may be on another card, or not alone on it."""
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
        found = probe(
            model,
            tokenizer,
            config,
            _recipe(config, ready),
            datasets,
            lengths,
            base_name=ready.base_name,
            folder=folder.path / "checkpoints",
            meter=meter,
        )
    except Exception as error:
        error.add_note("while the longest batch was tried; train.probe: false starts without that")
        raise
    messages.probed(found)
    folder.add_to_json("fit.json", {"probe": found.as_dict()})
    return found


def _expected(config: Config, folder: RunFolder) -> Expected | None:
    """The speed of the newest run of this name and shape that has logged any; of this one if it is gone on with."""
    found = earlier_speed(config, re.sub(r"-\d+$", "", folder.path.name))
    return Expected(found.tokens_per_second, found.run) if found else None


def _why_slow(model: Any, config: Config, ready: Ready, slow: Slow, *, packed: bool, since: ProcessorTime) -> list[str]:
    lengths, batch = ready.prepared.columns.tokens[ready.prepared.per_epoch], config.train.micro_batch
    found = look_around(model, lengths, batch_size=batch, packed=packed, waiting=slow.waiting, since=since)
    return causes(found)


def identity_of(config: Config, ready: Ready) -> dict[str, Any]:
    """What a checkpoint must share with this run to be gone on from; see `resume.py`."""
    return identity(
        config,
        base=ready.base_name,
        data=ready.prepared.report.hash,
        rendering=ready.rendering.identity(),
        recipe=_recipe(config, ready),
    )


def _recipe(config: Config, ready: Ready) -> Any:
    from qdora_fast.training.trainer import make_recipe

    rows, tokens = ready.prepared.report.per_epoch, ready.prepared.train_tokens
    return make_recipe(config.train, rows=rows, tokens=tokens, max_length=config.model.length)
