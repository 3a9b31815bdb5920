"""Your own data, from raw rows to a merged model.

    .venv/bin/python examples/own_data.py

The rows here are a small CSV of questions about seasons, written to a temporary folder, with
columns nobody could guess; on the way two mistakes are made on purpose, to show what is said.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import qdora_fast
from qdora_fast.system.errors import QdoraError

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
PLACES = ("Norway", "Chile", "Japan", "Kenya")


def write_rows(path: Path) -> None:
    """Forty rows with the columns `frage` and `antwort`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["frage", "antwort"])
        for place in PLACES:
            for number, month in enumerate(MONTHS, 1):
                table.writerow([f"Which month of the year is {month} in {place}?", f"It is month {number}."])


def main(folder: Path, **train: float) -> Path:
    """Make the two mistakes, then train; returns the merged model's folder."""
    rows = folder / "seasons.csv"
    write_rows(rows)
    settings = {"run": {"dir": str(folder / "runs"), "name": "seasons"}, "train": train}

    # Mistake 1: the columns are not named, and the error shows how to name them.
    try:
        qdora_fast.train("demo", data={"path": str(rows)}, **settings)
    except QdoraError as error:
        print(f"\n1. {error}\n")

    # Mistake 2: a setting is misspelt; every problem is told at once.
    try:
        qdora_fast.train("demo", data={"path": str(rows), "colums": {"prompt": "frage"}}, **settings)
    except QdoraError as error:
        print(f"\n2. {error}\n")

    columns = {"prompt": "frage", "response": "antwort"}
    run = qdora_fast.train("demo", data={"path": str(rows), "columns": columns}, **settings)
    return run.path / "merged_16bit"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(f"merged model: {main(Path(scratch), epochs=6)} (in a temporary folder, gone when this ends)")
