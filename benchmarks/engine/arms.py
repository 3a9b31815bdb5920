"""Who competes. An arm is a kind of adapter and a way to run it; everything else is the same for all of them.

`install` holds the keywords of `qdora_fast.engine.install`; None means stock PEFT. Each arm of ours is compared with
PEFT's DoRA (what a user of DoRA has today) and with PEFT's LoRA (what he would give DoRA up for).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qdora_fast.system.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """One competitor."""

    name: str
    dora: bool
    install: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def ours(self) -> bool:
        """Whether our engine runs it."""
        return self.install is not None

    @property
    def peft(self) -> str:
        """The PEFT arm with the same adapter: its error is what ours is allowed."""
        return "qdora-peft" if self.dora else "qlora-peft"


ARMS = (
    Arm("qlora-peft", dora=False),
    Arm("qdora-peft", dora=True),
    Arm("qdora-ours", dora=True, install={}),
    Arm("qdora-ours-folded", dora=True, install={"form": "folded", "resident": "off"}),
    Arm("qdora-ours-merged", dora=True, install={"form": "merged", "resident": "off"}),
    Arm("qlora-ours", dora=False, install={}),
    Arm("qlora-ours-no-resident", dora=False, install={"resident": "off"}),
)


GPU_ARMS = (
    Arm("qlora-unsloth", dora=False),
    Arm("qdora-unsloth", dora=True),
    Arm("qdora-ours", dora=True, install={}),
    Arm("qdora-ours-no-resident", dora=True, install={"resident": "off"}),
    Arm("qlora-ours", dora=False, install={}),
)
"""Of the GPU protocol: there "unsloth" is Unsloth as it comes, which sends DoRA to PEFT's forward."""


def choose(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms asked for, all of them by default; the PEFT arms they are compared with come along.

    Raises:
        ConfigError: a name is unknown.
    """
    known = {arm.name: arm for arm in ARMS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"--arms: {', '.join(unknown)} is not an arm; there are {', '.join(known)}")
    wanted = set(names or known)
    wanted |= {known[name].peft for name in wanted}
    return tuple(arm for arm in ARMS if arm.name in wanted)


def ratio_pairs(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """(numerator, denominator) of every ratio worth telling: ours against both PEFT arms, and PEFT's own two."""
    names = [arm.name for arm in arms]
    pairs = [("qdora-peft", "qlora-peft")]
    for arm in arms:
        if arm.ours:
            pairs += [(arm.name, peft) for peft in dict.fromkeys((arm.peft, "qlora-peft"))]
    return [(a, b) for a, b in pairs if a in names and b in names]
