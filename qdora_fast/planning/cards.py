"""Graphics cards: the ones known by name, and the card or machine that a run is planned for.

`--card` names a card of the table below or its memory in GiB. Memory is what `nvidia-smi` prints for the card, a little
less than what the box says; the figures are from published outputs, not measured here. How fast a card is cannot be
told from its name: a plan's times come from earlier runs (history.py).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from qdora_fast.system import distributed, hardware
from qdora_fast.system.errors import ConfigError

GIB = 2**30
LARGEST_GIB = 1024
"""More than any card has."""
CONTEXT = int(0.5 * GIB)
"""Bytes of the CUDA context, with the kernels of PyTorch, bitsandbytes and Triton. Not measured yet."""

MEMORY_MIB = {
    "RTX 3060": 12_288,
    "RTX 3090": 24_576,
    "RTX 4060 Ti 16GB": 16_380,
    "RTX 4080": 16_376,
    "RTX 4090": 24_564,
    "RTX 5070 Ti": 16_303,
    "RTX 5080": 16_303,
    "RTX 5090": 32_607,
    "TITAN RTX": 24_576,
    "RTX A4000": 16_376,
    "RTX A5000": 24_564,
    "RTX A6000": 49_140,
    "RTX 6000 Ada": 49_140,
    "RTX PRO 6000": 97_887,
    "T4": 15_360,
    "V100 32GB": 32_768,
    "A10": 23_028,
    "A10G": 23_028,
    "A30": 24_576,
    "A40": 46_068,
    "L4": 23_034,
    "L40S": 46_068,
    "A100 40GB": 40_960,
    "A100 80GB": 81_920,
    "H100": 81_559,
    "H200": 143_771,
    "B200": 183_359,
}
"""Memory of well-known cards by name."""


@dataclass(frozen=True)
class Card:
    """A graphics card's memory."""

    name: str
    memory: int
    """Bytes that the driver reports."""

    @classmethod
    def of_gib(cls, gib: float, name: str = "") -> Card:
        """A card of so many GiB."""
        return cls(name or f"a {gib:g} GiB card", int(gib * GIB))

    @property
    def usable(self) -> int:
        """Bytes that PyTorch can allocate: all but the CUDA context."""
        return self.memory - CONTEXT


@dataclass(frozen=True)
class Machine:
    """Where a run happens, or is planned to."""

    card: Card
    on_gpu: bool
    why: str
    """How it was chosen, in a few words."""


ANY_MACHINE = Machine(Card("any card", 2**50), True, "not known yet")
"""For rows that are prepared without being trained on: whatever they need fits."""


def find_card(text: str) -> Card:
    """The card that `--card` names: one of the table, or its memory in GiB.

    Raises:
        ConfigError: an unknown name, with the nearest known ones; or a size that no card has.
    """
    by_key = {_key(name): name for name in MEMORY_MIB}
    by_key |= {key.removeprefix("rtx"): name for key, name in by_key.items()}  # --card 3090
    key = _key(text)
    if key in by_key:
        name = by_key[key]
        return Card(name, MEMORY_MIB[name] * 2**20)
    size = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(?:gib|gb)?\s*", text, flags=re.IGNORECASE)
    if size and 0 < float(size[1]) <= LARGEST_GIB:
        return Card.of_gib(float(size[1]))
    if size:
        raise ConfigError(f"--card {text}: expected a card's name or its memory in GiB, for instance --card 24")
    near = [name for name in MEMORY_MIB if key and _key(name).startswith(key)]
    near = near or list(dict.fromkeys(by_key[each] for each in difflib.get_close_matches(key, by_key, n=3, cutoff=0.5)))
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(MEMORY_MIB)}."
    raise ConfigError(f"--card {text}: no card of this name is known; {hint} Or give its memory: --card 24 (GiB)")


def this_machine(vram: float | None) -> Machine:
    """Where training would happen here: the GPU, within `train.vram` GiB; else the host's free memory."""
    cards = hardware.gpus()
    if not cards:
        import psutil

        free = int(psutil.virtual_memory().available) // distributed.world_size()
        return Machine(Card("this machine's free memory", free), False, "no GPU here")
    first = cards[0]
    if vram is not None and vram < first.memory_gib:
        return Machine(Card.of_gib(vram, first.name), True, "capped by train.vram")
    return Machine(Card.of_gib(first.memory_gib, first.name), True, "this machine's")


def _key(name: str) -> str:
    """A name as it is compared: `NVIDIA GeForce RTX 3090` is `rtx3090`."""
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
