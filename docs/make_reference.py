"""The reference pages that are written from the code: `python -m docs.make_reference`, which `make docs` calls.

Commands from click, settings from the schema of a config file, presets from `configs/` and the plan of each, exit codes
from the errors. The pages are committed, so that they can be read without building the site; a test compares them with
what this module writes. Nothing in them is edited by hand. Needs no package of the site.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

REFERENCE = Path(__file__).parent / "reference"
ROOT = Path(__file__).parent.parent
NOTE = "<!-- Written by `python -m docs.make_reference` from {source}; not by hand. -->"

Schema = Mapping[str, Any]


def main() -> int:
    """Write every page."""
    for name, page in PAGES.items():
        path = REFERENCE / name
        path.write_text(page(), encoding="utf-8")
        print(f"docs/reference/{name}")
    return 0


def cli_page() -> str:
    """Every command with its arguments and options, then the verbs of the Makefile and the benchmarks."""
    from benchmarks.cli import cli as benchmarks
    from qdora_fast.cli.main import cli

    lines = [
        NOTE.format(source="the commands and the Makefile"),
        "# Command line",
        "`qdora-fast COMMAND --help` prints the same. `--debug` before a command shows the traceback of an error. "
        "What a command prints with `--json` is described in [JSON output](json.md), how it ends in "
        "[exit codes](exit-codes.md).",
        "| command | what it does |\n| --- | --- |\n"
        + "\n".join(
            f"| [`{name}`](#qdora-fast-{name}) | {_cell(_first(command.help))} |"
            for name, command in cli.commands.items()
        ),
    ]
    for name, command in cli.commands.items():
        lines += _command(f"qdora-fast {name}", command)
    lines += [
        "## make",
        "In a checkout. `make` sets up `.venv` first and only when something changed. `CONFIG=`, `DATA=` and `ARGS=` "
        'pass values on: `make train CONFIG=my.yaml DATA=my.jsonl ARGS="--set train.epochs=1"`.',
        "| verb | what it does |\n| --- | --- |\n"
        + "\n".join(f"| `make {verb}` | {_cell(about)} |" for verb, about in make_verbs().items()),
        "## python -m benchmarks",
        "Measuring is not part of the installed package: it is run in a checkout, by `make bench`, `make bench-gpu`, "
        "`make bench-data` and `make bench-export`.",
    ]
    for name, command in benchmarks.commands.items():
        lines += _command(f"python -m benchmarks {name}", command, level=3)
    return "\n\n".join(lines) + "\n"


def settings_page() -> str:
    """Every setting by section: values, default and meaning."""
    from qdora_fast.config import Config

    schema = Config.model_json_schema()
    parts = schema["$defs"]
    sections = list(_sections(schema, parts, ""))
    lines = [
        NOTE.format(source="qdora_fast/config/"),
        "# Settings",
        "One YAML file describes a run. Any setting is also `--set section.key=value` on the command line and a keyword "
        "in Python, `train={\"epochs\": 1}`. All mistakes are reported at once, with line, value and what was probably "
        "meant. `configs/schema.json` is the same as a JSON schema, for completion in editors.",
        " · ".join(f"[`{name}`](#{_anchor(name)})" for name, _ in sections),
    ]
    for name, section in sections:
        lines += [f"## {name}", _paragraph(section.get("description", ""))]
        rows = [
            f"| `{key}` | {_cell(_values(field, parts))} | {_default(key, field, section)} | "
            f"{_cell(field.get('description', ''))} |"
            for key, field in section["properties"].items()
            if _part(field, parts) is None
        ]
        lines.append("\n".join(["| setting | values | default | meaning |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(line for line in lines if line) + "\n"


def presets_page() -> str:
    """Every shipped config with what it is for and what it is estimated to take."""
    from qdora_fast.cli.main import cli
    from qdora_fast.config.presets import choose_preset, list_presets
    from qdora_fast.system.hardware import Gpu

    rows = [
        f"| `{preset.name}` | {_cell(preset.about)} | {_cell(preset.card)} |"
        for preset in list_presets()
    ]
    planned = CliRunner().invoke(cli, ["plan", "--presets"], catch_exceptions=False).stdout
    table = "\n".join(line for line in planned.splitlines() if line.startswith("|"))
    taken = []
    for memory in (80, 24, 16):
        path, _ = choose_preset([Gpu(name=f"a {memory} GB card", memory_gib=float(memory), **_gpu_rest(Gpu))])
        taken.append(f"{memory} GB: `{path.stem}`")
    return "\n\n".join(
        [
            NOTE.format(source="configs/ and `qdora-fast plan --presets`"),
            "# Presets",
            "A preset is a YAML file in `configs/`, named by its file name: `qdora-fast train qwen3-8b-24gb`. "
            "`qdora-fast presets` lists them and says what this machine would take.",
            "\n".join(["| preset | what | card |", "| --- | --- | --- |", *rows]),
            f"Without a config `make train` takes one by the card's memory: {', '.join(taken)}. "
            "Without an NVIDIA GPU it takes `demo`.",
            "## Estimated memory",
            "What `qdora-fast plan --presets` says of each on its own card. **These peaks are estimates: none was "
            "measured on a GPU yet.**",
            table,
        ]
    ) + "\n"


def exit_codes_page() -> str:
    """Every exit code with the error that carries it."""
    from qdora_fast.system import errors

    rows = {
        0: "done",
        1: "the run failed for a reason that is not foreseen; `qdora-fast --debug COMMAND` shows the traceback",
    }
    for kind in sorted(_kinds(errors.QdoraError), key=lambda each: each.__name__):
        if kind.__module__ == errors.__name__ and kind.exit_code != 1:
            text = f"`{kind.__name__}`: {_paragraph(kind.__doc__ or '')}"
            rows[kind.exit_code] = f"{rows[kind.exit_code]} {text}" if kind.exit_code in rows else text
    rows[130] = "`Stopped`: the same after Ctrl-C; also a command that was stopped before anything was saved"
    return "\n\n".join(
        [
            NOTE.format(source="qdora_fast/system/errors.py"),
            "# Exit codes",
            "Scripts can rely on these. A foreseen error ends in one message on standard error, which names the place "
            "and the fix; its class is in `qdora_fast.system.errors`. `torchrun` has exit codes of its own.",
            "\n".join(
                ["| code | meaning |", "| ---: | --- |", *(f"| {code} | {_cell(rows[code])} |" for code in sorted(rows))]
            ),
        ]
    ) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "settings.md": settings_page,
    "presets.md": presets_page,
    "exit-codes.md": exit_codes_page,
}


def make_verbs() -> dict[str, str]:
    """The verbs of the Makefile that `make help` shows, with what it says of each."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*?## (.*)$", text, flags=re.MULTILINE))


