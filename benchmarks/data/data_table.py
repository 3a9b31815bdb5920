"""The record of `make bench-data` as tables: what was found, and, where the gate is green, what it took.

The same cells go to the console and into BENCHMARKS.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qdora_fast.system import console
from qdora_fast.system.console import grid

MIB = 2**20


class Cells(NamedTuple):
    """One table: its title, the names of the columns, and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def show(record: Mapping[str, Any]) -> None:
    """All tables and where the figures are from; of a red gate only what is wrong."""
    if not record["gate"]["passed"]:
        for why in record["gate"]["red"]:
            console.print(f"gate RED: {why}", style="bold red")
        return
    print_tables(tables(record))
    for line in ("", *remarks(record), *provenance(record["machine"])):
        console.print(line)


def print_tables(tables: Iterable[Cells]) -> None:
    """Each under its title."""
    for each in tables:
        table = grid(*each.columns)
        for row in each.rows:
            table.add_row(*row)
        console.print(f"\n{each.title}")
        console.print(table)


def tables(record: Mapping[str, Any]) -> Iterator[Cells]:
    """The tables of a green record."""
    yield _pairs(record)
    yield _faults(record["found"]["faults"])
    yield _times(record)
    yield _steps(record)
    if record["memory"]:
        yield _memory(record["memory"])


def remarks(record: Mapping[str, Any]) -> list[str]:
    """What the tables do not say, one sentence a line."""
    found = record["found"]
    near, decoys, left, ids = found["near"], found["decoys"], found["left"], found["duplicate_ids"]
    counted, unplanted = found["accounted"], found["unplanted"]
    across = left["held out, exact"] + left["held out, near"] + left["held out, prompt"]
    others = ", ".join(f"{count} {reason}" for reason, count in unplanted.items()) or "none"
    return [
        f"{near['right']:,} of {near['dropped']:,} rows dropped as near-duplicates are that by exact similarity; "
        f"{decoys['kept']:,} of {decoys['planted']:,} decoys (similarity 0.6 to 0.78) kept.",
        f"Held-out rows with their like in training afterwards, by an exact join: {across}; near-duplicates left "
        f"within training: {left['near']}.",
        f"{counted['rows_in']:,} rows in = {counted['kept']:,} kept + {counted['dropped']:,} dropped; "
        f"{ids['found']:,} of {ids['planted']:,} repeated ids counted.",
        f"Rows dropped in which nothing was planted: {others}.",
        "Memory is the peak of the process and its workers, shared pages counted once: `own` cannot be given back, "
        "`mapped` is the same with pages of files.",
    ]


def provenance(machine: Mapping[str, Any]) -> list[str]:
    """Machine, versions, commit, date and command."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return [
        f"{machine['cpu']}, {machine['cpu_cores']} cores; Python {machine['python']}, {versions}",
        f"{machine['date']}, qdora_fast {machine['commit']}: {machine['command']}",
    ]


def _pairs(record: Mapping[str, Any]) -> Cells:
    baseline = record["baseline"]
    theirs = baseline["found"]["recall"] if baseline else {}
    rows = []
    for kind, each in record["found"]["pairs"].items():
        recall = f"{theirs[kind]:.1%}" if kind in theirs else ""
        rows.append(
            (kind, f"{each['planted']:,}", f"{each['found']:,} of {each['reached']:,}", f"{each['recall']:.1%}", recall)
        )
    for kind in ("exact", "near"):
        each = record["found"][kind]
        rows.append(
            (f"precision, {kind}", "", f"{each['right']:,} of {each['dropped']:,}", f"{each['precision']:.1%}", "")
        )
    if baseline:
        told = baseline["found"]
        rows.append(("precision, all marked", "", "", "", f"{told['precision']:.1%}"))
    return Cells("Duplicates planted and found", ("kind", "planted", "found", "ours", "datasketch"), rows)


def _faults(faults: Mapping[str, Mapping[str, Any]]) -> Cells:
    rows = []
    for name, each in sorted(faults.items(), key=lambda item: (item[1]["reason"], item[0])):
        others = ", ".join(f"{count} {reason}" for reason, count in each["others"].items())
        rows.append(
            (f"{each['reason']}: {name}", f"{each['planted']:,}", f"{each['found']:,}", others, f"{each['kept']:,}")
        )
    columns = ("fault", "planted", "found", "for another reason", "kept")
    return Cells("Faults planted and found", columns, rows)


def _times(record: Mapping[str, Any]) -> Cells:
    arms = {"all, first start": record["first"], "second start": record["second"]}
    if record["baseline"]:
        arms["datasketch alone"] = record["baseline"]
    rows = [
        (
            name,
            f"{each['seconds']:.2f}",
            f"{each['rows_per_s']:,.0f}",
            f"{each['process_s']:.1f}",
            mib(each["own_bytes"]),
            mib(each["mapped_bytes"]),
        )
        for name, each in arms.items()
    ]
    title = f"Time and memory, {record['rows']:,} rows of {record['characters']:,.0f} characters"
    return Cells(title, ("what", "seconds", "rows/s", "with start-up, s", "own MiB", "mapped MiB"), rows)


def _steps(record: Mapping[str, Any]) -> Cells:
    def cells(name: str, seconds: float, rows: int) -> tuple[str, ...]:
        return name, f"{seconds:.2f}", f"{rows / seconds:,.0f}" if seconds > 0 else "", f"{rows:,}"

    rows = [cells(name, seconds, record["rows"]) for name, seconds in record["first"]["steps"].items()]
    inside = record["inside"]
    rows += [cells(f"one process: {name}", seconds, inside["rows"]) for name, seconds in inside["steps"].items()]
    if record["baseline"]:
        baseline = record["baseline"]
        rows += [cells(f"datasketch: {name}", seconds, record["rows"]) for name, seconds in baseline["steps"].items()]
    return Cells("Steps", ("step", "seconds", "rows/s", "rows"), rows)


def _memory(sets: list[dict[str, Any]]) -> Cells:
    rows = [
        (
            f"{each['rows']:,} rows, texts x {each['length']}",
            mib(each["file_bytes"]),
            f"{each['seconds']:.1f}",
            mib(each["own_bytes"]),
            mib(each["mapped_bytes"]),
            f"{each['second_s']:.2f}" if "second_s" in each else "",
        )
        for each in sets
    ]
    columns = ("set", "file MiB", "seconds", "own MiB", "mapped MiB", "second start, s")
    return Cells("Memory and the size of the file", columns, rows)


def mib(count: float) -> str:
    """Whole mebibytes."""
    return f"{count / MIB:,.0f}"
