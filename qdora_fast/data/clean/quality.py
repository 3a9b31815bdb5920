"""Training rows that a reference model finds wrong: the bad tail, and why.

The model reads every answer twice, after its question and alone (`reference`). With L the mean loss of the answer's
tokens in nats, the instruction-following difficulty (Cherry LLM and Superfiltering, both 2024) is

    IFD = exp(L(answer | question) - L(answer))

At 1 and above the question does not help to predict the answer: mostly they do not belong together. An answer
with a loss far above that of its neighbours is gibberish, damaged, or in the wrong language. Only such rows are
dropped, a bounded share of them, worst first. A best part is never picked: in the literature that rarely beats
a random choice (Xia et al. 2024, "Rethinking Data Selection at Scale").

- The question is what the run's template renders. To a model that cannot read that template a question is noise: it
  helps on some rows and hinders on others, by chance. Its losses then say nothing about the rows, and none is dropped
  (`Verdicts.blind`).
- Nothing here knows what is true: a wrong answer of the right kind is found only as far as the model knows better.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qdora_fast.config import QualitySettings
from qdora_fast.data.clean.reference import Score, load_scores, save_scores, score
from qdora_fast.data.read.messages import Message, Row, prompt_of

__all__ = [
    "QualityReport",
    "Score",
    "Verdict",
    "Verdicts",
    "WorstRow",
    "choose",
    "load_scores",
    "report",
    "save_scores",
    "score",
]

WORST_SHOWN = 20
_FEWEST_OF_A_SCRIPT = 20
_MOST_UNHELPFUL = 0.25
"""Share of the scored rows above which the model is taken not to read the layout. Read, all rows but the wrong ones
are helped by their question; not read, 0.45 to 0.83 of them are not (LOG.md). Half-way between, about: where so
many rows really are wrong, dropping a tail of at most 15 % does not mend them either."""
_LEAST_EXCESS = math.log(2)
"""Nats per token above the median that make an outlier at the least: each token half as likely as in a usual row.
Rows of one make have so similar losses that any number of their deviations is soon passed by a good row."""
_SHOWN_CHARACTERS = 300
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Verdict:
    """One row to drop: its index, the reason code of `rejects.REASONS`, and the figures behind it."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Verdicts:
    """The rows to drop, worst first; iterates over them and has their number as its length."""

    dropped: tuple[Verdict, ...]
    limited: int
    """Rows that the rules name as well, and that stay because `max_drop` is reached."""
    blind: bool
    """More than a quarter of the rows are at or above `max_ifd`: the model does not read this layout, and nothing was
    dropped. `worst` then ranks by the loss alone."""
    worst: tuple[int, ...]
    """Indices of the worst rows, dropped or not, worst first."""

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.dropped)

    def __len__(self) -> int:
        return len(self.dropped)


@dataclass(frozen=True)
class WorstRow:
    """A row as shown to a person, who decides whether the model is right about it."""

    place: str
    """Its source; this name is the key in report.json."""
    prompt: str
    """What stands before the last answer, white space folded and cut to 300 characters; so is `answer`."""
    answer: str
    ifd: float
    conditional: float
    dropped: bool


