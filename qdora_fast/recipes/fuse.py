"""The engine for people who only want that: one line in a training script of their own.

    model = get_peft_model(base, LoraConfig(use_dora=True, target_modules="all-linear"))
    qdora_fast.fuse(model)

Nothing here computes: see engine/. Our own runs call the same `model.fuse_layers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qdora_fast.config import EngineSettings
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError

if TYPE_CHECKING:
    from qdora_fast.engine import EngineReport


def fuse(model: Any, *, quiet: bool = False, **settings: Any) -> EngineReport:
    """Put the fused forward and backward into a PEFT LoRA or DoRA model; its parameters and saves stay PEFT's.

    Args:
        model: a PeftModel on its device, changed in place. Base weights in NF4, int8 or 16/32 bits.
        quiet: print nothing; the report says the same.
        **settings: of the config's `engine` section: impl, form, resident, peft_dropout, require.

    Returns:
        What was fused, and what was left to PEFT and why.

    Raises:
        ConfigError: a setting is wrong, the model has no LoRA layers, or `require` and something was left to PEFT.
    """
    from qdora_fast.models.loading import fuse_layers

    report = fuse_layers(model, _checked(settings))
    if not quiet:
        console.lines("engine", report.lines())
    return report


def unfuse(model: Any) -> None:
    """Give a model back PEFT's own forward, bit for bit."""
    from qdora_fast.engine import uninstall

    uninstall(model)


def _checked(settings: dict[str, Any]) -> EngineSettings:
    try:
        return EngineSettings.model_validate(settings)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"qdora_fast.fuse: {mistakes}") from None
