"""The proof passes on a good merge and names the tensor on every bad one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import LINEARS, edit, save_adapter_for, save_base

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.exports.verify.weights import WeightProof, prove_weights

STATE = ".quant_state.bitsandbytes__nf4"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, an adapter after a light tune (magnitudes moved by 0.3 %), and their merge."""
    base = save_base(tmp_path / "base")
    save_adapter_for(base, tmp_path / "adapter", use_dora=True, moved=0.003, b_std=0.001)
    merge(base, tmp_path / "adapter", tmp_path / "out")
    return base, tmp_path / "adapter", tmp_path / "out"


def assert_only(proof: WeightProof, *named: str) -> None:
    """The proof failed, and blames exactly these tensors."""
    assert not proof.passed
    assert sorted(fault.split(":")[0] for fault in proof.faults) == sorted(named)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lora", [{"use_dora": True, "use_rslora": True}, {"alpha_pattern": {"up_proj": 40}}])
def test_a_good_merge_passes(family: str, dtype: torch.dtype, lora: dict[str, Any], tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family=family, dtype=dtype)
    save_adapter_for(base, tmp_path / "adapter", modules_to_save=["lm_head"], **lora)
    merge(base, tmp_path / "adapter", tmp_path / "out")
    proof = prove_weights(base, tmp_path / "adapter", tmp_path / "out")
    assert proof.passed, proof.faults
    assert proof.layers == LINEARS and proof.undecided < 0.01 * proof.values
    assert proof.untouched == 7 + (6 if family == "qwen2" else 0)  # norms, embeddings, head; biases of q, k, v
    assert json.loads(json.dumps(proof.to_dict()))["passed"] is True


