"""The libraries that fail in ways a version number does not show: each does a little of its real work here.

Unsloth is imported, bitsandbytes quantises and must have loaded its CUDA library, Triton compiles a kernel of ours,
attention is computed. On a CPU the same is asked of what a CPU uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qdora_fast.models.backend import open_backend
from qdora_fast.planning.memory.job import FAST_FAMILIES
from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system.console import short
from qdora_fast.system.errors import QdoraError
from qdora_fast.system.install import how_to_set_up

_COMPILER = "a C compiler and Python's headers are needed: apt install build-essential python3-dev"
_NF4_STEP = 0.2
"""NF4's widest step is 0.3 of a block's largest value, so no value moves by more than half of that."""


def device() -> str:
    """Where training will compute: cuda or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def backend() -> Iterator[Finding]:
    """Whether Unsloth imports, and which of its ways it takes here."""
    try:
        unsloth = open_backend()
    except QdoraError as error:
        yield Finding("backend", "wrong", "unsloth does not import", short(str(error), 900))
        return
    kind = str(getattr(unsloth, "DEVICE_TYPE", "unknown"))
    if kind == "cpu":
        yield Finding("backend", "ok", "unsloth imports; its CPU backend (stock transformers, peft and trl, real NF4)")
    else:
        families = ", ".join(FAST_FAMILIES)
        yield Finding("backend", "ok", f"unsloth imports, on {kind}; fast path for {families}; others are compiled")


def threads(allowed: int, *, gpu: bool, used: int | None = None) -> Iterator[Finding]:
    """The threads torch computes with against the cores it may use.

    Args:
        allowed: cores.
        used: threads; asked of torch unless given.
    """
    import torch

    used = used or torch.get_num_threads()
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    text = f"torch computes with {used} on {allowed} core{'s'[: allowed != 1]}"
    text += f", {' '.join(settings) or 'OMP_NUM_THREADS is not set'}"
    if used > allowed:
        yield Finding("threads", "note", text, f"threads wait for each other; export OMP_NUM_THREADS={allowed}")
    elif settings and not gpu and used < allowed / 2:
        yield Finding("threads", "note", text, f"cores stand idle; export OMP_NUM_THREADS={allowed}")
    else:
        yield Finding("threads", "ok", text)


def bitsandbytes_library(where: str, library: Any = None, carried: list[str] | None = None) -> Iterator[Finding]:
    """Whether bitsandbytes loaded the library made for this device; its fallback answers only with errors.

    Args:
        where: cuda or cpu.
        library, carried: what it loaded, and the CUDA versions it carries libraries for; asked of it unless given.
    """
    from bitsandbytes import cextension

    library = cextension.lib if library is None else library
    carried = cextension.get_available_cuda_binary_versions() if carried is None else carried
    broken = type(library).__name__.startswith("ErrorHandler")
    if where == "cuda" and not getattr(library, "compiled_with_cuda", False):
        text = short(str(getattr(library, "error_msg", "it loaded its library for the CPU")))
        versions = ", ".join(carried) or "none"
        set_up = how_to_set_up(gpu=True)
        fix = f"it has libraries for CUDA {versions}; unset BNB_CUDA_VERSION if it is set; else {set_up}"
        yield Finding("bitsandbytes", "wrong", f"its CUDA library is not loaded: {text}", fix)
    elif broken:
        yield Finding("bitsandbytes", "note", "no compiled library for this CPU; it computes with PyTorch, slowly")
    else:
        yield Finding("bitsandbytes", "ok", f"its library for {'CUDA' if where == 'cuda' else 'the CPU'} is loaded")


