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

from benchmarks.engine.footprint import held_bytes
from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.planning.memory import activations as count
from qdora_fast.planning.memory.architecture import Sizes
from qdora_fast.planning.memory.base import sizes_of
from qdora_fast.planning.memory.job import Job, job_of
from qdora_fast.recipes.auto import job_settings

TOLERANCE = 0.05
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite")
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def _job_of(config: Config, sizes: Sizes, *, on_gpu: bool) -> Job:
    return job_of(job_settings(config), sizes, length=config.model.length, on_gpu=on_gpu)


def _job(
    family: str,
    *,
    precision: str = "fp32",
    dora: bool = True,
    ours: bool = True,
    dropout: float = 0.0,
    checkpointing: str = "off",
    blocks: int = 2,
) -> Job:
    config = make_config(
        {
            "model": {"name": "base", "max_length": TOKENS},
            "data": {"path": "rows.jsonl"},
            "adapter": {"method": "qdora" if dora else "qlora", "r": RANK, "dropout": dropout},
            "train": {"batch_size": 1, "precision": precision, "gradient_checkpointing": checkpointing},
            "engine": {"impl": "auto" if ours else "peft"},
        }
    )
    return _job_of(config, sizes_of(config_of(family, blocks)), on_gpu=False)


def _gpu_job(**changed: Any) -> Job:
    config = make_config({"model": {"name": "base"}, "data": {"path": "rows.jsonl"}})
    return dataclasses.replace(_job_of(config, sizes_of(LLAMA_8B), on_gpu=True), **changed)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_blocks_leave_alive_is_what_the_hooks_find(family: str, ours: bool, dora: bool, precision: str) -> None:
    model = build(family, 2, DTYPES[precision], dora=dora, ours=ours)
    alive_after_forward(model, DTYPES[precision])  # the first pass derives what is kept between steps
    model.zero_grad()
    measured = alive_after_forward(model, DTYPES[precision])
    counted = count.saved_bytes(_job(family, precision=precision, dora=dora, ours=ours)).card
    assert counted == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "peft"])
def test_dropout_costs_masks_and_copies(ours: bool, dora: bool, precision: str) -> None:
    model = build("llama", 2, DTYPES[precision], dora=dora, ours=ours, dropout=0.1)
    alive_after_forward(model, DTYPES[precision])
    model.zero_grad()
    measured = alive_after_forward(model, DTYPES[precision])
    counted = count.saved_bytes(_job("llama", precision=precision, dora=dora, ours=ours, dropout=0.1)).card
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
    kept = count.saved_bytes(_job(family, precision=precision, ours=ours, checkpointing="torch", blocks=blocks))
    assert kept.card == pytest.approx(measured, rel=TOLERANCE)
    assert kept.host == 0


def test_unsloths_checkpointing_moves_all_inputs_but_the_last_to_the_host() -> None:
    one = 2 * 2048 * 4096 * 2
    kept, on_card = (count.saved_bytes(_gpu_job(checkpointing=mode)) for mode in ("unsloth", "torch"))
    assert kept.host == 31 * one
    assert on_card.card - kept.card == (32 - 3) * one  # the last input, and two buffers to bring the others back
    small = _gpu_job(batch_size=1, length=128)
    assert count.saved_bytes(small).host == 0  # inputs of 1 MiB are not worth the way


def test_short_rows_and_the_cpu_get_pytorchs_checkpointing_whatever_is_asked() -> None:
    config = make_config(
        {
            "model": {"name": "base", "max_length": 256},
            "data": {"path": "r"},
            "train": {"gradient_checkpointing": "unsloth"},
        }
    )
    assert _job_of(config, sizes_of(LLAMA_8B), on_gpu=True).checkpointing == "torch"
    longer = make_config(
        {
            "model": {"name": "base", "max_length": 512},
            "data": {"path": "r"},
            "train": {"gradient_checkpointing": "unsloth"},
        }
    )
    assert _job_of(longer, sizes_of(LLAMA_8B), on_gpu=True).checkpointing == "unsloth"
    assert _job_of(longer, sizes_of(LLAMA_8B), on_gpu=False).checkpointing == "torch"