def test_dequant4_and_a_changed_dtype_pass(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, original = folders
    recipe = MergeRecipe("dequant4", trained_dtype=torch.float16, dtype=torch.float16)
    merge(base, adapter, tmp_path / "other", recipe)
    assert prove_weights(base, adapter, tmp_path / "other", recipe).passed
    assert len(prove_weights(base, adapter, original, MergeRecipe("dequant4")).faults) == LINEARS


def test_zero_rows_of_the_base_pass(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter_for(base, tmp_path / "adapter", use_dora=True)

    def clear_row(tensors: dict[str, torch.Tensor]) -> None:
        if f"{UP}.weight" in tensors:
            tensors[f"{UP}.weight"][5] = 0

    def freeze_row(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.{UP}.lora_B.weight"][5] = 0

    edit(base, clear_row)
    edit(tmp_path / "adapter", freeze_row)
    merge(base, tmp_path / "adapter", tmp_path / "out")
    assert prove_weights(base, tmp_path / "adapter", tmp_path / "out").passed


def test_a_layer_left_unmerged_is_found(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, out = folders
    originals: dict[str, torch.Tensor] = {}
    edit(base, originals.update)
    edit(out, lambda tensors: tensors.update({k: originals[k] for k in tensors if k == f"{UP}.weight"}))
    proof = prove_weights(base, adapter, out)
    assert_only(proof, f"{UP}.weight")
    assert "still the base's weights" in proof.faults[0]


def test_a_wrong_base_is_found(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, adapter, out = folders
    other = save_base(tmp_path / "other", seed=1)
    assert len(prove_weights(other, adapter, out).faults) == LINEARS + 7


@pytest.mark.parametrize("damage", ["dropped", "of another layer", "scaled by 0.5 %"])
def test_a_wrong_magnitude_is_found(folders: tuple[Path, Path, Path], damage: str, tmp_path: Path) -> None:
    base, adapter, out = folders
    bad = shutil.copytree(adapter, tmp_path / "bad")

    def harm(tensors: dict[str, torch.Tensor]) -> None:
        key = f"base_model.model.{UP}.lora_magnitude_vector"
        if damage == "of another layer":
            tensors[key] = tensors[key.replace("layers.1", "layers.0")].clone()
        elif damage == "dropped":  # what a reader that ignores it makes of the layer: m = norm of W
            weights: dict[str, torch.Tensor] = {}
            edit(base, weights.update)
            tensors[key] = weights[f"{UP}.weight"].float().norm(dim=1)
        else:
            tensors[key] *= 1.005

    edit(bad, harm)
    merge(base, bad, out, overwrite=True)
    assert_only(prove_weights(base, adapter, out), f"{UP}.weight")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_one_flipped_bit_is_found(folders: tuple[Path, Path, Path], name: str) -> None:
    base, adapter, out = folders

    def flip(tensors: dict[str, torch.Tensor]) -> None:
        if name in tensors:
            tensors[name].view(torch.uint8).reshape(-1)[-2] ^= 1

    edit(out, flip)
    assert_only(prove_weights(base, adapter, out), name)


def test_structure_is_compared(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, out = folders

    def rebuild(tensors: dict[str, torch.Tensor]) -> None:
        if "model.norm.weight" in tensors:
            tensors["extra.weight"] = tensors.pop("model.norm.weight")
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"] = tensors["lm_head.weight"].float()

    edit(out, rebuild)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    index["weight_map"]["extra.weight"] = index["weight_map"].pop("model.norm.weight")
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_only(prove_weights(base, adapter, out), "extra.weight", "model.norm.weight", "lm_head.weight")


@pytest.mark.parametrize("layer", [UP, "model.layers.0.self_attn.q_proj"])
def test_one_value_that_is_off_by_one_step_is_found(folders: tuple[Path, Path, Path], layer: str) -> None:
    """The next bfloat16, in one value of one row: nothing that an output or a mean would show."""
    base, adapter, out = folders

    def step(tensors: dict[str, torch.Tensor]) -> None:
        if f"{layer}.weight" in tensors:
            tensors[f"{layer}.weight"].view(torch.int16)[3, 7] += 1

    edit(out, step)
    assert_only(prove_weights(base, adapter, out), f"{layer}.weight")


def test_a_merge_of_our_own_that_is_wrong_is_found_although_it_is_stored_as_merged(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second computation agrees with what is stored: PEFT's has to tell."""
    from dataclasses import replace

    from qdora_fast.exports.merge import merged_model

    base, adapter, out = folders
    real = merged_model.merged_rows
    wrong = lambda weight, module, start: real(weight, replace(module, scaling=1.02 * module.scaling), start)  # noqa: E731
    monkeypatch.setattr(merged_model, "merged_rows", wrong)
    merge(base, adapter, out, overwrite=True)
    proof = prove_weights(base, adapter, out)
    assert len(proof.faults) == LINEARS and all("are not PEFT's merge" in fault for fault in proof.faults)


@pytest.mark.parametrize("part", ["", ".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", STATE])
def test_every_part_of_a_weight_in_4_bits_is_compared(tmp_path: Path, part: str) -> None:
    base = save_base(tmp_path / "base")
    save_adapter_for(base, tmp_path / "adapter", use_dora=True, b_std=0.01)
    recipe = MergeRecipe(trained_dtype=torch.bfloat16, nf4=True)
    merge(base, tmp_path / "adapter", tmp_path / "out", recipe)
    good = prove_weights(base, tmp_path / "adapter", tmp_path / "out", recipe)
    assert good.passed and good.packed == LINEARS

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = f"{UP}.weight{part}"
        if name in tensors:
            tensors[name].view(torch.uint8).reshape(-1)[-1] ^= 1

    edit(tmp_path / "out", change)
    assert_only(prove_weights(base, tmp_path / "adapter", tmp_path / "out", recipe), f"{UP}.weight{part}")


@settings(max_examples=15)
@given(
    rank=st.sampled_from([1, 3, 16, 64]),
    spread=st.sampled_from([1e-6, 1e-3, 0.03, 3.0]),
    moved=st.sampled_from([0.0, 1e-4, 0.3]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    lora=st.sampled_from([{}, {"use_dora": True}, {"use_dora": True, "use_rslora": True}]),
    seed=st.integers(0, 2**16),
)
def test_no_right_merge_is_called_wrong(
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    spread: float,
    moved: float,
    dtype: torch.dtype,
    lora: dict[str, Any],
    seed: int,
) -> None:
    """Ranks, updates from far below a rounding step to far above the weights, dtypes, and any numbers in them."""
    folder = tmp_path_factory.mktemp("any")
    base = save_base(folder / "base", dtype=dtype, seed=seed)
    save_adapter_for(base, folder / "adapter", r=rank, b_std=spread, moved=moved, **lora)
    merge(base, folder / "adapter", folder / "out")
    proof = prove_weights(base, folder / "adapter", folder / "out")
    assert proof.passed, proof.faults
