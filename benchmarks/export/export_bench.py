"""`make bench-export`: what each export costs, how close it is to the trained model, what it keeps of the gain.

Every part runs in a fresh process whose memory is watched (process_tree.py). For each run of export_cases.py: the
merged formats with their proofs, PEFT's own way into 4 bits beside ours, and exports that must fail. For the large
shards: the merge alone against a plain copy of the same files, one and several shards at a time, and a merge that is
killed in the middle and goes on. The gate is red where a proof fails, where a control passes, where the resumed merge
differs in a bit, or where the merge takes more memory than a GiB.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.process_tree import run_alone
from benchmarks.export import export_table
from benchmarks.export.export_cases import SETTINGS, large_checkpoint
from benchmarks.machine import machine
from benchmarks.options import EXPORT_CASES, ExportOptions
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, QdoraError
from qdora_fast.system.hardware import cache_folder

ARM = Path(__file__).with_name("export_arm.py")
MOST_MEMORY = 2**30
"""Bytes that a merge of the large shards may take, pages of files left out."""

EXPORTS: dict[str, dict[str, Any]] = {
    "merged_16bit": {"to": "merged_16bit", "options": {"merge_base": "original16"}},
    "merged_16bit, dequant4": {"to": "merged_16bit", "options": {"merge_base": "dequant4"}},
    "merged_4bit_forced": {"to": "merged_4bit_forced", "options": {}},
}
MERGES: dict[str, dict[str, Any]] = {
    "merged_16bit": {"merge_base": "original16", "nf4": False},
    "merged_16bit, dequant4": {"merge_base": "dequant4", "nf4": False},
    "merged_4bit_forced": {"merge_base": "original16", "nf4": True},
}


@dataclass
class _Bench:
    """One run: where things lie, and what is said."""

    options: ExportOptions
    folder: Path
    said: Callable[[str], None]

    def run(self, task: str, **asked: Any) -> dict[str, Any]:
        """One part in a fresh process, with its memory."""
        return run_alone(ARM, {"task": task, **asked}, cache=cache_folder())

    @contextmanager
    def out(self) -> Iterator[Path]:
        """A folder to export to, gone afterwards: disks are small."""
        out = self.folder / "out"
        try:
            yield out
        finally:
            for path in self.folder.glob("out*"):
                shutil.rmtree(path)


def run_export_benchmark(options: ExportOptions, *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, export, compare; `result["gate"]["passed"]` decides the exit code.

    Raises:
        ConfigError: a case that does not exist.
        QdoraError: a process failed.
    """
    strange = sorted(set(options.cases) - set(EXPORT_CASES))
    if strange:
        raise ConfigError(f"--case {strange[0]}: there are {', '.join(EXPORT_CASES)}")

    def said(text: str) -> None:
        console.print(text)

    with tempfile.TemporaryDirectory(prefix="qdora-fast-bench-", dir=options.folder) as scratch:
        bench = _Bench(options, Path(scratch).resolve(), said)
        runs = {case: _run(bench, case) for case in options.cases if case in SETTINGS}
        large = _large(bench) if "large" in options.cases else None
    record = {
        "kind": "export",
        "options": asdict(options) | {"folder": None},
        "machine": machine(_elsewhere(command)),
        "runs": runs,
        "large": large,
    }
    record["gate"] = _gate(record)
    export_table.show(record)
    return record


def _elsewhere(command: Sequence[str] | None) -> Sequence[str] | None:
    """The command without its folder, which means nothing on another machine."""
    given = list(command or ())
    if "--folder" in given:
        place = given.index("--folder")
        del given[place : place + 2]
    return given or None


def _run(bench: _Bench, case: str) -> dict[str, Any]:
    bench.said(f"{case}: training")
    run = bench.run("train", case=case, folder=str(bench.folder))["run"]
    found: dict[str, Any] = {"exports": {}, "controls": {}}
    for name, asked in EXPORTS.items():
        bench.said(f"{case}: {name}")
        with bench.out() as out:
            found["exports"][name] = _figures(bench.run("export", run=run, out=str(out), **asked))
    bench.said(f"{case}: PEFT's merge_and_unload in 4 bits")
    found["peft"] = bench.run("peft", run=run)
    for to in ("merged_16bit", "merged_4bit_forced"):
        bench.said(f"{case}: exports to {to} that must fail")
        with bench.out() as out:
            found["controls"][to] = bench.run("controls", run=run, out=str(out), to=to)["failed"]
    return found


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an export's report."""
    proof = report["proof"]
    kept = {name: report[name] for name in ("seconds", "merge_seconds", "bytes", "own_bytes", "mapped_bytes")}
    kept |= {name: proof[name] for name in ("passed", "kl", "top1", "distance", "held_out")}
    return kept | {"checks": {check["name"]: check["passed"] for check in proof["checks"]}}


def _large(bench: _Bench) -> dict[str, Any]:
    """Merges of shards that do not fit into the memory that they may take."""
    bench.said(f"large: {bench.options.shards} shards of 0.9 GiB")
    base, adapter = large_checkpoint(bench.folder, bench.options.shards)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    asked: dict[str, Any] = {"base": str(base), "adapter": str(adapter)}
    merges, copies, digests = [], [], {}
    for name, form in MERGES.items():
        for workers in bench.options.workers:
            bench.said(f"large: {name}, {workers} at a time")
            with bench.out() as out:
                copies.append(bench.run("copy", base=str(base), out=str(out))["seconds"])
            with bench.out() as out:
                merge = bench.run("merge", out=str(out), workers=workers, **form, **asked)
            digests[name] = merge.pop("sha256")
            merges.append({"format": name, "workers": workers, **merge})
    bench.said("large: a merge that is killed, and goes on")
    with bench.out() as out:
        form = {"out": str(out), "workers": 1, **MERGES["merged_16bit"], **asked}
        try:
            bench.run("merge", kill_after=size * 2 // 3, **form)
        except QdoraError:
            again = bench.run("merge", **form)
    resumed = {
        "shards": again["resumed"],
        "of": bench.options.shards,
        "seconds": again["seconds"],
        "same": again["sha256"] == digests["merged_16bit"],
    }
    return {"bytes": size, "merges": merges, "copy_s": copies, "resumed": resumed}


def _gate(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must hold for the figures to mean anything."""
    red = []
    for case, run in record["runs"].items():
        red += [f"{case}: {name} failed its proof" for name, each in run["exports"].items() if not each["passed"]]
        for to, failed in run["controls"].items():
            red += [f"{case}: {to} with {name} passed" for name, checks in failed.items() if not checks]
    if record["large"]:
        red += [
            f"large: {each['format']} took {each['own_bytes'] / 2**20:,.0f} MiB"
            for each in record["large"]["merges"]
            if each["own_bytes"] > MOST_MEMORY
        ]
        resumed = record["large"]["resumed"]
        if not (resumed["same"] and 0 < resumed["shards"] < resumed["of"]):
            red.append("large: the resumed merge is not the uninterrupted one")
    return {"passed": not red, "red": red}
