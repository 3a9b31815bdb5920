"""What an export tells its user: each check of its proof, what was merged into what and why, where it lies."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from qdora_fast.system import console

_MERGED_INTO = {"original16": "the 16-bit base", "dequant4": "the 4-bit weights that training saw"}


def print_report(report: dict[str, Any]) -> None:
    """The proof, check by check."""
    proof = report.get("proof")
    for check in proof["checks"] if proof else []:
        mark = "[green]passed[/]" if check["passed"] else "[red]FAILED[/]"
        console.line("", f"{mark} {escape(check['words'])}", markup=True)
    if proof and "words" in proof:
        console.line("", proof["words"])
    if proof and "distance" in proof:
        console.line("distance", proof["distance"]["words"])
    if report.get("merge_base_reason"):
        console.line("merged", f"into {_MERGED_INTO[report['merge_base']]}: {report['merge_base_reason']}")
    for warning in proof.get("warnings", ()) if proof else ():
        console.line("", f"[yellow]warning[/] {escape(warning)}", markup=True)
    size = f", {report['bytes'] / 2**20:,.0f} MiB" if report.get("bytes") else ""
    console.line("exported", f"{report['format']} to {report['path']}{size}")
