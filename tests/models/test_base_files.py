"""A base that is broken, foreign or of two models is one error that names the file; a right one passes in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_models import checked_base
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_base

from qdora_fast.models.base_files import damage, require_sound
from qdora_fast.models.tokenizer import load_tokenizer
from qdora_fast.system.errors import ConfigError, IntegrityError, QdoraError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n"
PAGE = "\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in several shards, with a tokenizer."""
    folder = save_base(tmp_path_factory.mktemp("whole"))
    for file in tiny_base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "base [1] 100%"))


def _first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def _described(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def test_a_right_base_passes(base: Path, tiny_config) -> None:
    (base / "original").mkdir()
    (base / "original" / "consolidated.00.pth").write_text(POINTER)  # is not read by anyone
    require_sound(str(base))
    assert checked_base(tiny_config(), str(base)).modules


@pytest.mark.parametrize(
    "name", ["shard", "tokenizer.json", "config.json", "generation_config.json", "tokenizer.model"]
)
@pytest.mark.parametrize(("content", "said"), [(POINTER, "a git-lfs pointer"), (PAGE, "a web page"), ("", "empty")])
def test_what_is_not_the_file_is_named(base: Path, name: str, content: str, said: str) -> None:
    file = _first_shard(base) if name == "shard" else base / name
    file.write_text(content)
    with pytest.raises(IntegrityError, match=said) as caught:
        require_sound(str(base))
    assert file.name in str(caught.value)
    assert ("git lfs pull" in str(caught.value)) == (content == POINTER)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("change", [lambda text: text[: len(text) // 2], lambda text: f"[{text}]"], ids=["cut", "list"])
def test_json_that_is_cut_or_no_object_is_named(base: Path, name: str, change: Callable[[str], str]) -> None:
    (base / name).write_text(change((base / name).read_text()))
    with pytest.raises(QdoraError, match=name):
        require_sound(str(base), weights=False)


@pytest.mark.parametrize("name", ["shard", "tokenizer.json"])
def test_a_file_is_looked_at_again_once_it_has_changed(base: Path, name: str) -> None:
    file = _first_shard(base) if name == "shard" else base / name
    content = file.read_bytes()
    for _ in range(2):
        require_sound(str(base))
        file.write_bytes(content[:-40])  # in place: the same file by its number
        with pytest.raises(IntegrityError, match=file.name):
            require_sound(str(base))
        file.write_bytes(content)
    require_sound(str(base))


def test_several_damaged_files_are_told_at_once(base: Path) -> None:
    for file in base.glob("*.safetensors"):
        file.write_text(POINTER)
    (base / "tokenizer_config.json").write_text("{")
    with pytest.raises(IntegrityError) as caught:
        require_sound(str(base))
    shards = len(list(base.glob("*.safetensors")))
    assert f"(and {shards - 1} more): a git-lfs pointer" in str(caught.value)
    assert "tokenizer_config.json: not valid JSON" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-1000], "cut short"),
        (lambda raw: raw[:100], "cut short"),
        (lambda raw: raw[:5], "cut short|no safetensors"),
        (lambda raw: raw + b"\0" * 10, "10 bytes longer"),
        (lambda raw: raw[:8] + b"{" * (len(raw) - 8), "no safetensors"),
        (lambda raw: b"PK\x03\x04" + raw, "pickle"),
        (lambda raw: b"GGUF" + raw, "GGUF"),
        (lambda raw: b"\0" * len(raw), "no safetensors|longer"),
    ],
)
def test_a_shard_has_the_bytes_that_its_header_says(base: Path, change: Callable[[bytes], bytes], said: str) -> None:
    shard = _first_shard(base)
    assert damage(shard) == ""
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(IntegrityError, match=said):
        require_sound(str(base))


