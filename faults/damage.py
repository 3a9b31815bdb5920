"""Checkpoints that are not what was written: one bit flipped, cut, blanked, swapped, missing, or the manifest edited.

The judge is the function by which a run chooses where to go on: it must name the damaged file and take
the checkpoint before it. Every few trials the real command goes on as well, to the same adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from faults.lab import STEPS, Job, Lab
from faults.trial import Group, Outcome, Trial
from faults.victim import Lost, require
from qdora_fast.system.manifest import NAME
from qdora_fast.training.resume import newest_complete

_ALSO_RESUMED = 10
"""In every so many-th trial the run is gone on with."""


def flips(lab: Lab, folder: Path, seed: int, numbers: Sequence[int]) -> Iterator[Outcome]:
    """One bit of one file of the newest checkpoint, put back after each trial that does not go on."""
    job = lab.copy_of_finished(folder)
    for number in numbers:
        random = Random(f"{seed} flip {number}")
        file = random.choice(_files(job))
        before = file.read_bytes()
        place = random.randrange(8 * len(before))
        damaged = bytearray(before)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        lost = _lost(job, file)
        if lost is None and number % _ALSO_RESUMED == 0:
            lost = _gone_on(lab, job, file)  # which has written the checkpoint anew
        else:
            file.write_bytes(before)
        yield Outcome("flip", number, f"bit {place} of {file.name}", lost)


def changed_files(trial: Trial) -> None:
    """A file of the newest checkpoint cut, blanked, swapped, gone, or edited."""
    job = trial.lab.copy_of_finished(trial.folder)
    how = list(_CHANGES)[trial.number % len(_CHANGES)]
    files = [file for file in _files(job) if (file.name == NAME) == how.startswith("manifest")]
    file = trial.random.choice(files)
    trial.note = f"{file.name}: {how}"
    before = file.read_bytes()
    _CHANGES[how](file, trial.random)
    if file.is_file() and file.read_bytes() == before:
        trial.note += " (nothing changed by it)"
        return
    lost = _lost(job, file) or (_gone_on(trial.lab, job, file) if trial.number % 4 == 0 else None)
    require(lost is None, str(lost))


def all_lost(trial: Trial) -> None:
    """Every checkpoint is damaged: an error that names each, and never a new start."""
    job = trial.lab.copy_of_finished(trial.folder)
    for checkpoint in job.last().checkpoints():
        files = sorted(checkpoint.iterdir())
        _blank(trial.random.choice([file for file in files if file.suffix == ".safetensors"]), trial.random)
    job.resume().require(40, saying="is complete")
    require(len(job.runs()) == 1 and job.adapter() == trial.lab.untouched().adapter, "the run has been touched")


def _files(job: Job) -> list[Path]:
    return sorted(job.last().checkpoints()[-1].iterdir())


def _lost(job: Job, file: Path) -> str | None:
    chosen, said = newest_complete(job.last())
    if chosen != job.last().checkpoints()[-2]:
        return f"goes on from {chosen}, with {file.name} not as it was written"
    named = len(said) == 1 and f"checkpoint-{STEPS}: " in said[0] and file.parent.name in said[0]
    right = file.name in said[0] or file.name == NAME  # with another step's manifest it is the files that are wrong
    return None if named and right else f"does not name {file.name}: {said}"


def _gone_on(lab: Lab, job: Job, file: Path) -> str | None:
    try:
        ended = job.resume().require(0, saying=f"resuming from checkpoint-{STEPS - 1}")
        require(f"passed over checkpoint-{STEPS}" in ended.said, "does not say what was passed over")
        require(job.adapter() == lab.untouched().adapter, "another adapter came out")
        job.require_whole()
    except Lost as error:
        return str(error)
    return None


def _edit_manifest(file: Path, random: Random) -> None:
    content = json.loads(file.read_text())
    kind = random.choice(["step", "identity", "hash", "size", "entry"])
    entry = random.choice(sorted(content["files"]))
    if kind == "step":
        content["about"]["step"] += 1
    elif kind == "identity":
        content["about"]["identity"]["seed"] += 1
    elif kind == "hash":
        content["files"][entry]["sha256"] = "0" * 64
    elif kind == "size":
        content["files"][entry]["bytes"] += 1
    else:
        del content["files"][entry]
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _other_steps_file(file: Path) -> Path:
    return file.parent.with_name(f"checkpoint-{STEPS - 1}") / file.name


def _cut(file: Path, random: Random) -> None:
    file.write_bytes(file.read_bytes()[: random.randrange(file.stat().st_size)])


def _blank(file: Path, random: Random) -> None:
    content = bytearray(file.read_bytes())
    start = random.randrange(len(content))
    stop = min(len(content), start + 4096)
    content[start:stop] = bytes(stop - start)
    file.write_bytes(content)


def _folder_instead(file: Path, _: Random) -> None:
    file.unlink()
    file.mkdir()


_CHANGES: dict[str, Callable[[Path, Random], object]] = {
    "cut": _cut,
    "empty": lambda file, _: file.write_bytes(b""),
    "missing": lambda file, _: file.unlink(),
    "a block of zeros": _blank,
    "manifest edited": _edit_manifest,
    "from another step": lambda file, _: file.write_bytes(_other_steps_file(file).read_bytes()),
    "longer": lambda file, _: file.write_bytes(file.read_bytes() + b"\0"),
    "a folder of that name": _folder_instead,
    "manifest missing": lambda file, _: file.unlink(),
    "manifest cut": _cut,
    "manifest from another step": lambda file, _: file.write_bytes(_other_steps_file(file).read_bytes()),
}

_PASSED = "found and named; goes on from the checkpoint before it (in part of the trials to the end: adapter bit-equal)"
GROUPS = (
    Group("flip", "one bit flipped in a checkpoint", _PASSED, 200, 2000, many=flips, together=50),
    Group("file", "file of a checkpoint cut, blanked, swapped, missing, edited", _PASSED, 40, 400, changed_files),
    Group("lost", "every checkpoint damaged", "refused, each named; never a new start", 4, 20, all_lost),
)
