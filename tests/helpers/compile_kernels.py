"""Compile the Triton kernels for GPUs that need not be here; run by test_kernels_choice.py in its own process.

Every branch of every kernel once, in the types of training. Beside being accepted, three things are asked of the
code: no local memory (spilt registers are slow), loads and stores of 16 bytes, and no fused multiply-add where
bitsandbytes rounds twice.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qdora_fast.engine.kernels import triton_glu, triton_nf4, triton_norms, triton_reduce

CARDS = (89, 90)
"""Compute capability: RTX 4090, H100, whose tensor cores are programmed differently."""
NF4 = dict.fromkeys(("code", "absmax_code", "absmax_scale", "offset", "row_scale"), "*fp32") | {"packed": "*u8"}
BITS = {"BLOCK_BITS": 6, "NEST_BITS": 8}


def code_of(kernel: Any, card: int, module: Any, fused: bool, types: dict[str, str], **constants: Any) -> str:
    """PTX of one kernel; numbers that are not named are multiples of 16, as real widths are."""
    names = kernel.arg_names
    sizes = {name: getattr(module, name) for name in names if name.isupper() and hasattr(module, name)}
    constants = {**sizes, **constants}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if name not in constants and name != "rank" and signature[name] != "fp32"
    }
    options = {"num_warps": module.WARPS, "enable_fp_fusion": fused}
    source = ASTSource(kernel, signature, constants, aligned)
    ptx: str = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options).asm["ptx"]
    assert ".local" not in ptx, f"{kernel.__name__} spills"
    return ptx


def dequantize(card: int) -> None:
    """All branches of the NF4 kernel."""
    for nested, even, scaled, factors, rank in (
        (True, True, True, None, 16),
        (True, True, True, "*fp32", 32),
        (True, True, True, "*bf16", 64),
        (False, False, False, "*fp32", 16),
    ):
        types = NF4 | {"absmax": "*u8" if nested else "*fp32", "result": "*bf16"}
        types |= {"left": factors or "*fp32", "right": factors or "*fp32"}
        ptx = code_of(
            triton_nf4._dequantize_kernel,
            card,
            triton_nf4,
            False,
            types,
            **BITS,
            NESTED=nested,
            EVEN=even,
            SCALED=scaled,
            UPDATED=factors is not None,
            RANK=rank,
            left_rank=1,
            right_column=1,
        )
        assert "st.global.v4" in ptx, "narrow stores"
        if factors is None:
            assert "fma.rn.f32" not in ptx, "a product and a sum are fused"


def norms(card: int) -> None:
    """Packed and dense."""
    types = {"a": "*fp32", "b": "*fp32", "partial": "*fp32", "scaling": "fp32"}
    code_of(
        triton_norms._nf4_norms_kernel,
        card,
        triton_norms,
        False,
        types | NF4 | {"absmax": "*u8"},
        **BITS,
        NESTED=True,
        EVEN=True,
    )
    dense = types | {"weight": "*bf16"}
    code_of(triton_norms._dense_norms_kernel, card, triton_norms, False, dense, weight_column=1)


def sums(card: int) -> None:
    """Column sums and the gated activations."""
    types = {"a": "*bf16", "b": "*bf16", "partial": "*fp32"}
    assert "ld.global.v4" in code_of(triton_reduce._column_dot_kernel, card, triton_reduce, True, types)
    types = dict.fromkeys(("e", "g", "h", "dh", "de", "dg"), "*bf16") | {"sum_e": "*fp32", "sum_g": "*fp32"}
    for activation in ("silu", "gelu", "gelu_tanh"):
        code_of(triton_glu._glu_forward_kernel, card, triton_glu, True, types, ACTIVATION=activation)
        ptx = code_of(triton_glu._glu_backward_kernel, card, triton_glu, True, types, ACTIVATION=activation, DOTS=True)
        assert "ld.global.v4" in ptx and "st.global.v4" in ptx, "narrow loads or stores"


for card in CARDS:
    dequantize(card)
norms(CARDS[0])
sums(CARDS[0])
print("compiled")
