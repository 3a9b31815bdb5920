"""What the tables share: a command with limits around it, and a group made of a table.

A command that opens what asks for much has as much of this machine as the promise allows: 4 GiB of address space, 20
seconds of its processor. Others have a minute, since a training with its export takes a third of that. Both are taken
from the process that is attacked, so that a file which asks for more ends there and takes nothing else along.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from faults.trial import Group, Trial
from faults.victim import Ended, Lost, command, require, start
from qdora_fast.system import errors

GIB, CPU_SECONDS, WALL_SECONDS = 4, 20, 240
CPU_SECONDS_OF_WORK = 60
REFUSED = (2, 20, 41)
"""What a bomb may end with: a wrong request, wrong data, a damaged file."""
ENDED = (0, *sorted({each.exit_code for each in vars(errors).values() if hasattr(each, "exit_code")}))
"""Every way to end that is foreseen."""
SECRET = "this sentence belongs to somebody else"
CHAT = ("--once", "Hello", "--max-new-tokens", "2")
Case = Callable[[Trial], object]


def table(name: str, fault: str, passed: str, cases: Mapping[str, Case], *, small: int) -> Group:
    """A group in which each case is one trial.

    Args:
        small: cases for a pull request; they are drawn from the whole table, always the same ones.
    """
    order = list(cases)
    Random(name).shuffle(order)

    def one(trial: Trial) -> None:
        trial.note = order[trial.number % len(order)]
        try:
            cases[trial.note](trial)
        except Lost as lost:  # the number alone says little
            raise Lost(f"{trial.note}: {lost}") from None

    return Group(f"hostile-{name}", fault, passed, min(small, len(order)), len(order), one, together=2)


def attack(
    trial: Trial, *words: object, codes: tuple[int, ...] = ENDED, saying: str = "", limited: bool = False, **where: Any
) -> Ended:
    """One command; raises Lost unless it ends in time, with one of the codes, with this in its words, in words of ours.

    Args:
        limited: with no more than 4 GiB of address space and `CPU_SECONDS`.
        where: `cwd`, and `env` with variables.
    """
    log = trial.folder / f"log-{len(list(trial.folder.glob('log-*')))}.txt"
    around = partial(_in_limits, trial.folder, limited, where.get("cwd"), where.get("env") or {})
    ended = start(partial(command, [str(word) for word in words], around), log).wait()
    tail = "\n".join(ended.said.strip().splitlines()[-6:])
    require(ended.code != -signal.SIGXCPU, f"still computed after {_seconds(limited)} s of CPU:\n{tail}")
    require(ended.code != -signal.SIGALRM, f"still waited after {WALL_SECONDS} s:\n{tail}")
    return ended.require(*codes, saying=saying)


def _in_limits(folder: Path, limited: bool, cwd: Path | None, env: Mapping[str, str]) -> None:
    homes = {"XDG_CONFIG_HOME": folder / "config", "QDORA_FAST_CACHE": folder / "cache"}
    os.environ.update({name: str(path) for name, path in homes.items()} | dict(env))
    os.chdir(cwd or folder)
    resource.setrlimit(resource.RLIMIT_CPU, (_seconds(limited), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WALL_SECONDS)
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (GIB * 2**30, resource.RLIM_INFINITY))


def _seconds(limited: bool) -> int:
    return CPU_SECONDS if limited else CPU_SECONDS_OF_WORK


def config(trial: Trial, **sections: Mapping[str, Any]) -> Path:
    """A config of the usual settings, with these changed."""
    job = trial.lab.job(trial.folder, **sections)
    job.config.write_text(json.dumps(job.settings), encoding="utf-8")
    return job.config


def own_base(trial: Trial, **values: Any) -> Path:
    """A copy of the base, with these values in its config.json."""
    base = trial.folder / "base"
    shutil.copytree(trial.lab.base, base)
    change(base / "config.json", **values)
    return base


def own_run(trial: Trial) -> Path:
    """A copy of a finished run that was evaluated and exported."""
    run = trial.folder / "runs" / "job"
    shutil.copytree(trial.lab.evaluated.last().path, run)
    return run


def own_adapter(trial: Trial, **values: Any) -> Path:
    """A copy of that run's adapter, with these values in its adapter_config.json, and no manifest to notice."""
    adapter = own_run(trial) / "adapter"
    (adapter / "MANIFEST.json").unlink()
    change(adapter / "adapter_config.json", **values)
    return adapter


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    if values:
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def each(names: Mapping[str, Any], make: Callable[..., Case], prefix: str) -> dict[str, Case]:
    """Cases of one kind: `prefix: name` does what `make` makes of the value."""
    return {f"{prefix}: {name}": make(value) for name, value in names.items()}
