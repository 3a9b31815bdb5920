"""A group of adapted layers that read the same x, as one autograd function with a hand-written backward.

One layer is a group of one; QKV is a group of three, gate and up a group of two. With g = 1 the same code is
plain LoRA. Two forms give the same function (letters as in reference.py):

    merged   W' = diag(g)(W + s·B·A), made while W is unpacked;   y = x W'ᵀ,                      dX = dY W'
    folded   W_g = diag(g) W, B_g = s·diag(g)·B;                  y = x W_gᵀ + (x Aᵀ) B_gᵀ,       dX = dY W_g + u A

and for both, with u = dY B_g and P = dYᵀ (x Aᵀ):

    dA = uᵀ x      dB = s·diag(g)·P      dm = Σ_t dY ⊙ (y - b) / m

Merged saves the passes over [T, out] and [T, in] that LoRA itself pays for, and rounds once; it costs out·in·r
operations to make W', which long sequences (or a resident W') repay. `prefers_merged` decides.

Saved for the backward: x (shared), y of each DoRA layer, and nothing else of size; x Aᵀ and W' are made again.

Given up: second derivatives (refused); m = 0 exactly, which gets no gradient; and writing into the output in place,
which autograd refuses (y is needed for dm). An optimizer step between forward and backward mixes old and new values,
as it does in PyTorch's own layers where the optimizer does not raise versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qdora_fast.engine import kernels
from qdora_fast.engine.cache import Snapshot

MERGE_RATIO = {"cpu": 8.0, "cuda": 0.5}
"""Merged from this multiple of in·out / (in + out) tokens on; see `prefers_merged`. The CPU's is measured (LOG.md,
2026-11-25); the GPU's is the cost model's, where one kernel unpacks W and adds the update: not measured."""


@dataclass
class Projection:
    """One layer of a group, for one call. What autograd differentiates (A, B, m) is passed beside it."""

    snapshot: Snapshot
    bias: Tensor | None
    trains_magnitude: bool
    """dm is wanted, so y is saved."""
    private_output: bool = False
    """The caller overwrites y in place (Unsloth's RoPE does, untracked): save a copy."""
    form: str = "auto"
    """merged, folded, or auto."""

    def merged(self, tokens: int) -> bool:
        """Which form this call takes."""
        if self.form != "auto":
            return self.form == "merged"
        shape = self.snapshot.frozen.shape
        return self.snapshot.slot.allowed or prefers_merged(tokens, shape, self.snapshot.device.type)


def prefers_merged(tokens: int, shape: tuple[int, int], device: str) -> bool:
    """Merged or folded, for a W' that is not cached?

    Making W' costs out·in·r multiplications where folded spends T·(in + out)·r, forward and backward alike, so by
    operations they break even at T = in·out / (in + out). What each operation costs is the machine's: MERGE_RATIO.
    """
    out_features, in_features = shape
    return tokens * (in_features + out_features) >= MERGE_RATIO.get(device, 1.0) * in_features * out_features


def adapted_group(
    x: Tensor,
    projections: Sequence[Projection],
    parameters: Sequence[Tensor | None],
    *,
    dropped: Tensor | None = None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """y of each projection, [..., out], from one x.

    Args:
        x: [..., in]; need not be contiguous.
        projections: the layers.
        parameters: A, B, m of each in turn (m None for LoRA); autograd's view of them.
        dropped: dropout(x), seen by the updates alone; forces the folded form.
        dtype: of computation. out_dtype: of y.
    """
    call = _Call(list(projections), dtype, out_dtype)
    if not torch.is_grad_enabled():
        snapshot = call.projections[0].snapshot
        return tuple(retry_without_resident(snapshot, lambda: call.forward(x, dropped, keeps=False))[0])
    outputs: Any = _Group.apply(x, dropped, call, *parameters)
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _Call:
    """Shapes, types and steps of one forward pass and its backward."""

    def __init__(self, projections: list[Projection], dtype: torch.dtype, out_dtype: torch.dtype) -> None:
        self.projections, self.dtype, self.out_dtype = projections, dtype, out_dtype

    def forward(
        self, x: Tensor, dropped: Tensor | None, *, keeps: bool = True
    ) -> tuple[list[Tensor], Tensor, list[Tensor | None]]:
        """Outputs in the caller's shape and type; the update's input [T, in]; y [T, out] where it is saved for dm."""
        flat = x.reshape(-1, x.shape[-1]).to(self.dtype)
        seen = flat if dropped is None else dropped.reshape(flat.shape).to(self.dtype)
        results = forward_group(flat, seen, self.projections)
        saved: list[Tensor | None] = []
        outputs = []
        for projection, y in zip(self.projections, results, strict=True):
            shaped = y.view(*x.shape[:-1], y.shape[-1]).to(self.out_dtype)
            outputs.append(shaped)
            private = projection.private_output and shaped.data_ptr() == y.data_ptr()
            wanted = keeps and projection.trains_magnitude
            saved.append((y.clone() if private else y) if wanted else None)
        return outputs, seen, saved


class _Group(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor | None, call: _Call, *parameters: Tensor | None) -> Any:
        """y of each layer; keeps x and the y that dm needs."""
        outputs, seen, saved = retry_without_resident(call.projections[0].snapshot, lambda: call.forward(x, dropped))
        ctx.call, ctx.shape, ctx.types = call, x.shape, (x.dtype, None if dropped is None else dropped.dtype)
        ctx.parameter_types = [None if p is None else p.dtype for p in parameters]
        # A and B ride along for autograd's check that nobody has overwritten them.
        ctx.save_for_backward(seen, *saved, *(p for p in parameters if p is not None and p.ndim == 2))
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """dx, d(dropped), and dA, dB, dm of each layer."""
        refuse_second_derivative()
        call: _Call = ctx.call
        count = len(call.projections)
        seen, *saved = ctx.saved_tensors[: 1 + count]
        flat = [None if dy is None else dy.reshape(-1, dy.shape[-1]).to(call.dtype) for dy in gradients]
        wanted = ctx.needs_input_grad
        dx, dseen, dparameters = retry_without_resident(
            call.projections[0].snapshot,
            lambda: backward_group(
                flat,
                seen,
                saved,
                call.projections,
                wants_x=wanted[0],
                apart=ctx.types[1] is not None,
                wants_seen=wanted[1],
                wants=wanted[3:],
            ),
        )
        dx = None if dx is None else dx.view(ctx.shape).to(ctx.types[0])
        dseen = None if dseen is None else dseen.view(ctx.shape).to(ctx.types[1])
        typed = [
            d if d is None or t is None else d.to(t) for d, t in zip(dparameters, ctx.parameter_types, strict=True)
        ]
        return dx, dseen, None, *typed


def forward_group(x: Tensor, seen: Tensor, projections: Sequence[Projection]) -> list[Tensor]:
    """y [T, out] of each projection, from x [T, in] and what the update sees of it (x itself, or dropout(x))."""
    merged = [seen is x and p.merged(x.shape[0]) for p in projections]
    shrunk = iter(_shrink(seen, [p.snapshot for p, done in zip(projections, merged, strict=True) if not done]))
    outputs = []
    for projection, is_merged in zip(projections, merged, strict=True):
        snapshot = projection.snapshot
        bias = None if projection.bias is None else projection.bias.to(x.dtype)
        weight = snapshot.merged(x.dtype) if is_merged else snapshot.folded(x.dtype)
        y = functional.linear(x, weight, bias)  # [T, in] @ [in, out] -> [T, out]
        if not is_merged:
            y.addmm_(next(shrunk), snapshot.scaled_b(x.dtype).t())  # [T, r] @ [r, out]
        outputs.append(y)
    return outputs


def backward_group(
    gradients: Sequence[Tensor | None],
    seen: Tensor,
    saved: Sequence[Tensor | None],
    projections: Sequence[Projection],
    *,
    wants_x: bool,
    apart: bool,
    wants_seen: bool,
    wants: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """dx [T, in], d(dropped) [T, in] and dA, dB, dm of each projection.

    Args:
        gradients: dY [T, out] of each; None where nothing flows back.
        seen: x [T, in], or dropout(x).
        saved: y [T, out] where dm is wanted.
        apart: x and `seen` are two inputs (dropout).
        wants: whether dA, dB, dm of each projection are wanted, in turn.
    """
    rank_gradients = gradients_at_rank(gradients, projections)
    dx = input_gradient(gradients, rank_gradients, projections, apart=apart) if wants_x else None
    dseen = None
    if apart and wants_seen:
        dseen = torch.zeros_like(seen)
        for u, projection in zip(rank_gradients, projections, strict=True):
            if u is not None:
                dseen.addmm_(u, projection.snapshot.lora_a(u.dtype))  # [T, r] @ [r, in]
    return dx, dseen, parameter_gradients(gradients, rank_gradients, seen, saved, projections, wants)


def gradients_at_rank(gradients: Sequence[Tensor | None], projections: Sequence[Projection]) -> list[Tensor | None]:
    """u = dY B_g, [T, r], of each projection: the gradient of its x Aᵀ."""
    return [
        None if dy is None else dy @ p.snapshot.scaled_b(dy.dtype)  # [T, out] @ [out, r]
        for dy, p in zip(gradients, projections, strict=True)
    ]


def input_gradient(
    gradients: Sequence[Tensor | None],
    rank_gradients: Sequence[Tensor | None],
    projections: Sequence[Projection],
    *,
    apart: bool = False,
) -> Tensor | None:
    """dX [T, in], summed over the group in place; without the update's share when that has an input of its own."""
    dx: Tensor | None = None
    for dy, u, projection in zip(gradients, rank_gradients, projections, strict=True):
        if dy is None or u is None:
            continue
        snapshot = projection.snapshot
        is_merged = not apart and projection.merged(dy.shape[0])
        weight = snapshot.merged(dy.dtype) if is_merged else snapshot.folded(dy.dtype)
        dx = dy @ weight if dx is None else dx.addmm_(dy, weight)  # [T, out] @ [out, in]
        if not is_merged and not apart:
            dx.addmm_(u, snapshot.lora_a(dy.dtype))  # [T, r] @ [r, in]
    return dx


def parameter_gradients(
    gradients: Sequence[Tensor | None],
    rank_gradients: Sequence[Tensor | None],
    seen: Tensor,
    saved: Sequence[Tensor | None],
    projections: Sequence[Projection],
    wants: Sequence[bool],
) -> list[Tensor | None]:
    """dA [r, in], dB [out, r] and dm [out] of each projection, None where not wanted; x Aᵀ is made again here."""
    result: list[Tensor | None] = [None] * (3 * len(projections))
    alive = [i for i, dy in enumerate(gradients) if dy is not None]
    shrunk = _shrink(seen, [projections[i].snapshot for i in alive])
    for i, xa in zip(alive, shrunk, strict=True):
        dy, snapshot = gradients[i], projections[i].snapshot
        assert dy is not None
        if wants[3 * i + 1]:
            factor = snapshot.scaling if snapshot.scale is None else (snapshot.scaling * snapshot.scale)[:, None]
            result[3 * i + 1] = (dy.t() @ xa) * factor  # [out, T] @ [T, r]
        if wants[3 * i + 2]:
            result[3 * i + 2] = gradient_of_m(dy, saved[i], projections[i])
    wanted = [i for i in alive if wants[3 * i]]
    wanted_u = [u for i in wanted if (u := rank_gradients[i]) is not None]
    if wanted_u:
        u = wanted_u[0] if len(wanted_u) == 1 else torch.cat(wanted_u, dim=1)
        blocks = (u.t() @ seen).split([part.shape[1] for part in wanted_u])  # [Σr, T] @ [T, in]
        for i, block in zip(wanted, blocks, strict=True):
            result[3 * i] = block
    return result


def gradient_of_m(dy: Tensor, y: Tensor | None, projection: Projection) -> Tensor:
    """dm = Σ_t dY ⊙ (y - b) / m, [out]; 0 for rows whose scale is fixed at 1."""
    assert y is not None
    dots = kernels.column_dot(dy, y)
    if projection.bias is not None:
        dots = dots - projection.bias.to(dots.dtype) * dy.sum(0, dtype=dots.dtype)
    return dots_to_dm(dots, projection.snapshot)


def dots_to_dm(dots: Tensor, snapshot: Snapshot) -> Tensor:
    """Σ_t dY ⊙ (y - b) [out] to dm."""
    magnitude = snapshot.magnitude
    assert magnitude is not None
    dm = torch.where(magnitude == 0, 0.0, dots / magnitude)
    return dm if snapshot.unscaled_rows is None else dm.index_fill(0, snapshot.unscaled_rows, 0.0)


def retry_without_resident(snapshot: Snapshot, work: Callable[[], Any]) -> Any:
    """Do `work` in exactly our types and with the layer's kernels. If memory runs out, release all resident
    weights and do it once more."""
    # Autocast would change products behind our back.
    with torch.autocast(snapshot.device.type, enabled=False), kernels.use_kernels(snapshot.impl):
        try:
            return work()
        except torch.OutOfMemoryError:
            relieve = snapshot.slot.relieve
            if relieve is None or not relieve():
                raise
        return work()


def refuse_second_derivative() -> None:
    """Raise when a backward pass is itself being recorded (create_graph=True)."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused layers have no second derivative (backward ran with create_graph=True); "
            "train with engine.impl: reference, or call qdora_fast.unfuse(model) first"
        )


def _shrink(seen: Tensor, snapshots: Sequence[Snapshot]) -> Sequence[Tensor]:
    """x Aᵀ of each, [T, r], in one product over all A."""
    if not snapshots:
        return ()
    matrices = [snapshot.lora_a(seen.dtype) for snapshot in snapshots]
    stacked = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
    return (seen @ stacked.t()).split([len(m) for m in matrices], dim=1)  # [T, in] @ [in, Σr] -> [T, r] each
