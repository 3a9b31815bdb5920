"""All that the harness knows of the export's own interface, in one place: record, export, prove, read the findings.

Needs a process with the training stack loaded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proofs.preloaded import ask
from qdora_fast.config.recorded import read_config
from qdora_fast.system.errors import QdoraError
from qdora_fast.system.run_folder import RunFolder

FORMS: dict[str, dict[str, str]] = {
    "original16": {"to": "merged_16bit", "merge_base": "original16"},
    "dequant4": {"to": "merged_16bit", "merge_base": "dequant4"},
    "auto": {"to": "merged_16bit", "merge_base": "auto"},
    "nf4": {"to": "merged_4bit_forced", "merge_base": "original16"},
}
"""What `export_merged` is asked for."""


@dataclass(frozen=True)
class Exported:
    """How an export ended."""

    folder: Path
    """What was built, proven or not."""
    passed: bool
    code: int
    """Exit code that a command would have: 0, or the error's."""
    failed: tuple[str, ...]
    """Names of the checks that it did not pass."""
    words: str
    """The error's message."""
    measured: tuple[tuple[str, float, float], ...]
    """Check, measured value, limit."""


def save_and_record(model: Any, tokenizer: Any, run: RunFolder) -> Any:
    """Save the adapter of a live model as the run's own, as its end does; return the evidence."""
    from qdora_fast.exports.verify.case import record_trained
    from qdora_fast.recipes.train import _save_adapter

    _save_adapter(model, tokenizer, run)
    return record_trained(model, run)


def record_saved(run: RunFolder) -> Any:
    """The evidence of a saved run, as `qdora-fast export` takes it."""
    from qdora_fast.exports.verify import case
    from qdora_fast.recipes.report import trained_model

    return case.record_saved(run, trained_model(run, read_config(run)))


def export(run: RunFolder, evidence: Any, form: str, out: Path) -> Exported:
    """Export and prove into `out`, which is replaced."""

    from qdora_fast.exports.merged import export_merged, unproven_folder

    for folder in (out, unproven_folder(out)):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        report = export_merged(run, evidence, out=out, overwrite=True, **FORMS[form])
    except QdoraError as error:
        left = unproven_folder(out)
        file = left / "export.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        failed = _failed(known) or (type(error).__name__,)
        return Exported(left, False, error.exit_code, failed, str(error), _measured(known))
    return Exported(out, True, 0, (), "", _measured(report))


@contextmanager
def building(change: Callable[[Any], None] | None, damage: Callable[[Path, Any], None] | None) -> Iterator[None]:
    """Meanwhile what an export builds is built wrongly.

    Args:
        change: given the `MergedModel` before it is written.
        damage: given the folder, and that model, once it is written.
    """
    from qdora_fast.exports.merge import merge
    from qdora_fast.system.manifest import sha256_of

    real = merge.build

    def build(model: Any, folder: Path, **options: Any) -> Any:
        if change is not None:
            change(model)
        report = real(model, folder, **options)
        if damage is not None:
            damage(folder, model)
        return replace(report, sha256={name: sha256_of(folder / name) for name in report.sha256})

    merge.build = build
    try:
        yield
    finally:
        merge.build = real


@contextmanager
def proving_in(address: str, threads: int) -> Iterator[None]:
    """Meanwhile exports are examined by forks of the process at this address (`preloaded.py`), not by a fresh one."""
    from qdora_fast.exports.verify import fresh_process
    from qdora_fast.system import errors

    def examine(case: Any, on_phase: Any = None) -> Any:
        with tempfile.TemporaryDirectory(prefix="qdora-fast-proof-") as scratch:
            fresh_process.save_case(case, Path(scratch))
            done = ask(address, "qdora_fast.exports.verify.fresh_process", [scratch], threads)
            answer = Path(scratch) / "answer.json"
            if done.code or not answer.is_file():
                raise errors.ProofError(f"the process that proves the export ended with {done.code}: {done.stderr}")
            said = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in said:
            raise getattr(errors, said["error"])(said["message"])
        return said

    real = fresh_process.examine_in_new_process
    fresh_process.examine_in_new_process = examine
    try:
        yield
    finally:
        fresh_process.examine_in_new_process = real


def _failed(report: Mapping[str, Any]) -> tuple[str, ...]:
    checks = report.get("proof", {}).get("checks", ())
    return tuple(check["name"] for check in checks if not check["passed"])


def _measured(found: Any) -> tuple[tuple[str, float, float], ...]:
    """Every measured value that a report holds beside its limit."""
    if isinstance(found, Mapping):
        own = ((str(found["name"]), found["value"], found["limit"]),) if {"name", "value", "limit"} <= {*found} else ()
        return own + tuple(each for value in found.values() for each in _measured(value))
    return tuple(each for value in found for each in _measured(value)) if isinstance(found, list | tuple) else ()
