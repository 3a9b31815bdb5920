"""What PEFT and TRL would refuse after loading, or do wrong without a word, is refused without weights."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from families import family_config

from qdora_fast.config import AdapterSettings
from qdora_fast.models.accepted import require_accepted
from qdora_fast.models.targets import Targets, choose_targets, inspect_architecture
from qdora_fast.system.errors import RefusedError

SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 96}


def _ask(config: Any, settings: AdapterSettings | None = None, targets: Targets | None = None) -> None:
    settings = settings or AdapterSettings()
    architecture = inspect_architecture(config)
    require_accepted(architecture, targets or choose_targets(architecture, settings), settings)


@pytest.mark.parametrize("name", ["llama", "granite", "cohere2", "gemma3-vl", "falcon_h1", "granite4-micro", "glm4"])
@pytest.mark.parametrize("method", ["qdora", "lora"])
def test_a_right_base_is_taken(name: str, method: str) -> None:
    """Granite divides its logits, Cohere and Falcon-H1 multiply them, and TRL's loss does so, too."""
    _ask(family_config(name), AdapterSettings(method=method))


def test_what_peft_refuses_is_refused_in_its_words() -> None:
    config = family_config("falcon_h1")
    architecture = inspect_architecture(config)
    layer = next(name for name in architecture.bypassed)
    targets = Targets(("out_proj",), (layer,), None, "")
    with pytest.raises(RefusedError, match=r"PEFT takes no adapter .* incompatible with Mamba-based models"):
        _ask(config, targets=targets)


def test_a_loss_that_is_not_the_models_own_is_refused() -> None:
    capped = transformers.RecurrentGemmaConfig(**SMALL, num_attention_heads=4, lru_width=64, attention_window_size=8)
    with pytest.raises(RefusedError, match="changes what its head gives"):
        _ask(capped)


def test_the_models_own_loss_is_trls_for_what_is_taken() -> None:
    """The same on real weights: TRL's fused head against the model's own cross-entropy."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    for name in ("granite", "cohere2", "gemma3-1b", "falcon_h1"):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(family_config(name)).float().eval()
        ids = torch.randint(1, 200, (1, 12))
        with torch.no_grad():
            own = model(input_ids=ids, labels=ids).loss
            add_fused_lm_head(model)
            theirs = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
        assert torch.isclose(own, theirs, rtol=1e-4), name


@pytest.mark.parametrize("ahead", [False, True])
def test_a_model_that_reads_ahead_is_refused(ahead: bool) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.Gemma3TextConfig(**SMALL, **heads, use_bidirectional_attention=ahead)
    if not ahead:
        _ask(config)
        return
    with pytest.raises(RefusedError, match="sees the tokens that follow"):
        _ask(config)
