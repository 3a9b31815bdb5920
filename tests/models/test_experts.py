"""Experts are told by their names, with the routers beside them; what lies in no linear layer is counted."""

from __future__ import annotations

from families import family_config

from qdora_fast.models.experts import expert_modules, other_parameters
from qdora_fast.models.model_class import empty_model


def test_experts_take_the_linear_layers_of_their_part_of_a_block_along() -> None:
    model = empty_model(family_config("deepseek_v3"))
    found = expert_modules(model.model.layers, {id(module): name for name, module in model.named_modules()})
    assert "model.layers.1.mlp.experts" in found.modules
    assert "model.layers.1.mlp.shared_experts.up_proj" in found.linears
    assert not any(name.startswith("model.layers.0.") or "self_attn" in name for name in found.linears)


def test_packed_experts_are_no_linear_layers_and_a_dense_block_has_nothing_else() -> None:
    packed = other_parameters(empty_model(family_config("qwen3_moe")).model.layers)
    assert set(packed) == {"experts.gate_up_proj", "experts.down_proj"}
    assert not other_parameters(empty_model(family_config("llama")).model.layers)
