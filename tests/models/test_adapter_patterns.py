"""Patterns of an adapter's config: what tools write is taken, what might never end is refused in a moment."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qdora_fast.models.adapter_patterns import require_bounded
from qdora_fast.system.errors import ConfigError

LAYERS = [
    f"model.language_model.layers.{block}.{part}" for block in range(80) for part in ("self_attn.q_proj", "mlp.up_proj")
]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj)))"
)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": None, "rank_pattern": {}, "exclude_modules": None, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "model.layers.0.mlp.up_proj"], "rank_pattern": {"q_proj": 8}},
        {"rank_pattern": {"^model.decoder.layers.0.k_proj": 16}, "alpha_pattern": {r".*layers\.\d+\.mlp": 4}},
        {"target_modules": r"model\.language_model\.layers\.(?:0|1|79)\.(?:self_attn\.q_proj|mlp\.up_proj)"},
        {"target_modules": UNSLOTH},
        {"target_modules": r"(model\.)?layers\.(1|11|111)\.(?:self_attn|self_attn_2|mlp)?\.?(q|k)_proj"},
        {"target_modules": "(?:ab|cd)+"},
        {"target_modules": r".*\.(q|v)_proj$", "exclude_modules": r"^(?!.*language_model).*"},
        {"target_modules": "(?:" + "|".join(layer.replace(".", r"\.") for layer in LAYERS) + ")"},
    ],
)
def test_what_tools_write_is_taken(config: dict[str, Any]) -> None:
    require_bounded(config, "adapter_config.json")


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"([a-z_.0-9]+)+!": 8}},
        {"alpha_pattern": {"(x+x+)+y": 8}},
        {"target_modules": r"(?:.*)*q_proj"},
        {"target_modules": ["q_proj", r"((\w+\.){2,})+x"]},
        {"exclude_modules": r"(.)\1+(a|b)*+(?:c*)*"},
        {"layers_pattern": ["(" * 200 + "a"]},
        {"target_modules": "a*" * 60_000},
        {"target_modules": ".*" * 40 + "!"},
        {"layers_pattern": r"(?:.|\w|\W)+(?:.|\w|\W)+!"},
        {"target_modules": "([a-z.0-9_]|[a-z.0-9_])+!"},
        {"target_modules": "(?:self_attn|self|_attn)+!"},
        {"target_modules": "(?:l?a?y?e?r?)+!"},
        {"target_modules": r"(?:.|\w)" * 30 + "!"},
        {"exclude_modules": "[a-z]?" * 60 + "!"},
    ],
)
def test_what_might_never_end_is_refused_with_its_setting(config: dict[str, Any]) -> None:
    (field,) = config
    began = time.process_time()
    with pytest.raises(ConfigError, match=rf"adapter_config.json: {field} holds the pattern"):
        require_bounded(config, "adapter_config.json")
    assert time.process_time() - began < 10  # most of them would take longer than the universe is old
