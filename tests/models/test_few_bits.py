"""Bases in few bits: told by config.json, trained on where that is possible, else refused with what to name instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loaded_models import checked_base, loaded_base
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_base

from qdora_fast.models.base_files import require_sound
from qdora_fast.models.few_bits import few_bits_of, refuse_few_bits, twin_of
from qdora_fast.system.errors import ConfigError, RefusedError

NF4: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FORMS = [
    ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, r"fp8 \(e4m3\)"),
    ({"quant_method": "compressed-tensors", "format": "float-quantized"}, r"compressed-tensors \(float-quantized\)"),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, r"compressed-tensors \(nvfp4"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"modelopt \(NVFP4\)"),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, r"gptq \(4 bits\)"),
    ({"quant_method": "awq", "bits": 4, "version": "gemm"}, r"awq \(4 bits\)"),
    ({"quant_method": "hqq", "quant_config": {}}, "hqq"),
    ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    ({"quant_method": "quanto", "weights": "int4"}, r"quanto \(int4\)"),
    ({"quant_method": "bitnet"}, "bitnet"),
    ({"quant_method": "QuantizationMethod.AWQ", "bits": 4}, "awq"),
    ({"quant_method": "of-tomorrow"}, "of-tomorrow"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8 bits of bitsandbytes"),
    ({"load_in_8bit": True}, "8 bits of bitsandbytes"),
    ({"group_size": 64, "bits": 4, "mode": "affine"}, r"MLX's form \(4 bits\)"),
]


@pytest.mark.parametrize(("section", "form"), FORMS)
def test_a_form_that_takes_no_adapter_is_refused_by_its_name(section: dict[str, Any], form: str) -> None:
    for described in ({"quantization_config": section}, {"text_config": {"quantization_config": section}}):
        with pytest.raises(ConfigError, match=f"model.name: `org/base` is quantised: its weights are stored in {form}"):
            refuse_few_bits("org/base", described, setting="model.name: ")


@pytest.mark.parametrize("section", [None, {}])
def test_a_base_in_16_bits_passes(section: dict[str, Any] | None) -> None:
    assert few_bits_of({"model_type": "llama", "quantization_config": section, "text_config": {}}) is None
    refuse_few_bits("org/base", {"quantization_config": section})


def test_bitsandbytes_4_bits_pass_and_say_what_they_leave_in_16() -> None:
    stored = few_bits_of({"quantization_config": {**NF4, "llm_int8_skip_modules": ["lm_head", "layers.0.mlp"]}})
    assert stored is not None and stored.trains
    assert not stored.keeps_16bit("model.layers.1.mlp.up_proj")
    assert stored.keeps_16bit("lm_head")
    refuse_few_bits("org/base", {"quantization_config": {"load_in_4bit": True}})  # of an early Transformers
    refuse_few_bits("org/base", {"quantization_config": {**NF4, "bnb_4bit_quant_type": "fp4"}})


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-VL-8B-Instruct-FP8", "Qwen/Qwen3-VL-8B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("unsloth/gemma-3-12b-it-unsloth-bnb-4bit", "unsloth/gemma-3-12b-it"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "unsloth/Meta-Llama-3.1-8B"),
        ("unsloth/Llama-3.1-8B-Instruct-FP8-Dynamic", "unsloth/Llama-3.1-8B-Instruct"),
        ("RedHatAI/Qwen3-8B-quantized.w4a16", "Qwen3-8B"),  # who made it does not publish the other
        ("nvidia/Qwen3-8B-NVFP4", "Qwen3-8B"),
        ("mlx-community/Qwen3-8B-4bit", "Qwen3-8B"),
        ("/models/Qwen3-8B-FP8/", "Qwen3-8B"),
        ("mistralai/Ministral-3-8B-Instruct-2512", "mistralai/Ministral-3-8B-Instruct-2512-BF16"),
        ("openai/gpt-oss-20b", "unsloth/gpt-oss-20b-BF16"),
        ("org/its-fp8-secret", None),  # in the middle it may mean anything
        ("org/FP8", None),
        ("org/base", None),
    ],
)
def test_the_16_bit_model_is_named_where_it_can_be_known(name: str, twin: str | None) -> None:
    said = twin_of(name)
    assert said == "the 16-bit model that it was made from" + (f": {twin}" if twin else "")


@pytest.mark.parametrize(
    ("card", "twin"),
    [
        ("base_model: Qwen/Qwen3-8B\nbase_model_relation: quantized", "Qwen/Qwen3-8B"),
        ("base_model:\n- Qwen/MyTune\nlicense: mit", "Qwen/MyTune"),  # the name says that it is the same model
        ("base_model: Qwen/Qwen3-8B-Base", "MyTune"),  # tuned from, not made from
        ("base_model: [a/b, c/d]\nbase_model_relation: quantized", "MyTune"),
        ("base_model: {", "MyTune"),
        ("license: mit", "MyTune"),
    ],
)
def test_the_model_card_says_what_it_was_made_from(card: str, twin: str, tmp_path: Path) -> None:
    folder = tmp_path / "MyTune-FP8"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    assert twin_of(str(folder)).endswith(f": {twin}")


@given(
    st.dictionaries(st.sampled_from(["quant_method", "bits", "format", "load_in_4bit", "other"]), st.from_type(object))
)
def test_whatever_a_config_says_is_read_or_refused(section: dict[str, Any]) -> None:
    stored = few_bits_of({"quantization_config": section})
    assert (stored is None) == (not section)


def _four_bit(base: Path, folder: Path, **options: Any) -> Path:
    """A base as its maker saves it: for computing in bfloat16, with a tokenizer."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    quantization = BitsAndBytesConfig(**settings | options)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=quantization)
    model.save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in 4 bits that leaves the attention of block 0 and one layer of block 1 in 16."""
    skipped = ["lm_head", "model.layers.0.self_attn", "model.layers.1.mlp.down_proj"]
    folder = tmp_path_factory.mktemp("mixed") / "base-unsloth-bnb-4bit"
    return _four_bit(tiny_base, folder, bnb_4bit_use_double_quant=True, llm_int8_skip_modules=skipped)


def test_layers_that_a_base_leaves_in_16_bits_are_said_and_trained(mixed: Path, tiny_config) -> None:
    from bitsandbytes.nn import Linear4bit

    targets = checked_base(tiny_config(), str(mixed))
    assert len(targets.in_16bit) == 5
    assert targets.summary.endswith("5 of them in 16 bits, as this base stores them, the others in 4")
    base = loaded_base(tiny_config(), str(mixed))
    assert set(base.quantized_modules) == set(targets.modules) - set(targets.in_16bit)
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {torch.float32}  # the run's, not its maker's
    assert {layer.weight.quant_state.dtype for layer in layers} == {torch.float32}


def test_a_base_whose_adapted_layers_are_all_in_16_bits_is_refused(mixed: Path, tiny_config, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixed, tmp_path / "base-bnb-4bit"))
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"]["llm_int8_skip_modules"] = ["model"]
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(RefusedError, match=r"all layers to adapt in 16.*made from: base$"):
        checked_base(tiny_config(), str(folder))


def test_a_base_that_a_method_or_setting_cannot_take_names_its_twin(mixed: Path, tiny_config) -> None:
    with pytest.raises(RefusedError, match=r"made from: base, or take method `qdora`"):
        checked_base(tiny_config(adapter={"method": "dora"}), str(mixed))
    with pytest.raises(RefusedError, match=r"model.base_16bit name .*made from: base;"):
        checked_base(tiny_config(export={"merge_base": "original16"}), str(mixed))
    with pytest.raises(ConfigError, match=r"model.base_16bit: .* stored in NF4 of bitsandbytes, not in 16 bits"):
        checked_base(tiny_config(model={"base_16bit": str(mixed)}), str(mixed))


def test_weights_in_8_bits_that_config_json_does_not_speak_of_are_refused(tmp_path: Path, tiny_config) -> None:
    folder = save_base(tmp_path / "base-FP8", shard_size="10MB")
    file = folder / "model.safetensors"
    tensors = {n: t.to(torch.float8_e4m3fn) if "proj" in n else t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"14 weights are stored in float8_e4m3fn .*made from: base$"):
        checked_base(tiny_config(), str(folder))


def test_a_file_beside_config_json_that_says_it_is_read(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base")
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    with pytest.raises(ConfigError, match="modelopt"):
        require_sound(str(folder))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["mixed", "single", "fp4"])
def test_a_published_base_in_4_bits_goes_from_training_to_a_proven_export(
    kind: str, mixed: Path, tiny_base: Path, tmp_path: Path, tiny_config
) -> None:
    from qdora_fast.recipes.train import train

    options = {"single": {"bnb_4bit_use_double_quant": False}, "fp4": {"bnb_4bit_quant_type": "fp4"}}
    name = mixed if kind == "mixed" else _four_bit(tiny_base, tmp_path / kind, **options[kind])
    run = train(tiny_config(model={"name": str(name)}, export={"at_end": "merged_16bit"}))
    report = json.loads((run.path / "merged_16bit" / "export.json").read_text())
    assert report["proof"]["passed"] and report["merge_base"] == "dequant4"
