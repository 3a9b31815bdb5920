"""The page of a run: one HTML file on which a team lead sees whether the model is better, and what speaks against it.

The verdict stands on top, below it the points that decide, each with what was found or that it was not looked at;
then everything that they rest on. The page has no script, asks nothing of the network, and links only to files of the
run itself. A run that stopped early has a page as well: what is missing is said, never guessed. Nothing is measured
here; figures are those of the run's files (`run_parts.py`), drawn with `charts.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.config.metrics import Kind
from qdora_fast.data.clean.rejects import REASONS
from qdora_fast.data.report.pages import message_turns
from qdora_fast.evaluation.report.before_after import before_after, between, kind_of, percent
from qdora_fast.evaluation.report.completions import TEMPLATES
from qdora_fast.evaluation.report.run_parts import RunParts, base_name, part
from qdora_fast.evaluation.statistics import ROUNDING
from qdora_fast.system.charts import Scale, Series, interval, line_chart
from qdora_fast.system.notebook import card
from qdora_fast.system.pages import is_number, render
from qdora_fast.training.curves import loss_curves

SHOWN_COMPLETIONS, SHOWN_GENERAL = 6, 2
SHOWN_ROWS = 5
CUT_SHARE = 0.05
"""From this share of answers on that ran into the limit of tokens, the page warns: their accuracy means little."""
OVERFITTED = 1.02
"""Ratio of the last held-out loss to the best one from which on the page warns."""
STATES = {"good": "✓", "warn": "!", "bad": "✗", "open": "○"}
VERDICTS = {"better": "good", "no evidence": "warn", "worse": "bad"}
COMPARED: dict[Kind, str] = {
    "rate": "is {} its base",
    "score": "is {} its base",
    "loss": "predicts the held-out references {} its base",
}
FALLEN: dict[Kind, str] = {
    "rate": "Right before, wrong now",
    "score": "Scored less than before",
    "loss": "References less likely than before",
}
"""Of the rows that got worse, by the kind of the metric."""


@dataclass(frozen=True)
class Live:
    """How a run stands that may still go on."""

    words: str
    refresh: int | None
    """Seconds after which a browser asks for the page again; None: it does not change any more."""


def run_page(parts: RunParts, live: Live | None = None) -> str:
    """A run's report.html, made of whatever lies in its folder. Never fails for what is missing.

    Args:
        live: for a page that is served and not kept, see `recipes/watch.py`.
    """
    task = part(parts.evaluation, "task")
    state, text = _verdict(task)
    return render(
        "run.html.j2",
        TEMPLATES,
        run=parts,
        live=live,
        base=base_name(parts),
        task=task,
        state=state,
        verdict=text,
        sides=_sides(task),
        checks=list(_checks(parts)),
        symbols=STATES,
        lines=list(before_after(parts.evaluation)),
        charts=list(_charts(parts.metrics)),
        training=_training(parts),
        completions=[_completion(each) for each in _first_completions(parts.completions)],
        worst=_worst(parts.answers),
        fallen=_fallen(parts.answers, kind_of(task)),
        changed=parts.settings.changed if parts.settings else [],
        review=parts.review(),
        data_review=parts.data_review(),
        reasons=REASONS | part(parts.data, "reasons"),
    )


def run_card(parts: RunParts, *, file: object = "") -> str:
    """The same in short, for a notebook: the verdict, what else decides, the figures and the curve of the loss."""
    charts = [chart for chart in _charts(parts.metrics) if chart["name"] == "Loss"]
    notes = [f"{STATES[check['state']]} {check['name']}: {check['words']}" for check in _checks(parts)]
    return _card(f"Run {parts.name}", parts.evaluation, charts=charts, notes=notes, file=file)


def evaluation_card(evaluation: Mapping[str, Any]) -> str:
    """An evaluation in short, for a notebook."""
    return _card(f"Evaluation of {evaluation.get('run')}", evaluation, notes=[verdict_of(evaluation)])


def verdict_of(evaluation: Mapping[str, Any]) -> str:
    """The verdict and what it is by, in a sentence."""
    task = part(evaluation, "task")
    return str(task.get("words") or _verdict(task)[1])


def _card(title: str, evaluation: Mapping[str, Any], **more: Any) -> str:
    state, text = _verdict(part(evaluation, "task"))
    columns = ("", "rows", "base", "tuned", "difference", "95 % interval")
    lines = [
        (line.name, line.n, line.base, line.tuned, line.change, line.interval) for line in before_after(evaluation)
    ]
    return card(title, text, state=state, columns=columns, table=lines, **more)


def _verdict(task: Mapping[str, Any]) -> tuple[str, str]:
    """Its state, and the headline."""
    verdict = str(task.get("verdict"))
    if verdict not in VERDICTS:
        return "open", "Not evaluated"
    how = COMPARED[kind_of(task)].format("worse than" if verdict == "worse" else "better than")
    text = f"No evidence that the tuned model {how}" if verdict == "no evidence" else f"The tuned model {how}"
    return VERDICTS[verdict], text


def _sides(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Base and tuned with their intervals, for the drawing at the top; losses have no common scale to draw on."""
    found: list[dict[str, Any]] = []
    if kind_of(task) == "loss":
        return found
    for name, side in (("Base", "base"), ("Tuned", "tuned")):
        bounds = task.get(f"{side}_ci95")
        drawn = interval(task.get(side), bounds, Scale(0.0, 1.0))
        if drawn:
            found.append({"name": name, "kind": side, "said": percent(task[side]), "range": between(bounds), **drawn})
    return found


