"""Full fine-tuning: every parameter of the decoder blocks is trained, and no adapter is attached.

It is the reference that DoRA is measured against, not a method of `train`. Embeddings, output head and final norm stay
frozen, as they do under an adapter, so that arms differ in how the blocks are updated and in nothing else. What is
trained is held in 32 bits: in bfloat16 a step of 1e-5 on a weight of 0.1 would be rounded away.
"""

from __future__ import annotations

import re
from typing import Any

from qdora_fast.system.errors import RefusedError


def unfreeze_blocks(base: Any) -> Any:
    """Train all parameters of the blocks that hold adapted layers; returns the model, ready for the trainer.

    Args:
        base: a `model.Base` in 16 or 32 bits.

    Raises:
        RefusedError: the base is quantised; a 4-bit weight cannot be stepped.
    """
    if base.quantized_modules:
        raise RefusedError("full fine-tuning needs a 16-bit base; this one is quantised. Leave `full` out of --methods")
    blocks = {found[0] for name in base.targets.modules if (found := re.match(r"^.*?\.\d+\.", name))}
    for name, parameter in base.model.named_parameters():
        trained = any(name.startswith(block) for block in blocks)
        if trained:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trained)
    return base.model
