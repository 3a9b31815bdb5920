"""The outcomes as a table, and what did not pass by name with the command that repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from faults.trial import Group, Outcome


def show(outcomes: Sequence[Outcome], groups: Sequence[Group], *, wall: float) -> None:
    """Print the table to standard output, as Markdown."""
    print("| fault | trials | passed | passed means |\n| --- | --- | --- | --- |")
    for group in groups:
        mine = [outcome for outcome in outcomes if outcome.group == group.name]
        passed = sum(outcome.lost is None for outcome in mine)
        print(f"| {group.fault} | {len(mine)} | {passed} | {group.passed} |")
    cpu = sum(outcome.cpu for outcome in outcomes)
    passed = sum(outcome.lost is None for outcome in outcomes)
    print(f"\n{passed} of {len(outcomes)} passed; {wall:,.0f} s, {cpu:,.0f} s of CPU")


def show_lost(outcomes: Sequence[Outcome], seed: int, console: Console) -> None:
    """Each trial that did not pass, and how to do it again."""
    for outcome in outcomes:
        if outcome.lost:
            left = f"; left in {Path(outcome.folder).name}" if outcome.folder else ""
            again = f'make faults ARGS="--only {outcome.group} --trial {outcome.number} --seed {seed}"'
            console.print(f"NOT PASSED {outcome.group} {outcome.number}{left}; again: {again}", markup=False)


def show_reasons(outcomes: Sequence[Outcome]) -> None:
    """How often each group did not pass, and in which way."""
    for (group, reason), count in Counter(
        (each.group, each.lost.split(":")[0]) for each in outcomes if each.lost
    ).items():
        print(f"{group}: {count} x {reason}")
