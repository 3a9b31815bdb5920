"""What `make bench-export` exports: tuned runs of different weight, and checkpoints too large to hold.

Runs are trained on the demo's questions. `demo` is the shipped demo; `light` stops so early that its update is smaller
than the steps of the 4-bit grid; `wide` has four layers of an 8B model's widths, random weights and the demo's
vocabulary. `large` is not a model but shards of a 70B model's largest layers, with a rank-16 adapter for them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from qdora_fast.models.backend import open_backend

LIGHT = {"learning_rate": 1e-4, "max_steps": 60, "loraplus_ratio": None}
"""`train` settings under which the demo's tune changes weights by about a percent."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "light": {"train": LIGHT},
    "wide": {
        "train": {**LIGHT, "max_steps": 8, "eval_steps": 8, "save_steps": 8},
        "engine": {"resident": "off"},
        "export": {"proof_rows": 8},
    },
}
"""What each run changes of the shipped demo."""

WIDE = {"hidden_size": 4096, "intermediate_size": 14336, "layers": 4, "heads": 32, "kv_heads": 8}

LARGE_ROWS, LARGE_WIDTH, LARGE_RANK = 28672, 8192, 16
"""up_proj of a 70B Llama: 448 MiB in bfloat16."""


def settings(case: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Sections of the run's config; the base is made if it is not there."""
    found: dict[str, dict[str, Any]] = {name: dict(values) for name, values in SETTINGS[case].items()}
    found["run"] = {"dir": str(folder), "name": case}
    found["evaluation"] = {"max_rows": 0}
    found["export"] = {"at_end": "none", **found.get("export", {})}
    if case == "wide":
        found["model"] = {"name": str(wide_base(folder / "wide-base"))}
    return found


def wide_base(folder: Path) -> Path:
    """A random Llama of an 8B model's widths in bf16, with the demo's tokenizer, in shards of 512 MB."""
    if folder.is_dir():
        return folder
    open_backend()  # before anything that imports transformers
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    from qdora_fast.data.demo.base import demo_base

    source = demo_base()
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config.hidden_size, config.intermediate_size = WIDE["hidden_size"], WIDE["intermediate_size"]
    config.num_hidden_layers, config.num_attention_heads = WIDE["layers"], WIDE["heads"]
    config.num_key_value_heads, config.head_dim = WIDE["kv_heads"], WIDE["hidden_size"] // WIDE["heads"]
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    _tame(model)
    staging = folder.with_name(f"{folder.name}.incomplete")
    model.save_pretrained(staging, max_shard_size="512MB")
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(staging)
    shutil.copyfile(source / "generation_config.json", staging / "generation_config.json")
    staging.rename(folder)
    return folder


def _tame(model: Any) -> None:
    """What the layers add to the residual stream becomes small beside the token's own embedding.

    Freshly drawn it is a hundred times larger, so that the 4-bit error of the weights decides what such a model says
    and a tune of the 4-bit base is of no use to the 16-bit one. In trained models it is not so.
    """
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.05)


def large_checkpoint(folder: Path, shards: int) -> tuple[Path, Path]:
    """Shards of two of a 70B model's largest layers each, and a DoRA adapter for all of them: (base, adapter)."""
    from safetensors.torch import save_file

    base, adapter = folder / "large-base", folder / "large-adapter"
    if base.is_dir():
        return base, adapter
    for path in (staging := base.with_name("large.incomplete"), adapter):
        path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    update: dict[str, torch.Tensor] = {}
    place: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        tensors = {}
        for number in (2 * shard, 2 * shard + 1):
            layer = f"model.layers.{number}.mlp.up_proj"
            some = torch.randn(LARGE_ROWS // 16, LARGE_WIDTH, generator=generator).mul_(0.02).bfloat16()
            tensors[f"{layer}.weight"] = some.repeat(16, 1)
            stem = f"base_model.model.{layer}"
            update[f"{stem}.lora_A.weight"] = torch.randn(LARGE_RANK, LARGE_WIDTH, generator=generator) * 0.02
            update[f"{stem}.lora_B.weight"] = torch.randn(LARGE_ROWS, LARGE_RANK, generator=generator) * 0.02
            update[f"{stem}.lora_magnitude_vector"] = torch.full((LARGE_ROWS,), 1.8)
        save_file(tensors, staging / file, metadata={"format": "pt"})
        place |= dict.fromkeys(tensors, file)
    (staging / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    (staging / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    config = {"peft_type": "LORA", "r": LARGE_RANK, "lora_alpha": LARGE_RANK, "use_dora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(update, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    staging.rename(base)
    return base, adapter
