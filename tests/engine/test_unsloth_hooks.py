"""Unsloth's own GPU code with our blocks in it, run on the CPU through Triton's interpreter: the same loss and
gradients as plain transformers and PEFT. See unsloth_fast_path.py, which runs by hand for more families and types."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "helpers" / "unsloth_fast_path.py"
LOSS, GRADIENT = 1e-6, 1e-5
"""Relative tolerances in fp32 on NF4; Unsloth without us is off by up to 1.3e-6 in the gradients."""


def _step(family: str, stack: str, out: Path, *more: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    command = [
        sys.executable,
        str(SCRIPT),
        family,
        "--stack",
        stack,
        "--dtype",
        "fp32",
        "--four-bit",
        "--out",
        str(out),
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), load_file(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "more"),
    [
        ("llama", "dora", ("--generate", "3", "--checkpointing")),  # RoPE overwrites Q and K in place
        pytest.param("qwen2", "dora", ("--padding-free",), marks=pytest.mark.exhaustive),  # biases on Q, K and V
        pytest.param("gemma2", "dora", (), marks=pytest.mark.exhaustive),  # GeGLU
        pytest.param("qwen3", "lora", (), marks=pytest.mark.exhaustive),  # over Unsloth's own fused LoRA
    ],
)
def test_our_blocks_in_unsloths_fast_path(family: str, method: str, more: tuple[str, ...], tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as both:
        more = (*more, "--row-loss")
        ours = both.submit(_step, family, "unsloth", tmp_path / "ours", "--engine", "on", "--method", method, *more)
        plain = both.submit(_step, family, "plain", tmp_path / "plain", "--method", method, *more)
    (said, gradients), (expected, theirs) = ours.result(), plain.result()

    assert said["engine"]["layers"] == 14
    assert said["engine"]["blocks"] == {"qkv": 2, "o": 2, "mlp": 2}
    assert not said["engine"]["skipped"]
    assert said["loss"] == pytest.approx(expected["loss"], rel=LOSS)
    assert said["generated"] == expected["generated"]
    read, elsewhere = said["row_loss"], expected["row_loss"]
    assert read["total"] == pytest.approx(elsewhere["total"], rel=1e-5)
    assert read["tokens"] == elsewhere["tokens"] == read["positions"] < 16  # of 16 tokens, only the trained ones
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        off = torch.linalg.vector_norm(gradient - theirs[name]) / torch.linalg.vector_norm(theirs[name])
        assert off <= GRADIENT, f"{name}: {off:.1e}"
