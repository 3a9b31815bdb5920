"""SIGKILL and power cuts: at any moment, inside a save, twice, and while the model is exported.

Every trial ends the same way: whatever looks like a checkpoint is whole, the run goes on by the command
that started it, from the newest checkpoint there is, and its adapter is the uninterrupted run's.
"""

from __future__ import annotations

import signal
from pathlib import Path

from faults.lab import Job, sha256
from faults.strike import SAVES, Place, cut_power, die, places
from faults.trial import Group, Trial
from faults.victim import Ended, put, require
from qdora_fast.system.manifest import problems

_GOES_ON = "goes on from the newest checkpoint, which is whole; adapter bit-equal to the uninterrupted run's"


def at_any_time(trial: Trial) -> None:
    """Kill once while it trains or finishes."""
    job = trial.lab.job(trial.folder)
    _kill(trial, job)
    go_on(trial, job)


def twice(trial: Trial) -> None:
    """Kill it, and kill what goes on."""
    job = trial.lab.job(trial.folder)
    _kill(trial, job)
    _kill(trial, job)
    go_on(trial, job)


def in_a_save(trial: Trial) -> None:
    """Kill it before or after one call of the file system while it saves."""
    place, when = _place(trial)
    step = trial.random.choice(SAVES)
    trial.note = f"{when} {place.label}, step {step}"
    job = trial.lab.job(trial.folder)
    job.run(fault=die(step, place, when)).require(-signal.SIGKILL)
    go_on(trial, job)


def in_a_power_cut(trial: Trial) -> None:
    """The same, and what was not flushed is gone."""
    place, when = _place(trial)
    step = trial.random.choice(SAVES)
    trial.note = f"power cut {when} {place.label}, step {step}"
    job = trial.lab.job(trial.folder)
    job.run(fault=cut_power(step, place, when, job)).require(-signal.SIGKILL)
    require(len(job.last().checkpoints()) > 0, "no checkpoint is left")
    lost = step - max(int(path.name.removeprefix("checkpoint-")) for path in job.last().checkpoints())
    require(lost <= 1, f"{lost} steps are lost, with a checkpoint at each")
    go_on(trial, job)


def in_an_export(trial: Trial) -> None:
    """Kill `qdora-fast export`: the target is not there, or is whole; the run is as it was; a second try works."""
    job = trial.lab.copy_of_finished(trial.folder)
    run = job.last()
    adapter, target = job.adapter(), run.path / "merged_16bit"
    whole = _export(job, trial.folder / "whole").require(0)
    share = trial.random.random()
    struck = job.start(*_export_arguments(job, target), fault=prove_here).strike(signal.SIGKILL, at=share * whole.cpu)
    trial.note = f"at {share:.0%} of an export" + ("" if struck else " (it had ended)")
    for path in run.path.glob("merged_16bit/*.safetensors"):
        require(
            sha256(path) == sha256(trial.folder / "whole" / path.name), f"{path.name} has its name and is not whole"
        )
    require(job.adapter() == adapter, "the adapter has changed")
    for checkpoint in run.checkpoints():
        require(not problems(checkpoint), f"{checkpoint.name} has changed")
    _export(job, target, "--overwrite").require(0)
    names = sorted(path.name for path in (trial.folder / "whole").glob("*.safetensors"))
    same = all(sha256(target / name) == sha256(trial.folder / "whole" / name) for name in names)
    require(bool(names) and same, "the second export is another model")


def go_on(trial: Trial, job: Job) -> None:
    """What must hold after a death, and after going on from it."""
    job.require_whole()
    died = job.runs()[-1] if job.runs() else None
    kept = died.checkpoints()[-1].name if died and died.checkpoints() and not died.finished else None
    job.run().require(0, saying=f"resuming from {kept}" if kept else "")
    require(job.adapter() == trial.lab.untouched().adapter, "the adapter is not the uninterrupted run's")
    job.require_whole()


def prove_here() -> None:
    """A fault that is none: the proof of an export runs in this process, which saves ten seconds."""
    from qdora_fast.exports.verify.checks import examine

    put(
        "qdora_fast.exports.verify.fresh_process", examine_in_new_process=lambda case, on_phase: examine(case, on_phase)
    )


def _kill(trial: Trial, job: Job) -> None:
    """At a moment drawn evenly from training and what follows it."""
    whole = trial.lab.untouched()
    share = trial.random.random()
    victim = job.start()
    struck = victim.strike(signal.SIGKILL, at=whole.begin + share * (whole.end - whole.begin))
    victim.wait()
    saving = bool(job.runs()) and any((job.last().path / "checkpoints").glob("*.*"))
    where = "inside a save" if saving else f"at step {job.logged()[-1]['step'] if job.logged() else 0}"
    trial.note = " and ".join(filter(None, (trial.note, where if struck else "not at all (it had ended)")))


def _place(trial: Trial) -> tuple[Place, str]:
    """Spread over all places, whatever the number of trials."""
    both = [(place, when) for place in places(trial.lab) for when in ("before", "after")]
    stride = next(prime for prime in (7, 11, 13) if len(both) % prime)
    return both[trial.number * stride % len(both)]


def _export_arguments(job: Job, target: Path, *more: str) -> tuple[str, ...]:
    return ("export", str(job.last().path), "--to", "merged_16bit", "--out", str(target), *more)


def _export(job: Job, target: Path, *more: str) -> Ended:
    return job.run(*_export_arguments(job, target, *more), fault=prove_here)


GROUPS = (
    Group("kill", "kill -9 at any moment of training", _GOES_ON, 50, 500, at_any_time),
    Group("save", "kill -9 at each file-system call of a save", _GOES_ON, 24, 240, in_a_save),
    Group("power", "power cut there: what was not flushed is gone", _GOES_ON, 12, 120, in_a_power_cut),
    Group("twice", "kill -9, and again after going on", _GOES_ON, 10, 100, twice),
    Group(
        "export",
        "kill -9 inside an export",
        "no half model under its name, the run as it was, the next export the same to the bit",
        10,
        100,
        in_an_export,
    ),
)
