"""The record of `make bench-export` as tables, for the console and for BENCHMARKS.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.data.data_table import Cells, mib, print_tables
from benchmarks.engine.table import provenance
from qdora_fast.system import console

COST = ("run", "format", "seconds", "merge s", "own MiB", "mapped MiB", "size MiB")
CLOSE = ("run", "format", "KL", "top-1", "base", "trained", "exported", "gain kept")
MERGE = ("format", "at a time", "seconds", "GB/s", "copy, GB/s", "own MiB", "mapped MiB")


def show(record: Mapping[str, Any]) -> None:
    """All tables and where the figures are from; what makes the gate red comes first."""
    for why in record["gate"]["red"]:
        console.print(f"gate RED: {why}", style="bold red")
    print_tables(tables(record))
    for line in ("", *remarks(record), *provenance(dict(record["machine"]))):
        console.print(line)


def tables(record: Mapping[str, Any]) -> Iterator[Cells]:
    """What each export costs and keeps, the exports that must fail, and the merge of large shards."""
    if record["runs"]:
        yield Cells("Exports of tuned runs: cost", COST, list(_costs(record["runs"])))
        yield Cells(
            "Exports of tuned runs: distance from the trained model, held-out loss", CLOSE, list(_close(record["runs"]))
        )
        yield _controls(record["runs"])
    if record["large"]:
        yield _merges(record["large"])


def remarks(record: Mapping[str, Any]) -> list[str]:
    """What the tables do not say, one sentence a line."""
    said = [
        "Seconds of an export include loading the trained model, its record, the merge and the whole proof; `merge s` "
        "is the merge alone.",
        "KL (nats per token) and top-1 are against the trained model, losses those of the proof rows, which are held "
        "out. Memory is the peak of the process and its children: `own` cannot be given back, `mapped` is the same "
        "with pages of files.",
    ]
    large = record["large"]
    if large:
        resumed, same = large["resumed"], "the same" if large["resumed"]["same"] else "OTHER"
        said.append(
            f"Killed after two thirds of its bytes and started again, the merge took {resumed['shards']} of "
            f"{resumed['of']} shards from before and needed {resumed['seconds']:.1f} s more; {same} bytes as in one go."
        )
    return said


def _costs(runs: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for case, run in runs.items():
        for name, each in run["exports"].items():
            times = (f"{each['seconds']:.1f}", f"{each['merge_seconds']:.2f}")
            yield (case, name, *times, mib(each["own_bytes"]), mib(each["mapped_bytes"]), mib(each["bytes"]))


def _close(runs: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for case, run in runs.items():
        for name, each in run["exports"].items():
            yield (case, name, *_closeness(each))
        yield (case, "PEFT merge_and_unload, 4 bits", *_closeness(run["peft"]))


def _closeness(each: Mapping[str, Any]) -> tuple[str, ...]:
    distance = each.get("distance") or each["survival"]  # the name in records before version 2
    kept = "not judged" if distance["kept"] is None else f"{distance['kept']:.1%}"
    losses = (f"{distance[name]:.4f}" for name in ("base", "trained", "exported"))
    return (f"{each['kl']:.2g}", f"{each['top1']:.3f}", *losses, kept)


def _controls(runs: Mapping[str, Any]) -> Cells:
    rows = [
        (case, to, name, ", ".join(checks) or "PASSED")
        for case, run in runs.items()
        for to, failed in run["controls"].items()
        for name, checks in failed.items()
    ]
    return Cells("Exports that must fail, and the checks that they fail", ("run", "format", "with", "fails"), rows)


def _merges(large: Mapping[str, Any]) -> Cells:
    size, rows = large["bytes"] / 1e9, []
    for each, copy_s in zip(large["merges"], large["copy_s"], strict=True):
        rows.append(
            (
                each["format"],
                str(each["workers"]),
                f"{each['seconds']:.1f}",
                f"{size / each['seconds']:.2f}",
                f"{size / copy_s:.2f}",
                mib(each["own_bytes"]),
                mib(each["mapped_bytes"]),
            )
        )
    return Cells(f"The merge alone: {size:.1f} GB of a 70B model's largest layers", MERGE, rows)
