"""One arm of one case, built and ready to step: real bitsandbytes NF4, real PEFT, and our engine on top if it is ours.

Every arm is built from the same seeds, so weights, inputs and adapters are the same numbers in all of them. B is not
zero and magnitudes are 5 % off the norms: an adapter at its start would hide errors in dA and in the row scale.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.arms import Arm
from benchmarks.engine.cases import VOCABULARY, Case
from qdora_fast.engine.frozen import set_repacking

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
B_STD = 0.01
MAGNITUDES_MOVED = 0.05
LEARNING_RATE = 1e-5


@dataclass
class Subject:
    """An arm that can be run: `step` is what the clock sees, `probe` what the gate sees."""

    arm: Arm
    case: Case
    model: nn.Module
    forward: Callable[[], Tensor]
    """One micro-batch; returns what `backward` takes."""
    backward: Callable[[Tensor], None]
    probe: Callable[[], dict[str, Tensor]]
    """Run once and return "output", "dx", and every adapter's gradient as "dA name", "dB name", "dm name"."""
    optimizer: torch.optim.Optimizer
    report: dict[str, Any] = field(default_factory=dict)
    """What the engine said on installation; {} for PEFT."""

    def left_to_peft(self) -> list[str]:
        """Layers and calls of an arm of ours that PEFT's own forward took: then it is not what its name says."""
        return not_ours(self.model, self.report) if self.arm.ours else []

    def micro_batch(self) -> None:
        """Forward and backward."""
        self.backward(self.forward())

    def step(self) -> None:
        """zero_grad, grad-accum x (forward, backward), optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.case.grad_accum):
            self.micro_batch()
        self.optimizer.step()


class OneLinear(nn.Module):
    """The smallest model PEFT can adapt."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]"""
        result: Tensor = self.linear(x)
        return result


def build(case: Case, arm: Arm) -> Subject:
    """The arm on fresh weights, the engine installed if it is ours."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of an optional CPU kernel it does not find
    dtype = torch.float32 if case.dtype == "fp32" else torch.bfloat16
    torch.manual_seed(case.seed)
    base = _one_linear(case, dtype) if case.kind == "linear" else _llama(case, dtype)
    model = _adapt(base, case, arm)
    model.train()
    report: dict[str, Any] = {}
    if arm.install is not None:
        from qdora_fast.engine import install

        report = install(model, **arm.install).as_dict()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
    runs = _run_linear if case.kind == "linear" else _run_model
    forward, backward, probe = runs(case, model, dtype)
    return Subject(arm, case, model, forward, backward, probe, optimizer, report)


def adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, PEFT layer) of every layer that carries an adapter."""
    for name, module in model.named_modules():
        if getattr(module, "lora_A", None):
            yield name.removeprefix("base_model.model."), module


