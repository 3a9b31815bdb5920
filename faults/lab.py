"""The run that everything happens to: a tiny model on the whole stack, its settings, and what it comes to untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from faults.victim import Ended, Fault, Victim, command, put, require, start
from qdora_fast.system.manifest import problems
from qdora_fast.system.run_folder import RunFolder

STEPS = 8
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "untouched": {},
    "unsaved": {"train": {"save_steps": 1000}},
    "undropped": {"adapter": {"dropout": 0.0}},
    "evaluated": {
        "evaluation": {"max_rows": 4, "metric": "exact_match", "max_new_tokens": 2, "completions": 2},
        "export": {"at_end": "merged_16bit", "proof_rows": 4},
    },
}
"""The usual settings, and the same without regular checkpoints, without dropout, with evaluation and export."""


@dataclass
class Job:
    """One config in a folder of its own, to be started as often as a trial likes."""

    folder: Path
    settings: dict[str, Any]
    started: int = field(default=0, init=False)

    @property
    def config(self) -> Path:
        """The config file."""
        return self.folder / "job.yaml"

    def start(self, *arguments: str, fault: Fault | None = None) -> Victim:
        """`qdora-fast ARGUMENTS` in a process of its own; `train CONFIG --auto-resume`, as `make train` does, if none.

        Args:
            fault: called in that process before the command.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(json.dumps(self.settings), encoding="utf-8")
        self.started += 1
        log = self.folder / f"log-{self.started}.txt"
        return start(partial(command, arguments or ("train", str(self.config), "--auto-resume"), fault), log)

    def run(self, *arguments: str, fault: Fault | None = None) -> Ended:
        """`start` and wait."""
        return self.start(*arguments, fault=fault).wait()

    def resume(self) -> Ended:
        """Go on, and fail loudly where that is impossible."""
        return self.run("train", str(self.config), "--resume")

    def runs(self) -> list[RunFolder]:
        """The run's folders, in the order in which they were made."""
        found = (self.folder / "runs").glob("job*")
        return [RunFolder(path) for path in sorted(found, key=lambda path: (len(path.name), path.name))]

    def last(self) -> RunFolder:
        """The newest of them."""
        require(bool(self.runs()), "no run's folder was made")
        return self.runs()[-1]

    def steps(self) -> list[int]:
        """The checkpoints of the newest run, by step."""
        return [int(path.name.removeprefix("checkpoint-")) for path in self.last().checkpoints()]

    def adapter(self) -> str:
        """The hash of the finished adapter."""
        require(self.last().finished, f"{self.last().path.name} is not finished")
        return sha256(self.last().adapter / "adapter_model.safetensors")

    def logged(self) -> list[dict[str, Any]]:
        """The newest run's metrics, as far as they were written."""
        if not self.runs() or not self.last().metrics_file.is_file():
            return []
        lines = self.last().metrics_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def require_whole(self) -> None:
        """Raise Lost where a folder looks like a checkpoint and is not one."""
        for run in self.runs():
            for checkpoint in run.checkpoints():
                wrong = problems(checkpoint)
                require(not wrong, f"{checkpoint.name} is there and not whole: {wrong[:1]}")


@dataclass(frozen=True)
class Untouched:
    """What a run comes to when nothing happens to it."""

    adapter: str
    """The hash of its adapter."""
    begin: float
    """Seconds of CPU until its training begins."""
    trained: float
    """... until its training ends."""
    end: float
    """... until it ends."""


@dataclass(frozen=True)
class Lab:
    """What all trials share: a base, the usual settings, and the run that nothing happens to."""

    folder: Path

    @property
    def base(self) -> Path:
        """A base of two blocks, barely trained."""
        return self.folder / "base"

    def job(self, folder: Path, **sections: Mapping[str, Any]) -> Job:
        """A run in `folder` with the usual settings, except `sections`."""
        settings: dict[str, dict[str, Any]] = {
            "run": {"dir": str(folder / "runs"), "name": "job"},
            "model": {"name": str(self.base), "max_length": 128},
            "adapter": {"r": 32, "alpha": 32, "dropout": 0.05},
            "data": {"path": "demo", "max_rows": 60},
            "train": {
                "max_steps": STEPS,
                "batch_size": 2,
                "gradient_accumulation": 2,
                "learning_rate": 2e-3,
                "loraplus_ratio": 4,
                "optimizer": "adamw_8bit",
                "save_steps": 1,
                "eval_steps": 4,
            },
            "evaluation": {"max_rows": 0},
            "export": {"at_end": "none", "proof_rows": 4},
        }
        for name, values in sections.items():
            settings[name] = {**settings.get(name, {}), **values}
        return Job(folder, settings)

    @property
    def finished(self) -> Job:
        """The run that nothing happens to, where it lies."""
        return self.job(self.folder / "untouched")

    @property
    def evaluated(self) -> Job:
        """One that was evaluated and exported, too, where it lies."""
        return self.job(self.folder / "evaluated")

    def untouched(self, variant: str = "untouched") -> Untouched:
        """What a run of this variant comes to when nothing happens to it."""
        return Untouched(**json.loads((self.folder / f"{variant}.json").read_text()))

    def set_up(self) -> None:
        """Make base and run; takes seconds."""
        from qdora_fast.data.demo.pretrain import Recipe, pretrain

        pretrain(self.base, Recipe(hidden_size=64, intermediate_size=128, heads=4, kv_heads=2, steps=2))
        for variant, sections in VARIANTS.items():
            job, moments = self.job(self.folder / variant, **sections), self.folder / f"{variant}.txt"
            done = job.run(fault=partial(_note_moments, moments)).require(0)
            begin, trained = map(float, moments.read_text().split())
            found = Untouched(job.adapter(), begin, trained, done.cpu)
            (self.folder / f"{variant}.json").write_text(json.dumps(vars(found)))

    def copy_of_finished(self, folder: Path) -> Job:
        """A copy of it, to be damaged."""
        shutil.copytree(self.finished.folder / "runs", folder / "runs")
        return self.job(folder)


def sha256(file: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _note_moments(file: Path) -> None:
    """Write down how much CPU had been used when training began and when it ended."""

    def note(*_: Any, **__: Any) -> None:
        with file.open("a") as handle:
            handle.write(f"{time.process_time()}\n")

    put("transformers.trainer_callback:DefaultFlowCallback", on_train_begin=note, on_train_end=note)
