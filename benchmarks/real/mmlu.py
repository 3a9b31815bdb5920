"""57 sets of multiple-choice questions about capitals, in the columns and folders of a downloaded cais/mmlu.

MMLU's own questions are on the hub. These have its form, so that the harness asks them in the same way; each set has
its true number of test questions, because the numbers of the frozen subset count on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdora_fast.data.demo.countries import COUNTRIES
from qdora_fast.evaluation.mmlu.mmlu_subset import subject_sizes

DEV_QUESTIONS = 5
"""Solved examples of each set."""


def write_questions(folder: Path) -> Path:
    """Questions about capitals, the same every time; returns the folder."""
    random_ = random.Random(0)
    return write_sets(folder, lambda _number, subject: _question(random_) | {"subject": subject})


def write_sets(folder: Path, make: Callable[[int, str], dict[str, Any]]) -> Path:
    """57 folders with `dev` and `test` as Parquet, of rows that `make` gives for a number and a subject; returns the
    folder."""
    import pyarrow
    import pyarrow.parquet

    for subject, size in subject_sizes().items():
        for split, count in (("dev", DEV_QUESTIONS), ("test", size)):
            path = folder / subject / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [make(number, subject) for number in range(count)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return folder


def _question(random_: random.Random) -> dict[str, Any]:
    asked = random_.choice(COUNTRIES)
    others = random_.sample([each.capital for each in COUNTRIES if each.capital != asked.capital], 3)
    choices = [asked.capital, *others]
    random_.shuffle(choices)
    return {
        "question": f"What is the capital of {asked.name}?",
        "choices": choices,
        "answer": choices.index(asked.capital),
    }
