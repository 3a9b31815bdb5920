"""The machine under the libraries: Python, memory, disks, and Windows' Linux (WSL), which has traps of its own.

Nothing here imports torch, so the first lines of the page come at once.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system import hardware

NEEDS_GIB = {"models": 16.0, "runs": 20.0, "cache": 1.0}
"""Free space an 8B model asks for: its base in 16 bits; the merged model and checkpoints; prepared rows."""
NEEDS_CPU_GIB = {"models": 1.0, "runs": 1.0, "cache": 1.0}
"""The same without a GPU, where bases are small."""
LEAST_RAM_GIB = {True: 8.0, False: 2.0}
"""Free memory below which it gets tight, with a GPU (paged optimizer, offloaded activations) and without."""
_UNLIMITED = 2**60
_SPILL = (
    "on Windows, NVIDIA Control Panel, 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback; "
    "WSL may ignore it, so leave 1 GiB of the card free"
)


def python() -> Iterator[Finding]:
    """The interpreter's version."""
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("Python", "ok" if good else "wrong", text, "" if good else "use Python 3.11, 3.12 or 3.13")


def memory(*, gpu: bool, limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> Iterator[Finding]:
    """RAM and swap, and a container's limit where it is lower."""
    import psutil

    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit = _limit(limit_file)
    free = min(ram.available, limit) / 2**30
    text = f"{ram.available / 2**30:.1f} of {ram.total / 2**30:.1f} GiB free, swap {swap.total / 2**30:.1f} GiB"
    if limit < ram.total:
        text += f"; this container may use {limit / 2**30:.1f} GiB"
    fix = ""
    if free < LEAST_RAM_GIB[gpu]:
        fix = f"at least {LEAST_RAM_GIB[gpu]:.0f} GiB should be free: close other programs"
        fix += "" if swap.total else ", or add swap"
    yield Finding("memory", "note" if fix else "ok", text, fix)


def disks(folders: Mapping[str, Path], *, gpu: bool) -> Iterator[Finding]:
    """Free space, once for each file system, against what the folders on it are for.

    Args:
        folders: by what they hold (`models`, `runs`, `cache`); they need not exist yet.
    """
    systems: dict[int, list[str]] = {}
    for what, folder in folders.items():
        systems.setdefault(hardware.nearest_folder(folder).stat().st_dev, []).append(what)
    for here in systems.values():
        free = hardware.free_disk_gib(folders[here[0]])
        needed = sum((NEEDS_GIB if gpu else NEEDS_CPU_GIB)[what] for what in here)
        text = f"{free:.{0 if free >= 10 else 1}f} GiB free for "
        text += ", ".join(f"{what} ({folders[what]})" for what in here)
        if free < 1:
            yield Finding("disk", "wrong", f"full: {text}", _room(here))
        elif free < needed:
            model = "an 8B model" if gpu else "a small model"
            yield Finding("disk", "note", text, f"{model} needs {needed:.0f} GiB here: {_room(here)}")
        else:
            yield Finding("disk", "ok", text)
    for what, folder in folders.items():
        if not os.access(hardware.nearest_folder(folder), os.W_OK):
            yield Finding("disk", "wrong", f"{folder} cannot be written to", _MOVES[what])


def cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use at once: its affinity, and a container's share of time, rounded up."""
    allowed = hardware.cpu_count()
    share = quota_file.read_text().split() if quota_file.is_file() else []
    if len(share) == 2 and all(part.isdigit() for part in share):
        allowed = min(allowed, max(1, -(-int(share[0]) // int(share[1]))))
    return allowed


def windows_linux(version: str, folder: Path, *, gpu: bool) -> Iterator[Finding]:
    """Nothing on a plain Linux; on WSL what differs from it.

    Args:
        version: the text of /proc/version.
        folder: where runs are written.
    """
    if "microsoft" not in version.lower():
        return
    if not gpu:
        yield Finding("WSL", "ok", "Linux under Windows")
    else:
        text = "Linux under Windows: a run that does not fit may spill into RAM and crawl instead of stopping"
        yield Finding("WSL", "note", text, _SPILL)
        yield Finding(
            "WSL",
            "note",
            "Windows limits the RAM that can be pinned, and a paged optimizer does not page",
            "if memory runs out with some to spare: train.gradient_checkpointing: torch, train.optimizer: adamw_8bit, "
            "more `memory=` in .wslconfig",
        )
    if re.match(r"/mnt/[a-z](/|$)", str(folder)):
        text = f"{folder} is on a Windows disk: slow to read and write"
        yield Finding("WSL", "note", text, "work in a folder of your Linux home")


def proc_version(path: Path = Path("/proc/version")) -> str:
    """The kernel's description of itself; "" where there is none."""
    return path.read_text(errors="replace") if path.is_file() else ""


_MOVES = {
    "models": "set HF_HOME to a folder on another disk",
    "cache": "set QDORA_FAST_CACHE to a folder on another disk",
    "runs": "start from a folder on another disk, or set run.dir",
}


def _room(names: list[str]) -> str:
    return "free some space, or " + "; ".join(_MOVES[name] for name in names)


def _limit(path: Path) -> int:
    """Bytes that a container's control group allows; a very large number without a limit."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else _UNLIMITED
