"""What a trial is, and what a group of trials of one kind is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from faults.lab import Lab
from faults.victim import Lost


@dataclass
class Trial:
    """One fault, done once."""

    lab: Lab
    folder: Path
    """Its own; kept where it does not pass."""
    number: int
    random: Random
    """Made from seed, group and number, so that a trial can be repeated alone."""
    note: str = ""
    """What was done to the run, in words; a trial fills it in as it goes."""


@dataclass(frozen=True)
class Outcome:
    """How one trial ended."""

    group: str
    number: int
    note: str
    lost: str | None
    """What was lost or silent; None: it passed."""
    cpu: float = 0.0
    """Seconds of CPU of the trial and all it started."""
    folder: str | None = None
    """Where what is left of it lies, if it did not pass."""


@dataclass(frozen=True)
class Group:
    """A kind of fault."""

    name: str
    fault: str
    """What is done."""
    passed: str
    """What it means that a trial passed."""
    small: int
    """Trials of the size for a pull request."""
    full: int
    one: Callable[[Trial], None] | None = None
    """Does one trial; raises Lost."""
    many: Callable[[Lab, Path, int, Sequence[int]], Iterator[Outcome]] | None = None
    """Instead of `one`, for trials that take no time: does all of these numbers; is given lab, folder and seed."""
    together: int = field(default=1)
    """How many are done by one process."""

    def do(self, lab: Lab, folder: Path, seed: int, numbers: Sequence[int]) -> Iterator[Outcome]:
        """Do these trials."""
        if self.many is not None:
            yield from self.many(lab, folder, seed, numbers)
            return
        assert self.one is not None, "a group has one of the two"
        for number in numbers:
            trial = Trial(lab, folder / f"{self.name}-{number}", number, Random(f"{seed} {self.name} {number}"))
            trial.folder.mkdir(parents=True, exist_ok=True)
            lost = None
            try:
                self.one(trial)
            except Lost as error:
                lost = str(error)
            yield Outcome(self.name, number, trial.note, lost)