def _command(name: str, command: click.Command, *, level: int = 2) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    yield f"{'#' * level} {name}"
    yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield _paragraph(command.help or "")
    records = [each.get_help_record(context) for each in command.params]
    options = [record for record in records if record is not None and record[1]]
    if options:
        rows = [f"| `{_cell(flags)}` | {_cell(about)} |" for flags, about in options]
        yield "\n".join(["| option | meaning |", "| --- | --- |", *rows])


def _sections(schema: Schema, parts: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Sections in the order of the schema, each before those within it."""
    for key, field in schema["properties"].items():
        part = _part(field, parts)
        if part is not None:
            name = f"{path}{key}"
            yield name, part
            yield from _sections(part, parts, f"{name}.")
        elif "$ref" in field.get("items", {}):
            yield f"{path}{key}[]", parts[field["items"]["$ref"].rsplit("/", 1)[-1]]


def _part(field: Schema, parts: Schema) -> Schema | None:
    """The section that a field holds; None for a setting."""
    reference = field.get("$ref")
    part = parts[reference.rsplit("/", 1)[-1]] if reference else None
    return part if part is not None and "properties" in part else None


def _values(field: Schema, parts: Schema) -> str:
    """What a setting may be, in words."""
    if "anyOf" in field:
        kinds = [_values(each, parts) for each in field["anyOf"] if each.get("type") != "null"]
        empty = ["empty"] if any(each.get("type") == "null" for each in field["anyOf"]) else []
        return " or ".join([*kinds, *empty])
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        items = field["items"]
        return f"list of {'sources, see below' if '$ref' in items else _values(items, parts)}"
    names = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    limits = [
        f"{word} {field[key]:,}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in field
    ]
    return ", ".join([names[field["type"]], *limits])


def _default(key: str, field: Schema, section: Schema) -> str:
    if key in section.get("required", ()):
        return "required"
    value = field.get("default")
    if value is None:
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def _gpu_rest(kind: type) -> dict[str, Any]:
    """Values for what else a card has; a preset is chosen by its memory alone."""
    names = [name for name in kind.__dataclass_fields__ if name not in ("name", "memory_gib")]  # type: ignore[attr-defined]
    return dict.fromkeys(names)


def _anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it of the names here."""
    return re.sub(r"[^a-z0-9_-]", "", heading.lower().replace(" ", "-"))


def _first(text: str | None) -> str:
    return _paragraph(text or "").split("\n")[0]


def _paragraph(text: str) -> str:
    """A docstring as Markdown: its paragraphs, each on one line."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\b", "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    """Text as a cell of a table, on one line; braces and angle brackets stay text."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
