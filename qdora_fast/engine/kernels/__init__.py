"""The engine's six operations on tensors and numbers, each in two implementations: Triton and PyTorch.

On CUDA tensors Triton runs, elsewhere the PyTorch twins, which are shipped, tested as the reference, and fast on a
CPU. `with use_kernels("torch")` chooses for the calls within; the choice belongs to the context, so threads do
not disturb each other. PyTorch runs the backward of CUDA tensors in a thread of its own, which does not see it: an
autograd function keeps `chosen()` in its forward and uses it in its backward.

Triton is imported at the first call that needs it; without it installed everything runs in PyTorch. fp64 always
does: it serves gradient checks. No operation here is differentiable: call them within autograd functions, or under
`torch.no_grad`. Arguments are taken as they are: shapes and devices are the caller's business.

Letters: T tokens, W [out, in], A [r, in], B [out, r], L [out, r], R [r, in].
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from qdora_fast.engine.kernels import torch_ops
from qdora_fast.engine.kernels.packed import NF4Weight, block_scales, unpack
from qdora_fast.engine.kernels.torch_ops import BLOCK_ELEMENTS, GluGradients

__all__ = [
    "BLOCK_ELEMENTS",
    "GluGradients",
    "NF4Weight",
    "block_scales",
    "chosen",
    "column_dot",
    "dequantize",
    "glu_backward",
    "glu_forward",
    "merge",
    "row_norms",
    "unpack",
    "use_kernels",
]

Kernels = Literal["triton", "torch"]
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_choice: ContextVar[Kernels | None] = ContextVar("kernels", default=None)


def dequantize(
    weight: NF4Weight,
    *,
    row_scale: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """diag(row_scale) W + L @ R, computed in fp32 (fp64 for a result in fp64) and rounded once.

    Without an update and with a scale of 1 this is bitsandbytes' `dequantize_4bit`, bit for bit.

    Args:
        row_scale: g [out]; None: 1. It multiplies absmax, and code times that is the value.
        low_rank: L [out, r], with g and s in it already, and R [r, in].
        dtype: of the result; that of `out` or of the weight unless given.
        out: memory [out, in] to write to, rows contiguous.

    Returns:
        [out, in]; `out` itself if given.
    """
    dtype = dtype or (weight.dtype if out is None else out.dtype)
    assert out is None or (out.dtype == dtype and out.shape == weight.shape), "out has another shape or dtype"
    module = _implementation("triton_nf4", weight.packed, dtype)
    result: Tensor = module.dequantize(weight, row_scale, low_rank, dtype, out)
    return result


def row_norms(
    weight: NF4Weight | Tensor, lora_a: Tensor | None = None, lora_b: Tensor | None = None, scaling: float = 1.0
) -> Tensor:
    """c = ‖W + s·B·A‖₂ of every row, fp32 [out]; fp64 as soon as an argument is.

    An NF4 weight counts as code times absmax, before any rounding to 16 bits; all is fp32. Without A and B it is ‖W‖,
    with the very bits that B = 0 gives.
    """
    given = [part.dtype for part in (weight, lora_a, lora_b) if part is not None]
    dtype = torch.float64 if torch.float64 in given else torch.float32
    module = _implementation("triton_norms", weight.packed if isinstance(weight, NF4Weight) else weight, dtype)
    result: Tensor = module.row_norms(weight, lora_a, lora_b, scaling)
    return result


def merge(weight: NF4Weight, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor, out: Tensor) -> Tensor:
    """Write W' = diag(m / c) (W + s·B·A) to `out` and return c, fp32 [out]: `row_norms` and `dequantize` at once.

    The twin unpacks W once for both, and scales the sum instead of its parts (a difference in the last bit of fp32).
    On a GPU a row's norm must be complete before its first value is written, so these are the two launches.

    Args:
        magnitude: m [out]; a row whose c is 0 is scaled by 1.
        out: [out, in], rounded to once.
    """
    if _implementation("triton_nf4", weight.packed, out.dtype) is torch_ops:
        return torch_ops.merge(weight, lora_a, lora_b, scaling, magnitude, out)
    norms = row_norms(weight, lora_a, lora_b, scaling)
    scale = torch.where(norms > 0, magnitude / norms, 1.0)
    dequantize(weight, row_scale=scale, low_rank=(lora_b.float() * (scaling * scale)[:, None], lora_a.float()), out=out)
    return norms


def column_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_t a ⊙ b of two [T, n], fp32 [n] (fp64 for fp64). Products are not rounded; the same bits every time."""
    module = _implementation("triton_reduce", a, torch.promote_types(a.dtype, b.dtype))
    result: Tensor = module.column_dot(_rows(a), _rows(b))
    return result


def glu_forward(e: Tensor, g: Tensor, activation: str) -> Tensor:
    """h = act(e) · g, [T, n], computed in fp32 and rounded once to the dtype of e.

    Raises:
        ValueError: `activation` is none of "silu", "gelu", "gelu_tanh".
    """
    module = _implementation("triton_glu", e, e.dtype)
    h: Tensor = module.glu_forward(_rows(e), _rows(g), _known(activation))
    return h


def glu_backward(
    dh: Tensor, e: Tensor, g: Tensor, activation: str, dots: bool, *, spend_dh: bool = False
) -> GluGradients:
    """h again, and the gradients of e and g, from that of h = act(e) · g; all [T, n], new tensors.

    With `spend_dh` dg lies where dh was, if the two can share memory.

    With `dots` also Σ_t de ⊙ e and Σ_t dg ⊙ g, fp32 [n] (fp64 for fp64), of de and dg before they are rounded.

    Raises:
        ValueError: `activation` is none of "silu", "gelu", "gelu_tanh".
    """
    module = _implementation("triton_glu", e, e.dtype)
    dg = dh if spend_dh and dh.is_contiguous() and dh.dtype == e.dtype else None
    gradients: GluGradients = module.glu_backward(_rows(dh), _rows(e), _rows(g), _known(activation), dots, dg)
    return gradients


@contextmanager
def use_kernels(kernels: Kernels | None) -> Iterator[None]:
    """Use one implementation for the calls within; None: by the device again.

    Raises:
        ImportError: Triton is asked for and not installed.
        ValueError: another name.
    """
    if kernels not in ("triton", "torch", None):
        raise ValueError(f"kernels are 'triton' or 'torch', not {kernels!r}")
    if kernels == "triton" and not _has_triton():
        raise ImportError("the Triton kernels need triton, which is not installed; `pip install triton` (Linux only)")
    token = _choice.set(kernels)
    try:
        yield
    finally:
        _choice.reset(token)


def chosen(tensor: Tensor) -> Kernels:
    """Which implementation a call on this tensor uses here, unless it is fp64."""
    choice = _choice.get()
    return choice or ("triton" if tensor.is_cuda and _has_triton() else "torch")


def _implementation(module: str, tensor: Tensor, dtype: torch.dtype) -> ModuleType:
    if dtype == torch.float64 or chosen(tensor) == "torch":
        return torch_ops
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "Triton kernels need CUDA tensors; on a CPU set TRITON_INTERPRET=1 before Triton is imported"
        )
    return _import(module)


@functools.cache
def _import(module: str) -> ModuleType:
    return importlib.import_module(f"qdora_fast.engine.kernels.{module}")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _rows(matrix: Tensor) -> Tensor:
    """Rows may lie apart, the values of a row may not."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _known(activation: str) -> str:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    return activation
