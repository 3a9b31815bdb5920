"""Running a folder with one layer in memory at a time gives what running it whole gives, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import VOCABULARY, load, made_rows, save_base

from qdora_fast.exports.verify import streamed
from qdora_fast.exports.verify.recording import compare, record
from qdora_fast.exports.verify.streamed import computed_with, open_streamed, record_streamed

ROWS = made_rows(30, 7, 64, 2, 33)


def save(kind: str, folder: Path) -> Path:
    """A tiny random model of another family than `tiny_checkpoints` makes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    more: dict[str, Any] = {
        "gemma2": {"final_logit_softcapping": 5.0, "sliding_window": 8},
        "granite": {"logits_scaling": 3.0},
        "cohere": {"logit_scale": 0.3},
        "mixtral": {"num_local_experts": 4, "output_router_logits": True},
        "qwen3": {},
    }[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def opened(folder: Path, scratch: Path) -> Any:
    scratch.mkdir(exist_ok=True)
    return open_streamed(folder, device="cpu", dtype=torch.float32, scratch=scratch, packed=False)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere", "mixtral", "qwen3"])
def test_heads_that_scale_or_cap_their_logits(kind: str, tmp_path: Path) -> None:
    folder = save(kind, tmp_path / "base")
    agreement = compare(record(load(folder).eval(), ROWS), record_streamed(opened(folder, tmp_path / "scratch"), ROWS))
    assert agreement.mean_kl < 1e-9 and agreement.ce_other == pytest.approx(agreement.ce_reference, abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["60KB", "1GB"])
def test_one_shard_or_many_with_a_head_of_its_own_or_the_embeddings(
    shard_size: str, tied: bool, tmp_path: Path
) -> None:
    folder = save_base(tmp_path / "base", tied=tied, shard_size=shard_size)
    agreement = compare(record(load(folder), ROWS), record_streamed(opened(folder, tmp_path / "scratch"), ROWS))
    assert agreement.mean_kl < 1e-9


def test_a_row_alone_and_among_others_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(save_base(tmp_path / "base"), tmp_path / "scratch")
    together = record_streamed(model, ROWS)
    monkeypatch.setattr(streamed, "TOKENS", 1)
    monkeypatch.setattr(streamed, "POSITIONS", 3)
    assert compare(together, record_streamed(model, ROWS)).mean_kl < 1e-9


def test_at_most_one_layer_of_the_blocks_is_in_memory(tmp_path: Path) -> None:
    model = opened(save_base(tmp_path / "base"), tmp_path / "scratch")
    layers = {name: module for name, module in model.model.layers.named_modules() if hasattr(module, "weight")}
    seen: list[int] = []

    def watch(forward: Any) -> Any:
        def watched(*arguments: Any, **named: Any) -> Any:
            seen.append(sum(not module.weight.is_meta for module in layers.values()))
            return forward(*arguments, **named)

        return watched

    for module in layers.values():
        module._old_forward = watch(module._old_forward)
    record_streamed(model, ROWS)
    assert set(seen) == {1} and len(seen) == len(layers)
    assert all(module.weight.is_meta for module in layers.values())


def test_another_function_stands_for_a_layer_and_goes_again(tmp_path: Path) -> None:
    model = opened(save_base(tmp_path / "base"), tmp_path / "scratch")
    before = record_streamed(model, ROWS)
    name = "model.layers.1.mlp.up_proj"
    same = {name: lambda module, x: torch.nn.functional.linear(x, module.weight)}
    double = {name: lambda module, x: 2 * torch.nn.functional.linear(x, module.weight)}
    with computed_with(model, same):
        assert compare(before, record_streamed(model, ROWS)).mean_kl < 1e-9
    with pytest.raises(KeyError), computed_with(model, double):
        assert compare(before, record_streamed(model, ROWS)).mean_kl > 1e-5
        raise KeyError
    assert compare(before, record_streamed(model, ROWS)).mean_kl == 0
