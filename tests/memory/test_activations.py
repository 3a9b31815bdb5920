"""What tokens cost: the formulas against what autograd's hooks and the dispatcher find on small models."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import RANK, TOKENS, alive_after_forward, build, config_of

from qdora_fast.benchmark.footprint import held_bytes
from qdora_fast.config_file import make_config
from qdora_fast.memory import Job, job_of, sizes_of
from qdora_fast.memory import activations as count

TOLERANCE = 0.05
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite")
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


def _job(family: str, *, precision: str = "fp32", dora: bool = True, ours: bool = True, dropout: float = 0.0,
         checkpointing: str = "off", blocks: int = 2) -> Job:  # fmt: skip
    config = make_config(
        {
            "model": {"name": "base", "max_length": TOKENS},
            "data": {"path": "rows.jsonl"},
            "adapter": {"method": "qdora" if dora else "qlora", "r": RANK, "dropout": dropout},
            "train": {"batch_size": 1, "precision": precision, "gradient_checkpointing": checkpointing},
            "engine": {"impl": "auto" if ours else "peft"},
        }
    )
    return job_of(config, sizes_of(config_of(family, blocks)), on_gpu=False)


def _gpu_job(**changed: Any) -> Job:
    config = make_config({"model": {"name": "base"}, "data": {"path": "rows.jsonl"}})
    return dataclasses.replace(job_of(config, sizes_of(LLAMA_8B), on_gpu=True), **changed)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_blocks_leave_alive_is_what_the_hooks_find(family: str, ours: bool, dora: bool, precision: str) -> None:
    model = build(family, 2, DTYPES[precision], dora=dora, ours=ours)
    alive_after_forward(model, DTYPES[precision])  # the first pass derives what is kept between steps
    model.zero_grad()
    measured = alive_after_forward(model, DTYPES[precision])
    counted = count.kept_bytes(_job(family, precision=precision, dora=dora, ours=ours)).card
    assert counted == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "peft"])
def test_dropout_costs_masks_and_copies(ours: bool, dora: bool, precision: str) -> None:
    model = build("llama", 2, DTYPES[precision], dora=dora, ours=ours, dropout=0.1)
    alive_after_forward(model, DTYPES[precision])
    model.zero_grad()
    measured = alive_after_forward(model, DTYPES[precision])
    counted = count.kept_bytes(_job("llama", precision=precision, dora=dora, ours=ours, dropout=0.1)).card
    assert counted == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "peft"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_checkpointing_leaves_the_input_of_each_block(family: str, ours: bool, precision: str) -> None:
    blocks, dtype = 4, DTYPES[precision]
    model = build(family, blocks, dtype, dora=True, ours=ours)
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ids = torch.randint(0, 500, (1, TOKENS), generator=torch.Generator().manual_seed(1))

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            states: torch.Tensor = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
        return states.sum()

    forward().backward()
    model.zero_grad()
    measured = held_bytes(SimpleNamespace(forward=forward))  # type: ignore[arg-type]
    kept = count.kept_bytes(_job(family, precision=precision, ours=ours, checkpointing="torch", blocks=blocks))
    assert kept.card == pytest.approx(measured, rel=TOLERANCE)
    assert kept.host == 0


def test_unsloths_checkpointing_moves_all_inputs_but_the_last_to_the_host() -> None:
    one = 2 * 2048 * 4096 * 2
    kept, on_card = (count.kept_bytes(_gpu_job(checkpointing=mode)) for mode in ("unsloth", "torch"))
    assert kept.host == 31 * one
    assert on_card.card - kept.card == (32 - 3) * one  # the last input, and two buffers to bring the others back
    small = _gpu_job(batch_size=1, length=128)
    assert count.kept_bytes(small).host == 0  # inputs of 1 MiB are not worth the way


def test_short_rows_and_the_cpu_get_pytorchs_checkpointing_whatever_is_asked() -> None:
    config = make_config(
        {"model": {"name": "base", "max_length": 256}, "data": {"path": "r"},
         "train": {"gradient_checkpointing": "unsloth"}}
    )  # fmt: skip
    assert job_of(config, sizes_of(LLAMA_8B), on_gpu=True).checkpointing == "torch"
    longer = make_config(
        {"model": {"name": "base", "max_length": 512}, "data": {"path": "r"},
         "train": {"gradient_checkpointing": "unsloth"}}
    )  # fmt: skip
    assert job_of(longer, sizes_of(LLAMA_8B), on_gpu=True).checkpointing == "unsloth"
    assert job_of(longer, sizes_of(LLAMA_8B), on_gpu=False).checkpointing == "torch"


def test_the_fused_loss_takes_half_of_what_is_free_and_never_more_than_4_gib() -> None:
    job = _gpu_job()
    gradient = job.tokens * 4096 * 2
    whole = job.tokens * 128256 * 16
    assert count.loss_bytes(job, None) == whole + gradient
    for free in (2**30, 8 * 2**30, 60 * 2**30):
        assert count.loss_bytes(job, free) <= min(free // 2, 4 * 2**30)
    assert count.loss_bytes(_gpu_job(length=128), 60 * 2**30) == 2 * 128 * 128256 * 16 + 2 * 128 * 4096 * 2
    assert count.loss_bytes(job, 0) >= gradient


def test_peft_makes_the_update_from_an_identity_matrix_and_ours_does_not() -> None:
    ours, theirs = count.workspace_bytes(_gpu_job()), count.workspace_bytes(_gpu_job(ours=False))
    assert ours == 14336 * 4096 * 2
    assert theirs - ours >= 14336**2 * 2


def test_capped_attention_scores_grow_with_the_square_of_the_length() -> None:
    gemma = sizes_of(config_of("gemma2", 2))
    short, long = (count.scores_bytes(_gpu_job(sizes=gemma, length=length)) for length in (512, 1024))
    assert long == 4 * short > 0
    assert count.scores_bytes(_gpu_job()) == 0


@given(st.integers(1, 64), st.integers(1, 4096), st.booleans(), st.booleans(), st.sampled_from(["off", "torch"]))
def test_more_tokens_never_take_less(batch: int, length: int, ours: bool, dora: bool, checkpointing: str) -> None:
    job = _gpu_job(batch_size=batch, length=length, ours=ours, decomposed=dora, checkpointing=checkpointing)
    longer, wider = dataclasses.replace(job, length=length + 1), dataclasses.replace(job, batch_size=batch + 1)
    for more in (longer, wider):
        assert count.kept_bytes(more).card > count.kept_bytes(job).card
        assert count.passing_bytes(more) > count.passing_bytes(job)
        assert count.answering_bytes(more, 4) >= count.answering_bytes(job, 4)
