"""One model's answers and losses by themselves: a share, a mean or a loss with its 95 % interval, nothing compared.

For models that have no base beside them (merged, quantised, served). The intervals are those of one side of a
comparison: Wilson's for shares, the bootstrap over groups of rows else. They are of no use to compare two models;
`task.judge` does that, on the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdora_fast.config import EvaluationSettings
from qdora_fast.data.clean.split import group_key
from qdora_fast.evaluation import statistics
from qdora_fast.evaluation.generation import Reply
from qdora_fast.evaluation.heldout import Loss, Question
from qdora_fast.evaluation.metrics import find_metric
from qdora_fast.evaluation.task import by_loss


def score_alone(
    questions: Sequence[Question], replies: Sequence[Reply], settings: EvaluationSettings, name: str
) -> tuple[dict[str, Any] | None, list[float]]:
    """What a metric says of one model's answers, and the score of each; None where nothing was answered.

    Args:
        settings: without `auto`.
        name: of a metric that judges answers.

    Raises:
        ConfigError, DataError: see `metrics.Metric.score`.
    """
    if not questions or by_loss(name):
        return None, []
    metric = find_metric(name, pattern=settings.pattern)
    pairs = zip(replies, questions, strict=True)
    scores = [metric.score(reply.text, question.reference, question.row) for reply, question in pairs]
    groups = [group_key(question.row) for question in questions]  # type: ignore[arg-type]
    interval: Any
    if metric.binary:
        found = statistics.compare_rates(scores, scores, groups=groups)
        value, interval = found.tuned, found.tuned_ci95
        words = f"{100 * (value or 0):.1f} % right on {_rows(len(scores))}{_spread(interval, 100, ' %')}"
    else:
        interval = _interval(scores, [1] * len(scores), groups)
        value = sum(scores) / len(scores)
        words = f"{value:.3g} on {_rows(len(scores))}{_spread(interval)}"
    cut = sum(not reply.finished for reply in replies) / len(replies)
    empty = sum(not reply.text for reply in replies) / len(replies)
    record = {"metric": metric.name, "n": len(scores), "value": value, "ci95": _listed(interval), "words": words}
    return record | {"truncated": cut, "empty": empty}, scores


def loss_alone(rows: Sequence[Mapping[str, Any]], losses: Sequence[Loss]) -> dict[str, Any] | None:
    """The mean loss of one model over the references, in nats per token; None without a token to predict."""
    kept = [number for number, loss in enumerate(losses) if loss.tokens]
    if not kept:
        return None
    totals, tokens = [losses[i].total for i in kept], [losses[i].tokens for i in kept]
    interval = _interval(totals, tokens, [group_key(rows[i]) for i in kept])  # type: ignore[arg-type]
    value = sum(totals) / sum(tokens)
    words = f"{value:.4f} nats per token on {_rows(len(kept))}{_spread(interval)}"
    return {"n": len(kept), "value": value, "ci95": _listed(interval), "words": words}


def _interval(sums: Sequence[float], sizes: Sequence[int], groups: Sequence[str]) -> statistics.Interval | None:
    nothing = [0.0] * len(sums)
    return statistics.bootstrap_ci(*statistics.changes(nothing, sums, sizes, groups=groups))


def _listed(interval: statistics.Interval | None) -> list[float] | None:
    return list(interval) if interval else None


def _spread(interval: statistics.Interval | None, times: float = 1, unit: str = "") -> str:
    if interval is None:
        return ""
    low, high = (f"{round(times * each, 1):g}" if times > 1 else f"{each:.4g}" for each in interval)
    return f" (95 % CI {low} to {high}{unit})"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
