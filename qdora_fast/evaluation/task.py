"""What base and tuned model do with the held-out rows, compared: the `task` and `heldout_loss` of an evaluation.

Every question is answered by both models and judged by the same metric, so all comparisons are paired. Rows of one
group (the same prompt) are resampled together. The losses need no parsing of answers and see the smallest change; they
are weighted by tokens, as the trainer's are. They are also what the metric `likelihood` compares: no model repeats what
people write in a hundred words, so that no answer is ever right, but a better model finds theirs likelier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.config import EvaluationSettings
from qdora_fast.config.metrics import METRICS
from qdora_fast.data.clean.split import group_key
from qdora_fast.evaluation import statistics
from qdora_fast.evaluation.generation import OnAnswer, Reply, generate
from qdora_fast.evaluation.heldout import Both, OnRow, Question, mean_loss, of_both, row_losses
from qdora_fast.evaluation.metrics import Metric, find_metric
from qdora_fast.models.out_of_memory import Batches

SIDES = ("base", "tuned")


@dataclass(frozen=True)
class Answered:
    """Questions with what both models said: `replies` is a `Both` of lists of `Reply`."""

    questions: Sequence[Question]
    replies: Both


@dataclass(frozen=True)
class Read:
    """Held-out rows with the losses of both models: `losses` is a `Both` of lists of `Loss`."""

    rows: Sequence[Mapping[str, Any]]
    losses: Both


def check(questions: Sequence[Question], settings: EvaluationSettings) -> None:
    """Make sure, before anything is asked, that the metrics exist here and can judge every reference.

    Raises:
        ConfigError: a package or a function of your own that is missing.
        DataError: a reference that the metric cannot read; the row is named.
    """
    for name in (settings.metric, *settings.more_metrics):
        if not by_loss(name):
            metric = find_metric(name, pattern=settings.pattern)
            for question in questions:
                metric.score(question.reference, question.reference, question.row)


def by_loss(name: str) -> bool:
    """Whether a metric compares losses and judges no answer."""
    return name in METRICS and METRICS[name].kind == "loss"


def judging(settings: EvaluationSettings) -> str | None:
    """The first metric that judges answers: what comparisons show beside the loss."""
    return next((name for name in (settings.metric, *settings.more_metrics) if not by_loss(name)), None)


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
) -> list[Reply]:
    """What the model as it stands says to each question; for metric `choice` the likeliest of `options`, else what it
    writes.

    Args:
        model: in evaluation mode.
        settings: without `auto`, see `auto.resolve_auto`.
        on_answer: told of answers just finished, len(questions) in all.
        batches: what was found out about memory so far.
    """
    size = settings.batch_size
    if settings.metric != "choice":
        prompts = [question.tokens for question in questions]
        expected = [question.answer_tokens for question in questions]
        most = int(settings.max_new_tokens)
        return generate(model, tokenizer, prompts, most, size, stop_ids, on_answer, batches, expected)
    from qdora_fast.evaluation.choices import choose

    prompts_read = [question.prompt for question in questions]
    chosen = choose(model, tokenizer, prompts_read, options, batch_size=size, batches=batches)
    if on_answer:
        on_answer(len(questions), 0)
    return [Reply(options[number], 0, True) for number in chosen]


def judge(
    answered: Answered, settings: EvaluationSettings, read: Read | None = None
) -> tuple[dict[str, Any] | None, list[tuple[float, float]]]:
    """The `task` of an evaluation, and for each question how right base and tuned model are by the chosen metric; none
    where that is `likelihood`, which compares all rows of `read`.

    Raises:
        ConfigError: a metric that does not fit the references; the row is named.
    """
    main = _judged(settings.metric, answered, settings, read)
    if main is None:
        return None, []
    task, scores = main
    more = {name: _judged(name, answered, settings, read) for name in settings.more_metrics}
    task["more"] = {found[0]["metric"]: _without_name(found[0]) for found in more.values() if found}
    replies = answered.replies
    task["truncated"] = {side: _share(not reply.finished for reply in getattr(replies, side)) for side in SIDES}
    task["empty"] = {side: _share(not reply.text for reply in getattr(replies, side)) for side in SIDES}
    if any(reply.thought or reply.in_thought for side in SIDES for reply in getattr(replies, side)):
        task["in_thought"] = {side: _share(reply.in_thought for reply in getattr(replies, side)) for side in SIDES}
    task["answered"] = len(answered.questions)
    task["decoding"] = {"greedy": True, "max_new_tokens": settings.max_new_tokens, "padding": "left"}
    return task, scores


def measure_loss(
    model: Any,
    examples: Sequence[Mapping[str, Sequence[int]]],
    batches: Batches | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    on_row: OnRow | None = None,
) -> tuple[dict[str, Any] | None, Both]:
    """The `heldout_loss` of an evaluation, and the losses of each row of base and tuned model.

    Args:
        rows: those of the examples, for their groups; None: each is a group of its own.
        on_row: told of rows just read, twice len(examples) in all.
    """
    losses = of_both(model, lambda _: row_losses(model, examples, batches, on_row))
    if not examples:
        return None, losses
    base, tuned = mean_loss(losses.base), mean_loss(losses.tuned)
    groups = None if rows is None else _groups(rows)
    interval = statistics.bootstrap_ci(*statistics.changes(*_totals(losses), groups=groups))
    return {
        "n": len(examples),
        "base": base,
        "tuned": tuned,
        "difference": tuned - base,
        "ci95": list(interval) if interval else None,
        "perplexity": {"base": _exp(base), "tuned": _exp(tuned)},
    }, losses


def _judged(
    name: str, answered: Answered, settings: EvaluationSettings, read: Read | None
) -> tuple[dict[str, Any], list[tuple[float, float]]] | None:
    """What a metric says, and the scores of each question; None where it has nothing to say."""
    if by_loss(name):
        counted = _counted(read)
        if counted is None:
            return None
        predicted = statistics.compare_losses(*_totals(counted.losses), groups=_groups(counted.rows))
        return {"metric": name} | predicted.as_json(), []
    if not answered.questions:
        return None
    metric = find_metric(name, pattern=settings.pattern)
    scores = _scores(answered, metric)
    compare = statistics.compare_rates if metric.binary else statistics.compare_scores
    compared = compare(scores.base, scores.tuned, groups=_groups([question.row for question in answered.questions]))
    return {"metric": metric.name} | compared.as_json(), list(zip(scores.base, scores.tuned, strict=True))


def _counted(read: Read | None) -> Read | None:
    """Rows with a token to predict; None without any."""
    chosen = [i for i, loss in enumerate(read.losses.base) if loss.tokens] if read else []
    if read is None or not chosen:
        return None
    losses = Both([read.losses.base[i] for i in chosen], [read.losses.tuned[i] for i in chosen])
    return Read([read.rows[i] for i in chosen], losses)


def _totals(losses: Both) -> tuple[list[float], list[float], list[int]]:
    """Losses of base and tuned model and tokens, of each row."""
    base, tuned = ([loss.total for loss in side] for side in (losses.base, losses.tuned))
    return base, tuned, [loss.tokens for loss in losses.base]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [group_key(row) for row in rows]  # type: ignore[arg-type]


def _without_name(compared: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in compared.items() if key != "metric"}


def _scores(answered: Answered, metric: Metric) -> Both:
    def of(replies: Sequence[Any]) -> list[float]:
        pairs = zip(replies, answered.questions, strict=True)
        return [metric.score(reply.text, question.reference, question.row) for reply, question in pairs]

    return Both(of(answered.replies.base), of(answered.replies.tuned))


def _share(met: Any) -> float:
    values = list(met)
    return sum(values) / len(values) if values else 0.0


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