def nf4(where: str) -> Iterator[Finding]:
    """A weight to NF4 and back on this device."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.linspace(-1, 1, 64 * 128, device=where).reshape(64, 128)
    try:
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        off = float((dequantize_4bit(packed, state) - weight).abs().max())
    except (RuntimeError, NotImplementedError) as problem:
        text = short(f"bitsandbytes cannot quantise on the {where}: {problem}")
        yield Finding("NF4", "wrong", text, how_to_set_up(gpu=where == "cuda"))
        return
    text = f"bitsandbytes on the {where}, largest rounding error {off:.3f}"
    if off < _NF4_STEP:
        yield Finding("NF4", "ok", text)
    else:
        yield Finding("NF4", "wrong", f"{text}: not NF4's", how_to_set_up(gpu=where == "cuda"))


def triton(
    where: str, *, installed: bool | None = None, compile_one: Callable[[], None] | None = None
) -> Iterator[Finding]:
    """On a GPU, one of our kernels compiled and compared; on a CPU, nothing is compiled.

    Args:
        where: cuda or cpu.
        installed, compile_one: whether triton is there, and what compiles a kernel; the real ones unless given.
    """
    there = importlib.util.find_spec("triton") is not None if installed is None else installed
    if where == "cpu":
        text = "; only tests use it here, in its interpreter" if there else " (not installed)"
        yield Finding("Triton", "ok", f"for GPUs alone{text}; PyTorch computes instead")
        return
    if not there:
        text = "not installed: neither Unsloth nor the engine has kernels"
        yield Finding("Triton", "wrong", text, how_to_set_up(gpu=True))
        return
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield Finding("Triton", "wrong", "TRITON_INTERPRET=1: kernels would be run by Python", "unset TRITON_INTERPRET")
        return
    try:
        (compile_one or _compile_one)()
    except (RuntimeError, ImportError, OSError, AssertionError, subprocess.SubprocessError) as problem:
        yield Finding("Triton", "wrong", short(f"a kernel does not compile or run: {problem}"), _COMPILER)
    else:
        yield Finding("Triton", "ok", "a kernel of the engine compiles and computes right")


def attention(where: str, *, extra: Mapping[str, Callable[[], str]] | None = None) -> Iterator[Finding]:
    """Which attention will run; PyTorch's own is the floor under all others.

    Args:
        where: cuda or cpu.
        extra: by library, what computes with it and returns its version, or raises; the real ones unless given.
    """
    import torch

    rows = torch.randn(1, 2, 16, 64, device=device(), dtype=torch.float32 if device() == "cpu" else torch.float16)
    torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, is_causal=True)
    if where == "cpu":
        yield Finding("attention", "ok", "PyTorch's (SDPA) runs")
        return
    runs, broken = ["PyTorch's (SDPA)"], []
    for library, work in (extra or {"flash-attn": _flash_attn, "xformers": _xformers}).items():
        try:
            runs.append(f"{library} {work()}")
        except ModuleNotFoundError as missing:
            if missing.name != library.replace("-", "_"):  # it is there, and something it needs is not
                broken.append(f"{library}: {missing}")
        except (ImportError, OSError, RuntimeError, NotImplementedError, ValueError) as problem:
            broken.append(short(f"{library}: {problem}", 120))
    text = f"{', '.join(runs)} run{'s'[: len(runs) == 1]}"
    if broken:
        remove = "remove what is broken with pip uninstall"
        fix = f"training works without, perhaps slower; {remove}, or {how_to_set_up(gpu=True)}"
        yield Finding("attention", "note", f"{text}; not usable: {'; '.join(broken)}", fix)
    else:
        yield Finding("attention", "ok", text)


def _compile_one() -> None:
    import torch

    from qdora_fast.engine.kernels import column_dot, use_kernels

    rows = torch.arange(64 * 96, device="cuda", dtype=torch.float32).reshape(64, 96) / 6144
    with use_kernels("triton"):
        dots = column_dot(rows, rows)
    assert torch.allclose(dots, (rows * rows).sum(0), rtol=1e-4), "its result is wrong"


def _flash_attn() -> str:
    flash_attn = importlib.import_module("flash_attn")  # compiled for one torch version, it does not import with others
    return str(flash_attn.__version__)


def _xformers() -> str:
    import torch
    import xformers
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    rows = torch.randn(1, 16, 2, 64, device="cuda", dtype=torch.float16)
    memory_efficient_attention(rows, rows, rows, attn_bias=LowerTriangularMask())
    return str(xformers.__version__)
