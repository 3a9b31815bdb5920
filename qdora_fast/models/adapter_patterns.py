"""Regular expressions in an adapter's config, which PEFT matches against the name of every layer of the base.

`target_modules`, `rank_pattern` and three more settings of an adapter_config.json may hold any expression, and one like
`(a+)+b` never ends. So an adapter is read only if its patterns are of the kinds that tools write: names, alternatives,
classes, and a few repetitions, none within another. The time of such a pattern grows with a small power of the length
of a name, which is short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.limits import PATTERN_CHARACTERS, PATTERN_REPETITIONS

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
        repetitions = _repetitions(re._parser.parse(pattern))  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError) as error:
        raise _Unbounded(f"which is no regular expression ({error})") from None
    if repetitions > PATTERN_REPETITIONS:
        raise _Unbounded(f"in which {repetitions} repetitions follow each other")


def _repetitions(parsed: Any, *, inside: bool = False) -> int:
    """How many repetitions follow each other in an expression, at most."""
    count = 0
    for operation, argument in parsed:
        kind = str(operation)
        if kind.startswith("GROUPREF"):
            raise _Unbounded("in which a group is referred to")
        repeats = kind.endswith("_REPEAT") and argument[1] > 1
        if repeats and inside:
            raise _Unbounded("in which repetitions stand within repetitions")
        within = [_repetitions(part, inside=inside or repeats) for part in _parts(argument)]
        count += repeats + (max(within, default=0) if kind == "BRANCH" else sum(within))
    return count


def _parts(argument: Any) -> Iterator[Any]:
    """The expressions within an operation's argument."""
    if type(argument).__name__ == "SubPattern":
        yield argument
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from _parts(each)
