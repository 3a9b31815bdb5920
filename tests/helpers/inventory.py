"""What becomes of every type of model that the installed Transformers knows, told without weights.

Each type is built from its default config, with few blocks, on torch's meta device, and asked for `all-linear` QDoRA; a
mixture of experts is asked for what the refusal suggests. The verdict is one line, recorded in
tests/models/inventory.json. After a change that is meant:

    python -m tests.helpers.inventory
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings
from qdora_fast.models.accepted import require_accepted
from qdora_fast.models.backend import open_backend
from qdora_fast.models.bypassed import called_layers
from qdora_fast.models.experts import SHARE
from qdora_fast.models.targets import Architecture, Targets, choose_targets, inspect_architecture
from qdora_fast.system.errors import QdoraError

RECORD = Path(__file__).parent.parent / "models" / "inventory.json"
BLOCKS = 4
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks")

NEEDED: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 8}},
    "dots1": {"n_routed_experts": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4},
    "ministral": {"head_dim": 128},
}
"""What the defaults of a type lack."""


def model_types() -> tuple[str, ...]:
    """All types that write text after text or images, in alphabetical order."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    seeing = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return tuple(sorted({*causal, *seeing}))


def verdict(model_type: str) -> str:
    """What becomes of a type, in a line without numbers that depend on sizes."""
    said = "no default config"
    for config in configs(model_type):
        try:
            return taken(config)
        except QdoraError as error:  # where fewer blocks do not go together, the default may
            said = f"refused: {re.sub(r'[ ]+', ' ', str(error))[:160]}"
    return said


def taken(config: Any) -> str:
    """The layers that get an adapter and what does not, with anything that would go wrong without a word."""
    architecture = inspect_architecture(config)
    settings = AdapterSettings()
    only = ""
    try:
        targets = choose_targets(architecture, settings)
    except QdoraError as error:
        suggested = re.search(r"adapter.target_modules: \[(.*?)\]", str(error))
        if not architecture.experts or not suggested:
            raise
        only = "beside experts: "
        settings = AdapterSettings(target_modules=suggested[1].split(", "))
        targets = choose_targets(architecture, settings)
    require_accepted(architecture, targets, settings)
    parts = [f"taken: {only}{', '.join(targets.leaves)}"]
    if architecture.beside:
        parts.append(f"beside: {', '.join(architecture.beside)}")
    left = sorted({name.rpartition(".")[2] for name in architecture.bypassed})
    if left:
        parts.append(f"bypassed: {', '.join(left)}")
    if architecture.other and not architecture.experts:
        parts.append(f"no linear layers: {', '.join(architecture.other)}")
    called = called_layers(architecture.empty)
    if called is None:
        parts.append("not run without weights")
    parts += [f"SILENT: {each}" for each in silent(architecture, targets, called)]
    return "; ".join(parts)


def silent(architecture: Architecture, targets: Targets, called: set[str] | None) -> Iterator[str]:
    """What would go wrong without a word."""
    counts: Counter[str] = Counter()
    named = {*targets.modules, *architecture.bypassed, *architecture.routed}
    ends = (*architecture.beside, architecture.head, architecture.embeddings, *architecture.experts)
    around = tuple(f".{name}." for name in architecture.around)
    total = 0
    for name, parameter in architecture.empty.named_parameters():
        module, _, leaf = name.rpartition(".")
        last = f"{module.rpartition('.')[2]}.{leaf}"
        total += parameter.numel()
        told = module in named or any(last.startswith(other) for other in architecture.other)
        told = told or any(part in f".{name}" for part in around)
        if not told and not any(end and f"{name}.".startswith(f"{end}.") for end in ends):
            counts[last] += parameter.numel()
    if not architecture.experts:  # else the layers are named one by one, and what is not named is not silent
        yield from (f"{name} is not adapted" for name, count in counts.items() if count > SHARE * total)
    if called is not None:
        yield from (f"{name} is adapted and never called" for name in sorted(set(targets.modules) - called))


def configs(model_type: str) -> Iterator[Any]:
    """The default config of a type, with at most `BLOCKS` blocks in each of its parts first."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    for fewer in (True, False):
        try:
            values = _fewer(kind().to_dict()) if fewer else {}
            config = kind(**{**values, **NEEDED.get(model_type, {})})
        except Exception:  # noqa: BLE001 - some defaults do not go together, some counts hang together
            continue
        config.architectures = None
        yield config


def _fewer(values: dict[str, Any]) -> dict[str, Any]:
    counts = {name: values[name] for name in COUNTS if isinstance(values.get(name), int) and values[name] > BLOCKS}
    made = {}
    for name, value in values.items():
        if isinstance(value, dict):
            made[name] = _fewer(value)
        elif name in counts:
            made[name] = BLOCKS
        elif isinstance(value, list) and counts and len(value) in counts.values():
            made[name] = value[-BLOCKS:]  # of a hybrid, the last blocks hold attention more often
        else:
            made[name] = value
    return made


def record() -> dict[str, str]:
    """The recorded verdicts."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


if __name__ == "__main__":
    open_backend()
    chosen = sys.argv[1:] or model_types()
    found = {}
    for each in chosen:
        found[each] = verdict(each)
        print(f"{each}: {found[each]}", flush=True)
    if not sys.argv[1:]:
        RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
