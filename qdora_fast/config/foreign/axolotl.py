"""A config of Axolotl (its documented keys of 2026-07) as settings of ours."""

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

BASE = "base_model"

DECIDED = frozenset(
    {
        *("model_type", "tokenizer_type", "processor_type", "bf16", "bfloat16", "tf32", "strict", "output_dir"),
        *("dataset_prepared_path", "logging_steps", "pad_to_sequence_len", "eval_sample_packing", "save_safetensors"),
        *("flash_attention", "xformers_attention", "sdp_attention", "attn_implementation", "flex_attention"),
        *("gradient_checkpointing_kwargs", "dataset_processes", "dataset_num_proc", "remove_unused_columns"),
        *(
            "lora_mlp_kernel",
            "lora_qkv_kernel",
            "lora_o_kernel",
            "low_cpu_mem_usage",
            "device_map",
            "is_llama_derived_model",
        ),
        *("is_mistral_derived_model", "is_falcon_derived_model", "is_qwen_derived_model", "tokenizer_use_fast"),
        *(
            "ddp_find_unused_parameters",
            "shuffle_merged_datasets",
            "group_by_length",
            "batch_flattening",
            "save_total_limit",
        ),
        *("auto_resume_from_checkpoints", "load_best_model_at_end", "wandb_log_model", "wandb_watch", "save_strategy"),
        *(
            "liger_rope",
            "liger_rms_norm",
            "liger_glu_activation",
            "liger_layer_norm",
            "liger_fused_linear_cross_entropy",
        ),
        *("chunked_cross_entropy", "cut_cross_entropy", "eval_strategy", "evaluation_strategy", "lora_fan_in_fan_out"),
        *(
            "loss_watchdog_threshold",
            "loss_watchdog_patience",
            "use_wandb",
            "dataloader_num_workers",
            "eval_table_size",
        ),
    }
)
"""Keys that ask for what is done here anyway, or is found for the machine."""

REASONS = {
    "deepspeed": "one card, or one copy of the model a card (torchrun)",
    "fsdp": "one card, or one copy of the model a card (torchrun)",
    "plugins": "kernels and losses are this trainer's own",
    "liger": "kernels are this trainer's own",
    "wandb_": "set in the environment (WANDB_PROJECT, WANDB_NAME, ...)",
    "mlflow_": "set in the environment (MLFLOW_TRACKING_URI, ...)",
    "trackio_": "set in the environment",
    "tokens": "pad and stop tokens come from the base and its template",
    "skip_prepare_dataset": "rows are text; pictures are not read",
    "save_only_model": "checkpoints hold all that a resumed run needs",
    "saves_per_epoch": "train.save_steps counts optimizer steps; five checkpoints a run",
    "evals_per_epoch": "train.eval_steps counts optimizer steps; five a run",
    "special_tokens": "pad and stop tokens come from the base and its template",
    "eot_tokens": "stop tokens are read from the template",
    "resume_from_checkpoint": "`--resume` on the command line",
    "trust_remote_code": "given on the command line, where the person who runs it decides",
    "hub_": "`qdora-fast export`, then upload the folder",
    "neftune": "no noise is added to embeddings",
    "lora_rank_pattern": "one rank for all layers",
    "lora_alpha_pattern": "one alpha for all layers",
    "chat_template": "data.template takes a .jinja file",
    "default_system_message": "put it into the rows, or name its column",
    "unfrozen_parameters": "adapter.target_modules, adapter.modules_to_save",
}

COLUMNS = {
    "field_instruction": "prompt",
    "field_input": "context",
    "field_output": "response",
    "field_system": "system",
}
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")


def translated(theirs: dict[str, Any], _folder: Path) -> Translation:
    """The settings that it comes to.

    Raises:
        ConfigError: preferences, rewards or classes are trained.
    """
    ours = Translation("Axolotl", dict(theirs))
    for key in ("rl", "reward_model", "process_reward_model", "num_labels", "diffusion"):
        if ours.pop(key):
            refuse_objective(f"{key}: {theirs[key]}")
    ours.take(BASE, "model.name")
    ours.take("revision_of_model", "model.revision")
    ours.take("sequence_len", "model.max_length")
    _adapter(ours)
    _data(ours)
    _training(ours)
    ours.rest(DECIDED, REASONS)
    return ours


def _adapter(ours: Translation) -> None:
    kind, in_4bit, in_8bit = ours.pop("adapter"), ours.pop("load_in_4bit"), ours.pop("load_in_8bit")
    decomposed = ours.pop("peft_use_dora")
    quantized = bool(in_4bit or in_8bit or kind == "qlora")
    if not kind:
        ours.left.append("full fine-tuning (no `adapter`): an adapter is trained, QDoRA by default")
    elif kind not in ("lora", "qlora"):
        ours.left.append(f"adapter: {kind} (qdora, dora, qlora and lora are there; qdora is taken)")
    else:
        ours.set("adapter.method", ("q" if quantized else "") + ("dora" if decomposed else "lora"))
    if in_8bit:
        ours.notes.append("load_in_8bit: the base is loaded in 4 bits (NF4)")
    ours.take("lora_r", "adapter.r")
    ours.take("lora_alpha", "adapter.alpha")
    ours.take("lora_dropout", "adapter.dropout")
    ours.take("peft_use_rslora", "adapter.rslora")
    ours.take("lora_modules_to_save", "adapter.modules_to_save")
    if isinstance(ours.keys.get("tokens"), list):
        ours.take("tokens", "adapter.trainable_tokens")
    ours.take("lora_model_dir", "adapter.init_adapter")
    ours.take("peft_layers_to_transform", "adapter.layers", lambda layers: ",".join(map(str, layers)))
    linear, modules = ours.pop("lora_target_linear"), ours.pop("lora_target_modules")
    if isinstance(modules, list) and not linear:
        ours.set("adapter.target_modules", modules)
    elif modules and not linear and modules != "all-linear":
        ours.left.append(
            f"lora_target_modules: {modules} (adapter.target_modules is a list of names; all-linear is taken)"
        )


