"""Two processes that want to go on with the same run: one does, the other is told; a dead holder holds nothing."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.lab import STEPS, Job
from faults.trial import Group, Trial
from faults.victim import put, require


def two(trial: Trial) -> None:
    """At once; while one is training; after one was killed."""
    way = (_at_once, _while_one_trains, _after_a_death)[trial.number % 3]
    trial.note = way.__name__.strip("_").replace("_", " ")
    job = trial.lab.copy_of_finished(trial.folder)
    (job.last().path / "finished.json").unlink()
    shutil.rmtree(job.last().path / "adapter")
    for step in range(STEPS, STEPS - 1, -1):
        shutil.rmtree(job.last().path / "checkpoints" / f"checkpoint-{step}")
    way(trial, job)
    require(job.adapter() == trial.lab.untouched().adapter, "the adapter is not the uninterrupted run's")
    job.require_whole()
    require(len(job.runs()) == 1, "a second run was made")


def _at_once(trial: Trial, job: Job) -> None:
    arguments = ("train", str(job.config), "--resume")
    first = job.start(*arguments)
    time.sleep(trial.random.random() / 10)
    second = job.start(*arguments)
    codes = sorted((first.wait().require(0, 50).code, second.wait().require(0, 50).code))
    require(codes == [0, 50], f"they ended with {codes}")


def _while_one_trains(trial: Trial, job: Job) -> None:
    reached, go = trial.folder / "reached", trial.folder / "go"
    arguments = ("train", str(job.config), "--resume")
    first = job.start(*arguments, fault=_held_in_training(reached, go))
    while not reached.exists() and first.waiting():
        time.sleep(0.01)
    job.run(*arguments).require(50, saying=f"process {first.pid} on ")
    go.touch()
    first.wait().require(0)


def _after_a_death(trial: Trial, job: Job) -> None:
    reached, go = trial.folder / "reached", trial.folder / "go"
    first = job.start("train", str(job.config), "--resume", fault=_held_in_training(reached, go))
    while not reached.exists() and first.waiting():
        time.sleep(0.01)
    first.signal(signal.SIGKILL)
    first.wait().require(-signal.SIGKILL)
    job.resume().require(0)


def _held_in_training(reached: Path, go: Path) -> Callable[[], None]:
    """A fault: when its training begins, wait until `go` is there."""

    def fault() -> None:
        def wait(*_: object, **__: object) -> None:
            reached.touch()
            while not go.exists():
                time.sleep(0.01)

        put("transformers.trainer_callback:DefaultFlowCallback", on_train_begin=wait)

    return fault


GROUPS = (
    Group(
        "lock",
        "two processes on one run",
        "one goes on, the other ends with 50 and says who holds it; a dead process holds nothing; adapter bit-equal",
        10,
        100,
        two,
    ),
)
