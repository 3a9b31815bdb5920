"""The doctor's page: findings under headings, each printed as soon as it is known, and at the end what to do first."""

from __future__ import annotations

from collections.abc import Iterable

from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system import console

_MARKS = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]wrong[/]"}
_WIDTH = 13
"""Characters of the longest name of a check."""


def show(findings: Iterable[Finding]) -> list[Finding]:
    """Print findings as they come, each fix once below the last finding that it mends, then the summary.

    Returns:
        The findings.
    """
    seen: list[Finding] = []
    for finding in findings:
        last = seen[-1] if seen else None
        if last and (last.fix, last.topic) != (finding.fix, finding.topic):
            _fix(last)
        if last is None or last.topic != finding.topic:
            console.result(f"{'' if last is None else chr(10)}[bold]{finding.topic}[/]", markup=True)
        console.result(f"  {_MARKS[finding.status]}  {finding.check:<{_WIDTH}} ", end="", markup=True)
        console.result(finding.found)
        seen.append(finding)
    if seen:
        _fix(seen[-1])
    console.result(f"\n{_summary(seen)}")
    return seen


def _fix(finding: Finding) -> None:
    if finding.fix:
        console.result(f"         {'':<{_WIDTH}} → {finding.fix}")


def _summary(findings: list[Finding]) -> str:
    wrong = [finding for finding in findings if finding.status == "wrong"]
    notes = sum(finding.status == "note" for finding in findings)
    also = f"{notes} note{'s'[: notes != 1]} to read" if notes else ""
    if not wrong:
        return "ready to train" + (f"; {also}" if also else "")
    first = wrong[0]
    do = f": {first.fix}" if first.fix else ""
    return f"{len(wrong)} to mend before training{f'; {also}' if also else ''}\nfirst, {first.check}{do}"
