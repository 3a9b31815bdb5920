"""Every kernel test runs once per case: which kernels, on what device, in what type.

Under Triton's interpreter bf16 is wrong (3.9 with numpy 2.4), so bf16 in Triton is for the GPU alone. In this
folder memory that PyTorch does not initialise is filled with NaN, so that a value nobody wrote is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from qdora_fast.engine.kernels import use_kernels

interpreted = pytest.mark.skipif("os.environ.get('TRITON_INTERPRET') != '1'", reason="needs TRITON_INTERPRET=1")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@dataclass(frozen=True)
class Case:
    """Where a test runs."""

    kernels: str
    device: str
    dtype: torch.dtype

    @property
    def eps(self) -> float:
        """The relative step of its type."""
        return torch.finfo(self.dtype).eps


def _cases() -> Iterator[object]:
    for kernels, device, dtypes, marks in (
        ("torch", "cpu", ("float32", "float16", "bfloat16"), ()),
        ("triton", "cpu", ("float32", "float16"), (interpreted,)),
        ("triton", "cuda", ("float32", "float16", "bfloat16"), (pytest.mark.gpu, on_gpu)),
    ):
        for dtype in dtypes:
            yield pytest.param(
                Case(kernels, device, getattr(torch, dtype)), id=f"{kernels}-{device}-{dtype}", marks=marks
            )


@pytest.fixture(params=_cases())
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """One case, with its kernels chosen."""
    with use_kernels(request.param.kernels):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
