"""How fast a training runs, how long it still takes, and one message when it is much slower than it should be.

Only the time of steps counts, the wait for their rows included; evaluations, checkpoints and logging lie between steps.
Tokens are those of an epoch times the share of it that was seen: exact on average, and free to compute.

Slow means: in two stretches of 20 steps one after the other, under 70 % of what an earlier run of the same shape made
on this machine, or of what this run itself made before. The first steps (kernels are compiled, caches filled) count for
nothing, nor does a single step that took long. The message comes once, with what would explain it; nothing is measured
for it until then.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdora_fast.data.clean.lengths import padded_fill
from qdora_fast.system import hardware

WARM_UP = 10
"""First steps of a process, which are slow for reasons of their own."""
STRETCH = 20
SLOW = 0.7
FEWEST = 5
"""Steps after which time can be foretold."""
LOOKED_BACK_ON = 200
"""Steps that decide what a usual one takes."""
WAITING, PADDING, OTHERS = 0.15, 0.3, 0.25
"""Shares from which on waiting for rows, padding, or other programs explain something."""


@dataclass(frozen=True)
class Expected:
    """A speed that was measured."""

    tokens_per_second: float
    source: str
    """Where it was measured: "the run demo-2"."""


@dataclass(frozen=True)
class Slow:
    """How slow a run is."""

    tokens_per_second: float
    expected: Expected
    waiting: float
    """Share of the time in which the rows of a step were waited for."""

    def message(self, causes: list[str]) -> str:
        """A sentence for the user; `causes`: from the function `causes`."""
        share = self.tokens_per_second / self.expected.tokens_per_second
        why = f"likely because {'; '.join(causes)}" if causes else "no cause was found"
        return (
            f"slow: {self.tokens_per_second:,.0f} tokens/s, {share:.0%} of the {self.expected.tokens_per_second:,.0f} "
            f"that {self.expected.source} made; {why}"
        )


@dataclass(frozen=True)
class _Step:
    tokens: float
    waited: float
    worked: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.waited + self.worked


@dataclass
class Throughput:
    """Told of steps as they happen (by `callbacks.py`); times are in seconds of any clock that only goes forward."""

    tokens_per_epoch: int
    expected: Expected | None = None
    _steps: list[_Step] = field(default_factory=list, repr=False)
    _paces: list[float] = field(default_factory=list, repr=False)
    _between: float = 0.0
    _free: float = 0.0
    _begun: float = 0.0
    _epoch: float = 0.0
    _asked: int = 0
    _reported: bool = False

    def begin(self, epoch: float, now: float) -> None:
        """Training begins, or is resumed, at this epoch."""
        self._epoch, self._free = epoch, now

    def step_begins(self, now: float) -> None:
        """The rows of a step are there."""
        self._begun = now

    def step_ends(self, epoch: float, now: float) -> None:
        """The optimizer has made its step."""
        tokens = max(0.0, epoch - self._epoch) * self.tokens_per_epoch
        self._steps.append(_Step(tokens, self._begun - self._free, now - self._begun))
        self._epoch, self._free = epoch, now
        if len(self._steps) > WARM_UP and (len(self._steps) - WARM_UP) % STRETCH == 0:
            self._paces.append(_usual_pace(self._steps[-STRETCH:]))

    def between_ends(self, now: float) -> None:
        """Something between steps is done: logging, an evaluation, a checkpoint."""
        self._between += now - self._free
        self._free = now

    def tokens_per_second(self) -> float | None:
        """Over the steps since the last call; None without any."""
        since, self._asked = self._steps[self._asked :], len(self._steps)
        return _pace(since) or None

    def left(self, steps: int) -> tuple[float, float] | None:
        """Seconds that so many more steps take: by steps alone, and with all that has lain between them so far."""
        seen = self._steps[1:][-LOOKED_BACK_ON:]  # the first is not like the others
        if len(seen) < FEWEST:
            return None
        usual, mean = (f([step.seconds for step in seen]) for f in (statistics.median, statistics.fmean))
        with_between = mean + self._between / len(self._steps)
        return steps * min(usual, with_between), steps * max(usual, with_between)

    def slow(self) -> Slow | None:
        """The run, if it has just turned out to be slow; once at most."""
        if self._reported or len(self._paces) < 2 or (len(self._steps) - WARM_UP) % STRETCH:
            return None
        bars = [self.expected] if self.expected else []
        if len(self._paces) > 2:
            bars.append(Expected(statistics.median(self._paces[:-2]), "earlier steps of this run"))
        if not bars:
            return None
        bar = max(bars, key=lambda each: each.tokens_per_second)
        if max(self._paces[-2:]) >= SLOW * bar.tokens_per_second:
            return None
        self._reported = True
        steps = self._steps[-2 * STRETCH :]
        waiting = sum(step.waited for step in steps) / max(1e-9, sum(step.seconds for step in steps))
        return Slow(statistics.fmean(self._paces[-2:]), bar, waiting)


@dataclass(frozen=True)
class Circumstances:
    """What may slow a run down."""

    waiting: float = 0.0
    """Share of the time in which rows were waited for."""
    padding: float = 0.0
    """Share of a batch that is padding."""
    attention: str = ""
    """How attention is computed, by transformers' name."""
    left_to_peft: Mapping[str, int] = field(default_factory=dict)
    """Calls of adapted layers that the engine left to PEFT, by reason."""
    given_up: str = ""
    """Why the engine released its cached weights; empty: it did not."""
    brakes: tuple[str, ...] = ()
    """What holds the card's clocks down."""
    spilled: bool = False
    """More memory was taken than the card has: the driver puts the rest into the host's."""
    others: float = 0.0
    """Share of the processor that other programs use."""


