"""The mathematics of a LoRA and a DoRA layer in plain PyTorch: the specification.

    c = ‖W + s·B·A‖₂ per output row, detached (DoRA paper, arXiv 2402.09353, section 4.3)
    y = (m / c) ⊙ (x Wᵀ + s (x Aᵀ) Bᵀ) + b                     the bias is not scaled

Everything fast in this folder is measured against these few lines: tests compare outputs and every
gradient, and `engine.impl: reference` trains with them. Autograd differentiates them; nothing here is
written for speed: the weight is dense, the norm is taken anew in every call.

Letters, here and in the whole engine: x [T, in], W [out, in] frozen, A [r, in], B [out, r], m, c, g = m/c [out],
s = alpha/r (alpha/√r for rsLoRA), b [out], dY the gradient of y.

Dropout has two forms. PEFT drops the input of the base weight too, as far as it is rescaled (its form costs a
second base product); ours drops the input of the update alone, as LoRA does. Without dropout they are the same.

A row of zeros in W has no direction: its scale is 1, whatever m says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def row_norms(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """c = ‖W + s·B·A‖₂ of every output row, [out], detached; in fp32 at least.

    Upstream: peft `DoraLinearLayer.get_weight_norm`, which takes it in the weight's own dtype.
    """
    with torch.no_grad():
        exact = torch.promote_types(weight.dtype, torch.float32)
        update = lora_b.to(exact) @ lora_a.to(exact)  # [out, r] @ [r, in] -> [out, in]
        return torch.linalg.vector_norm(weight.to(exact) + scaling * update, dim=1)


def row_scale(magnitude: Tensor | None, norms: Tensor | None) -> Tensor | None:
    """g = m / c, [out]; 1 where the row has no length; None for plain LoRA (no magnitude)."""
    if magnitude is None or norms is None:
        return None
    return torch.where(norms > 0, magnitude / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0)


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    magnitude: Tensor | None,
    scaling: float,
    *,
    dropped: Tensor | None = None,
    peft_dropout: bool = False,
    unscaled_rows: Tensor | None = None,
) -> Tensor:
    """One layer, differentiable by autograd.

    Args:
        x: [..., in].
        magnitude: m [out] for DoRA; None for LoRA.
        dropped: dropout(x) [..., in]; None without dropout.
        peft_dropout: PEFT's form of dropout; see above.
        unscaled_rows: indices of rows whose scale is 1 (rows of zeros in W).

    Returns:
        [..., out] in the dtype that PyTorch's promotion gives.
    """
    dropped = x if dropped is None else dropped
    base = functional.linear(x, weight)  # [..., in] @ [in, out] -> [..., out]
    update = scaling * functional.linear(functional.linear(dropped, lora_a), lora_b)
    scale = row_scale(magnitude, None if magnitude is None else row_norms(weight, lora_a, lora_b, scaling))
    if scale is None:
        y = base + update
    else:
        if unscaled_rows is not None:
            scale = scale.index_fill(0, unscaled_rows, 1.0)
        y = base + (scale - 1) * functional.linear(dropped, weight) if peft_dropout else scale * base
        y = y + scale * update
    return y if bias is None else y + bias