def test_no_length_of_a_header_is_taken_for_something_else(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for padding in range(256):  # the first byte is the length's lowest
        save_file({"w": torch.zeros(3)}, file, metadata={"note": "x" * 8 * padding})
        assert damage(file) == ""


def test_a_missing_shard_is_named(base: Path) -> None:
    shard = _first_shard(base)
    shard.rename(shard.with_suffix(".safetensors.incomplete"))
    with pytest.raises(IntegrityError, match=rf"{shard.name}: missing"):
        require_sound(str(base))


def _adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def _merged_with_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _run(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.yaml").touch()
    (folder / "model.json").write_text("{}")


def _gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")


def _pickles(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def _quantised(folder: Path) -> None:
    _described(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def _nothing(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_adapter, "is an adapter"),
        (_merged_with_adapter, "adapter_config.json beside"),
        (_run, "merged_16bit"),
        (_gguf, "GGUF"),
        (_pickles, "pickles"),
        (_quantised, r"is quantised: its weights are stored in gptq \(4 bits\)"),
        (_nothing, "no config.json"),
        (lambda folder: _described(folder, model_type=None), "model_type"),
    ],
)
def test_a_folder_of_another_kind_is_refused_with_what_to_name(base: Path, make: Any, said: str) -> None:
    make(base)
    with pytest.raises(ConfigError, match=said):
        require_sound(str(base))


def test_a_file_or_a_folder_that_is_not_there_is_refused(base: Path) -> None:
    (base / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"is a file; GGUF"):
        require_sound(str(base / "m.gguf"))
    with pytest.raises(ConfigError, match="no folder"):
        require_sound(str(base / "nowhere"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vocab_size": 99}, "weight is 96 x 64 and config.json makes it 99 x 64"),
        ({"hidden_size": 128}, "another shape"),
        ({"intermediate_size": 256}, "another shape"),
        ({"num_attention_heads": 8, "head_dim": 16}, "another shape"),
        ({"num_hidden_layers": 3}, "9 tensors are missing"),
        ({"num_hidden_layers": 1}, "9 tensors have no place"),
        ({"model_type": "qwen2"}, "bias"),
        ({"pad_token_id": 4000}, "cannot|can be built"),
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"num_attention_heads": 0}, "config"),
        ({"hidden_size": "wide"}, "config"),
    ],
)
def test_sizes_that_are_not_the_weights_are_refused(base: Path, tiny_config, values: Any, said: str) -> None:
    _described(base, **values)
    with pytest.raises(QdoraError, match=said):
        checked_base(tiny_config(), str(base))


def test_a_tensor_that_is_missing_or_has_no_place_is_named(base: Path, tiny_config) -> None:
    (base / "model.safetensors.index.json").unlink()
    tensors: dict[str, Any] = {}
    for file in base.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"1 tensor is missing \(first model.layers.1.mlp.up_proj.weight\)"):
        checked_base(tiny_config(), str(base))
    more = tensors | {
        "model.layers.1.mlp.up_proj.weight": lost,
        "model.layers.1.self_attn.q_proj.bias": lost[0].clone(),
    }
    save_file(more, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="q_proj.bias"):
        checked_base(tiny_config(), str(base))
    del more["model.layers.1.self_attn.q_proj.bias"]
    save_file(more | {"vision_tower.patch.weight": lost[0].clone()}, base / "model.safetensors")
    assert checked_base(tiny_config(), str(base)).modules  # of a part that is not loaded


def test_the_16bit_weights_that_the_export_will_need_are_looked_at_before_training(
    base: Path, whole: Path, tiny_config
) -> None:
    _first_shard(base).write_text(POINTER)
    with pytest.raises(IntegrityError, match="model.base_16bit: "):
        checked_base(tiny_config(model={"base_16bit": str(base)}), str(whole))


def test_a_folder_without_a_tokenizer_says_so(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer \(tokenizer.json\)"):
        load_tokenizer(str(base), None)


def test_of_a_hubs_model_what_is_in_the_cache_is_looked_at_and_nothing_is_missing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--base" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--base" / "refs").mkdir()
    (tmp_path / "models--org--base" / "refs" / "main").write_text("abc")
    require_sound("org/base")
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(whole / name, snapshot)
    require_sound("org/base")
    (snapshot / _first_shard(whole).name).write_bytes(_first_shard(whole).read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="cut short.*remove it, and the next run downloads it again"):
        require_sound("org/base")
