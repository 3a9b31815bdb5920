"""What the command does with a plan: print it, write its page, and fail where the run does not fit.

Results go to standard output, so that a plan can be piped; with `--json` nothing but one JSON object does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from qdora_fast.config import presets
from qdora_fast.config.loader import load_config
from qdora_fast.planning.picture import write_page
from qdora_fast.planning.plan import make_plan, preset_plans
from qdora_fast.planning.text import lines, preset_table, what_to_do
from qdora_fast.system.errors import ConfigError, DoesNotFit

Say = Callable[[str], None]


def answer(
    named: str | None, overrides: Sequence[str], *, vram: float | None, html: Path | None, as_json: bool, say: Say
) -> None:
    """Plan the config `named`, by path or as a preset, and say it.

    Raises:
        DoesNotFit: after everything was said.
        ConfigError: no config was named, or it is wrong.
    """
    if named is None:
        raise ConfigError("name a config or a preset (`qdora-fast presets` lists them), or ask for --presets")
    path = presets.find_config(named)
    plan = make_plan(load_config(path, overrides), path.stem, vram=vram)
    for line in [json.dumps(plan.as_dict(), ensure_ascii=False)] if as_json else lines(plan):
        say(line)
    if html is not None:
        write_page(plan, html)
    if not plan.fits:
        raise DoesNotFit(what_to_do(plan))


def answer_presets(*, vram: float | None, as_json: bool, say: Say) -> None:
    """Say what every preset needs on the card it is written for, and the longest rows that fit there."""
    plans = preset_plans(vram)
    if as_json:
        say(json.dumps({"presets": [plan.as_dict() for plan in plans]}, ensure_ascii=False))
        return
    for line in preset_table(plans):
        say(line)
    sources = sorted({plan.base_source for plan in plans})
    say(f"\nSizes from {'; '.join(sources)}.")
