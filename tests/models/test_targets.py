"""Targets come from the model's own structure, and what cannot work is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import transformers
from families import family_config
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config import AdapterSettings
from qdora_fast.models.targets import Architecture, choose_targets, inspect_architecture, leaves_suffice, pattern
from qdora_fast.system.errors import ConfigError, RefusedError

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}


def _llama(**changes: object) -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(**{**SMALL, "intermediate_size": 128, "num_hidden_layers": 3, **changes})


@pytest.mark.parametrize("family", ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "Gemma2Config"])
def test_all_linear_is_every_linear_layer_of_the_blocks_without_head_and_embeddings(family: str) -> None:
    config = getattr(transformers, family)(num_hidden_layers=2)
    targets = choose_targets(inspect_architecture(config), AdapterSettings())
    assert targets.leaves == SEVEN
    assert len(targets.modules) == 2 * len(SEVEN)
    assert not any("lm_head" in name or "embed" in name for name in targets.modules)
    assert "not adapted: model.embed_tokens" in targets.summary


def test_fused_projections_keep_their_own_names() -> None:
    config = transformers.Phi3Config(num_hidden_layers=2)
    targets = choose_targets(inspect_architecture(config), AdapterSettings())
    assert set(targets.leaves) == {"o_proj", "qkv_proj", "gate_up_proj", "down_proj"}


def test_a_list_and_a_layer_range_narrow_it_down() -> None:
    settings = AdapterSettings(target_modules=["v_proj", "q_proj"], layers="0,2")
    targets = choose_targets(inspect_architecture(_llama()), settings)
    assert targets.layers == (0, 2)
    assert set(targets.modules) == {
        f"model.layers.{i}.self_attn.{leaf}" for i in (0, 2) for leaf in ("q_proj", "v_proj")
    }


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"target_modules": ["embed_tokens"]}, RefusedError, "`embed_tokens` is the embedding"),
        ({"target_modules": ["lm_head"]}, RefusedError, r"use adapter.modules_to_save: \[lm_head\]"),
        ({"target_modules": ["qproj"]}, ConfigError, "did you mean `q_proj`"),
        ({"layers": "0-3"}, ConfigError, "blocks 0-2"),
        ({"modules_to_save": ["q_proj"]}, ConfigError, "neither the output head nor the embeddings"),
    ],
)
def test_targets_that_cannot_work_are_refused(settings: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        choose_targets(inspect_architecture(_llama()), AdapterSettings(**settings))


def test_a_tied_head_is_refused() -> None:
    tied = inspect_architecture(_llama(tie_word_embeddings=True))
    with pytest.raises(RefusedError, match="is the output head") as caught:
        choose_targets(tied, AdapterSettings(target_modules=["lm_head"]))
    assert "modules_to_save" not in str(caught.value)  # no advice that would be refused next
    with pytest.raises(RefusedError, match="shares its weights"):
        choose_targets(tied, AdapterSettings(modules_to_save=["lm_head"]))


def test_experts_are_refused_but_attention_may_be_trained() -> None:
    config = transformers.Qwen3MoeConfig(
        **SMALL, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2, num_experts=4
    )
    architecture = inspect_architecture(config)
    with pytest.raises(RefusedError, match=r"mixture-of-experts.*target_modules: \[q_proj, k_proj, v_proj, o_proj\]"):
        choose_targets(architecture, AdapterSettings())
    for named in (["gate_proj"], ["q_proj", "down_proj"], ["experts"], ["gate"], ["up_proj", "gate_proj", "down_proj"]):
        with pytest.raises(RefusedError, match="mixture-of-experts"):
            choose_targets(architecture, AdapterSettings(target_modules=named))
    targets = choose_targets(architecture, AdapterSettings(target_modules=["q_proj", "o_proj"]))
    assert set(targets.leaves) == {"q_proj", "o_proj"}


@pytest.fixture(scope="module")
def vision() -> Architecture:
    text = {**SMALL, "num_hidden_layers": 2, "head_dim": 16, "layer_types": ["full_attention"] * 2}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return inspect_architecture(transformers.Gemma3Config(text_config=text, vision_config=tower))


def test_of_a_vision_model_the_language_part_alone_is_adapted(vision: Architecture) -> None:
    targets = choose_targets(vision, AdapterSettings())
    assert vision.blocks == 2  # the tower's three do not count
    assert len(targets.modules) == 14
    assert all(name.startswith("model.language_model.layers.") for name in targets.modules)
    assert vision.tied  # as the whole config says
    assert targets.beside == ("model.vision_tower", "model.multi_modal_projector")
    assert "left alone: model.vision_tower, model.multi_modal_projector; text alone is trained" in targets.summary


def test_blocks_can_be_chosen_in_a_vision_model(vision: Architecture) -> None:
    targets = choose_targets(vision, AdapterSettings(layers="1", target_modules=["q_proj", "down_proj"]))
    assert targets.modules == (
        "model.language_model.layers.1.self_attn.q_proj",
        "model.language_model.layers.1.mlp.down_proj",
    )


def test_leaves_suffice_where_they_mean_the_chosen_layers_alone(vision: Architecture) -> None:
    for layers in (None, "1"):
        targets = choose_targets(vision, AdapterSettings(layers=layers))
        assert leaves_suffice(targets, vision.linears)
        assert not leaves_suffice(targets, [*vision.linears, *vision.elsewhere])  # the tower has a q_proj, too
        assert not leaves_suffice(targets, [*vision.linears, "model.vision_tower.layers.1.q_proj"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["layers", "model.language_model.layers", "a+b.h"]),
            st.integers(0, 30),
            st.sampled_from(["q_proj", "self_attn.q_proj", "mlp.up_proj", "w.1", "x(y"]),
        ),
        min_size=1,
        unique=True,
    ),
    st.data(),
)
def test_a_pattern_matches_exactly_the_layers_it_was_made_of(parts: list[tuple[str, int, str]], data: Any) -> None:
    names = [f"{stack}.{block}.{end}" for stack, block, end in parts]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    made = re.compile(pattern(chosen))
    assert {name for name in names if made.fullmatch(name)} == set(chosen)
    assert not any(made.fullmatch(f"model.vision_tower.{name}") or made.fullmatch(f"{name}.1") for name in chosen)


def test_other_kinds_of_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="has an encoder, too"):
        inspect_architecture(transformers.T5Config())
    with pytest.raises(ConfigError, match="not a text model"):
        inspect_architecture(transformers.ViTConfig())
    with pytest.raises(RefusedError, match="no linear layers"):
        choose_targets(inspect_architecture(transformers.GPT2Config(n_layer=1)), AdapterSettings())


def test_all_linear_of_a_hybrid_takes_what_is_called_and_says_what_is_left_out() -> None:
    architecture = inspect_architecture(family_config("granite4-h"))
    targets = choose_targets(architecture, AdapterSettings())
    assert "model.layers.0.mamba.in_proj" in targets.modules and "model.layers.1.self_attn.o_proj" in targets.modules
    assert not any(layer.endswith("out_proj") for layer in targets.modules)
    assert "left out: out_proj, where `GraniteMoeHybridMambaLayer` uses its weight" in targets.summary
    with pytest.raises(RefusedError, match="an adapter on `out_proj` would do nothing: `GraniteMoeHybridMambaLayer`"):
        choose_targets(architecture, AdapterSettings(target_modules=["in_proj", "out_proj"]))
    named = choose_targets(architecture, AdapterSettings(target_modules=["in_proj"]))
    assert "left out" not in named.summary  # nobody asked for it


def test_a_hybrids_out_proj_that_is_called_is_taken() -> None:
    for name in ("lfm2", "qwen3_5-text"):
        targets = choose_targets(inspect_architecture(family_config(name)), AdapterSettings())
        assert "out_proj" in targets.leaves and "left out" not in targets.summary


def test_a_dense_model_of_a_class_with_experts_is_dense() -> None:
    architecture = inspect_architecture(family_config("granite4-micro"))
    assert not architecture.experts
    assert "input_linear" in choose_targets(architecture, AdapterSettings()).leaves
    rows = transformers.Qwen3MoeConfig(**SMALL, num_hidden_layers=2, mlp_only_layers=[0, 1])
    assert not inspect_architecture(rows).experts


def test_beside_experts_the_models_own_names_are_suggested() -> None:
    architecture = inspect_architecture(family_config("deepseek_v3"))
    mla = r"\[q_a_proj, q_b_proj, kv_a_proj_with_mqa, kv_b_proj, o_proj\]"
    for named in ("all-linear", ["gate_proj"], ["q_a_proj", "up_proj"]):
        with pytest.raises(RefusedError, match=mla):
            choose_targets(architecture, AdapterSettings(target_modules=named))
    targets = choose_targets(architecture, AdapterSettings(target_modules=["kv_b_proj"]))
    assert "experts and routers stay as they are" in targets.summary and "in 16 bits" in targets.summary
    plain = choose_targets(architecture, AdapterSettings(method="dora", target_modules=["kv_b_proj"]))
    assert "in 16 bits" not in plain.summary


def test_what_lies_around_the_blocks_is_named() -> None:
    targets = choose_targets(inspect_architecture(family_config("gemma4-text")), AdapterSettings())
    assert "not adapted: model.embed_tokens, embed_tokens_per_layer" in targets.summary


def test_four_bits_are_refused_where_a_weight_is_multiplied_by() -> None:
    architecture = inspect_architecture(family_config("mamba"))
    with pytest.raises(RefusedError, match="Set adapter.method: dora"):
        choose_targets(architecture, AdapterSettings())
    assert choose_targets(architecture, AdapterSettings(method="dora")).leaves == ("in_proj",)
