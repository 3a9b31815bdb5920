"""Bytes that are there before a token is seen: exact against what bitsandbytes, PEFT, the engine and the optimizers
allocate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import build, config_of, distinct_bytes, stored_parts
from torch import Tensor

from qdora_fast.config.loader import make_config
from qdora_fast.planning.memory import activations
from qdora_fast.planning.memory import weights as count
from qdora_fast.planning.memory.base import sizes_of
from qdora_fast.planning.memory.job import Job, JobSettings, job_of
from qdora_fast.training.optimizer import build_optimizer, parameter_groups


def _job(family: str = "llama", *, blocks: int = 2, base: dict[str, Any] | None = None, **sections: Any) -> Job:
    config = make_config({"model": {"name": "base"}, "data": {"path": "rows.jsonl"}, **sections})
    settings = JobSettings(config.adapter, config.train, config.engine)
    sizes = sizes_of({**config_of(family, blocks), **(base or {})})
    return job_of(settings, sizes, length=config.model.length, on_gpu=False)


@pytest.mark.parametrize("shape", [(64, 64), (192, 128), (96, 200), (320, 192), (1024, 1024)])
def test_a_weight_in_nf4_takes_what_bitsandbytes_allocates(shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        torch.randn(shape, dtype=torch.bfloat16), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    parts = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert count.nf4_bytes(*shape) == sum(part.numel() * part.element_size() for part in parts)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_base_takes_what_its_quantised_model_holds(family: str, dtype: torch.dtype) -> None:
    model = build(family, 2, dtype, dora=True, ours=False)
    trained = {id(p.data) for p in model.parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert trained
    held = distinct_bytes([tensor for p in frozen for tensor in stored_parts(p)])
    job = _job(family, train={"precision": "bf16" if dtype == torch.bfloat16 else "fp32"})
    assert count.linear_bytes(job) + count.unquantized_bytes(job) == held


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
@pytest.mark.parametrize("method", ["qdora", "qlora"])
def test_adapter_gradients_and_optimizer_take_what_is_allocated(optimizer: str, method: str) -> None:
    model = build("llama", 2, torch.float32, dora=method == "qdora", ours=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    built = build_optimizer(optimizer, parameter_groups(model.named_parameters(), learning_rate=1e-4))
    built.step()
    job = _job(adapter={"method": method}, train={"optimizer": optimizer})
    assert count.trained_bytes(job) == distinct_bytes([p.data for p in trained])
    assert count.trained_bytes(job) == distinct_bytes([p.grad for p in trained if p.grad is not None])
    state = [value for per in built.state.values() for value in per.values() if isinstance(value, Tensor)]
    assert count.optimizer_bytes(job) == distinct_bytes(state)


def test_some_layers_some_blocks_and_a_module_trained_in_full_are_counted_as_chosen() -> None:
    every = _job(adapter={"r": 8})
    some = _job(adapter={"r": 8, "target_modules": ["q_proj", "down_proj"], "layers": "1"})
    assert [tensor.values for tensor in count.trained_tensors(some)] == [
        *(8 * 192, 8 * 384, 384),
        *(8 * 320, 8 * 192, 192),
    ]
    assert count.trained_bytes(some) < count.trained_bytes(every)
    whole = _job(adapter={"r": 8, "modules_to_save": ["lm_head"]})
    assert count.trained_bytes(whole) == count.trained_bytes(every) + 4 * 512 * 192


def test_rows_of_tokens_are_counted_once_where_the_head_shares_them() -> None:
    def rows(tied: bool, **adapter: Any) -> tuple[int, int, int]:
        job = _job(base={"tie_word_embeddings": tied}, adapter=adapter, train={"optimizer": "adamw_8bit"})
        return count.trained_bytes(job), count.optimizer_bytes(job), activations.loss_bytes(job, None)

    for tied, times in ((True, 1), (False, 2)):
        without, with_tokens = rows(tied), rows(tied, trainable_tokens=["<a>", "<b>", 7])
        extra = [some - none for none, some in zip(without, with_tokens, strict=True)]
        assert extra[:2] == [times * 3 * 192 * 4, times * 3 * 192 * 2 * 4]  # 32-bit state
        assert extra[2] == 2 * 512 * 192 * 4  # PEFT's copy of the head, and its gradient


@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_engine_keeps_as_many_bytes_as_counted(dora: bool, dtype: torch.dtype) -> None:
    from benchmarks.engine.subjects import adapted
    from qdora_fast.engine import install

    model = build("llama", 2, dtype, dora=dora, ours=False)
    install(model, form="merged", resident="off")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(input_ids=torch.ones(1, 64, dtype=torch.long)).logits.float().sum().backward()
    known = {p.data.untyped_storage().data_ptr() for p in model.parameters()}
    kept: list[Tensor] = []
    for _, layer in adapted(model):
        state = layer.fused
        snapshot = state.cache(layer, "default")._snapshot
        kept += [t for t in (snapshot.norms, snapshot.scale, *snapshot._copies.values()) if t is not None]
        kept += [tensor for pair in layer.__dict__.get("_magnitudes_before_fusing", {}).values() for tensor in pair]
        kept += [tensor for pair in state.magnitudes_before.values() for tensor in pair]
    kept = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in known]
    job = _job(
        adapter={"method": "qdora" if dora else "qlora"},
        train={"precision": "bf16" if dtype == torch.bfloat16 else "fp32"},
    )
    assert count.engine_bytes(job) == distinct_bytes(kept)


def test_a_target_or_block_that_is_not_there_is_refused_with_a_hint() -> None:
    from qdora_fast.system.errors import ConfigError

    with pytest.raises(ConfigError, match="did you mean `q_proj`"):
        _job(adapter={"target_modules": ["q_prj"]})
    with pytest.raises(ConfigError, match="names block 7"):
        _job(adapter={"layers": "0-7"})
