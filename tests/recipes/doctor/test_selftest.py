"""The self-test passes on a good engine in every type, and fails on a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qdora_fast.engine.kernels import torch_ops
from qdora_fast.recipes.doctor import selftest, stack


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_good_engine_passes_in_every_type(precision: str) -> None:
    (finding,) = selftest.engine("cpu", precision=precision)
    assert finding.status == "ok", finding.found
    assert f"in {precision} on the cpu" in finding.found


@pytest.mark.parametrize("part", ["magnitude", "A"])
def test_a_wrong_gradient_is_found_and_named(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = selftest._exact
    off = {"magnitude": 1.05, "A": 1.05}

    def other(*args: Any) -> dict[str, Any]:
        return {name: value * off.get(name, 1) if name == part else value for name, value in exact(*args).items()}

    monkeypatch.setattr(selftest, "_exact", other)
    (finding,) = selftest.engine("cpu")
    assert finding.status == "wrong"
    assert f"gradient of {part}" in finding.found
    assert "engine.impl=reference" in finding.fix


def test_norms_that_are_off_by_one_percent_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    merge, row_norms = torch_ops.merge, torch_ops.row_norms
    monkeypatch.setattr(torch_ops, "row_norms", lambda *args, **how: row_norms(*args, **how) * 1.01)
    monkeypatch.setattr(torch_ops, "merge", lambda *args, **how: merge(*args, **how) * 1.01)
    (finding,) = selftest.engine("cpu")
    assert finding.status == "wrong"


def test_the_callers_random_state_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    list(selftest.engine(stack.device()))
    assert torch.equal(torch.random.get_rng_state(), before)


WORKING = [stack.bitsandbytes_library, stack.nf4, stack.triton, stack.attention, selftest.engine]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("check", WORKING)
def test_on_a_gpu_each_library_does_its_work(check: Any) -> None:
    (finding,) = check("cuda")
    assert finding.status in ("ok", "note") and "could not" not in finding.found, finding
