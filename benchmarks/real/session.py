"""One session of `make real`: the stages in order, each once, and what came of them.

What a stage measured is kept in `real.json` as soon as it ends, so that a session which was stopped goes on with the
next one; a stage is repeated when it failed, or when what was asked of it is another thing. The gate is red where a
stage failed or its own gate is red.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.real import full_stages, real_table, stages
from benchmarks.real.model import PACKAGE, model_folder
from benchmarks.real.work import StageFailed, Work
from qdora_fast.system import console
from qdora_fast.system.json_files import read_object
from qdora_fast.system.run_folder import write_json


def run_real(
    folder: Path,
    *,
    model: Path | None = None,
    full: bool = False,
    steps: int = 30,
    rows: int = 400,
    questions: int = 48,
    llama_cpp: Path | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Do what is not done yet, below `folder`, and return the record.

    Args:
        model: a folder with SmolLM2-135M-Instruct; None: out of its package, see `model.py`.
        full: all stages; hours.
        steps: optimizer steps of the training.
        rows: rows, those held out included.
        questions: held-out rows that both models answer.
        llama_cpp: a llama.cpp checkout, for GGUF.

    Raises:
        ConfigError: see `model_folder`.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    console.line("model", f"SmolLM2-135M-Instruct, {f'from {model}' if model else f'out of the package {PACKAGE}'}")
    made = model.resolve() if model else model_folder(folder / "model")
    work = Work(folder, made, steps, rows, questions, llama_cpp.resolve() if llama_cpp else None)
    chosen = full_stages.FULL if full else stages.SHORT
    known = read_object(folder / "real.json")["stages"] if (folder / "real.json").is_file() else {}
    asked = {"steps": steps, "rows": rows, "questions": questions}
    done: dict[str, dict[str, Any]] = {}
    record = {"kind": "real", "machine": machine(_without_folders(command or [])), "stages": done}
    for name, stage in chosen.items():
        before = known.get(name)
        if before and before["passed"] and before["asked"] == asked and "skipped" not in before:
            done[name] = before
            console.line("done", f"{name}: before, {before['stage_seconds']:.0f} s")
            continue
        console.line("stage", f"{name}; what it prints goes to {folder / 'logs'}")
        done[name] = _timed(stage, work) | {"asked": asked}
        write_json(folder / "real.json", record | {"stages": known | done})
    for line in real_table.lines(done):
        console.line("", line)
    red = [f"{name}: {each.get('failed', 'its gate is red')}" for name, each in done.items() if not each["passed"]]
    return record | {"gate": {"passed": not red, "red": red}}


def _without_folders(command: list[str]) -> list[str]:
    """A command without the options that name folders of this machine, which are no part of a figure."""
    named = {"--folder", "--model", "--llama-cpp"}
    return [part for part, before in zip(command, ["", *command], strict=False) if not {part, before} & named]


def _timed(stage: Any, work: Work) -> dict[str, Any]:
    start = time.monotonic()
    try:
        figures: Mapping[str, Any] = stage(work)
    except StageFailed as error:
        figures = {"passed": False, "failed": str(error)}
    seconds = time.monotonic() - start
    words = figures.get("failed") or figures.get("skipped") or ("passed" if figures["passed"] else "gate red")
    console.line("", f"{words}, {seconds:.0f} s")
    return {**figures, "stage_seconds": seconds}