GRADIENT = 4096 * 4096 * 2
"""Of 2 x 2048 states of width 4096, in 16 bits."""


def test_on_the_cpu_the_loss_makes_all_logits() -> None:
    assert count.loss_bytes(_gpu_job(), None) == 4096 * 128256 * 16 + GRADIENT


def test_on_a_card_the_loss_works_in_tiles_or_chunks_whatever_is_free() -> None:
    small, large = 24 * 2**30, 80 * 2**30
    tile = 4096 * 16384 * 4 + 4096 * 4096 * 6  # fp32 logits; a sum in fp32, and the labelled states
    assert count.loss_bytes(_gpu_job(), small) == count.loss_bytes(_gpu_job(), large) == tile + 2 * GRADIENT
    half = _gpu_job(batch_size=1)
    chunk = 512 * 128256 * 4 + 512 * 4096 * 6
    assert count.loss_bytes(half, large) == chunk + GRADIENT
    assert count.loss_bytes(half, small) == tile / 2 + GRADIENT
    longer = _gpu_job(batch_size=8)
    assert count.loss_bytes(longer, small) == tile + 8 * GRADIENT  # only states and their gradient grow
    exact = _gpu_job(element=4)
    assert count.loss_bytes(exact, small) == 512 * 128256 * 4 + 512 * 4096 * 8 + 4 * GRADIENT


def test_a_head_that_is_trained_has_its_gradient_made_in_the_loss() -> None:
    job = _gpu_job()
    assert count.loss_bytes(dataclasses.replace(job, head_trained=True), 24 * 2**30) > 2 * 4 * 128256 * 4096
    config = make_config(
        {"model": {"name": "base"}, "data": {"path": "r"}, "adapter": {"modules_to_save": ["lm_head"]}}
    )
    assert _job_of(config, sizes_of(LLAMA_8B), on_gpu=True).head_trained


@pytest.mark.parametrize("vocabulary", [32000, 32768, 49152, 128256, 151936, 256000])
def test_tiles_and_chunks_are_those_of_the_installed_unsloth(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_zoo.fused_losses import fused_linear as theirs

    monkeypatch.setattr(theirs, "_budget_bytes", lambda _: 2 * 2**30)  # with that much free, and twice as much
    for tokens in (1, 300, 511, 1024, 3000, 4096, 20000):
        for hidden in (576, 2048, 4096, 8192):
            rows = theirs.fused_linear_rows(tokens, hidden, vocabulary)
            assert count.chunk_rows(tokens, hidden, vocabulary) == rows
        for small in (True, False):
            monkeypatch.setattr(theirs, "_flash_min_rows", lambda _, small=small: 0 if small else 4096)
            rows, words = theirs._tiled_layout(tokens, vocabulary, 0, 4, torch.device("cuda"))
            if theirs._tiled_vocab(vocabulary) and tokens >= (0 if small else 4096):
                assert (rows, words) == (min(count.LOSS_ROWS, tokens), count.TILE_WORDS)
    assert theirs._tiled_vocab(vocabulary) == (vocabulary > 2 * count.TILE_WORDS)
    assert theirs._SMALL_CARD_BYTES == count.SMALL_CARD


def test_tables_of_positions_are_as_long_as_the_model_was_made_for_where_unsloths_blocks_run() -> None:
    assert count.rotary_bytes(_gpu_job(sizes=sizes_of({**LLAMA_8B, "max_position_embeddings": 131072}))) == 2**26
    assert count.rotary_bytes(_gpu_job(sizes=sizes_of({**config_of("phi3", 2)}), length=64)) == 2 * 64 * 64 * 2


def test_a_row_that_is_read_needs_no_more_than_an_answered_one_and_never_all_its_logits() -> None:
    from qdora_fast.evaluation.logits import MOST_BYTES

    job = _gpu_job()
    assert count.READ_BYTES == 2.5 * MOST_BYTES
    assert count.reading_bytes(job) < 0.3 * 2048 * 128256 * 10 + 0.1 * 2**30


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
        assert count.saved_bytes(more).card > count.saved_bytes(job).card
        assert count.temporary_bytes(more) > count.temporary_bytes(job)
        assert count.answering_bytes(more, 4) >= count.answering_bytes(job, 4)
