"""An exported folder, opened by plain Transformers and run over rows with one layer's weights in memory at a time.

The blocks stay on the disk (Transformers' `device_map="disk"`) and each layer is read when it is
called, so that a model of any size can be run in fp32. All rows go through together, in a few batches,
because each batch reads the whole model once. Logits are made for trained positions alone, a few at a
time. `computed_with` lets another function of the same input stand for some linear layers, which is
how PEFT's function is run in the same model.

What this does not do: weights in NF4 are not streamed. They are loaded whole, as whoever uses them must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdora_fast.evaluation.logits import logits_of
from qdora_fast.exports.verify.recording import BUDGET_BYTES, Recording, RowRecorder, Rows, reopen
from qdora_fast.models.model_class import config_in, empty_model
from qdora_fast.models.targets import text_decoder

TOKENS = 8192
"""Of a batch, padding included; a longer row is a batch of its own."""
POSITIONS = 256
"""Whose logits are made at a time."""

Linear = Callable[[Any, Tensor], Tensor]
"""(module, x [..., in]) -> [..., out], instead of the module's own forward."""


def open_streamed(folder: Path, *, device: str, dtype: torch.dtype, scratch: Path, packed: bool) -> Any:
    """Open a model folder with plain Transformers, the blocks of its language model left on the disk.

    Args:
        device: where it computes.
        dtype: in which it computes, whatever is stored.
        scratch: for tensors that are stored in another form than the model holds (experts).
        packed: the weights are in NF4: loaded whole.
    """
    if packed:
        return reopen(folder, device=device, dtype=dtype)
    return reopen(
        folder, device=device, dtype=dtype, device_map=_device_map(folder, device), offload_folder=str(scratch)
    )


def record_streamed(model: Any, rows: Rows, *, budget: int = BUDGET_BYTES) -> Recording:
    """The same as `behaviour.record`, with all rows in few batches, padded on the right.

    Args:
        model: from `open_streamed`.
        rows, budget: see `behaviour.record`.
    """
    recorder = RowRecorder(rows, budget)
    for numbers in _batches(rows):
        hidden, outputs = _run_backbone(model, [rows[number]["input_ids"] for number in numbers])  # [batch, T, d]
        for place, number in enumerate(numbers):
            for positions in recorder.trained(number).split(POSITIONS):
                states = hidden[place, positions.to(hidden.device)][None]  # [1, n, d]
                recorder.add(number, positions, _logits(model, outputs, states))
    return recorder.recording()


@contextmanager
def computed_with(model: nn.Module, functions: Mapping[str, Linear]) -> Iterator[None]:
    """Let functions stand for the forward of the named modules. They find the module's own weights loaded."""
    with_hooks = {name: model.get_submodule(name) for name in functions}
    before = {}
    for name, module in with_hooks.items():
        # Accelerate's hook reads the weights and then calls `_old_forward`
        field = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        before[name] = (field, getattr(module, field))
        setattr(module, field, _bound(functions[name], module))
    try:
        yield
    finally:
        for name, (field, forward) in before.items():
            setattr(with_hooks[name], field, forward)


def _bound(function: Linear, module: nn.Module) -> Callable[..., Tensor]:
    return lambda x, *_, **__: function(module, x)


def _device_map(folder: Path, device: str) -> dict[str, str]:
    """The decoder's blocks on the disk, everything beside them on the device."""
    empty = empty_model(config_in(folder))
    lists = {name: module for name, module in empty.named_modules() if isinstance(module, nn.ModuleList)}
    inside = {id(module) for module in text_decoder(empty).modules()}
    of_text = [name for name, module in lists.items() if id(module) in inside]
    blocks = max(of_text, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    placed = {f"{blocks}.{number}": "disk" for number in range(len(lists[blocks]))}
    for name, _ in empty.named_modules():
        parent = name.rpartition(".")[0]
        beside = blocks.startswith(f"{parent}.") if parent else bool(name)
        if beside and name != blocks and not blocks.startswith(f"{name}."):
            placed[name] = device
    return placed


def _batches(rows: Rows) -> Iterator[list[int]]:
    """Numbers of rows of similar length."""
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"])):
        if batch and len(rows[batch[0]]["input_ids"]) * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _run_backbone(model: Any, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
    """Last hidden states [batch, T, d] of padded rows, before the output head, and all that the backbone returned."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        outputs = model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return outputs.last_hidden_state, outputs


def _logits(model: Any, outputs: Any, states: Tensor) -> Tensor:
    """Logits [n, V] of hidden states [1, n, d], by the model's own forward: its head and what it does after it."""
    chosen = type(outputs)(**{**outputs, "last_hidden_state": states})
    ids = torch.zeros((1, states.shape[1]), dtype=torch.long, device=states.device)
    logits: Tensor = logits_of(model, model.base_model, chosen, ids)
    return logits
