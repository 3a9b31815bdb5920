"""The graphics cards: their driver against the CUDA version torch was built for, and what slows them down.

The driver is asked through `nvidia-smi`, torch through what it says of itself, and each answer is a plain value, so
that a machine with a GPU can be judged without one. What a card does not tell is left out, never guessed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system import hardware
from qdora_fast.system.hardware import Gpu
from qdora_fast.system.install import how_to_set_up

DRIVERS = {11: 450, 12: 525, 13: 580}
"""The first driver branch that runs programs built for a CUDA major version."""
_HEALTH = (
    "index",
    "temperature.gpu",
    "power.limit",
    "power.default_limit",
    "clocks.sm",
    "clocks.max.sm",
    "memory.used",
    "clocks_throttle_reasons.active",
)
_HOT_C = 85
_OTHERS_GIB = 2.0
"""Memory that other programs may hold without a word: a desktop takes about one."""


@dataclass(frozen=True)
class TorchBuild:
    """What torch says of itself."""

    version: str
    cuda: str | None
    """The CUDA version it was built for; None: a build for the CPU."""
    sees: int
    """GPUs it can use."""
    architectures: tuple[str, ...] = ()
    """Those it has machine code for, as `sm_90`."""


def torch_build() -> TorchBuild:
    """Of the installed torch."""
    import torch

    sees = torch.cuda.device_count() if torch.cuda.is_available() else 0
    architectures = tuple(torch.cuda.get_arch_list()) if sees else ()
    return TorchBuild(str(torch.__version__), torch.version.cuda, sees, architectures)


def ask_driver(*arguments: str) -> str:
    """The answer of `nvidia-smi`; "" when there is none."""
    try:
        asked = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout


def cards(gpus: Sequence[Gpu], *, hidden: bool) -> Iterator[Finding]:
    """Each card; or that there is none, or none to be used.

    Args:
        hidden: a card is in the machine, whether its driver answers or not; see `on_the_bus`.
    """
    if not gpus:
        why = _hidden_by()
        if hidden and not why:
            fix = "install or restart the NVIDIA driver (`nvidia-smi` must answer); a container needs --gpus all"
            yield Finding("GPU", "note", "an NVIDIA card is there, but its driver does not answer", fix)
        else:
            what = f"not used ({why})" if why else "none"
            yield Finding("GPU", "note", f"{what}; training runs on the CPU ({hardware.cpu_name()})")
    for card in gpus:
        capability = ".".join(map(str, card.compute_capability)) if card.compute_capability else "unknown"
        text = f"{card.name}, {card.memory_gib:.1f} GiB, compute capability {capability}"
        if card.compute_capability is None or card.compute_capability >= (8, 0):
            yield Finding("GPU", "ok", text)
        elif card.compute_capability >= (7, 0):
            yield Finding("GPU", "note", f"{text}: computes in fp16, as it has no bf16")
        else:
            yield Finding("GPU", "wrong", text, "Unsloth needs compute capability 7.0 or more")


def on_the_bus(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether an NVIDIA display adapter is plugged in, as the kernel sees it without any driver."""
    for device in devices.glob("*") if devices.is_dir() else ():
        vendor, kind = device / "vendor", device / "class"
        if vendor.is_file() and vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            return True
    return False


def driver(gpus: Sequence[Gpu], build: TorchBuild, banner: str) -> Iterator[Finding]:
    """The driver's version against the CUDA version torch was built for.

    Args:
        banner: what `nvidia-smi` prints without arguments; it names the newest CUDA version the driver knows.
    """
    if not gpus:
        return
    version = gpus[0].driver
    match = re.search(r"CUDA[\w ]* Version\s*:\s*(\d+)\.(\d+)", banner)
    knows = (int(match[1]), int(match[2])) if match else None
    text = version + (f", knows CUDA up to {knows[0]}.{knows[1]}" if knows else "")
    if build.cuda is None:
        yield Finding("driver", "ok", text)
        return
    built = tuple(int(part) for part in build.cuda.split(".")[:2])
    branch, needed = version.split(".")[0], DRIVERS.get(built[0])
    too_old = needed is not None and re.fullmatch(r"\d+", branch) is not None and int(branch) < needed
    text += f"; torch was built for {build.cuda}"
    if too_old or (knows is not None and knows[0] < built[0]):
        least = f"{needed} or newer" if needed else "the newest"
        fix = f"update the NVIDIA driver ({least}) and restart; for a container on its host, for WSL on Windows"
        yield Finding("driver", "wrong", f"too old: {text}", fix)
    elif knows is not None and knows < built:
        fix = "update the NVIDIA driver if a kernel fails to load"
        yield Finding("driver", "note", f"{text}, which mostly works", fix)
    else:
        yield Finding("driver", "ok", text)


