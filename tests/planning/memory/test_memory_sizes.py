"""Counts of parameters from config.json values: exact against the models that transformers builds without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qdora_fast.planning.memory.architecture import CannotEstimate, table_sizes
from qdora_fast.planning.memory.base import sizes_of
from qdora_fast.planning.memory.known import known_config, known_names

# Public configurations (values of their config.json that decide sizes) and the parameters their owners publish.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b-chat-v1.0": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini-4k": 3_821_079_552,
    "granite-3.1-2b": 2_533_531_648,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}


def _meta_model(values: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if values["model_type"] == "phi3" else {}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values, **tokens))


@pytest.mark.parametrize("name", known_names())
def test_every_part_of_a_public_model_is_counted_exactly(name: str) -> None:
    values = known_config(name)
    assert values is not None
    sizes, model = sizes_of(values), _meta_model(values)
    counted = {"embeddings": 0, "head": 0, "norms": 0, "linear": 0}
    for parameter_name, parameter in model.named_parameters():
        kind = "norms" if "norm" in parameter_name else "linear"
        kind = "embeddings" if "embed_tokens" in parameter_name else "head" if "lm_head" in parameter_name else kind
        counted[kind] += parameter.numel()
    assert sizes.embedding_values == counted["embeddings"]
    assert sizes.head_values == counted["head"]
    assert sizes.norm_values == counted["norms"]
    assert sizes.linear_values + sizes.bias_values == counted["linear"]
    assert sizes.parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-0.5b", "gemma-2-2b", "gemma-3-1b", "phi-3-mini-4k"])
def test_the_linear_layers_are_the_ones_that_all_linear_means(name: str) -> None:
    from qdora_fast.config import AdapterSettings
    from qdora_fast.models.targets import choose_targets, inspect_architecture

    values = known_config(name)
    assert values is not None
    model = _meta_model(values)
    targets = choose_targets(inspect_architecture(model.config), AdapterSettings())
    shapes = {full: tuple(model.get_submodule(full).weight.shape) for full in targets.modules}
    sizes = sizes_of(values)
    assert sorted(linear.name for linear in sizes.linears) == sorted(targets.leaves)
    first = {full.rsplit(".", 1)[-1]: shape for full, shape in shapes.items() if ".0." in full}
    assert {linear.name: (linear.rows, linear.columns) for linear in sizes.linears} == first
    assert len(targets.modules) == sizes.blocks * len(sizes.linears)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": None}, "names no `model_type`"),
        ({"hidden_size": None}, "no usable `hidden_size`"),
        ({"vocab_size": True}, "no usable `vocab_size`"),
        ({"intermediate_size": -1}, "no usable `intermediate_size`"),
        ({"num_hidden_layers": 0}, "no usable `num_hidden_layers`"),
    ],
)
def test_what_no_model_can_have_is_refused_and_never_guessed(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotEstimate, match=words):
        sizes_of({**LLAMA, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "qwen3_moe", "num_experts": 128},
        {"model_type": "gemma3", "vision_config": {"hidden_size": 8}},
        {"model_type": "smollm3"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"auto_map": {"AutoConfig": "own.Own"}},
    ],
)
def test_the_table_answers_for_nothing_but_its_own_families(changed: dict[str, Any]) -> None:
    assert table_sizes(LLAMA) is not None
    assert table_sizes({**LLAMA, **changed}) is None


def test_biases_are_counted_where_the_config_asks_for_them() -> None:
    plain, biased = sizes_of(LLAMA), sizes_of({**LLAMA, "attention_bias": True, "mlp_bias": True})
    assert plain.bias_values == 0
    assert biased.bias_values == 2 * (4 * 64 + 2 * 128 + 64)
    assert sum(p.numel() for p in _meta_model({**LLAMA, "attention_bias": True, "mlp_bias": True}).parameters()) == (
        biased.parameters
    )


def test_a_known_base_is_found_under_its_owners_and_mirrors_only() -> None:
    assert known_config("unsloth/Meta-Llama-3.1-8B") == known_config("meta-llama/Llama-3.1-8B-Instruct")
    assert known_config("meta-llama/Llama-3.1-8B") is not None
    assert known_config("somebody/Llama-3.1-8B") is None
    assert known_config("unsloth/Llama-9-1T") is None
