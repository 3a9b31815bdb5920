"""Sizes of bases that no table knows: exact against the models that are really built, loaded and adapted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGES, family_config, save_family
from small_models import alive_after_forward, distinct_bytes, quantize_with_bias, stored_parts

from qdora_fast.config import AdapterSettings, ModelSettings, TrainSettings
from qdora_fast.config.loader import make_config
from qdora_fast.models.loading import attach, check_base, load_base, parameter_report
from qdora_fast.models.targets import choose_targets, inspect_architecture
from qdora_fast.planning.memory import activations, weights
from qdora_fast.planning.memory.architecture import CannotEstimate, Sizes, table_sizes
from qdora_fast.planning.memory.base import sizes_of
from qdora_fast.planning.memory.job import Job, job_of
from qdora_fast.recipes.auto import job_settings
from qdora_fast.system.errors import ConfigError, RefusedError

FEW = ("smollm3", "gemma4-text", "qwen3_5-vl", "falcon_h1", "gpt_oss")
MANY = tuple(name for name in FAMILIES if name not in (*FEW, "gpt2", "mamba", "mamba2"))
IN_THE_TABLE = ("llama", "qwen3", "granite", "gemma3-1b", "phi4-mini")
LOADED = ("gemma4-text", "qwen3_5-vl")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
BESIDE_EXPERTS = {
    "gpt_oss": ATTENTION,
    "qwen3_moe": ATTENTION,
    "granite4-h-moe": ATTENTION,
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}
"""What an adapter can be on where `all-linear` is refused."""


def _exhaustive(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


@cache
def _sizes(family: str) -> Sizes:
    values = {key: value for key, value in family_config(family).to_dict().items() if value is not None}
    return sizes_of(values)


def _job(family: str, *, length: int = 256, on_gpu: bool = False, **sections: dict[str, Any]) -> Job:
    adapter = {"target_modules": BESIDE_EXPERTS.get(family, "all-linear"), **sections.pop("adapter", {})}
    settings = {"model": {"name": "b", "max_length": length}, "data": {"path": "r"}, "adapter": adapter, **sections}
    return job_of(job_settings(make_config(settings)), _sizes(family), length=length, on_gpu=on_gpu)


@pytest.mark.parametrize("family", [*FEW, *_exhaustive(MANY)])
def test_all_parameters_are_counted_each_once(family: str) -> None:
    sizes = _sizes(family)
    if family in IN_THE_TABLE:
        assert sizes.measured
        assert sizes.parameters == inspect_architecture(family_config(family)).empty.num_parameters()
        return
    assert not sizes.measured
    assert sizes.parameters == sizes.architecture.empty.num_parameters()
    assert sizes.tied == sizes.architecture.tied
    assert (sizes.tower_values > 0) == (family in IMAGES)
    assert (sizes.expert_values > 0) == (family in BESIDE_EXPERTS)
    assert sizes.blocks == sizes.architecture.blocks


@pytest.mark.parametrize("family", [*FEW, *_exhaustive(MANY)])
def test_the_adapted_layers_are_those_that_train_chooses(family: str) -> None:
    job = _job(family)
    chosen = choose_targets(
        inspect_architecture(family_config(family)),
        AdapterSettings.model_validate({"target_modules": BESIDE_EXPERTS.get(family, "all-linear")}),
    )
    assert sum(len(group.adapted) * group.count for group in job.groups) == len(chosen.modules)
    assert sum(group.count for group in job.groups) == job.sizes.blocks
    assert job.targets == chosen.summary


@pytest.mark.parametrize("family", [*LOADED, *_exhaustive(tuple(n for n in (*FEW, *MANY) if n not in LOADED))])
def test_base_and_adapter_take_what_is_really_loaded(family: str, tmp_path: Path) -> None:
    name = str(save_family(family, tmp_path / "base"))
    model, train = ModelSettings(name=name), TrainSettings()
    adapter = AdapterSettings.model_validate({"target_modules": BESIDE_EXPERTS.get(family, "all-linear")})
    targets = check_base(name, model, adapter, merge_base="auto")
    base = load_base(name, model, adapter, train, targets=targets, precision="bf16")
    held = distinct_bytes(tensor for parameter in base.model.parameters() for tensor in stored_parts(parameter))
    job = _job(family, train={"precision": "bf16"})
    counted = (weights.linear_bytes, weights.unquantized_bytes, weights.expert_bytes, weights.tower_bytes)
    assert sum(part(job) for part in counted) == held
    report = parameter_report(attach(base, adapter, train))
    assert report.trainable == sum(tensor.values for tensor in weights.trained_tensors(job))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "peft"])
@pytest.mark.parametrize(
    "family", ["qwen3_5-text", *_exhaustive(("smollm3", "gemma4-text", "olmo3", "lfm2", "granite4-h"))]
)
def test_what_blocks_leave_alive_is_counted_on_the_safe_side(family: str, ours: bool) -> None:
    job = _job(family, adapter={"r": 16}, train={"batch_size": 1}, engine={"impl": "auto" if ours else "peft"})
    counted = activations.saved_bytes(job).card
    assert 0.97 <= counted / _alive(family, ours=ours) <= 2.2


def _alive(family: str, *, ours: bool) -> int:
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModelForCausalLM

    from qdora_fast.engine import install

    config = family_config(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    chosen = choose_targets(inspect_architecture(config), AdapterSettings()).modules
    for name, module in list(model.get_decoder().layers.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_decoder().layers.get_submodule(parent), leaf, quantize_with_bias(module, torch.float32))
    adapted: Any = get_peft_model(model, LoraConfig(r=16, use_dora=True, target_modules=list(chosen)))
    if ours:
        install(adapted, resident="off")
    adapted.enable_input_require_grads()
    adapted.train()
    alive_after_forward(adapted, torch.float32, tokens=256)
    adapted.zero_grad()
    return alive_after_forward(adapted, torch.float32, tokens=256)


@pytest.mark.parametrize("family", IN_THE_TABLE)
def test_the_table_and_the_built_model_say_the_same(family: str) -> None:
    values = {key: value for key, value in family_config(family).to_dict().items() if value is not None}
    known, built = table_sizes(values), inspect_architecture(family_config(family))
    assert known is not None
    for part in ("model_type", "blocks", "head", "embeddings", "tied", "experts", "routed", "bypassed", "beside"):
        assert getattr(known.architecture, part) == getattr(built, part), part
    assert known.architecture.linears == built.linears


def test_what_a_config_leaves_out_is_what_transformers_fills_in() -> None:
    sizes = sizes_of({"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256})
    assert (sizes.blocks, sizes.hidden, sizes.vocabulary, sizes.heads) == (2, 256, 32000, 32)
    assert sizes.longest is None  # not what the owner said


def test_blocks_without_keys_and_windows_take_less_to_answer() -> None:
    full, hybrid = (_job("olmo3", length=length) for length in (64, 2048))
    assert activations.answering_bytes(hybrid, 8) < 32 * activations.answering_bytes(full, 8)
    assert any(not block.attends for block in _sizes("qwen3_5-text").stack)
    assert all(block.attends for block in _sizes("falcon_h1").stack)  # beside its recurrence


def test_layers_that_are_stored_in_16_bits_are_counted_so() -> None:
    values = {key: value for key, value in family_config("smollm3").to_dict().items() if value is not None}
    few = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "mlp.down_proj"]}
    sizes = sizes_of({**values, "quantization_config": few})
    assert {linear.name for linear in sizes.linears if linear.dense} == {"down_proj"}
    assert sizes.prequantized
    job = job_of(job_settings(_config()), sizes, length=64, on_gpu=True)
    assert weights.linear_bytes(job) > weights.linear_bytes(_job("smollm3", on_gpu=True))


def _config(**sections: dict[str, Any]) -> Any:
    return make_config({"model": {"name": "b"}, "data": {"path": "r"}, **sections})


@pytest.mark.parametrize(
    ("family", "adapter", "words"),
    [
        ("gpt_oss", {}, "mixture-of-experts"),
        ("falcon_h1", {"target_modules": ["out_proj"]}, "would do nothing"),
        ("qwen3_5-vl", {"target_modules": ["qkv"]}, "no linear layer is called `qkv`"),
        ("smollm3", {"modules_to_save": ["lm_head"]}, "shares its weights with the embeddings"),
        ("smollm3", {"layers": "0-4"}, "names block 4"),
    ],
)
def test_what_train_refuses_is_refused_in_its_words(family: str, adapter: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job_of(job_settings(_config(adapter=adapter)), _sizes(family), length=64, on_gpu=True)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"model_type": "gpt2", "n_layer": 0}, ConfigError, "no linear layers|no decoder blocks"),
        ({"model_type": "bert"}, ConfigError, "no stack of decoder blocks"),
        ({"model_type": "vit"}, ConfigError, "not a text model"),
        ({"hidden_size": 64}, CannotEstimate, "names no `model_type`"),
        ({"model_type": "smollm3", "hidden_size": 0}, CannotEstimate, "no usable `hidden_size`"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(
    values: dict[str, Any], error: type[ConfigError], words: str
) -> None:
    with pytest.raises(error, match=words):
        job_of(job_settings(_config()), sizes_of(values), length=64, on_gpu=True)


def test_code_of_its_own_is_not_run_unasked(tmp_path: Path) -> None:
    values = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(RefusedError, match=r"own\.py.*--trust-remote-code"):
        sizes_of(values, str(tmp_path))
    with pytest.raises(ConfigError, match="zebra"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "zebra"}))
        sizes_of({"model_type": "zebra"}, str(tmp_path))
