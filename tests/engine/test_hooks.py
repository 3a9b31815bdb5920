"""Whole MLPs on stock architectures: PEFT's loss and gradients, and an own forward where ours does not fit."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, SIZES, adapt, close, loss_and_gradients, move, quantize, random_x, tiny_lm, tokens
from torch import Tensor, nn

from qdora_fast.engine import fallbacks, install, uninstall
from qdora_fast.engine.hooks import activation_of

ACTIVATION = {"gemma": "gelu_tanh", "gemma2": "gelu_tanh"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dora", [True, False])
def test_every_architecture_trains_as_pefts(family: str, dora: bool) -> None:
    model = tiny_lm(family, use_dora=dora)
    expected = loss_and_gradients(model)
    report = install(model, require=True)
    layers, mlps = (8, 0) if family == "phi3" else (14, 2)  # phi3 has one gate_up_proj
    assert (report.layers, report.blocks["mlp"], report.skipped) == (layers, mlps, {})
    close(loss_and_gradients(model), expected, 2e-5)
    assert fallbacks(model) == {}
    uninstall(model)
    close(loss_and_gradients(model), expected, 0)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpointing_a_whole_model(use_reentrant: bool, dtype: torch.dtype) -> None:
    model = tiny_lm(dtype=dtype).train()
    install(model)
    expected = loss_and_gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    close(loss_and_gradients(model), expected, 0)


def test_autocast_of_a_whole_model_is_no_worse_than_pefts() -> None:
    model = tiny_lm()
    exact = loss_and_gradients(model)
    results = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(loss_and_gradients(model))
        install(model)
    for name, gradient in exact[1].items():
        theirs, ours = (float((result[1][name] - gradient).norm() / gradient.norm()) for result in results)
        assert ours <= theirs + 0.02, f"{name}: {ours:.3g}, PEFT {theirs:.3g}"


def test_the_activation_is_found_by_its_values() -> None:
    from transformers.activations import ACT2FN

    expected = {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "relu": None,
        "quick_gelu": None,
        "relu2": None,
        "tanh": None,
    }
    assert {name: activation_of(ACT2FN[name]) for name in expected} == expected
    assert activation_of(lambda x, more: x * more) is None


class Mlp(nn.Module):
    """A gated MLP of its own kind."""

    def __init__(self, kind: str, bias: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.gate_proj, self.up_proj = (nn.Linear(64, 128, bias=bias) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(128, 64, bias=bias), nn.ReLU() if kind == "relu" else nn.SiLU()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """By kind."""
        gate, up = self.act_fn(self.gate_proj(x)), self.up_proj(x)
        if self.kind.startswith("clamped"):
            gate = gate.clamp(max=7.0 if self.kind == "clamped high" else 0.1)
        if self.kind == "residual":
            return x + self.down_proj(gate * up)
        return self.down_proj(gate * up) * scale


def _model(kind: str, *, bias: bool = False, fresh: bool = False, **lora: Any) -> Any:
    torch.manual_seed(0)
    model = quantize(nn.ModuleDict({"mlp": Mlp(kind, bias)}))
    model.forward = types.MethodType(lambda self, x, **how: self["mlp"](x, **how), model)
    adapted = adapt(model, targets=["gate_proj", "up_proj", "down_proj"], **lora)
    return adapted if fresh else move(adapted)


def _result(model: Any, x: Tensor, **how: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    leaf = x.detach().clone().requires_grad_()
    y = model.base_model.model["mlp"](leaf, **how)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(9)))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return y.detach().norm(), {**gradients, "x": leaf.grad, "y": y.detach()}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", ["clamped", "residual", "relu"])
def test_an_mlp_that_computes_something_else_keeps_its_own_forward(kind: str, fresh: bool) -> None:
    model, x = _model(kind, fresh=fresh), random_x(4, 64)
    expected = _result(model, x)
    report = install(model)
    assert (report.layers, report.blocks["mlp"]) == (3, 0)
    why = report.skipped["base_model.model.mlp"]
    assert "fused one by one" in why and ("ReLU" if kind == "relu" else "something else") in why
    close(_result(model, x), expected, 2e-5)
    assert "forward" not in model.base_model.model["mlp"].__dict__


def test_a_difference_that_only_large_values_show_is_found() -> None:
    """Clamps at 7 or 10, which several newer families have."""
    model, x = _model("clamped high"), 50 * random_x(4, 64).detach()
    expected = _result(model, x)
    install(model)
    close(_result(model, x), expected, 2e-5)


@pytest.mark.parametrize("state", ["disabled", "merged", "dropout"])
def test_an_mlp_of_its_own_kind_is_found_whatever_the_state_at_install(state: str) -> None:
    model, x = _model("clamped", lora_dropout=0.2 if state == "dropout" else 0.0), random_x(4, 64)
    if state == "disabled":
        model.base_model.disable_adapter_layers()
    if state == "merged":
        model.merge_adapter()
    install(model.train())
    model.eval()
    model.unmerge_adapter() if state == "merged" else model.base_model.enable_adapter_layers()
    fused = _result(model, x)
    uninstall(model)
    close(fused, _result(model, x), 2e-5)


def test_install_draws_no_random_numbers() -> None:
    model = _model("plain", lora_dropout=0.3).train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    install(model)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("case", ["arguments", "bias", "dropout", "another input type", "a layer disabled"])
def test_calls_the_block_is_not_written_for_are_its_own(case: str) -> None:
    model = _model("plain", bias=case == "bias", lora_dropout=0.3 if case == "dropout" else 0.0).train()
    x, how = random_x(4, 64), {"scale": 2.0} if case == "arguments" else {}
    if case == "another input type":
        x = random_x(4, 64, dtype=torch.bfloat16)
    if case == "a layer disabled":
        model.base_model.model["mlp"].up_proj.enable_adapters(False)
    torch.manual_seed(1)
    expected = _result(model, x, **how)
    assert install(model, peft_dropout=True).blocks["mlp"] == 1
    torch.manual_seed(1)
    close(_result(model, x, **how), expected, 2e-2 if case == "another input type" else 2e-5)


def test_a_forward_that_somebody_else_set_is_kept_and_given_back() -> None:
    """Accelerate and others set `forward` on instances; ours goes on top and comes off again."""
    model = _model("plain")
    mlp = model.base_model.model["mlp"]
    theirs = types.MethodType(lambda self, x: Mlp.forward(self, x), mlp)
    mlp.forward = theirs
    expected = _result(model, random_x(4, 64))
    assert install(model).blocks["mlp"] == 1 and mlp.__dict__["forward"] is not theirs
    close(_result(model, random_x(4, 64)), expected, 2e-5)
    uninstall(model)
    assert mlp.__dict__["forward"] is theirs


def test_a_forward_that_somebody_else_set_and_that_differs_keeps_its_place() -> None:
    model = _model("plain")
    mlp = model.base_model.model["mlp"]
    mlp.forward = types.MethodType(lambda self, x: 3 * Mlp.forward(self, x), mlp)
    expected = _result(model, random_x(4, 64))
    assert install(model).blocks["mlp"] == 0
    close(_result(model, random_x(4, 64)), expected, 2e-5)


def test_partly_adapted_mlps_are_not_hooked() -> None:
    model = move(tiny_lm(fresh=True, targets=["gate_proj", "down_proj", "q_proj"]))
    expected = loss_and_gradients(model)
    report = install(model)
    assert (report.layers, report.blocks["mlp"]) == (6, 0)
    close(loss_and_gradients(model), expected, 2e-5)


def test_after_merging_and_unloading_the_model_runs_on() -> None:
    """PEFT takes the LoRA layers out of the MLPs that we have hooked."""
    model = tiny_lm(nf4=False)
    install(model)
    expected = model(input_ids=tokens()).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)


def test_unsloths_hooks_are_taken_and_given_back() -> None:
    """Its families call `apply_qkv` and `apply_o` of the attention; the real thing runs in unsloth_fast_path.py."""
    model = tiny_lm()
    attention = model.base_model.model.model.layers[0].self_attn

    def theirs(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def their_o(self: Any, x: Tensor) -> Tensor:
        return self.o_proj(x)

    attention.apply_qkv, attention.apply_o = theirs, their_o
    x = random_x(2, 5, SIZES["hidden_size"])
    expected = [y.detach() for y in (*theirs(attention, x), their_o(attention, x))]
    report = install(model)
    assert (report.blocks["qkv"], report.blocks["o"]) == (1, 1)
    q, k, v = attention.apply_qkv(attention, x)
    torch.testing.assert_close([q, k, v, attention.apply_o(attention, x)], expected, rtol=1e-4, atol=1e-5)
    upstream = [torch.randn(y.shape, generator=torch.Generator().manual_seed(9)) for y in (q, k, v)]
    leaves = [p for n, p in attention.named_parameters() if p.requires_grad and "o_proj" not in n]
    wanted = torch.autograd.grad(theirs(attention, x), [x, *leaves], upstream)
    q.data.mul_(3)  # RoPE, behind autograd's back
    k.data.add_(1)
    torch.testing.assert_close(torch.autograd.grad((q, k, v), [x, *leaves], upstream), wanted, rtol=1e-4, atol=1e-5)
    uninstall(model)
    assert attention.apply_qkv is theirs and attention.apply_o is their_o
