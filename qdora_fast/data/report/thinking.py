"""In which mode of thinking the rows are learned, in a sentence, and what that means where the model is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qdora_fast.data.tokenize.modes import Setting
from qdora_fast.data.tokenize.thinking import Mode, Thinking, in_words


@dataclass(frozen=True)
class ThinkingReport:
    """How rows are rendered by a chat template that knows of reasoning."""

    setting: Setting
    """`data.thinking`, by which each row has its mode."""
    mode: Literal["on", "off", "mixed"]
    """The mode of all rows, in which chat and general questions are asked; mixed: the template's default is."""
    sentence: str

    @property
    def asked(self) -> Mode | None:
        """The mode in which the model is asked what is in no row; None: the template's default."""
        return None if self.mode == "mixed" else self.mode


def describe_thinking(thinking: Thinking, setting: Setting, rows: int, flags: Mapping[str, int]) -> ThinkingReport:
    """What is learned.

    Args:
        rows: of one epoch.
        flags: how many of them have which flag of `masking.Masked`.
    """
    reasoned, removed = flags.get("reasoned", 0), flags.get("reasoning_removed", 0)
    mode: Literal["on", "off", "mixed"] = "mixed"
    if setting in ("on", "off"):
        mode = "on" if setting == "on" else "off"
    elif reasoned in (0, rows):
        mode = "on" if reasoned else "off"
    if mode == "mixed":
        return ThinkingReport(setting, mode, _mixed(thinking, reasoned, rows))
    if mode == "on" and not reasoned:
        how = "on (data.thinking), but no row has reasoning: the model learns to answer without any"
    elif mode == "on" and reasoned < rows:
        how = f"on (data.thinking): {_of(reasoned, rows)} reasoning, which is learned; the rest learns to go without"
    elif mode == "on":
        how = f"on: {_of(reasoned, rows)} reasoning, which is learned"
    elif removed:
        how = f"off (data.thinking): the reasoning of {removed:,} of {rows:,} rows is left out"
    else:
        how = "off: no row has reasoning" if setting == "auto" else "off (data.thinking)"
    return ThinkingReport(setting, mode, f"{how}{_told(thinking, mode)}")


def _of(part: int, rows: int) -> str:
    return f"all {rows:,} rows have" if part == rows else f"{part:,} of {rows:,} rows have"


def _mixed(thinking: Thinking, reasoned: int, rows: int) -> str:
    told = [f" ({in_words(each)})" if each else "" for each in (thinking.on, thinking.off)]
    asked = f"; held-out rows are asked in theirs, chat in the template's default, {thinking.default}"
    return (
        f"each row in its own mode: {_of(reasoned, rows)} reasoning, which is learned{told[0]}, "
        f"{rows - reasoned:,} have none{told[1]}{asked if thinking.switch else ''}"
    )


def _told(thinking: Thinking, mode: Mode) -> str:
    """What the template is told, and what a server must be."""
    if not thinking.switch:
        return ""
    switches = thinking.switches(mode)
    told = in_words(switches) or f"no {thinking.switch}"
    if mode == thinking.default:
        return f" ({told}, the template's default)"
    asked = f'"chat_template_kwargs": {json.dumps(dict(switches))}' if switches else told
    return f" ({told}). The template's default is {thinking.default}: ask other servers with {asked}"
