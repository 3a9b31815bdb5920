"""What this machine is and has. Asked without importing torch, so that it costs milliseconds.

The graphics card is read from `nvidia-smi`, which comes with the driver. What cannot be
read is reported as unknown, never guessed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qdora_fast import __version__

PACKAGES = (
    "torch",
    "unsloth",
    "unsloth_zoo",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "triton",
    "xformers",
    "datasketch",
    "regex",
)
BRAKES = {0x8: "hardware slowdown", 0x20: "heat (driver)", 0x40: "heat (hardware)", 0x80: "power supply"}
"""Bits of `clocks_throttle_reasons.active` that are no choice of the user's and no idleness."""
EXTRAS = ("qdora_fast", "lm_eval")
"""Ourselves, and what only some runs need."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card as its driver describes it."""

    name: str
    memory_gib: float
    compute_capability: tuple[int, int] | None
    driver: str


def gpus() -> list[Gpu]:
    """The NVIDIA cards this process may use, in CUDA_VISIBLE_DEVICES' meaning; [] without a driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or os.environ.get("UNSLOTH_FORCE_CPU") == "1":
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cards = [gpu for line in answer.splitlines() if (gpu := _parse(line))]
    chosen = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if chosen and all(part.isdigit() for part in chosen):
        return [cards[int(part)] for part in chosen if int(part) < len(cards)]
    return cards


def _parse(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 4:
        return None
    name, memory, capability, driver = fields
    try:
        memory_gib = float(memory) / 1024
    except ValueError:  # "[N/A]" on cards that share the host's memory
        return None
    major, _, minor = capability.partition(".")
    known = major.isdigit() and minor.isdigit()
    return Gpu(name, memory_gib, (int(major), int(minor)) if known else None, driver)


def brakes(reasons: str) -> list[str]:
    """What holds a card's clocks down, of the driver's `clocks_throttle_reasons.active` (0x0000000000000020)."""
    bits = int(reasons, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) else 0
    return [why for bit, why in BRAKES.items() if bits & bit]


def clock_brakes() -> list[str]:
    """The same of the cards of this machine, now; [] where nothing does, or nothing tells."""
    query = ["nvidia-smi", "--query-gpu=clocks_throttle_reasons.active", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return list(dict.fromkeys(why for line in answer.splitlines() for why in brakes(line.strip())))


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Cores this process may use (fewer than the machine has, under a container's limits)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_versions() -> dict[str, str | None]:
    """Installed version of every package that decides a run's result; None: not installed."""
    versions: dict[str, str | None] = {}
    for package in (*PACKAGES, *EXTRAS):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {**versions, "qdora_fast": __version__}  # what runs; the installed description may be an older checkout's


def free_disk_gib(folder: Path) -> float:
    """Free space in GiB on the file system that holds `folder`, or will."""
    return shutil.disk_usage(nearest_folder(folder)).free / 2**30


def nearest_folder(folder: Path) -> Path:
    """`folder`, or the nearest of those above it that is there."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def cache_folder() -> Path:
    """Where the package keeps what can be made again: QDORA_FAST_CACHE, else ~/.cache/qdora_fast."""
    return Path(os.environ.get("QDORA_FAST_CACHE") or Path.home() / ".cache" / "qdora_fast").expanduser().resolve()


def describe() -> dict[str, object]:
    """The machine and its packages, as written to a run's environment.json."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpu_cores": cpu_count(),
        "gpus": [
            {
                "name": gpu.name,
                "memory_gib": round(gpu.memory_gib, 1),
                "compute_capability": ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else None,
                "driver": gpu.driver,
            }
            for gpu in gpus()
        ],
        "packages": package_versions(),
    }
