"""What makes an answer right: each metric of `evaluation.metric` as a pure function of the answer and its reference.

Base and tuned model are judged by the same function, and no model takes part in it. Texts are normalised for the
comparison only: what is saved and shown is what was said. Which metrics there are and what each measures stands in
`config/metrics.py`; here each gets its function by `_judges`. `likelihood` has none: it judges no answer (`task.py`).

A reference that a metric cannot use (no number, no match, no JSON) is an error that names the row, never a row passed
over. What these metrics do not do: judge meaning. "Paris" and "the capital of France" differ.
"""

from __future__ import annotations

import copy
import difflib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from types import SimpleNamespace
from typing import Any, SupportsFloat

import regex

from qdora_fast.config.code import METRIC, without_folder
from qdora_fast.config.metrics import KNOWN_METRICS, METRICS, MetricInfo
from qdora_fast.config.own_code import described, load_function
from qdora_fast.evaluation.json_answers import calls_of, values_in
from qdora_fast.system.errors import ConfigError, DataError
from qdora_fast.system.install import how_to_install
from qdora_fast.system.limits import PATTERN_SECONDS

Score = Callable[[str, str, Mapping[str, Any]], float]

SHOWN = 80
TOLERANCE = Decimal("1e-9")
"""Largest relative difference of numbers that are called equal: the rounding of printed fractions. Whole numbers are
compared exactly."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = r"\p{L}\p{M}\p{N}\u200c\u200d"  # the two joiners stand inside Indic and Persian words
# Percent, hash and the like carry meaning; the back quote, a symbol to Unicode, is a quotation mark to people.
_OUTER = r"[[\p{P}\p{Z}\p{Cc}\p{Cf}`]--[%‰#@&/\\§]]"
_LEADING = regex.compile(rf"(?V1)(?:(?![-\u2010\u2013]?\.?\d){_OUTER})+")  # a sign or a decimal point stays
_TRAILING = regex.compile(rf"(?V1)(?r){_OUTER}+")
_WORDS = regex.compile(rf"(?V1)[{_UNSPACED}]\p{{M}}*|[{_WORD}--[{_UNSPACED}]]+")

# Digits of other scripts are made 0 to 9 before: regex knows of newer scripts than Python's Decimal.
_GROUPED = r"[0-9]{1,3}(?:[,\u00a0\u202f][0-9]{2,3})*[,\u00a0\u202f][0-9]{3}(?![0-9])"  # 1,234 and 12,34,567
_PLAIN = rf"(?:(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9\p{{L}}]))?"
_NUMBER = (
    r"(?:(?<![\w)\]%])(?P<sign>[-+]))?(?:\p{Sc}\s?(?P<inner>[-+])?)?BEFORE"
    r"(?:(?P<whole>[0-9]+)[ ](?P<top>[0-9]+)/(?P<bottom>[0-9]+)|"
    rf"(?P<plain>{_PLAIN})(?:\s?/\s?(?P<under>{_PLAIN}))?)"
)
_MARKED = regex.compile(r"####[\s*\\(]*" + _NUMBER.replace("BEFORE", ""))
# The 2 of CO2 is no number while there is another; that of Rs500 is found in the second try.
_ANYWHERE = [regex.compile(_NUMBER.replace("BEFORE", before)) for before in (r"(?<![A-Za-z_0-9])", "")]
_VARIANTS = str.maketrans("\u2212\ufe63\uff0d\u066b\uff0e\u066c\uff0c\u2044", "---..,,/")
_ARITHMETIC = Context(prec=50, Emax=MAX_EMAX, Emin=MIN_EMIN)


_JUDGES: dict[str, Callable[[str | None], Score]] = {}
"""By the name of the metric, what gives its function for a pattern."""


@dataclass(frozen=True)
class Metric:
    """One way to judge an answer."""

    info: MetricInfo
    score: Score
    """(answer, reference, row) -> 0.0 to 1.0. `row` is the held-out row: its tool calls, and its place for messages.

    Raises:
        DataError: the reference is of no use to this metric; the message names the row.
        ConfigError: the user's own function failed; the message names function and row.
    """

    @property
    def name(self) -> str:
        """As in the settings; of an own function without the folder."""
        return self.info.name

    @property
    def binary(self) -> bool:
        """True: an answer is right (1.0) or wrong (0.0), and the mean is an accuracy. False: a score from 0 to 1."""
        return self.info.kind == "rate"


def find_metric(name: str, *, pattern: str | None = None) -> Metric:
    """The metric of that name.

    Args:
        name: one of `KNOWN_METRICS` that judges answers, or the user's own "FILE.py:function", let in as
            `data.formatter` is. It is called with answer, reference and a copy of the row. Annotated `-> bool` it gives
            an accuracy, else a score.
        pattern: for regex: a regular expression with one group.

    Raises:
        RefusedError: the file may not be run.
        ConfigError: no such metric, file or function; a pattern without its one group; a package is missing.
    """
    if ":" in name:
        return _custom(name)
    if name not in _JUDGES:
        near = difflib.get_close_matches(name, _JUDGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(KNOWN_METRICS)}, or FILE.py:function"
        raise ConfigError(f"evaluation.metric: there is no metric {name!r}; {hint}")
    return Metric(METRICS[name], _JUDGES[name](pattern))


def normalized(text: str) -> str:
    """The text for comparisons: NFKC, case folded, single spaces, without outer punctuation of any script."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    end = found.start() if (found := _TRAILING.match(folded)) else len(folded)
    start = found.end() if (found := _LEADING.match(folded)) else 0
    return " ".join(folded[start:end].split())


