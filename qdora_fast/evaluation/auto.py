"""What `auto` becomes: the metric that suits the held-out references, and how long an answer may be.

Each reference is of one kind, by the first of these that holds:

    json    it is a tool call, or nothing but JSON
    number  it is a number, or ends in one that is marked as its result: behind ####, in \\boxed{}, "the answer is"
    short   it has at most 8 words
    long    everything else

A metric is taken where at least 90 % of the references are of the kind it is for and it can judge all of them:
json_match, numeric, then normalized_match (numbers are short, too). All else, mixed sets among it, goes to likelihood,
which can judge any row. On short labels normalized_match is preferred to choice: it judges what the model will say, and
a tuned model that knows the label and writes an essay around it has not learned its task. `evaluation.choices` or
`.pattern`, where they are given and suit the references, say that the user wants choice or regex.

Eight words: of the real sets that this was tried on, answers that people compare word by word (labels, names, facts)
have 5 words or fewer, and of free text (Alpaca, ShareGPT, wwdc25, Glaive) at most a third is as short as that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

from qdora_fast.config import EvaluationSettings
from qdora_fast.config.evaluation import MOST_TOKENS
from qdora_fast.config.metrics import AUTO, METRICS
from qdora_fast.evaluation.heldout import Question
from qdora_fast.evaluation.json_answers import calls_of, is_json
from qdora_fast.evaluation.metrics import find_metric, normalized, number_in, words_in
from qdora_fast.system.errors import DataError

MOST_WORDS = 8
SHARE = 0.9
"""Of the references that must be of one kind."""
FEW_LABELS = 20
"""Different answers up to which they are called a closed set, if each is seen three times on average."""
TIMES_LONGEST = 1.5
SHORTEST, LEAST = 32, 128
"""Tokens of an answer, at least: where a longer one is wrong anyway, and where it is not."""
WRITTEN = 50
"""Held-out rows that are answered in writing where the verdict does not depend on it."""
BESIDE = "chrf"
"""Shown beside likelihood."""

_RESULT = r"[-+]?\s*(?:\p{Sc}\s?)?[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?\s?%?(?![\d.,]*\d)"
_MARKED = regex.compile(
    rf"(?:####[\s*]*{_RESULT}[^\n]{{0,30}}|\\boxed\{{\s*{_RESULT}\s*\}}[\s$.\\)\]*]*"
    rf"|(?i:answer(?:\s+is)?)\s*[:=]?[\s$*]*{_RESULT}[\s$.*]*)\Z"
)
_NUMBER = regex.compile(rf"\W{{0,3}}{_RESULT}(?:\s?\p{{L}}{{1,12}}\.?)?\W{{0,2}}")
_KINDS = {"json": "JSON", "number": "numbers", "short": "short answers", "long": "long answers"}


@dataclass(frozen=True)
class Chosen:
    """An evaluation's settings without `auto`."""

    settings: EvaluationSettings
    why: str
    """Why this metric; empty where the user chose it."""
    tokens_why: str
    """Where the limit of an answer comes from; empty where the user set it."""
    shares: Mapping[str, int]
    """References of each kind."""

    @property
    def new_tokens(self) -> int:
        """Tokens after which an answer is cut."""
        return int(self.settings.max_new_tokens)

    @property
    def written(self) -> int:
        """Questions that both models answer in writing, at most: all where an answer decides, a part where it is read
        or stands beside, none where nobody looks at it."""
        settings = self.settings
        if settings.metric not in METRICS or METRICS[settings.metric].kind != "loss":
            return settings.max_rows
        beside = [name for name in settings.more_metrics if name not in METRICS or METRICS[name].writes]
        return min(settings.max_rows, max(WRITTEN if beside else 0, settings.completions))


