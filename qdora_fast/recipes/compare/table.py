"""The comparison as two tables and a page of sentences, for a terminal.

Two narrow tables rather than a wide one, so that they survive a log of eighty columns: what came out, and what it cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdora_fast.recipes.compare.words import HEADINGS, interval_words, limits, steps_words, tried_words
from qdora_fast.system import console
from qdora_fast.system.console import grid

MIB = 2**20


def show(record: Mapping[str, Any]) -> None:
    """Print the record of a comparison: tables, then what holds and what does not."""
    seeds = len(record["seeds"])
    console.print(
        f"\n{seeds} {'seed' if seeds == 1 else 'seeds'}, {record['steps']} steps each, {record['dataset']['asked']} "
        f"held-out rows ({record['metric']})",
        markup=False,
        style="bold",
    )
    outcome = grid("arm", record["score_name"] + ", %", "held-out loss", "steps to target")
    for arm in record["arms"].values():
        outcome.add_row(arm["spoken"], *outcome_cells(arm))
    console.print(outcome)
    console.print(f"target: held-out loss {target_words(record)}")
    cost = grid("arm", "learning rate", "step ms", "MiB", "trained parameters")
    for arm in record["arms"].values():
        cost.add_row(arm["spoken"], *cost_cells(arm))
    console.print()
    console.print(cost)
    several = [arm for arm in record["arms"].values() if len(arm["tried"]) > 1]
    if several:
        console.print("\nLearning rates that were tried, with their mean held-out loss", style="bold")
    for arm in several:
        console.print(f"- {tried_words(arm)}")
    for about, heading in HEADINGS.items():
        found = [difference["words"] for difference in record["differences"] if difference["about"] == about]
        if found:
            console.print(f"\n{heading}", markup=False, style="bold")
        for words in found:
            console.print(f"- {words}")
    console.print("\nHow far to trust this", style="bold")
    for words in limits(record):
        console.print(f"- {words}")


def outcome_cells(arm: Mapping[str, Any]) -> list[str]:
    """Score in per cent and loss, with intervals, and the steps to the target."""
    diverged = f"; {arm['diverged']} diverged" if arm["diverged"] else ""
    score = interval_words(arm["score"], ".1f", 100.0)
    return [score, interval_words(arm["loss"]) + diverged, steps_words(arm["to_target"])]


def cost_cells(arm: Mapping[str, Any]) -> list[str]:
    """Learning rate, median step time, memory and trained parameters."""
    return [
        f"{arm['learning_rate']:g}",
        f"{1e3 * arm['step_seconds']:.1f}",
        f"{arm['memory']['total'] / MIB:,.1f}",
        f"{arm['trained_parameters']:,}",
    ]


def target_words(record: Mapping[str, Any]) -> str:
    """The target and where it is from."""
    target = record["target"]
    return f"{target['loss']:.4f} ({target['from']})" if target["loss"] is not None else f"none ({target['from']})"