def dense_weight(layer: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """[out, in]: the 4-bit weight of a PEFT layer as bitsandbytes dequantises it in fp32."""
    from copy import copy

    from bitsandbytes.functional import dequantize_4bit

    weight = layer.get_base_layer().weight
    state = copy(weight.quant_state)
    state.dtype = torch.float32
    return dequantize_4bit(weight.data, state).reshape(state.shape).to(dtype)


def not_ours(model: nn.Module, report: dict[str, Any]) -> list[str]:
    """Of a model with the engine in it: why it is not all ours, so far."""
    from qdora_fast.engine import fallbacks

    said = [f"{count} calls fell back: {why}" for why, count in fallbacks(model).items()]
    missing = report["adapted"] - report["layers"]
    if missing:
        said.append(f"{missing} of {report['adapted']} layers were left to PEFT: {report['skipped']}")
    return said


def quantize(linear: nn.Linear, dtype: torch.dtype, device: str) -> nn.Module:
    """The same layer in NF4 with double quantisation."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    four_bit: Any = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
    )
    four_bit.weight = Params4bit(
        linear.weight.data.to(dtype), requires_grad=False, compress_statistics=True, quant_type="nf4", module=four_bit
    )
    set_repacking(four_bit, False)
    result: nn.Module = four_bit.to(device)
    return result


def _one_linear(case: Case, dtype: torch.dtype) -> nn.Module:
    linear = nn.Linear(case.width, case.width, bias=False)
    nn.init.normal_(linear.weight, std=case.width**-0.5)
    return OneLinear(quantize(linear, dtype, case.device))


def _llama(case: Case, dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, kv_heads = case.heads
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=case.width,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max(2048, case.tokens),
        attn_implementation="sdpa",
        use_cache=False,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(case.device, dtype)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name in LINEARS:
                if hasattr(block, name):
                    setattr(block, name, quantize(getattr(block, name), dtype, case.device))
    return model


def _adapt(base: nn.Module, case: Case, arm: Arm) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = ["linear"] if case.kind == "linear" else list(LINEARS)
    settings = LoraConfig(
        r=case.rank, lora_alpha=case.rank, lora_dropout=0.0, target_modules=targets, bias="none", use_dora=arm.dora
    )
    model: Any = get_peft_model(base, settings)
    move_adapters(model, case.seed)
    if case.dtype == "bf16-pure":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if case.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    result: nn.Module = model
    return result


def move_adapters(model: nn.Module, seed: int) -> None:
    """A of its usual size, B not zero, m off the row norms: the same numbers for every model of the same layers."""
    generator = torch.Generator().manual_seed(seed + 1)
    for _, layer in adapted(model):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a.data = (torch.randn(a.shape, generator=generator) * a.shape[1] ** -0.5).to(a.device, a.dtype)
        b.data = (torch.randn(b.shape, generator=generator) * B_STD).to(b.device, b.dtype)
        moved = 1 + MAGNITUDES_MOVED * torch.randn(b.shape[0], generator=generator)
        if layer.lora_magnitude_vector:
            m = layer.lora_magnitude_vector["default"].weight
            m.data = (dense_weight(layer, torch.float32).norm(dim=1) * moved.to(m.device)).to(m.dtype)


def autocast(case: Case) -> contextlib.AbstractContextManager[Any]:
    """bf16 as trainers run it: fp32 adapters under autocast. Nothing for the other dtypes."""
    return torch.autocast(case.device, torch.bfloat16) if case.dtype == "bf16" else contextlib.nullcontext()


def _run_linear(case: Case, model: nn.Module, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    x, upstream = linear_inputs(case)
    x = x.to(case.device, dtype).requires_grad_()
    upstream = upstream.to(case.device, dtype)

    def forward() -> Tensor:
        x.grad = None  # in a model the gradient flows on; adding it up here would be a pass nobody runs
        with autocast(case):
            result: Tensor = model(x)
        return result

    def backward(output: Tensor) -> None:
        output.backward(upstream.to(output.dtype))

    def probe() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        output = forward()
        backward(output)
        return {"output": output.detach(), "dx": _gradient(x), **gradients(model)}

    return forward, backward, probe


def _run_model(case: Case, model: Any, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    ids = model_inputs(case).to(case.device)

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])

    def forward() -> Tensor:
        with autocast(case):
            return loss(model(input_ids=ids).logits)

    def backward(value: Tensor) -> None:
        value.backward()

    def probe() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        with autocast(case):
            logits = model(inputs_embeds=embedded).logits
        loss(logits).backward()
        return {"output": logits.detach(), "dx": _gradient(embedded), **gradients(model)}

    return forward, backward, probe


def linear_inputs(case: Case) -> tuple[Tensor, Tensor]:
    """x and the upstream gradient, both [T, width]; bf16-representable, so that every dtype starts from the same."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    x, upstream = (torch.randn(case.tokens, case.width, generator=generator).bfloat16().float() for _ in range(2))
    return x, upstream


def model_inputs(case: Case) -> Tensor:
    """Token ids [1, T]."""
    return torch.randint(0, VOCABULARY, (1, case.tokens), generator=torch.Generator().manual_seed(case.seed + 2))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of all adapters by kind and layer."""
    found: dict[str, Tensor] = {}
    for name, layer in adapted(model):
        found[f"dA {name}"] = _gradient(layer.lora_A["default"].weight)
        found[f"dB {name}"] = _gradient(layer.lora_B["default"].weight)
        if layer.lora_magnitude_vector:
            found[f"dm {name}"] = _gradient(layer.lora_magnitude_vector["default"].weight)
    return found


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None, "a gradient is missing"
    return tensor.grad.detach().clone()
