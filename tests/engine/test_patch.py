"""Install and uninstall: what the report says is what happened, and nothing remains of it afterwards."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
import torch
from tiny_models import adapt, close, loss_and_gradients, move, nf4_linear, one_layer, parameters_of, tiny_lm
from torch import nn

from qdora_fast.engine import install, uninstall
from qdora_fast.engine.patch import EngineError, fallbacks, residency


def _picture(model: Any) -> dict[str, Any]:
    """What install touches: classes, attributes of instances, flags of bitsandbytes, and every tensor."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = {k for k in module.__dict__ if not k.startswith("_backward") and k not in ("_parameters", "_buffers")}
        seen[name] = (type(module), own, module.__dict__.get("forward"))
        seen[f"{name} repacks"] = getattr(module, "support_avx512bf16_for_cpu", None)
    return seen | {f"{n} value": (p._version, p.data_ptr()) for n, p in model.named_parameters() if not p.requires_grad}


def _values(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("impl", ["auto", "torch", "reference", "peft", "off"])
def test_uninstall_leaves_nothing_behind(impl: str, fresh: bool) -> None:
    model = tiny_lm(dtype=torch.bfloat16, fresh=fresh)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    model.base_model.model.model.layers[0].mlp.gate_proj.base_layer.support_avx512bf16_for_cpu = False
    before, values = _picture(model), _values(model)
    install(model, impl=impl)
    loss_and_gradients(model)
    model.zero_grad()
    assert _same(_values(model), values) == (not fresh or impl == "off")  # PEFT's magnitudes were off in bf16
    uninstall(model)
    assert _picture(model) == before
    assert _same(_values(model), values)


def test_trained_magnitudes_stay_trained() -> None:
    model = tiny_lm(fresh=True)
    install(model)
    loss_and_gradients(model)
    torch.optim.SGD([p for n, p in model.named_parameters() if "magnitude" in n], lr=0.1).step()
    trained = _values(model)
    uninstall(model)
    assert _same(_values(model), trained)


def test_a_magnitude_away_from_the_norm_is_not_touched() -> None:
    """B = 0 alone does not make an adapter fresh: a magnitude may have been set on purpose."""
    model, layer = one_layer(64, 128, nf4=True, fresh=True)
    m = parameters_of(layer)["m"]
    m.data *= 1.5
    before = m.detach().clone()
    assert install(model).magnitudes_set == 0 and torch.equal(m, before)


def test_the_report_of_a_whole_model() -> None:
    model = tiny_lm(fresh=True)
    report = install(model, resident=1.0)
    assert (report.impl, report.layers, report.adapted, report.skipped) == ("torch", 14, 14, {})
    assert report.blocks["mlp"] == 2 and report.magnitudes_set == 14 and report.rows_of_zeros == 0
    assert report.resident_layers == 14 and report.resident_bytes == residency(model).bytes
    assert json.loads(json.dumps(report.as_dict()))["layers"] == 14
    said = "\n".join(report.lines())
    assert "torch: 14 of 14 layers fused, 2 mlp blocks" in said and "of 14 layers between products" in said
    loss_and_gradients(model)
    assert fallbacks(model) == {}


def _partly(**how: Any) -> Any:
    """Three layers, one of them in fp4."""
    holder = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    for place, kind in enumerate(("nf4", "fp4", "nf4")):
        holder[place] = nf4_linear(holder[place], quant_type=kind)
    holder.is_loaded_in_4bit = True
    return adapt(holder, targets=["0", "1", "2"], **how)


def test_what_is_skipped_is_said_once_with_its_reason() -> None:
    report = install(_partly())
    assert (report.layers, report.adapted) == (2, 3)
    assert report.skipped == {"base_model.model.1": "its weight is fp4, not nf4"}
    assert "left to PEFT: 1 × its weight is fp4, not nf4 (first: base_model.model.1)" in report.lines()


def test_require_fails_when_something_was_skipped_and_leaves_the_model_alone() -> None:
    model = _partly()
    before, values = _picture(model), _values(model)
    with pytest.raises(EngineError, match=r"engine.require: .*fp4"):
        install(model, require=True)
    assert _picture(model) == before and _same(_values(model), values)
    assert install(tiny_lm(), require=True).layers == 14


def test_a_model_without_adapters_is_an_error() -> None:
    with pytest.raises(EngineError, match="no LoRA layers"):
        install(nn.Sequential(nn.Linear(4, 4)))


def test_triton_is_refused_on_a_cpu_and_the_model_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = tiny_lm(fresh=True)
    before, values = _picture(model), _values(model)
    with pytest.raises(EngineError, match=r"engine.impl: triton.*(CUDA|triton, which is not installed)"):
        install(model, impl="triton")
    assert _picture(model) == before and _same(_values(model), values)


@pytest.mark.parametrize("impl", ["torch", "reference", "peft", "off"])
def test_every_implementation_is_the_same_function(impl: str) -> None:
    model = tiny_lm()
    expected = loss_and_gradients(model)
    report = install(model, impl=impl)
    assert report.impl == impl
    assert report.layers == (0 if impl == "off" else 14)
    assert bool(report.blocks.get("mlp")) == (impl == "torch")
    close(loss_and_gradients(model), expected, 2e-5)


def test_peft_gets_exact_magnitudes_and_nothing_else() -> None:
    model, other = tiny_lm(dtype=torch.bfloat16, fresh=True), tiny_lm(dtype=torch.bfloat16, fresh=True)
    classes = [type(module) for module in model.modules()]
    assert install(model, impl="peft").magnitudes_set == 14
    assert [type(module) for module in model.modules()] == classes
    install(other, impl="torch")
    assert _same(_values(model), _values(other))


@pytest.mark.parametrize("form", ["merged", "folded", "auto"])
def test_every_form_is_the_same_function(form: str) -> None:
    model = tiny_lm()
    expected = loss_and_gradients(model)
    install(model, form=form, resident="off")
    close(loss_and_gradients(model), expected, 2e-5)


@pytest.mark.parametrize("peft_dropout", [True, False])
@pytest.mark.parametrize("dora", [True, False])
def test_dropout_in_pefts_form_draws_pefts_random_numbers(peft_dropout: bool, dora: bool) -> None:
    model = tiny_lm(use_dora=dora, lora_dropout=0.2).train()
    torch.manual_seed(0)
    expected = loss_and_gradients(model)
    install(model, peft_dropout=peft_dropout)
    torch.manual_seed(0)
    ours = loss_and_gradients(model)
    if peft_dropout or not dora:
        close(ours, expected, 2e-5)
    else:
        assert not torch.allclose(ours[0], expected[0], rtol=1e-6)
    model.eval()
    silent = loss_and_gradients(model)
    uninstall(model)
    close(silent, loss_and_gradients(model), 2e-5)


def test_installing_twice_is_installing_once() -> None:
    model = tiny_lm(fresh=True)
    before = _values(model)
    first, expected = install(model), loss_and_gradients(model)
    second = install(model)
    assert second == first
    close(loss_and_gradients(model), expected, 0)
    uninstall(model)
    uninstall(model)
    assert _same(_values(model), before)


def test_two_models_in_a_process_are_independent() -> None:
    one, two = tiny_lm(), tiny_lm()
    expected = loss_and_gradients(two)
    install(one)
    assert not any(hasattr(module, "fused") for module in two.modules())
    close(loss_and_gradients(two), expected, 0)
    install(two)
    fused = loss_and_gradients(two)
    uninstall(one)
    close(loss_and_gradients(two), fused, 0)


@pytest.mark.parametrize("zero_rows", [(), (2, 5)], ids=["", "rows of zeros"])
def test_a_model_that_is_thrown_away_is_freed(zero_rows: tuple[int, ...]) -> None:
    """With its kept W' and all that they refer to; nobody has to uninstall before."""
    model, layer = one_layer(64, 128, nf4=True, zero_rows=zero_rows)
    install(model, resident=1.0)
    model(torch.ones(2, 128)).sum().backward()
    alive = [
        weakref.ref(thing) for thing in (layer.fused.slot, layer.lora_A["default"].weight, layer.base_layer.weight)
    ]
    del model, layer
    gc.collect()
    assert [ref() is None for ref in alive] == [True, True, True]


def test_torch_compile_gives_the_same() -> None:
    torch._dynamo.reset()
    model = tiny_lm(sizes={"num_hidden_layers": 1})
    install(model)
    expected = loss_and_gradients(model)
    compiled = torch.compile(model, backend="aot_eager")
    close(loss_and_gradients(compiled), _renamed(expected), 1e-5)
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True).step()
    close(loss_and_gradients(compiled), _renamed(loss_and_gradients(model)), 1e-5)
    assert fallbacks(model) == {}
    torch._dynamo.reset()


def _renamed(result: Any) -> Any:
    return result[0], {f"_orig_mod.{name}": gradient for name, gradient in result[1].items()}


def test_a_model_whose_second_half_is_frozen() -> None:
    """Layers beyond the adapters, and adapters on some layers alone, as `layers_to_transform` makes them."""
    model = move(tiny_lm(fresh=True, layers_to_transform=[0], targets=["q_proj", "down_proj"]))
    expected = loss_and_gradients(model)
    report = install(model)
    assert (report.layers, report.blocks["mlp"]) == (2, 0)
    close(loss_and_gradients(model), expected, 2e-5)


def test_magnitudes_are_set_for_every_adapter() -> None:
    from peft import LoraConfig

    model, layer = one_layer(64, 128, dtype=torch.bfloat16, nf4=True, fresh=True)
    model.add_adapter("other", LoraConfig(r=2, use_dora=True, target_modules=["0"]))
    before = _values(model)
    install(model)
    one, two = (parameters_of(layer, adapter)["m"] for adapter in ("default", "other"))
    assert torch.equal(one, two) and not torch.equal(
        one, before["base_model.model.0.lora_magnitude_vector.default.weight"]
    )
    uninstall(model)
    assert _same(_values(model), before)
