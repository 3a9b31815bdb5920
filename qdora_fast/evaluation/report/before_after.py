"""Every figure of an evaluation as one line of a table: base, tuned, the difference and how sure it is.

The run's page and its model card show the same table, so it is made here once, in words: shares as per cent, their
differences in points, losses as numbers. A figure that was not measured is a dash. Whether a difference means
anything was decided by the evaluation; a line only says on which side of zero its interval lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from qdora_fast.config.metrics import Kind
from qdora_fast.evaluation.report.run_parts import part
from qdora_fast.system.pages import NO_BREAK, NO_NUMBER, is_number

MINUS = "−"


class Line(NamedTuple):
    """One figure. All but `side` and `main` are texts for people."""

    name: str
    n: str
    base: str
    tuned: str
    change: str
    interval: str
    """95 %, of the difference."""
    p: str
    flips: str
    """How many answers became right and how many wrong; of likelihood, how many references likelier and less likely."""
    side: str
    """gain or lost where the whole interval lies there, else empty."""
    main: bool
    """The figure that the verdict is by."""


def before_after(evaluation: Mapping[str, Any]) -> Iterator[Line]:
    """The lines of evaluation.json: the chosen metric, other metrics, losses, benchmarks, whole answers."""
    task, loss, mmlu = (part(evaluation, key) for key in ("task", "heldout_loss", "mmlu"))
    if task:
        yield _line(task.get("metric"), task, kind_of(task), main=True)
    for name, other in part(task, "more").items():
        yield _line(name, other, kind_of(other))
    if loss and kind_of(task) != "loss":  # else it is the first line
        yield _line("held-out loss", loss, less_is_better=True)
    if loss:
        yield _line("held-out perplexity", {"n": loss.get("n"), **part(loss, "perplexity")}, less_is_better=True)
    if mmlu:
        yield _line(f"MMLU, {mmlu.get('shots')}-shot", _as_shares(mmlu), "rate")
    for name, other in (part(mmlu, "tasks") | part(evaluation, "benchmarks")).items():
        figures = {**other, "difference": other.get("delta")} if isinstance(other, dict) else {}
        yield _line(f"{name} ({figures.get('metric')})", figures)
    answered = task.get("answered", task.get("n"))
    shares = {
        "truncated": "answers cut at the limit",
        "in_thought": "answers that ended within their reasoning",
        "empty": "empty answers",
    }
    for key, words in shares.items():
        if part(task, key) and answered:
            yield _line(words, {"n": answered, **part(task, key)}, "rate", less_is_better=True)


def kind_of(compared: Any) -> Kind:
    """Of what kind a metric is, by what was compared: answers right or wrong, losses of the references, or scores."""
    keys = compared if isinstance(compared, Mapping) else {}
    return "rate" if "gained" in keys else "loss" if "likelier" in keys else "score"


def percent(value: object) -> str:
    """A share: 12.3 %; a dash where there is no number."""
    return f"{100 * value:.1f}{NO_BREAK}%" if _is_share(value) else NO_NUMBER


def between(bounds: object) -> str:
    """An interval of shares: 12.3 to 45.6 %; empty where there is none."""
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1])}" if _is_interval(bounds) else ""


def points(value: object) -> str:
    """A difference of shares, in points with its sign."""
    return _signed(100 * value, 1) if _is_share(value) else NO_NUMBER


def _line(name: Any, figures: Any, kind: Kind = "score", *, main: bool = False, less_is_better: bool = False) -> Line:
    figures = figures if isinstance(figures, dict) else {}
    base, tuned, change, bounds = (figures.get(key) for key in ("base", "tuned", "difference", "ci95"))
    if change is None and is_number(base) and is_number(tuned):
        change = tuned - base
    shares, loss = kind == "rate", kind == "loss"
    plain, signed = (percent, points) if shares else (_decimal, _signed_decimal)
    known = _is_interval(bounds)
    interval = f"{signed(bounds[0])} to {signed(bounds[1])}" if known else ""
    p = figures.get("p")
    flips = [figures.get(key) for key in (("likelier", "less_likely") if loss else ("gained", "lost"))]
    return Line(
        name=f"{name}, nats per token" if loss else str(name),
        n=f"{figures['n']:,}" if is_number(figures.get("n")) else "",
        base=plain(base),
        tuned=plain(tuned),
        change=signed(change) + (f"{NO_BREAK}points" if shares and is_number(change) else ""),
        interval=interval,
        p=("< 0.001" if p < 0.001 else f"{p:.3f}") if is_number(p) else "",
        flips=f"+{flips[0]:,} {MINUS}{flips[1]:,}" if all(map(is_number, flips)) else "",
        side=_side(bounds, less_is_better or loss) if known else "",
        main=main,
    )


def _side(bounds: Any, less_is_better: bool) -> str:
    low, high = sorted(-each if less_is_better else each for each in bounds)
    return "gain" if low > 0 else "lost" if high < 0 else ""


def _as_shares(mmlu: Mapping[str, Any]) -> dict[str, Any]:
    """MMLU's difference comes in points."""
    change, bounds = mmlu.get("delta_points"), mmlu.get("ci95_points")
    shares = [each / 100 for each in bounds] if isinstance(bounds, list) and all(map(is_number, bounds)) else None
    return {**mmlu, "difference": change / 100 if is_number(change) else None, "ci95": shares}


def _is_share(value: object) -> TypeGuard[float]:
    return is_number(value) and abs(value) < 1e6


def _is_interval(bounds: object) -> TypeGuard[Sequence[float]]:
    return isinstance(bounds, list | tuple) and len(bounds) == 2 and all(_is_share(each) for each in bounds)


def _decimal(value: object) -> str:
    return f"{value:{_form(value, 4)}}" if is_number(value) else NO_NUMBER


def _signed_decimal(value: object) -> str:
    return f"{value:+{_form(value, 3)}}".replace("-", MINUS) if is_number(value) else NO_NUMBER


def _form(value: float, digits: int) -> str:
    """How to write a number: large ones whole, unless they are beyond all tables."""
    return ",.0f" if 1000 <= abs(value) < 1e9 else f".{digits}g"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return text[1:] if not text.strip(f"+{MINUS}0.") else text
