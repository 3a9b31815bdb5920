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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from qdora_fast.engine import kernels
from qdora_fast.engine.frozen import FrozenWeight


class StepClock:
    """Counts the steps of all optimizers of this process, and tells those who asked."""

    def __init__(self) -> None:
        self.count = 0
        self._listeners: dict[int, Callable[[], None]] = {}
        self._registered = False

    def start(self) -> None:
        """Hook into torch.optim; once is enough for the life of the process."""
        if not self._registered:
            register_optimizer_step_post_hook(lambda *_: self.advance())
            self._registered = True

    def advance(self) -> None:
        """Everything derived from adapters is out of date from here on."""
        self.count += 1
        for listener in list(self._listeners.values()):
            listener()

    def tell(self, owner: object, listener: Callable[[], None]) -> None:
        """Call `listener` after every step, until `forget(owner)`."""
        self._listeners[id(owner)] = listener

    def forget(self, owner: object) -> None:
        """Stop telling."""
        self._listeners.pop(id(owner), None)


CLOCK = StepClock()


class Slot:
    """A layer's place for its W', and whether it may be used. See residency.py.

    Attributes:
        elements: of W'.
        allowed: W' is kept between products.
        relieve: gives the memory of all slots back, returns the bytes; for who runs out of memory.
    """

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self.allowed = False
        self.relieve: Callable[[], int] | None = None
        self._buffer: Tensor | None = None
        self._owner: object | None = None

    def keep(self, owner: object, like: tuple[Any, ...], make: Callable[[Tensor], Tensor]) -> Tensor:
        """The owner's W', made into the slot's memory unless it is there already.

        Args:
            owner: whose W' it is; another owner's is overwritten.
            like: shape, dtype and device.
            make: writes W' to the memory it is given.
        """
        shape, dtype, device = like
        buffer = self._buffer
        if buffer is None or buffer.dtype != dtype or buffer.device != device:
            self._owner = None
            self._buffer = buffer = torch.empty(shape, dtype=dtype, device=device)
        if self._owner is not owner:
            make(buffer)
            self._owner = owner
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
        self, frozen: FrozenWeight, lora_a: Tensor, lora_b: Tensor, magnitude: Tensor | None, scaling: float,
        *, slot: Slot, unscaled_rows: Tensor | None, impl: str | None = None,
    ) -> None:  # fmt: skip
        self.frozen, self.slot, self.unscaled_rows = frozen, slot, unscaled_rows
        self.magnitude, self.scaling, self.device = magnitude, scaling, lora_a.device
        self._lora_a, self._lora_b = lora_a, lora_b
        self.norms: Tensor | None = None
        self.scale: Tensor | None = None
        self._copies: dict[tuple[str, torch.dtype], Tensor] = {}
        self.impl = impl
        if magnitude is not None:
            with kernels.use_kernels(impl):
                self.norms = frozen.norms(lora_a, lora_b, scaling)
            if unscaled_rows is not None:  # g = 1 for PEFT and for a merge of the saved adapter too
                magnitude[unscaled_rows] = self.norms[unscaled_rows].to(magnitude.dtype)
            self.scale = torch.where(self.norms > 0, magnitude / self.norms, 1.0)

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
        """W' = diag(g) (W + s·B·A), [out, in], rounded once; kept when the layer's slot allows it. Read only."""
        exact = torch.promote_types(dtype, torch.float32)
        update = (self.scaled_b(exact), self.lora_a(exact))

        def make(out: Tensor | None) -> Tensor:
            return self.frozen.matrix(dtype, self.scale, update, out)

        if not self.slot.allowed:
            return make(None)
        with torch.inference_mode(False), torch.no_grad():
            return self.slot.keep(self, (self.frozen.shape, dtype, self.device), make)

    def folded(self, dtype: torch.dtype) -> Tensor:
        """diag(g) W [out, in]: the form to which the update's product is added apart. Read only."""
        return self.frozen.matrix(dtype, self.scale)


class LayerCache:
    """Gives the snapshot that belongs to the layer's parameters as they are now."""

    def __init__(self, frozen: FrozenWeight, slot: Slot, *, decomposed: bool, impl: str | None = None) -> None:
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
        key = (CLOCK.count, scaling, lora_a.data_ptr(), lora_a._version, lora_b.data_ptr(), lora_b._version)
        if magnitude is not None:
            key = (*key, magnitude.data_ptr(), magnitude._version)
        if key != self._key or self._snapshot is None:
            device = lora_a.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                self._snapshot = Snapshot(
                    self.frozen, lora_a.data, lora_b.data, None if magnitude is None else magnitude.data, scaling,
                    slot=self.slot, unscaled_rows=self.unscaled_rows, impl=self.impl,
                )  # fmt: skip
            self._key = key
        return self._snapshot

    @property
    def base_norms(self) -> Tensor:
        """‖W‖ of every row, [out], by the routine that computes c."""
        with torch.inference_mode(False), torch.no_grad(), kernels.use_kernels(self.impl):
            return self.frozen.norms()
