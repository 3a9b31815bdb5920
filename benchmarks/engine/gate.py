"""Correct first: an arm of ours may be wrong by no more than PEFT is, plus a tolerance.

Compared with the fp64 oracle by relative Frobenius error: output, dx, and dA, dB, dm of every layer. PEFT is not exact
either, and in bf16 far from it; its own error on the same tensors is the yardstick, so that the gate means the same at
every width and depth. Two bounds for each kind of tensor:

    the root mean square over layers    <= PEFT's + tolerance         (one layer: that layer's error)
    every single layer                  <= 2 x PEFT's + tolerance

The second is looser because behind several bf16 layers the error of one tensor is luck: with other seeds the same code
is now above PEFT by 40 % on one layer, now below, while the mean is steady within a few per cent. It still catches the
one layer among many that is wrong. An arm of ours that left a layer or a call to PEFT is out of bounds as well. One arm
out of bounds makes the whole case red: it is shown by how much, and no ratio is given for the case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from benchmarks.engine.oracle import ask
from benchmarks.engine.subjects import Subject

TOLERANCE = {"fp32": 1e-5, "bf16": 2.0**-8, "bf16-pure": 2.0**-8}
SINGLE = 2.0
"""A single layer may be off by this many times PEFT's error, plus the tolerance."""
KINDS = ("output", "dx", "dA", "dB", "dm")


@dataclass(frozen=True)
class Finding:
    """One kind of tensor of one arm, against one of the two bounds."""

    arm: str
    tensor: str
    """output, dx, "dA of all layers", or a gradient's kind and its layer: the one that comes closest to its bound."""
    ours: float
    peft: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Within the bound; NaN is not."""
        return self.ours <= self.allowed


@dataclass(frozen=True)
class Gate:
    """Everything that was compared for one case."""

    findings: tuple[Finding, ...]
    tolerance: float
    strangers: tuple[str, ...] = ()
    """Arms of ours that ran PEFT's forward in part: their figures would be PEFT's."""

    @property
    def red(self) -> tuple[Finding, ...]:
        """What is out of bounds."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def passed(self) -> bool:
        """Whether ratios may be told."""
        return not self.red and not self.strangers

    def as_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        findings = [{**asdict(finding), "passed": finding.passed} for finding in self.findings]
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "findings": findings,
            "strangers": list(self.strangers),
        }


def check(subjects: Sequence[Subject]) -> Gate:
    """Run every arm once beside the oracle; the subjects are all arms of one case, as built."""
    tolerance = TOLERANCE[subjects[0].case.dtype]
    peft: dict[str, tuple[dict[str, Tensor], dict[str, float]]] = {}
    for subject in subjects:
        if not subject.arm.ours:
            truth = ask(subject)
            peft[subject.arm.name] = truth, errors(subject.probe(), truth)
    findings: list[Finding] = []
    for subject in subjects:
        if subject.arm.ours:
            truth, baseline = peft[subject.arm.peft]
            findings += compare(subject.arm.name, errors(subject.probe(), truth), baseline, tolerance)
    strangers = [f"{subject.arm.name}: {why}" for subject in subjects for why in subject.left_to_peft()]
    return Gate(tuple(findings), tolerance, tuple(strangers))


def compare(arm: str, ours: dict[str, float], peft: dict[str, float], tolerance: float) -> list[Finding]:
    """Every kind of tensor against its bounds."""
    findings = []
    for kind in KINDS:
        names = [name for name in ours if name.split()[0] == kind]
        if not names:
            continue
        theirs = _mean_square_root(peft[name] for name in names)
        said = names[0] if len(names) == 1 else f"{kind} of all layers"
        findings.append(Finding(arm, said, _mean_square_root(ours[name] for name in names), theirs, theirs + tolerance))
        if len(names) > 1:
            each = [Finding(arm, name, ours[name], peft[name], SINGLE * peft[name] + tolerance) for name in names]
            findings.append(max(each, key=lambda finding: (not finding.passed, finding.ours / finding.allowed)))
    return findings


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """||found - truth|| / ||truth|| of every tensor, in fp64.

    Raises:
        AssertionError: the arm and the oracle do not have the same tensors.
    """
    assert found.keys() == truth.keys(), sorted(found.keys() ^ truth.keys())
    return {
        name: float((found[name].double() - truth[name]).norm() / truth[name].norm().clamp_min(1e-300))
        for name in truth
    }


def _mean_square_root(values: Iterable[float]) -> float:
    squares = [value**2 for value in values]
    return math.sqrt(sum(squares) / len(squares))
