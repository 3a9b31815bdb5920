"""Runs trials, each batch in a forked process of its own, as many at once as there are cores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from faults.lab import Lab
from faults.trial import Group, Outcome

LIMIT = 600
"""Seconds after which a batch counts as hung."""


@dataclass(frozen=True)
class Batch:
    """Trials that one process does."""

    group: Group
    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        """For its folder."""
        return f"{self.group.name}-from-{self.numbers[0]}"


def batches(group: Group, numbers: Sequence[int]) -> list[Batch]:
    """Cut the trials of a group into what one process does."""
    size = group.together
    return [Batch(group, tuple(numbers[start : start + size])) for start in range(0, len(numbers), size)]


def run(
    lab: Lab, todo: Sequence[Batch], *, seed: int, jobs: int, before: Callable[[], None] | None = None
) -> Iterator[Outcome]:
    """Do all batches and yield outcomes as they come.

    Args:
        before: called in each process first (sabotage).
    """
    waiting, running = list(todo), dict[int, Batch]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                batch = waiting.pop(0)
                running[_fork(lab, batch, seed, before)] = batch
            pid, status, usage = os.wait4(-1, 0)
            if pid in running:
                _end_group(pid)
                batch = running.pop(pid)
                yield from _outcomes(lab, batch, status, (usage.ru_utime + usage.ru_stime) / len(batch.numbers))
    finally:
        for pid in running:
            _end_group(pid)


def _fork(lab: Lab, batch: Batch, seed: int, before: Callable[[], None] | None) -> int:
    folder = lab.folder / batch.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _do(lab, batch, seed, before, folder)
    return pid


def _do(lab: Lab, batch: Batch, seed: int, before: Callable[[], None] | None, folder: Path) -> NoReturn:
    code = 1
    try:
        os.setsid()  # so that whatever it leaves behind can be ended with it
        signal.alarm(LIMIT)
        log = os.open(folder / "trial.txt", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if before:
            before()
        with (folder / "outcomes.jsonl").open("w", buffering=1) as file:
            for outcome in batch.group.do(lab, folder, seed, batch.numbers):
                file.write(json.dumps(asdict(outcome)) + "\n")
        code = 0
    except BaseException:  # noqa: BLE001 - an error of the harness; it is shown as the trial's
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _outcomes(lab: Lab, batch: Batch, status: int, cpu: float) -> Iterator[Outcome]:
    folder = lab.folder / batch.name
    file = folder / "outcomes.jsonl"
    done = [Outcome(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []
    missing = set(batch.numbers) - {outcome.number for outcome in done}
    if missing:
        code = os.waitstatus_to_exitcode(status)
        words = (folder / "trial.txt").read_text().strip().splitlines()[-1:] or [""]
        why = "took too long" if code == -signal.SIGALRM else f"the trial itself ended with {code}: {words[0]}"
        done += [Outcome(batch.group.name, number, "", why) for number in sorted(missing)]
    failed = any(outcome.lost for outcome in done)
    for outcome in done:
        yield replace(outcome, cpu=cpu, folder=str(folder) if outcome.lost else None)
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
