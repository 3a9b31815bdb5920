"""PEFT's layers with our forward: what is not the plain case is PEFT's own, and so is everything but forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from tiny_models import (
    adapt,
    bound,
    exact_layer,
    loss_and_gradients,
    move,
    nf4_linear,
    one_layer,
    quantize,
    random_x,
    run_layer,
    tiny_lm,
    tokens,
    twin,
)
from torch import nn

from qdora_fast.engine import fallbacks, install, uninstall
from qdora_fast.engine.frozen import Nf4
from qdora_fast.engine.patch import forget_fallbacks


def _second_adapter(model: Any, **how: Any) -> None:
    model.add_adapter("other", LoraConfig(**{"r": 6, "target_modules": ["0"], "use_dora": True, **how}))
    move(model, seed=7)


def _two_active(model: Any, layer: Any) -> None:
    layer.set_adapter(["default", "other"])


STATES: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "two adapters": (_two_active, "2 active adapters"),
    "merged": (lambda model, layer: model.merge_adapter(["default"]), "adapter merged"),
    "disabled": (lambda model, layer: model.base_model.disable_adapter_layers(), "adapters disabled"),
}


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_what_is_not_the_plain_case_is_pefts_own_forward(state: str, nf4: bool) -> None:
    change, reason = STATES[state]
    results = []
    for fused in (False, True):
        model, layer = one_layer(64, 128, nf4=nf4)
        _second_adapter(model)
        if fused:
            install(model)
            layer(random_x(2, 128))
            assert fallbacks(model) == {}
        change(model, layer)
        results.append(layer(random_x(4, 128)))
    assert torch.equal(*results)
    assert fallbacks(model) == {reason: 1}
    forget_fallbacks(model)
    assert fallbacks(model) == {}


@pytest.mark.parametrize("nf4", [False, True])
def test_merge_and_unmerge_and_the_disable_context(nf4: bool) -> None:
    model, layer = one_layer(64, 128, nf4=nf4)
    install(model)
    x = random_x(4, 128)
    y = layer(x)
    with model.disable_adapter():
        base = layer(x)
    assert not torch.allclose(base, y) and torch.equal(layer(x), y)
    model.merge_adapter()
    torch.testing.assert_close(layer(x), y, rtol=0.3 if nf4 else 1e-4, atol=0.3 if nf4 else 1e-5)
    model.unmerge_adapter()
    ours = layer(x)  # of the weight that unmerging left, which in NF4 is another one
    torch.testing.assert_close(ours.double(), exact_layer(layer, x)["y"], rtol=1e-4, atol=1e-5)
    if not nf4:
        torch.testing.assert_close(ours, y, rtol=1e-4, atol=1e-5)


def test_merge_and_unload_of_a_fused_model_is_pefts() -> None:
    ours, theirs = tiny_lm(nf4=False), tiny_lm(nf4=False)
    install(ours)
    ours(input_ids=tokens())
    merged, expected = ours.merge_and_unload(), theirs.merge_and_unload()
    assert torch.equal(merged(input_ids=tokens()).logits, expected(input_ids=tokens()).logits)


def test_one_adapter_per_row_of_the_batch_is_pefts() -> None:
    model, layer = one_layer(64, 128, use_dora=False)
    _second_adapter(model, use_dora=False)
    x, names = random_x(3, 128), ["default", "other", "__base__"]
    model.eval()
    expected = layer(x, adapter_names=names)
    install(model)
    assert torch.equal(layer(x, adapter_names=names), expected)
    assert fallbacks(model) == {"extra arguments": 1}


def test_an_adapter_with_a_bias_is_skipped_with_the_reason() -> None:
    model, layer = one_layer(64, 128, use_dora=False, lora_bias=True)
    report = install(model)
    assert report.layers == 0 and type(layer) is lora.Linear
    assert "bias of its own" in next(iter(report.skipped.values()))


def test_fp4_is_skipped_with_the_reason_and_runs_on() -> None:
    holder = quantize(nn.Sequential(nn.Linear(128, 64)), quant_type="fp4")
    model = move(adapt(holder, targets=["0"]))
    layer, x = model.base_model.model[0], random_x(3, 128)
    expected = layer(x)
    report = install(model)
    assert report.skipped == {"base_model.model.0": "its weight is fp4, not nf4"}
    assert torch.equal(layer(x), expected) and type(layer) is lora.Linear4bit


def test_a_base_weight_that_is_trained_is_pefts() -> None:
    model, layer = one_layer()
    install(model)
    layer.base_layer.weight.requires_grad_(True)
    x = random_x(3, 40)
    layer(x).sum().backward()
    assert layer.base_layer.weight.grad is not None
    assert fallbacks(model) == {"its base weight is trained": 1}
    assert install(model).skipped == {"base_model.model.0": "its base weight is trained"}


def test_an_adapter_added_later_with_a_bias_is_pefts() -> None:
    model, layer = one_layer(64, 128, use_dora=False)
    install(model)
    _second_adapter(model, use_dora=False, lora_bias=True)
    layer.lora_B["other"].bias.data.fill_(1.0)
    model.set_adapter("other")
    x = random_x(3, 128)
    ours = layer(x)
    uninstall(model)
    torch.testing.assert_close(ours, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["nf4 dora", "nf4 lora", "dense dora", "dense lora"])
def test_the_result_has_pefts_type(x_dtype: torch.dtype, base: torch.dtype, kind: str) -> None:
    if "dense" in kind:
        x_dtype = base  # PyTorch refuses mixed types
    model, layer = one_layer(64, 128, dtype=base, nf4="nf4" in kind, use_dora="dora" in kind)
    x = random_x(4, 128, dtype=x_dtype)
    theirs, exact = run_layer(layer, x), exact_layer(layer, x)
    expected = layer(x).dtype
    install(model)
    assert layer(x).dtype == expected
    bound(run_layer(layer, x), exact, theirs, 1e-5 if x_dtype == base == torch.float32 else 1.5e-2)


def test_a_float32_input_of_a_layer_that_computes_in_bf16() -> None:
    model, layer = one_layer(64, 128, dtype=torch.float32, nf4=True)
    layer.base_layer.compute_dtype, layer.base_layer.compute_type_is_set = torch.bfloat16, True
    x = random_x(4, 128)
    theirs, exact = run_layer(layer, x), exact_layer(layer, x)
    install(model)
    assert layer(x).dtype == torch.float32
    bound(run_layer(layer, x), exact, theirs, 1.5e-2)


@pytest.mark.parametrize("used", [False, True])
def test_8_bit_layers(used: bool) -> None:
    """bitsandbytes moves the scales from the weight to the layer's state when it is first used."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    torch.manual_seed(0)
    linear = nn.Linear(128, 64)
    layer8 = Linear8bitLt(128, 64, has_fp16_weights=False)
    layer8.weight = Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    layer8.bias.data = linear.bias.data.clone()
    holder = nn.Sequential(layer8).to("cpu")
    holder.is_loaded_in_8bit = True
    if layer8.weight.dtype != torch.int8:
        pytest.skip("bitsandbytes does not quantise to 8 bits on this device")
    model = move(adapt(holder, targets=["0"]))
    layer, x = model.base_model.model[0], random_x(6, 128)
    theirs, exact = run_layer(twin(model).base_model.model[0], x), exact_layer(twin(model).base_model.model[0], x)
    if used:
        run_layer(layer, x)
    report = install(model)
    assert report.layers == 1 and isinstance(layer, lora.Linear8bitLt), report.skipped
    bound(run_layer(layer, x), exact, theirs, 1e-5)


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("how", ["data", "module", "in place"])
def test_a_base_weight_that_is_replaced_is_noticed(nf4: bool, how: str) -> None:
    model, layer = one_layer(64, 128, nf4=nf4)
    install(model)
    x = random_x(3, 128)
    before = layer(x)
    new = nn.Linear(128, 64, bias=False)
    if how == "module":
        layer.base_layer = nf4_linear(new) if nf4 else new.requires_grad_(False)
    elif nf4:
        made = nf4_linear(new)
        layer.base_layer.weight.quant_state = made.weight.quant_state
        if how == "data":
            layer.base_layer.weight.data = made.weight.data
        else:
            layer.base_layer.weight.copy_(made.weight)
    elif how == "data":
        layer.base_layer.weight.data = new.weight.data
    else:
        layer.base_layer.weight.copy_(new.weight.detach())
    y = layer(x)
    assert not torch.allclose(y, before)
    torch.testing.assert_close(y.double(), exact_layer(layer, x)["y"], rtol=1e-4, atol=1e-5)


