"""`make bench-data`: what the preparation of rows finds, and only then how long it takes.

A set with a known truth is planted (planting.py) and prepared once, in a fresh process, with the demo's tokenizer and
the Alpaca template; the result is held against the truth (data_grade.py). Where that is red, no speed is measured
further and none is told. Where it is green follow: the second start, which finds the result in the cache; the steps
that a single row goes through, in one process; datasketch on the same rows; and memory, on sets with longer texts and
with more rows.
"""

from __future__ import annotations

import importlib.metadata
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import data_table
from benchmarks.data.data_grade import grade, grade_marks
from benchmarks.data.faults import as_line
from benchmarks.data.planting import CHAT, HELD, TRAIN, Planted, plant
from benchmarks.data.process_tree import run_alone
from benchmarks.data.seed_text import Writer, demo_seeds, real_seeds
from benchmarks.machine import machine
from benchmarks.options import BASELINES, DataOptions
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError

ARM = Path(__file__).with_name("data_arm.py")
SMALLEST = 1_000
"""Rows of which a share of one in a hundred still means something."""
INSIDE_ROWS = 4_000
"""Rows that the steps of a single row are timed on."""
LONG = 65_536
"""`max_length` of the sets that memory is measured on, so that no row of them is too long."""
LIBRARIES = ("datasketch", "tokenizers", "transformers", "numpy", "pyarrow", "regex", "xxhash", "ftfy")


@dataclass
class _Bench:
    """One run: where things lie, and what is said."""

    options: DataOptions
    folder: Path
    tokenizer: Path
    said: Callable[[str], None]

    def prepare(self, settings: dict[str, Any], *, cache: str, **asked: Any) -> dict[str, Any]:
        """One preparation in a fresh process; what data_arm.py tells of it."""
        spec: dict[str, Any] = {"task": "prepare", "settings": settings, "tokenizer": str(self.tokenizer)}
        spec |= {"seed": self.options.seed, "max_length": self.options.max_length, **asked}
        return run_alone(ARM, spec, cache=self.folder / cache)

    def sources(self, max_rows: int | None = None) -> dict[str, Any]:
        """The `data` section for the planted files."""
        files = [(TRAIN, "alpaca"), (CHAT, "chatml")]
        sources = [{"path": str(self.folder / name), "format": kind, "max_rows": max_rows} for name, kind in files]
        return {
            "sources": sources,
            "on_bad_row": "skip",
            "held_out_path": str(self.folder / HELD),
            "workers": self.options.workers,
        }


