"""When memory runs out: how that is recognised, what can be freed at once, smaller batches for a model that answers.

Three things can be freed without changing a result: the merged weights that the engine caches, the buffers that
Unsloth retains from its largest batch so far, and the allocator's cache. What follows differs. A training step is
repeated in parts (`training/oom.py`). A model that only answers takes fewer rows at a time: half as many until they
fit, also for all that follows; the user is told once. One row that does not fit ends it with OutOfMemory.

Nobody waits for memory to run out after training: `make_room` frees beforehand what only training needs.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.models.backend import free_buffers
from qdora_fast.system.errors import OutOfMemory, first_line

logger = logging.getLogger(__name__)

_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""Texts in errors of torch, CUDA and cuBLAS whose reason is memory."""

ADVICE = (
    "What helps, each by itself: other programs off the card; a smaller evaluation.max_new_tokens; "
    "fewer few-shot examples (evaluation.mmlu.shots); a smaller model.max_length"
)


@dataclass(frozen=True)
class OutOfMemoryEvent:
    """Memory ran out while something was computed that may be tried in another way."""

    reason: str
    """The allocator's own first sentence."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this exception says that the card or the machine has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` returns, or an OutOfMemoryEvent. The exception and the frames that hold its tensors are gone then."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return OutOfMemoryEvent(first_sentence(error))


def first_sentence(error: BaseException) -> str:
    """The first sentence of the allocator's message; the rest is advice about its own settings."""
    return first_line(error).split(". ")[0].rstrip(".")


def give_back(model: Any) -> int:
    """Free the engine's cached weights, Unsloth's buffers and the allocator's cache. Call it where no graph is alive.

    Returns:
        Bytes of the engine's cached weights.
    """
    from qdora_fast.engine.patch import residency

    resident = residency(model)
    freed = resident.release() if resident is not None else 0
    free_buffers(model)
    release_memory()
    return freed


def freed_message(freed: int) -> str:
    """What `give_back` did, for the user; `freed`: the bytes it returned."""
    return f"the engine released {freed / 2**20:,.3g} MiB of cached weights, and the same is tried again"


def make_room(model: Any) -> None:
    """Free what only training needs, before the model answers: cached weights on a GPU, gradients, buffers, cache."""
    from qdora_fast.engine.patch import residency

    resident = residency(model)
    if resident is not None:
        resident.make_room()
    model.zero_grad(set_to_none=True)
    free_buffers(model)
    release_memory()


class Batches:
    """Runs work in batches that become smaller where memory runs out. An evaluation has one for all its work: a size
    that fits with the base fits with the tuned model."""

    def __init__(self, model: Any, on_note: Callable[[str], None] = logger.warning) -> None:
        """on_note: called with a sentence on what was done; once with each."""
        self._model, self._on_note = model, on_note
        self._noted: set[str] = set()
        self._sizes: dict[str, int] = {}

    def run(
        self, items: Sequence[Any], size: int, work: Callable[[Sequence[Any]], Any], doing: str
    ) -> Iterator[tuple[Sequence[Any], Any]]:
        """Consecutive parts of `items`, at most `size` of them, each with what `work` makes of it.

        Args:
            work: may be called again with the same items, or with fewer.
            doing: what this is, for messages: "questions were answered".

        Raises:
            OutOfMemory: a single item does not fit.
        """
        begin = 0
        while begin < len(items):
            chosen = items[begin : begin + min(size, self._sizes.get(doing, size))]
            result = attempt(lambda chosen=chosen: work(chosen))  # type: ignore[misc]
            if isinstance(result, OutOfMemoryEvent):
                self.shrink(result, len(chosen), doing)
                continue
            yield chosen, result
            begin += len(chosen)

    def shrink(self, event: OutOfMemoryEvent, size: int, doing: str) -> int:
        """Free what can be freed.

        Returns:
            How many items to try next: as many where something was freed, else half as many.

        Raises:
            OutOfMemory: one item did not fit, with nothing left to free.
        """
        ran_out = f"memory ran out while {doing} ({event.reason})"
        freed = give_back(self._model)
        if freed:
            self._note(f"{ran_out}; {freed_message(freed)}")
            return size
        if size == 1:
            raise OutOfMemory(f"{ran_out}, with one row at a time and nothing left to free.\n  {ADVICE}")
        self._sizes[doing] = size // 2
        self._note(f"{ran_out}; {size // 2} at a time from here on instead of {size}")
        return size // 2

    def _note(self, message: str) -> None:
        if message not in self._noted:
            self._noted.add(message)
            self._on_note(message)


def release_memory() -> None:
    """Give back what deleted models and tensors held, on the GPU too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
