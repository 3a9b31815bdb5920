"""Which kernels run, what happens without Triton, and that Triton's compiler accepts every kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from qdora_fast.engine import kernels
from qdora_fast.engine.kernels import chosen, use_kernels

CPU = torch.zeros(1)


def test_a_cpu_uses_pytorch_unless_told_otherwise():
    assert chosen(CPU) == "torch"
    with use_kernels("triton"):
        assert chosen(CPU) == "triton"
        with use_kernels("torch"):
            assert chosen(CPU) == "torch"
        with use_kernels(None):
            assert chosen(CPU) == "torch"
        assert chosen(CPU) == "triton"
    assert chosen(CPU) == "torch"


def test_an_error_within_restores_the_choice():
    with pytest.raises(KeyError), use_kernels("triton"):
        raise KeyError
    assert chosen(CPU) == "torch"


def test_another_thread_chooses_for_itself():
    seen = []
    with use_kernels("triton"):
        thread = threading.Thread(target=lambda: seen.append(chosen(CPU)))
        thread.start()
        thread.join()
    assert seen == ["torch"]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="cuda"), use_kernels("cuda"):
        pass


def test_without_triton_asking_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels._has_triton.cache_clear()
    try:
        with pytest.raises(ImportError, match="pip install triton"), use_kernels("triton"):
            pass
        with use_kernels("torch"):
            kernels.column_dot(torch.ones(2, 3), torch.ones(2, 3))
    finally:
        kernels._has_triton.cache_clear()


def test_triton_is_imported_by_need_and_not_run_on_a_cpu_by_mistake():
    program = (
        "import sys, torch\n"
        "from qdora_fast.engine import kernels\n"
        "x = torch.ones(2, 3)\n"
        "kernels.column_dot(x, x)\n"
        "assert 'qdora_fast.engine.kernels.triton_reduce' not in sys.modules\n"
        "try:\n"
        "    with kernels.use_kernels('triton'): kernels.column_dot(x, x)\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert "TRITON_INTERPRET" in _python(program)


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    """The interpreter accepts much that the compiler refuses; the compiler needs no GPU."""
    program = (Path(__file__).parents[2] / "helpers" / "compile_kernels.py").read_text(encoding="utf-8")
    assert "compiled" in _python(program, TRITON_CACHE_DIR=str(tmp_path))


def _python(program: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**kept, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
