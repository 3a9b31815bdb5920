"""Full fine-tuning trains the blocks, all of them, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loaded_models import loaded_base

from qdora_fast.recipes.compare.full import unfreeze_blocks
from qdora_fast.system.errors import RefusedError


def _loaded(tiny_config: Any, precision: str = "fp32", **adapter: Any) -> Any:
    config = tiny_config(adapter=adapter)
    return loaded_base(config, precision=precision)


def test_every_parameter_of_the_blocks_is_trained_and_no_other(tiny_config: Any) -> None:
    model = unfreeze_blocks(_loaded(tiny_config, method="lora"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".layers." in name}
    assert any("layernorm" in name for name in trained)


def test_only_the_blocks_that_an_adapter_would_be_put_on_are_trained(tiny_config: Any) -> None:
    model = unfreeze_blocks(_loaded(tiny_config, method="lora", layers="1"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".layers.1." in name}


def test_what_is_trained_is_held_in_32_bits(tiny_config: Any) -> None:
    model = unfreeze_blocks(_loaded(tiny_config, precision="bf16", method="lora"))
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)


def test_a_quantised_base_is_refused(tiny_config: Any) -> None:
    with pytest.raises(RefusedError, match="needs a 16-bit base"):
        unfreeze_blocks(_loaded(tiny_config, method="qlora"))
