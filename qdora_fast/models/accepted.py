"""What PEFT and TRL make of a base and its targets, asked of the model without weights.

Both refuse some models with a traceback after the weights are loaded, or in the first step. So PEFT puts the adapter on
the empty model, as it will on the real one, and what TRL's loss asks of a model is looked for: a `forward` that takes
its arguments, and a head that is a plain linear layer on what the rest of the model returns.

What TRL's loss does with numbers, such as scaling logits as the model would, cannot be asked without them; the tests of
the inventory compare it with each type's own loss.
"""

from __future__ import annotations

import copy
import inspect

from qdora_fast.config import AdapterSettings
from qdora_fast.models.targets import Architecture, Targets
from qdora_fast.system.errors import RefusedError, first_line

ARGUMENTS = ("input_ids", "attention_mask", "use_cache")
"""What TRL hands to a model and to what lies below its head."""


def require_accepted(architecture: Architecture, targets: Targets, settings: AdapterSettings) -> None:
    """Refuse what PEFT or TRL would refuse later.

    Raises:
        RefusedError: with their reason.
    """
    _require_loss(architecture)
    _require_adapter(architecture, targets, settings)


def _require_adapter(architecture: Architecture, targets: Targets, settings: AdapterSettings) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets.modules),
        modules_to_save=list(settings.modules_to_save) or None,
        use_rslora=settings.rslora,
        use_dora=settings.decomposed,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(copy.deepcopy(architecture.empty), config, low_cpu_mem_usage=True)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise RefusedError(
            f"PEFT takes no adapter on these layers of a `{architecture.model_type}` model: {first_line(error)} "
            "Change adapter.target_modules, or take another base"
        ) from None
    carry = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if getattr(module, "lora_A", None)
    }
    if odd := sorted(carry ^ set(targets.modules)):
        raise RefusedError(
            f"PEFT would put adapters on other layers than asked for; the first that differs: {odd[0]}. Name the "
            "layers in adapter.target_modules"
        )


def _require_loss(architecture: Architecture) -> None:
    from torch import nn

    model = architecture.empty
    kind = architecture.model_type
    head, backbone = model.get_output_embeddings(), getattr(model, "base_model", None)
    if not isinstance(head, nn.Linear) or backbone is None or backbone is model:
        raise RefusedError(
            f"a `{kind}` model has no linear output head on top of a model of its own, and TRL's loss needs one. "
            "Take another base"
        )
    for part in (model, backbone):
        takes = inspect.signature(type(part).forward).parameters
        anything = any(each.kind is each.VAR_KEYWORD for each in takes.values())
        if missing := [name for name in ARGUMENTS if name not in takes and not anything]:
            raise RefusedError(
                f"`{type(part).__name__}` takes no `{missing[0]}`, which TRL's trainer hands to every model. Take "
                "another base"
            )
