"""Regular expressions that never end: in an adapter's config, which PEFT would match against names of layers, and in
`evaluation.pattern`, which is matched against answers.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from faults.hostile.attack import CHAT, REFUSED, Case, attack, own_adapter, own_run, table
from faults.trial import Trial
from qdora_fast.config.yaml import read_yaml, write_yaml

_PATTERNS = (
    "([a-z_.0-9]+)+!",
    "(a|a)*(b|b)*([a-z.0-9_]|[a-z.0-9_])+!",
    "(.*)*(.*)*(.*)*(.*)*x!",
    "^(([a-z._0-9])+.)+!$",
    "(?:.|\\w|\\W)+(?:.|\\w|\\W)+(?:.|\\w|\\W)+!",
    "(?=(.+)+!)q_proj",
    "((((((.+)+)+)+)+)+)!",
    ".*" * 40 + "!",
)
_FIELDS = ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern")
_COMMANDS = {"chat": ("chat", "ADAPTER", *CHAT), "import-adapter": ("import-adapter", "ADAPTER")}


def _in_adapter(field: str, pattern: str, words: tuple[str, ...], trial: Trial) -> None:
    value: Any = {pattern: 8} if field in ("rank_pattern", "alpha_pattern") else pattern
    more = {"layers_to_transform": [0]} if field == "layers_pattern" else {}
    adapter = own_adapter(trial, **{field: value}, **more)
    attack(trial, *[word.replace("ADAPTER", str(adapter)) for word in words], codes=REFUSED)


def _in_evaluation(pattern: str, trial: Trial) -> None:
    run = own_run(trial)
    tree = read_yaml(run / "config.yaml")[0]
    tree["evaluation"] |= {"metric": "regex", "pattern": pattern}
    (run / "config.yaml").write_text(write_yaml(tree))
    attack(trial, "evaluate", run, codes=(0, 2, 20))


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for field, pattern, (where, words) in itertools.product(_FIELDS, _PATTERNS, _COMMANDS.items()):
        cases[f"{field} {pattern[:24]!r}: {where}"] = partial(_in_adapter, field, pattern, words)
    of_answers = ("((?:.|\\w|\\s)+)+!", "(?:a+)+(x)$", "^((?:\\s*\\S+\\s*)+)!$", "(.*)" + "(?:.*)" * 20 + "!")
    cases |= {f"evaluation.pattern {pattern[:24]!r}": partial(_in_evaluation, pattern) for pattern in of_answers}
    return cases


GROUP = table(
    "patterns",
    "regular expressions without end in an adapter's config and in evaluation.pattern",
    "refused, or left after two seconds, in words",
    _cases(),
    small=12,
)