def test_the_model_stays_pefts(tmp_path: Path) -> None:
    model = tiny_lm()
    state, names = {k: v.clone() for k, v in model.state_dict().items()}, [n for n, _ in model.named_modules()]
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    kind = type(layer)
    install(model)
    assert type(layer) is not kind and isinstance(layer, kind) and isinstance(layer, lora.LoraLayer)
    now = model.state_dict()
    assert [n for n, _ in model.named_modules()] == names and list(now) == list(state)
    assert all(torch.equal(now[key], value) for key, value in state.items())


def test_saved_and_opened_again_it_gives_the_same(tmp_path: Path) -> None:
    model = tiny_lm()
    install(model, resident="off")
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True).step()
    logits = model(input_ids=tokens()).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = tiny_lm(fresh=True).unload()
    opened = PeftModel.from_pretrained(base, str(tmp_path))
    by_peft = opened(input_ids=tokens()).logits
    assert install(opened, resident="off").magnitudes_set == 0
    assert torch.equal(opened(input_ids=tokens()).logits, logits)
    torch.testing.assert_close(by_peft, logits, rtol=1e-4, atol=1e-4)


def test_a_copy_is_a_model_of_its_own() -> None:
    model = tiny_lm()
    install(model)
    expected = loss_and_gradients(model)
    copied = copy.deepcopy(model)
    for got, wanted in zip(loss_and_gradients(copied)[1].values(), expected[1].values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    for parameter in copied.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 2
    assert not torch.equal(copied(input_ids=tokens()).logits, model(input_ids=tokens()).logits)
    assert torch.equal(loss_and_gradients(model)[0], expected[0])
    uninstall(copied)
    assert fallbacks(model) == {} and install(copied).layers == 14


def test_generation_gives_the_same_tokens_and_takes_no_norm_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm().eval()
    settings = {"input_ids": tokens(2, 5), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**settings)
    install(model)
    taken, real = [], Nf4.norms
    monkeypatch.setattr(Nf4, "norms", lambda self, *a, **k: taken.append(1) or real(self, *a, **k))
    assert torch.equal(model.generate(**settings), expected)
    assert len(taken) <= 14 and fallbacks(model) == {}
    assert torch.equal(model.generate(**settings), expected) and len(taken) <= 14


def test_a_layer_type_that_is_not_supported_is_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.line = nn.Embedding(9, 16), nn.Linear(16, 16)

    model = get_peft_model(Two(), LoraConfig(r=2, target_modules=["table", "line"]))
    report = install(model)
    assert report.layers == 1 and report.adapted == 2
    assert report.skipped == {"base_model.model.table": "a layer of type Embedding is not supported"}
