"""Each kernel against its roofline: the bytes it must move, over the time it took, over the bandwidth of this card.

The bandwidth is measured too (a copy of 1 GiB), so that a share of 100 % is what the card can do and not what its
data sheet says. Bytes are the least that must move: every input read once, every output written once. Between two
timed calls another buffer is written that is larger than the card's cache, so that inputs come from memory as they
do in training. The torch twin is timed beside each kernel where it fits.

On a CPU the same code runs with small shapes and the wall clock: that tries the machinery, nothing else.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.measure import spread
from benchmarks.gpu.gpu_model import linear_shapes
from benchmarks.options import GpuOptions

DTYPE = torch.bfloat16
CACHE_BYTES = 256 * 2**20
"""Larger than the second-level cache of any card so far."""
COPY_BYTES = 2**30
WARMUP, ROUNDS = 5, 25


@dataclass(frozen=True)
class Job:
    """One kernel on one shape."""

    kernel: str
    shape: str
    moved: int
    """Bytes read and written at least."""
    run: Callable[[], Any]


def rooflines(options: GpuOptions) -> dict[str, Any]:
    """Bandwidth of the device, and time, bytes and share of every kernel and shape."""
    from qdora_fast.engine.kernels import use_kernels

    clock = Clock(options.device)
    bandwidth = copy_bandwidth(clock)
    found = []
    with torch.no_grad():
        for job in jobs(options):
            seconds = clock.median(job.run)
            with use_kernels("torch"):
                twin = clock.median(job.run)
            found.append(
                {
                    "kernel": job.kernel,
                    "shape": job.shape,
                    "bytes": job.moved,
                    "seconds": seconds,
                    "torch_seconds": twin,
                    "roofline_share": job.moved / seconds / bandwidth,
                }
            )
    return {"copy_bytes_per_s": bandwidth, "rows": found}


def jobs(options: GpuOptions) -> list[Job]:
    """The kernels on the shapes of the model: its widest linear layers, its MLP, its longest micro-batch."""
    shapes = linear_shapes(options)
    tokens = max(rows * tokens for rows, tokens, _ in options.shapes)
    found: list[Job] = []
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        found += _weight_jobs(shapes[name], options)
    for width in dict.fromkeys((options.hidden, options.intermediate)):
        a, b = (_random((tokens, width), options) for _ in range(2))
        found.append(Job("column_dot", f"{tokens} x {width}", 2 * a.nbytes, functools.partial(_column_dot, a, b)))
    dh, e, g = (_random((tokens, options.intermediate), options) for _ in range(3))
    run = functools.partial(_glu_backward, dh, e, g)
    found.append(Job("glu_backward", f"{tokens} x {options.intermediate}", 6 * dh.nbytes, run))
    return found


def _weight_jobs(shape: tuple[int, int], options: GpuOptions) -> list[Job]:
    from bitsandbytes.functional import quantize_4bit

    from qdora_fast.engine import kernels

    rows, columns = shape
    packed, state = quantize_4bit(_random(shape, options), blocksize=64, compress_statistics=True, quant_type="nf4")
    weight = kernels.NF4Weight.of(packed, state)
    a, b = _random((options.rank, columns), options), _random((rows, options.rank), options)
    g = torch.rand(rows, device=options.device) + 0.5
    out = torch.empty(shape, dtype=DTYPE, device=options.device)
    read = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    adapters, said = a.nbytes + b.nbytes, f"{rows} x {columns}"
    call = functools.partial
    return [
        Job("dequantize", said, read + out.nbytes, call(kernels.dequantize, weight, out=out)),
        Job(
            "dequantize, row scale",
            said,
            read + out.nbytes + g.nbytes,
            call(kernels.dequantize, weight, row_scale=g, out=out),
        ),
        Job(
            "dequantize, merged",
            said,
            read + out.nbytes + g.nbytes + adapters,
            call(kernels.dequantize, weight, row_scale=g, low_rank=(b, a), out=out),
        ),
        Job("row_norms", said, read + adapters + g.nbytes, call(kernels.row_norms, weight, a, b, 1.0)),
    ]


def _column_dot(a: Tensor, b: Tensor) -> Any:
    from qdora_fast.engine import kernels

    return kernels.column_dot(a, b)


def _glu_backward(dh: Tensor, e: Tensor, g: Tensor) -> Any:
    from qdora_fast.engine import kernels

    return kernels.glu_backward(dh, e, g, "silu", True)


def copy_bandwidth(clock: Clock) -> float:
    """Bytes per second, read and written, of copying one large buffer to another."""
    size = COPY_BYTES if clock.cuda else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * size / clock.median(lambda: target.copy_(source))


class Clock:
    """Median time of a call with a cold cache: CUDA events on a GPU, the wall clock elsewhere."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")
        self._filler = torch.empty(CACHE_BYTES if self.cuda else 1, dtype=torch.uint8, device=device)

    def median(self, run: Callable[[], Any]) -> float:
        """Seconds."""
        for _ in range(WARMUP):
            run()
        return spread([self._once(run) for _ in range(ROUNDS)]).median

    def _once(self, run: Callable[[], Any]) -> float:
        self._filler.zero_()
        if not self.cuda:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def _random(shape: tuple[int, int], options: GpuOptions) -> Tensor:
    return torch.randn(shape, device=options.device, dtype=DTYPE).mul_(0.02)
