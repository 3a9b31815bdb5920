"""Checkpoints that are complete or not there, and are read only after every byte has been compared.

The Trainer's own are written in place, carry no hash, and the one with the highest number is
trusted: a kill during a save loses the run, a flipped bit trains on, a missing optimizer file
starts it afresh without a word. Here a checkpoint is

    checkpoints/checkpoint-<step>/
      adapter_config.json, adapter_model.safetensors    what is trained, checked by structure
      training_state.json, training_state.safetensors   optimizer, scheduler, scaler, generators
      trainer_state.json                                where in the data, what was logged
      MANIFEST.json                                     the hash of each, and whose they are

built beside its place, flushed to the disk and renamed; older ones go only after that. Whatever is
not finite is not saved at all. The class is a mixin before SFTTrainer, whose own saving and loading
it replaces. What it does not do: choose the checkpoint that a run is resumed from (`resume.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdora_fast.models.adapter import load_into, write_adapter
from qdora_fast.system import distributed
from qdora_fast.system.atomic import discard, require_space, staged_folder
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import NonFiniteError
from qdora_fast.system.manifest import write_manifest
from qdora_fast.system.run_folder import checkpoints_in, newest_checkpoint
from qdora_fast.training.state import (
    load_optimizer_state,
    optimizer_state,
    random_state,
    read_state,
    set_random_state,
    write_state,
)

PROGRESS = "trainer_state.json"
"""The name under which the Trainer looks for it."""


class DurableCheckpoints:
    """Put before a Trainer class. Set `identity` before training."""

    identity: Mapping[str, Any] = {}
    """What a run and a checkpoint must share for the run to be resumed from it; goes into the manifest."""

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Write everything, then make room. With several processes the first writes for all."""
        self.store_flos()
        generators = distributed.all_gather(random_state())
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            step = self.state.global_step
            require_finite(self.model, folder)
            _remember(self, folder)
            content = {
                "optimizer": optimizer_state(self.optimizer, _names(self.model)),
                "scheduler": self.lr_scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "generators": generators,
                "micro_parts": getattr(self, "micro_parts", 1),
            }
            about = {"kind": "checkpoint", "step": step, "identity": dict(self.identity)}
            saved = checkpoints_in(folder)
            safe = f"{saved[-1]} is untouched" if saved else "there is no checkpoint yet"
            with disk_errors(folder, saved=lambda: safe, again="run the same command again with --auto-resume"):
                _write(folder / f"checkpoint-{step}", self.model, content, self.state.save_to_json, about)
                rotate(folder, keep=self.args.save_total_limit, best=self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """Put the saved adapter's values into the parameters that are there."""
        load_into(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        """Optimizer, scheduler, and in how many parts a micro-batch is computed: more where this card needs it."""
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        load_optimizer_state(inner, state["optimizer"], _names(self.model))
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.micro_parts = max(getattr(self, "micro_parts", 1), state["micro_parts"])

    def _load_scaler(self: Any, checkpoint: str | None) -> None:
        state = read_state(Path(checkpoint))["scaler"] if checkpoint else None
        if state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        """This process's generators; those of the first where there were fewer processes."""
        if checkpoint is not None:
            generators = read_state(Path(checkpoint))["generators"]
            rank = self.args.process_index
            set_random_state(generators[rank if rank < len(generators) else 0])

    def _init_training_state(self: Any, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; the best checkpoint is looked for here and not where the run once was."""
        result = super()._init_training_state(max_steps, *args, **kwargs)  # type: ignore[misc]
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if self.state.best_global_step and best.is_dir() else None
        return result

    def _run_epoch(self: Any, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, unless all steps are done: resumed at the last one, it would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, which draws random numbers: neither how often a run evaluates nor an evaluation that it skips
        when it is told to stop may change what is learned."""
        before = random_state()
        try:
            return super()._evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            set_random_state(before)

    def _load_best_model(self: Any) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def require_finite(model: Any, checkpoints: Path) -> None:
    """Raise NonFiniteError when a trained tensor holds NaN or infinity: it is never saved."""
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not bool(parameter.isfinite().all())
    ]
    if broken:
        raise NonFiniteError(
            f"{len(broken)} trained tensors hold NaN or infinity (first {broken[0]}); nothing was saved, "
            f"{newest_checkpoint(checkpoints)}. Lower train.learning_rate, then start anew or --resume"
        )


def rotate(folder: Path, *, keep: int | None, best: int | None) -> None:
    """Remove all checkpoints but the newest `keep` by step, and the best one."""
    for path in checkpoints_in(folder)[: -keep or None] if keep else []:
        if path.name != f"checkpoint-{best}":
            discard(path)
    for path in folder.glob("checkpoint-*.removed"):  # from a kill in the middle of that
        shutil.rmtree(path, ignore_errors=True)


def _write(out: Path, model: Any, content: dict[str, Any], save_progress: Any, about: dict[str, Any]) -> None:
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    require_space(out, 4 * trained)  # weights, two moments, and what is beside them
    with staged_folder(out, overwrite=True) as staging:
        write_adapter(model, staging)
        write_state(staging, content)
        save_progress(str(staging / PROGRESS))
        write_manifest(staging, about)


def _remember(trainer: Any, folder: Path) -> None:
    """Bring the Trainer's state up to date with its callbacks, as its own saving does."""
    from transformers.trainer_callback import ExportableState

    state = trainer.state
    if state.best_global_step and (
        state.best_global_step == state.global_step or (folder / f"checkpoint-{state.best_global_step}").is_dir()
    ):
        state.best_model_checkpoint = str(folder / f"checkpoint-{state.best_global_step}")
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            state.stateful_callbacks[type(callback).__name__] = callback.state()


def _names(model: Any) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}
