"""The merge against PEFT's own, on every kind of base and adapter it takes, and refusals of the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import LINEARS, edit, load, save_adapter_for, save_base, tensors_of

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.exports.merge.merged_model import MergedModel
from qdora_fast.exports.verify.weights import prove_weights
from qdora_fast.models import weights
from qdora_fast.system.errors import ConfigError, IntegrityError

BASES: dict[str, dict[str, Any]] = {
    "llama-bf16": {"family": "llama", "dtype": torch.bfloat16},
    "llama-fp16-tied-one-file": {"family": "llama", "dtype": torch.float16, "tied": True, "shard_size": "1GB"},
    "qwen2-fp32-bias": {"family": "qwen2", "dtype": torch.float32},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "lora": {"use_dora": False},
    "rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {"use_dora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp.up_proj": 48}},
    "two targets": {"use_dora": True, "target_modules": ["v_proj", "down_proj"], "layers_to_transform": [1]},
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A bf16 base in several shards and a DoRA adapter for it."""
    base = save_base(tmp_path / "base")
    save_adapter_for(base, tmp_path / "adapter", use_dora=True)
    return base, tmp_path / "adapter"


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("base", BASES)
def test_equals_peft_up_to_one_rounding(base: str, adapter: str, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", **BASES[base])
    expected = save_adapter_for(folder, tmp_path / "adapter", **ADAPTERS[adapter])
    report = merge(folder, tmp_path / "adapter", tmp_path / "out")
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        wanted = expected[name].to(tensor.dtype)
        torch.testing.assert_close(tensor, wanted, rtol=1.6 * torch.finfo(tensor.dtype).eps, atol=1e-7)
        assert (tensor != wanted).float().mean() < (0.01 if tensor.dtype.itemsize == 2 else 1)
    assert report.merged == (2 if adapter == "two targets" else LINEARS)
    assert report.merged + report.copied == len(after)
    assert (
        report.bytes
        == MergedModel(folder, tmp_path / "adapter", MergeRecipe()).total_bytes
        == sum(t.nbytes for t in after.values())
    )


def test_blocks_of_a_few_rows_give_the_same_model(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(*pair, tmp_path / "whole")
    monkeypatch.setattr(weights, "BLOCK_BYTES", 3 * 64 * 4)
    blocks: list[int] = []
    merge(*pair, tmp_path / "blocks", on_bytes=blocks.append)
    assert max(blocks) == 3 * 64 * 2
    one, other = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "blocks")
    assert sum(int((one[name] != other[name]).sum()) for name in one) <= 5  # fp32 sums may round either way
    assert prove_weights(*pair, tmp_path / "blocks").passed


@pytest.mark.parametrize("base", BASES)
def test_any_reader_opens_it_as_the_merged_model(base: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_base(tmp_path / "base", **BASES[base])
    expected = save_adapter_for(folder, tmp_path / "adapter", use_dora=True)
    merge(folder, tmp_path / "adapter", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors*")) == sorted(
        p.name for p in folder.glob("*.safetensors*")
    )
    model, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes.values())
    assert model.dtype == BASES[base]["dtype"]
    reference = load(folder)
    reference.load_state_dict(expected)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.float()(tokens).logits, reference(tokens).logits, rtol=0, atol=0.02)


def test_modules_trained_in_full_replace_the_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    expected = save_adapter_for(base, tmp_path / "adapter", use_dora=True, modules_to_save=["lm_head", "embed_tokens"])
    report = merge(base, tmp_path / "adapter", tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(after[name], expected[name].bfloat16())
        assert not torch.equal(after[name], tensors_of(base)[name])
    assert report.replaced == 2


def test_another_dtype_is_written_everywhere(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.float32)
    expected = save_adapter_for(base, tmp_path / "adapter", use_dora=True)
    merge(base, tmp_path / "adapter", tmp_path / "out", MergeRecipe(dtype=torch.bfloat16))
    after = tensors_of(tmp_path / "out")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[up], expected[up].bfloat16())


def test_values_that_do_not_fit_the_type_are_an_error(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.float32)
    save_adapter_for(base, tmp_path / "adapter", use_dora=True)
    edit(base, lambda tensors: tensors.get("model.norm.weight", torch.empty(0)).fill_(1e6))
    with pytest.raises(IntegrityError, match=r"model.norm.weight.*float16"):
        merge(base, tmp_path / "adapter", tmp_path / "out", MergeRecipe(dtype=torch.float16))
    assert [path.name for path in tmp_path.iterdir()].count("out") == 0


def test_an_existing_folder_is_kept_unless_asked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="already exists"):
        merge(*pair, tmp_path / "out")
    assert (tmp_path / "out/mine.txt").exists()
    merge(*pair, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/mine.txt").exists()
    for source in pair:
        for out in (source, source.parent):  # a folder around it would go with all that is in it
            with pytest.raises(ConfigError, match="is an input of this merge"):
                merge(*pair, out, overwrite=True)
        assert list(source.glob("*.safetensors"))


def test_pickled_bases_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ConfigError, match="pickles"):
        merge(tmp_path / "old", pair[1], tmp_path / "out")


MEASURE = """
import resource, sys
from pathlib import Path
from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small, large, work = map(Path, sys.argv[1:])
recipes = MergeRecipe(), MergeRecipe("dequant4"), MergeRecipe(nf4=True)
for number, recipe in enumerate(recipes):
    merge(small / "base", small / "adapter", work / f"small-{number}", recipe)
for number, recipe in enumerate(recipes):
    before = peak()
    merge(large / "base", large / "adapter", work / f"large-{number}", recipe)
    print((peak() - before) * 1024)
"""


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Dense, from 4 bits and into 4 bits: a fraction of one checkpoint of 270 MB, whose largest tensor has 134."""
    small, large = tmp_path / "s", tmp_path / "l"
    for folder, rows in ((small, 256), (large, 16384)):
        (folder / "base").mkdir(parents=True)
        weight = torch.linspace(-1, 1, rows * 4096).reshape(rows, 4096)
        tensors = {f"layers.{i}.proj.weight": (weight + i).bfloat16() for i in range(2)}
        save_file(tensors, folder / "base/model.safetensors", metadata={"format": "pt"})
        (folder / "base/config.json").write_text("{}")
        (folder / "adapter").mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "use_dora": True}
        (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
        stems = [f"base_model.model.{name.removesuffix('.weight')}" for name in tensors]
        adapter = {f"{stem}.lora_A.weight": torch.ones(1, 4096) for stem in stems}
        adapter |= {f"{stem}.lora_B.weight": torch.ones(rows, 1) for stem in stems}
        adapter |= {f"{stem}.lora_magnitude_vector": torch.ones(rows) for stem in stems}
        save_file(adapter, folder / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-c", MEASURE, str(small), str(large), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(int(line) < 100e6 for line in result.stdout.splitlines()[-3:]), result.stdout
