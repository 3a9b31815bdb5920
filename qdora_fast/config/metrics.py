"""All metrics of `evaluation.metric`: their names, what they measure, and which references `auto` takes them for.

This is the only list. Settings are checked against it, `evaluation/metrics.py` hangs the functions that judge into it,
`evaluation/auto.py` chooses from it, and the terminal, the report, comparisons and the reference pages say what it
says. It stands in `config` because a setting's values are known before anything of an evaluation is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AUTO = "auto"

Kind = Literal["rate", "score", "loss"]
"""rate: an answer is right or wrong, and the mean is an accuracy. score: an answer gets 0 to 1. loss: no answer is
judged, the reference's tokens are predicted."""


@dataclass(frozen=True)
class MetricInfo:
    """What is known of a metric without the code that judges."""

    name: str
    kind: Kind
    measures: str
    """What it says of an answer, as the end of a sentence: "an answer is right when ..."."""
    brief: str = ""
    """The same in a few words, for lists; empty: the name says it."""
    needs: str = ""
    """A setting or a package that it does not work without."""
    auto: str = ""
    """The references for which `auto` takes it; empty: it is never chosen by itself."""
    exact: bool = False
    """An answer that is longer than its reference is wrong, so that nothing is lost where it is cut there."""

    @property
    def writes(self) -> bool:
        """Whether both models must write answers for it."""
        return self.kind != "loss" and self.name != "choice"

    @property
    def score_name(self) -> str:
        """What its mean is called."""
        return "accuracy" if self.kind == "rate" else self.name


METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("exact_match", "rate", "it is equal", exact=True),
        MetricInfo(
            "normalized_match",
            "rate",
            "it is equal apart from case, white space and outer punctuation",
            brief="case, white space and outer punctuation aside",
            auto="short answers (8 words at most), labels among them",
            exact=True,
        ),
        MetricInfo("contains", "rate", "it contains the reference"),
        MetricInfo(
            "regex",
            "rate",
            "what the group of `evaluation.pattern` finds last is equal",
            needs="`evaluation.pattern`",
            auto="any, where `evaluation.pattern` is set and matches all of them",
        ),
        MetricInfo(
            "numeric",
            "rate",
            "its last number, or what follows GSM8K's `####`, is equal",
            brief="the last number, or what follows ####",
            auto='references that are a number, or end in one behind `####`, `\\boxed{}` or "the answer is"',
        ),
        MetricInfo(
            "json_match",
            "rate",
            "its JSON is equal (tool calls)",
            brief="tool calls",
            auto="tool calls, and references that are JSON",
        ),
        MetricInfo(
            "choice",
            "rate",
            "it is the likeliest of `evaluation.choices`; nothing is generated",
            brief="the likeliest of `choices`",
            auto="any, where `evaluation.choices` is set and holds all of them",
        ),
        MetricInfo(
            "likelihood",
            "loss",
            "no answer is judged: how well the held-out references are predicted, in nats per token, and on how many "
            "rows better than by the base",
            brief="how well the references are predicted, for long answers",
            auto="long free text, mixed references, and rows of plain text",
        ),
        MetricInfo(
            "chrf",
            "score",
            "a score, no accuracy: F-measure of character n-grams (chrF by sacrebleu), for all languages",
            brief="a score, no accuracy",
            auto="stands beside `likelihood`, and decides nothing",
        ),
        MetricInfo(
            "rouge_l",
            "score",
            "a score, no accuracy: F-measure of the longest common sequence of words",
            brief="a score, no accuracy",
            needs='`pip install "qdora-fast[eval]"`',
        ),
    )
}

KNOWN_METRICS = tuple(METRICS)


def listed() -> str:
    """The names, each with its few words, for the description of the setting."""
    return ", ".join(f"{info.name} ({info.brief})" if info.brief else info.name for info in METRICS.values())
