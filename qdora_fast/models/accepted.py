"""What PEFT and TRL make of a base and its targets, asked of the model without weights.

Both refuse some models with a traceback after the weights are loaded, or in the first step. So PEFT puts the adapter on
the empty model, as it will on the real one, and what TRL's loss takes for granted is looked at.

That loss leaves the model's own head out: it multiplies what lies below by the head's weight, and does to the logits
what it reads in the config under the names it knows (`trl.trainer.utils.add_fused_lm_head`). A model that does more
between or afterwards would be trained on another loss than its own, without a word. One forward without weights shows
it: whether the head gets what the rest returns, and whether the model returns what the head gives. A model that cannot
be run without weights is taken.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from qdora_fast.config import AdapterSettings
from qdora_fast.models.adapter_guard import adapted_modules
from qdora_fast.models.model_class import run_empty
from qdora_fast.models.targets import OTHER, Architecture, Targets
from qdora_fast.system.errors import RefusedError, first_line

KNOWN = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""Settings of a model by which TRL's loss changes logits."""
ARGUMENTS = ("input_ids", "attention_mask", "use_cache")
"""What TRL hands to a model and to what lies below its head."""


def require_accepted(architecture: Architecture, targets: Targets, settings: AdapterSettings) -> None:
    """Refuse what PEFT or TRL would refuse later.

    Raises:
        RefusedError: with their reason.
    """
    _require_causal(architecture)
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
            f"Change adapter.target_modules. {OTHER}"
        ) from None
    if odd := sorted(set(adapted_modules(adapted)) ^ set(targets.modules)):
        raise RefusedError(
            f"PEFT would put adapters on other layers than asked for; the first that differs: {odd[0]}. Name the "
            "layers in adapter.target_modules"
        )


def _require_causal(architecture: Architecture) -> None:
    """PaliGemma reads its prompt in both directions, EmbeddingGemma all: rows of text would show what they ask for."""
    text = architecture.empty.config.get_text_config()
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        raise RefusedError(
            f"a `{architecture.model_type}` model sees the tokens that follow (`use_bidirectional_attention` in its "
            f"config.json), so that it would learn to copy them instead of saying them. {OTHER}"
        )


def _require_loss(architecture: Architecture) -> None:
    from torch import nn

    model, kind = architecture.empty, architecture.model_type
    head, backbone = model.get_output_embeddings(), getattr(model, "base_model", None)
    if not isinstance(head, nn.Linear) or backbone is None or backbone is model:
        raise RefusedError(
            f"a `{kind}` model has no linear output head on a model of its own, and TRL's loss needs one. {OTHER}"
        )
    for part in (model, backbone):
        takes = inspect.signature(type(part).forward).parameters
        anything = any(each.kind is each.VAR_KEYWORD for each in takes.values())
        if missing := [name for name in ARGUMENTS if name not in takes and not anything]:
            raise RefusedError(
                f"`{type(part).__name__}` takes no `{missing[0]}`, which TRL's trainer hands to every model. {OTHER}"
            )
    if odd := _own_logits(copy.deepcopy(model).float()):  # where no cast makes other values of the same ones
        raise RefusedError(
            f"TRL's loss of a `{kind}` model is not the model's own: {odd}, of which TRL knows nothing. {OTHER}"
        )


def _own_logits(model: Any) -> str | None:
    """What the model, in fp32, does to its logits and TRL's loss does not; None if nothing is seen."""
    seen: dict[str, Any] = {}
    head, backbone = model.get_output_embeddings(), model.base_model

    def below(_: Any, __: Any, outputs: Any) -> None:
        seen["below"] = getattr(outputs, "last_hidden_state", None)

    def above(_: Any, inputs: Any, logits: Any) -> None:
        seen.update(given=inputs[0], logits=logits, version=logits._version)

    hooks = [backbone.register_forward_hook(below), head.register_forward_hook(above)]
    returned = getattr(run_empty(model), "logits", None)
    for hook in hooks:
        hook.remove()
    if returned is None or seen.get("below") is None:
        return None
    if "logits" in seen and returned.shape[-1] == seen["logits"].shape[-1]:
        text = model.config.get_text_config()
        if any(getattr(text, name, None) is not None for name in KNOWN):
            return None
        if not _same(seen["given"], seen["below"]):
            return "something lies between its head and the rest"
        if _same(returned, seen["logits"]) and seen["logits"]._version == seen["version"]:
            return None
    return "it changes what its head gives"


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors are views of the same values."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
