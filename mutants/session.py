"""All faults of a list, so many at a time, with what is known from before; the table and the exit code.

A result holds until the fault, the file it is put into, or a test that stands for that file changes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mutants.listed import Fault, read_faults
from mutants.standing import standing_for
from mutants.trial import Tested, Trial

LEFT_OUT = (".*", "__pycache__", "*.egg-info", "runs", "faults-left", "build", "dist")
MADE_ONCE = {"demo_runs": "demo_run", "tiny_base": "tiny_base"}
"""Folders that tests make once for all, and the fixtures that do it: made from unchanged code, once for all faults."""
GOOD = ("killed", "equivalent")


@dataclass(frozen=True)
class Result:
    """What came of a fault."""

    id: str
    outcome: str
    """killed, survived, timeout, equivalent, not applicable, no tests, or unsound: the test fails without the fault."""
    by: str
    seconds: float
    key: str
    """Of everything it depends on."""


def run(chosen: argparse.Namespace) -> int:
    """Run, show a table, keep the results; 0 where each fault is killed or equivalent, otherwise 1."""
    faults = [fault for fault in read_faults(chosen.list) if not chosen.only or fault.id in chosen.only.split(",")]
    known = _read(chosen.results)
    keys = {fault.id: " ".join([_key(fault, chosen.root), *chosen.tests]) for fault in faults}
    wanted = [
        fault for fault in faults if chosen.again or fault.id not in known or known[fault.id].key != keys[fault.id]
    ]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, bar:
        task = bar.add_task("faults", total=len(wanted))
        for result in _Session(chosen, Path(folder)).results(wanted, keys):
            known[result.id] = result
            _write(chosen.results, known)
            bar.update(task, advance=1, description=f"{result.id} {result.outcome}")
    results = [known[fault.id] for fault in faults]
    _show(results, {fault.id: fault for fault in faults})
    return 0 if all(result.outcome in GOOD for result in results) else 1


class _Session:
    """Copies of the tree, one for each trial at a time, and what the tests make once."""

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        self.chosen, self.folder = chosen, folder
        self.trees = [folder / f"tree-{number}" for number in range(chosen.jobs)]
        self.made: Path | None = None
        self.sound: dict[str, bool] = {}

    def results(self, faults: Sequence[Fault], keys: dict[str, str]) -> Iterator[Result]:
        """The result of each, in the order in which they end."""
        todo = [fault for fault in faults if fault.applies(self.chosen.root)]
        for fault in faults:
            if fault not in todo:
                yield Result(fault.id, "not applicable", f"old text not exactly once in {fault.file}", 0.0, "")
        if not todo:
            return
        for tree in self.trees:
            shutil.copytree(self.chosen.root, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        _warm_up(self.trees[0])
        named = [test.split("::")[0] for test in self.chosen.tests]
        self._make_once(named or [test for fault in todo for test in standing_for(fault.file, self.trees[0])])
        running: list[_Running] = []
        try:
            while todo or running:
                busy = {each.tree for each in running}
                for tree in self.trees:
                    if todo and tree not in busy:
                        running.append(_Running(todo.pop(0), tree, self))
                for each in list(running):
                    tested = each.ended()
                    if tested is not None:
                        running.remove(each)
                        yield self._result(each, tested, keys[each.fault.id])
                time.sleep(0.05)
        finally:
            for each in running:
                each.stop()

    def trial(self, tree: Path, tests: Sequence[str], keep: Sequence[str] = ()) -> Trial:
        """These tests, started."""
        folder = self.folder / f"trial-{tree.name}"
        return Trial(tree, tests, folder, self.made, self.chosen.seconds, keep)

    def wait(self, trial: Trial) -> Tested:
        """How it ended, once it has."""
        while (tested := trial.ended()) is None:
            time.sleep(0.05)
        return tested

    def _make_once(self, tests: Sequence[str]) -> None:
        """By unchanged code, where one of the tests asks for it; kept until the package changes."""
        tree = self.trees[0]
        needed = [folder for folder, fixture in MADE_ONCE.items() if _mentions(tree, tests, fixture)]
        if not needed:
            return
        key = _hash([tree / "tests" / "conftest.py", tree / "qdora_fast"])
        self.made = self.chosen.results.parent / f"mutants-made-{key}"
        if all((self.made / f"{folder}.finished").exists() for folder in needed):
            return
        for old in self.made.parent.glob("mutants-made-*"):
            shutil.rmtree(old)
        self.made.mkdir(parents=True)
        test = tree / "tests" / "test_made_once.py"
        fixtures = ", ".join(MADE_ONCE[folder] for folder in needed)
        test.write_text(f"def test_making({fixtures}):\n    pass\n", encoding="utf-8")
        tested = self.wait(self.trial(tree, [test.relative_to(tree).as_posix()], keep=needed))
        test.unlink()
        if tested.ended != "passed":
            raise RuntimeError(f"the unchanged code cannot make {fixtures}: {tested.by or tested.ended}")

    def _result(self, each: _Running, tested: Tested, key: str) -> Result:
        outcome = {"passed": "survived", "failed": "killed", "timeout": "timeout"}[tested.ended]
        by = tested.by
        if not each.tests:
            outcome, by = "no tests", f"nothing stands for {each.fault.file}"
        elif outcome == "killed" and "::" in by and not self._is_sound(each.tree, by):
            outcome = "unsound"
        elif outcome == "survived" and each.fault.equivalent:
            outcome, by = "equivalent", each.fault.equivalent
        elif outcome != "survived" and each.fault.equivalent:
            outcome = f"{outcome}, and said to be equivalent"
        return Result(each.fault.id, outcome, by, round(tested.seconds, 1), key)

    def _is_sound(self, tree: Path, test: str) -> bool:
        """Whether the test passes on unchanged code."""
        if test not in self.sound:
            self.sound[test] = self.wait(self.trial(tree, [test])).ended == "passed"
        return self.sound[test]


class _Running:
    """A fault in its tree while its tests run."""

    def __init__(self, fault: Fault, tree: Path, session: _Session) -> None:
        self.fault, self.tree = fault, tree
        self.tests = session.chosen.tests or standing_for(fault.file, tree)
        self._stack = ExitStack()
        applied: AbstractContextManager[None] = fault.applied(tree)
        self._stack.enter_context(applied)
        self._trial = session.trial(tree, self.tests) if self.tests else None

    def ended(self) -> Tested | None:
        """How its tests ended, the fault taken out again; None while they run."""
        tested = Tested("passed", "", 0.0) if self._trial is None else self._trial.ended()
        if tested is not None:
            self._stack.close()
        return tested

    def stop(self) -> None:
        """End its tests."""
        if self._trial is not None:
            self._trial.stop()


def _warm_up(tree: Path) -> None:
    """Import what every trial needs, and nothing of the package itself."""
    sys.dont_write_bytecode = True
    importlib.import_module("hypothesis")  # by a plugin of pytest
    if not (tree / "qdora_fast" / "backend.py").is_file():
        return
    import torch

    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    sys.path.insert(0, str(tree))
    importlib.import_module(
        "qdora_fast.models.backend"
    ).open_backend()  # unsloth first, and transformers, trl and peft by it
    for name in ("bitsandbytes", "datasets", "safetensors.torch", "triton"):
        importlib.import_module(name)
    sys.path.remove(str(tree))
    for name in [name for name in sys.modules if name.split(".")[0] == "qdora_fast"]:
        del sys.modules[name]


def _key(fault: Fault, root: Path) -> str:
    """A hash of the fault, of the file it is put into and of the tests that stand for it."""
    paths = [root / fault.file, root / "tests/conftest.py", *(root / test for test in standing_for(fault.file, root))]
    return hashlib.sha256(f"{asdict(fault)} {_hash(paths)}".encode()).hexdigest()[:16]


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in _files(paths):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _mentions(tree: Path, tests: Sequence[str], fixture: str) -> bool:
    return any(fixture in file.read_text(encoding="utf-8") for file in _files([tree / test for test in tests]))


def _files(paths: Sequence[Path]) -> list[Path]:
    found = (sorted(path.rglob("*.py")) if path.is_dir() else [path] for path in paths)
    return [file for files in found for file in files if file.is_file()]


def _read(path: Path) -> dict[str, Result]:
    if not path.is_file():
        return {}
    return {entry["id"]: Result(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))}


def _write(path: Path, results: dict[str, Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps([asdict(result) for result in results.values()], indent=1), encoding="utf-8")
    new.replace(path)


def _show(results: Sequence[Result], faults: dict[str, Fault]) -> None:
    print("| fault | outcome | s | by |\n| --- | --- | --- | --- |")
    for each in results:
        by = each.by or (faults[each.id].why if each.outcome == "survived" else "")
        print(f"| {each.id} | {each.outcome} | {each.seconds:.0f} | {by} |")
    counts = Counter(each.outcome for each in results)
    print(f"\n{len(results)} faults: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
