"""Libraries that import and still do not work, on this machine and as a GPU machine would show them."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from qdora_fast.recipes.doctor import stack
from qdora_fast.system.errors import QdoraError
from qdora_fast.system.install import how_to_set_up


class ErrorHandlerMockBNBNativeLibrary:
    """Named as bitsandbytes names the stand-in for a library that did not load."""

    error_msg = "No compatible CUDA binary found at libbitsandbytes_cuda140.so"


def test_unsloth_says_which_way_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "open_backend", lambda: SimpleNamespace(DEVICE_TYPE="cpu"))
    (cpu,) = stack.backend()
    monkeypatch.setattr(stack, "open_backend", lambda: SimpleNamespace(DEVICE_TYPE="cuda"))
    (gpu,) = stack.backend()
    assert "CPU backend" in cpu.found
    assert "fast path for llama, mistral" in gpu.found


def test_an_unsloth_that_does_not_import_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise QdoraError("cannot import unsloth (no module x); `make install` sets up a tested environment")

    monkeypatch.setattr(stack, "open_backend", fails)
    (finding,) = stack.backend()
    assert finding.status == "wrong" and "`make install`" in finding.fix


def test_bitsandbytes_without_its_cuda_library_is_wrong_on_a_gpu() -> None:
    (mock,) = stack.bitsandbytes_library("cuda", ErrorHandlerMockBNBNativeLibrary(), ["12.8", "13.0"])
    assert mock.status == "wrong"
    assert "No compatible CUDA binary" in mock.found
    assert "12.8, 13.0" in mock.fix and "BNB_CUDA_VERSION" in mock.fix
    (cpu_library,) = stack.bitsandbytes_library("cuda", SimpleNamespace(compiled_with_cuda=False), [])
    assert cpu_library.status == "wrong" and "library for the CPU" in cpu_library.found
    (good,) = stack.bitsandbytes_library("cuda", SimpleNamespace(compiled_with_cuda=True), ["13.0"])
    assert good.status == "ok"


def test_bitsandbytes_without_any_library_is_slow_on_a_cpu_and_the_real_one_is_in_order() -> None:
    (slow,) = stack.bitsandbytes_library("cpu", ErrorHandlerMockBNBNativeLibrary(), [])
    assert slow.status == "note"
    (here,) = stack.bitsandbytes_library(stack.device())
    assert here.status == "ok"


def test_nf4_is_really_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional

    (good,) = stack.nf4(stack.device())
    assert good.status == "ok"
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda packed, state: 0.0)
    (off,) = stack.nf4(stack.device())
    assert off.status == "wrong" and "not NF4's" in off.found

    def refuses(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", refuses)
    (broken,) = stack.nf4(stack.device())
    assert broken.status == "wrong" and "no kernel image" in broken.found


def test_a_missing_triton_is_wrong_on_a_gpu_and_no_matter_on_a_cpu() -> None:
    (gpu,) = stack.triton("cuda", installed=False)
    (cpu,) = stack.triton("cpu", installed=False)
    assert (gpu.status, cpu.status) == ("wrong", "ok")
    assert gpu.fix == how_to_set_up(gpu=True)


@pytest.mark.parametrize(
    "problem",
    [RuntimeError("Failed to find C compiler"), subprocess.CalledProcessError(1, "gcc"), AssertionError("bad")],
)
def test_a_kernel_that_does_not_compile_names_the_compiler(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def fails() -> None:
        raise problem

    (finding,) = stack.triton("cuda", installed=True, compile_one=fails)
    assert finding.status == "wrong"
    assert "build-essential" in finding.fix
    (good,) = stack.triton("cuda", installed=True, compile_one=lambda: None)
    assert good.status == "ok"


def test_the_interpreter_on_a_gpu_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (finding,) = stack.triton("cuda", installed=True, compile_one=lambda: None)
    assert (finding.status, finding.fix) == ("wrong", "unset TRITON_INTERPRET")


def test_attention_is_never_without_pytorchs_own() -> None:
    def absent() -> str:
        raise ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")

    def torn() -> str:
        raise ImportError("undefined symbol: _ZN3c104cuda")

    (good,) = stack.attention("cuda", extra={"flash-attn": absent, "xformers": lambda: "0.0.35"})
    assert (good.status, good.found) == ("ok", "PyTorch's (SDPA), xformers 0.0.35 run")
    (without,) = stack.attention("cuda", extra={"flash-attn": absent})
    assert (without.status, without.found) == ("ok", "PyTorch's (SDPA) runs")
    (broken,) = stack.attention("cuda", extra={"flash-attn": torn, "xformers": lambda: "0.0.35"})
    assert broken.status == "note"
    assert "not usable: flash-attn: undefined symbol" in broken.found
    (cpu,) = stack.attention("cpu")
    assert cpu.status == "ok"


def test_a_library_of_which_a_part_is_missing_is_broken_and_not_absent() -> None:
    def half() -> str:
        raise ModuleNotFoundError("No module named 'einops'", name="einops")

    (finding,) = stack.attention("cuda", extra={"flash-attn": half})
    assert finding.status == "note" and "einops" in finding.found


@pytest.mark.parametrize(
    ("used", "allowed", "setting", "gpu", "status"),
    [
        (8, 8, None, False, "ok"),
        (4, 8, None, False, "ok"),  # one thread a physical core, as torch chooses by itself
        (16, 2, None, True, "note"),
        (1, 8, "1", False, "note"),
        (1, 8, "1", True, "ok"),
        (1, 1, "1", False, "ok"),
    ],
)
def test_threads_against_cores(
    used: int, allowed: int, setting: str | None, gpu: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if setting:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    (finding,) = stack.threads(allowed, gpu=gpu, used=used)
    assert finding.status == status
    assert (f"OMP_NUM_THREADS={allowed}" in finding.fix) is (status == "note")
