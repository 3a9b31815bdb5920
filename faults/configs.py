"""Configs with one mistake, and configs with none.

Run in a fresh process without the stack, for that is what is promised: a wrong config is an answer in
milliseconds, before torch is imported. Every mistake must be refused with its place and never with
another error than ours; a misspelt key must bring the right one (in at least 95 of 100); and nothing
valid may be refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from faults.lab import Lab
from faults.mutants import A_FOLDER, MAKERS
from faults.trial import Group, Outcome
from qdora_fast.config.loader import load_config
from qdora_fast.system import child
from qdora_fast.system.errors import ConfigError

_ROOT = Path(__file__).resolve().parent.parent
"""This folder is not installed, so the process that judges is told where it is."""


def mutated(lab: Lab, folder: Path, seed: int, numbers: Sequence[int]) -> Iterator[Outcome]:
    """Have a fresh process judge these mutants."""
    command = child.python("-m", "faults.configs", str(folder), str(seed), *map(str, numbers))
    done = subprocess.run(command, capture_output=True, text=True, env=child.environment(searched=_ROOT))
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    if done.returncode:
        last = outcomes.pop()
        words = done.stderr.strip().splitlines()[-1:]
        outcomes.append(Outcome("config", last.number, last.note, f"the judge ended with {done.returncode}: {words}"))
    yield from outcomes


def _judge(folder: Path, seed: int, numbers: Sequence[int]) -> Iterator[Outcome]:
    hints: list[bool] = []
    for number in numbers:
        random = Random(f"{seed} config {number}")
        make = MAKERS[number % len(MAKERS)]
        note, content, words = make(random)
        file = folder / f"{number}.yaml"
        if content == A_FOLDER:
            file.mkdir()
        else:
            file.write_bytes(content)
        answer = _answer(file)
        lost = None
        if not words and answer is not None:
            lost = f"is valid and was refused: {answer}"
        elif words and answer is None:
            lost = "was accepted"
        elif words and words[0] not in str(answer):
            lost = f"does not say {words[0]!r}: {answer}"
        if len(words) > 1:
            hints.append(words[1] in str(answer))
            note += "" if hints[-1] else " (no right hint)"
        if number == numbers[-1]:
            lost = lost or _all_in_all(hints)
        yield Outcome("config", number, note, lost)


def _all_in_all(hints: list[bool]) -> str | None:
    if "torch" in sys.modules:
        return "torch was imported"
    if hints and sum(hints) < 0.95 * len(hints):
        return f"only {sum(hints)} of {len(hints)} misspelt keys brought the right one"
    return None


def _answer(file: Path) -> str | None:
    """What the user is told; None: the config is taken."""
    try:
        load_config(file)
    except ConfigError as error:
        return str(error)
    return None


GROUPS = (
    Group(
        "config",
        "mutated configs (misspelt, wrong type, out of range, contradictory, no YAML) and valid ones",
        "refused with the place before torch is imported, the right key named for 95 % of typos; no valid one refused",
        300,
        3000,
        many=mutated,
        together=100,
    ),
)

if __name__ == "__main__":
    for outcome in _judge(Path(sys.argv[1]), int(sys.argv[2]), [int(text) for text in sys.argv[3:]]):
        print(json.dumps(asdict(outcome)), flush=True)
