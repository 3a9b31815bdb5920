"""What PEFT and TRL make of a base, asked before weights are read."""

from __future__ import annotations

import pytest
import transformers

from qdora_fast.config import AdapterSettings
from qdora_fast.models.accepted import require_accepted
from qdora_fast.models.targets import choose_targets, inspect_architecture
from qdora_fast.system.errors import RefusedError

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "head_dim": 16}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_model_that_reads_ahead_is_refused(ahead: bool) -> None:
    config = transformers.Gemma3TextConfig(**SMALL, num_hidden_layers=1, use_bidirectional_attention=ahead)
    architecture = inspect_architecture(config)
    targets = choose_targets(architecture, AdapterSettings())
    if not ahead:
        require_accepted(architecture, targets, AdapterSettings())
        return
    with pytest.raises(RefusedError, match="sees the tokens that follow"):
        require_accepted(architecture, targets, AdapterSettings())
