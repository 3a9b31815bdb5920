"""When memory runs out: how that is recognised, what can be freed at once, smaller batches for a model that answers.

Three things can be freed without changing a result: the engine's kept weights, the buffers that Unsloth keeps from its
largest batch so far, and the allocator's cache. What to do after that differs.
A training step is repeated in parts (oom.py). A model that is only asked takes fewer rows at a time: half as many
until it fits, for all that follows, which is said once. One row that does not fit ends it with OutOfMemory.

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

_SAID = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What errors of torch, CUDA and cuBLAS say when memory is the reason."""

ADVICE = (
    "What helps, each by itself: other programs off the card; a smaller evaluation.max_new_tokens; "
    "fewer few-shot examples (evaluation.mmlu.shots); a smaller model.max_length"
)


@dataclass(frozen=True)
class Lack:
    """Memory ran out; why is the allocator's own first sentence."""

    why: str


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this exception says that the card or the machine has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` returns, or Lack. The exception and the frames that hold its tensors are gone by then."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Lack(first_sentence(error))


def first_sentence(error: BaseException) -> str:
    """Of what the allocator says; the rest is advice about its own settings."""
    return first_line(error).split(". ")[0].rstrip(".")


def give_back(model: Any) -> int:
    """Free the engine's kept weights, Unsloth's buffers and the allocator's cache; bytes of the first. Call it where no
    graph is alive."""
    from qdora_fast.engine.patch import residency

    kept = residency(model)
    given = kept.release() if kept is not None else 0
    free_buffers(model)
    release_memory()
    return given


def make_room(model: Any) -> None:
    """Free what only training needs, before the model is asked: kept weights on a GPU, gradients, buffers, cache."""
    from qdora_fast.engine.patch import residency

    kept = residency(model)
    if kept is not None:
        kept.make_room()
    model.zero_grad(set_to_none=True)
    free_buffers(model)
    release_memory()


class Batches:
    """Runs work in batches that become smaller where memory runs out. One for all work of an evaluation: what is found
    out with the base holds for the tuned model."""

    def __init__(self, model: Any, on_note: Callable[[str], None] = logger.warning) -> None:
        """on_note: told what was done, in a sentence; the same one once."""
        self._model, self._on_note = model, on_note
        self._told: set[str] = set()
        self._most: dict[str, int] = {}

    def run(
        self, items: Sequence[Any], size: int, work: Callable[[Sequence[Any]], Any], doing: str
    ) -> Iterator[tuple[Sequence[Any], Any]]:
        """Consecutive parts of `items`, at most `size` of them, each with what `work` makes of it.

        Args:
            work: may be called again with the same items, or with fewer.
            doing: what this is, in words: "questions were answered".

        Raises:
            OutOfMemory: a single item does not fit.
        """
        begin = 0
        while begin < len(items):
            chosen = items[begin : begin + min(size, self._most.get(doing, size))]
            found = attempt(lambda chosen=chosen: work(chosen))  # type: ignore[misc]
            if isinstance(found, Lack):
                self.smaller(found, len(chosen), doing)
                continue
            yield chosen, found
            begin += len(chosen)

    def smaller(self, lack: Lack, size: int, doing: str) -> int:
        """Free what can be freed; how many items to try next.

        Raises:
            OutOfMemory: one did not fit, with nothing left to free.
        """
        ran_out = f"memory ran out while {doing} ({lack.why})"
        given = give_back(self._model)
        if given:
            freed = f"the engine gave back {given / 2**20:,.3g} MiB of kept weights, and the same is tried again"
            self._note(f"{ran_out}; {freed}")
            return size
        if size == 1:
            raise OutOfMemory(f"{ran_out}, with one row at a time and nothing left to free.\n  {ADVICE}")
        self._most[doing] = size // 2
        self._note(f"{ran_out}; {size // 2} at a time from here on instead of {size}")
        return size // 2

    def _note(self, said: str) -> None:
        if said not in self._told:
            self._told.add(said)
            self._on_note(said)


def release_memory() -> None:
    """Give back what deleted models and tensors held, on the GPU too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
