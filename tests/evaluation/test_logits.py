"""Logits at chosen positions: those of the whole pass, for every architecture, and no others in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engine.footprint import most_alive
from qdora_fast.evaluation.heldout import row_losses
from qdora_fast.evaluation.logits import MOST_BYTES, logits_at

VOCABULARY, TOKENS = 2048, 65
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 0.5, **SLIDING},
    "gemma3_text": {"head_dim": 16, "final_logit_softcapping": 0.5, **SLIDING},
    "granite": {"logits_scaling": 7.0},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "head_dim": 16, **SLIDING},
    "glm4": {"head_dim": 16},
    "olmo3": SLIDING,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64, "block_multiple_of": 16},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 2,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "head_dim": 16,
        "lm_head_multiplier": 0.2,
    },
}


def _model(family: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changed})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()


def _ids(length: int = TOKENS) -> Tensor:
    return torch.randint(3, 100, (1, length), generator=torch.Generator().manual_seed(1))


def _collected(model: Any, ids: Tensor, positions: Tensor, **how: Any) -> Tensor:
    parts = list(logits_at(model, ids, positions, **how))
    assert torch.equal(torch.cat([part for part, _ in parts]), positions)
    return torch.cat([logits for _, logits in parts])


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_whole_pass(family: str) -> None:
    model, ids = _model(family), _ids()
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0]
    positions = torch.tensor([0, 3, 4, 17, 17, 60, 64, 8])
    for most in (1, 3 * 4 * VOCABULARY, 2**30):  # one at a time, three, all
        torch.testing.assert_close(_collected(model, ids, positions, most_bytes=most), whole[positions])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits[0], whole)  # the model is left as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_row_is_that_of_the_whole_pass(family: str) -> None:
    model, ids = _model(family), _ids()
    labels = ids.clone()
    labels[0, :20], labels[0, 30:33] = -100, -100
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(
            model(input_ids=ids).logits[0, :-1].float(), labels[0, 1:], reduction="sum"
        )
    (loss,) = row_losses(model, [{"input_ids": ids[0].tolist(), "labels": labels[0].tolist()}])
    assert loss.tokens == TOKENS - 23
    assert loss.total == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_runs_once_and_only_chosen_logits_are_in_memory(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # under it the counter does not see into operators
    model, ids = _model(family, tie_word_embeddings=True), _ids()
    passes: list[Any] = []
    model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    positions, most = torch.arange(TOKENS), 4 * 4 * VOCABULARY

    def read() -> None:
        for _, logits in logits_at(model, ids, positions, most_bytes=most):
            assert logits.numel() * 4 <= most

    def backbone() -> None:
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)

    beside = 3 * most  # of capping: the logits, and one more before and after each operation
    assert beside < TOKENS * VOCABULARY * 4  # one copy of all logits
    assert most_alive(read) <= most_alive(backbone) + beside + 2 * TOKENS * 32 * 4
    assert len(passes) == 2  # one here, one in `backbone`


def test_the_loss_of_a_row_needs_no_more_for_more_trained_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    words, length = 128_256, 400
    model = _model("llama", torch.bfloat16, vocab_size=words, max_position_embeddings=length)
    ids = _ids(length)[0].tolist()
    few, all_of_them = (
        most_alive(lambda labels=labels: row_losses(model, [{"input_ids": ids, "labels": labels}]))
        for labels in ([-100] * (length - 140) + ids[-140:], ids)
    )
    assert all_of_them < 1.05 * few
    assert all_of_them < 2.5 * MOST_BYTES + 2**20  # a logit in bf16, in fp32, and its logarithm: 10 bytes
    assert all_of_them < 10 * length * words / 3  # what all logits at once would take


def test_a_row_without_trained_tokens_is_not_read() -> None:
    def model(**_: Any) -> Any:
        raise AssertionError("asked")

    model.device = "cpu"  # type: ignore[attr-defined]
    (loss,) = row_losses(model, [{"input_ids": [5, 6, 7], "labels": [-100] * 3}])
    assert (loss.total, loss.tokens) == (0.0, 0)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_rows_are_read_as_well(length: int) -> None:
    model, ids = _model("llama"), _ids(length)
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0]
    torch.testing.assert_close(_collected(model, ids, torch.arange(length), most_bytes=1), whole)


def test_a_model_that_names_no_backbone_gives_the_same() -> None:
    whole = torch.randn(9, VOCABULARY)
    positions = torch.tensor([2, 5, 8])
    found = _collected(lambda **_: SimpleNamespace(logits=whole[None]), _ids(9), positions)
    assert torch.equal(found, whole[positions])


def test_a_model_whose_logits_come_from_elsewhere_gives_the_same() -> None:
    model, ids, positions = _model("llama"), _ids(), torch.tensor([1, 40, 64])
    with torch.no_grad():
        whole = model(input_ids=ids).logits
    model.forward = lambda input_ids, **_: (model.base_model(input_ids), SimpleNamespace(logits=whole))[1]
    assert torch.equal(_collected(model, ids, positions), whole[0, positions])


def test_an_adapter_is_used_and_left_out_as_the_model_stands() -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj", "lm_head"]
    model = get_peft_model(_model("granite"), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ids, positions = _ids(), torch.tensor([7])
    with torch.no_grad():
        tuned = model(input_ids=ids).logits[0]
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0]
    assert not torch.allclose(tuned, base)
    torch.testing.assert_close(_collected(model, ids, positions), tuned[positions])
    with model.disable_adapter():
        torch.testing.assert_close(_collected(model, ids, positions), base[positions])


def test_memory_that_runs_out_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = _model("llama"), _ids()
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0]
    head, calls = model.lm_head.forward, []

    def short_of_memory(states: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return head(states)

    with monkeypatch.context() as once:
        once.setattr(model.lm_head, "forward", short_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            _collected(model, ids, torch.arange(TOKENS), most_bytes=1)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits[0], whole)
