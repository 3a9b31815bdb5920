"""Whatever happened to a model before, the engine's output and gradients are the specification's for its values now.

The histories are made by hypothesis: edits of A, B and m in every way that is noticed, optimizer steps, loads,
switches of adapter, scale and mode, calls in other types, second installs, uninstalls and releases, in any order. The
layers have rows of zeros in W and rows that the update cancels exactly; magnitudes become 0 on the way.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_models import (
    adapt,
    bound,
    close,
    exact_layer,
    loss_and_gradients,
    move,
    parameters_of,
    quantize,
    random_x,
    run_layer,
    tiny_lm,
    tokens,
    weight_of,
)
from torch import Tensor, nn
from torch.nn import functional

from qdora_fast.engine import install, reference, uninstall
from qdora_fast.engine.cache import CLOCK
from qdora_fast.engine.patch import residency

WIDTH, OUT = 64, 12
ZERO_ROWS: dict[str, list[int]] = {"0": [2, 5], "1": [], "2": [3]}
"""Of the base weights: NF4, NF4, dense. In the last row of each W + s·B·A is 0 at first, though W is not."""
ADAPTERS = ("default", "other", "plain")
OPTIMIZERS = ("AdamW", "SGD", "AdamW8bit")


def _model() -> Any:
    """Three layers side by side that carry three adapters, the last one without magnitudes; one magnitude is 0."""
    from peft import LoraConfig

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(WIDTH, OUT), nn.Linear(WIDTH, OUT, bias=False), nn.Linear(WIDTH, OUT))
    for name, rows in ZERO_ROWS.items():
        base[int(name)].weight.data[rows] = 0
    dense = base[2]
    quantize(base, compute_dtype=torch.float32)
    base[2] = dense
    model = adapt(base, targets=list(ZERO_ROWS))
    for name, dora, rank in (("other", True, 3), ("plain", False, 2)):
        dropout = 0.25 if name == "other" else 0.0
        model.add_adapter(
            name, LoraConfig(r=rank, lora_alpha=6, use_dora=dora, target_modules=list(ZERO_ROWS), lora_dropout=dropout)
        )
    move(model)
    with torch.no_grad():
        for layer in _layers(model):
            row = weight_of(layer)[-1].float()
            layer.lora_A["default"].weight[0] = row
            layer.lora_B["default"].weight[-1] = 0
            layer.lora_B["default"].weight[-1, 0] = -1 / layer.scaling["default"]
            layer.lora_magnitude_vector["default"].weight[1] = 0
    return model


def _layers(model: Any) -> list[Any]:
    return [getattr(model.base_model.model, name) for name in ZERO_ROWS]


def _assert_is_the_specification(layer: Any, training: bool) -> None:
    adapter = layer.active_adapters[0]
    x = random_x(5, WIDTH)
    p = layer.lora_dropout[adapter].p if training and adapter == "other" else 0.0
    torch.manual_seed(4)
    mask = functional.dropout(torch.ones(5, WIDTH), p) if p else None
    torch.manual_seed(4)
    ours = run_layer(layer, x, adapter=adapter)
    weight = weight_of(layer)
    rows = (weight == 0).all(dim=1).nonzero()[:, 0]
    dropped = None if mask is None else lambda leaf: leaf * mask.double()
    exact = exact_layer(layer, x, adapter=adapter, dropped=dropped, unscaled_rows=rows)
    if "m" in parameters_of(layer, adapter):
        a, b, m = (p.detach().double() for p in parameters_of(layer, adapter).values())
        if not layer.fused.reference:
            exact["dm"] = torch.where(m == 0, 0.0, exact["dm"])  # documented: m = 0 gets no gradient
        lengths = reference.row_norms(weight, a, b, layer.scaling[adapter])[rows]
        if not layer.fused.reference:
            torch.testing.assert_close(m[rows], torch.where(lengths > 0, lengths, 1.0), rtol=1e-5, atol=0)
        assert not ours["dm"][rows].any()
    bound(ours, exact, None, 1e-4)


class Histories(RuleBasedStateMachine):
    """A model, what is done to it, and after each deed the comparison."""

    @initialize()
    def begin(self) -> None:
        """A fresh model with the engine."""
        self.model = _model()
        self.installed = self.disabled = False
        self.install("auto", 1.0, "torch")

    @rule(
        form=st.sampled_from(["auto", "merged", "folded"]),
        resident=st.sampled_from([1.0, "off"]),
        impl=st.sampled_from(["torch", "torch", "reference"]),
    )
    def install(self, form: Any, resident: Any, impl: Any) -> None:
        """Again, with other options, or for the first time."""
        install(self.model, form=form, resident=resident, impl=impl)
        self.installed = True

    @precondition(lambda self: self.installed)
    @rule()
    def uninstall(self) -> None:
        """Back to PEFT's own."""
        uninstall(self.model)
        self.installed = False

    @rule(
        which=st.sampled_from(["A", "B", "m"]),
        how=st.sampled_from(["replaced", "loaded", "a row of zeros", "zeros"]),
    )
    def edit(self, which: str, how: str) -> None:
        """Other values in all adapters, in every way that is noticed."""
        for layer, adapter in itertools.product(_layers(self.model), ADAPTERS):
            parameter = parameters_of(layer, adapter).get(which)
            if parameter is None:
                continue
            new = parameter.detach() * 1.5 + 0.01
            if how == "a row of zeros":
                new[1] = 0
            elif how == "zeros" and which == "B":
                new = torch.zeros_like(new)
            with torch.no_grad():
                if how == "replaced":
                    parameter.data = new
                elif how == "loaded":
                    holder = next(m for m in layer.modules() if parameter in set(m.parameters(recurse=False)))
                    holder.load_state_dict({"weight": new}, strict=False)
                else:
                    parameter.copy_(new)

    @rule(which=st.sampled_from(["A", "B", "m"]))
    def edit_in_place(self, which: str) -> None:
        """One kind of parameter alone, without gradients: nothing but its version says so."""
        for layer, adapter in itertools.product(_layers(self.model), ADAPTERS):
            parameter = parameters_of(layer, adapter).get(which)
            if parameter is not None:
                with torch.no_grad():
                    parameter.mul_(1.5)

    @precondition(lambda self: self.installed and not self.disabled)
    @rule(kind=st.sampled_from(OPTIMIZERS))
    def step(self, kind: str) -> None:
        """One step of a new optimizer over the active adapter."""
        import bitsandbytes

        trained = [p for p in self.model.parameters() if p.requires_grad]
        owner = bitsandbytes.optim if kind == "AdamW8bit" else torch.optim
        more = {"fused": True} if kind == "AdamW" else {}
        optimizer = getattr(owner, kind)(trained, lr=1e-2, **more)
        optimizer.zero_grad()
        sum(layer(random_x(4, WIDTH)).square().mean() for layer in _layers(self.model)).backward()
        optimizer.step()
        optimizer.zero_grad()

    @rule(adapter=st.sampled_from(ADAPTERS))
    def switch(self, adapter: str) -> None:
        """Another adapter becomes the active one."""
        self.model.set_adapter(adapter)

    @rule(factor=st.sampled_from([0.5, 2.0]), how=st.sampled_from(["set_scale", "scale_layer", "unscale_layer"]))
    def scale(self, factor: float, how: str) -> None:
        """Another s, by PEFT's own methods."""
        for layer in _layers(self.model):
            if how == "set_scale":
                layer.set_scale(layer.active_adapters[0], factor)
            else:
                getattr(layer, how)(*([factor] if how == "scale_layer" else []))

    @rule(training=st.booleans())
    def mode(self, training: bool) -> None:
        """Training or answering."""
        self.model.train(training)

    @rule()
    def disable_or_enable(self) -> None:
        """The base alone, and back."""
        getattr(self.model.base_model, f"{'enable' if self.disabled else 'disable'}_adapter_layers")()
        self.disabled = not self.disabled
        if not self.disabled:
            self.model.set_adapter(self.model.active_adapter)

    @precondition(lambda self: self.installed)
    @rule(how=st.sampled_from(["no_grad", "inference", "bf16", "fp64", "autocast", "long"]))
    def call(self, how: str) -> None:
        """A call of another kind in between."""
        context = {
            "no_grad": torch.no_grad(),
            "inference": torch.inference_mode(),
            "autocast": torch.autocast("cpu", torch.bfloat16),
        }.get(how, torch.enable_grad())
        dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(how, torch.float32)
        for layer in _layers(self.model)[: 2 if how in ("bf16", "fp64") else 3]:  # PyTorch's own dense layer refuses
            with context:
                layer(random_x(200 if how == "long" else 3, WIDTH).to(dtype))

    @precondition(lambda self: self.installed)
    @rule()
    def release(self) -> None:
        """Kept weights are given back, as where memory runs out."""
        kept = residency(self.model)
        assert kept is not None
        kept.release()

    @invariant()
    def is_the_specification(self) -> None:
        """Output, every gradient, and magnitudes where the specification fixes them."""
        if not getattr(self, "installed", False):
            return
        for layer in _layers(self.model):
            if not self.disabled:
                _assert_is_the_specification(layer, self.model.training)
            else:
                x = random_x(5, WIDTH)
                bias = layer.get_base_layer().bias
                y = functional.linear(x.double(), weight_of(layer), None if bias is None else bias.double())
                torch.testing.assert_close(layer(x).double(), y, rtol=1e-5, atol=1e-5)

    def teardown(self) -> None:
        """Nothing of one history reaches the next."""
        if hasattr(self, "model"):
            uninstall(self.model)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=30, stateful_step_count=10)


