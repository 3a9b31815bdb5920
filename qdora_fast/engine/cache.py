"""What follows from A, B and m and stays true until they change: the row norms c, the scale g = m / c, copies of
the small matrices in the type of computation, and W' itself where there is memory to keep it.

c changes when the optimizer steps, not in every forward pass, recomputation and micro-batch; so it is taken once
per optimizer step. The question is how to notice. PyTorch's version counter of A is not enough: fused AdamW and
every bitsandbytes optimizer write weights without raising it, and a cache keyed on it alone keeps ‖W₀‖ for a whole
run. The key here is a count of optimizer steps (a post-hook that PyTorch calls after any optimizer's step) together
with address and version of A, B and m, and the scale; so loading, `set_adapter`, `set_scale` and edits under
`torch.no_grad` are noticed as well.

Not noticed: writes through `parameter.data` in place, outside an optimizer. `CLOCK.advance()` says it by hand.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from qdora_fast.engine import kernels
from qdora_fast.engine.frozen import Dense, FrozenWeight
from qdora_fast.engine.kernels import Kernels


class StepClock:
    """Counts the steps of all optimizers of this process, and tells those who asked."""

    def __init__(self) -> None:
        self.count = 0
        self._listeners: dict[int, weakref.WeakMethod[Callable[[], None]]] = {}
        self._registered = False

    def start(self) -> None:
        """Hook into torch.optim; once is enough for the life of the process."""
        if not self._registered:
            register_optimizer_step_post_hook(lambda *_: self.advance())
            self._registered = True

    def advance(self) -> None:
        """Everything derived from adapters is out of date from here on."""
        self.count += 1
        for key, reference in list(self._listeners.items()):
            listener = reference()
            if listener is None:  # its model is gone
                del self._listeners[key]
            else:
                listener()

    def tell(self, owner: object, listener: Callable[[], None]) -> None:
        """Call `listener`, a method of `owner`, after every step, until `forget(owner)`; does not keep it alive."""
        self._listeners[id(owner)] = weakref.WeakMethod(listener)

    def forget(self, owner: object) -> None:
        """Stop telling."""
        self._listeners.pop(id(owner), None)


CLOCK = StepClock()


class Scratch(threading.local):
    """Memory for one W' at a time on the CPU, where fresh memory of that size costs more than unpacking into it.

    The allocator gives large blocks back to the system, which hands them out again as pages of zeros; on a GPU
    PyTorch keeps them. What is in it is good until the next W' of the same thread.
    """

    smallest = 2**24
    """Bytes from which on it pays: what is smaller, the allocator keeps."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def view(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Memory for a matrix, or None where new memory is as good."""
        size = shape[0] * shape[1] * dtype.itemsize
        if device.type != "cpu" or size < self.smallest:
            return None
        if self._memory is None or self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.uint8)
        return self._memory[:size].view(dtype).view(shape)

    def clear(self) -> None:
        """Give it back."""
        self._memory = None


SCRATCH = Scratch()


