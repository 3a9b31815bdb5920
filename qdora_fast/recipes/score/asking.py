"""How a file is asked: a model with its base, a model alone, or a server; by one metric for all of its rows.

The measures are those of a run's evaluation (`evaluation/task.py`) where a base stands beside the model, and
`evaluation/alone.py` where none does. A server tells no losses, so that what only losses can judge is judged by chrF.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qdora_fast.config import Config, EvaluationSettings
from qdora_fast.config.metrics import AUTO
from qdora_fast.data.read.messages import ROW_SHAPE, prompt_of
from qdora_fast.data.read.questions import Question as Asked
from qdora_fast.data.tokenize.modes import answer_of
from qdora_fast.evaluation.alone import loss_alone, score_alone
from qdora_fast.evaluation.auto import BESIDE, Chosen, resolve_auto
from qdora_fast.evaluation.generation import Reply
from qdora_fast.evaluation.heldout import Question, choose_rows, of_both, row_losses
from qdora_fast.evaluation.task import Answered, Read, ask, by_loss, check, judge, measure_loss
from qdora_fast.inference.endpoint import Endpoint
from qdora_fast.inference.many import LENGTH, Answerer, ManyAnswers
from qdora_fast.models.out_of_memory import Batches, make_room
from qdora_fast.recipes import messages
from qdora_fast.recipes.evaluate import questions_of
from qdora_fast.recipes.predict.opened import Opened
from qdora_fast.recipes.predict.rows import rows_of
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError

Rows = Sequence[Mapping[str, Any]]
Examples = Sequence[Mapping[str, Sequence[int]]]
Scored = tuple[dict[str, Any], list[dict[str, Any]]]
"""`task` and `loss` of a group of rows, and a line for each question."""


@dataclass(frozen=True)
class Asking:
    """One way to ask and to judge."""

    chosen: Chosen
    questions: Mapping[str, Question]
    """By the source of their row."""
    options: Sequence[str] = ()
    """What is chosen from, for metric `choice`."""

    @property
    def settings(self) -> EvaluationSettings:
        """Without `auto`."""
        return self.chosen.settings

    def of_rows(self, rows: Rows) -> list[Question]:
        """The questions of these rows."""
        sources = [row["meta"]["source"] for row in rows]
        return [self.questions[source] for source in sources if source in self.questions]

    def tell(self) -> None:
        """By what answers are judged, and why."""
        beside = f"; {', '.join(self.settings.more_metrics)} beside it" if self.settings.more_metrics else ""
        why = f": {self.chosen.why}" if self.chosen.why else ""
        tokens = f" ({self.chosen.tokens_why})" if self.chosen.tokens_why else ""
        console.line("metric", f"{self.settings.metric}{why}{beside}")
        console.line("answers", f"greedy, {self.chosen.new_tokens:,} tokens at most{tokens}")


def choose_asking(opened: Opened, config: Config, rows: Rows) -> Asking:
    """Decide what is `auto`, once it is sure that the metrics can judge the answers of these rows.

    Raises:
        ConfigError, DataError: see `task.check`; or a metric that a server cannot be judged by.
    """
    questions = _questions(opened, config, rows)
    chosen = resolve_auto(config.evaluation, questions)
    if opened.source is None:
        chosen = _for_server(chosen, asked=config.evaluation.metric)
    check(questions, chosen.settings)
    options: Sequence[str] = ()
    if chosen.settings.metric == "choice":
        from qdora_fast.evaluation.choices import options_of

        trained = opened.run.read_rows("data/train.jsonl", ROW_SHAPE) if opened.run else []
        options = config.evaluation.choices or options_of(trained or rows)
    return Asking(chosen, {each.row["meta"]["source"]: each for each in questions}, options)


def ask_group(answerer: Answerer, asking: Asking, rows: Rows, examples: Examples) -> Scored:
    """Ask a group of rows and judge the answers.

    Raises:
        OutOfMemory: not even one row at a time fits.
        QdoraError: a server that no longer answers.
    """
    questions = asking.of_rows(rows)
    chosen = choose_rows([each.row for each in questions], asking.chosen.written)
    asked = [questions[number] for number in chosen]
    if isinstance(answerer, Endpoint):
        return _of_server(answerer, asking, asked)
    assert isinstance(answerer, ManyAnswers)
    model, source = answerer.chat_model.model, answerer.chat_model.source
    make_room(model)
    batches = Batches(model, on_note=console.note)

    def replies(side: str) -> list[Reply]:
        with messages.answering(len(asked), side) as on_answer:
            how = (model, source.vocabulary.tokenizer, asked, asking.settings, source.vocabulary.stop_ids)
            return ask(*how, options=asking.options, on_answer=on_answer, batches=batches)

    if source.trained is not None:
        loss, losses = measure_loss(model, examples, batches, rows=rows)
        answered = Answered(asked, of_both(model, replies))
        task, right = judge(answered, asking.settings, Read(rows, losses))
        if loss:
            words = f"base {loss['base']:.4f}, tuned {loss['tuned']:.4f} nats per token"
            spread = ", 95 % CI {:+.4f} to {:+.4f}".format(*loss["ci95"]) if loss["ci95"] else ""
            loss["words"] = f"{words} (difference {loss['difference']:+.4f}{spread})"
        return {"task": task, "loss": loss}, _lines_of_both(answered, right)
    of_rows = row_losses(model, examples, batches)
    return _alone(asking, asked, replies("model") if asked else [], loss_alone(rows, of_rows))


def _of_server(server: Endpoint, asking: Asking, questions: Sequence[Question]) -> Scored:
    """What a server says to the questions, judged."""
    server = replace(server, sampling=replace(server.sampling, max_new_tokens=asking.chosen.new_tokens))
    sent = [
        Asked(each.row["meta"]["source"], prompt_of(each.row["messages"]), each.row.get("tools")) for each in questions
    ]
    with messages.answering(len(sent), server.model) as on_answer:
        said = server.answers(sent, 0, lambda count: on_answer(count, 0))
    refused = [each for each in said if each.problem]
    if refused:
        console.line("warning", f"{rows_of(len(refused))} not answered, which counts as wrong: {refused[0].problem}")
    replies = [Reply(each.text or "", each.tokens or 0, each.stopped_by != LENGTH, each.reasoning) for each in said]
    return _alone(asking, questions, replies, None)


def _alone(
    asking: Asking, questions: Sequence[Question], replies: Sequence[Reply], loss: dict[str, Any] | None
) -> Scored:
    settings = asking.settings
    names = [name for name in (settings.metric, *settings.more_metrics) if not by_loss(name)]
    judged = [score_alone(questions, replies, settings, name) for name in names]
    told = [task for task, _ in judged if task]
    task = told[0] | {"more": {each["metric"]: each for each in told[1:]}} if told else None
    scores = judged[0][1] if judged else []
    lines = [
        {**_line(question), "answer": reply.shown, "score": scores[number] if scores else None}
        for number, (question, reply) in enumerate(zip(questions, replies, strict=True))
    ]
    return {"task": task, "loss": loss}, lines


def _lines_of_both(answered: Answered, right: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    lines = []
    both = zip(answered.questions, answered.replies.base, answered.replies.tuned, strict=True)
    for number, (question, base, tuned) in enumerate(both):
        scores = right[number] if right else (None, None)
        said = {"base": base.shown, "tuned": tuned.shown, "base_score": scores[0], "tuned_score": scores[1]}
        lines.append({**_line(question), **said})
    return lines


def _line(question: Question) -> dict[str, Any]:
    meta = question.row["meta"]
    return {
        "place": meta["source"],
        "question": question.shown,
        "reference": question.reference,
        "hash": meta["hash"],
    }


def _questions(opened: Opened, config: Config, rows: Rows) -> list[Question]:
    """The questions of rows with an answer; rows of plain text ask nothing."""
    if opened.source is None:
        return [_bare(row) for row in rows if len(row["messages"]) > 1]
    vocabulary, length = opened.source.vocabulary, opened.source.max_length
    return questions_of(rows, vocabulary.tokenizer, config, max_length=length, noun="rows")


def _bare(row: Mapping[str, Any]) -> Question:
    """A question that a server renders; how many tokens its reference has is not known, and estimated from above."""
    *before, last = row["messages"]
    calls = [call["function"] for call in last.get("tool_calls") or ()]
    reference = answer_of(last, None) if last["content"].strip() else json.dumps(calls, ensure_ascii=False)
    users = [message["content"] for message in before if message["role"] == "user"]
    shown = str(users[-1] if users else before[-1]["content"])
    return Question("", shown, reference.strip(), row, (), len(reference.encode()) // 2 + 1)


def _for_server(chosen: Chosen, *, asked: str) -> Chosen:
    """The same without what needs the likelihood of tokens."""
    settings = chosen.settings
    needs = [name for name in (settings.metric, *settings.more_metrics) if by_loss(name) or name == "choice"]
    if not needs:
        return chosen
    if asked != AUTO or settings.metric == "choice":
        raise ConfigError(
            f"evaluation.metric: {needs[0]} needs the likelihood of tokens, which a server does not tell; choose "
            f"another (--set evaluation.metric={BESIDE}), or name the model's folder"
        )
    more = [name for name in settings.more_metrics if name not in (*needs, BESIDE)]
    why = f"{chosen.why}; likelihood, which would judge them, needs more than a server tells"
    return replace(chosen, settings=settings.model_copy(update={"metric": BESIDE, "more_metrics": more}), why=why)