def number_in(text: str) -> Decimal | None:
    """The number that an answer states: the one directly after the last ####, else the last of all; None without one.

    Signs, currency and percent signs, thousands in groups (1,234.5; 12,34,567), fractions (3/4, 1 1/2, ½), exponents
    and the digits of any script are read; a percentage is its number. A decimal comma is not understood.
    """
    plain = text if text.isascii() else "".join(map(_plain_character, text.translate(_VARIANTS)))
    for form in (_MARKED, *_ANYWHERE):
        values = [value for found in form.finditer(plain) if (value := _value(found)) is not None]
        if values:
            return values[-1]
    return None


def _judges(name: str) -> Callable[[Score], Score]:
    """Makes the function below it the judge of a metric in the registry."""

    def register(score: Score) -> Score:
        _JUDGES[METRICS[name].name] = lambda _pattern: score
        return score

    return register


def _made_for(name: str) -> Callable[[Callable[[str | None], Score]], Callable[[str | None], Score]]:
    """The same for a function that must be made first, with a pattern or a package."""

    def register(make: Callable[[str | None], Score]) -> Callable[[str | None], Score]:
        _JUDGES[METRICS[name].name] = make
        return make

    return register


@_judges("exact_match")
def _exact_match(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    return float(answer.strip() == reference.strip())


@_judges("choice")
@_judges("normalized_match")
def _normalized_match(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """Two texts that are nothing but punctuation must be the same text: "!" is no "?"."""
    wanted = normalized(reference)
    return float(normalized(answer) == wanted) if wanted else _exact_match(answer, reference, row)


@_judges("contains")
def _contains(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """Whole words, where the script has spaces between words; "3" is neither in "3.5" nor in "-3"."""
    wanted = normalized(reference)
    if not wanted:
        return _exact_match(answer, reference, row)
    before = after = ""
    if regex.match(rf"(?V1)[{_WORD}--[{_UNSPACED}]]", wanted):
        before = rf"(?<![{_WORD}])(?<!\d[.,])" + (r"(?<!(?:^|\s)[-\u2212])" if wanted[0].isdecimal() else "")
    if regex.match(rf"(?V1)[{_WORD}--[{_UNSPACED}]]", wanted[-1]):
        after = rf"(?![{_WORD}])" + (r"(?![.,]\d)" if wanted[-1].isdecimal() else "")
    return float(regex.search(before + regex.escape(wanted) + after, normalized(answer)) is not None)


@_judges("numeric")
def _numeric(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    wanted = number_in(reference)
    if wanted is None:
        raise _useless(reference, row, "has no number, which metric numeric compares")
    found = number_in(answer)
    if found is None:
        return 0.0
    difference = _ARITHMETIC.abs(_ARITHMETIC.subtract(found, wanted))
    largest = max(_ARITHMETIC.abs(found), _ARITHMETIC.abs(wanted))
    whole = found == found.to_integral_value() and wanted == wanted.to_integral_value()
    return float(difference <= (0 if whole else _ARITHMETIC.multiply(TOLERANCE, largest)))


@_judges("json_match")
def _json_match(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """Equal JSON in the same order; key order, white space and 1 for 1.0 aside.

    - A row that ends in tool calls: the answer must hold these calls, name and arguments, whatever the template
      writes around them; one list of all calls is the same as one call after another.
    - Else the JSON of the reference is wanted: the whole text, that in its code fences, or that in its prose.
    - A row with tools whose reference holds no JSON answers in words: right is any answer that calls nothing.
    - An answer that is the reference's text is right in any case, so that templates without JSON can be judged.
    """
    wanted = calls_of(row)
    if wanted is None:
        wanted = values_in(reference)
        if not wanted and not row.get("tools"):
            raise _useless(reference, row, "holds no JSON, which metric json_match compares")
    return float(values_in(answer) == wanted or answer.strip() == reference.strip())


@_made_for("regex")
def _regex(pattern: str | None) -> Score:
    try:
        form = regex.compile(pattern or "")
    except regex.error as error:
        raise ConfigError(f"evaluation.pattern is no regular expression: {error}") from None
    if form.groups != 1:
        raise ConfigError("evaluation.pattern: metric regex needs a pattern with one group, such as 'answer: (\\w+)'")

    def last(text: str) -> str | None:
        try:
            found = [match[1].strip() for match in form.finditer(text, timeout=PATTERN_SECONDS) if match[1] is not None]
        except TimeoutError:
            raise DataError(
                f"evaluation.pattern {pattern!r} takes more than {PATTERN_SECONDS} s on {text[:80]!r}...; write it "
                "without repetitions within repetitions"
            ) from None
        return found[-1] if found else None

    def score(answer: str, reference: str, row: Mapping[str, Any]) -> float:
        wanted = last(reference)
        if wanted is None:
            raise _useless(reference, row, f"has no match for evaluation.pattern {pattern!r}")
        return float(last(answer) == wanted)

    return score


@_made_for("rouge_l")
def _rouge_l(_pattern: str | None) -> Score:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError(
            f"evaluation.metric: rouge_l needs the package rouge_score ({error}); {how_to_install('eval')}"
        ) from error
    # The package's own tokenizer deletes everything but a to z and digits.
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=words_in))

    def score(answer: str, reference: str, row: Mapping[str, Any]) -> float:
        if not words_in(reference):
            return _exact_match(answer, reference, row)
        return float(scorer.score(reference, answer)["rougeL"].fmeasure)

    return score


@_made_for("chrf")
def _chrf(_pattern: str | None) -> Score:
    """chrF2 of sacrebleu, from 0 to 1."""
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()

    def score(answer: str, reference: str, row: Mapping[str, Any]) -> float:
        if not "".join(reference.split()):
            return _exact_match(answer, reference, row)
        return float(chrf.sentence_score(answer, [reference]).score) / 100

    return score


def words_in(text: str) -> list[str]:
    """Words of any script; each character is one where a script has no spaces."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def _custom(name: str) -> Metric:
    function = load_function(METRIC, name)
    name = without_folder(name)
    binary = function.__annotations__.get("return") in (bool, "bool")

    def score(answer: str, reference: str, row: Mapping[str, Any]) -> float:
        where = f"{METRIC} {name} on {_place(row)}"
        try:
            value = function(answer, reference, copy.deepcopy(dict(row)))
            number = float(value) if isinstance(value, SupportsFloat) else None
        except Exception as error:  # the user's function may raise anything
            raise ConfigError(f"{where}: {described(error, function.__code__.co_filename)}") from error
        if number is None or not 0 <= number <= 1 or (binary and number not in (0, 1)):
            expected = "True or False, as it is annotated" if binary else "a number from 0 to 1"
            raise ConfigError(f"{where}: it returned {repr(value)[:SHOWN]}; return {expected}")
        return number

    return Metric(MetricInfo(name, "rate" if binary else "score", f"{name} says so"), score)


def _plain_character(character: str) -> str:
    """Digits of any script as 0 to 9, and ½ as 1/2 behind a space; a raised 2 is a power, and no digit."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).translate(_VARIANTS)
    return character


def _value(found: regex.Match[str]) -> Decimal | None:
    """The number of a match of `_NUMBER`; None for a division by zero."""
    whole, top, bottom = (found[name] or "0" for name in ("whole", "top", "bottom"))
    if found["plain"]:
        top, bottom = (regex.sub("[,\u00a0\u202f]", "", each) for each in (found["plain"], found["under"] or "1"))
    upper, lower = Decimal(top), Decimal(bottom)
    if not lower:
        return None
    before = Decimal(whole) if upper < lower else Decimal(0)  # 1 1/2 is mixed, 7 10/2 are two numbers
    value = _ARITHMETIC.add(before, _ARITHMETIC.divide(upper, lower))
    return _ARITHMETIC.minus(value) if "-" in (found["sign"], found["inner"]) else value


def _useless(reference: str, row: Mapping[str, Any], why: str) -> DataError:
    shown = reference if len(reference) <= SHOWN else f"{reference[: SHOWN - 1]}…"
    return DataError(
        f"{_place(row)}: the reference {shown!r} {why}; correct the row or choose another evaluation.metric"
    )


def _place(row: Mapping[str, Any]) -> str:
    return str((row.get("meta") or {}).get("source") or "a held-out row")