def _checks(parts: RunParts) -> Iterator[dict[str, str]]:
    """The points that decide besides the verdict, in the order in which one would ask."""
    task = part(parts.evaluation, "task")
    yield _forgetting(part(parts.evaluation, "mmlu"))
    yield _separation(part(parts.evaluation, "dataset"))
    cut = part(task, "truncated").get("tuned")
    if is_number(cut) and task.get("answered") != 0:
        yield _whole_answers(cut, decides=kind_of(task) != "loss")
    yield _held_out_course(parts.metrics)
    skipped = sum(line.get("event") == "skipped" for line in parts.metrics)
    if skipped:
        words = f"{skipped} changed nothing, for a loss or a gradient was not finite; metrics.jsonl names their rows"
        yield _check("warn", "Steps skipped", words)
    yield _export(parts.exports)
    yield _reviewed(parts.review())
    data_review = parts.data_review()
    words = str(data_review.get("sentence") or data_review.get("reviewer")) if data_review else "review: pending"
    yield _check("good" if data_review else "open", "Rows read by a person", words)


def _check(state: str, name: str, words: str) -> dict[str, str]:
    return {"state": state, "name": name, "words": words}


def _whole_answers(cut: float, *, decides: bool) -> dict[str, str]:
    """decides: whether the verdict is by these answers."""
    words = f"{100 * cut:.0f} % of the tuned model's answers were cut at the limit of tokens" if cut else "none was cut"
    if cut >= CUT_SHARE and not decides:
        words += "; the verdict does not depend on them"
    return _check("warn" if cut >= CUT_SHARE and decides else "good", "Whole answers", words)


def _forgetting(mmlu: Mapping[str, Any]) -> dict[str, str]:
    if not mmlu:
        return _check("open", "What it forgot", "MMLU was not measured")
    state = {"ok": "good", "warn": "warn", "fail": "bad"}.get(str(mmlu.get("status")), "open")
    return _check(state, "What it forgot", str(mmlu.get("words") or f"MMLU: {mmlu.get('status')}"))


def _separation(dataset: Mapping[str, Any]) -> dict[str, str]:
    overlap = dataset.get("overlap")
    if not is_number(overlap):
        return _check("open", "Held-out rows unseen", "not checked")
    words = f"{overlap:,} of the held-out rows were trained on" if overlap else "no held-out row was trained on"
    return _check("bad" if overlap else "good", "Held-out rows unseen", words)


