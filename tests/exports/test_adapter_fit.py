"""Whether an adapter belongs to a base: by names, and by shapes where the base's weights are here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_checkpoints import adapt, load, save_base

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.exports.adapter_fit import Fit, fit
from qdora_fast.models.adapter import Adapter, read_adapter
from qdora_fast.system.errors import ConfigError, IntegrityError, RefusedError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "model")


def adapter_on(base: Path, folder: Path, **lora: Any) -> Path:
    adapt(load(base), use_dora=True, **lora).save_pretrained(folder)
    return folder


def config_for(base: Path | str, *overrides: str) -> Config:
    return make_config({"model": {"name": str(base)}, "adapter": {"method": "dora"}, "data": {"path": "x"}}, overrides)


def fit_to(adapter: Adapter, config: Config, base: str) -> Fit:
    return fit(adapter, base, config.model, config.adapter, merge_base=config.export.merge_base)


def change(folder: Path, tensors: Any) -> None:
    """Apply `tensors` to an adapter's tensors."""
    file = folder / "adapter_model.safetensors"
    save_file(tensors(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    ],
)
def test_what_peft_saved_for_this_base_fits(base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    found = fit_to(read_adapter(adapter_on(base, tmp_path / "a", **lora)), config_for(base), str(base))
    assert found.shapes_compared
    assert len(found.linears) == 14


def test_a_layer_that_the_config_names_and_the_file_lacks(base: Path, tmp_path: Path) -> None:
    folder = adapter_on(base, tmp_path / "a")
    change(folder, lambda all_: {key: value for key, value in all_.items() if "layers.1.mlp.up_proj" not in key})
    with pytest.raises(IntegrityError, match=r"1 layers are missing.*\n.*1.mlp.up_proj: named in adapter_config"):
        fit_to(read_adapter(folder), config_for(base), str(base))


def test_a_layer_that_the_base_does_not_have(base: Path, tmp_path: Path) -> None:
    folder = adapter_on(base, tmp_path / "a")
    change(folder, lambda all_: {key.replace("layers.1.mlp.up", "layers.7.mlp.up"): each for key, each in all_.items()})
    with pytest.raises(IntegrityError, match=r"1 are not the base's"):
        fit_to(read_adapter(folder), config_for(base), str(base))


def test_another_base_of_the_same_family(base: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    narrow = {"vocab_size": 96, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(hidden_size=64, num_key_value_heads=2, **narrow)).save_pretrained(tmp_path / "other")
    adapter = read_adapter(adapter_on(base, tmp_path / "a"))
    with pytest.raises(IntegrityError, match=r"trained with shape \(64, 128\), but the base has \(64, 64\)"):
        fit_to(adapter, config_for(tmp_path / "other"), str(tmp_path / "other"))


def test_an_adapter_on_the_output_head_is_refused_as_for_training(base: Path, tmp_path: Path) -> None:
    adapter = read_adapter(adapter_on(base, tmp_path / "a", target_modules=["q_proj", "lm_head"]))
    with pytest.raises(RefusedError, match="output head"):
        fit_to(adapter, config_for(base, "adapter.target_modules=[q_proj, lm_head]"), str(base))


def test_a_base_whose_weights_are_not_here_is_compared_by_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache holds the config of a model, as after a look at its page."""
    from huggingface_hub import constants

    place = tmp_path / "hub" / "models--org--tiny"
    (place / "snapshots" / "1").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1")
    shutil.copyfile(base / "config.json", place / "snapshots" / "1" / "config.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter = read_adapter(adapter_on(base, tmp_path / "a"))
    assert not fit_to(adapter, config_for("org/tiny"), "org/tiny").shapes_compared


def test_a_base_that_cannot_be_reached(base: Path, tmp_path: Path) -> None:
    adapter = read_adapter(adapter_on(base, tmp_path / "a"))
    with pytest.raises(ConfigError, match="cannot read the config of `org/nowhere`"):
        fit_to(adapter, config_for("org/nowhere"), "org/nowhere")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["use_dora"]
