"""What one asks of a base before taking it: its licence, whether its weights are gated, its chat template, its head.

From the files that lie beside its config.json (the model card's front matter, LICENSE, tokenizer files), else from the
header of a preset that takes the same base. What neither says is unknown: nothing is guessed, and no hub is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config.presets import base_header
from qdora_fast.data.demo.base import DEMO, demo_base
from qdora_fast.models.base_files import folder_of
from qdora_fast.system.errors import QdoraError
from qdora_fast.system.json_files import NotJson, parse_json, read_limited
from qdora_fast.system.paths import local_path

CARD_BYTES = 2**20
"""More of a model card or licence is not read."""
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE")


@dataclass(frozen=True)
class BaseFacts:
    """What is known about a base; None: unknown."""

    licence: str | None
    """As its owner writes it."""
    gated: bool | None
    """Its weights are given only to those who agreed to terms."""
    source: str
    """Where licence and gating are from."""
    template: str | None
    """Its chat template: `its own`, `its own (default, tool_use)` or `none`."""
    thinking: str | None
    """What the template does about reasoning: `no`, or in which way."""
    tied: bool
    """The output head uses the embeddings' weights."""

    def __str__(self) -> str:
        gating = {True: ", gated", False: ", not gated", None: ""}[self.gated]
        licence = f"licence {self.licence}{gating} ({self.source})" if self.licence else f"licence unknown{gating}"
        parts = [licence, f"chat template {self.template or 'unknown'}"]
        if self.template not in (None, "none"):
            parts.append(f"thinking: {self.thinking}")
        return "; ".join([*parts, "head tied to the embeddings" if self.tied else "a head of its own"])


def facts_of(name: str, revision: str | None, *, tied: bool) -> BaseFacts:
    """The facts about the base `model.name`."""
    if name == DEMO:
        folder: Path | None = demo_base()
    else:
        folder = folder_of(str(local_path(name)) if local_path(name).is_dir() else name, revision)
    licence, gated, source = _licence(folder) if folder else (None, None, "")
    if licence is None and (header := base_header(name)) is not None:
        licence, gated, source = header.licence, header.gated, f"the preset {header.preset}"
    templates = dict(_templates(folder)) if folder else {}
    named = f" ({', '.join(templates)})" if len(templates) > 1 else ""
    template = f"its own{named}" if templates else "none" if folder and _has_tokenizer(folder) else None
    text = templates.get("default") or next(iter(templates.values()), "")
    return BaseFacts(licence, gated, source, template, _thinking(text) if templates else None, tied)


def _licence(folder: Path) -> tuple[str | None, bool | None, str]:
    """Licence, gating, and the file that says so."""
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", _text(folder / "README.md"), re.DOTALL)
    lines = front[1] if front else ""
    said = re.search(r"^license:[ \t]*(?:\n\s*-\s*)?(\S[^\n#]*)", lines, re.MULTILINE)
    named = re.search(r"^license_name:[ \t]*(\S[^\n#]*)", lines, re.MULTILINE)
    chosen = named if named and (said is None or said[1].strip("'\"[] ").lower() in ("other", "unknown")) else said
    gated = True if re.search(r"^extra_gated_\w+:", lines, re.MULTILINE) else None
    if chosen:
        return chosen[1].strip("'\"[] "), gated, "its model card"
    for name in LICENCE_FILES:
        if title := [line.strip(" #*") for line in _text(folder / name).splitlines() if line.strip(" #*")][:2]:
            more = f", {title[1]}" if len(title) > 1 and title[1].lower().startswith("version") else ""
            return f"{title[0][:80]}{more[:40]}", gated, name
    return None, gated, ""


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    """The chat templates of a base, by name, as Transformers looks for them: files of their own before all others."""
    own = _text(folder / "chat_template.jinja")
    if own:
        yield "default", own
        for other in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            yield other.stem, _text(other)
        return
    for file in ("tokenizer_config.json", "chat_template.json"):
        said = _object(folder / file).get("chat_template")
        if isinstance(said, str) and said:
            yield "default", said
        elif isinstance(said, list):
            listed = [each for each in said if isinstance(each, dict)]
            yield from ((str(each.get("name")), str(each.get("template", ""))) for each in listed)
        if said:
            return


def _thinking(template: str) -> str:
    from qdora_fast.data.tokenize.thinking import thinking_of

    thinking = thinking_of(template)
    return thinking.summary if thinking else "no"


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _text(file: Path) -> str:
    try:
        text = read_limited(file, CARD_BYTES).decode("utf-8", "replace") if file.is_file() else ""
    except (OSError, NotJson):  # nothing depends on it
        return ""
    return text.replace("\r\n", "\n")


def _object(file: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_limited(file)) if file.is_file() else {}
    except (OSError, NotJson, QdoraError):  # whoever loads the tokenizer says so
        return {}
    return value if isinstance(value, dict) else {}