def run_data_benchmark(options: DataOptions, *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Plant, prepare, grade, and measure; `result["gate"]["passed"]` decides the exit code.

    Raises:
        ConfigError: the options name a baseline that does not exist, too few rows, or unreadable ones.
        QdoraError: a process failed.
    """
    _check(options)
    from qdora_fast.data.demo.base import demo_base

    def said(text: str) -> None:
        console.print(text)

    with tempfile.TemporaryDirectory(prefix="qdora-fast-bench-") as scratch:
        bench = _Bench(options, Path(scratch).resolve(), demo_base(), said)
        said("planting")
        rng = random.Random(options.seed)
        writer = Writer(real_seeds(options.seeds, said) if options.seeds else demo_seeds(), rng)
        planted = plant(bench.folder, options.rows, writer)
        said(f"preparing {planted.rows:,} rows")
        first = bench.prepare(bench.sources(), cache="cache", places=True)
        graded = grade(planted, first)
        record = {
            "kind": "data",
            "options": _told(options),
            "machine": _machine(options, command),
            "found": graded,
            "gate": graded["gate"],
            "rows": planted.rows,
            "characters": _characters(planted),
        }
        if graded["gate"]["passed"]:
            record |= _measure(bench, planted, first, writer)
    data_table.show(record)
    return record


def _measure(bench: _Bench, planted: Planted, first: dict[str, Any], writer: Writer) -> dict[str, Any]:
    options = bench.options
    bench.said("second start")
    again = bench.prepare(bench.sources(), cache="cache")
    bench.said("steps of a single row")
    alone = bench.sources(max_rows=INSIDE_ROWS) | {"workers": 1}
    inside = bench.prepare(alone, cache="inside", inside=True)
    figures: dict[str, Any] = {
        "first": _figures(first, planted.rows) | {"steps": _stages(first)},
        "second": _figures(again, planted.rows),
        "inside": {"rows": inside["report"]["rows_in"], "steps": _inside(inside["steps"])},
        "baseline": None,
    }
    if options.baseline == "datasketch":
        bench.said("datasketch")
        files = [str(bench.folder / name) for name in (HELD, TRAIN, CHAT)]
        theirs = run_alone(ARM, {"task": "datasketch", "files": files}, cache=bench.folder / "cache")
        marked = theirs.pop("marked")
        figures["baseline"] = _figures(theirs, theirs["rows"]) | {
            "steps": theirs["steps"],
            "found": grade_marks(planted, marked),
        }
    figures["memory"] = _memory(bench, writer) if options.memory_rows else []
    return figures


def _memory(bench: _Bench, writer: Writer) -> list[dict[str, Any]]:
    """Sets with longer texts, then sets with more rows; of the first one also the second start."""
    options = bench.options
    sizes = [(1, factor) for factor in options.text_factors] + [(factor, 1) for factor in options.row_factors[1:]]
    found = []
    for rows, length in sizes:
        count = rows * options.memory_rows
        bench.said(f"memory: {count:,} rows, texts {length} times as long")
        file = bench.folder / "set.jsonl"
        with file.open("wb") as out:
            out.writelines(as_line(writer.row(length)) for _ in range(count))
        settings = {"path": str(file), "workers": options.workers}
        first = bench.prepare(settings, cache="sets", max_length=LONG)
        figures = {"rows": count, "length": length, "file_bytes": file.stat().st_size} | _figures(first, count)
        if (rows, length) == (1, 1):
            figures["second_s"] = bench.prepare(settings, cache="sets", max_length=LONG)["seconds"]
        found.append(figures)
    return found


def _figures(result: dict[str, Any], rows: int) -> dict[str, Any]:
    names = ("seconds", "process_s", "own_bytes", "mapped_bytes")
    figures = {name: result[name] for name in names} | {"rows_per_s": rows / result["seconds"]}
    if "report" in result:
        figures |= {"tokens": result["tokens"], "report": result["report"]}
    return figures


def _stages(result: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage; they add up to the whole."""
    steps, whole = dict(result["steps"]), result["seconds"]
    searched = steps["find duplicates"] + steps["check contamination"]
    steps["short rows and split"] = steps.pop("all selection") - searched
    return steps | {"the rest": whole - sum(steps.values())}


def _inside(steps: dict[str, float]) -> dict[str, float]:
    """Seconds of each step of a row, in one process; they add up to reading and judging."""
    steps = dict(steps)
    judging, whole = steps.pop("all processing"), steps.pop("read and process rows")
    return {"read and write": whole - judging, **steps, "the rest": judging - sum(steps.values())}


def _check(options: DataOptions) -> None:
    if options.baseline not in BASELINES:
        raise ConfigError(f"--baseline {options.baseline}: there are {', '.join(BASELINES)}")
    if options.rows < SMALLEST:
        raise ConfigError(f"--rows {options.rows}: at least {SMALLEST} are needed to plant something of every kind")


def _told(options: DataOptions) -> dict[str, Any]:
    """The options without folders of this machine."""
    return asdict(options) | {"seeds": [Path(path).name for path in options.seeds]}


def _machine(options: DataOptions, command: Sequence[str] | None) -> dict[str, Any]:
    folders = {path: Path(path).name for path in options.seeds}
    told = None if command is None else [folders.get(word, word) for word in command]
    found = machine(told)
    return found | {"libraries": {name: importlib.metadata.version(name) for name in LIBRARIES}}


def _characters(planted: Planted) -> float:
    """Mean characters of question and answer."""
    rows = planted.contents.values()
    return sum(len(row["instruction"]) + len(row["output"]) for row in rows) / max(1, len(rows))
