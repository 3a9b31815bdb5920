"""A config.json that names more than any model has is refused before anything is counted or built by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.models.model_config import position_limit, read_model_config
from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.remote_code import FLAG, allow_remote_code


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10_000_000},
        {"text_config": {"num_hidden_layers": 10_001}},
        {"vocab_size": 10**13},
        {"vocab_size": 1e300},
        {"hidden_size": int("9" * 300)},
    ],
)
def test_a_count_above_every_models_is_refused_by_name(values: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"(num_hidden_layers|vocab_size|hidden_size) is .*no model has more"):
        read_model_config(file)


def test_ordinary_values_are_given_as_they_are(tmp_path: Path) -> None:
    values = {"num_hidden_layers": 126, "vocab_size": 256_000, "time_step_limit": [0.0, float("inf")], "rope": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path / "config.json") == values


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096, "sliding_window": 1024}, 4096),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 163840,
                "rope_parameters": {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163840,
        ),
        (
            {
                "text_config": {
                    "max_position_embeddings": 8192,
                    "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}},
                },
                "max_position_embeddings": 7,
            },
            16384,
        ),
    ],
)
def test_the_longest_text_counts_rope_scaling_and_no_window(values: dict[str, Any], limit: int | None) -> None:
    assert position_limit(values) == limit


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "kernels-community/flash-attn3"},
        {"_attn_implementation": "evil/kernel@main:attention"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": {"": "sdpa", "vision_config": "evil/kernel"}},
        {"text_config": {"attn_implementation": "evil/kernel"}},
    ],
)
def test_a_kernel_of_the_hub_is_code_and_wants_the_flag(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(RefusedError, match=FLAG):
        read_model_config(file)
    with allow_remote_code():
        assert read_model_config(file) == values


def test_attention_that_is_no_code_is_taken(tmp_path: Path) -> None:
    values = {"_attn_implementation": "flash_attention_2", "text_config": {"attn_implementation": None}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path / "config.json") == values
