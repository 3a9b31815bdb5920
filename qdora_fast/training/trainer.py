"""From settings to TRL's SFTTrainer.

Every argument that matters is set here, because the SFTConfig that reaches us is not TRL's:
Unsloth changes its defaults. Rows come already tokenised and masked (see `data/`), so the
trainer only packs, pads and steps; it gets our optimizer and no collator of ours, since a
custom one switches packing off. `Recipe.notes` says what was decided otherwise than asked.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

from qdora_fast.config import TrainSettings
from qdora_fast.models.backend import captured_prints
from qdora_fast.models.loading import checkpointing
from qdora_fast.system import distributed
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.install import how_to_install
from qdora_fast.training.checkpoint import DurableCheckpoints
from qdora_fast.training.eval_loss import TokenWeightedEvaluation
from qdora_fast.training.nonfinite import SkipNonFinite
from qdora_fast.training.oom import Note
from qdora_fast.training.optimizer import build_optimizer, describe_groups, parameter_groups


@dataclass(frozen=True)
class Recipe:
    """What the settings come to on this machine."""

    precision: str
    optimizer: str
    packing: bool
    steps: int
    """Optimizer steps of the whole run; with packing an upper estimate."""
    eval_steps: int
    save_steps: int
    notes: tuple[str, ...]


def choose_precision(train: TrainSettings) -> str:
    """bf16 where the GPU computes in it, fp16 on older GPUs, fp32 on the CPU, unless set."""
    import torch

    if train.precision != "auto":
        return train.precision
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def check_tracker(train: TrainSettings) -> None:
    """Refuse trackers that are not installed, before anything is loaded.

    Raises:
        ConfigError: with the command that installs them.
    """
    absent = {name for name in ("trackio", "tensorboard", "wandb", "mlflow") if importlib.util.find_spec(name) is None}
    missing = [name for name in train.trackers if name in absent]
    if missing:
        raise ConfigError(
            f"train.tracker: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"run `{how_to_install(*missing)}`, or set it to none"
        )


def make_recipe(train: TrainSettings, *, rows: int, tokens: int, max_length: int, precision: str) -> Recipe:
    """Resolve every `auto` and every count that depends on the machine or the data.

    Args:
        rows: training rows.
        tokens: their tokens together.
        max_length: tokens of a packed sequence.
        precision: from `choose_precision`.
    """
    import torch

    gpu = torch.cuda.is_available()
    notes = []
    packing = train.packing and gpu
    if train.packing and not gpu:
        notes.append("packing off: on the CPU packed rows would see each other (it needs a GPU's attention kernels)")
    optimizer = train.optimizer
    if optimizer == "auto":
        optimizer = "paged_adamw_8bit" if gpu else "adamw"
    sequences = max(1, math.ceil(tokens / max_length)) if packing else rows
    batch = train.rows_per_step
    share = train.micro_batch * distributed.world_size()
    if distributed.world_size() > 1 and sequences % share and not packing:
        twice = share - sequences % share
        notes.append(f"{twice} rows are seen twice in an epoch's last step, so that all processes have as many")
    steps = train.max_steps or max(1, math.ceil(math.ceil(sequences / batch) * train.epochs))
    eval_steps = min(steps, train.eval_steps or max(1, steps // 5))
    save_steps = train.save_steps or eval_steps
    if train.early_stopping and save_steps % eval_steps:
        save_steps = eval_steps * max(1, round(save_steps / eval_steps))
        notes.append(f"save_steps set to {save_steps}: early stopping keeps the best of the evaluated checkpoints")
    return Recipe(precision, optimizer, packing, steps, eval_steps, save_steps, tuple(notes))


def sft_arguments(
    train: TrainSettings, recipe: Recipe, *, folder: Path, max_length: int, evaluates: bool, run_name: str | None = None
) -> dict[str, Any]:
    """All arguments of trl.SFTConfig for a run.

    Args:
        run_name: in trackers; None: the name of the run's folder.
    """
    strategy = "steps" if evaluates else "no"
    return {
        "output_dir": str(folder),
        "max_steps": train.max_steps or -1,
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": train.micro_batch,
        "per_device_eval_batch_size": train.micro_batch,
        "gradient_accumulation_steps": distributed.accumulation_per_rank(train.accumulation),
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.scheduler,
        "warmup_steps": train.warmup,  # below 1 it is a share of all steps
        "weight_decay": train.weight_decay,  # the groups of optimizer.py decide; here for the record
        "max_grad_norm": train.max_grad_norm,
        "optim": "adamw_torch",  # never built: see _optimizer_maker
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        # Unsloth set it up with the adapter; a False here would be taken for a wish and switch it off again.
        "gradient_checkpointing": bool(checkpointing(train)),
        "max_length": max_length,
        "packing": recipe.packing,
        "padding_free": recipe.packing,
        "eval_packing": False,
        # Routers and experts are never trained here, so nothing balances them. Left to TRL, the loss of a dense model
        # of a class that also knows experts (Granite 4) would ask for routers that it does not have.
        "router_aux_loss_coef": 0.0,
        "seed": train.seed,
        "data_seed": train.seed,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": strategy,
        "eval_steps": recipe.eval_steps if evaluates else None,
        "prediction_loss_only": True,
        "ddp_find_unused_parameters": False,  # every adapter takes part in every step
        "save_strategy": "steps",
        "save_steps": recipe.save_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": bool(train.early_stopping) and evaluates,
        "metric_for_best_model": "eval_loss" if evaluates else None,
        "greater_is_better": False if evaluates else None,
        "report_to": train.trackers or "none",
        "run_name": run_name or folder.parent.name,
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataset_num_proc": None,
        **({"trackio_space_id": None} if "trackio" in train.trackers else {}),
    }


def build_trainer(
    model: Any,
    tokenizer: Any,
    datasets: tuple[Any, Any | None],
    train: TrainSettings,
    *,
    recipe: Recipe,
    arguments: dict[str, Any],
    callbacks: Sequence[Any],
    identity: Mapping[str, Any] | None = None,
    source_of: Callable[[Sequence[int]], str | None] | None = None,
    on_note: Callable[[Note], None] | None = None,
) -> Any:
    """TRL's SFTTrainer (in Unsloth's version) over tokenised train and held-out rows.

    Args:
        datasets: datasets.Dataset with `input_ids` and `labels`: (train, held-out or None).
        arguments: from `sft_arguments`.
        identity: goes into every checkpoint; see `resume.py`.
        source_of: where a row with these token ids comes from, such as rows.jsonl:12, for messages.
        on_note: called with each note on what happens without ending training; see `oom.py`, `nonfinite.py`.
    """
    from transformers import EarlyStoppingCallback
    from trl import SFTConfig, SFTTrainer

    class Trainer(TokenWeightedEvaluation, SkipNonFinite, DurableCheckpoints, SFTTrainer):
        """TRL's trainer with our steps and checkpoints."""

        def _send_telemetry(self) -> None:
            """Nothing is sent, whatever the variables say and whenever they were read."""

    with captured_prints(), _exact_weights(model):
        trainer = Trainer(
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            processing_class=tokenizer,
        )
    trainer.identity = identity or {}
    trainer.max_nonfinite, trainer.source_of, trainer.on_note = train.max_nonfinite, source_of, on_note
    trainer.create_optimizer = MethodType(_optimizer_maker(train, recipe), trainer)
    for theirs in ("PrinterCallback", "ProgressCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == theirs]:
            trainer.remove_callback(callback)
    stopping = [EarlyStoppingCallback(train.early_stopping)] if train.early_stopping else []
    for callback in [*callbacks, *stopping]:
        trainer.add_callback(callback)
    return trainer


@contextmanager
def _exact_weights(model: Any) -> Iterator[None]:
    """Keep the trained parameters as they are while the trainer is made.

    TRL casts the adapter of a 4-bit model to bfloat16. There a step of 2e-4 on a weight of 0.1 is
    less than half the distance to the next number and is rounded away; and a resumed run, which
    loads them in fp32, would be another run.
    """
    trained = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter, exact in trained:
        parameter.data = exact


def _optimizer_maker(train: TrainSettings, recipe: Recipe) -> Callable[..., Any]:
    """The trainer's `create_optimizer`, making ours.

    The trainer calls it after it has loaded a checkpoint. An optimizer handed over ready-made
    would then hold parameters that the loading has replaced, and train nothing.
    """

    def create_optimizer(self: Any, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = build_optimizer(recipe.optimizer, trained_groups(model or self.model, train))
        return self.optimizer

    return create_optimizer


def trained_groups(model: Any, train: TrainSettings) -> list[dict[str, Any]]:
    """The parameter groups of a model under these settings."""
    return parameter_groups(
        model.named_parameters(),
        learning_rate=train.learning_rate,
        loraplus_ratio=train.loraplus_ratio,
        magnitude_learning_rate=train.magnitude_learning_rate,
        weight_decay=train.weight_decay,
    )


def describe(recipe: Recipe, train: TrainSettings, groups: list[dict[str, Any]]) -> list[str]:
    """Lines for the user: what will run."""
    batch = train.rows_per_step
    about = "about " if recipe.packing else ""
    shared = f" shared by {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    return [
        f"{about}{recipe.steps} steps of {batch} {'packed sequences' if recipe.packing else 'rows'}{shared}, "
        f"{recipe.precision}, {recipe.optimizer}",
        f"learning rates: {describe_groups(groups)}; {train.scheduler}, warm-up {train.warmup:.0%}",
        *recipe.notes,
    ]