def _step(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
    loss_and_gradients(model)
    optimizer.step()


def _edit(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1.2)
                parameter[0] = 0


def _answer(model: Any) -> None:
    with torch.inference_mode(), model.disable_adapter():
        model.eval()(input_ids=tokens())
    with torch.no_grad():
        model(input_ids=tokens())
    model.train()


def _checkpoint(model: Any) -> None:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()


DEEDS = {
    "steps": _step,
    "edits of m": _edit,
    "answers": _answer,
    "a second install": lambda model: install(model, resident=1.0, form="folded"),
    "gone and back": lambda model: [uninstall(model), install(model, resident=1.0)],
    "checkpointing": _checkpoint,
}


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (1, 0, 4, 0), (3, 1, 5, 0), (5, 4, 2, 1)])
def test_a_whole_model_with_a_history_is_what_the_reference_makes_of_its_values(order: tuple[int, ...]) -> None:
    model = tiny_lm("qwen2").train()
    install(model, resident=1.0)
    for number in order:
        list(DEEDS.values())[number](model)
    ours = loss_and_gradients(model)
    install(model, impl="reference")
    loss, exact = loss_and_gradients(model)
    magnitudes = {name: p for name, p in model.named_parameters() if "lora_magnitude_vector" in name}
    for name, m in magnitudes.items():
        exact[name] = torch.where(m == 0, 0.0, exact[name])  # documented: m = 0 gets no gradient
    close(ours, (loss, exact), 2e-4)


@pytest.mark.parametrize("resident", [1.0, "off"])
def test_a_removed_engine_holds_nothing(resident: Any) -> None:
    model = _model()
    install(model, resident=resident, form="merged")
    layers = _layers(model)
    for layer in layers:
        layer(random_x(3, WIDTH)).sum().backward()
    held: list[Any] = [residency(model), *(layer.fused for layer in layers), *(layer.fused.slot for layer in layers)]
    held += [layer.fused.cache(layer, "default") for layer in layers]
    references = [weakref.ref(each) for each in held]
    uninstall(model)
    del held
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)
    CLOCK.advance()  # nobody is told who is not there


def test_magnitudes_of_rows_of_zeros_are_ones_a_reader_takes() -> None:
    """A magnitude of 0 would be read as damage."""
    model = _model()
    with torch.no_grad():
        for layer in _layers(model):
            layer.lora_B["default"].weight.zero_()
    install(model)
    for layer, rows in zip(_layers(model), ZERO_ROWS.values(), strict=True):
        layer(random_x(3, WIDTH))
        magnitude: Tensor = layer.lora_magnitude_vector["default"].weight
        assert bool((magnitude[rows] > 0).all())
