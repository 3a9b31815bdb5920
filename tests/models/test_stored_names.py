"""Tensors of a checkpoint by the names that the opened model gives them, against Transformers' own loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import save_family
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_base

from qdora_fast.models import stored_names
from qdora_fast.models.model_class import auto_class
from qdora_fast.models.stored_names import open_weights, require_stored
from qdora_fast.models.weights import WeightFolder
from qdora_fast.system.errors import RefusedError

RENAMED = ["gemma3-vl", "mistral3-vl"]
AS_STORED = ["qwen3_5-vl", "qwen3_vl", "gemma4-vl", "smolvlm"]


def _loaded(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    return auto_class(config).from_pretrained(folder, dtype="auto")


def _values_are_the_models(folder: Path) -> WeightFolder:
    """Every parameter of the opened model lies in the folder under its name there, value by value."""
    model = _loaded(folder)
    parameters = dict(model.named_parameters())
    weights = open_weights(folder, parameters)
    for name, parameter in parameters.items():
        assert torch.equal(weights.tensor(name), parameter.data), name
    files = WeightFolder(folder)
    assert {weights.stored_name(name) for name in weights.infos} == files.infos.keys()
    return weights


@pytest.mark.parametrize(
    "family", [RENAMED[0], *(pytest.param(each, marks=pytest.mark.exhaustive) for each in RENAMED[1:])]
)
def test_a_renamed_checkpoint_is_read_by_the_models_names(family: str, tmp_path: Path) -> None:
    weights = _values_are_the_models(save_family(family, tmp_path))
    layer = "model.language_model.layers.0.mlp.up_proj.weight"
    stored = weights.stored_name(layer)
    assert stored != layer and stored in WeightFolder(tmp_path).infos
    assert weights.stored_name(f"{layer}.quant_state.bitsandbytes__nf4") == f"{stored}.quant_state.bitsandbytes__nf4"


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", AS_STORED)
def test_a_checkpoint_whose_names_fit_is_read_as_it_is(family: str, tmp_path: Path) -> None:
    weights = _values_are_the_models(save_family(family, tmp_path))
    assert all(weights.stored_name(name) == name for name in weights.infos)


def test_text_checkpoints_do_not_pay_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_names, "empty_model", lambda _: pytest.fail("a model was built"))
    save_base(tmp_path)
    needed = {"model.layers.0.mlp.up_proj.weight", "lm_head.weight"}
    assert needed <= open_weights(tmp_path, needed).infos.keys()


def _rename(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = {change(name): tensor.clone() for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_text_model_published_without_its_prefix(tmp_path: Path) -> None:
    """The loader puts the prefix of the backbone in front by itself."""
    save_base(tmp_path, shard_size="1GB", tied=True)
    _rename(tmp_path, lambda name: name.removeprefix("model."))
    weights = _values_are_the_models(tmp_path)
    assert weights.stored_name("model.norm.weight") == "norm.weight"


def test_a_text_head_of_another_name(tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=96
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    _rename(tmp_path, lambda name: name.replace("lm_head", "embed_out"))
    assert _values_are_the_models(tmp_path).stored_name("lm_head.weight") == "embed_out.weight"


def test_what_the_model_does_not_open_keeps_its_name(tmp_path: Path) -> None:
    save_base(tmp_path, shard_size="1GB")
    _rename(tmp_path, lambda name: name.removeprefix("model."))
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "mtp.layers.0.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    assert "mtp.layers.0.weight" in _values_are_the_models(tmp_path).infos


def test_layers_that_are_made_of_others_are_refused_before_training(tmp_path: Path) -> None:
    save_base(tmp_path, shard_size="1GB")
    layer = "model.layers.1.mlp.up_proj"
    require_stored(str(tmp_path), None, [layer])
    _rename(tmp_path, lambda name: name.replace(layer, "model.layers.1.mlp.packed"))
    with pytest.raises(RefusedError, match=rf"1 of the layers to adapt \(first {layer}\)"):
        require_stored(str(tmp_path), None, [layer, "model.layers.0.mlp.up_proj"])
    require_stored("a-hub/model-that-is-not-here", None, [layer])


def test_without_a_model_names_are_the_files(tmp_path: Path) -> None:
    save_base(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    assert open_weights(tmp_path, ["elsewhere"]).infos == WeightFolder(tmp_path).infos
