"""Rows of text train the language part of a vision checkpoint, from the config to the export and to a chat."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import save_family
from safetensors.torch import load_file
from torch import Tensor

from qdora_fast.models.adapter import read_adapter
from qdora_fast.recipes.chat import load as open_for_chat
from qdora_fast.recipes.export import export
from qdora_fast.recipes.import_adapter import import_adapter
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import RefusedError
from qdora_fast.system.run_folder import RunFolder

PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
SLOW = ("qwen3_5-vl", "qwen3_vl", "qwen2_5_vl", "gemma4-vl", "mistral3-vl", "smolvlm")


def _saved(family: str, folder: Path) -> Path:
    save_family(family, folder)
    for name in PROCESSOR:
        (folder / name).write_text(json.dumps({"of": name}))
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    return {name: _hash(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _run(tiny_config: Any, base: Path, **sections: Any) -> RunFolder:
    return train(tiny_config(model={"name": str(base)}, train={"max_steps": 2}, **sections))


@pytest.mark.parametrize("family", ["gemma3-vl", *(pytest.param(each, marks=pytest.mark.exhaustive) for each in SLOW)])
def test_from_the_config_to_the_export_and_a_chat(family: str, tiny_config: Any, tmp_path: Path, capsys: Any) -> None:
    base = _saved(family, tmp_path / "base")
    run = _run(tiny_config, base)
    said = capsys.readouterr().err
    assert said.count("; text alone is trained") == 1
    assert "evaluation failed" not in said

    adapted = read_adapter(run.adapter).modules
    assert adapted and all("visual" not in name and "vision" not in name for name in adapted)
    held = run.read_json("model.json")["quantized_modules"]
    assert not any("visual" in name or "vision" in name or "projector" in name for name in held)  # 16 bits

    report = export(run, merge_base="original16")  # the other base rounds what training held in 4 bits, too
    assert report["proof"]["passed"]
    merged = Path(report["path"])
    before, after = _hashes(base), _hashes(merged)
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == len(adapted)
    assert all(before[name] == after[name] for name in before if "visual" in name or "vision" in name)
    assert json.loads((merged / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    for name in PROCESSOR:
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    published = transformers.AutoConfig.from_pretrained(base).architectures[0]
    _, loaded = getattr(transformers, published).from_pretrained(merged, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"] and not loaded["mismatched_keys"]

    assert export(run, to="merged_4bit_forced")["proof"]["passed"]
    packed = load_file(run.path / "merged_4bit_forced" / "model.safetensors")
    assert all(_hash(packed[name]) == before[name] for name in before if "visual" in name or "vision" in name)
    for folder in (run.path, merged, run.path / "merged_4bit_forced"):
        chat = open_for_chat(folder)
        assert chat.source.vocabulary.encode("a").ids


@pytest.mark.exhaustive
def test_after_training_on_16_bits_the_language_part_alone_is_packed(tiny_config: Any, tmp_path: Path) -> None:
    run = _run(tiny_config, _saved("gemma3-vl", tmp_path / "base"), adapter={"method": "dora", "r": 4, "alpha": 8})
    report = export(run, to="merged_4bit_forced")
    assert report["proof"]["passed"] and report["proof"]["weights"]["packed"] == 14


@pytest.mark.exhaustive
def test_tokens_are_trained_where_the_whole_config_ties_the_head(tiny_config: Any, tmp_path: Path) -> None:
    """Of this family the config as a whole says that head and embeddings are one, its text section the contrary."""
    base = _saved("mistral3-vl", tmp_path / "base")
    run = _run(tiny_config, base, adapter={"trainable_tokens": [5, 6], "r": 4, "alpha": 8})
    report = export(run)
    assert report["proof"]["passed"] and report["proof"]["weights"]["tokens"] == 2
    assert _hashes(base).keys() == _hashes(Path(report["path"])).keys()


def test_an_adapter_of_the_tower_is_refused_and_ones_of_the_language_part_is_taken(
    tiny_config: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = _saved("gemma3-vl", tmp_path / "base")
    model = transformers.AutoModelForImageTextToText.from_pretrained(base)
    for name, targets in (("both", ["q_proj"]), ("text", r".*language_model.*\.q_proj")):
        adapted = get_peft_model(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
        adapted.save_pretrained(tmp_path / name)
        model = adapted.unload()
    options = {"base": str(base), "overrides": [f"run.dir={tmp_path / 'runs'}"]}
    with pytest.raises(RefusedError, match="not the language model's"):
        import_adapter(tmp_path / "both", **options)
    imported = import_adapter(tmp_path / "text", **options)
    assert imported["layers"] == 2
    assert export(Path(imported["path"]))["proof"]["passed"]
