"""One call of the matrix: import the stack, make the run that nothing happens to, do the trials, show the table."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from faults import baseline
from faults.lab import Lab
from faults.matrix import GROUPS
from faults.runner import batches
from faults.runner import run as run_batches
from faults.sabotage import SABOTAGES
from faults.strike import WATCHED, watch
from faults.table import show, show_lost, show_reasons
from faults.trial import Group, Outcome

_NEEDED = (
    "trl.trainer.sft_trainer",
    "peft",
    "qdora_fast.recipes.train",
    "qdora_fast.training.trainer",
    "qdora_fast.recipes.export",
    "qdora_fast.recipes.chat",
    "qdora_fast.recipes.evaluate",
    "qdora_fast.recipes.import_adapter",
    "qdora_fast.recipes.plan",
)
"""Imported once here instead of in every fork."""


def run(chosen: argparse.Namespace) -> int:
    """Do what the command line asks for; 0: every trial passed."""
    console = Console(stderr=True)
    matrix = baseline.GROUPS if chosen.baseline else GROUPS
    groups = _choose(chosen.only, matrix)
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="qdora-fast-faults-"))
    try:
        lab = baseline.prepare(scratch) if chosen.baseline else prepare(scratch, console)
        if chosen.sabotage:
            return sabotage(lab, chosen.sabotage, chosen, console)
        outcomes = do(lab, groups, chosen, console)
        if not chosen.baseline:
            _keep(outcomes, chosen.folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        gc.unfreeze()
    show(outcomes, groups, wall=time.monotonic() - started)
    if chosen.baseline:
        show_reasons(outcomes)
    else:
        show_lost(outcomes, chosen.seed, console)
    if chosen.record:
        chosen.record.write_text(json.dumps(_record(outcomes, chosen, time.monotonic() - started), indent=1) + "\n")
    return int(not chosen.baseline and any(outcome.lost for outcome in outcomes))


def prepare(folder: Path, console: Console) -> Lab:
    """Import the stack into this process and make the untouched run, in a fork."""
    console.print("importing the stack and making the run that nothing happens to", markup=False)
    from qdora_fast.models.backend import open_backend

    open_backend()
    import torch

    for module in _NEEDED:
        importlib.import_module(module)
    gc.freeze()  # forks need not look through all of this for garbage
    torch.set_num_threads(1)
    lab = Lab(folder)
    lab.set_up()
    lab.job(folder / "watched", train={"max_steps": 4}).run(fault=watch(folder / WATCHED, step=4)).require(0)
    return lab


def do(lab: Lab, groups: Sequence[Group], chosen: argparse.Namespace, console: Console) -> list[Outcome]:
    """Do the chosen trials of these groups."""
    todo = [batch for group in groups for batch in batches(group, _numbers(group, chosen))]
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description:<10}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
    total = sum(len(batch.numbers) for batch in todo)
    with Progress(*columns, TextColumn("{task.fields[red]}"), console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, red="")
        for outcome in _until_stopped(run_batches(lab, todo, seed=chosen.seed, jobs=chosen.jobs), console):
            outcomes.append(outcome)
            if outcome.lost and not chosen.baseline:
                progress.console.print(
                    f"{outcome.group} {outcome.number} ({outcome.note}): {outcome.lost}", markup=False
                )
            red = sum(each.lost is not None for each in outcomes)
            progress.update(task, advance=1, description=outcome.group, red=f"{red} not passed" if red else "")
            progress.refresh()
    return outcomes


def _until_stopped(outcomes: Iterator[Outcome], console: Console) -> Iterator[Outcome]:
    """All outcomes; after Ctrl-C those that there are."""
    try:
        yield from outcomes
    except KeyboardInterrupt:
        console.print("stopped; the table is of what was done")


def sabotage(lab: Lab, name: str, chosen: argparse.Namespace, console: Console) -> int:
    """Break our own code in this way, or in each; 0: the matrix turned red every time."""
    unknown = name not in ("all", *SABOTAGES)
    if unknown:
        raise SystemExit(f"no sabotage {name}; there are {', '.join(SABOTAGES)}")
    unnoticed = 0
    print("| broken on purpose | trials | of them red |\n| --- | --- | --- |")
    for way in SABOTAGES.values() if name == "all" else [SABOTAGES[name]]:
        of, first, last = way.noticed_by
        group = next(each for each in GROUPS if each.name == of)
        todo = batches(group, range(first, last + 1))
        outcomes = list(run_batches(lab, todo, seed=chosen.seed, jobs=chosen.jobs, before=way.do))
        red = sum(outcome.lost is not None for outcome in outcomes)
        print(f"| {way.words} | {len(outcomes)} {of} | {red} |", flush=True)
        unnoticed += red == 0
    console.print(f"{unnoticed} not noticed" if unnoticed else "each was noticed")
    return int(unnoticed > 0)


def _choose(only: str, matrix: Sequence[Group]) -> list[Group]:
    names = [name for name in only.split(",") if name]
    unknown = [name for name in names if not any(_is_of(group, name) for group in matrix)]
    if unknown:
        raise SystemExit(f"no group {', '.join(sorted(unknown))}; there are {', '.join(g.name for g in matrix)}")
    return [group for group in matrix if not names or any(_is_of(group, name) for name in names)]


def _is_of(group: Group, name: str) -> bool:
    """`hostile` is all of hostile-code, hostile-bombs, ..."""
    return group.name == name or group.name.startswith(f"{name}-")


def _numbers(group: Group, chosen: argparse.Namespace) -> Sequence[int]:
    if chosen.trial is not None:
        return [chosen.trial]
    return range(chosen.trials or (group.full if chosen.full else group.small))


def _keep(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Move what failed trials left out of the scratch folder."""
    for left in {outcome.folder for outcome in outcomes if outcome.folder}:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(left).name
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(left, target)


def _record(outcomes: Sequence[Outcome], chosen: argparse.Namespace, wall: float) -> dict[str, object]:
    from qdora_fast.system.hardware import cpu_name, package_versions

    return {
        "seed": chosen.seed,
        "size": "full" if chosen.full else "small",
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "packages": package_versions(),
        "wall_s": round(wall, 1),
        "cpu_s": round(sum(outcome.cpu for outcome in outcomes), 1),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
