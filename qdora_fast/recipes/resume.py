"""Which run and which checkpoint a training is resumed from.

The newest run of the same name and settings is taken, and its newest complete checkpoint. If no checkpoint is complete
that is an error: a run is never started from step 0 when it was asked to resume. Whether the checkpoint is of the same
base, rows and recipe is compared later, when these are known (`training/resume.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdora_fast.config import Config
from qdora_fast.config.recorded import newest_run, resumable
from qdora_fast.system.errors import CheckpointError
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.system.run_lock import in_use
from qdora_fast.training.resume import newest_complete


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    folder: RunFolder | None
    """The run that is resumed; None: a new one."""
    checkpoint: Path | None
    messages: tuple[str, ...]
    """For the user: checkpoints that were passed over and why, or why a new run starts."""


NEW = Start(None, None, ())


def resume_run(config: Config, name: str) -> Start:
    """The newest run of this name and its newest complete checkpoint.

    Raises:
        CheckpointError: there is none, each damaged one is named; or the run had other settings.
    """
    folder = resumable(config, name)
    checkpoint, skipped = newest_complete(folder)
    if checkpoint is None:
        listed = "\n".join(f"  - {line}" for line in skipped)
        raise CheckpointError(
            f"--resume: no checkpoint of {folder.path} is complete:\n{listed}\n  Start a new run without --resume"
        )
    return Start(folder, checkpoint, tuple(f"passed over {line}" for line in skipped))


def resume_if_unfinished(config: Config, name: str) -> Start:
    """`resume_run` where the newest run of this name has not finished; a new run where it has, or cannot be resumed."""
    newest = newest_run(config, name)
    if newest is None or newest.finished:
        return NEW
    if in_use(newest.path):
        return Start(None, None, (f"{newest.path} is in use by another process; this is a new run",))
    try:
        return resume_run(config, name)
    except CheckpointError as error:
        why = str(error).removeprefix("--resume: ")
        return Start(None, None, (f"{newest.path} did not finish and is not resumed: {why}",))
