"""A config of LLaMA-Factory (its documented arguments of 2026-08) as settings of ours.

Its datasets are names in a `dataset_info.json`, which is looked up in `dataset_dir` as its users run it: from the
working directory, else beside the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.config.foreign.translation import (
    OPTIMIZERS,
    OWN_TEMPLATES,
    SCHEDULERS,
    Translation,
    refuse_objective,
    sources,
)
from qdora_fast.system.json_files import read_object
from qdora_fast.system.paths import local_path

BASE = "model_name_or_path"

DECIDED = frozenset(
    {
        *("do_train", "do_eval", "output_dir", "overwrite_output_dir", "overwrite_cache", "logging_steps", "plot_loss"),
        *("bf16", "pure_bf16", "ddp_timeout", "flash_attn", "use_unsloth", "use_unsloth_gc", "enable_liger_kernel"),
        *("dataloader_num_workers", "eval_strategy", "evaluation_strategy", "save_strategy", "save_only_model"),
        *("save_total_limit", "use_fast_tokenizer", "double_quantization", "quantization_method", "quantization_type"),
        *("preprocessing_batch_size", "low_cpu_mem_usage", "tokenized_path", "include_num_input_tokens_seen"),
        *("load_best_model_at_end", "group_by_length", "upcast_layernorm", "use_reentrant_gc", "create_new_adapter"),
        *("tool_format", "preserve_thinking", "data_shared_file_system", "remove_unused_columns", "infer_backend"),
        *(
            "save_safetensors",
            "ignore_pad_token_for_loss",
            "print_param_status",
            "prediction_loss_only",
            "neat_packing",
        ),
        *("ignore_data_skip", "ddp_find_unused_parameters", "cache_dir"),
    }
)
"""Arguments that ask for what is done here anyway, or is found for the machine."""

REASONS = {
    "deepspeed": "one card, or one copy of the model a card (torchrun)",
    "fsdp": "one card, or one copy of the model a card (torchrun)",
    "resume_from_checkpoint": "`--resume` on the command line",
    "trust_remote_code": "given on the command line, where the person who runs it decides",
    "rope_scaling": "write it into the base's config.json, so that exports have it",
    "swanlab": "train.tracker has wandb, tensorboard, mlflow and trackio",
    "use_swanlab": "train.tracker has wandb, tensorboard, mlflow and trackio",
    "default_system": "put it into the rows, or name its column",
    "push_to_hub": "`qdora-fast export`, then upload the folder",
    "export_": "`qdora-fast export` makes the exports",
    "image_": "rows are text",
    "video_": "rows are text",
    "freeze_": "vision towers stay as they are",
    "neftune": "no noise is added to embeddings",
    "do_predict": "`qdora-fast evaluate` asks the held-out rows",
    "predict_with_generate": "held-out rows are always answered in writing where an answer decides",
    "mix_strategy": "all rows are read, each source with its `weight` in data.sources",
    "interleave_probs": "a `weight` for each of data.sources",
    "mask_history": "all answers of a conversation are learned; `train: false` on a turn leaves it out",
    "run_name": "run.name",
    "oft_": "qdora, dora, qlora and lora are there",
    "pissa": "B starts at zero, so that training starts at the base",
}


def translated(theirs: dict[str, Any], folder: Path) -> Translation:
    """The settings that it comes to.

    Raises:
        ConfigError: another stage than supervised fine-tuning or pretraining text.
    """
    ours = Translation("LLaMA-Factory", dict(theirs))
    stage = ours.pop("stage") or "sft"
    if stage not in ("sft", "pt"):
        refuse_objective(f"stage: {stage}")
    if stage == "pt":
        ours.set("data.train_on", "all")
    ours.take(BASE, "model.name")
    revision = ours.pop("model_revision")
    if revision not in (None, "main"):
        ours.set("model.revision", revision)
    ours.take("cutoff_len", "model.max_length")
    _adapter(ours)
    _data(ours, folder, plain=stage == "pt")
    _training(ours)
    ours.rest(DECIDED, REASONS)
    return ours


def _adapter(ours: Translation) -> None:
    kind, bits, decomposed = ours.pop("finetuning_type") or "lora", ours.pop("quantization_bit"), ours.pop("use_dora")
    if kind != "lora":
        ours.left.append(f"finetuning_type: {kind} (an adapter is trained, QDoRA by default)")
    else:
        ours.set("adapter.method", ("q" if bits else "") + ("dora" if decomposed else "lora"))
    if bits and int(bits) != 4:
        ours.notes.append(f"quantization_bit {bits}: the base is loaded in 4 bits (NF4)")
    rank = ours.pop("lora_rank")
    if kind == "lora":  # their defaults, where nothing is said: rank 8, alpha twice the rank
        rank = rank or 8
        ours.set("adapter.r", rank)
        ours.set("adapter.alpha", ours.pop("lora_alpha") or 2 * rank)
    ours.keys.pop("lora_alpha", None)
    ours.take("lora_dropout", "adapter.dropout")
    ours.take("use_rslora", "adapter.rslora")
    ours.take("adapter_name_or_path", "adapter.init_adapter")
    targets = _names(ours.pop("lora_target"))
    if targets and targets != ["all"]:
        ours.set("adapter.target_modules", targets)
    ours.take("additional_target", "adapter.modules_to_save", _names)
    tokens = [*_names(ours.pop("add_tokens")), *_names(ours.pop("add_special_tokens"))]
    if tokens:
        ours.set("adapter.trainable_tokens", tokens)


def _data(ours: Translation, folder: Path, *, plain: bool) -> None:
    named = _names(ours.pop("dataset"))
    information = _information(ours, ours.pop("dataset_dir") or "data", folder)
    found = [source for name in named if (source := _source(ours, name, *information, plain=plain))]
    sources(ours, found)
    held_out = [s for name in _names(ours.pop("eval_dataset")) if (s := _source(ours, name, *information, plain=plain))]
    if held_out:
        ours.set("data.held_out_path", held_out[0]["path"])
        ours.left += [f"eval_dataset: {source['path']} (one held-out file is read)" for source in held_out[1:]]
    else:
        ours.hold_out(ours.pop("val_size"), "val_size")
    ours.keys.pop("val_size", None)
    rows = ours.pop("max_samples")
    if rows and len(found) < 2:
        ours.set("data.max_rows", rows)
    elif rows:
        for source in found:
            source["max_rows"] = rows
    template = ours.pop("template")
    if template in OWN_TEMPLATES:
        ours.set("data.template", template)
    elif template:
        ours.notes.append(f"template {template}: the base's own template is taken (data.template)")
    if ours.pop("train_on_prompt"):
        ours.set("data.train_on", "all")
    ours.take("preprocessing_num_workers", "data.workers")
    thinking = ours.keys.pop("enable_thinking", None)
    if thinking is False:
        ours.set("data.thinking", "off")
    packing = ours.keys.pop("packing", None)
    if packing is not None:
        ours.set("train.packing", bool(packing))


def _information(ours: Translation, named: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the datasets, and what its dataset_info.json says."""
    for place in (local_path(named), folder / named):
        if (place / "dataset_info.json").is_file():
            return place, read_object(place / "dataset_info.json")
    if named != "ONLINE":
        ours.notes.append(
            f"{named}/dataset_info.json is not here: names of datasets are taken for hub ids; --data names a file"
        )
    return Path(named), {}


