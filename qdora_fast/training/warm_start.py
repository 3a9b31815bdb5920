"""Begin a new run from a trained adapter: its weights, and nothing else of it.

Not the same as `--resume`, which continues one run to the bit. Here optimizer, schedule, step
count and data start anew; only where A, B and the magnitudes begin is taken over. The adapter must
have the form that the new run trains, or it would be another function from the start.
"""

from __future__ import annotations

from typing import Any

from qdora_fast.config import AdapterSettings
from qdora_fast.models.adapter import Adapter, load_into, read_adapter
from qdora_fast.models.adapter_guard import adapted_modules
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.paths import local_path


def warm_start(model: Any, settings: AdapterSettings) -> str:
    """Put the weights of `adapter.init_adapter` into a fresh PEFT model.

    Args:
        model: with its adapter attached and fused; that makes fresh magnitudes, which are replaced here.

    Returns:
        What was done, for the user.

    Raises:
        ConfigError: no adapter there, or of another form; each difference is named.
        IntegrityError: it is incomplete or damaged.
    """
    assert settings.init_adapter is not None, "called only when it is set"
    named = local_path(settings.init_adapter)
    folder = named / "adapter" if (named / "config.yaml").is_file() else named
    saved = read_adapter(folder)
    here, there = set(adapted_modules(model)), set(saved.modules)
    compared = {
        "DoRA": (saved.use_dora, settings.decomposed),
        "r": (saved.r, settings.r),
        "alpha": (saved.alpha, settings.alpha),
        "rslora": (bool(saved.config.get("use_rslora")), settings.rslora),
        "adapted layers": (len(there), len(here)),
        "trained tokens": (_ids(saved), _live_ids(model)),
    }
    different = [f"{name}: {theirs} there, {ours} here" for name, (theirs, ours) in compared.items() if theirs != ours]
    if not different and here != there:
        different = [f"adapted layers: {min(here ^ there)} is in one of them only"]
    if different:
        raise ConfigError(
            f"adapter.init_adapter: {folder} has another form than this run trains: {'; '.join(different)}. "
            "Change the settings of `adapter` to match it"
        )
    load_into(model, folder)
    base = saved.config.get("base_model_name_or_path")
    return (
        f"starts from the weights of {folder} ({len(there)} layers, trained on {base}); "
        "optimizer, schedule and rows start anew (to continue a run, use --resume)"
    )


def _ids(saved: Adapter) -> list[int]:
    return sorted({number for tokens in saved.tokens.values() for number in tokens.ids})


def _live_ids(model: Any) -> list[int]:
    listed = model.peft_config["default"].trainable_token_indices or {}
    return sorted({number for ids in listed.values() for number in ids})
