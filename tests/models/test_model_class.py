"""Which class a checkpoint is opened with."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from qdora_fast.models.model_class import auto_class, empty_model
from qdora_fast.system.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "architecture", "expected"),
    [
        (transformers.LlamaConfig(), "LlamaForCausalLM", "AutoModelForCausalLM"),
        (transformers.LlamaConfig(), None, "AutoModelForCausalLM"),
        (transformers.Gemma3Config(), "Gemma3ForConditionalGeneration", "AutoModelForImageTextToText"),
        (transformers.Gemma3Config(), None, "AutoModelForImageTextToText"),
        (transformers.Qwen3VLConfig(), "Qwen3VLForConditionalGeneration", "AutoModelForImageTextToText"),
    ],
)
def test_a_checkpoint_is_opened_as_it_was_published(config: Any, architecture: str | None, expected: str) -> None:
    config.architectures = architecture and [architecture]
    assert auto_class(config).__name__ == expected


def test_a_model_is_built_without_weights() -> None:
    config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=100)
    assert all(each.is_meta for each in empty_model(config).parameters())


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        empty_model(transformers.LlamaConfig(pad_token_id=99, vocab_size=10))
