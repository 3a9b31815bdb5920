"""Records of measurements, and the part of BENCHMARKS.md that is made from them.

A record is the JSON object a benchmark printed, kept as `records/NAME.json`. What lies there is what BENCHMARKS.md
says between its two marker comments; the rest of that file is written by hand. `python -m benchmarks.records`
writes that part anew, and a test holds the two together. Where there is no record of a GPU, it says "not measured".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.data import data_table
from benchmarks.engine import table
from benchmarks.export import export_table
from benchmarks.real import real_table
from qdora_fast.system.errors import ConfigError

FOLDER = Path(__file__).parent / "records"
DOCUMENT = Path(__file__).parent.parent / "BENCHMARKS.md"
BEGIN = "<!-- engine figures: begin. Made from benchmarks/records/ by `make benchmarks`; do not edit. -->"
END = "<!-- engine figures: end -->"


def keep(name: str, record: Mapping[str, Any], folder: Path = FOLDER, document: Path = DOCUMENT) -> Path:
    """Save a record under a name and, in a checkout, write the document's part anew.

    Raises:
        ConfigError: the name is not made of letters, digits, dots and dashes.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
        raise ConfigError(f"--record {name}: take letters, digits, dots and dashes")
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if document.exists():
        document.write_text(renewed(document.read_text(encoding="utf-8"), load(folder)), encoding="utf-8")
    return path


def load(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """All records by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def renewed(document: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """The document with its generated part as the records give it.

    Raises:
        ConfigError: the two marker comments are not there.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"BENCHMARKS.md must hold the lines\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{render(records)}\n{END}{after}"


def render(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The generated part, as Markdown."""
    lines = []
    for kind, title in (("cpu", "CPU"), ("gpu", "GPU")):
        lines += [f"## Engine, {title}", ""]
        chosen = {name: record for name, record in records.items() if record["kind"] == kind}
        for name, record in chosen.items():
            lines += [f"Record `{name}`. {'. '.join(table.provenance(dict(record['machine'])))}.", ""]
            lines += list(_gpu(record) if "kernels" in record else _cpu(record))
        if not chosen:
            lines += ["not measured", ""]
    prepared = {name: record for name, record in records.items() if record["kind"] == "data"}
    if prepared:
        lines += ["## Data preparation", ""]
    for name, record in prepared.items():
        lines += [f"Record `{name}`. {'. '.join(data_table.provenance(record['machine']))}.", "", *_data(record)]
    exported = {name: record for name, record in records.items() if record["kind"] == "export"}
    if exported:
        lines += ["## Exports", ""]
    for name, record in exported.items():
        lines += [f"Record `{name}`. {'. '.join(table.provenance(dict(record['machine'])))}.", "", *_exports(record)]
    real = {name: record for name, record in records.items() if record["kind"] == "real"}
    lines += ["## A real model", "", *([] if real else ["not measured", ""])]
    for name, record in real.items():
        lines += [f"Record `{name}`. {'. '.join(table.provenance(dict(record['machine'])))}.", ""]
        lines += [f"- {line}" for line in real_table.lines(record["stages"])] + [""]
    tested = {name: record for name, record in records.items() if record["kind"] == "peft-tests"}
    if tested:
        lines += ["## PEFT's own tests", ""]
    for name, record in tested.items():
        lines += [f"Record `{name}`. {'. '.join(table.provenance(dict(record['machine'])))}.", "", *_peft_tests(record)]
    return "\n".join(lines)


def _peft_tests(record: Mapping[str, Any]) -> Iterator[str]:
    counts = {
        "chosen": record["collected"],
        "run": record["run"],
        "skipped by PEFT": record["skipped"],
        "want the hub": record["hub"],
        "pass plain and fused": record["passed"],
        "fail plain and fused": record["failed"],
        "fuse a layer": record["fused"],
        "run our forward": record["called"],
        "end otherwise fused": len(record["differing"]),
    }
    yield "PEFT's tests, plain and with every model that a test makes fused; `pytest -k` chooses LoRA and its variants."
    yield ""
    yield from _table(("tests that", "count"), [(said, f"{count:,}") for said, count in counts.items()])
    for test, plain, fused, why in record["differing"]:
        yield f"- `{test}`: {plain} plain, {fused} fused: {why}"
    if record["unfinished"]:
        yield f"- {record['unfinished']:,} tests have not ended in both arms"
    if record["differing"] or record["unfinished"]:
        yield ""


def _exports(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"gate red: {why}" for why in record["gate"]["red"])
    for each in export_table.tables(record):
        yield f"**{each.title}**"
        yield ""
        yield from _table(each.columns, list(each.rows))
    yield " ".join(export_table.remarks(record))
    yield ""


def _cpu(record: Mapping[str, Any]) -> Iterator[str]:
    for result in record["cases"]:
        yield f"**{result['case']}**{_gate(result['gate'])}"
        yield ""
        columns = (*table.TIME, *table.COST)
        yield from _table(
            ("arm", *columns),
            [(name, *table.time_cells(name, result), *table.cost_cells(name, result)) for name in result["arms"]],
        )
    yield f"{table.COLUMNS}."
    yield ""


def _gpu(record: Mapping[str, Any]) -> Iterator[str]:
    yield "Llama-3.1-8B's architecture, random weights, random tokens without padding; arms in fresh processes."
    yield ""
    for result in record["cases"]:
        yield f"**{result['case']}**{_gate(record['gate'])}"
        yield ""
        rows = [
            (name, *table.gpu_time_cells(name, result), *table.gpu_cost_cells(name, result)) for name in result["arms"]
        ]
        yield from _table(("arm", *table.GPU_TIME, *table.GPU_COST), rows)
    kernels = record["kernels"].get("rows", ())
    if kernels:
        yield f"Kernels; a copy runs at {record['kernels']['copy_bytes_per_s'] / 1e9:,.0f} GB/s."
        yield ""
        yield from _table(("kernel", *table.KERNEL), [(row["kernel"], *table.kernel_cells(row)) for row in kernels])


def _data(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["gate"]["passed"]:
        yield f"gate red: no figures ({'; '.join(record['gate']['red'])})"
        yield ""
        return
    for each in data_table.tables(record):
        yield f"**{each.title}**"
        yield ""
        yield from _table(each.columns, list(each.rows))
    yield " ".join(data_table.remarks(record))
    yield ""


def _gate(gate: Mapping[str, Any]) -> str:
    return "" if gate["passed"] else " — gate red: no ratios"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    figures = (all(not row[place] or row[place][0] in "0123456789–-" for row in rows) for place in range(len(columns)))
    yield f"| {' | '.join('---:' if each else '---' for each in figures)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(encoding="utf-8"), load()), encoding="utf-8")
