"""The outside opinion: DoRA written once more, dense, in fp64, with autograd for every gradient.

Shares no code with the engine and none with PEFT. It takes the numbers of a built arm (4-bit weights as bitsandbytes
dequantises them in fp32, adapters, embeddings, norms) and computes what that arm should have computed:

    c = ||W + s B A|| per output row, detached        y = m / c * (x W^T + s (x A^T) B^T) + bias

For the model, Transformers' Llama is run in fp64 with these layers in it, and with an RMSNorm of our own, because
Transformers' computes in fp32 whatever it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.cases import Case
from benchmarks.engine.subjects import Subject, adapted, dense_weight, linear_inputs, model_inputs


class OracleLinear(nn.Module):
    """One adapted layer in fp64."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        bias = getattr(layer.get_base_layer(), "bias", None)
        self.weight = dense_weight(layer)
        self.bias = None if bias is None else bias.detach().double()
        self.scale = float(layer.scaling["default"])
        self.a = nn.Parameter(layer.lora_A["default"].weight.detach().double())
        self.b = nn.Parameter(layer.lora_B["default"].weight.detach().double())
        magnitude = layer.lora_magnitude_vector
        self.m = nn.Parameter(magnitude["default"].weight.detach().double()) if magnitude else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        y = x @ self.weight.T + self.scale * (x @ self.a.T) @ self.b.T
        if self.m is not None:
            norm = (self.weight + self.scale * self.b @ self.a).norm(dim=1).detach()
            y = y * (self.m / norm)
        return y if self.bias is None else y + self.bias


class OracleNorm(nn.Module):
    """RMSNorm in the dtype of its input."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight.detach().double()
        self.eps = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]"""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def ask(subject: Subject) -> dict[str, Tensor]:
    """What `subject.probe()` should have returned, in fp64. Ask before the optimizer moves anything."""
    layers = {name: OracleLinear(layer) for name, layer in adapted(subject.model)}
    answer = _linear(subject.case, layers) if subject.case.kind == "linear" else _model(subject, layers)
    for name, layer in layers.items():
        for kind, parameter in (("dA", layer.a), ("dB", layer.b), ("dm", layer.m)):
            if parameter is not None:
                assert parameter.grad is not None
                answer[f"{kind} {name}"] = parameter.grad
    return answer


def _linear(case: Case, layers: dict[str, OracleLinear]) -> dict[str, Tensor]:
    (layer,) = layers.values()
    x, upstream = (tensor.to(case.device, torch.float64) for tensor in linear_inputs(case))
    x.requires_grad_()
    output = layer(x)
    output.backward(upstream)
    assert x.grad is not None
    return {"output": output.detach(), "dx": x.grad}


def _model(subject: Subject, layers: dict[str, OracleLinear]) -> dict[str, Tensor]:
    from transformers import LlamaForCausalLM

    built: Any = subject.model
    base = built.get_base_model()
    oracle: Any = LlamaForCausalLM(base.config)
    plain = {name: value for name, value in base.state_dict().items() if "_proj" not in name}
    oracle.load_state_dict(plain, strict=False)
    oracle = oracle.to(subject.case.device, torch.float64).requires_grad_(False)
    for name, layer in layers.items():
        oracle.set_submodule(name, layer)
    for name, module in list(oracle.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            oracle.set_submodule(name, OracleNorm(module))
    ids = model_inputs(subject.case).to(subject.case.device)
    embedded = oracle.get_input_embeddings()(ids).requires_grad_()
    logits = oracle(inputs_embeds=embedded).logits
    nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    return {"output": logits.detach(), "dx": embedded.grad}
