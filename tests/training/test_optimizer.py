"""Parameter groups: each trained parameter once, and magnitudes never at B's rate."""

from __future__ import annotations

import copy

import pytest
import torch

from qdora_fast.training.optimizer import build_optimizer, parameter_groups

OPTIMIZERS = ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]


def _layer(out: int = 8192, r: int = 16, width: int = 512) -> list[tuple[str, torch.nn.Parameter]]:
    """The three parameters of one DoRA layer, large enough for 8-bit state, and one frozen weight."""
    torch.manual_seed(0)
    path = "base_model.model.model.layers.0.mlp.up_proj"
    return [
        (f"{path}.base_layer.weight", torch.nn.Parameter(torch.randn(out, width), requires_grad=False)),
        (f"{path}.lora_A.default.weight", torch.nn.Parameter(torch.randn(r, width))),
        (f"{path}.lora_B.default.weight", torch.nn.Parameter(torch.zeros(out, r))),
        (f"{path}.lora_magnitude_vector.default.weight", torch.nn.Parameter(torch.full((out,), 22.6))),
    ]


def _by_name(groups: list[dict]) -> dict[str, dict]:
    return {group["name"]: group for group in groups}


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    named = [*_layer(), ("lm_head.modules_to_save.default.weight", torch.nn.Parameter(torch.zeros(4, 4)))]
    named.append(("norm.modules_to_save.default.bias", torch.nn.Parameter(torch.zeros(4))))
    groups = parameter_groups(named, learning_rate=1e-3, weight_decay=0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for _, p in named if p.requires_grad)
    assert set(_by_name(groups)) == {"A", "B", "magnitude", "other", "other, not decayed"}


def test_lora_plus_raises_the_rate_of_b_alone() -> None:
    groups = _by_name(parameter_groups(_layer(), learning_rate=1e-3, loraplus_ratio=16, weight_decay=0.1))
    assert groups["A"]["lr"] == 1e-3
    assert groups["B"]["lr"] == 16e-3
    assert groups["magnitude"]["lr"] == 1e-3
    assert (groups["A"]["weight_decay"], groups["B"]["weight_decay"], groups["magnitude"]["weight_decay"]) == (
        0.1,
        0.1,
        0,
    )


def test_the_usual_lora_plus_rule_would_raise_the_magnitudes_too() -> None:
    """PEFT's own LoRA+ puts one-dimensional parameters with B; ours must differ from it, and does."""
    from peft.optimizers import create_loraplus_optimizer

    model = _peft_dora_model()
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    magnitude = next(p for name, p in model.named_parameters() if "lora_magnitude_vector" in name)
    rate = next(g["lr"] for g in theirs.param_groups if any(p is magnitude for p in g["params"]))
    assert rate == pytest.approx(16e-3)
    ours = _by_name(parameter_groups(model.named_parameters(), learning_rate=1e-3, loraplus_ratio=16))
    assert ours["magnitude"]["lr"] == 1e-3
    assert any(p is magnitude for p in ours["magnitude"]["params"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_of_tokens_have_as_rate_no_decay_and_32_bit_state(name: str) -> None:
    rows = torch.nn.Parameter(torch.ones(64, 512))
    path = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    groups = parameter_groups([*_layer(), (path, rows)], learning_rate=1e-3, loraplus_ratio=16, weight_decay=0.5)
    tokens = _by_name(groups)["tokens"]
    assert (tokens["params"], tokens["lr"], tokens["weight_decay"]) == ([rows], 1e-3, 0)
    optimizer = build_optimizer(name, groups)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {value.dtype for value in optimizer.state[rows].values() if torch.is_tensor(value)} == {torch.float32}
    torch.testing.assert_close(rows.detach(), torch.full_like(rows, 1 - 1e-3))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter is trained"):
        parameter_groups([_layer()[0]], learning_rate=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_magnitudes_keep_32_bit_state_and_their_own_rate(name: str) -> None:
    layer = _layer()
    groups = parameter_groups(layer, learning_rate=1e-3, loraplus_ratio=16, weight_decay=0.5)
    optimizer = build_optimizer(name, groups)
    before = {key: parameter.detach().clone() for key, parameter in layer}
    for _, parameter in layer[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {key.split(".")[-3]: (parameter - before[key]).abs().mean().item() for key, parameter in layer[1:]}
    # AdamW's first step has the size of the learning rate; a decayed magnitude would move by 1e-3 × 0.5 × 22.6 more.
    assert moved["lora_magnitude_vector"] == pytest.approx(1e-3, rel=0.02)
    assert moved["lora_B"] == pytest.approx(16e-3, rel=0.02)
    state = optimizer.state[layer[3][1]]
    kept = [value for value in state.values() if isinstance(value, torch.Tensor) and value.shape == layer[3][1].shape]
    assert len(kept) == 2
    assert all(value.dtype == torch.float32 for value in kept)
    if name.endswith("8bit"):
        assert any(v.dtype == torch.uint8 for v in optimizer.state[layer[2][1]].values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_exactly(name: str) -> None:
    def steps(layer: list, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            for _, parameter in layer[1:]:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    whole = _layer()
    settings = {"learning_rate": 1e-3, "loraplus_ratio": 16.0, "weight_decay": 0.01}
    optimizer = build_optimizer(name, parameter_groups(whole, **settings))
    steps(whole, optimizer, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for _, p in whole]
    steps(whole, optimizer, range(3, 6))

    resumed = _layer()
    with torch.no_grad():
        for (_, parameter), weight in zip(resumed, weights, strict=True):
            parameter.copy_(weight)
    again = build_optimizer(name, parameter_groups(resumed, **settings))
    again.load_state_dict(saved)
    steps(resumed, again, range(3, 6))
    for (key, expected), (_, got) in zip(whole, resumed, strict=True):
        assert torch.equal(expected, got), key
    assert [group["lr"] for group in again.param_groups] == pytest.approx([1e-3, 16e-3, 1e-3])


def _peft_dora_model() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    return get_peft_model(model, LoraConfig(r=4, target_modules=["0", "1"], use_dora=True))
