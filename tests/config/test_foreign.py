"""Configs of Axolotl and LLaMA-Factory as settings of ours: what is taken over, and that no key vanishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.config import Config
from qdora_fast.config.foreign import Translation, axolotl, llama_factory, translate
from qdora_fast.config.loader import make_config
from qdora_fast.config.yaml import write_yaml
from qdora_fast.system.errors import ConfigError

AXOLOTL: dict[str, Any] = {
    "base_model": "NousResearch/Meta-Llama-3-8B",
    "datasets": [{"path": "my.jsonl", "type": "alpaca"}],
}
FACTORY: dict[str, Any] = {"model_name_or_path": "Qwen/Qwen3-4B", "dataset": "mine", "dataset_dir": "data"}


def _translated(tmp_path: Path, theirs: dict[str, Any]) -> tuple[Config, Translation]:
    path = tmp_path / "theirs.yaml"
    path.write_text(write_yaml(theirs), encoding="utf-8")
    translation = translate(path)
    return make_config(translation.settings), translation


def _value(config: Config, setting: str) -> Any:
    value: Any = config
    for key in setting.split("."):
        value = getattr(value, key)
    return value


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """A folder with LLaMA-Factory's list of datasets."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(
        json.dumps(
            {
                "mine": {"file_name": "mine.json"},
                "hub": {"hf_hub_url": "org/set", "subset": "en", "split": "test", "num_samples": 7},
                "columns": {"file_name": "c.json", "columns": {"prompt": "q", "query": "passage", "response": "a"}},
                "pairs": {"file_name": "p.json", "ranking": True},
                "pictures": {"file_name": "v.json", "formatting": "sharegpt", "columns": {"images": "images"}},
            }
        )
    )
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ({"adapter": "qlora", "load_in_4bit": True}, "qlora"),
        ({"adapter": "qlora", "load_in_4bit": True, "peft_use_dora": True}, "qdora"),
        ({"adapter": "lora"}, "lora"),
        ({"adapter": "lora", "peft_use_dora": True}, "dora"),
        ({"adapter": "lora", "load_in_8bit": True}, "qlora"),
        ({}, "qdora"),
    ],
)
def test_axolotl_methods(tmp_path: Path, keys: dict[str, Any], method: str) -> None:
    config, translation = _translated(tmp_path, AXOLOTL | keys)
    assert config.adapter.method == method
    assert bool(translation.notes) == ("load_in_8bit" in keys)
    assert bool(translation.left) == (not keys)