def torch_sees(gpus: Sequence[Gpu], build: TorchBuild) -> Iterator[Finding]:
    """Whether torch can use the cards, and has code for them."""
    set_up = how_to_set_up(gpu=True)
    kind = f"built for CUDA {build.cuda}" if build.cuda else "built for the CPU"
    text = f"{build.version}, {kind}"
    missing = [card for card in gpus if card.compute_capability and not _has_code(card.compute_capability, build)]
    if not gpus:
        fix = "`nvidia-smi` is missing: presets cannot be chosen by the card's memory" if build.sees else ""
        yield Finding("torch", "note" if fix else "ok", text + (", sees a GPU" if build.sees else ""), fix)
    elif build.cuda is None:
        yield Finding("torch", "wrong", f"{text}: it does not see the GPU", set_up)
    elif not build.sees:
        fix = f"fix the driver first if it is wrong; else check CUDA_VISIBLE_DEVICES and --gpus; else {set_up}"
        yield Finding("torch", "wrong", f"{text}: it does not see the GPU", fix)
    elif missing:
        has = ", ".join(build.architectures)
        yield Finding("torch", "wrong", f"{text}: no machine code for the {missing[0].name} (has {has})", set_up)
    else:
        yield Finding("torch", "ok", f"{text}, sees {build.sees} GPU{'s'[: build.sees != 1]}")


def health(answer: str) -> Iterator[Finding]:
    """Heat, power, clocks and memory in use of each card, as notes.

    Args:
        answer: of `nvidia-smi` to `health_question()`.
    """
    for line in answer.splitlines():
        told = dict(zip(_HEALTH, (field.strip() for field in line.split(",")), strict=False))
        numbers = {name: float(text) for name, text in told.items() if re.fullmatch(r"\d+(\.\d+)?", text)}
        name = f"GPU {told['index']} now"
        if condition := _condition(numbers):
            yield Finding(name, "ok", condition)
        for worry, fix in _worries(told, numbers):
            yield Finding(name, "note", worry, fix)


def health_question() -> tuple[str, ...]:
    """The arguments to `nvidia-smi` whose answer `health` reads, for the cards this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    only = (f"--id={chosen}",) if re.fullmatch(r"\d+(,\d+)*", chosen) else ()
    return (f"--query-gpu={','.join(_HEALTH)}", "--format=csv,noheader,nounits", *only)


def _condition(numbers: dict[str, float]) -> str:
    parts = []
    if "temperature.gpu" in numbers:
        parts.append(f"{numbers['temperature.gpu']:.0f} °C")
    if "power.limit" in numbers:
        usual = f" (usual {numbers['power.default_limit']:.0f})" if "power.default_limit" in numbers else ""
        parts.append(f"power limit {numbers['power.limit']:.0f} W{usual}")
    if "clocks.sm" in numbers:
        most = f" of {numbers['clocks.max.sm']:.0f}" if "clocks.max.sm" in numbers else ""
        parts.append(f"clock {numbers['clocks.sm']:.0f}{most} MHz (low when idle)")
    if "memory.used" in numbers:
        parts.append(f"{numbers['memory.used'] / 1024:.1f} GiB in use")
    return ", ".join(parts)


def _worries(told: dict[str, str], numbers: dict[str, float]) -> Iterator[tuple[str, str]]:
    """What slows a run down, each with its fix."""
    if numbers.get("temperature.gpu", 0) >= _HOT_C:
        yield f"hot: from about {_HOT_C} °C a card lowers its clocks", "look at the fans and the air around it"
    usual = numbers.get("power.default_limit", 0)
    capped = numbers.get("power.limit", usual)
    if capped < 0.9 * usual:
        restore = f"sudo nvidia-smi -i {told['index']} -pl {usual:.0f}"
        yield f"its power is capped at {capped:.0f} of {usual:.0f} W: slower, and cooler", restore
    used = numbers.get("memory.used", 0) / 1024
    if used > _OTHERS_GIB:
        yield f"other programs hold {used:.1f} GiB of its memory", "close them; nvidia-smi lists them"
    brakes = hardware.brakes(told.get("clocks_throttle_reasons.active", ""))
    if brakes:
        yield f"slowed down right now by: {', '.join(brakes)}", "look at cooling and power supply"


def _has_code(capability: tuple[int, int], build: TorchBuild) -> bool:
    """Machine code of the same major and no newer minor version, or portable code no newer than the card."""
    if not build.architectures:
        return True
    for architecture in build.architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
        if not match:
            continue
        made_for = (int(match[2]), int(match[3]))
        if made_for <= capability and (match[1] == "compute" or made_for[0] == capability[0]):
            return True
    return False


def _hidden_by() -> str:
    if os.environ.get("UNSLOTH_FORCE_CPU") == "1":
        return "UNSLOTH_FORCE_CPU=1"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={visible!r}" if visible in ("", "-1") else ""