def _source(
    ours: Translation, name: str, folder: Path, information: dict[str, Any], *, plain: bool
) -> dict[str, Any] | None:
    """One dataset by its name."""
    entry = information.get(name, {"hf_hub_url": name})
    path = entry.get("hf_hub_url") or (folder / entry["file_name"] if entry.get("file_name") else None)
    if path is None or entry.get("ranking"):
        ours.left.append(
            f"dataset: {name} ({'pairs of answers' if entry.get('ranking') else 'neither a file nor a hub id'})"
        )
        return None
    source: dict[str, Any] = {"path": str(path)}
    if entry.get("split", "train") != "train":
        source["split"] = entry["split"]
    if entry.get("subset"):
        source["config"] = entry["subset"]
    if entry.get("num_samples"):
        source["max_rows"] = entry["num_samples"]
    columns = entry.get("columns") or {}
    media = [key for key in ("images", "videos", "audios") if columns.get(key)]
    if media:
        ours.left.append(f"dataset: {', '.join(media)} of {name} (rows are text)")
    if plain:
        source["format"] = "text"
    elif entry.get("formatting", "alpaca") == "alpaca" and {"prompt", "response"} <= set(columns):
        kept = {"prompt": "prompt", "query": "context", "response": "response", "system": "system"}
        names = {ours_name: columns[key] for key, ours_name in kept.items() if columns.get(key)}
        if names != {"prompt": "instruction", "context": "input", "response": "output"}:
            source |= {"format": "columns", "columns": names}
    return source


def _training(ours: Translation) -> None:
    ours.take("max_steps", "train.max_steps", lambda steps: steps if steps > 0 else None)
    ours.take("num_train_epochs", "train.epochs", float)
    ours.accumulate(ours.pop("per_device_train_batch_size"), ours.pop("gradient_accumulation_steps"))
    ours.take("per_device_eval_batch_size", "evaluation.batch_size")
    ours.take_usual()
    ours.take_word("lr_scheduler_type", "train.scheduler", SCHEDULERS, "cosine")
    ours.take_word("optim", "train.optimizer", OPTIMIZERS, "auto")
    if ours.pop("fp16"):
        ours.set("train.precision", "fp16")
    if ours.pop("disable_gradient_checkpointing"):
        ours.set("train.gradient_checkpointing", "off")
    trackers = [name for name in _names(ours.pop("report_to")) if name != "none"]
    known = [name for name in trackers if name in ("wandb", "tensorboard", "mlflow", "trackio")]
    if known:
        ours.set("train.tracker", known[0] if len(known) == 1 else known)
    ours.left += [
        f"report_to: {name} (one of wandb, tensorboard, mlflow, trackio)" for name in trackers if name not in known
    ]


def _names(value: Any) -> list[str]:
    """A list, or names with commas between them."""
    if value is None:
        return []
    parts = value if isinstance(value, list) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]
