"""Accuracy and loss on the held-out rows, base against tuned, as the `task` and `heldout_loss` of an evaluation.

Every question is answered by both models and judged by the same metric, so all comparisons are paired. Questions of
one group (the same prompt) are resampled together. The losses need no parsing of answers and see the smallest
change; they are weighted by tokens, as the trainer's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.config import EvaluationSettings
from qdora_fast.data.clean.split import group_key
from qdora_fast.evaluation import statistics
from qdora_fast.evaluation.heldout import (
    Both,
    OnAnswer,
    Question,
    Reply,
    generate,
    mean_loss,
    of_both,
    row_losses,
)
from qdora_fast.evaluation.metrics import Metric, find_metric
from qdora_fast.models.out_of_memory import Batches

SIDES = ("base", "tuned")


@dataclass(frozen=True)
class Answered:
    """All questions with what both models said: `replies` is a `Both` of lists of `Reply`."""

    questions: Sequence[Question]
    replies: Both


def check(questions: Sequence[Question], settings: EvaluationSettings) -> None:
    """Make sure, before anything is asked, that the metrics exist here and can judge every reference.

    Raises:
        ConfigError: a package or a function of your own that is missing.
        DataError: a reference that the metric cannot read; the row is named.
    """
    for name in (settings.metric, *settings.more_metrics):
        metric = find_metric(name, pattern=settings.pattern)
        for question in questions:
            metric.score(question.reference, question.reference, question.row)


def ask(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: EvaluationSettings,
    stop_ids: frozenset[int],
    *,
    options: Sequence[str] = (),
    on_answer: OnAnswer | None = None,
    batches: Batches | None = None,
) -> Answered:
    """Have base and tuned model answer; for metric `choice` by the likeliest of `options`, else by writing.

    Args:
        model: a PEFT model in evaluation mode.
        on_answer: told the number of answers just finished, twice len(questions) in all.
        batches: what was found out about memory so far.
    """

    def measure() -> list[Reply]:
        how = (model, tokenizer, questions, settings, stop_ids)
        return answers(*how, options=options, on_answer=on_answer, batches=batches)

    return Answered(questions, of_both(model, measure))


def answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: EvaluationSettings,
    stop_ids: frozenset[int],
    *,
    options: Sequence[str] = (),
    on_answer: OnAnswer | None = None,
    batches: Batches | None = None,
) -> list[Reply]:
    """What the model as it stands says to each question; arguments as those of `ask`."""
    prompts = [question.prompt for question in questions]
    if settings.metric != "choice":
        most = settings.max_new_tokens, settings.batch_size
        return generate(model, tokenizer, prompts, *most, stop_ids, on_answer, batches)
    from qdora_fast.evaluation.choices import choose

    chosen = choose(model, tokenizer, prompts, options, batch_size=settings.batch_size, batches=batches)
    if on_answer:
        on_answer(len(prompts))
    return [Reply(options[number], 0, True) for number in chosen]


def judge(answered: Answered, settings: EvaluationSettings) -> tuple[dict[str, Any] | None, list[tuple[float, float]]]:
    """The `task` of an evaluation, and for each question how right base and tuned model are by the chosen metric.

    Raises:
        ConfigError: a metric that does not fit the references; the row is named.
    """
    if not answered.questions:
        return None, []
    groups = [group_key(question.row) for question in answered.questions]  # type: ignore[arg-type]
    metric = find_metric(settings.metric, pattern=settings.pattern)
    scores = _scores(answered, metric)
    task = {"metric": metric.name} | _compared(metric, scores, groups)
    task["more"] = {
        other.name: _compared(other, _scores(answered, other), groups)
        for name in settings.more_metrics
        for other in [find_metric(name, pattern=settings.pattern)]
    }
    replies = answered.replies
    task["truncated"] = {side: _share(not reply.finished for reply in getattr(replies, side)) for side in SIDES}
    task["empty"] = {side: _share(not reply.text for reply in getattr(replies, side)) for side in SIDES}
    task["decoding"] = {"greedy": True, "max_new_tokens": settings.max_new_tokens, "padding": "left"}
    return task, list(zip(scores.base, scores.tuned, strict=True))


def measure_loss(
    model: Any, examples: Sequence[Mapping[str, Sequence[int]]], batches: Batches | None = None
) -> tuple[dict[str, Any] | None, Both]:
    """The `heldout_loss` of an evaluation, and the losses of each row of base and tuned model."""
    losses = of_both(model, lambda: row_losses(model, examples, batches))
    if not examples:
        return None, losses
    base, tuned = mean_loss(losses.base), mean_loss(losses.tuned)
    changes = [after.total - before.total for before, after in zip(losses.base, losses.tuned, strict=True)]
    interval = statistics.bootstrap_ci(changes, [loss.tokens for loss in losses.base])
    return {
        "n": len(examples),
        "base": base,
        "tuned": tuned,
        "difference": tuned - base,
        "ci95": list(interval) if interval else None,
        "perplexity": {"base": _exp(base), "tuned": _exp(tuned)},
    }, losses


def _scores(answered: Answered, metric: Metric) -> Both:
    def of(replies: Sequence[Any]) -> list[float]:
        pairs = zip(replies, answered.questions, strict=True)
        return [metric.score(reply.text, question.reference, question.row) for reply, question in pairs]

    return Both(of(answered.replies.base), of(answered.replies.tuned))


def _compared(metric: Metric, scores: Both, groups: Sequence[str]) -> dict[str, Any]:
    compare = statistics.compare_rates if metric.binary else statistics.compare_scores
    return dict(compare(scores.base, scores.tuned, groups=groups).as_json())


def _share(met: Any) -> float:
    values = list(met)
    return sum(values) / len(values) if values else 0.0


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
