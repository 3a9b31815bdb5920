"""Operations counted at PyTorch's dispatcher, forward and backward apart.

A launch is any operator that does work: views, allocations and metadata are left out. GEMMs and dequantisations are
counted apart, and the bytes that operators read and write are added up (an upper bound of the traffic: caches and
fusion inside an operator are not seen; a custom operator counts once, whatever it launches). On a GPU `launches` asks
torch.profiler for the kernels that really ran, Triton's included, which never pass the dispatcher.

"once" is what the first micro-batch after an optimizer step does beyond the others: DoRA's norm in the engine, and
the rebuilding of resident weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.engine.subjects import Subject

GEMMS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addbmm",
    "linear",
    "matmul",
    "_addmm_activation",
    "mkldnn_linear",
    "_mkldnn_linear",
    "gemm_4bit",
    "gemv_4bit",
    "mv",
    "addmv",
    "dot",
}
"""A matrix times a vector is counted too; it reads the matrix all the same."""
FREE = {
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "set_",
    "resize_",
    "is_same_size",
    "lift_fresh",
    "alias",
    "_local_scalar_dense",
    "item",
    "_reshape_alias",
    "record_stream",
    "is_pinned",
    "is_nonzero",
    "size",
    "stride",
    "device",
    "dim",
    "numel",
    "_efficientzerotensor",
}
"""No work, though their schema does not say so."""


@dataclass(frozen=True)
class Count:
    """Of one stretch of code."""

    gemms: int = 0
    dequantise: int = 0
    launches: int = 0
    """All operators that do work, GEMMs and dequantisations included."""
    traffic_bytes: int = 0

    def minus(self, other: Count) -> Count:
        """What this one has beyond the other."""
        return Count(*(a - b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def as_dict(self) -> dict[str, int]:
        """For the JSON line."""
        return asdict(self)


@dataclass(frozen=True)
class Operations:
    """Of one micro-batch in steady state."""

    forward: Count
    backward: Count
    once: Count
    """Extra work of the first micro-batch after an optimizer step, forward and backward together."""

    def minus(self, other: Operations) -> Operations:
        """Two layers minus one layer: exactly one layer."""
        return Operations(
            self.forward.minus(other.forward), self.backward.minus(other.backward), self.once.minus(other.once)
        )

    def as_dict(self) -> dict[str, dict[str, int]]:
        """For the JSON line."""
        return {name: getattr(self, name).as_dict() for name in ("forward", "backward", "once")}


def operations(subject: Subject) -> Operations:
    """Count one arm; moves its parameters by one optimizer step."""
    subject.step()
    first_forward, first_backward = _micro_batch(subject)
    forward, backward = _micro_batch(subject)
    once = Count(
        *(
            a + b
            for a, b in zip(
                asdict(first_forward.minus(forward)).values(),
                asdict(first_backward.minus(backward)).values(),
                strict=True,
            )
        )
    )
    return Operations(forward, backward, once)


def count(run: Callable[[], Any]) -> tuple[Count, Any]:
    """Run it and count; returns its result as well."""
    with _Counting() as counting:
        result = run()
    return counting.total, result


def launches(run: Callable[[], Any]) -> int:
    """Kernels that really ran on the GPU, copies and fills not counted."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    return sum(not event.name.lower().startswith(("memcpy", "memset")) for event in kernels)


def _micro_batch(subject: Subject) -> tuple[Count, Count]:
    forward, output = count(subject.forward)
    backward, _ = count(lambda: subject.backward(output))
    return forward, backward


class _Counting(TorchDispatchMode):
    """Counts what passes; works inside backward too, where the autograd engine keeps the caller's modes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rsplit("::", 1)[-1]
        if name in FREE or _is_view(func):
            return result
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        self.total = replace(
            self.total,
            gemms=self.total.gemms + (name in GEMMS),
            dequantise=self.total.dequantise + name.startswith("dequantize"),
            launches=self.total.launches + 1,
            traffic_bytes=self.total.traffic_bytes + sum(t.numel() * t.element_size() for t in tensors.values()),
        )
        return result


def _is_view(func: Any) -> bool:
    """Whether all it returns is another look at its arguments."""
    aliases = [item.alias_info for item in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
