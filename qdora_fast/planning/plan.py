"""Will it fit, how long, how much disk, which method: answered before a weight is read.

The recipe of `qdora-fast plan`. The base's config.json gives sizes, the config and the card give the rest; rows are
only glanced at. Counting is memory/'s business, wording text.py's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qdora_fast.config import Config, presets
from qdora_fast.planning.advice import Advice, Facts, advise
from qdora_fast.planning.auto import Place, RowLengths, Settled, settle, this_machine
from qdora_fast.planning.history import Peak, Speed, earlier_peak, earlier_speed
from qdora_fast.planning.memory import (
    Card,
    Estimate,
    Fit,
    Part,
    base_config,
    best_fit,
    estimate,
    fits,
    job_of,
    longest_length,
    margin,
    most_answers,
    sizes_of,
)
from qdora_fast.planning.rows import Measured, RowFacts, glance
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError

GIB = 2**30
USUAL_CARD = 24.0
"""GiB of the card that is planned for where there is none."""


@dataclass(frozen=True)
class Plan:
    """The answers."""

    name: str
    config: Config
    """Without `auto`."""
    settled: Settled
    """What `auto` became."""
    place: Place
    base_source: str
    """Where the base's config.json was read."""
    estimate: Estimate
    fits: bool
    margin: int
    longest: int
    """Tokens of the longest rows that fit at batch size 1; 0: none."""
    better: Fit | None
    """The pair we would take, with shorter rows if it must be; None if nothing fits."""
    answers: int
    """Held-out rows of full length that can be answered at a time."""
    rows: RowFacts | None
    steps: int | None
    """Optimizer steps; about, with packing."""
    speed: Speed | None
    measured: Peak | None
    """What an earlier run of this shape took."""
    disk: tuple[Part, ...]
    free_disk: int
    advice: tuple[Advice, ...]

    @property
    def seconds(self) -> tuple[int, int] | None:
        """Training time, from steps alone to all that lies between them; None: not measured."""
        if self.speed is None or self.steps is None:
            return None
        fast, slow = self.speed.seconds_per_step
        return round(fast * self.steps), round(slow * self.steps)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; bytes and seconds."""
        return {
            "name": self.name,
            "fits": self.fits,
            **self.estimate.as_dict(),
            "batch_size": self.config.train.micro_batch,
            "gradient_accumulation": self.config.train.accumulation,
            "max_length": self.config.model.length,
            "auto": {"asked": list(self.settled.asked), "said": list(self.settled.said)},
            "card": {"name": self.place.card.name, "memory_bytes": self.place.card.memory, "gpu": self.place.on_gpu},
            "margin_bytes": self.margin,
            "longest_length": self.longest,
            "suggested": self.better
            and {
                "batch_size": self.better.batch_size,
                "gradient_accumulation": self.better.gradient_accumulation,
                "max_length": self.better.length,
            },
            "answers_at_a_time": self.answers,
            "rows": self.rows and self.rows.rows,
            "steps": self.steps,
            "tokens_per_second": self.speed and round(self.speed.tokens_per_second, 1),
            "seconds": self.seconds,
            "measured_peak": self.measured and asdict(self.measured),
            "disk": {part.name: part.bytes for part in self.disk},
            "free_disk_bytes": self.free_disk,
            "advice": [str(line) for line in self.advice],
        }


def make_plan(config: Config, name: str, *, vram: float | None = None) -> Plan:
    """Plan a run.

    Args:
        name: of the config; its runs are looked up for a measured speed, and a preset's card is used without a GPU.
        vram: GiB of the card to plan for; None: this machine's, else the preset's, else a 24 GiB one.

    Raises:
        CannotEstimate: an architecture that is not counted.
        ConfigError: no config.json, or a target that the model does not have.
    """
    base = base_config(config.model.name, config.model.revision)
    sizes = sizes_of(base.values)
    place = choose_place(config, name, vram)
    measured = glance(config.data)
    settled = settle(config, sizes, place, _lengths(measured))
    config = settled.config
    rows = None if measured is None else measured.facts(config.data, config.model.length)
    job = job_of(config, sizes, on_gpu=place.on_gpu)
    counted = estimate(job, place.card)
    found = fits(counted, place.card)
    steps = _steps(config, rows, place.on_gpu)
    dense = replace(job, quantized=False)
    better = best_fit(job, place.card)
    longest = longest_length(job, place.card)
    answers = most_answers(job, place.card)
    smaller = None
    if better and not found and better.length == job.length and better.batch_size < job.batch_size:
        smaller = better.batch_size, better.gradient_accumulation
    advice = advise(
        config,
        Facts(
            rows=None if rows is None else rows.rows,
            steps=steps,
            too_long=None if rows is None else rows.too_long,
            fits=found,
            dense_fits=place.on_gpu and job.quantized and fits(estimate(dense, place.card), place.card),
            smaller=smaller,
            longest=longest,
            parameters=sizes.parameters,
        ),
    )
    local = Path(config.model.name).expanduser().is_dir()
    return Plan(
        name=name,
        config=config,
        settled=settled,
        place=place,
        base_source=base.source,
        estimate=counted,
        fits=found,
        margin=margin(place.card),
        longest=longest,
        better=better,
        answers=answers,
        rows=rows,
        steps=steps,
        speed=earlier_speed(config, name),
        measured=earlier_peak(config, name),
        disk=tuple(part for part in counted.disk if not (local and part.name == "base")),
        free_disk=int(hardware.free_disk_gib(Path(config.run.dir).resolve()) * GIB),
        advice=tuple(advice),
    )


def _lengths(measured: Measured | None) -> RowLengths | None:
    return None if measured is None else RowLengths(np.array(measured.lengths), sampled=True)


def choose_place(config: Config, name: str, vram: float | None) -> Place:
    """The card to plan for, or the CPU for the demo.

    Raises:
        ConfigError: a card of no size.
    """
    if vram is not None:
        if not 0 < vram <= 1024:
            raise ConfigError(f"--vram {vram:g}: expected the card's memory in GiB, for instance 24")
        return Place(Card.of_gib(vram), True, "named by --vram")
    here = this_machine(config)
    if here.on_gpu or (config.model.name == "demo" and config.train.vram is None):
        return here
    if config.train.vram is not None:
        return Place(Card.of_gib(config.train.vram), True, "train.vram")
    written_for = next((preset.memory_gib for preset in presets.list_presets() if preset.name == name), None)
    if written_for:
        return Place(Card.of_gib(written_for), True, "no GPU here: the card this preset is written for")
    return Place(Card.of_gib(USUAL_CARD), True, "no GPU here: --vram names another")


def preset_plans(vram: float | None = None) -> list[Plan]:
    """A plan for every shipped preset, on the card it is written for (or on one of `vram` GiB)."""
    from qdora_fast.config.loader import load_config

    return [
        make_plan(load_config(preset.path), preset.name, vram=vram or preset.memory_gib)
        for preset in presets.list_presets()
        if preset.memory_gib
    ]


def _steps(config: Config, rows: RowFacts | None, on_gpu: bool) -> int | None:
    """Optimizer steps of the run, as trainer.py counts them."""
    train = config.train
    if train.max_steps:
        return train.max_steps
    if rows is None:
        return None
    kept = rows.rows if config.data.on_long == "truncate" else max(1, round(rows.rows * (1 - rows.too_long)))
    sequences = kept
    if train.packing and on_gpu:
        sequences = math.ceil(kept * rows.mean_tokens / config.model.length)
    return max(1, math.ceil(math.ceil(sequences / train.rows_per_step) * train.epochs))