@pytest.mark.parametrize(
    ("key", "value", "setting", "ours"),
    [
        ("sequence_len", 4096, "model.max_length", 4096),
        ("lora_target_linear", True, "adapter.target_modules", "all-linear"),
        ("lora_target_modules", ["q_proj", "v_proj"], "adapter.target_modules", ["q_proj", "v_proj"]),
        ("lora_modules_to_save", ["lm_head"], "adapter.modules_to_save", ["lm_head"]),
        ("peft_use_rslora", True, "adapter.rslora", True),
        ("peft_layers_to_transform", [0, 1, 2], "adapter.layers", "0,1,2"),
        ("tokens", ["<a>", "<b>"], "adapter.trainable_tokens", ["<a>", "<b>"]),
        ("chat_template", "chatml", "data.template", "chatml"),
        ("chat_template", "tokenizer_default", "data.template", "auto"),
        ("train_on_inputs", True, "data.train_on", "all"),
        ("excess_length_strategy", "truncate", "data.on_long", "truncate"),
        ("sample_packing", False, "train.packing", False),
        ("max_steps", 20, "train.max_steps", 20),
        ("learning_rate", "2e-5", "train.learning_rate", 2e-5),
        ("lr_scheduler", "constant_with_warmup", "train.scheduler", "constant"),
        ("optimizer", "adamw_bnb_8bit", "train.optimizer", "adamw_8bit"),
        ("optimizer", "adamw_torch_fused", "train.optimizer", "adamw"),
        ("warmup_ratio", 0.1, "train.warmup", 0.1),
        ("eval_steps", 50, "train.eval_steps", 50),
        ("gradient_checkpointing", False, "train.gradient_checkpointing", "off"),
        ("gradient_checkpointing", True, "train.gradient_checkpointing", "auto"),
        ("fp16", True, "train.precision", "fp16"),
        ("early_stopping_patience", 3, "train.early_stopping", 3),
        ("wandb_project", "mine", "train.tracker", "wandb"),
        ("use_tensorboard", True, "train.tracker", "tensorboard"),
        ("val_set_size", 0.02, "data.held_out", 0.02),
        ("val_set_size", 0, "data.held_out", 0.1),
        ("val_set_size", 200, "data.held_out", 0.1),
    ],
)
def test_axolotl_keys(tmp_path: Path, key: str, value: Any, setting: str, ours: Any) -> None:
    config, _ = _translated(tmp_path, AXOLOTL | {"adapter": "qlora", key: value})
    assert _value(config, setting) == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deepspeed", "deepspeed_configs/zero2.json"),
        ("fsdp_config", {"a": 1}),
        ("plugins", ["x"]),
        ("saves_per_epoch", 2),
        ("special_tokens", {"eos_token": "<|im_end|>"}),
        ("optimizer", "lion_pytorch"),
        ("lr_scheduler", "rex"),
        ("warmup_steps", 10),
        ("eval_steps", 0.1),
        ("lora_target_modules", "model.layers.[0-9]+.self_attn"),
        ("something_new_in_2027", "yes"),
    ],
)
def test_axolotl_keys_without_a_counterpart_are_named(tmp_path: Path, key: str, value: Any) -> None:
    _, translation = _translated(tmp_path, AXOLOTL | {"adapter": "qlora", key: value})
    assert [left.split(":")[0] for left in translation.left] == [key]


@pytest.mark.parametrize("key", ["rl", "reward_model", "num_labels"])
def test_other_objectives_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        _translated(tmp_path, AXOLOTL | {key: "dpo" if key == "rl" else 1})


@pytest.mark.parametrize(
    ("entry", "ours"),
    [
        (
            {"path": "org/set", "split": "train[:1%]", "name": "en"},
            {"path": "org/set", "split": "train[:1%]", "config": "en"},
        ),
        ({"path": "json", "data_files": "a.jsonl", "ds_type": "json"}, {"path": "a.jsonl"}),
        ({"path": "a.jsonl", "type": "completion"}, {"path": "a.jsonl", "format": "text"}),
        (
            {"path": "a.jsonl", "type": {"field_instruction": "q", "field_input": "c", "field_output": "r"}},
            {"path": "a.jsonl", "format": "columns", "columns": {"prompt": "q", "context": "c", "response": "r"}},
        ),
        ({"path": "a.jsonl", "type": "chat_template", "field_messages": "messages"}, {"path": "a.jsonl"}),
        (
            {
                "path": "a.jsonl",
                "message_property_mappings": {"role": "from", "content": "value"},
                "roles_to_train": ["gpt"],
            },
            {"path": "a.jsonl"},
        ),
    ],
)
def test_axolotl_datasets(tmp_path: Path, entry: dict[str, Any], ours: dict[str, Any]) -> None:
    _, translation = _translated(tmp_path, AXOLOTL | {"adapter": "qlora", "datasets": [entry]})
    data = translation.settings["data"]
    assert {key: data[key] for key in data if key not in ("held_out", "train_on")} == ours
    assert not translation.left


def test_axolotl_several_datasets_and_a_held_out_one(tmp_path: Path) -> None:
    several = {"datasets": [{"path": "a.jsonl"}, {"path": "json", "data_files": ["b.jsonl", "c.jsonl"]}]}
    config, translation = _translated(
        tmp_path, AXOLOTL | several | {"test_datasets": [{"path": "t.jsonl"}], "val_set_size": 0}
    )
    assert [source.path for source in config.data.sources] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert config.data.held_out_path == "t.jsonl"
    assert not any("val_set_size" in note for note in translation.notes)


