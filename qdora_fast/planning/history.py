"""What earlier runs of the same name and shape measured on this machine: their speed, and the memory they took.

Nothing is extrapolated: a run with another base, method, length, batch, data or machine says nothing about this one,
nor does one that ended after a few steps.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.recorded import read_config
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_lines, read_object
from qdora_fast.system.run_folder import RunFolder

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


def earlier_speed(config: Config, name: str) -> Speed | None:
    """Measured by the newest run of this name whose steps had the same shape; None: there is none."""
    return next((speed for folder in _alike(config, name) if (speed := _speed(folder))), None)


def earlier_peak(config: Config, name: str) -> Peak | None:
    """The same for the memory of the longest batch."""
    return next((peak for folder in _alike(config, name) if (peak := _peak(folder))), None)


def _alike(config: Config, name: str) -> Iterator[RunFolder]:
    """Earlier runs of the same name and shape on this machine, the newest first."""
    parent, wanted = Path(config.run.dir), config.run.name or name
    ours = re.compile(re.escape(wanted) + r"(-\d+)?")  # as RunFolder.create numbers them
    folders = [path for path in parent.glob("*/") if ours.fullmatch(path.name) and (path / "metrics.jsonl").is_file()]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = RunFolder(path)
        try:
            ran = read_config(folder)
        except (ConfigError, OSError):
            continue
        if _shape(ran) == _shape(config) and _here(folder):
            yield folder


def _shape(config: Config) -> tuple[Any, ...]:
    """All that decides what a step costs."""
    train, sources = config.train, [source.path for source in config.data.mixture]
    batch = (config.model.max_length, train.batch_size, train.rows_per_step, train.packing)
    how = (train.precision, train.optimizer, train.gradient_checkpointing)
    return (config.model.name, config.adapter, config.engine, sources, batch, how)


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
    records = [record for record in read_lines(folder.metrics, shape, skip_bad=True) if record["tokens_per_second"]]
    gaps = [
        (late["seconds"] - early["seconds"]) / (late["step"] - early["step"])
        for early, late in pairwise(records)
        if late["step"] > early["step"] and late["seconds"] > early["seconds"]
    ]
    if len(records) < FEWEST or not gaps:
        return None
    usual, whole = statistics.median(gaps), statistics.fmean(gaps)  # a run that was resumed counts from 0 again
    tokens = statistics.median(record["tokens_per_second"] for record in records)
    return Speed(folder.path.name, tokens, (min(usual, whole), max(usual, whole)))
