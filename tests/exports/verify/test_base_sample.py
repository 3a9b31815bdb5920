"""The base that was trained on is known again in each form it comes in; its relatives are not taken for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import LINEARS, adapt, edit, linears, load, load_in_4bit, save_base

from qdora_fast.exports.verify import base_sample
from qdora_fast.exports.verify.base_sample import RECORD, compare, keep, take

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


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
    assert len(sample.values) == LINEARS + 7 and len(sample.others) == 7  # norms, embeddings, head
    found = compare(sample, base, dtype)
    assert found.passed and found.differing == 0 and found.weights == LINEARS + 7
    assert "blocks of 21 weights" in found.words
    for number, share in enumerate((0.001, 0.002, 0.005, 0.02)):
        relative = compare(sample, with_noise(base, tmp_path / f"relative-{number}", share), dtype)
        assert not relative.passed
        assert f"not the one trained on: {relative.worst} differs in {relative.differing:.2%}" in relative.words
        assert ".weight" not in relative.worst


def test_a_model_with_an_adapter_on_it_gives_the_same_sample(base: Path) -> None:
    plain, adapted = (load_in_4bit(base, torch.bfloat16) for _ in range(2))
    modules = linears(plain)
    adapted = adapt(adapted, use_dora=True)
    first, second = take(plain, modules).values, take(adapted, modules).values
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_base_stored_in_4_bits_is_known_by_its_16_bit_weights_and_by_itself(base: Path, tmp_path: Path) -> None:
    load_in_4bit(base, torch.bfloat16).save_pretrained(tmp_path / "packed")
    sample = take(model := load_in_4bit(tmp_path / "packed", torch.bfloat16), linears(model))
    for folder in (base, tmp_path / "packed"):
        found = compare(sample, folder, torch.bfloat16, packed_elsewhere=True)
        assert found.passed and found.differing == 0


def test_4_bits_made_elsewhere_from_another_precision_are_no_other_base_but_a_relative_is(tmp_path: Path) -> None:
    exact = save_base(tmp_path / "fp32", dtype=torch.float32)
    model = load_in_4bit(exact, torch.float32)
    rounded = Path(shutil.copytree(exact, tmp_path / "bf16"))
    edit(rounded, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
    sample = take(model, linears(model))
    found = compare(sample, rounded, torch.bfloat16, packed_elsewhere=True)
    assert found.passed and 0 < found.differing < base_sample.MOST_DIFFERING
    assert "its 4 bits were made from another precision" in found.words
    assert not compare(sample, rounded, torch.bfloat16).passed  # made here, it is known from what
    near = compare(sample, with_noise(exact, tmp_path / "relative", 0.004), torch.bfloat16, packed_elsewhere=True)
    assert not near.passed


def test_codes_that_two_processors_may_round_differently_are_no_other_base(tmp_path: Path) -> None:
    """A value in the middle between two codes, and one further from it than a rounding error."""
    from bitsandbytes.functional import get_4bit_type
    from safetensors.torch import save_file

    table = get_4bit_type("nf4", device="cpu")
    weight = torch.zeros(1, 64)
    weight[0, 0], weight[0, 1] = 1.0, (table[9] + table[10]) / 2
    save_file({"layer.weight": weight}, tmp_path / "model.safetensors")
    layer = _packed(weight)
    sample = take(torch.nn.ModuleDict({"layer": layer}), ["layer"])
    codes = sample.values["layer.weight"]
    first = int(codes[0])
    for code, passed in [(9, True), (10, True), (8, False), (11, False)]:
        codes[0] = first & 0xF0 | code
        assert compare(sample, tmp_path, torch.float32).passed is passed
    weight[0, 1] *= 1.0001
    save_file({"layer.weight": weight}, tmp_path / "model.safetensors")
    codes[0] = first & 0xF0 | 9
    assert not compare(sample, tmp_path, torch.float32).passed


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "model.norm", "layers.1.input_layernorm"])
def test_what_no_adapter_is_on_is_compared_too(base: Path, tmp_path: Path, name: str) -> None:
    model, other = load_in_4bit(base, torch.bfloat16), Path(shutil.copytree(base, tmp_path / "other"))
    edit(other, lambda tensors: [t.mul_(1.01) for key, t in tensors.items() if name in key])
    found = compare(take(model, linears(model)), other, torch.bfloat16)
    assert not found.passed and name in found.worst


def test_norms_that_a_reader_keeps_with_their_1_added_are_the_bases(base: Path) -> None:
    """As Unsloth does with Gemma's."""
    model = load_in_4bit(base, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float() + 1
    assert compare(take(model, linears(model)), base, torch.bfloat16).passed


def test_tensors_that_a_reader_holds_under_another_name_or_size_are_passed_over(base: Path, tmp_path: Path) -> None:
    model = load_in_4bit(base, torch.bfloat16)
    model.resize_token_embeddings(model.config.vocab_size + 64)
    model.model.norm_of_another_name = model.model.norm
    del model.model.norm
    found = compare(take(model, linears(model)), base, torch.bfloat16)
    assert found.passed


@pytest.mark.parametrize("row", [0, 63, 127])
def test_one_replaced_layer_is_another_base_wherever_it_differs(base: Path, tmp_path: Path, row: int) -> None:
    """Half of the rows of one layer, from the first, the middle or the last on."""
    model, other = load_in_4bit(base, torch.bfloat16), Path(shutil.copytree(base, tmp_path / "other"))
    changed = "model.layers.1.mlp.up_proj.weight"

    def replace(tensors: dict[str, torch.Tensor]) -> None:
        if changed in tensors:
            tensors[changed][row:] *= -1

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
    found = compare(sample, other, torch.bfloat16)
    assert found.differing == 1.0 and f"{found.worst}.weight" == name


def _packed(weight: torch.Tensor) -> Any:
    """A 4-bit layer with this weight."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type="nf4")
    layer.load_state_dict({"weight": weight})
    return layer.to("cpu")


def test_odd_shapes_are_compared_to_the_last_value(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    for rows, columns in [(7, 33), (1, 1), (3, 96), (300, 64)]:
        weight = torch.randn(rows, columns, generator=generator)
        sample = take(torch.nn.ModuleDict({"layer": _packed(weight)}), ["layer"])
        assert sample.values["layer.weight"].dtype == torch.uint8
        folder = tmp_path / f"{rows}x{columns}"
        folder.mkdir()
        save_file({"layer.weight": weight}, folder / "model.safetensors")
        assert compare(sample, folder, torch.float32).differing == 0
        weight[-1, -1] *= -1
        save_file({"layer.weight": weight}, folder / "model.safetensors")
        assert not compare(sample, folder, torch.float32).passed


def test_every_layer_is_sampled_and_the_record_stays_small(tmp_path: Path) -> None:
    layers = torch.nn.ModuleDict({f"l{number}": torch.nn.Linear(256, 256) for number in range(40)})
    names = list(layers)
    sample = take(layers, names)
    assert len(sample.values) == 80  # biases, too
    keep(layers, names, tmp_path)
    assert (tmp_path / RECORD).stat().st_size < 2**20
    kept = base_sample.load(tmp_path)
    assert kept is not None and kept.spread and kept.others == sample.others
    assert all(torch.equal(kept.values[name], value) for name, value in sample.values.items())
    layers["l0"].weight.data.zero_()
    keep(layers, names, tmp_path)  # a resumed run keeps what it began with
    again = base_sample.load(tmp_path)
    assert again is not None and torch.equal(again.values["l0.weight"], kept.values["l0.weight"])
    assert base_sample.load(tmp_path / "elsewhere") is None


def test_the_record_of_an_earlier_version_is_read(base: Path, tmp_path: Path) -> None:
    """It kept the first 8,192 values of 16 layers, without metadata."""
    from safetensors.torch import save_file

    model = load_in_4bit(base, torch.bfloat16)
    layers = {name: module for name, module in model.named_modules() if name in set(linears(model))}
    old = {f"{name}.weight": module.weight.data.flatten()[:4096].clone() for name, module in layers.items()}
    save_file(old, tmp_path / RECORD)
    sample = base_sample.load(tmp_path)
    assert sample is not None and not sample.spread and compare(sample, base, torch.bfloat16).passed
    assert not compare(sample, with_noise(base, tmp_path / "relative", 0.005), torch.bfloat16).passed
