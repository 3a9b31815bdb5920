"""The installed packages against two lists: what is accepted (pyproject.toml) and what is tested (constraints.txt).

Outside what is accepted, or missing, is wrong; another version than the tested one is a note. However many differ,
one command fixes them all. Tools for working on this package itself (ruff, pytest) are passed over.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system import hardware
from qdora_fast.system.install import (
    NAME,
    UNSLOTH,
    how_to_set_up,
    installation,
    plain,
    tested_versions,
)

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PACKAGE = Path(__file__).parent.parent.parent
_GPU_ONLY = ("triton", "xformers")
_SHOWN = ("torch", "unsloth", "transformers", "trl", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Pinned:
    """One package we import: what is there, what is tested, what is accepted."""

    name: str
    installed: str | None
    tested: str | None
    accepted: str
    """As pyproject.toml says it; "" accepts all."""

    @property
    def differs(self) -> bool:
        """Another version than the tested one; a build's suffix (+cpu, +cu130) is no difference."""
        return bool(self.installed and self.tested and self.installed.split("+")[0] != self.tested)

    @property
    def refused(self) -> bool:
        """Not within what is accepted."""
        from packaging.specifiers import SpecifierSet

        return bool(self.installed) and not SpecifierSet(self.accepted).contains(self.installed or "", prereleases=True)


def packages(*, gpu: bool, installed: dict[str, str] | None = None) -> Iterator[Finding]:
    """One line for each package that is missing or differs, then how many are as tested.

    Args:
        installed: versions by package name; what is installed here unless given.
    """
    there = _installed() if installed is None else installed
    pins, needed = tested_versions(), _needed(gpu=gpu)
    direct = [Pinned(name, there.get(name), pins.get(name), accepted) for name, accepted in needed.items()]
    tools = {plain(need.name) for need in _requirements("dev")} | {"pip", "hatchling", "editables"}
    others = [
        Pinned(name, there[name], pin, "") for name, pin in pins.items() if name in there.keys() - needed.keys() - tools
    ]
    missing = [p for p in direct if p.installed is None]
    odd = [p for p in direct if p.differs or p.refused]
    odd_others = [p for p in others if p.differs]
    fix = _command([*missing, *odd, *odd_others], gpu=gpu)
    for p in missing:
        yield Finding(p.name, "wrong", "not installed" + (f"; tested with {p.tested}" if p.tested else ""), fix)
    for p in odd:
        text = f"{p.installed}, tested with {p.tested or 'any'}" + (f"; accepted is {p.accepted}" if p.refused else "")
        yield Finding(p.name, "wrong" if p.refused else "note", text, fix)
    if odd_others:
        text = ", ".join(f"{p.name} {p.installed} (tested {p.tested})" for p in odd_others)
        yield Finding("others", "note", f"needed by the above, and differ: {text}", fix)
    if not pins:
        yield Finding("tested set", "note", "constraints.txt did not come along; versions cannot be compared")
        return
    same = len(direct) - len(missing) - len(odd)
    text = f"{same} of {len(direct)} packages we import are as tested"
    text += f", and {len(others) - len(odd_others)} of {len(others)} that those need"
    yield Finding("tested set", "note" if fix else "ok", text, fix)
    yield Finding("versions", "ok", ", ".join(f"{name} {there[name]}" for name in _SHOWN if name in there))


def _command(to_install: Iterable[Pinned], *, gpu: bool) -> str:
    """The one line that brings all of them to the tested version; "" for none."""
    wanted = {p.name: f"{p.name}=={p.tested}" if p.tested else f"{p.name}{p.accepted}" for p in to_install}
    if "torch" in wanted or (gpu and wanted.keys() & {*_GPU_ONLY}):  # most likely set up for the other kind of machine
        return how_to_set_up(gpu=gpu)
    alone = [] if gpu else [wanted.pop(name) for name in UNSLOTH if name in wanted]
    # without a GPU its own requirements name packages that have no build for the CPU
    return installation().adds_packages(*wanted.values(), without_dependencies=alone) if wanted or alone else ""


def _needed(*, gpu: bool) -> dict[str, str]:
    """Names of the packages we import or name ourselves, with the accepted versions."""
    needed = {plain(name): "" for name in hardware.PACKAGES if name not in _GPU_ONLY}
    for need in [*_requirements(""), *_requirements("gpu" if gpu else "cpu")]:
        bounds = sorted(str(need.specifier).split(","), reverse=True)  # the lower one first
        needed[plain(need.name)] = ",".join(bounds) or needed.get(plain(need.name), "")
    return needed


def _requirements(extra: str) -> list[Requirement]:
    """Of this package: those it always has (""), or those of one extra, that apply to this machine."""
    from packaging.requirements import Requirement

    project = _PACKAGE.parent / "pyproject.toml"
    if project.is_file():  # in a checkout; the installed description may be that of an older one
        told = tomllib.loads(project.read_text(encoding="utf-8"))
        extras = told["tool"]["hatch"]["metadata"]["hooks"]["custom"]["extras"]
        lines = extras[extra] if extra else told["project"]["dependencies"]
        return [need for line in lines if (need := Requirement(line)).marker is None or need.marker.evaluate()]
    needs = [Requirement(line) for line in importlib.metadata.requires(NAME) or []]
    always = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [need for need in needs if need not in always and need.marker and need.marker.evaluate({"extra": extra})]


def _installed() -> dict[str, str]:
    """Everything this Python can import as a distribution; the first on the path counts."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half removed package has no name
            versions.setdefault(plain(name), distribution.version)
    return versions
