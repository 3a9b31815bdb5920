"""What is compared: arms, each a method with its LoRA+ ratio, and the settings that an arm's training runs with.

All arms share the data, the number of steps, the batch, the schedule and the evaluation. What differs is the method,
the learning rate of B (LoRA+), and for `full`, full fine-tuning, the learning rate as a whole: a rate that suits an
adapter is far too high for the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qdora_fast.config import Config
from qdora_fast.system.errors import ConfigError

ADAPTERS = ("lora", "qlora", "dora", "qdora")
FULL = "full"
SPOKEN = {"lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "qdora": "QDoRA", FULL: "full fine-tuning"}
FULL_SHARE = 0.1
"""Learning rate of full fine-tuning, as a share of the adapters', where none is given."""
MOST_SEEDS = 100


@dataclass(frozen=True)
class Arm:
    """One method with one LoRA+ ratio; 1 is LoRA+ switched off."""

    method: str
    ratio: float = 1.0

    @property
    def name(self) -> str:
        """For files and records: `dora`, `dora-plus16`."""
        return self.method if self.ratio == 1 else f"{self.method}-plus{self.ratio:g}"

    @property
    def spoken(self) -> str:
        """For people: `DoRA`, `DoRA, LoRA+ 16`."""
        return SPOKEN[self.method] + (f", LoRA+ {self.ratio:g}" if self.ratio != 1 else "")


@dataclass(frozen=True)
class Trial:
    """One training: an arm, its learning rate, and the seed of adapter and row order."""

    arm: Arm
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.arm.name}_lr{self.learning_rate:g}_seed{self.seed}"


def split(text: str) -> list[str]:
    """The parts of `a, b,c`."""
    return [part for part in map(str.strip, text.split(",")) if part]


def numbers(option: str, text: str) -> list[float]:
    """The numbers of `1,16`.

    Raises:
        ConfigError: a part is no number.
    """
    try:
        return [float(part) for part in split(text)]
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not a list of numbers; write them as 1,16") from None


def choose_arms(methods: Sequence[str], ratios: Sequence[float]) -> list[Arm]:
    """Every method with every ratio, in the order given; `full` once, for it has no B.

    Raises:
        ConfigError: an unknown method, a ratio below 1, or nothing to compare.
    """
    known = (*ADAPTERS, FULL)
    for method in methods:
        if method not in known:
            raise ConfigError(f"--methods: there is no method {method!r}; choose from {', '.join(known)}")
    for ratio in ratios:
        if not (math.isfinite(ratio) and ratio >= 1):
            raise ConfigError(f"--loraplus: {ratio:g} is no ratio; give numbers from 1 (off) up, for instance 1,16")
    if not methods or not ratios:
        raise ConfigError("--methods and --loraplus must each name at least one, for instance qlora,qdora and 1,16")
    arms = (Arm(method, ratio) for method in methods for ratio in ((1.0,) if method == FULL else ratios))
    return list(dict.fromkeys(arms))


def choose_rates(config: Config, rates: Sequence[float], full: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """The learning rates to try, by method: those given, or the config's; for `full` its own, or a tenth.

    Raises:
        ConfigError: a rate that is not above 0 and at most 1.
    """
    tried = tuple(dict.fromkeys(rates)) or (config.train.learning_rate,)
    of_full = tuple(dict.fromkeys(full)) or tuple(FULL_SHARE * rate for rate in tried)
    for rate in (*tried, *of_full):
        if not 0 < rate <= 1:
            raise ConfigError(f"--learning-rates, --full-lr: {rate:g} is no learning rate; give numbers in (0, 1]")
    return {FULL: of_full} | dict.fromkeys(ADAPTERS, tried)


def choose_trials(arms: Iterable[Arm], rates: dict[str, tuple[float, ...]], first_seed: int, seeds: int) -> list[Trial]:
    """Every training to run: seed by seed, so that an early end leaves whole seeds behind.

    Raises:
        ConfigError: no seed, or more than is sensible.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigError(f"--seeds: {seeds} is out of range; give a number from 1 to {MOST_SEEDS}")
    arms = list(arms)
    return [
        Trial(arm, rate, (first_seed + number) % 2**32)
        for number in range(seeds)
        for arm in arms
        for rate in rates[arm.method]
    ]


def settings_for(config: Config, trial: Trial) -> Config:
    """The config that a trial trains with. The data section stays: rows were prepared once for all trials."""
    arm = trial.arm
    method = "lora" if arm.method == FULL else arm.method  # `full` starts from the same 16-bit base as lora
    adapter = config.adapter.model_copy(update={"method": method})
    changed: dict[str, object] = {
        "learning_rate": trial.learning_rate,
        "loraplus_ratio": arm.ratio if arm.ratio != 1 else None,
        "seed": trial.seed,
        "early_stopping": None,  # it would give arms different budgets
        "tracker": "none",
    }
    if not adapter.decomposed:
        changed["magnitude_learning_rate"] = None
    export = config.export.model_copy(update={"at_end": "none", "merge_base": "original16"})
    train = config.train.model_copy(update=changed)
    return config.model_copy(update={"adapter": adapter, "train": train, "export": export})
