"""NF4 in blocks of rows against bitsandbytes on the whole tensor, and what is stored against plain Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import LINEARS, load_in_4bit, save_adapter_for, save_base, tensors_of

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.models import weights
from qdora_fast.models.nf4 import PackedWeight, stored_infos
from qdora_fast.models.weights import TensorInfo

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, TensorInfo]:
    """A weight, and what a header says of it."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)
    return weight, TensorInfo("w", dtype, shape)


@pytest.mark.parametrize("rows", [1, 3, 64, 1000], ids="{} rows".format)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(128, 64), (300, 4096), (64, 192), (33, 96), (7, 100), (5, 2)], ids=str)
def test_blocks_of_rows_give_what_bitsandbytes_makes_of_the_whole(
    shape: tuple[int, int], dtype: torch.dtype, rows: int
) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight, info = made(*shape, dtype=dtype)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    parts = PackedWeight.pack(weight.split(rows), info).parts()
    assert torch.equal(parts[""], packed)
    for name, expected in state.as_dict(packed=True).items():
        padding = parts[name][len(expected) :].tolist()
        assert torch.equal(parts[name][: len(expected)], expected)
        assert set(padding) <= {ord(" ")}
    said = {f"w.{name}" if name else "w": (part.dtype, tuple(part.shape)) for name, part in parts.items()}
    assert {part.name: (part.dtype, part.shape) for part in stored_infos(info)} == said


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    """For weights whose scales have another mean when more threads add them up."""
    from bitsandbytes.functional import quantize_4bit

    def by_threads(work: Callable[[], Any]) -> list[Any]:
        before, results = torch.get_num_threads(), []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(work())
        torch.set_num_threads(before)
        return results

    base, info = made(2048, 2560)
    for factor in range(1, 30):
        weight = base * factor
        scales = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)[1].absmax
        if len(set(by_threads(lambda scales=scales: scales.mean().item()))) > 1:
            break
    else:
        pytest.fail("no such weight was found")
    first, *others = by_threads(lambda: PackedWeight.pack(weight.split(512), info).parts())
    for parts in others:
        assert all(torch.equal(parts[name], part) for name, part in first.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(128, 64), (30, 4096), (64, 192)], ids=str)
def test_any_rows_unpack_as_in_the_whole(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight, info = made(*shape, dtype=dtype)
    whole = dequantize_4bit(*quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"))
    packed = PackedWeight.pack([weight], info)
    again = PackedWeight.from_parts(packed.parts())
    for start, stop in [(0, shape[0]), (0, 1), (7, 12), (shape[0] - 1, shape[0])]:
        assert torch.equal(packed.rows(start, stop), whole[start:stop])
        assert torch.equal(again.rows(start, stop), whole[start:stop])


def test_rows_whose_blocks_of_64_straddle_them_unpack_by_the_code() -> None:
    """Width 96: bitsandbytes' own CPU kernel gives other values here, so the table decides."""
    from bitsandbytes.functional import get_4bit_type, quantize_4bit

    weight, info = made(33, 96)
    codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    index = torch.stack([codes.flatten() >> 4, codes.flatten() & 15], dim=1).flatten().long()
    exact = (get_4bit_type("nf4", device="cpu")[index] * state.absmax.repeat_interleave(64)[: 33 * 96]).reshape(33, 96)
    packed = PackedWeight.pack(weight.split(5), info)
    for start in range(33):
        torch.testing.assert_close(
            packed.rows(start, start + 1).float(), exact[start : start + 1], rtol=0.02, atol=5e-4
        )


BASES: dict[str, dict[str, Any]] = {
    "llama-bf16": {"family": "llama", "dtype": torch.bfloat16},
    "llama-fp16-tied-one-file": {"family": "llama", "dtype": torch.float16, "tied": True, "shard_size": "1GB"},
    "qwen2-fp32-bias": {"family": "qwen2", "dtype": torch.float32},
}


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 4}}], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_a_merge_in_nf4_is_what_transformers_makes_of_the_16_bit_merge(
    base: str, lora: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merge in 16 bits, let Transformers quantise and save that; our one pass gives the same tensors."""
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(weights, "BLOCK_BYTES", 5 * 64 * 4)
    folder, adapter = save_base(tmp_path / "base", **BASES[base]), tmp_path / "adapter"
    save_adapter_for(folder, adapter, **lora)
    merge(folder, adapter, tmp_path / "dense")
    report = merge(folder, adapter, tmp_path / "nf4", MergeRecipe(nf4=True))
    assert report.packed == LINEARS
    load_in_4bit(tmp_path / "dense", BASES[base]["dtype"]).save_pretrained(tmp_path / "theirs")
    ours, theirs = tensors_of(tmp_path / "nf4"), tensors_of(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        mine = ours[name][: len(tensor)] if "quant_state" in name else ours[name]
        assert torch.equal(mine, tensor), name
    opened, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", output_loading_info=True)
    assert not any(notes.values())
    assert sum(isinstance(module, Linear4bit) for module in opened.modules()) == LINEARS
    assert not isinstance(opened.lm_head, Linear4bit)


def test_modules_kept_in_16_bits_are_named_and_stay(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base")
    expected = save_adapter_for(base, tmp_path / "adapter", use_dora=True, modules_to_save=["lm_head"])
    held = frozenset({"model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"})
    merge(base, tmp_path / "adapter", tmp_path / "out", MergeRecipe(nf4=True, quantized_modules=held))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {name for name, module in model.named_modules() if isinstance(module, Linear4bit)} == held
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"].bfloat16())
    gate = model.model.layers[0].mlp.gate_proj.weight
    assert gate.dtype == torch.bfloat16
    torch.testing.assert_close(gate, expected["model.layers.0.mlp.gate_proj.weight"].bfloat16(), rtol=0.02, atol=1e-6)
