"""Resident weights: with memory to spare, W' of as many layers as fit stays between products.

W' changes only when the optimizer steps, yet it is made in every forward pass, every recomputation and every
backward pass. A resident W' costs its 2 bytes an element (4 in fp32) and saves all of that: most with gradient
accumulation and short batches, where unpacking is a large share of a step.

Which layers: the time saved per byte is the same for every layer but for the fixed cost of the launches that make
W', which weighs more the smaller the layer. So small layers come first; equal ones in the model's order.

How much: a number of GiB, or `auto`. On the CPU auto is half of the memory that is free at install time. On a GPU it
is decided after the first optimizer step, when the peak of a whole step is known: what neither the step nor others
used (CUDA's context, other programs), less a margin. Before that, and while a model only answers, nothing is resident.

Resident memory is released without harm, for W' can always be made again: after every optimizer step if the machine is
short of memory, by `make_room()` before anything that is not training, and by `release()`, for whoever handles an
out-of-memory error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from qdora_fast.engine.cache import CLOCK, Slot

Resident = Literal["auto", "off"] | float
"""auto, off, or GiB."""

SHARE_OF_FREE = 0.5
"""Of the free memory of a CPU machine that `auto` may take."""
LOW_MEMORY = 0.10
"""A machine with less than this share of its memory free is short of it."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the machine's memory."""
GPU_MARGIN = 0.05
"""Share of a card's memory that `auto` leaves unused."""


@dataclass(frozen=True)
class Memory:
    """Free and total bytes of where the model lies."""

    free: int
    total: int


def machine_memory() -> Memory:
    """Of the host."""
    memory = psutil.virtual_memory()
    return Memory(int(memory.available), int(memory.total))


def card_memory() -> Memory:
    """Of the current GPU: what neither a step so far nor anybody else has needed counts as free."""
    total = card_total()
    return Memory(total - beside_torch() - int(torch.cuda.max_memory_reserved()), total)


def card_total() -> int:
    """Bytes of the current GPU; less where the process is held to a share of it (`train.vram`)."""
    card = int(torch.cuda.mem_get_info()[1])
    return min(card, beside_torch() + int(card * torch.cuda.get_per_process_memory_fraction()))


def beside_torch() -> int:
    """Bytes of the current GPU that the driver sees in use beside what PyTorch has reserved: the CUDA context, paged
    optimizer state, other programs."""
    free, card = torch.cuda.mem_get_info()
    return int(card - free - torch.cuda.memory_reserved())


class Residency:
    """Decides which layers keep W' resident, and releases it.

    Args:
        slots: the layers' places, in the model's order.
        choice: auto, off, or GiB.
        on_gpu: where they lie.
        probe: how memory is asked for; for tests.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        choice: Resident,
        *,
        on_gpu: bool,
        probe: Callable[[], Memory] | None = None,
    ) -> None:
        self._slots = list(slots)
        for slot in self._slots:
            slot.relieve = self.release
        self._choice, self._on_gpu = choice, on_gpu
        self._probe = probe or (card_memory if on_gpu else machine_memory)
        self._look_again = 0.0
        self.given_up = ""
        """Why resident memory was released; empty while it was not."""
        if choice != "off" and not (choice == "auto" and on_gpu):
            self.admit(self.budget())
        if choice != "off":
            CLOCK.tell(self, self._after_step)
        self.later = choice == "auto" and on_gpu
        """The budget is not known yet: the first optimizer step decides."""

    @property
    def layers(self) -> int:
        """How many layers may keep their W'."""
        return sum(slot.allowed for slot in self._slots)

    @property
    def bytes(self) -> int:
        """What they take when all are in use: belongs in every estimate of memory."""
        return sum(slot.bytes for slot in self._slots if slot.allowed)

    def budget(self) -> int:
        """Bytes that may be resident now."""
        if self._choice == "off":
            return 0
        if self._choice != "auto":
            return int(float(self._choice) * 2**30)
        memory = self._probe()
        if self._on_gpu:
            return max(0, memory.free - int(GPU_MARGIN * memory.total))
        return max(0, int(SHARE_OF_FREE * memory.free))

    def admit(self, budget: int) -> None:
        """Let layers keep W' while they fit into `budget` bytes, smallest first."""
        for slot in sorted(self._slots, key=lambda slot: slot.elements):
            slot.allowed = slot.bytes <= budget
            budget -= slot.bytes if slot.allowed else 0

    def release(self, why: str = "memory ran out") -> int:
        """Release all resident memory; nothing is resident from here on. Returns the bytes that were allowed.

        Nothing is lost: W' is made for each product again.
        """
        held = self.bytes
        for slot in self._slots:
            slot.clear()
        if held:
            self.given_up = why
        if held and self._on_gpu:
            torch.cuda.empty_cache()
        return held

    def make_room(self) -> None:
        """Prepare for what is not training and was not counted when layers were admitted. On a GPU all is released; on
        the CPU it stays, for it makes answers faster, unless the machine is short of memory."""
        self.later = False
        if self._on_gpu:
            self.release("the model only answers from here on")
        elif self.bytes:
            self._release_if_short()

    def close(self) -> None:
        """Release, and stop listening to optimizers."""
        self.release("the engine was uninstalled")
        CLOCK.forget(self)
        for slot in self._slots:
            slot.relieve = None

    def _after_step(self) -> None:
        if self.later:
            self.later = False
            self.admit(self.budget())
        elif not self._on_gpu and self.bytes and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + LOOK_EVERY
            self._release_if_short()

    def _release_if_short(self) -> None:
        memory = self._probe()
        if memory.free < LOW_MEMORY * memory.total:
            self.release(f"only {memory.free / 2**30:.1f} GiB of memory are free")
