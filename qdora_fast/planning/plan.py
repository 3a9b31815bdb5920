"""A plan: the answers to "will it fit, how long, how much disk, which method", before a weight is read.

The recipe (recipes/plan.py) fills it, text.py and page.py show it. Here is what it holds, and how many steps a run has.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from qdora_fast.config import AdapterSettings, DataSettings, EngineSettings, ModelSettings, TrainSettings
from qdora_fast.planning.advice import Advice
from qdora_fast.planning.auto.kinds import Resolved
from qdora_fast.planning.base_facts import BaseFacts
from qdora_fast.planning.cards import Machine
from qdora_fast.planning.evaluation_time import EvaluationTime
from qdora_fast.planning.history import Peak, Speed
from qdora_fast.planning.memory.estimate import Estimate, Part
from qdora_fast.planning.memory.fit import Fit
from qdora_fast.planning.rows import RowFacts


@dataclass(frozen=True)
class Plan:
    """The answers, and the settings that they are about, without `auto`."""

    name: str
    model: ModelSettings
    adapter: AdapterSettings
    train: TrainSettings
    engine: EngineSettings
    resolved: Resolved
    """What `auto` became."""
    machine: Machine
    limited: str
    """That rows may be no longer than the base was made for, where the config asks for more; else empty."""
    base_source: str
    """Where the base's config.json was read."""
    facts: BaseFacts
    estimate: Estimate
    fits: bool
    margin: int
    """Bytes that are to stay free."""
    longest: int
    """Tokens of the longest rows that fit at batch size 1; 0: none."""
    better: Fit | None
    """The pair we would take, with shorter rows if it must be; None if nothing fits."""
    answers: int
    """Held-out rows of full length that can be answered at a time."""
    rows: RowFacts | None
    steps: int | None
    """Optimizer steps; about, with packing."""
    speed: Speed | None
    evaluated: int
    """Held-out rows that base and tuned model are compared on, about; 0: none."""
    evaluation: EvaluationTime | None
    """What such an evaluation took in an earlier run."""
    measured: Peak | None
    """What an earlier run of this shape took."""
    disk: tuple[Part, ...]
    free_disk: int
    """Bytes."""
    advice: tuple[Advice, ...]

    @property
    def seconds(self) -> tuple[int, int] | None:
        """Training time, from steps alone to all that lies between them; None: not measured."""
        if self.speed is None or self.steps is None:
            return None
        fast, slow = self.speed.seconds_per_step
        return round(fast * self.steps), round(slow * self.steps)

    @property
    def evaluation_seconds(self) -> int | None:
        """Time of the evaluation at the end; None: not measured."""
        if self.evaluation is None:
            return None
        return round(self.evaluation.seconds_per_row * self.evaluated)

    def __repr__(self) -> str:
        """Of what, and whether it fits, in two lines."""
        from qdora_fast.planning.text import verdict

        return f"Plan of {self.name}: {self.model.name}\n  {verdict(self)}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from qdora_fast.planning.page import plan_card

        return plan_card(self)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; bytes and seconds."""
        card, sizes = self.machine.card, self.estimate.job.sizes
        return {
            "name": self.name,
            "base": {
                "name": self.model.name,
                "model_type": sizes.model_type,
                "parameters": sizes.parameters,
                "sizes_from": self.base_source,
                "measured": sizes.measured,
                **asdict(self.facts),
            },
            "layers": self.estimate.job.targets,
            "fits": self.fits,
            "limited": self.limited,
            **self.estimate.as_dict(),
            "batch_size": self.train.micro_batch,
            "gradient_accumulation": self.train.accumulation,
            "max_length": self.model.length,
            "auto": {"asked": list(self.resolved.asked), "said": list(self.resolved.reasons)},
            "card": {"name": card.name, "memory_bytes": card.memory, "gpu": self.machine.on_gpu},
            "margin_bytes": self.margin,
            "longest_length": self.longest,
            "suggested": self.better
            and {
                "batch_size": self.better.batch_size,
                "gradient_accumulation": self.better.gradient_accumulation,
                "max_length": self.better.length,
            },
            "answers_at_a_time": self.answers,
            "rows": self.rows and self.rows.rows,
            "steps": self.steps,
            "tokens_per_second": self.speed and round(self.speed.tokens_per_second, 1),
            "seconds": self.seconds,
            "evaluation_rows": self.evaluated,
            "evaluation_seconds": self.evaluation_seconds,
            "measured_peak": self.measured and asdict(self.measured),
            "disk": {part.name: part.bytes for part in self.disk},
            "free_disk_bytes": self.free_disk,
            "advice": [str(line) for line in self.advice],
        }


def optimizer_steps(
    train: TrainSettings, data: DataSettings, rows: RowFacts | None, *, length: int, on_gpu: bool
) -> int | None:
    """Optimizer steps of a run, as trainer.py counts them; None where the rows are not known."""
    if train.max_steps:
        return train.max_steps
    if rows is None:
        return None
    kept = rows.rows if data.on_long == "truncate" else max(1, round(rows.rows * (1 - rows.too_long)))
    sequences = kept
    if train.packing and on_gpu:
        sequences = math.ceil(kept * rows.mean_tokens / length)
    return max(1, math.ceil(math.ceil(sequences / train.rows_per_step) * train.epochs))
