"""Experiment trackers: one curve for one run, however often it is resumed, and what it came to as a summary.

Transformers' own callbacks log the metrics (`report_to`). They take the run to continue from environment variables, so
these are set here while the trainer is made and runs, from ids that the run's folder keeps (tracker.json); a variable
that the user has set stays. TensorBoard continues in the run's folder, and events after the checkpoint are taken back
there (`purge_step`); the others keep what they were sent, so that steps that are repeated stand there twice.

Tested with stand-ins of the four packages; none of them is part of the tested environment. A tracker that fails ends
nothing: during training `nonfinite.py` sees to it, for the summary `log_summary` does.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qdora_fast.system.errors import first_line
from qdora_fast.system.redact import redacted
from qdora_fast.system.run_folder import RunFolder

RECORD = "tracker.json"
PROJECT = "huggingface"
"""Where Transformers' callbacks log unless a variable names another project."""


@contextmanager
def continued(folder: RunFolder, trackers: Sequence[str]) -> Iterator[None]:
    """While the block runs, the trackers of this run continue what they have of it, or start under an id of its own."""
    if not trackers:
        yield
        return
    ids = ids_of(folder)
    wanted: dict[str, str] = {}
    if "wandb" in trackers and "WANDB_RUN_ID" not in os.environ:
        wanted |= {"WANDB_RUN_ID": ids["id"], "WANDB_RESUME": "allow"}
    if "tensorboard" in trackers:
        wanted["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
    if "mlflow" in trackers and "mlflow" in ids:
        wanted["MLFLOW_RUN_ID"] = ids["mlflow"]
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)  # mlflow takes its own out


def ids_of(folder: RunFolder) -> dict[str, str]:
    """The ids by which trackers know this run: `id`, made once, and `mlflow`, once it has given one."""
    if not (folder.path / RECORD).is_file():
        folder.write_json(RECORD, {"id": secrets.token_hex(4)})
    return folder.read_json(RECORD, {"id": str, "mlflow?": str})


def name_of(folder: RunFolder, trackers: Sequence[str]) -> str:
    """The run's name in a tracker. Trackio knows a run by its name alone, so there it ends with the id."""
    return f"{folder.path.name}-{ids_of(folder)['id']}" if "trackio" in trackers else folder.path.name


def tracker_callback(folder: RunFolder, trackers: Sequence[str]) -> Any:
    """A Trainer callback that comes after those of the trackers and keeps the id that MLflow has given."""
    from transformers import TrainerCallback

    class KeepId(TrainerCallback):
        """Writes tracker.json."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mlflow = sys.modules.get("mlflow")
            run = mlflow.active_run() if mlflow and "mlflow" in trackers and state.is_world_process_zero else None
            if run is not None:
                folder.add_to_json(RECORD, {"mlflow": run.info.run_id})

    return KeepId()


def take_back_events(trainer: Any, step: int) -> None:
    """Let TensorBoard forget what was logged after the checkpoint of `step`, from which a run is resumed."""
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and trainer.is_world_process_zero():
            writer = callback._SummaryWriter
            callback.tb_writer = writer(log_dir=callback.logging_dir, purge_step=step + 1)


def log_summary(
    folder: RunFolder, trackers: Sequence[str], settings: Mapping[str, Any], scores: Mapping[str, Any], step: int
) -> list[str]:
    """Give every tracker the run's settings and what it came to; returns a sentence for each that failed.

    Args:
        settings: of the config; secrets are taken out.
        scores: numbers and words by name.
        step: the last one of the training.
    """
    problems = []
    with continued(folder, trackers):
        for tracker in trackers:
            try:
                _SUMMARIES[tracker](folder, redacted(settings), redacted(scores), step)
            except Exception as error:  # noqa: BLE001 - not ours, and the run is complete without it
                named = f"{type(error).__name__}: {first_line(error)}"
                problems.append(f"the tracker {tracker} did not get the final scores ({named}); the run's files have")
    return problems


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {f"final/{key}": float(value) for key, value in scores.items() if isinstance(value, int | float)}


def _wandb(folder: RunFolder, settings: Mapping[str, Any], scores: Mapping[str, Any], _: int) -> None:
    import wandb

    run = wandb.run or wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.path.name)
    run.config.update({"qdora_fast": settings}, allow_val_change=True)
    run.summary.update({f"final/{key}": value for key, value in scores.items()})
    run.finish()


def _mlflow(folder: RunFolder, settings: Mapping[str, Any], scores: Mapping[str, Any], step: int) -> None:
    import mlflow

    known = ids_of(folder).get("mlflow")
    with mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=folder.path.name):
        mlflow.log_metrics(_numbers(scores), step=step)
        mlflow.set_tags({f"final.{key}": str(value) for key, value in scores.items()})
        mlflow.log_dict(dict(settings), "qdora_fast.json")


def _trackio(folder: RunFolder, settings: Mapping[str, Any], scores: Mapping[str, Any], _: int) -> None:
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = trackio.init(project=project, name=name_of(folder, ["trackio"]), resume="allow", embed=False)
    run.config.update({"qdora_fast": settings, "final": dict(scores)})
    trackio.log(_numbers(scores))
    trackio.finish()


def _tensorboard(folder: RunFolder, settings: Mapping[str, Any], scores: Mapping[str, Any], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=os.environ.get("TENSORBOARD_LOGGING_DIR") or str(folder.path / "tensorboard"))
    writer.add_text("qdora_fast/config", _as_block(settings), step)
    writer.add_text("qdora_fast/final", _as_block(scores), step)
    for name, value in _numbers(scores).items():
        writer.add_scalar(name, value, step)
    writer.close()


def _as_block(content: Mapping[str, Any]) -> str:
    """JSON as a block of Markdown, which TensorBoard shows as it is."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return "".join(f"    {line}\n" for line in text.splitlines())


_SUMMARIES: dict[str, Callable[[RunFolder, Mapping[str, Any], Mapping[str, Any], int], None]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
}
