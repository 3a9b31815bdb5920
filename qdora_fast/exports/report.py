"""What an export tells its user: each check of its proof, what was merged into what and why, where it lies."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from qdora_fast.system import console
from qdora_fast.system.notebook import card

_MERGED_INTO = {"original16": "the 16-bit base", "dequant4": "the 4-bit weights that training saw"}


class ExportReport(dict[str, Any]):
    """What an export says of itself, which a notebook shows check by check."""

    def __repr__(self) -> str:
        """What lies where, and whether it is proven, in two lines."""
        return f"Export {self._lies()}, with {', '.join(self)}\n  {self._verdict()}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        proof = self.get("proof") or {}
        notes = [f"{'✓' if check['passed'] else '✗'} {check['words']}" for check in proof.get("checks", ())]
        distance = [proof["distance"]["words"]] if "distance" in proof else []
        state = "good" if proof.get("passed") else "bad" if proof else ""
        return card(f"Export {self._lies()}", self._verdict(), state=state, notes=[*notes, *distance])

    def _lies(self) -> str:
        return f"{self.get('format')} in {self.get('path')}{size_of(self)}"

    def _verdict(self) -> str:
        proof = self.get("proof")
        if not proof:
            return "without a proof of its own"
        if not proof.get("passed", True):
            return "NOT the model that was trained"
        return str(proof.get("words") or f"proven to be the model that was trained ({len(proof['checks'])} checks)")


def size_of(report: dict[str, Any]) -> str:
    """ ", 123 MiB"; empty where it is not known."""
    return f", {report['bytes'] / 2**20:,.0f} MiB" if report.get("bytes") else ""


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
    console.line("exported", f"{report['format']} to {report['path']}{size_of(report)}")
