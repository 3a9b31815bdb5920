"""Is this machine ready? Every check says what it found and, where it matters, the fix.

Checked: Python, each package against the tested set, the GPU and its driver, that torch sees
the GPU, that bitsandbytes really quantises to NF4 on this device, that Unsloth imports, and
free disk. Not checked yet: hub access, attention kernels, clocks.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from qdora_fast import hardware
from qdora_fast.backend import open_backend
from qdora_fast.errors import QdoraError

_GPU_ONLY = ("triton", "xformers")


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and the fix where something is wrong."""

    check: str
    status: Literal["ok", "note", "wrong"]
    found: str
    fix: str = ""


def examine(*, as_json: bool = False) -> int:
    """Run all checks and print them; returns the exit code, 1 when something must be mended."""
    findings = list(_findings())
    wrong = [finding for finding in findings if finding.status == "wrong"]
    if as_json:
        print(json.dumps({"ready": not wrong, "findings": [asdict(finding) for finding in findings]}))
        return bool(wrong)
    console = Console(highlight=False, soft_wrap=True)
    marks = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]wrong[/]"}
    for finding in findings:
        console.print(f"{marks[finding.status]}  {finding.check:<14} {finding.found}")
        if finding.fix:
            console.print(f"       {'':<14} → {finding.fix}", markup=False)
    console.print("\nready to train" if not wrong else f"\n{len(wrong)} to mend before training")
    return bool(wrong)


def tested_versions() -> dict[str, str]:
    """The pinned versions of constraints.txt, by package name; {} when the file did not come along."""
    package = Path(__file__).parent
    for path in (package / "constraints.txt", package.parent / "constraints.txt"):
        if path.is_file():
            pins = [line.split("==") for line in path.read_text().splitlines() if "==" in line and line[0] != "#"]
            return {name.lower().replace("-", "_"): version.strip() for name, version in pins}
    return {}


def _findings() -> Iterator[Finding]:
    yield _python()
    cards = hardware.gpus()
    yield from _packages(gpu=bool(cards))
    yield from _graphics_cards(cards)
    yield from _stack()
    free = hardware.free_disk_gib(Path.cwd())
    fix = "an 8B model needs about 40 GiB: 16 for the base, 16 for the merged model, checkpoints" if free < 40 else ""
    yield Finding("disk", "note" if fix else "ok", f"{free:.0f} GiB free here; cache in {hardware.cache_folder()}", fix)


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", "ok" if good else "wrong", found, "" if good else "use Python 3.11, 3.12 or 3.13")


def _packages(*, gpu: bool) -> Iterator[Finding]:
    pins = tested_versions()
    for package, version in hardware.package_versions().items():
        pin = pins.get(package.lower())
        if version is None:
            needed = gpu or package not in _GPU_ONLY
            found = "not installed" + ("" if needed else " (only used on a GPU)")
            yield Finding(package, "wrong" if needed else "ok", found, "make install" if needed else "")
        elif pin and version.split("+")[0] != pin:
            yield Finding(package, "note", f"{version}, tested with {pin}", f'pip install "{package}=={pin}"')
        else:
            yield Finding(package, "ok", version)


def _graphics_cards(cards: list[hardware.Gpu]) -> Iterator[Finding]:
    import torch

    if not cards:
        yield Finding("GPU", "note", f"none; training runs on the CPU ({hardware.cpu_name()})")
        return
    for card in cards:
        capability = ".".join(map(str, card.compute_capability)) if card.compute_capability else "unknown"
        found = f"{card.name}, {card.memory_gib:.1f} GiB, compute capability {capability}, driver {card.driver}"
        old = card.compute_capability is not None and card.compute_capability < (7, 0)
        yield Finding(
            "GPU", "wrong" if old else "ok", found, "Unsloth needs compute capability 7.0 or more" if old else ""
        )
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} does not see the GPU"
        yield Finding(
            "torch", "wrong", found, "make clean && make install PROFILE=gpu; then check the driver's version"
        )


def _stack() -> Iterator[Finding]:
    """The two libraries that fail in ways a version number does not show."""
    try:
        open_backend()
        yield Finding("backend", "ok", "unsloth imports")
    except QdoraError as error:
        yield Finding("backend", "wrong", "unsloth does not import", str(error))
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.linspace(-1, 1, 64 * 128, device=device).reshape(64, 128)
    try:
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        off = float((dequantize_4bit(packed, state) - weight).abs().max())
    except (RuntimeError, NotImplementedError) as problem:
        yield Finding("NF4", "wrong", f"bitsandbytes cannot quantise on the {device}: {problem}", "make install")
        return
    good = off < 0.2  # NF4's widest step is 0.3 of a block's largest value
    yield Finding("NF4", "ok" if good else "wrong", f"bitsandbytes on the {device}, largest rounding error {off:.3f}")
