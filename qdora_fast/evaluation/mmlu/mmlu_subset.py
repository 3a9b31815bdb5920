"""Which of MMLU's 14,042 test questions are asked: the same ones every time, equally many of each subject.

Two runs are only comparable on the same questions, and the first N of each subject are not a fair sample of it. So
the questions of a subject are ranked once by SHA-256(seed, subject, number) and the first N of that order are taken:
a larger number a subject only adds questions. The 36 a subject that are asked by default (2,052 in all, enough to see
a change of 2 points) are frozen in `mmlu_subset.json` beside this file, with the number of test questions of each
subject in cais/mmlu. Made by

    python -m qdora_fast.evaluation.mmlu.mmlu_subset

which draws them again from those numbers and says whether the file is still what the rule gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import value_hash

FILE = Path(__file__).with_suffix(".json")
SEED = 0
A_SUBJECT = 36


def question_ids(questions: int | Literal["full"]) -> dict[str, list[int]]:
    """Numbers of the test questions to ask, rising, by subject in the order of the alphabet.

    Args:
        questions: a subject, or `full`. 36 comes from the frozen file; subjects with fewer questions give all.
    """
    sizes = subject_sizes()
    if questions == "full":
        return {subject: list(range(size)) for subject, size in sizes.items()}
    if questions == A_SUBJECT:
        return {subject: list(ids) for subject, ids in _frozen()["ids"].items()}
    return {subject: draw(subject, size, questions) for subject, size in sizes.items()}


def subject_sizes() -> dict[str, int]:
    """Number of test questions of each of the 57 subjects of cais/mmlu; 14,042 together."""
    return dict(_frozen()["sizes"])


def draw(subject: str, size: int, count: int) -> list[int]:
    """The first `count` of a subject's `size` questions in the order of their hashes, rising."""
    ranked = sorted(
        range(size), key=lambda number: hashlib.sha256(f"mmlu\0{SEED}\0{subject}\0{number}".encode()).digest()
    )
    return sorted(ranked[:count])


def ids_hash(ids: Mapping[str, Sequence[int]]) -> str:
    """SHA-256 over which questions are asked."""
    return value_hash(ids)


def main() -> None:
    """Draw the subset again and compare it with the frozen file, which is never rewritten."""
    drawn = {subject: draw(subject, size, A_SUBJECT) for subject, size in subject_sizes().items()}
    same = drawn == _frozen()["ids"] and ids_hash(drawn) == _frozen()["sha256"]
    print(f"{FILE.name} is {'' if same else 'NOT '}what the rule draws; sha256 {ids_hash(drawn)}")
    if not same:
        raise SystemExit(1)


@cache
def _frozen() -> dict[str, Any]:
    return read_object(FILE, {"ids": dict, "sha256": str})


if __name__ == "__main__":
    main()
