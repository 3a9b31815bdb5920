"""Regular expressions in an adapter's config, which PEFT matches against the name of every layer of the base.

`target_modules`, `rank_pattern` and three more settings of an adapter_config.json may hold any expression, and one like
`(a+)+b` never ends. So an adapter is read only if its patterns are of the kinds that tools write: names, alternatives,
classes, a few repetitions, none within another and none of alternatives that match alike. The time of such a pattern
grows with a small power of the length of a name, which is short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import prod
from typing import Any

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.limits import PATTERN_CHARACTERS, PATTERN_CHOICES, PATTERN_REPETITIONS

FIELDS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_NAME = re.compile(r"[\w.\-]*")


class _Unbounded(Exception):
    """Why a pattern is refused."""


def require_bounded(config: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a pattern of an adapter's config that cannot be matched in bounded time.

    Args:
        config: adapter_config.json.
        where: the file, for the message.
    """
    for field in FIELDS:
        for pattern in _patterns(config.get(field)):
            try:
                _examine(pattern)
            except _Unbounded as why:
                raise ConfigError(
                    f"{where}: {field} holds the pattern {pattern[:80]!r}, {why}; write names of layers"
                ) from None


def _patterns(value: Any) -> Iterator[str]:
    """Those of a setting that are more than a name."""
    found = [value] if isinstance(value, str) else value if isinstance(value, list | dict) else []
    yield from (each for each in found if isinstance(each, str) and not _NAME.fullmatch(each))


def _examine(pattern: str) -> None:
    if len(pattern) > PATTERN_CHARACTERS:
        raise _Unbounded(f"which is longer than {PATTERN_CHARACTERS:,} characters")
    try:
        repetitions, choices = _ways(re._parser.parse(pattern))  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError) as error:
        raise _Unbounded(f"which is no regular expression ({error})") from None
    if repetitions > PATTERN_REPETITIONS:
        raise _Unbounded(f"in which {repetitions} repetitions follow each other")
    if choices > PATTERN_CHOICES ** (1 + PATTERN_REPETITIONS - repetitions):
        raise _Unbounded("in which many alternatives match the same text")


def _ways(parsed: Any, *, inside: bool = False) -> tuple[int, int]:
    """How an expression can be tried on a text.

    Args:
        inside: it is within a repetition, where every second way to match doubles the ways with each turn.

    Returns:
        repetitions that follow each other, at most, and in how many ways its alternatives and what may be left out can
        be taken for the same text.
    """
    repetitions, choices = 0, 1
    for operation, argument in parsed:
        kind = str(operation)
        if kind.startswith("GROUPREF"):
            raise _Unbounded("in which a group is referred to")
        repeats = kind.endswith("_REPEAT") and argument[1] > 1
        optional = kind.endswith("_REPEAT") and argument[:2] == (0, 1)
        if (repeats or optional) and inside:
            raise _Unbounded("in which repetitions stand within repetitions")
        alike = _alike(argument[1]) if kind == "BRANCH" else 1 + optional
        if alike > 1 and inside:
            raise _Unbounded("in which alternatives that match the same text are repeated")
        within = [_ways(part, inside=inside or repeats) for part in _parts(argument)]
        counts = [count for count, _ in within]
        repetitions += repeats + (max(counts) if kind == "BRANCH" else sum(counts))
        each = [ways for _, ways in within]
        choices = min(choices * alike * (max(each) if kind == "BRANCH" else prod(each)), 2**62)
    return repetitions, choices


def _alike(alternatives: Sequence[Any]) -> int:
    """How many of these alternatives can match the same text, judged by the characters that each begins with."""
    chain: list[str] = []
    most = 0
    for start in sorted(_start(each) for each in alternatives):
        while chain and not start.startswith(chain[-1]):
            chain.pop()
        chain.append(start)
        most = max(most, len(chain))
    return most


def _start(alternative: Any) -> str:
    """The characters that whatever matches it begins with, in small letters."""
    literals = takewhile(lambda step: str(step[0]) == "LITERAL", alternative)
    return "".join(chr(code) for _, code in literals).lower()


def _parts(argument: Any) -> Iterator[Any]:
    """The expressions within an operation's argument."""
    if type(argument).__name__ == "SubPattern":
        yield argument
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from _parts(each)
