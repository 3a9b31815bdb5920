"""One batch: the exports of one kept adapter, right and wrong, in this process. `python -m proofs.work SPEC`.

Needs a process with the training stack loaded, and the address of one without it, in which the proofs run.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from proofs import exporting, records
from proofs.controls import CONTROLS, Case, Control
from proofs.damage import differing_values
from proofs.plan import Batch, Training
from proofs.trainings import EVIDENCE, RUN, step_folder
from qdora_fast.models.run_info import read_run_info
from qdora_fast.system.run_folder import RunFolder


@dataclass(frozen=True)
class Subject:
    """A run at one step, and what is known of its live model."""

    run: RunFolder
    evidence: Any
    earlier: Path | None
    """The adapter of the step kept before."""


def keys(batch: Batch) -> Iterator[str]:
    """The name in the record of every export of a batch."""
    for form in batch.forms:
        if batch.right:
            yield f"{batch.name}/{form}"
        yield from (f"{batch.name}/{form}/{control.name}" for control in _controls(batch, form))


def do(batch: Batch, subject: Subject, scratch: Path, *, skip: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Do the exports of a batch whose keys are not in `skip`; a line for the record of each."""
    for form in batch.forms:
        place = f"{batch.name}/{form}"
        wanted = [control for control in _controls(batch, form) if f"{place}/{control.name}" not in skip]
        if not wanted and (place in skip or not batch.right):
            continue
        right, seconds = _timed(partial(exporting.export, subject.run, subject.evidence, form, scratch / "right"))
        if batch.right and place not in skip:
            yield _line(batch, form, None, right, seconds)
        for control in wanted:
            own = scratch / "control"
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            wrong, seconds = _timed(partial(_wrong_export, subject, form, control, own, f"{place}/{control.name}"))
            differing = differing_values(right.folder, wrong.folder) if wrong.folder.is_dir() else None
            line = _line(batch, form, control, wrong, seconds)
            yield line | {"differing": differing, "right_failed": right.failed}


def _wrong_export(subject: Subject, form: str, control: Control, own: Path, seed: str) -> exporting.Exported:
    run = RunFolder(Path(shutil.copytree(subject.run.path, own / RUN)))
    base = Path(read_run_info(run).base)
    case = Case(run, base, own, subject.earlier, Random(seed))
    if control.place == "run":
        control.make(case)
    change = partial(control.make, case) if control.place == "model" else None
    damage = partial(control.make, case) if control.place == "folder" else None
    with exporting.building(change, damage):
        return exporting.export(run, subject.evidence, form, own / "out")


def _controls(batch: Batch, form: str) -> list[Control]:
    return [control for control in CONTROLS if form in batch.controls and control.fits(batch, form)]


def _line(
    batch: Batch, form: str, control: Control | None, exported: exporting.Exported, seconds: float
) -> dict[str, Any]:
    training = batch.training
    key = f"{batch.name}/{form}"
    return {
        "key": f"{key}/{control.name}" if control else key,
        "base": training.base,
        "method": training.method,
        "r": training.r,
        "learning_rate": training.learning_rate,
        "rslora": training.rslora,
        "seed": training.seed,
        "step": batch.step,
        "form": form,
        "arithmetic": batch.arithmetic,
        "threads": batch.threads,
        "evidence": "live" if batch.live else "saved",
        "control": control.name if control else None,
        "of_weights": control.of_weights if control else None,
        "passed": exported.passed,
        "code": exported.code,
        "failed": exported.failed,
        "words": exported.words,
        "measured": exported.measured,
        "seconds": round(seconds, 2),
    }


def _timed(work: Callable[[], exporting.Exported]) -> tuple[exporting.Exported, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began


def main(spec: dict[str, Any]) -> None:
    """Do a batch that is described by JSON."""
    given = spec["batch"]
    training = Training(**given["training"] | {"steps": tuple(given["training"]["steps"])})
    tuples = {name: tuple(given[name]) for name in ("forms", "controls")}
    batch = Batch(**given | tuples | {"training": training})
    trained, steps = Path(spec["trained"]), training.steps
    kept = step_folder(trained, training, batch.step)
    before = [step for step in steps if step < batch.step]
    earlier = step_folder(trained, training, before[-1]) / RUN / "adapter" if before else None
    run = RunFolder(kept / RUN)
    prover = exporting.proving_in(spec["plain"], batch.threads)
    with tempfile.TemporaryDirectory(prefix="qdora-fast-proofs-") as scratch, prover:
        evidence = pickle.loads((kept / EVIDENCE).read_bytes()) if batch.live else exporting.record_saved(run)
        subject = Subject(run, evidence, earlier)
        for line in do(batch, subject, Path(scratch), skip=set(spec["skip"])):
            records.append(Path(spec["record"]), line)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