def _data(ours: Translation) -> None:
    given = ours.pop("datasets") or ours.pop("pretraining_dataset") or []
    found = [source for entry in (given if isinstance(given, list) else [given]) for source in _source(ours, entry)]
    sources(ours, found)
    tests = ours.pop("test_datasets")
    held_out = [source for entry in tests or [] for source in _source(ours, entry)]
    if held_out:
        ours.set("data.held_out_path", held_out[0]["path"])
        ours.left += [f"test_datasets: {source['path']} (one held-out file is read)" for source in held_out[1:]]
    ours.hold_out(None if held_out else ours.pop("val_set_size"), "val_set_size")
    ours.keys.pop("val_set_size", None)
    template = ours.pop("chat_template")
    if template in OWN_TEMPLATES:
        ours.set("data.template", template)
    elif template and template not in ("tokenizer_default", "jinja"):
        ours.notes.append(f"chat_template {template}: the base's own template is taken (data.template)")
    if ours.pop("train_on_inputs"):
        ours.set("data.train_on", "all")
    ours.take_word("excess_length_strategy", "data.on_long", {"drop": ["drop"], "truncate": ["truncate"]}, "drop")
    ours.take("dataset_exact_deduplication", "data.dedup.exact")
    ours.take("sample_packing", "train.packing")


def _source(ours: Translation, entry: Any) -> list[dict[str, Any]]:
    """One of their datasets: a path, or several files."""
    if not isinstance(entry, dict) or not entry.get("path"):
        ours.left.append(f"datasets: {entry!r} (a path is needed)")
        return []
    entry = dict(entry)
    files = entry.pop("data_files", None)
    path, kind = entry.pop("path"), entry.pop("type", None)
    paths = files if isinstance(files, list) else [files] if files else [path]
    source = {"split": entry.pop("split", None), "config": entry.pop("name", None)}
    entry.pop("ds_type", None)
    if isinstance(kind, dict):
        entry |= {key: value for key, value in kind.items() if value}
    elif str(kind).startswith("completion"):
        source["format"] = "text"
        ours.set("data.train_on", "all")
    columns = {ours_name: entry.pop(key) for key, ours_name in COLUMNS.items() if entry.get(key)}
    if {"prompt", "response"} <= set(columns):
        source |= {"format": "columns", "columns": columns}
    elif columns:
        ours.left.append(f"datasets: columns {columns} of {path} (data.columns needs prompt and response)")
    _messages(ours, entry, path)
    kept = {key: value for key, value in source.items() if value}
    return [{"path": str(each), **kept} for each in paths]


def _messages(ours: Translation, entry: dict[str, Any], path: str) -> None:
    """What is said of conversations: columns that are recognised anyway are done with."""
    if entry.get("field_messages") in MESSAGE_COLUMNS:
        entry.pop("field_messages")
    mapped = entry.get("message_property_mappings") or {}
    known = {"role": ("role", "from"), "content": ("content", "value")}
    if isinstance(mapped, dict) and all(value in known.get(key, ()) for key, value in mapped.items()):
        entry.pop("message_property_mappings", None)
    for key, usual in (("message_field_role", known["role"]), ("message_field_content", known["content"])):
        if entry.get(key) in usual:
            entry.pop(key)
    if entry.get("roles_to_train") in (["assistant"], ["gpt"], ["assistant", "gpt"]):
        entry.pop("roles_to_train")
    for key in ("conversation", "chat_template", "train_on_eos", "train_on_eot", "roles", "trust_remote_code"):
        entry.pop(key, None)  # the template and its stop tokens say it
    left = {key: value for key, value in entry.items() if value not in (None, False, "", [], {})}
    ours.left += [
        f"datasets: {key}: {value} of {path} (data.formatter reads other rows)" for key, value in left.items()
    ]


def _training(ours: Translation) -> None:
    ours.take("max_steps", "train.max_steps")
    ours.take("num_epochs", "train.epochs", float)
    ours.accumulate(ours.pop("micro_batch_size"), ours.pop("gradient_accumulation_steps"))
    ours.take("eval_batch_size", "evaluation.batch_size")
    ours.take_usual()
    ours.take_word("lr_scheduler", "train.scheduler", SCHEDULERS, "cosine")
    ours.take_word("optimizer", "train.optimizer", OPTIMIZERS, "auto")
    ours.take("early_stopping_patience", "train.early_stopping")
    if ours.pop("fp16") or ours.pop("float16"):
        ours.set("train.precision", "fp16")
    checkpointing = ours.keys.pop("gradient_checkpointing", None)
    if checkpointing in ("offload", "unsloth"):
        ours.set("train.gradient_checkpointing", "unsloth")
    elif checkpointing is False:
        ours.set("train.gradient_checkpointing", "off")
    trackers = {"wandb_project": "wandb", "mlflow_tracking_uri": "mlflow", "trackio_project_name": "trackio"}
    chosen = [name for key, name in trackers.items() if ours.keys.get(key)]
    chosen += ["tensorboard"] if ours.pop("use_tensorboard") else []
    if chosen:
        ours.set("train.tracker", chosen[0] if len(chosen) == 1 else chosen)
