"""Memory, counted so that it holds on any machine.

saved   bytes that autograd keeps for backward: each storage once, without parameters, buffers and 4-bit weights
held    bytes of every tensor made during forward that still lives after it. It also sees what `saved` cannot: the
        inputs a checkpoint keeps in its closure, and whatever a Function stores on its `ctx` beside the saved tensors
peak    the most bytes of tensors made during one optimizer step that lived at the same time: activations, gradients,
        temporaries; weights and what the engine keeps resident are not in it

`held` and `peak` follow tensors at PyTorch's dispatcher, so memory taken inside a C++ or custom operator is not seen.
On a GPU the allocator's own peak is reported beside them; max reserved needs a process of its own (gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.engine.subjects import Subject


@dataclass(frozen=True)
class Footprint:
    """Bytes of one arm."""

    saved_bytes: int
    held_bytes: int
    peak_bytes: int
    max_allocated_bytes: int | None = None
    """CUDA's own peak during a step, above what was allocated before it; None on the CPU."""

    def as_dict(self) -> dict[str, int | None]:
        """For the JSON line."""
        return asdict(self)


def footprint(subject: Subject) -> Footprint:
    """Count one arm, in its steady state (call `subject.step()` before)."""
    subject.optimizer.zero_grad(set_to_none=True)
    subject.micro_batch()  # the first micro-batch after an optimizer step may build caches: not ours to count here
    saved = saved_bytes(subject)
    held = held_bytes(subject)
    cuda = subject.case.device.startswith("cuda")
    allocated = None
    if cuda:
        subject.optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        subject.step()
        allocated = torch.cuda.max_memory_allocated() - before
    return Footprint(saved, held, peak_bytes(subject), allocated)


def saved_bytes(subject: Subject) -> int:
    """Distinct storages that autograd packs during forward."""
    known = {_address(tensor) for tensor in persistent(subject.model)}
    storages: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in known:
            storages[_address(tensor)] = tensor.untyped_storage().nbytes(), tensor  # kept: its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = subject.forward()
    total = sum(size for size, _ in storages.values())
    storages.clear()
    subject.backward(output)
    return total


def held_bytes(subject: Subject) -> int:
    """Storages made during forward that outlive it."""
    with _Living() as living:
        graph = subject.forward().grad_fn  # the output itself is the next layer's business, unless the graph keeps it
    total = living.bytes()
    del graph
    return total


def peak_bytes(subject: Subject) -> int:
    """Most bytes alive at once during a step, of storages made in it."""
    subject.optimizer.zero_grad(set_to_none=True)
    return most_alive(subject.step)


def most_alive(work: Callable[[], object]) -> int:
    """Most bytes alive at once while `work` is done, of storages made in it."""
    with _Living() as living:
        work()
    return living.peak


def persistent(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that are there anyway: parameters, buffers, and the parts of 4-bit weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor.data
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            nested = state.state2
            parts: tuple[Any, ...] = (state.absmax, state.code, state.offset)
            parts += (nested.absmax, nested.code) if nested is not None else ()
            yield from (part for part in parts if isinstance(part, Tensor))


class _Living(TorchDispatchMode):
    """Weak references to the storage of everything that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.references: dict[int, tuple[StorageWeakRef, int]] = {}
        self.given: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):  # known before: not made here
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata not in self.references:
                self.given.setdefault(reference.cdata, reference)  # kept: its address stays its own
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self.given:
                self.references[reference.cdata] = reference, storage.nbytes()
        self.peak = max(self.peak, self.bytes())
        return result

    def bytes(self) -> int:
        """Bytes alive now."""
        for key in [key for key, (reference, _) in self.references.items() if reference.expired()]:
            del self.references[key]
        return sum(size for _, size in self.references.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
