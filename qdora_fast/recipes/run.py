"""A run as Python users have it: its folder, which a notebook shows as its verdict and its curve.

`metrics()` and `answers()` are DataFrames of what lies in the folder; nothing is held in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qdora_fast.recipes.report import read_parts
from qdora_fast.system.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas


class Run(RunFolder):
    """A run's folder, with what it holds as DataFrames. `Run.open(path)` is one that exists."""

    def metrics(self) -> pandas.DataFrame:
        """What was logged, a row for each step: loss, eval_loss where it was measured (NaN elsewhere), learning_rate,
        tokens_per_second, memory_gib (GiB), seconds and what else the trainer logged. Empty before the first step."""
        import pandas

        rows: dict[float, dict[str, Any]] = {}
        for line in read_parts(self).metrics:
            if "event" not in line and {"loss", "eval_loss"} & line.keys():
                rows.setdefault(line["step"], {}).update(_numbers(line))
        return pandas.DataFrame(list(rows.values()))

    def answers(self) -> pandas.DataFrame:
        """The held-out questions with the reference, the answers of base and tuned model, whether each is right and how
        likely the reference is to it (`base_loss`, `tuned_loss`). Empty before the evaluation."""
        import pandas

        return pandas.DataFrame(read_parts(self).answers)

    def __repr__(self) -> str:
        """Where it lies and how it ended, in two lines."""
        from qdora_fast.evaluation.report.pages import verdict_of

        state = "finished" if self.finished else "not finished"
        return f"Run({str(self.path)!r}): {state}\n  {verdict_of(read_parts(self).evaluation)}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from qdora_fast.evaluation.report.pages import run_card

        report = self.path / "report.html"
        return run_card(read_parts(self), file=report if report.is_file() else self.path)


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that are not finite stand as words in the file."""
    return {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in line.items()}