def resolve_auto(settings: EvaluationSettings, questions: Sequence[Question]) -> Chosen:
    """Decide what is `auto` by the questions that will be asked."""
    kinds = [kind_of(question) for question in questions]
    shares = {kind: kinds.count(kind) for kind in _KINDS if kind in kinds}
    metric, why = (settings.metric, "")
    if metric == AUTO:
        metric, why = _metric(settings, questions, kinds)
    more = list(settings.more_metrics)
    if why and metric == "likelihood" and questions and BESIDE not in more:
        more.append(BESIDE)
    tokens, tokens_why = settings.max_new_tokens, ""
    if tokens == AUTO:
        tokens, tokens_why = _new_tokens(metric, more, questions)
    concrete = settings.model_copy(update={"metric": metric, "more_metrics": more, "max_new_tokens": tokens})
    return Chosen(concrete, why, tokens_why, shares)


def kind_of(question: Question) -> str:
    """json, number, short or long."""
    text = question.reference
    if calls_of(question.row) is not None or is_json(text):
        return "json"
    if _NUMBER.fullmatch(text) or _MARKED.search(text):
        return "number" if number_in(text) is not None else "long"
    return "short" if len(words_in(text)) <= MOST_WORDS else "long"


def _metric(settings: EvaluationSettings, questions: Sequence[Question], kinds: Sequence[str]) -> tuple[str, str]:
    """The metric, and why."""
    count, n = Counter(kinds), len(kinds)
    if not n:
        return "likelihood", "the held-out rows ask nothing, they are plain text"
    if len(settings.choices) > 1 and _labels(questions) <= {normalized(option) for option in settings.choices}:
        return "choice", f"{_references(n, n)} in evaluation.choices"
    if settings.pattern and _judges_all("regex", questions, settings.pattern):
        return "regex", f"{_references(n, n)} matched by evaluation.pattern"
    if count["json"] >= SHARE * n and _judges_all("json_match", questions):
        return "json_match", f"{_references(count['json'], n)} JSON or tool calls"
    if count["number"] >= SHARE * n and _judges_all("numeric", questions):
        marked = sum("####" in question.reference for question in questions)
        if marked >= SHARE * n:
            return "numeric", f"{_references(marked, n, 'end')} in #### and a number"
        return "numeric", f"{_references(count['number'], n)} a number, or marked as one at the end"
    short = count["short"] + sum(
        kind == "number" and len(words_in(question.reference)) <= MOST_WORDS
        for kind, question in zip(kinds, questions, strict=True)
    )
    if short >= SHARE * n:
        labels = len(_labels(questions))
        if short == n and 1 < labels <= min(FEW_LABELS, n // 3):
            return "normalized_match", f"{_references(n, n)} one of {labels} short answers"
        return "normalized_match", f"{_references(short, n, 'have')} {MOST_WORDS} words at most"
    if count["long"] >= SHARE * n:
        return "likelihood", f"{_references(count['long'], n)} long text, which nobody writes twice alike"
    mixed = ", ".join(f"{part / n:.0%} {_KINDS[kind]}" for kind, part in count.most_common() if part >= 0.01 * n)
    return "likelihood", f"the {n:,} references are mixed ({mixed}), and it judges all of them"


def _labels(questions: Sequence[Question]) -> set[str]:
    return {normalized(question.reference) for question in questions}


def _judges_all(name: str, questions: Sequence[Question], pattern: str | None = None) -> bool:
    metric = find_metric(name, pattern=pattern)
    try:
        for question in questions:
            metric.score(question.reference, question.reference, question.row)
    except DataError:
        return False
    return True


def _new_tokens(metric: str, more: Sequence[str], questions: Sequence[Question]) -> tuple[int, str]:
    """The limit, and where it comes from."""
    longest = max((question.answer_tokens for question in questions), default=0)
    exact = all(name in METRICS and METRICS[name].exact for name in (metric, *more))
    wanted = math.ceil(TIMES_LONGEST * longest)
    tokens = min(MOST_TOKENS, max(SHORTEST if exact else LEAST, wanted))
    if tokens == wanted:
        return tokens, f"{TIMES_LONGEST:g} times the longest reference"
    return tokens, f"the longest reference has {longest:,}"


def _references(part: int, whole: int, verb: str = "are") -> str:
    """ "190 of 200 references are", "all 200 references end", "the one reference is"."""
    if whole == 1:
        return f"the one reference {({'are': 'is', 'have': 'has'}).get(verb, verb + 's')}"
    return f"{f'all {whole:,}' if part == whole else f'{part:,} of {whole:,}'} references {verb}"
