"""One call of the harness: train what is not trained yet, do the batches that are not recorded, show the tables."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from proofs import records, table
from proofs.bases import NAMES
from proofs.plan import ARITHMETICS, Batch, Training, batches
from proofs.preloaded import Done, Preloaded
from proofs.work import keys

_EVERY = 1.0
"""Seconds between two looks into the record."""


@dataclass(frozen=True)
class _Places:
    """Where everything lies."""

    folder: Path
    record: Path
    smollm2: Path | None

    def spec(self, **asked: Any) -> dict[str, Any]:
        """What a module in another process is told."""
        return {
            "trained": str(self.folder / "trained"),
            "bases": str(self.folder / "bases"),
            "smollm2": str(self.smollm2) if self.smollm2 else None,
            "record": str(self.record),
            **asked,
        }


def run(chosen: argparse.Namespace) -> int:
    """Do what the command line asks for; 0: nothing right was refused, nothing wrong let pass."""
    console = Console(stderr=True)
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    places = _Places(folder, (chosen.record or folder / "record.jsonl").resolve(), chosen.smollm2)
    broken = []
    if not chosen.table:
        todo = _chosen(chosen, console)
        broken = do(todo, places, chosen.jobs, console)
    lines = records.read(places.record)
    print(table.summary(lines), end="")
    (folder / "summary.md").write_text(table.summary(lines), encoding="utf-8")
    table.show_wrong(lines, console)
    for words in broken:
        console.print(f"NOT DONE {words}", markup=False, soft_wrap=True)
    return int(bool(broken or table.false_alarms(lines) or table.let_pass(lines)))


def do(todo: Sequence[Batch], places: _Places, jobs: int, console: Console) -> list[str]:
    """Do all batches as far as they are not recorded; what could not be done, in words."""
    recorded = {line["key"] for line in records.read(places.record)}
    left = [batch for batch in todo if not recorded.issuperset(keys(batch))]
    trainings = list(dict.fromkeys(batch.training for batch in left))
    trainings = [each for each in trainings if not (places.folder / "trained" / each.name).is_dir()]
    broken: list[str] = []
    everything = {key for batch in todo for key in keys(batch)}
    with _progress(console, len(everything), everything, places.record) as say:
        for name, group in groupby(_by_arithmetic(left, trainings), key=lambda each: each[0]):
            say(f"{name}: importing the stack")
            with Preloaded("stack", ARITHMETICS[name]) as stack, Preloaded("plain", ARITHMETICS[name]) as plain:
                stack.wait_until_loaded()
                plain.wait_until_loaded()
                for _, work in group:
                    if isinstance(work, Training):
                        say(f"training {work.name}")
                        broken += _failure(_ask(stack, "trainings", places.spec(training=asdict(work)), 1), work.name)
                        continue
                    with ThreadPoolExecutor(jobs) as pool:
                        futures = {}
                        for batch in work:
                            spec = places.spec(batch=asdict(batch), plain=plain.address, skip=sorted(recorded))
                            futures[pool.submit(_ask, stack, "work", spec, batch.threads)] = batch
                        broken += _until_done(futures, say)
    return broken


def _by_arithmetic(left: Sequence[Batch], trainings: Sequence[Training]) -> Iterator[tuple[str, Any]]:
    """(arithmetic, a training or batches), trainings first, in the machine's own."""
    native = next(iter(ARITHMETICS))
    yield from ((native, training) for training in trainings)
    for name, group in groupby(left, key=lambda batch: batch.arithmetic):
        yield name, list(group)


def _until_done(futures: Mapping[Future[Done], Batch], say: Any) -> list[str]:
    """Wait for batches, looking into the record meanwhile."""
    broken, waiting = [], dict(futures)
    while waiting:
        time.sleep(_EVERY)
        running = next((batch.name for future, batch in waiting.items() if future.running()), "")
        say(running)
        for future in [future for future in waiting if future.done()]:
            broken += _failure(future.result(), waiting.pop(future).name)
    return broken


def _ask(stack: Preloaded, module: str, spec: Mapping[str, Any], threads: int) -> Done:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(spec, file)
        file.flush()
        return stack.run(f"proofs.{module}", file.name, threads=threads)


def _failure(done: Done, name: str) -> list[str]:
    if done.code == 0:
        return []
    return [f"{name}: ended with {done.code}\n" + "\n".join(done.stderr.strip().splitlines()[-12:])]


def _chosen(chosen: argparse.Namespace, console: Console) -> list[Batch]:
    """The batches of the command line."""
    names = [name for name in chosen.only.split(",") if name]
    unknown = set(names) - set(NAMES)
    if unknown:
        raise SystemExit(f"no base {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    found = [batch for batch in batches(chosen.size) if not names or batch.training.base in names]
    if chosen.smollm2 is None and any(batch.training.base == "smollm2" for batch in found):
        console.print("smollm2 is left out: its folder was not named (--smollm2 FOLDER)")
        found = [batch for batch in found if batch.training.base != "smollm2"]
    found = [_of_kind(batch, chosen.kind) for batch in found if chosen.kind != "controls" or batch.controls]
    count = min(len(found), chosen.limit or len(found))
    return [found[number * len(found) // count] for number in range(count)]


def _of_kind(batch: Batch, kind: str | None) -> Batch:
    if kind == "right":
        return replace(batch, controls=())
    return replace(batch, right=kind is None)


@contextmanager
def _progress(console: Console, total: int, expected: set[str], record: Path) -> Iterator[Any]:
    """A bar over all exports; yields a function that moves it by what stands in the record, and says what is done."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[wrong]}"), console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, wrong="")
        shown: list[Any] = []

        def say(words: str) -> None:
            new = [words, record.stat().st_size if record.is_file() else 0]
            if shown == new:
                return
            shown[:] = new
            lines = records.read(record)
            wrong = len(table.false_alarms(lines)) + len(table.let_pass(lines))
            done = sum(line["key"] in expected for line in lines)
            progress.update(task, completed=done, description=words, wrong=f"{wrong} wrong" if wrong else "")
            progress.refresh()

        yield say