def test_a_message_field_of_ones_own_is_named(tmp_path: Path) -> None:
    entry = {
        "path": "a.jsonl",
        "field_messages": "dialog",
        "message_property_mappings": {"role": "who", "content": "what"},
    }
    _, translation = _translated(tmp_path, AXOLOTL | {"adapter": "qlora", "datasets": [entry]})
    assert len(translation.left) == 2 and all("data.formatter" in left for left in translation.left)


def test_llama_factory(factory: Path) -> None:
    theirs = FACTORY | {
        **{"stage": "sft", "do_train": True, "finetuning_type": "lora", "quantization_bit": 4, "use_dora": True},
        **{"lora_rank": 8, "lora_target": "all", "cutoff_len": 2048, "max_samples": 1000, "template": "qwen3"},
        **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": "1.0e-4"},
        **{"num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "val_size": 0.1},
        **{"report_to": "wandb", "enable_thinking": False, "preprocessing_num_workers": 4, "packing": True},
    }
    config, translation = _translated(factory, theirs)
    assert (config.adapter.method, config.adapter.r, config.adapter.alpha) == ("qdora", 8, 16)
    assert config.data.path == str(factory / "data" / "mine.json") and config.data.max_rows == 1000
    assert (config.train.batch_size, config.train.effective_batch, config.train.learning_rate) == (1, 8, 1e-4)
    assert (config.data.thinking, config.train.tracker, config.data.workers) == ("off", "wandb", 4)
    assert not translation.left and any("qwen3" in note for note in translation.notes)
    assert set(translation.decided) == {"do_train", "bf16"}


def test_llama_factory_datasets(factory: Path) -> None:
    config, translation = _translated(factory, FACTORY | {"dataset": "mine, hub, columns, pairs, pictures"})
    mine, hub, columns, pictures = config.data.sources
    assert (hub.path, hub.split, hub.config, hub.max_rows) == ("org/set", "test", "en", 7)
    assert columns.columns is not None and columns.columns.context == "passage"
    assert mine.format == "auto" and pictures.path.endswith("v.json")
    assert [left.split("(")[0].strip() for left in translation.left] == [
        "dataset: pairs",
        "dataset: images of pictures",
    ]


@pytest.mark.parametrize("stage", ["dpo", "kto", "ppo", "rm"])
def test_other_stages_are_refused(factory: Path, stage: str) -> None:
    with pytest.raises(ConfigError, match=stage):
        _translated(factory, FACTORY | {"stage": stage})


def test_pretraining_learns_all_of_the_text(factory: Path) -> None:
    config, _ = _translated(factory, FACTORY | {"stage": "pt"})
    assert (config.data.train_on, config.data.format) == ("all", "text")


def test_llama_factory_without_its_list_takes_hub_ids(tmp_path: Path) -> None:
    config, translation = _translated(tmp_path, FACTORY | {"dataset": "org/set", "dataset_dir": "nowhere"})
    assert config.data.path == "org/set" and any("dataset_info.json" in note for note in translation.notes)


@pytest.mark.parametrize(
    "theirs", [{"hello": "world"}, {"model_id": "x"}, {"model": {"name": "demo"}, "data": {"path": "demo"}}]
)
def test_other_files_are_refused(tmp_path: Path, theirs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _translated(tmp_path, theirs)


KEYS = st.dictionaries(
    st.from_regex(r"zz_[a-z]{1,8}", fullmatch=True),
    st.one_of(st.integers(), st.booleans(), st.text(max_size=5), st.none(), st.lists(st.integers(), max_size=2)),
    max_size=6,
)


@given(
    unknown=KEYS,
    base=st.sampled_from((AXOLOTL, {"model_name_or_path": "a/b", "dataset_dir": "ONLINE", "dataset": "c/d"})),
)
@settings(max_examples=100, deadline=None)
def test_no_key_vanishes(unknown: dict[str, Any], base: dict[str, Any]) -> None:
    """A key that nobody knows is named, unless it is off."""
    tool = axolotl if axolotl.BASE in base else llama_factory
    left = tool.translated(base | unknown, Path()).left
    on = {key for key, value in unknown.items() if value not in (None, False, "", [])}
    assert {line.split(":")[0] for line in left if line.startswith("zz_")} == on
