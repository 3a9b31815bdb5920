"""The base that was trained on is known again in each form it comes in; its relatives are not taken for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import LINEARS, adapt, edit, load, load_in_4bit, save_base

from qdora_fast import base_sample
from qdora_fast.base_sample import RECORD, compare, keep, take

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def linears(model: Any) -> list[str]:
    """Names of the linear layers inside the blocks."""
    return [name for name, module in model.named_modules() if ".layers." in name and hasattr(module, "in_features")]


def with_noise(base: Path, folder: Path, share: float) -> Path:
    """A relative of a base: noise of that share of each tensor's spread."""
    generator = torch.Generator().manual_seed(1)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * share
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)

    shutil.copytree(base, folder)
    edit(folder, add)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bf16, in shards."""
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loaded", [load_in_4bit, lambda folder, dtype: load(folder).to(dtype)], ids=["nf4", "16 bits"])
def test_the_base_is_known_again_and_relatives_are_not(
    base: Path, tmp_path: Path, loaded: Callable[..., Any], dtype: torch.dtype
) -> None:
    model = loaded(base, dtype)
    sample = take(model, linears(model))
    assert len(sample) == LINEARS and all(name.endswith(".weight") for name in sample)
    found = compare(sample, base, dtype)
    assert found.passed and found.differing == 0 and found.layers == LINEARS
    assert "14 of its layers" in found.words
    relative = compare(sample, with_noise(base, tmp_path / "relative", 0.02), dtype)
    assert not relative.passed
    assert f"not the one trained on: {relative.worst} differs in {relative.differing:.1%}" in relative.words
    assert ".weight" not in relative.worst


def test_a_model_with_an_adapter_on_it_gives_the_same_sample(base: Path) -> None:
    plain, adapted = (load_in_4bit(base, torch.bfloat16) for _ in range(2))
    modules = linears(plain)
    adapted = adapt(adapted, use_dora=True)
    first, second = take(plain, modules), take(adapted, modules)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_base_stored_in_4_bits_is_known_by_its_16_bit_weights_and_by_itself(base: Path, tmp_path: Path) -> None:
    load_in_4bit(base, torch.bfloat16).save_pretrained(tmp_path / "packed")
    sample = take(model := load_in_4bit(tmp_path / "packed", torch.bfloat16), linears(model))
    assert compare(sample, base, torch.bfloat16).differing == 0
    assert compare(sample, tmp_path / "packed", torch.bfloat16).differing == 0


def test_4_bits_made_from_another_precision_of_the_same_weights_are_no_other_base(tmp_path: Path) -> None:
    exact = save_base(tmp_path / "fp32", dtype=torch.float32)
    model = load_in_4bit(exact, torch.float32)
    rounded = Path(shutil.copytree(exact, tmp_path / "bf16"))
    edit(rounded, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
    found = compare(take(model, linears(model)), rounded, torch.bfloat16)
    assert 0 < found.differing < base_sample.MOST_DIFFERING


def test_one_replaced_layer_is_another_base(base: Path, tmp_path: Path) -> None:
    model, other = load_in_4bit(base, torch.bfloat16), Path(shutil.copytree(base, tmp_path / "other"))
    changed = "model.layers.1.mlp.up_proj.weight"

    def replace(tensors: dict[str, torch.Tensor]) -> None:
        if changed in tensors:
            tensors[changed] = tensors[changed].flip(0).contiguous()

    edit(other, replace)
    found = compare(take(model, linears(model)), other, torch.bfloat16)
    assert not found.passed and found.worst == changed.removesuffix(".weight")


@pytest.mark.parametrize(
    "change",
    [lambda tensor: None, lambda tensor: tensor[:1], lambda tensor: tensor.to(torch.uint8)],
    ids=["missing", "smaller", "packed"],
)
def test_a_layer_of_another_form_is_another_base(base: Path, tmp_path: Path, change: Any) -> None:
    model = load(base)
    sample = take(model, linears(model))
    other = save_base(tmp_path / "other", shard_size="1GB")
    name = "model.layers.0.self_attn.q_proj.weight"

    def edited(tensors: dict[str, torch.Tensor]) -> None:
        changed = change(tensors.pop(name))
        tensors.update({} if changed is None else {name: changed.contiguous()})

    edit(other, edited)
    assert compare(sample, other, torch.bfloat16).differing == 1.0


def test_odd_shapes_are_compared_to_the_last_value(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    for rows, columns in [(7, 33), (1, 1), (3, 96), (300, 64)]:
        weight = torch.randn(rows, columns, generator=generator)
        layer = Linear4bit(columns, rows, bias=False, quant_type="nf4")
        layer.load_state_dict({"weight": weight})
        sample = take(torch.nn.ModuleDict({"layer": layer.to("cpu")}), ["layer"])
        assert sample["layer.weight"].dtype == torch.uint8
        folder = tmp_path / f"{rows}x{columns}"
        folder.mkdir()
        save_file({"layer.weight": weight}, folder / "model.safetensors")
        assert compare(sample, folder, torch.float32).differing == 0


def test_many_layers_are_sampled_from_first_to_last_and_the_record_stays_small(tmp_path: Path) -> None:
    layers = torch.nn.ModuleDict({f"l{number}": torch.nn.Linear(256, 256) for number in range(40)})
    names = list(layers)
    sample = take(layers, names)
    assert len(sample) == base_sample.LAYERS
    assert {"l0.weight", "l39.weight"} <= set(sample)
    keep(layers, names, tmp_path)
    assert (tmp_path / RECORD).stat().st_size < 2**20
    kept = base_sample.load(tmp_path)
    assert kept is not None and all(torch.equal(kept[name], value) for name, value in sample.items())
    layers["l0"].weight.data.zero_()
    keep(layers, names, tmp_path)  # a run that is gone on with keeps what it began with
    again = base_sample.load(tmp_path)
    assert again is not None and torch.equal(again["l0.weight"], kept["l0.weight"])
    assert base_sample.load(tmp_path / "elsewhere") is None
