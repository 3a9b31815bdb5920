"""One result of the doctor, and how a check is run so that a check that breaks becomes a result, too.

A machine that is not ready is ready to break anything: a library half installed, a driver that answers nonsense, a
folder that may not be read. So every check runs alone, and what it did not foresee is a finding like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from qdora_fast.system.console import short
from qdora_fast.system.install import how_to_set_up


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's page: what was found, and the fix where there is something to do."""

    check: str
    status: Literal["ok", "note", "wrong"]
    """wrong: training will not work; note: it will, and there is something to know."""
    found: str
    fix: str = ""
    topic: str = ""
    """The heading it stands under; set by `examined`."""


@dataclass(frozen=True)
class Check:
    """Something to look at. `look` gives any number of findings, and may fail in any way."""

    topic: str
    name: str
    look: Callable[[], Iterable[Finding]]
    vital: bool = False
    """Training cannot work where this cannot be checked."""


def examined(check: Check) -> list[Finding]:
    """The findings of one check. Whatever it raises is a finding as well."""
    findings: list[Finding] = []
    try:
        findings.extend(check.look())
    except Exception as problem:  # noqa: BLE001  the doctor must come to its end on a machine that is broken anywhere
        text = short(f"could not be checked: {type(problem).__name__}: {problem}")
        fix = f"this sets up the tested environment: {how_to_set_up()}" if check.vital else ""
        findings.append(Finding(check.name, "wrong" if check.vital else "note", text, fix))
    return [replace(finding, topic=check.topic) for finding in findings]