def causes(seen: Circumstances) -> list[str]:
    """What explains a slow run, the worst first, each with what helps."""
    reasons = []
    if seen.spilled:
        reasons.append("memory spilled from the card into the host's: a smaller train.batch_size, or train.vram")
    if seen.brakes:
        reasons.append(f"the card's clocks are held down by {', '.join(seen.brakes)}: cooling or power")
    if seen.waiting >= WAITING:
        reasons.append(f"{seen.waiting:.0%} of the time rows are waited for: is the disk or the processor busy?")
    if seen.others >= OTHERS:
        reasons.append(f"other programs use {seen.others:.0%} of the processor")
    if seen.attention == "eager":
        reasons.append("attention is computed without a fused kernel (eager): `qdora-fast doctor` says which are there")
    if seen.left_to_peft:
        why, calls = max(seen.left_to_peft.items(), key=lambda each: each[1])
        reasons.append(f"{calls:,} calls of adapted layers ran PEFT's slower forward ({why})")
    if seen.given_up:
        reasons.append(f"the engine released its cached weights ({seen.given_up})")
    if seen.padding >= PADDING:
        reasons.append(f"padding is {seen.padding:.0%} of a batch: train.packing needs a GPU; a smaller batch has less")
    return reasons


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds that the processor's cores have spent so far."""

    own: float
    """On this process."""
    busy: float
    """On anything."""
    total: float

    @classmethod
    def now(cls) -> ProcessorTime:
        """Since the machine, and this process, started."""
        import psutil

        all_cores, own = psutil.cpu_times(), psutil.Process().cpu_times()
        counted = {"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"}  # guests are in user
        spent = {name: seconds for name, seconds in all_cores._asdict().items() if name in counted}
        total = sum(spent.values())
        return cls(own.user + own.system, total - spent.get("idle", 0.0) - spent.get("iowait", 0.0), total)

    def others(self, later: ProcessorTime) -> float:
        """Share that other programs used from here to `later`; 0 where this process may use only some of the cores, and
        what happens on the others is none of its business."""
        import psutil

        if hardware.cpu_count() < (psutil.cpu_count() or 1):
            return 0.0
        busy, total = later.busy - self.busy, later.total - self.total
        return max(0.0, (busy - (later.own - self.own)) / total) if total > 0 else 0.0


def observe(
    model: Any, lengths: np.ndarray, *, batch_size: int, packed: bool, waiting: float, since: ProcessorTime
) -> Circumstances:
    """What may slow this process down now.

    Args:
        lengths: of the training rows, in tokens.
        since: taken when training began.
    """
    import torch

    from qdora_fast.engine.patch import fallbacks, residency

    gpu = torch.cuda.is_available()
    resident = residency(model)
    return Circumstances(
        waiting=waiting,
        padding=0.0 if packed else 1 - padded_fill(lengths, batch_size),
        attention=str(getattr(model.config, "_attn_implementation", "") or ""),
        left_to_peft=fallbacks(model),
        given_up=resident.given_up if resident else "",
        brakes=tuple(hardware.clock_brakes()) if gpu else (),
        spilled=gpu and torch.cuda.memory_reserved() > torch.cuda.get_device_properties(0).total_memory,
        others=0.0 if gpu else since.others(ProcessorTime.now()),
    )


def _pace(steps: list[_Step]) -> float:
    seconds = sum(step.seconds for step in steps)
    return sum(step.tokens for step in steps) / seconds if seconds > 0 else 0.0


def _usual_pace(steps: list[_Step]) -> float:
    """Without what a few steps took longer."""
    return statistics.fmean(step.tokens for step in steps) / max(
        1e-9, statistics.median(step.seconds for step in steps)
    )