@dataclass(frozen=True)
class QualityReport:
    """How the reference model scored the training rows. Rows = `scored` + `not_scored`."""

    scored: int
    not_scored: int
    """Rows with fewer than `min_answer_tokens` trained tokens, or without a question."""
    dropped: Mapping[str, int]
    """Rows dropped, by reason code."""
    limited: int
    blind: bool
    quantiles: Mapping[float, float]
    """IFD at 5, 25, 50, 75 and 95 % of the scored rows; empty without any."""
    worst: tuple[WorstRow, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report file; the quantiles are keyed by text such as "0.05"."""
        return asdict(self) | {
            "quantiles": {str(share): round(value, 4) for share, value in self.quantiles.items()},
            "worst": [asdict(row) for row in self.worst],
        }


def choose(scores: Sequence[Score | None], scripts: Sequence[str], settings: QualitySettings) -> Verdicts:
    """The bad tail: rows past one of two limits, at most `max_drop` of all rows, worst first.

    high_ifd      log IFD at or above log `max_ifd`
    outlier_loss  loss after the question above median + `outliers` x median absolute deviation of its script, and
                  above median + log 2

    Both are mean losses in nats per token, so that how far a row lies past its limit is the same measure for both:
    it ranks the rows, and gives the reason of a row that is past both. A script with fewer than 20 scored rows
    is compared with all rows; where half of the losses are equal there is no spread, and no outlier.

    Args:
        scores: from `score`, one a row.
        scripts: the script of each row's text, such as Latin or Telugu.
        settings: the two limits and `max_drop`.
    """
    assert len(scores) == len(scripts)
    scored = [(index, each) for index, each in enumerate(scores) if each is not None]
    ifd_limit, loss_limits = math.log(settings.max_ifd), _loss_limits(scores, scripts, settings.outliers)
    blind = sum(each.log_ifd >= ifd_limit for _, each in scored) > _MOST_UNHELPFUL * len(scored)
    ranked: list[tuple[float, float, float, int, str, int, Verdict | None]] = []
    for index, each in scored:
        loss_limit = loss_limits[scripts[index]]
        too_unhelpful = -math.inf if blind else each.log_ifd - ifd_limit
        too_unlikely = each.conditional - loss_limit
        verdict = None
        if too_unhelpful >= max(too_unlikely, 0.0):
            losses = f"loss {each.conditional:.2f} after the question, {each.alone:.2f} alone"
            verdict = Verdict(index, "high_ifd", f"IFD {each.ifd:.2f}: {losses}")
        elif too_unlikely > 0:
            losses = f"loss {each.conditional:.2f} after the question, at most {loss_limit:.2f} expected"
            verdict = Verdict(index, "outlier_loss", f"{losses} (IFD {each.ifd:.2f})")
        # The rest of the key makes the order that of the rows' contents, wherever they stand.
        severity = max(too_unhelpful, too_unlikely)
        ranked.append((-severity, -each.conditional, each.alone, each.answer_tokens, scripts[index], index, verdict))
    ranked.sort(key=lambda entry: entry[:-1])
    named = [verdict for *_, verdict in ranked if verdict and not blind]
    most = math.floor(settings.max_drop * len(scores) + 1e-9)  # 0.07 x 100 must be 7, whatever the rounding
    return Verdicts(
        dropped=tuple(named[:most]),
        limited=max(0, len(named) - most),
        blind=blind,
        worst=tuple(entry[-2] for entry in ranked[:WORST_SHOWN]),
    )


def report(rows: Sequence[Row], scores: Sequence[Score | None], verdicts: Verdicts) -> QualityReport:
    """Counts, the spread of IFD, and the worst rows for a person to read. One score a row, in the same order."""
    scored = [each for each in scores if each is not None]
    ifds = [each.ifd for each in scored]
    dropped = {verdict.index for verdict in verdicts}
    return QualityReport(
        scored=len(scored),
        not_scored=len(rows) - len(scored),
        dropped=dict(Counter(verdict.reason for verdict in verdicts).most_common()),
        limited=verdicts.limited,
        blind=verdicts.blind,
        quantiles={share: float(np.quantile(ifds, share)) for share in _QUANTILES if ifds},
        worst=tuple(
            WorstRow(rows[i]["meta"]["source"], *_shown(rows[i]), each.ifd, each.conditional, i in dropped)
            for i in verdicts.worst
            if (each := scores[i]) is not None
        ),
    )


def _loss_limits(scores: Sequence[Score | None], scripts: Sequence[str], outliers: float) -> dict[str, float]:
    """For each script the loss after the question above which a row is an outlier, in nats per token."""
    losses: defaultdict[str, list[float]] = defaultdict(list)
    for script, each in zip(scripts, scores, strict=True):
        if each is not None:
            losses[script].append(each.conditional)
    everything = _limit([loss for group in losses.values() for loss in group], outliers)
    return {
        script: _limit(group, outliers) if len(group) >= _FEWEST_OF_A_SCRIPT else everything
        for script, group in losses.items()
    }


def _limit(losses: Sequence[float], outliers: float) -> float:
    if not losses:
        return math.inf
    middle = statistics.median(losses)
    spread = statistics.median(abs(loss - middle) for loss in losses)
    return middle + max(outliers * spread, _LEAST_EXCESS) if spread else math.inf


def _shown(row: Row) -> tuple[str, str]:
    """The last question and its answer, on one line each."""
    question = prompt_of(row["messages"])[-1:]
    answer = row["messages"][len(prompt_of(row["messages"])) :][:1]
    return _line(question), _line(answer)


def _line(messages: Sequence[Message]) -> str:
    text = " ".join(m["content"] or json.dumps(m.get("tool_calls", ""), ensure_ascii=False) for m in messages)
    folded = " ".join(text.split())
    return folded if len(folded) <= _SHOWN_CHARACTERS else f"{folded[: _SHOWN_CHARACTERS - 1]}…"
