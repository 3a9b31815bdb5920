"""The record as tables, for people. A ratio is shown only where the gate is green.

Also what is said when it is red: which tensor of which arm, and by how much. Two narrow tables a case rather than a
wide one, so that they survive a log of eighty columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from qdora_fast.system import console
from qdora_fast.system.console import grid

MIB = 2**20
TIME = ("step ms", "quartiles", "tokens/s", "/ DoRA", "/ LoRA")
COST = ("peak", "resident", "saved", "held", "GEMMs", "launches")


def show_case(result: dict[str, Any]) -> None:
    """Step time with its quartiles and ratios; then bytes and operations."""
    for finding in result["gate"]["findings"]:
        if not finding["passed"]:
            off = f"off by {finding['ours']:.2e}, PEFT by {finding['peft']:.2e}, allowed {finding['allowed']:.2e}"
            console.print(f"  RED {finding['arm']}: {finding['tensor']} is {off}", style="bold red")
    for stranger in result["gate"]["strangers"]:
        console.print(f"  RED {stranger}", style="bold red")
    for columns, cells in ((TIME, time_cells), (COST, cost_cells)):
        console.print(_grid("arm", columns, [(name, cells(name, result)) for name in result["arms"]]))


def time_cells(name: str, result: dict[str, Any]) -> list[str]:
    """One arm's row under TIME; / DoRA and / LoRA are to PEFT's."""
    figures = result["arms"][name]
    time = figures["step_s_spread"]
    return [
        f"{figures['step_s'] * 1e3:.1f}",
        f"{time['lower'] * 1e3:.1f}-{time['upper'] * 1e3:.1f}",
        f"{figures['tokens_per_s']:,.0f}",
        ratio_cell(result["ratios"], name, "qdora-peft"),
        ratio_cell(result["ratios"], name, "qlora-peft"),
    ]


def cost_cells(name: str, result: dict[str, Any]) -> list[str]:
    """One arm's row under COST; operations are forward + backward."""
    figures = result["arms"][name]
    forward, backward = (figures["operations"][part] for part in ("forward", "backward"))
    return [
        mib(figures["peak_bytes"]),
        mib(figures["resident_bytes"]),
        mib(figures["layer_saved_bytes"]),
        mib(figures["layer_held_bytes"]),
        f"{forward['gemms']}+{backward['gemms']}",
        f"{forward['launches']}+{backward['launches']}",
    ]


def show_machine(record: dict[str, Any]) -> None:
    """Where the figures are from, and what the columns count."""
    for line in ("", *provenance(record["machine"]), COLUMNS):
        console.print(line)
    if not record["gate"]["passed"]:
        console.print(f"gate RED: {'; '.join(record['gate']['red'])}", style="bold red")


COLUMNS = (
    "Ratios are of step times, to PEFT's QDoRA and QLoRA, paired by round; red gate: none. Bytes in MiB: peak of a "
    "whole step of the whole case, counted by tensors (activations, gradients, temporaries), without weights and "
    "without what the engine keeps resident; saved (by autograd) and held (by anything, until backward), GEMMs and "
    "launches (forward + backward) are of one layer and one micro-batch"
)


def provenance(machine: dict[str, Any]) -> list[str]:
    """Machine, versions, commit, date and command."""
    packages = ("torch", "triton", "unsloth", "transformers", "peft", "bitsandbytes")
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in packages if machine["packages"][name])
    cards = ", ".join(f"{gpu['name']} {gpu['memory_gib']:.0f} GiB" for gpu in machine["gpus"])
    where = f"{cards}; " if cards else ""
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] != 1 else "")
    return [
        f"{where}{machine['cpu']}, {threads}; Python {machine['python']}, {versions}",
        f"{machine['date']}, qdora_fast {machine['commit']}: {machine['command']}",
    ]


def mib(count: int | None) -> str:
    """Mebibytes with one decimal; empty where nothing was measured."""
    return "" if count is None else f"{count / MIB:.1f}"


def ratio_cell(ratios: dict[str, Any], a: str, b: str) -> str:
    """The median; empty where there is none, which is everywhere if the gate is red."""
    found = ratios.get(f"{a}/{b}")
    return f"{found['median']:.2f}" if found else ""


def show_gpu(record: dict[str, Any]) -> None:
    """The GPU protocol: a table a shape, the kernels, and where it was."""
    for case in record["cases"]:
        console.print(f"\n{case['case']}")
        for columns, cells in ((GPU_TIME, gpu_time_cells), (GPU_COST, gpu_cost_cells)):
            console.print(_grid("arm", columns, [(name, cells(name, case)) for name in case["arms"]]))
    kernels = record["kernels"]
    if kernels.get("error"):
        console.print(f"kernels: not measured: {kernels['error']}", style="bold red")
    if kernels.get("rows"):
        console.print(f"\nkernels (a copy runs at {kernels['copy_bytes_per_s'] / 1e9:,.0f} GB/s)")
        console.print(_grid("kernel", KERNEL, [(row["kernel"], kernel_cells(row)) for row in kernels["rows"]]))
    for name, figures in record["arms"].items():
        if "error" in figures:
            console.print(f"{name} failed: {figures['error']}", style="bold red")
    gate = record["gate"]
    for why in (*gate["disagreements"], *([gate["error"]] if "error" in gate else ())):
        console.print(f"gate RED: {why}", style="bold red")
    for line in ("", *provenance(record["machine"]), "random weights, random tokens, no padding"):
        console.print(line)


GPU_TIME = ("step ms", "quartiles", "tokens/s", "/ QLoRA", "/ DoRA")
"""Ratios are to Unsloth's own two arms."""
GPU_COST = ("steps", "allocated GiB", "reserved GiB", "launches")
KERNEL = ("shape", "µs", "twin µs", "GB/s", "of the roofline")


def gpu_time_cells(name: str, case: dict[str, Any]) -> list[str]:
    """One arm's row under GPU_TIME."""
    figures = case["arms"][name]
    if "error" in figures:
        return ["failed", *[""] * (len(GPU_TIME) - 1)]
    time = figures["step_s_spread"]
    ratios = (case["ratios"].get(f"{name}/{other}") for other in ("qlora-unsloth", "qdora-unsloth"))
    return [
        f"{figures['step_s'] * 1e3:.1f}",
        f"{time['lower'] * 1e3:.1f}-{time['upper'] * 1e3:.1f}",
        f"{figures['tokens_per_s']:,.0f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
    ]


def gpu_cost_cells(name: str, case: dict[str, Any]) -> list[str]:
    """One arm's row under GPU_COST; launches are of a micro-batch of the whole model."""
    figures = case["arms"][name]
    if "error" in figures:
        return [""] * len(GPU_COST)
    memory = (figures["max_allocated_bytes"], figures["max_reserved_bytes"])
    return [
        f"{figures['step_s_spread']['count']}",
        *("" if count is None else f"{count / 2**30:.2f}" for count in memory),
        str(figures["launches_per_micro_batch"] or ""),
    ]


def kernel_cells(row: dict[str, Any]) -> list[str]:
    """One kernel's row under KERNEL."""
    return [
        row["shape"],
        f"{row['seconds'] * 1e6:.1f}",
        f"{row['torch_seconds'] * 1e6:.1f}",
        f"{row['bytes'] / row['seconds'] / 1e9:,.0f}",
        f"{row['roofline_share']:.0%}",
    ]


def _grid(first: str, columns: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
    table = grid(first, *columns)
    for name, cells in rows:
        table.add_row(name, *cells)
    return table
