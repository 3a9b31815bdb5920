"""Rows of trained tokens in a merged model: PEFT's own merge, for every base and every way to name them; all other
rows are the base's, and a row that was forgotten or moved is a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import VOCABULARY, adapt, edit, load, save_base, tensors_of
from torch import Tensor

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.exports.verify.weights import prove_weights
from qdora_fast.models.adapter import WEIGHTS_NAME, read_adapter
from qdora_fast.models.new_tokens import grow_embeddings, token_rows
from qdora_fast.system.errors import IntegrityError

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OLD, NEW = [7, 3], [3, VOCABULARY + 1, VOCABULARY]
KINDS: dict[str, tuple[bool, Any]] = {
    "tied, a list": (True, OLD),
    "tied, by name": (True, {"embed_tokens": OLD}),
    "tied, new tokens": (True, NEW),
    "embeddings and head": (False, {"model.embed_tokens": OLD, "lm_head": OLD}),
    "new tokens of both": (False, {"model.embed_tokens": NEW, "lm_head": NEW}),
    "embeddings alone": (False, OLD),
}


def _make(folder: Path, tied: bool, indices: Any, **lora: Any) -> tuple[Path, Path, dict[str, Tensor]]:
    """Base, adapter, and PEFT's own merge of the two in fp32."""
    base = save_base(folder / "base", tied=tied)
    model = load(base)
    ids = [number for each in (indices.values() if isinstance(indices, dict) else [indices]) for number in each]
    grow_embeddings(model, max(ids) + 1)
    adapted = adapt(model, trainable_token_indices=indices, **{"use_dora": True, **lora})
    for _, rows in token_rows(adapted):
        rows.data += torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return base, folder / "adapter", dict(adapted.merge_and_unload().state_dict())


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_peft_and_leaves_all_other_rows(kind: str, nf4: bool, tmp_path: Path) -> None:
    tied, indices = KINDS[kind]
    base, adapter, expected = _make(tmp_path, tied, indices)
    recipe, out = MergeRecipe(nf4=nf4), tmp_path / "out"
    merge(base, adapter, out, recipe)
    before, after = tensors_of(base), tensors_of(out)
    ids = next(iter(read_adapter(adapter).tokens.values())).ids
    rows = max(VOCABULARY, max(ids) + 1)
    others = [number for number in range(VOCABULARY) if number not in ids]
    for name in {EMBEDDINGS, HEAD} & after.keys():
        assert torch.equal(after[name], expected[name].to(after[name].dtype)[: len(after[name])])
        assert torch.equal(after[name][others], before[name][others])
    assert len(after[EMBEDDINGS]) == rows == json.loads((out / "config.json").read_text())["vocab_size"]
    proof = prove_weights(base, adapter, out, recipe)
    assert proof.passed and proof.tokens == len(ids) * (
        2 if kind in ("embeddings and head", "new tokens of both") else 1
    )
    if not nf4:
        logits = load(out)(torch.tensor([[*ids, 1]])).logits
        assert logits.shape[-1] == rows


@pytest.mark.parametrize("fault", ["forgotten", "of another token", "off by a step"])
def test_a_wrong_row_is_a_fault(fault: str, tmp_path: Path) -> None:
    base, adapter, _ = _make(tmp_path, False, {"model.embed_tokens": OLD, "lm_head": OLD})
    merge(base, adapter, tmp_path / "out")
    original = tensors_of(base)[HEAD]
    changes: dict[str, Callable[[Tensor], None]] = {
        "forgotten": lambda head: head[3].copy_(original[3]),
        "of another token": lambda head: head[3].copy_(head[7].clone()),
        "off by a step": lambda head: head[3].mul_(1 + 2**-7),
    }
    edit(tmp_path / "out", lambda tensors: HEAD in tensors and changes[fault](tensors[HEAD]))
    (found,) = prove_weights(base, adapter, tmp_path / "out").faults
    assert found == f"{HEAD}: rows of 1 of 2 trained tokens (first id 3) are not PEFT's"


def test_the_copy_of_a_tied_head_has_the_same_rows(tmp_path: Path) -> None:
    """Some checkpoints of tied models hold the head beside the embeddings; readers that take it must see the tokens."""
    base, adapter, _ = _make(tmp_path, True, OLD)
    for file in base.glob("*.safetensors"):
        tensors = load_file(file)
        if EMBEDDINGS in tensors:
            save_file(tensors | {HEAD: tensors[EMBEDDINGS].clone()}, file, metadata={"format": "pt"})
            shard = file.name
    index = base / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][HEAD] = shard
    index.write_text(json.dumps(content))
    merge(base, adapter, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert torch.equal(after[HEAD], after[EMBEDDINGS]) and prove_weights(base, adapter, tmp_path / "out").passed


def test_a_new_row_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = _make(tmp_path, True, [3, VOCABULARY + 1])
    with pytest.raises(IntegrityError, match=f"row {VOCABULARY} was not trained, and the base has {VOCABULARY} rows"):
        merge(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("lost", "the file holds no row"),
        ("too few", r"1 rows of tokens, but adapter_config.json lists \[7, 3\]"),
        ("not finite", "NaN or infinity"),
        ("not listed", "lists None"),
    ],
)
def test_broken_rows_of_a_saved_adapter_are_named(fault: str, said: str, tmp_path: Path) -> None:
    _, adapter, _ = _make(tmp_path, True, OLD)
    tensors = load_file(adapter / WEIGHTS_NAME)
    (key,) = [key for key in tensors if "trainable_tokens" in key]
    changed = {"too few": tensors[key][:1].clone(), "not finite": tensors[key] * torch.nan}.get(fault, tensors[key])
    kept = {name: tensor for name, tensor in tensors.items() if name != key}
    save_file(kept if fault == "lost" else kept | {key: changed}, adapter / WEIGHTS_NAME, metadata={"format": "pt"})
    if fault == "not listed":
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"trainable_token_indices": None}))
    with pytest.raises(IntegrityError, match=said):
        read_adapter(adapter)