def _held_out_course(metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Whether training went on after the held-out loss was at its best."""
    losses = [line["eval_loss"] for line in metrics if is_number(line.get("eval_loss"))]
    if not losses:
        return _check("open", "Training", "no held-out loss was logged" if metrics else "nothing was logged")
    best, last = min(losses), losses[-1]
    if last > OVERFITTED * best:
        words = f"the held-out loss rose from {best:.3g} to {last:.3g} before the end: fewer epochs may be better"
        return _check("warn", "Training", words)
    return _check("good", "Training", f"the held-out loss fell to {last:.3g}, its best or close to it")


def _export(exports: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    failed = [each for each in exports if each["unproven"] or part(each, "proof").get("passed") is False]
    proven = [each for each in exports if part(each, "proof").get("passed") is True and each not in failed]
    if failed:
        return _check("bad", "Export", f"{failed[0]['folder']} is not the model that was trained; do not deploy it")
    if proven:
        names = ", ".join(str(each["folder"]) for each in proven)
        return _check("good", "Export", f"{names}: proven to be the model that was trained")
    return _check("open", "Export", "no merged model yet")


def _reviewed(review: Mapping[str, Any] | None) -> dict[str, str]:
    if review is None:
        return _check("open", "Answers read by a person", "review: pending")
    state = {"pass": "good", "needs-work": "warn", "fail": "bad"}.get(str(review.get("verdict")), "open")
    note = " ".join(str(review.get("note") or "").split())
    text = review.get("sentence") or f"{review.get('reviewer')} says {review.get('verdict')}" + (
        f": {note}" * bool(note)
    )
    return _check(state, "Answers read by a person", str(text))


def _charts(metrics: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The curves of the training; those without a point are left out."""
    loss, held_out = _points(metrics, "loss"), _points(metrics, "eval_loss")
    speed = _points(metrics, "tokens_per_second")
    charts = (
        ("Loss", "nats a token", line_chart(loss_curves(loss, held_out), logarithmic=True), "wide"),
        ("Learning rate", "", _chart(_points(metrics, "learning_rate")), ""),
        ("Tokens a second", "", _chart(speed), ""),
        ("Memory", "GiB", _chart(_points(metrics, "memory_gib")), ""),
    )
    for name, unit, chart, kind in charts:
        if chart:
            yield {"name": name, "unit": unit, "kind": kind, **chart}


def _chart(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return line_chart([Series("", "train", points)], from_zero=True)


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in metrics if is_number(line.get(key))]


def _training(parts: RunParts) -> dict[str, Any]:
    """Figures of the training as a whole; None where they were not logged."""

    def values(key: str) -> list[float]:
        return [line[key] for line in parts.metrics if is_number(line.get(key))]

    losses, held_out, speeds = values("loss"), values("eval_loss"), values("tokens_per_second")
    return {
        "steps": max(values("step"), default=None),
        "epochs": max(values("epoch"), default=None),
        "tokens": max(values("num_tokens"), default=None),
        "time": _time(max(values("seconds"), default=None)),
        "loss": losses[-1] if losses else None,
        "held_out": held_out[-1] if held_out else None,
        "best": min(held_out, default=None),
        "speed": statistics.median(speeds) if speeds else None,
        "memory": max(values("memory_gib"), default=None),
    }


def _time(seconds: float | None) -> tuple[float | None, str]:
    """A duration in the unit that suits it."""
    if seconds is None or seconds < 120:
        return seconds, "seconds"
    return (seconds / 60, "minutes") if seconds < 7200 else (seconds / 3600, "hours")


def _first_completions(completions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first held-out ones, and the first general ones after them."""
    general = [each for each in completions if each.get("general")]
    own = [each for each in completions if not each.get("general")]
    first = own[: SHOWN_COMPLETIONS - min(len(general), SHOWN_GENERAL)]
    return first + general[: SHOWN_COMPLETIONS - len(first)]


def _completion(completion: Mapping[str, Any]) -> dict[str, Any]:
    """A completion with its conversation as turns; only what was shown, where the conversation does not read."""
    try:
        turns = list(message_turns(completion.get("prompt") or []))
    except (KeyError, TypeError, AttributeError):
        turns = []
    return {**completion, "turns": turns or [{"label": "User", "text": str(completion.get("shown") or "")}]}


def _worst(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that the tuned model finds hardest to predict."""
    known = [each for each in answers if is_number(each.get("tuned_loss"))]
    return sorted(known, key=lambda each: -each["tuned_loss"])[:SHOWN_ROWS]


def _fallen(answers: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any]:
    """Rows that the tuned model does worse than the base, those that lost most first."""
    key = "loss" if kind == "loss" else "right"
    sign = -1 if kind == "loss" else 1
    judged = [each for each in answers if is_number(each.get(f"base_{key}")) and is_number(each.get(f"tuned_{key}"))]
    gains = [(sign * (each[f"tuned_{key}"] - each[f"base_{key}"]), each) for each in judged]
    least = ROUNDING if kind == "loss" else 0
    worse = sorted((gain for gain in gains if gain[0] < -least), key=lambda gain: gain[0])
    first = [each for _, each in worse[:SHOWN_ROWS]]
    return {"name": FALLEN[kind], "judged": len(judged), "count": len(worse), "first": first}
