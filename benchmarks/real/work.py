"""Where a session works, and how its stages run the product: as commands, each in a process of its own.

A stage is a function of `Work` that returns figures; `passed` among them is its gate. What a command prints goes to
`logs/`, and a command that ends with another exit code than 0 ends its stage with the last lines of that.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real.rows import INSTRUCTION, make_rows, write_rows
from qdora_fast.system import child
from qdora_fast.system.errors import QdoraError

Figures = dict[str, Any]
PRESET = "smollm2-135m"


class StageFailed(QdoraError):
    """A command of a stage failed."""

    exit_code = 1


@dataclass(frozen=True)
class Work:
    """The folder of a session, the model's folder, and how much is asked."""

    folder: Path
    model: Path
    steps: int
    """Optimizer steps of the training, of 8 rows."""
    rows: int
    """Rows, those held out included."""
    questions: int
    """Held-out rows that base and tuned model answer."""
    llama_cpp: Path | None = None
    """A llama.cpp checkout, for GGUF."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / self.name

    @property
    def name(self) -> str:
        """The run's name."""
        return f"bookings-{self.rows}-rows-{self.steps}-steps"

    def rows_file(self) -> Path:
        """The rows as a file, written if it is not there."""
        path = self.folder / f"{self.rows}-rows.jsonl"
        if not path.exists():
            write_rows(path, make_rows(self.rows))
        return path

    def settings(self, steps: int | None = None, **changes: object) -> list[str]:
        """The options of a training on the rows: the preset's settings with these, and `changes` such as
        `train__seed=1`; `steps` instead of the session's."""
        steps = self.steps if steps is None else steps
        given = {
            "model__name": self.model,
            "model__max_length": 256,
            "data__path": self.rows_file(),
            "data__filters__min_tokens": 0,
            "data__held_out": 0.2,
            "train__max_steps": steps,
            "train__eval_steps": steps,
            "evaluation__metric": "json_match",
            "evaluation__max_rows": self.questions,
            "evaluation__max_new_tokens": 48,
            "run__dir": self.folder / "runs",
            "run__name": self.name,
        } | changes
        return [text for name, value in given.items() for text in ("--set", f"{name.replace('__', '.')}={value}")]

    def command(self, log: str, *arguments: str | Path) -> str:
        """Run `qdora-fast` with these arguments; returns its standard output.

        Raises:
            StageFailed: with the last lines of what it printed.
        """
        return self.python(log, "-m", "qdora_fast", *map(str, arguments))

    def python(self, log: str, *arguments: str) -> str:
        """Run this Python; see `command`."""
        file = self.folder / "logs" / f"{log}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as errors:
            done = subprocess.run(
                child.python(*arguments),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=child.environment(HF_HUB_OFFLINE="1"),
                check=False,
            )
        with file.open("a", encoding="utf-8") as more:
            more.write(done.stdout)
        if done.returncode:
            last = "\n  ".join(file.read_text(encoding="utf-8").strip().splitlines()[-6:])
            raise StageFailed(f"{log} ended with exit code {done.returncode} ({file}):\n  {last}")
        return done.stdout

    def json_of(self, log: str, *arguments: str | Path) -> Any:
        """The JSON object that a command prints as its last line with --json."""
        return json.loads(self.command(log, *arguments, "--json").strip().splitlines()[-1])


Stage = Callable[[Work], Figures]


def question() -> tuple[str, dict[str, Any]]:
    """A message that is in no row, and the booking in it."""
    message = "Hello, Selma Brandt here. Have you got room for five of us on Friday, at half past seven in the evening?"
    return f"{INSTRUCTION}\n\n{message}", {"name": "Selma Brandt", "guests": 5, "day": "Friday", "time": "19:30"}


def as_booking(answer: str) -> dict[str, Any] | None:
    """The JSON of an answer; None where it is none with the four keys."""
    try:
        booking = json.loads(answer)
    except ValueError:
        return None
    wanted: Mapping[str, Any] = question()[1]
    return booking if isinstance(booking, dict) and booking.keys() == wanted.keys() else None
