"""How fast training was, as earlier runs of the same name and shape wrote it down in metrics.jsonl.

Nothing is extrapolated: a run with another base, length or batch says nothing about this one, nor does one that ended
after a few steps.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.errors import ConfigError
from qdora_fast.run_folder import RunFolder

FEWEST = 5
"""Logged steps below which nothing is concluded."""


@dataclass(frozen=True)
class Speed:
    """What an earlier run of the same name and shape took."""

    run: str
    tokens_per_second: float
    seconds_per_step: tuple[float, float]
    """Of a usual step, and with everything between steps: evaluations, checkpoints."""


def earlier_speed(config: Config, name: str) -> Speed | None:
    """Measured by the newest run of this name whose batches had the same shape; None: there is none."""
    parent, wanted = Path(config.run.dir), config.run.name or name
    ours = re.compile(re.escape(wanted) + r"(-\d+)?")  # as RunFolder.create numbers them
    folders = [path for path in parent.glob("*/") if ours.fullmatch(path.name) and (path / "metrics.jsonl").is_file()]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = RunFolder(path)
        try:
            ran = folder.config()
        except (ConfigError, OSError):
            continue
        if _shape(ran) == _shape(config):
            return _speed(path.name, folder.metrics)
    return None


def _shape(config: Config) -> tuple[Any, ...]:
    train = config.train
    return (config.model.name, config.model.max_length, train.batch_size, train.rows_per_step, train.packing)


def _speed(run: str, metrics: Path) -> Speed | None:
    records = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if isinstance(record, dict) and record.get("tokens_per_second") and {"step", "seconds"} <= set(record):
            records.append(record)
    gaps = [
        (late["seconds"] - early["seconds"]) / (late["step"] - early["step"])
        for early, late in pairwise(records)
        if late["step"] > early["step"] and late["seconds"] > early["seconds"]
    ]
    if len(records) < FEWEST or not gaps:
        return None
    usual, whole = statistics.median(gaps), statistics.fmean(gaps)  # a run that was resumed counts from 0 again
    tokens = statistics.median(record["tokens_per_second"] for record in records)
    return Speed(run, tokens, (min(usual, whole), max(usual, whole)))