class Slot:
    """A layer's place for its W', and whether it may be used. See residency.py.

    Attributes:
        elements: of W'.
        dtype: in which it is expected to be wanted.
        allowed: W' is kept between products.
        relieve: gives the memory of all slots back, returns the bytes; for who runs out of memory.
    """

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.elements, self.dtype = elements, dtype
        self.allowed = False
        self.relieve: Callable[[], int] | None = None
        self._buffer: Tensor | None = None
        self._owner: object | None = None

    @property
    def bytes(self) -> int:
        """Of W'."""
        return self.elements * self.dtype.itemsize

    def keep(self, owner: object, like: tuple[Any, ...], make: Callable[[Tensor], Tensor]) -> Tensor:
        """The owner's W', made into the slot's memory unless it is there already.

        Args:
            owner: whose W' it is; another owner's is overwritten.
            like: shape, dtype and device.
            make: writes W' to the memory it is given.
        """
        buffer = self._memory(*like)
        if self._owner is not owner:
            make(buffer)
            self._owner = owner
        return buffer

    def fill(self, owner: object, shape: tuple[int, int], device: torch.device, make: Callable[[Tensor], Any]) -> Any:
        """What `make` returns besides writing the owner's W'; None, and nothing written, if it has nothing to say."""
        self._owner = None
        result = make(self._memory(shape, self.dtype, device))
        self._owner = None if result is None else owner
        return result

    def _memory(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        buffer = self._buffer
        if buffer is None or buffer.dtype != dtype or buffer.device != device:
            self._owner = None
            self._buffer = buffer = torch.empty(shape, dtype=dtype, device=device)
        return buffer

    def clear(self) -> None:
        """Give the memory back and keep nothing from here on."""
        self.allowed = False
        self._buffer = self._owner = None


class Snapshot:
    """One layer's derived values for one state of A, B and m; a forward pass and its backward share it.

    Attributes:
        norms: c [out], fp32; None for plain LoRA.
        scale: g [out], fp32; None for plain LoRA.
        magnitude: m [out], detached; None for plain LoRA.
        unscaled_rows: rows of zeros in W; None: there are none.
        impl: which kernels; None: what suits the device.
    """

    def __init__(
        self,
        frozen: FrozenWeight,
        lora_a: Tensor,
        lora_b: Tensor,
        magnitude: Tensor | None,
        scaling: float,
        *,
        slot: Slot,
        unscaled_rows: Tensor | None,
        impl: Kernels | None = None,
    ) -> None:
        self.frozen, self.slot, self.unscaled_rows = frozen, slot, unscaled_rows
        self.magnitude, self.scaling, self.device = magnitude, scaling, lora_a.device
        self._lora_a, self._lora_b = lora_a, lora_b
        self.norms: Tensor | None = None
        self.scale: Tensor | None = None
        self._copies: dict[tuple[str, torch.dtype], Tensor] = {}
        self.impl = impl
        if magnitude is not None:
            with kernels.use_kernels(impl):
                self.norms = self._norms_and_resident(magnitude)
            follow(magnitude, self.norms, unscaled_rows)
            self.scale = torch.where(self.norms > 0, magnitude / self.norms, 1.0)

    def _norms_and_resident(self, magnitude: Tensor) -> Tensor:
        """c, and on the way a W' that is kept anyway."""
        update = (self._lora_a, self._lora_b, self.scaling)
        norms: Tensor | None = None
        if self.slot.allowed and self.unscaled_rows is None:
            try:
                norms = self.slot.fill(
                    self, self.frozen.shape, self.device, lambda out: self.frozen.merge(*update, magnitude, out)
                )
            except torch.OutOfMemoryError:
                if self.slot.relieve is not None:
                    self.slot.relieve()
        return self.frozen.norms(*update) if norms is None else norms

    def lora_a(self, dtype: torch.dtype) -> Tensor:
        """A [r, in] in the type of computation."""
        if ("a", dtype) not in self._copies:
            with torch.inference_mode(False), torch.no_grad():
                self._copies["a", dtype] = self._lora_a.to(dtype).contiguous()
        return self._copies["a", dtype]

    def scaled_b(self, dtype: torch.dtype) -> Tensor:
        """s·diag(g)·B [out, r] in the type of computation."""
        if ("b", dtype) not in self._copies:
            with torch.inference_mode(False), torch.no_grad():
                factor = self.scaling if self.scale is None else (self.scaling * self.scale)[:, None]
                self._copies["b", dtype] = (self._lora_b * factor).to(dtype).contiguous()
        return self._copies["b", dtype]

    def merged(self, dtype: torch.dtype) -> Tensor:
        """W' = diag(g) (W + s·B·A), [out, in], rounded once; kept when the layer's slot allows it. Read only,
        and only until the next call: it may lie in the thread's scratch memory."""
        exact = torch.promote_types(dtype, torch.float32)
        update = (self.scaled_b(exact), self.lora_a(exact))

        def make(out: Tensor | None) -> Tensor:
            return self.frozen.matrix(dtype, self.scale, update, out)

        place = (self.frozen.shape, dtype, self.device)
        with torch.inference_mode(False), torch.no_grad():
            return self.slot.keep(self, place, make) if self.slot.allowed else make(SCRATCH.view(*place))

    def folded(self, dtype: torch.dtype) -> Tensor:
        """diag(g) W [out, in]: the form to which the update's product is added apart. Read only."""
        if self.scale is None and isinstance(self.frozen, Dense):
            return self.frozen.matrix(dtype)
        with torch.inference_mode(False), torch.no_grad():
            return self.frozen.matrix(dtype, self.scale, None, SCRATCH.view(self.frozen.shape, dtype, self.device))


def follow(magnitude: Tensor, norms: Tensor, rows: Tensor | None) -> None:
    """Set m := c, in place, on rows whose scale is 1, so that PEFT and a merge read the saved adapter the same way.

    A row that has no length even with its update gets 1: any m gives the same row of zeros, and 0 would look like
    a damaged file.
    """
    if rows is not None:
        lengths = norms[rows]
        magnitude[rows] = torch.where(lengths > 0, lengths, 1.0).to(magnitude.dtype)


class LayerCache:
    """Gives the snapshot that belongs to the layer's parameters as they are now."""

    def __init__(self, frozen: FrozenWeight, slot: Slot, *, decomposed: bool, impl: Kernels | None = None) -> None:
        self.frozen, self.slot, self.impl = frozen, slot, impl
        self.unscaled_rows: Tensor | None = None
        if decomposed:
            rows = (self.base_norms == 0).nonzero()[:, 0]
            self.unscaled_rows = rows if len(rows) else None
        self._key: tuple[Any, ...] | None = None
        self._snapshot: Snapshot | None = None

    def current(self, lora_a: Tensor, lora_b: Tensor, magnitude: Tensor | None, scaling: float) -> Snapshot:
        """The snapshot of these parameters, made anew only if they have changed.

        Args:
            lora_a: A [r, in]. lora_b: B [out, r]. magnitude: m [out], None for LoRA.
        """
        key: tuple[Any, ...] = (
            CLOCK.count,
            scaling,
            lora_a.data_ptr(),
            lora_a._version,
            lora_b.data_ptr(),
            lora_b._version,
        )
        if magnitude is not None:
            key = (*key, magnitude.data_ptr(), magnitude._version)
        if key != self._key or self._snapshot is None:
            device = lora_a.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                data = (lora_a.data, lora_b.data, None if magnitude is None else magnitude.data)
                self._snapshot = Snapshot(
                    self.frozen,
                    *data,
                    scaling,
                    slot=self.slot,
                    unscaled_rows=self.unscaled_rows,
                    impl=self.impl,
                )
            self._key = key
        return self._snapshot

    @property
    def base_norms(self) -> Tensor:
        """‖W‖ of every row, [out], by the routine that computes c."""
        with torch.inference_mode(False), torch.no_grad(), kernels.use_kernels(self.impl):
            return self.frozen.norms()
