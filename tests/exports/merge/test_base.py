"""The 4-bit weights that training saw, re-made from 16 bits or unpacked, against the live model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import LINEARS, adapt, linears, load, load_in_4bit, save_base, tensors_of

from qdora_fast.exports.merge.base import BaseWeights, MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.system.errors import ConfigError, IntegrityError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dequant4_is_the_model_that_was_trained(dtype: torch.dtype, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    base = save_base(tmp_path / "base")
    live = adapt(load_in_4bit(base, dtype), use_dora=True, target_modules=["q_proj", "up_proj"])
    live.save_pretrained(tmp_path / "adapter")
    held = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): dequantize_4bit(
            module.weight, module.weight.quant_state
        )
        for name, module in live.named_modules()
        if isinstance(module, Linear4bit)
    }
    recipe = MergeRecipe("dequant4", quantized_modules=frozenset(held), trained_dtype=dtype)
    report = merge(base, tmp_path / "adapter", tmp_path / "out", recipe)
    assert (report.merged, report.round_tripped) == (4, LINEARS - 4)
    after = tensors_of(tmp_path / "out")
    assert held["model.layers.0.mlp.up_proj"].dtype == dtype
    for name, weight in held.items():
        if not name.endswith(("q_proj", "up_proj")):
            assert torch.equal(after[f"{name}.weight"], weight.bfloat16())
    layer = live.base_model.model.model.layers[1].mlp.up_proj
    a, b, m = (part["default"].weight for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector))
    moved = held["model.layers.1.mlp.up_proj"].float() + layer.scaling["default"] * (b @ a).float()
    trained = (m[:, None] * moved / moved.norm(dim=1, keepdim=True)).detach().bfloat16()
    torch.testing.assert_close(after["model.layers.1.mlp.up_proj.weight"], trained, rtol=0.008, atol=1e-7)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        said, says = live.eval()(tokens).logits, load(tmp_path / "out")(tokens).logits
    torch.testing.assert_close(says, said.float(), rtol=0, atol=0.02 if dtype == torch.float32 else 0.1)
    default = merge(base, tmp_path / "adapter", tmp_path / "default", MergeRecipe("dequant4", trained_dtype=dtype))
    assert default.sha256 == report.sha256  # the default set of layers is what transformers quantises


def test_a_base_stored_in_4_bits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    quantized = load_in_4bit(base, torch.bfloat16)
    quantized.save_pretrained(tmp_path / "nf4")
    adapt(quantized, use_dora=True).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"model\.base_16bit, or choose export\.merge_base: dequant4"):
        merge(tmp_path / "nf4", tmp_path / "adapter", tmp_path / "out")
    merge(tmp_path / "nf4", tmp_path / "adapter", tmp_path / "from_4bit", MergeRecipe("dequant4"))
    merge(base, tmp_path / "adapter", tmp_path / "from_16bit", MergeRecipe("dequant4"))
    assert "quantization_config" not in json.loads((tmp_path / "from_4bit/config.json").read_text())
    one, other = tensors_of(tmp_path / "from_4bit"), tensors_of(tmp_path / "from_16bit")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_in_4_bits_with_layers_in_16_is_merged_as_training_held_each(tmp_path: Path) -> None:
    """Those that training held in 16 bits stay to the bit; one that it put into NF4 on top goes through NF4."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = save_base(tmp_path / "base")
    adapt(load(base), use_dora=True, target_modules=["up_proj"]).save_pretrained(tmp_path / "adapter")
    mixed = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head", "q_proj", "k_proj"]
    )
    live = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=mixed)
    live.save_pretrained(tmp_path / "mixed")
    held = frozenset(name for name in linears(live) if not name.endswith("q_proj"))
    recipe = MergeRecipe("dequant4", quantized_modules=held, trained_dtype=torch.bfloat16)
    merge(tmp_path / "mixed", tmp_path / "adapter", tmp_path / "out", recipe)
    after, before = tensors_of(tmp_path / "out"), tensors_of(base)
    q, k = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
    assert torch.equal(after[q], before[q])
    again = BaseWeights(base, MergeRecipe("dequant4", frozenset({k.removesuffix(".weight")}), torch.bfloat16))
    assert torch.equal(after[k], again.rows(k, 0, len(before[k])))
    assert not torch.equal(after[k], before[k])


def test_quantised_bases_that_cannot_be_unpacked_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    for choice in (MergeRecipe("original16"), MergeRecipe("dequant4")):
        with pytest.raises(ConfigError, match=r"quantised \(gptq\).*model\.base_16bit"):
            BaseWeights(base, choice)


def test_a_4bit_weight_with_a_part_missing_is_damaged(tmp_path: Path) -> None:
    load_in_4bit(save_base(tmp_path / "base"), torch.bfloat16).save_pretrained(tmp_path / "nf4")
    file = tmp_path / "nf4/model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in load_file(file).items() if k != f"{name}.absmax"}, file)
    with pytest.raises(IntegrityError, match=name):
        BaseWeights(tmp_path / "nf4", MergeRecipe("dequant4"))
