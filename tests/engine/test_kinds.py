"""Every kind of adapter and layer that PEFT knows, fused: the outputs and gradients are PEFT's, and what was left to it
is in the report with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from tiny_models import move, tiny_lm, tokens
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

from qdora_fast import fuse, unfuse
from qdora_fast.engine import fallbacks


class Net(nn.Module):
    """A layer of every kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 16)
        self.first = nn.Linear(16, 16)
        self.transposed = Conv1D(16, 16)
        self.filter = nn.Conv1d(16, 16, 1)
        self.square = nn.Conv2d(1, 1, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.shaped = parametrizations.weight_norm(nn.Linear(16, 16))
        self.last = nn.Linear(16, 8, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transposed(torch.tanh(self.first(self.table(ids))))
        x = self.square(self.filter(x.mT).mT[:, None])[:, 0]
        out: Tensor = self.last(torch.tanh(self.shaped(x + self.attention(x, x, x, need_weights=False)[0])))
        return out


IDS = torch.arange(10).view(2, 5)
LINEAR = ["first", "last"]
Make = Callable[[], Any]


def _lora(*targets: str, **how: Any) -> Make:
    return lambda: get_peft_model(_net(), LoraConfig(**{"r": 4, "target_modules": list(targets or LINEAR), **how}))


def _of(config: Any) -> Make:
    return lambda: get_peft_model(_net(), config)


def _net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def _two(**other: Any) -> Any:
    model = _lora(use_dora=True)()
    model.add_adapter("other", LoraConfig(**{"r": 2, "target_modules": ["first"], **other}))
    return model


def _mixed() -> Any:
    model = PeftMixedModel(_net(), LoraConfig(r=4, target_modules=LINEAR), "default")
    model.add_adapter("other", LoHaConfig(r=2, target_modules=["last"]))
    model.set_adapter(["default", "other"])
    return model


def _tied() -> Any:
    net = _net()
    net.last = nn.Linear(16, 12, bias=False)
    net.last.weight = net.table.weight
    return get_peft_model(net, LoraConfig(r=4, target_modules=LINEAR, use_dora=True))


def _half() -> Any:
    model = get_peft_model(_net(dtype=torch.bfloat16), LoraConfig(r=4, target_modules=LINEAR, use_dora=True))
    return model.to(torch.bfloat16)


KINDS: dict[str, tuple[Make, int, str]] = {
    "dora": (_lora(use_dora=True), 2, ""),
    "rslora and patterns": (_lora(use_rslora=True, rank_pattern={"last": 2}, alpha_pattern={"last": 3}), 2, ""),
    "dora with dropout": (_lora(use_dora=True, lora_dropout=0.3), 2, ""),
    "a head trained in full": (_lora("first", modules_to_save=["last"]), 1, ""),
    "tokens trained beside": (_lora(trainable_token_indices={"table": [1, 2]}), 2, ""),
    "tied weights": (_tied, 2, ""),
    "bfloat16": (_half, 2, ""),
    "orthogonal": (_lora(init_lora_weights="orthogonal"), 2, ""),
    "pissa": (_lora(init_lora_weights="pissa"), 2, ""),
    "olora": (_lora(init_lora_weights="olora"), 2, ""),
    "injected": (lambda: inject_adapter_in_model(LoraConfig(r=4, target_modules=LINEAR), _net()), 2, ""),
    "embeddings alone": (_lora("table"), 0, "a layer of type Embedding"),
    "dora embeddings": (_lora("table", use_dora=True), 0, "a layer of type Embedding"),
    "conv1d of transformers": (_lora("transposed", fan_in_fan_out=True), 0, "Conv1D"),
    "convolutions": (_lora("filter", "square"), 0, "a layer of type Conv2d"),
    "attention": (_lora("attention"), 1, "a layer of type MultiheadAttention"),
    "parametrized": (_lora("shaped", "first"), 1, "parametrization"),
    "a bias of its own": (_lora("first", lora_bias=True), 0, "bias of its own"),
    "target parameters": (_lora("last", target_parameters=["first.weight"]), 1, "ParamWrapper"),
    "adalora": (_of(AdaLoraConfig(r=4, target_modules=LINEAR, total_step=10)), 0, "SVDLinear"),
    "ia3": (_of(IA3Config(target_modules=LINEAR, feedforward_modules=[])), 0, "PEFT's ia3 method"),
    "vera": (_of(VeraConfig(r=4, target_modules=["first"])), 0, "PEFT's vera method"),
    "loha": (_of(LoHaConfig(r=4, target_modules=LINEAR)), 0, "PEFT's loha method"),
    "mixed": (_mixed, 2, "PEFT's loha method"),
    "two adapters": (_two, 2, ""),
    "two adapters, one with a bias": (lambda: _two(lora_bias=True), 1, "bias of its own"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_pefts(kind: str) -> None:
    make, layers, reason = KINDS[kind]
    theirs, ours = _moved(make()), _moved(make())
    report = fuse(ours, quiet=True, peft_dropout=True)
    assert report.layers == layers
    assert any(reason in why for why in report.skipped.values()) if reason else not report.skipped
    tolerance = {"rtol": 0.05, "atol": 0.05} if kind == "bfloat16" else {"rtol": 1e-4, "atol": 1e-5}
    for expected, found in zip(_outputs(theirs), _outputs(ours), strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def _moved(model: Any) -> Any:
    """Away from the start where every gradient is told from none."""
    return move(model)


def _outputs(model: Any) -> Iterator[Tensor]:
    """y, and the gradient of all that is trained, in its order."""
    torch.manual_seed(3)  # of dropout
    y = model(IDS)
    yield y
    y.square().sum().backward()
    for _, parameter in sorted(model.named_parameters()):
        if parameter.grad is not None:
            yield parameter.grad


CHANGES: dict[str, Callable[[Any], Any]] = {
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(),
    "deleted": lambda model: (_add(model), model.delete_adapter("default"), model.set_adapter("other")),
    "another, switched to": lambda model: (_add(model, use_dora=False), model.set_adapter("other")),
    "another, with a bias": lambda model: (_add(model, lora_bias=True), model.set_adapter("other")),
    "another of the same name": lambda model: (model.delete_adapter("default"), _add(model, "default", r=3)),
    "weighted": lambda model: (
        _add(model),
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum", "linear"),
        model.set_adapter("sum"),
    ),
    "a hook on the layer": lambda model: _hook(model.get_submodule("base_model.model.first")),
    "a hook on its base": lambda model: _hook(model.get_submodule("base_model.model.first.base_layer")),
    "unloaded": lambda model: model.unload(),
    "merged and unloaded": lambda model: model.merge_and_unload(),
}


def _add(model: Any, name: str = "other", **how: Any) -> None:
    torch.manual_seed(5)
    model.add_adapter(name, LoraConfig(**{"r": 4, "target_modules": LINEAR, **how}))
    move(model)


def _hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, arguments, y: y * 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
def test_what_happens_after_fusing_is_pefts(change: str) -> None:
    outputs = []
    for fused in (False, True):
        model = _moved(_lora(use_dora=change != "weighted")())
        if fused:
            fuse(model, quiet=True)
            model(IDS)
        changed = CHANGES[change](model)
        model = changed if isinstance(changed, nn.Module) else model
        outputs.append(model(IDS))
        fused_again = fuse(model, quiet=True) if isinstance(model, PeftModel) and model.peft_config else None
        assert fused_again is None or torch.allclose(model(IDS), outputs[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_one_adapter_per_row_of_a_whole_model_is_pefts() -> None:
    """PEFT names each row's adapter by a hook on each layer, which a fused block must not pass over."""
    model = tiny_lm(use_dora=False).eval()
    model.add_adapter("other", LoraConfig(r=6, target_modules="all-linear"))
    move(model, seed=9)
    ids, names = tokens(), ["default", "__base__"]
    assert len(ids) == 2
    expected = model(input_ids=ids, adapter_names=names).logits
    assert fuse(model, quiet=True).blocks["mlp"] == 2
    assert torch.equal(model(input_ids=ids, adapter_names=names).logits, expected)
    model(input_ids=ids)
    assert fallbacks(model).get("extra arguments", 0) == 14


def test_hooks_on_layers_of_a_fused_block_are_called() -> None:
    model = tiny_lm()
    fuse(model, quiet=True)
    heard: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("up_proj", "q_proj")):
            module.register_forward_hook(lambda module, arguments, y, name=name: heard.append(name))
    model(input_ids=tokens())
    assert len(heard) == 4


def test_weights_that_are_not_loaded_are_left_to_peft_until_they_are() -> None:
    with torch.device("meta"):
        model = get_peft_model(Net(), LoraConfig(r=4, target_modules=LINEAR, use_dora=False))
    report = fuse(model, quiet=True)
    assert report.layers == 0 and all("not loaded yet" in why for why in report.skipped.values())
    model.to_empty(device="cpu")
    assert fuse(model, quiet=True).layers == 2


def test_a_part_that_was_fused_on_its_own_gives_everything_back() -> None:
    model = _moved(_lora(use_dora=True)())
    classes = [type(module) for module in model.modules()]
    fuse(model.base_model, quiet=True)
    fuse(model, quiet=True)
    unfuse(model)
    assert [type(module) for module in model.modules()] == classes
    assert not any("_qdora_engine" in module.__dict__ for module in model.modules())


def test_a_fused_model_is_printed_as_pefts() -> None:
    model = _lora(use_dora=True)()
    before = repr(model)
    fuse(model, quiet=True)
    assert repr(model) == before
