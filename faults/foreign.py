"""Checkpoints of another run: the settings changed, the checkpoint carried over from elsewhere, or the world changed
under a run that was told to go on by itself. Refused, with the difference by name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.lab import Job
from faults.trial import Group, Trial
from faults.victim import require

_STEPS = 3


@dataclass(frozen=True)
class Change:
    """One thing that makes it another run."""

    name: str
    sections: Mapping[str, Mapping[str, Any]]
    """Settings; {}: what the settings point to is changed instead."""
    setting: str
    """How the difference is called where settings are compared."""
    identity: str
    """How it is called where a checkpoint is compared."""


_CHANGES = (
    Change("r", {"adapter": {"r": 16}}, "adapter.r: 32 then, 16 now", "adapter: "),
    Change("base", {}, "base: ", "base: "),
    Change("data", {}, "data: ", "data: "),
    Change("optimizer", {"train": {"optimizer": "adamw"}}, "train.optimizer: adamw_8bit then, adamw now", "optimizer"),
    Change("LoRA+ ratio", {"train": {"loraplus_ratio": 8}}, "train.loraplus_ratio: 4", "LoRA+ ratio: "),
    Change("template", {"data": {"template": "chatml"}}, "data.template: ", "template: "),
    Change("seed", {"train": {"seed": 7}}, "train.seed: 42 then, 7 now", "seed: "),
    Change("batch", {"train": {"batch_size": 4}}, "train.batch_size: 2 then, 4 now", "effective batch: "),
)


def other_run(trial: Trial) -> None:
    """One change, in one of three ways."""
    change = _CHANGES[trial.number % len(_CHANGES)]
    way = ("settings", "carried over", "by itself")[trial.number // len(_CHANGES) % 3]
    trial.note = f"{change.name}, {way}"
    ours = _job(trial, trial.folder / "ours")
    ours.run().require(0)
    adapter = ours.adapter()
    if way == "carried over":
        _carry_over(trial, ours, change)
        ours.resume().require(40, saying=change.identity)
    else:
        (ours.last().path / "finished.json").unlink()
        _change(ours, change)
        if way == "settings":
            ours.resume().require(40, saying=change.setting)
        else:
            _by_itself(ours, change)
    require(_hash(ours.runs()[0].adapter) == adapter, "the finished adapter has changed")


def _by_itself(ours: Job, change: Change) -> None:
    """--auto-resume never refuses to train: it says why and begins a new run; what it cannot tell from the settings
    is refused."""
    ended = ours.run()
    if change.sections:
        ended.require(0, saying=change.setting)
        require(len(ours.runs()) == 2, "no new run was begun")
        require("is not resumed" in ended.said, "does not say that the old run is left")
    else:
        ended.require(40, saying=change.identity)


def _job(trial: Trial, folder: Path) -> Job:
    """A short run on a base and rows of its own, which can be changed."""
    base, rows = folder / "base", folder / "rows.jsonl"
    shutil.copytree(trial.lab.base, base)
    _write_rows(rows, "It is")
    data = {"path": str(rows), "max_rows": None, "filters": {"min_tokens": 0}}
    return trial.lab.job(folder, model={"name": str(base)}, data=data, train={"max_steps": _STEPS})


def _write_rows(file: Path, words: str) -> None:
    rows = [{"prompt": f"What comes after {n}?", "response": f"{words} {n + 1}."} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _change(job: Job, change: Change) -> None:
    for section, values in change.sections.items():
        job.settings[section] = {**job.settings.get(section, {}), **values}
    if change.name == "base":
        _other_weights(Path(job.settings["model"]["name"]))
    if change.name == "data":
        _write_rows(Path(job.settings["data"]["path"]), "That would be")


def _carry_over(trial: Trial, ours: Job, change: Change) -> None:
    """Put the newest checkpoint of another run among ours, as the newest."""
    theirs = _job(trial, trial.folder / "theirs")
    theirs.settings["train"]["max_steps"] = _STEPS  # the same, so that nothing but the change differs
    _change(theirs, change)
    theirs.run().require(0)
    newest = theirs.last().checkpoints()[-1]
    shutil.rmtree(ours.last().checkpoints()[-1])
    shutil.copytree(newest, ours.last().path / "checkpoints" / newest.name)


def _other_weights(base: Path) -> None:
    file = base / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def _hash(adapter: Path) -> str:
    from faults.lab import sha256

    return sha256(adapter / "adapter_model.safetensors")


GROUPS = (
    Group(
        "foreign",
        "checkpoint of another run (r, base, data, optimizer, LoRA+ ratio, template, seed, batch)",
        "refused, or a new run with a word; the difference named; nothing of the old run changed",
        24,
        60,
        other_run,
    ),
)
