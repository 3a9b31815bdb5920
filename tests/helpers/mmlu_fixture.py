"""A made-up cais/mmlu on disk and small tasks in its format, about the countries of the demo; for test_mmlu.py.

The folder has the layout of a downloaded copy and each subject its true number of test questions, since the numbers
of the frozen subset count on them. The right answer has the same letter in all questions of a set: a model that knows
nothing says one letter, so that some set is easy for it, and another model that knows nothing fails there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.real.mmlu import DEV_QUESTIONS, write_sets

CAPITALS = ("Paris", "Rome", "Madrid", "Vienna", "Athens", "Cairo", "Lima")


def question(number: int, subject: str, answer: int) -> dict[str, Any]:
    """One question of four answers in the columns of cais/mmlu."""
    choices = [CAPITALS[(number + step) % len(CAPITALS)] for step in range(4)]
    return {
        "question": f"Which city is written at place {number % len(CAPITALS)} of list {number}?",
        "subject": subject,
        "choices": choices,
        "answer": answer,
    }


def write_mmlu(folder: Path, answer: int) -> Path:
    """57 folders with `dev` and `test` as Parquet; returns the folder."""
    return write_sets(folder, lambda number, subject: question(number, subject, answer))


def write_task(folder: Path, name: str, *, answer: int = 0, questions: int = 12, **changes: Any) -> str:
    """A task of one's own: a YAML file and its questions as JSON Lines; returns its name.

    Args:
        changes: settings of the task that shall be others than MMLU's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, count in (("dev", DEV_QUESTIONS), ("test", questions)):
        files[split] = str(folder / f"{name}-{split}.jsonl")
        rows = "".join(json.dumps(question(number, name, answer)) + "\n" for number in range(count))
        Path(files[split]).write_text(rows, encoding="utf-8")
    letters = ["A", "B", "C", "D"]
    listed = "\n".join(f"{letter}. {{{{choices[{place}]}}}}" for place, letter in enumerate(letters))
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 1,
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about capitals.\n\n",
        "doc_to_text": "{{question.strip()}}\n" + listed + "\nAnswer:",
        "doc_to_choice": letters,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(settings | changes), encoding="utf-8")  # JSON is YAML
    return name
