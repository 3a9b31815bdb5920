"""The reference pages that are written from the code: `python -m docs.make_reference`, which `make docs` calls.

Commands from click, settings from the schema of a config file, presets from `configs/` and the plan of each, exit codes
from the errors. The pages are committed, so that they can be read without building the site; a test compares them with
what this module writes. Nothing in them is edited by hand. Needs no package of the site.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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

    summaries = [
        (f"[`{name}`](#qdora-fast-{name})", _first(command.help or "")) for name, command in cli.commands.items()
    ]
    return _page(
        "the commands and the Makefile",
        "Command line",
        "`qdora-fast COMMAND --help` prints the same. `--debug` before a command shows the traceback of an error. "
        "What a command prints with `--json` is described in [JSON output](json.md), how it ends in "
        "[exit codes](exit-codes.md).",
        _table(("command", "what it does"), summaries),
        *(part for name, command in cli.commands.items() for part in _command("##", f"qdora-fast {name}", command)),
        "## make",
        "In a checkout. `make` sets up `.venv` first and only when something changed. `CONFIG=`, `DATA=` and `ARGS=` "
        'pass values on: `make train CONFIG=my.yaml DATA=my.jsonl ARGS="--set train.epochs=1"`.',
        _table(("verb", "what it does"), [(f"`make {verb}`", about) for verb, about in make_verbs().items()]),
        "## Benchmarks",
        "Measuring is not part of the installed package: it is run in a checkout, by `make bench`, `make bench-gpu`, "
        "`make bench-data` and `make bench-export`, or by these commands.",
        *(
            part
            for name, command in benchmarks.commands.items()
            for part in _command("###", f"python -m benchmarks {name}", command)
        ),
    )


def settings_page() -> str:
    """Every setting by section: values, default and meaning."""
    from qdora_fast.config import Config

    schema = Config.model_json_schema()
    parts = schema["$defs"]
    sections = list(_sections(schema, parts, ""))
    return _page(
        "qdora_fast/config/",
        "Settings",
        "One YAML file describes a run. Any setting is also `--set section.key=value` on the command line and a "
        'keyword in Python, `train={"epochs": 1}`. All mistakes are reported at once, with line, value and what was '
        "probably meant. `configs/schema.json` is the same as a JSON schema, for completion in editors.",
        " · ".join(f"[`{name}`](#{_anchor(name)})" for name, _ in sections),
        *(part for name, section in sections for part in _section(name, section, parts)),
    )


def presets_page() -> str:
    """Every shipped config with what it is for and what it is estimated to take."""
    from qdora_fast.cli.main import cli
    from qdora_fast.config.presets import choose_preset, list_presets
    from qdora_fast.system.hardware import Gpu

    cards = [Gpu(f"{memory} GB", float(memory), None, "") for memory in (80, 24, 16)]
    taken = ", ".join(f"{card.name}: `{choose_preset([card])[0].stem}`" for card in cards)
    planned = CliRunner().invoke(cli, ["plan", "--presets"], catch_exceptions=False).stdout
    return _page(
        "configs/ and `qdora-fast plan --presets`",
        "Presets",
        "A preset is a YAML file in `configs/`, named by its file name: `qdora-fast train qwen3-8b-24gb`. "
        "`qdora-fast presets` lists them and says what this machine would take.",
        _table(("preset", "what", "card"), [(f"`{each.name}`", each.about, each.card) for each in list_presets()]),
        f"Without a config `make train` takes one by the card's memory: {taken}. "
        "Without an NVIDIA GPU it takes `demo`.",
        "## Estimated memory",
        "What `qdora-fast plan --presets` says of each on its own card. **These peaks are estimates: none was measured "
        "on a GPU yet.**",
        "\n".join(line for line in planned.splitlines() if line.startswith("|")),
    )


def metrics_page() -> str:
    """Every metric with what it says of an answer, what it needs, and when `auto` takes it."""
    from qdora_fast.config.metrics import METRICS

    kinds = {"rate": "accuracy", "score": "score", "loss": "loss"}
    rows = [
        (f"`{info.name}`", kinds[info.kind], info.measures, info.auto or "never", info.needs)
        for info in METRICS.values()
    ]
    own = ("`judge.py:right`", "either", "your own function says so (`-> bool`: an accuracy)", "never", "`--own-code`")
    return _page(
        "qdora_fast/config/metrics.py",
        "Metrics",
        "What `evaluation.metric` and `evaluation.more_metrics` may name. An answer is right when ... "
        "[Evaluate and compare](../guides/evaluate-and-compare.md) says how the verdict follows.",
        _table(("metric", "its mean is", "an answer is right when", "`auto` takes it for", "needs"), [*rows, own]),
    )


def exit_codes_page() -> str:
    """Every exit code with the error that carries it."""
    from qdora_fast.system import errors

    rows = {
        0: "done",
        1: "the run failed (`qdora-fast --debug COMMAND` shows the traceback), or `doctor` found something to fix",
    }
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.QdoraError)]
    for kind in kinds:
        if kind is not errors.QdoraError:
            text = f"`{kind.__name__}`: {_paragraphs(kind.__doc__ or '')}"
            rows[kind.exit_code] = f"{rows[kind.exit_code]} {text}" if kind.exit_code in rows else text
    rows[130] = "`Stopped`: the same after Ctrl-C; also a command that was stopped before anything was saved"
    return _page(
        "qdora_fast/system/errors.py",
        "Exit codes",
        "Scripts can rely on these. A foreseen error ends in one message on standard error, which names the place and "
        "the fix; its class is in `qdora_fast.system.errors`. `torchrun` has exit codes of its own.",
        _table(("code", "meaning"), [(str(code), rows[code]) for code in sorted(rows)]),
    )


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "settings.md": settings_page,
    "presets.md": presets_page,
    "metrics.md": metrics_page,
    "exit-codes.md": exit_codes_page,
}


def make_verbs() -> dict[str, str]:
    """The verbs of the Makefile that `make help` shows, with what it says of each."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*?## (.*)$", text, flags=re.MULTILINE))


def _page(source: str, title: str, *parts: str) -> str:
    return "\n\n".join([NOTE.format(source=source), f"# {title}", *filter(None, parts)]) + "\n"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _command(marks: str, name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    yield f"{marks} {name}"
    yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield _paragraphs(command.help or "")
    options = [each for each in command.params if not isinstance(each, click.Argument)]
    records = [record for each in options if (record := each.get_help_record(context)) is not None]
    if records:
        yield _table(("option", "meaning"), [(f"`{flags}`", about) for flags, about in records])


def _section(name: str, section: Schema, parts: Schema) -> Iterator[str]:
    yield f"## {name}"
    yield _paragraphs(section.get("description", ""))
    rows = [
        (f"`{key}`", _values(field, parts), _default(key, field, section), field.get("description", ""))
        for key, field in section["properties"].items()
        if _part(field, parts) is None
    ]
    yield _table(("setting", "values", "default", "meaning"), rows)


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


def _anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it of the names here."""
    return re.sub(r"[^a-z0-9_-]", "", heading.lower().replace(" ", "-"))


def _first(text: str) -> str:
    return _paragraphs(text).split("\n")[0]


def _paragraphs(text: str) -> str:
    """A docstring as Markdown: each paragraph on one line."""
    return "\n\n".join(" ".join(each.split()) for each in re.split(r"\n\s*\n", text.replace("\b", "").strip()))


def _cell(text: str) -> str:
    """Text as a cell of a table, on one line; braces and angle brackets stay text."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
