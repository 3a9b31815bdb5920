"""What earlier runs of the same name and shape measured on this machine: their speed, and the memory they took.

Nothing is extrapolated: a run with another base, method, length, batch, data or machine says nothing about this one,
nor does one that ended after a few steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings, DataSettings, EngineSettings, ModelSettings, TrainSettings
from qdora_fast.planning.evaluation_time import EvaluationTime
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_lines, read_object
from qdora_fast.system.run_folder import RunFolder

SAME_EVALUATION = ("metric", "more_metrics", "max_new_tokens", "batch_size")
"""Settings that decide what a row of an evaluation takes."""
FEWEST = 5
"""Logged steps below which nothing is concluded."""


@dataclass(frozen=True)
class Speed:
    """What an earlier run of the same name and shape took."""

    run: str
    tokens_per_second: float
    seconds_per_step: tuple[float, float]
    """Of a usual step, and with everything between steps: evaluations, checkpoints."""


@dataclass(frozen=True)
class Peak:
    """What the longest batch of an earlier run took; see `probe.py`."""

    run: str
    measured: int
    """Bytes of the card."""
    estimated: int | None
    """What had been expected; None: it could not be counted."""


@dataclass(frozen=True)
class Shape:
    """All that decides what a step costs. Runs of the same shape can be compared."""

    base: str
    max_length: int | str
    adapter: AdapterSettings
    engine: EngineSettings
    sources: tuple[str, ...]
    batch: tuple[int | str, int, bool]
    """Batch size, effective batch, packing."""
    arithmetic: tuple[str, str, str]
    """Precision, optimizer, checkpointing."""


ShapeOfRun = Callable[[RunFolder], Shape]


def shape_of(
    model: ModelSettings, adapter: AdapterSettings, data: DataSettings, train: TrainSettings, engine: EngineSettings
) -> Shape:
    """The shape of a run with these settings."""
    return Shape(
        model.name,
        model.max_length,
        adapter,
        engine,
        tuple(source.path for source in data.mixture),
        (train.batch_size, train.rows_per_step, train.packing),
        (train.precision, train.optimizer, train.gradient_checkpointing),
    )


def earlier_speed(runs: Path, name: str, shape: Shape, shape_of_run: ShapeOfRun) -> Speed | None:
    """The speed of the newest run of this name and shape that logged enough steps; None: there is none.

    Args:
        runs: the folder of all runs.
        shape_of_run: reads the settings of an earlier run.
    """
    return next((speed for folder in _alike(runs, name, shape, shape_of_run) if (speed := _speed(folder))), None)


def earlier_peak(runs: Path, name: str, shape: Shape, shape_of_run: ShapeOfRun) -> Peak | None:
    """The memory that the longest batch of the newest such run took; None: none tried it. Arguments as there."""
    return next((peak for folder in _alike(runs, name, shape, shape_of_run) if (peak := _peak(folder))), None)


def earlier_evaluation(
    runs: Path, name: str, shape: Shape, shape_of_run: ShapeOfRun, settings: Mapping[str, Any]
) -> EvaluationTime | None:
    """What the evaluation of the newest such run took; None: none was evaluated with these settings.

    Args:
        settings: the `evaluation` section, as JSON; how many rows were asked does not matter.
    """
    timed = {"rows": int, "seconds": int | float}
    for folder in _alike(runs, name, shape, shape_of_run):
        record = _json(folder.path / "evaluation/evaluation.json", {"timing": timed, "training": {"config": dict}})
        before = record["training"]["config"].get("evaluation", {}) if record else {}
        if record and record["timing"]["rows"] and all(before.get(key) == settings.get(key) for key in SAME_EVALUATION):
            return EvaluationTime(folder.path.name, record["timing"]["seconds"] / record["timing"]["rows"])
    return None


def _alike(runs: Path, name: str, shape: Shape, shape_of_run: ShapeOfRun) -> Iterator[RunFolder]:
    """Earlier runs of the same name and shape on this machine, the newest first."""
    logged = [folder for folder in RunFolder.named(runs, name) if (folder.path / "metrics.jsonl").is_file()]
    for folder in sorted(logged, key=lambda folder: folder.path.stat().st_mtime, reverse=True):
        try:
            ran = shape_of_run(folder)
        except (ConfigError, OSError):
            continue
        if ran == shape and _here(folder):
            yield folder


def _here(folder: RunFolder) -> bool:
    """Whether a run was made by this machine, as far as it says."""
    machine = _json(folder.path / "environment.json", {"gpus?": [{"name?": str}]})
    cards = [card.name for card in hardware.gpus()]
    same = machine.get("cpu", hardware.cpu_name()) == hardware.cpu_name()
    return same and [card.get("name") for card in machine.get("gpus", [])] == (cards if machine else [])


def _peak(folder: RunFolder) -> Peak | None:
    probe = _json(folder.path / "fit.json", {"probe?": dict | None}).get("probe") or {}
    measured = probe.get("peak_bytes")
    return Peak(folder.path.name, measured, probe.get("estimated_bytes")) if isinstance(measured, int) else None


def _json(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return read_object(path, shape)
    except IntegrityError:
        return {}


def _speed(folder: RunFolder) -> Speed | None:
    shape = {"step": int, "seconds": int | float, "tokens_per_second": int | float}
    records = [
        record for record in read_lines(folder.metrics_file, shape, skip_bad=True) if record["tokens_per_second"]
    ]
    gaps = [
        (late["seconds"] - early["seconds"]) / (late["step"] - early["step"])
        for early, late in pairwise(records)
        if late["step"] > early["step"] and late["seconds"] > early["seconds"]
    ]
    if len(records) < FEWEST or not gaps:
        return None
    usual, mean = statistics.median(gaps), statistics.fmean(gaps)  # a run that was resumed counts from 0 again
    tokens = statistics.median(record["tokens_per_second"] for record in records)
    return Speed(folder.path.name, tokens, (min(usual, mean), max(usual, mean)))
