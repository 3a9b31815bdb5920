"""The merged model read by rows, and what cannot be merged; that it equals PEFT's merge is test_merge's business."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import LINEARS, save_adapter_for, save_base, tensors_of

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merged_model import MergedModel, merged_rows
from qdora_fast.models.adapter import AdapterModule
from qdora_fast.system.errors import ConfigError, IntegrityError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A bf16 base in several shards and a DoRA adapter for it."""
    base = save_base(tmp_path / "base")
    save_adapter_for(base, tmp_path / "adapter", use_dora=True)
    return base, tmp_path / "adapter"


def test_a_zero_row_stays_zero() -> None:
    module = AdapterModule(torch.ones(1, 3), torch.tensor([[0.0], [2.0]]), torch.tensor([5.0, 7.0]), scaling=1.0)
    merged = merged_rows(torch.zeros(2, 3), module, start=0)
    assert merged[0].tolist() == [0, 0, 0]
    assert merged[1].norm().item() == pytest.approx(7)


@pytest.mark.parametrize("nf4", [False, True])
def test_what_is_stored_is_what_the_headers_say(pair: tuple[Path, Path], nf4: bool) -> None:
    model = MergedModel(*pair, MergeRecipe(nf4=nf4))
    assert len(model.packed) == (LINEARS if nf4 else 0)
    for info in (info for infos in model.shards.values() for info in infos):
        blocks = list(model.stored(info))
        assert {block.dtype for block in blocks} == {info.dtype}
        assert sum(block.nbytes for block in blocks) == info.nbytes
    whole = sum(tensor.nbytes for tensor in tensors_of(pair[0]).values())
    assert model.total_bytes < 0.9 * whole if nf4 else model.total_bytes == whole


def test_every_tensor_is_aligned_in_its_file(pair: tuple[Path, Path]) -> None:
    for infos in MergedModel(*pair, MergeRecipe(nf4=True)).shards.values():
        offset = 0
        for info in infos:
            assert offset % info.dtype.itemsize == 0, info.name
            offset += info.nbytes


def test_an_adapter_of_another_model_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(base / "config.json", one)
    tensors = tensors_of(base)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(7, 64, dtype=torch.bfloat16)
    save_file(tensors, one / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="the base that was trained on") as caught:
        MergedModel(one, adapter, MergeRecipe())
    message = str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight: trained, but the base has no such tensor" in message
    assert "model.layers.0.mlp.up_proj.weight: trained with shape (128, 64), but the base has (7, 64)" in message
    for recipe in (
        MergeRecipe("dequant4", frozenset({"h.0.c_attn"})),
        MergeRecipe("original16", nf4=True, quantized_modules=frozenset({"h.0.c_attn"})),
    ):
        with pytest.raises(IntegrityError, match="not in this base"):
            MergedModel(base, adapter, recipe)


@pytest.mark.parametrize("trained", [["lm_head"], ["embed_tokens"]])
def test_untying_tied_embeddings_is_refused(trained: list[str], tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tied=True)
    save_adapter_for(base, tmp_path / "adapter", use_dora=True, modules_to_save=trained)
    with pytest.raises(ConfigError, match="one tensor"):
        MergedModel(base, tmp_path / "adapter", MergeRecipe())
