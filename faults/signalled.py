"""SIGTERM, SIGINT and SIGUSR1 at any moment of training, one or two, where no checkpoint was due for long."""

from __future__ import annotations

import signal
import time

from faults.kills import go_on
from faults.lab import VARIANTS, Job
from faults.trial import Group, Trial
from faults.victim import require
from qdora_fast.system.manifest import read_manifest

_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


def at_any_time(trial: Trial) -> None:
    """One of the five ways."""
    number, again = (
        (signal.SIGTERM, False),
        (signal.SIGINT, False),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
        (signal.SIGUSR1, False),
    )[trial.number % 5]
    job, whole = trial.lab.job(trial.folder, **VARIANTS["unsaved"]), trial.lab.untouched("unsaved")
    victim = job.start()
    share = trial.random.random()
    trial.note = f"{signal.Signals(number).name}{' twice' if again else ''} at {share:.0%} of training"
    window = 0.9 * (whole.trained - whole.begin)  # its last tenth may be over before the signal comes
    require(victim.strike(number, at=whole.begin + 0.05 * window + share * 0.95 * window), "it had ended before")
    logged = _step(job)
    if again:
        time.sleep(trial.random.random() / 5)
        victim.signal(number)
        victim.wait().require(_CODES[number], 128 + number)
    elif number == signal.SIGUSR1:
        victim.wait().require(0)
        _require_saved(job, logged)
        require(job.adapter() == whole.adapter, "the adapter is not the uninterrupted run's")
        return
    else:
        victim.wait().require(_CODES[number], saying="--resume")
        _require_saved(job, logged)
        require(_step(job) == job.steps()[-1], "went on after its checkpoint")
    go_on(trial, job)


def _require_saved(job: Job, logged: int) -> None:
    """The signal came in the step after the last logged one, or while that was being logged."""
    steps = job.steps()
    require(any(logged <= step <= logged + 2 for step in steps), f"at step {logged}: checkpoints at {steps}")
    require(read_manifest(job.last().checkpoints()[-1])["about"]["step"] == steps[-1], "another step in its manifest")


def _step(job: Job) -> int:
    return max((record["step"] for record in job.logged()), default=0)


GROUPS = (
    Group(
        "signal",
        "SIGTERM, SIGINT (once, twice), SIGUSR1",
        "exit code 75 or 130, a checkpoint of the current step (once), nothing half-written (twice); "
        "adapter bit-equal after going on",
        20,
        200,
        at_any_time,
    ),
)
