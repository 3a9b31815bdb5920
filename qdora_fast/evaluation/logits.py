"""Logits at chosen positions of a row or of some rows, without the logits of all others.

A row's logits are its largest tensor by far: 2,048 tokens times 128,256 words are 0.5 GiB in bf16, and a loss makes
copies of them in fp32. Here the row passes through the model's backbone once; output head, capping and scaling run for
a few hundred positions at a time. Beside the backbone's pass that takes the hidden states of the row twice and the
logits at hand: `most_bytes` for each fp32 copy of them.

How, for every architecture: what the backbone gives out is cut to the positions wanted, and the model's own forward
goes on with it. So whatever a model does between its hidden states and its logits (Gemma's capping, Cohere's and
Granite's scale) is done by the model. The argument that Transformers has for this, `logits_to_keep` with a tensor of
positions, is not enough: Unsloth's hand-written models ignore a tensor and make all logits (2026.10.9:
`_CausalLM_fast_forward`, `MistralForCausalLM_fast_forward`), and each call would run the backbone again.

A model whose backbone is not found, or whose logits do not follow what it is given, makes all its logits once; the
result is the same. Rows of a batch are padded on the right and read without a mask: no causal model looks there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MOST_BYTES = 64 * 2**20
"""Of one fp32 copy of the logits that are there at a time. With bf16 logits, that copy and its log-softmax, 2.5 times
this are in use."""
FP32 = 4


def logits_at(model: Any, input_ids: Any, positions: Any, *, most_bytes: int = MOST_BYTES) -> Iterator[tuple[Any, Any]]:
    """What a causal language model predicts after chosen tokens of its rows.

    The rows are read when the first logits are asked for, in inference mode; the model is used as it stands, so set its
    mode and its adapter before and leave both alone until the last ones are there.

    Args:
        model: maps input_ids [B, T] to `.logits` [B, T, V]; a PEFT model too.
        input_ids: [B, T], where the model is; for several rows only where `follows`, or all their logits are made.
        positions: [n] int64, in any order, counted through the rows: token t of row b is b * T + t.
        most_bytes: of the logits yielded at a time, counted in fp32; one position at least.

    Yields:
        Consecutive parts of `positions` [k], and their logits [k, V] in the model's own type.
    """
    if not len(positions):
        return
    backbone = _backbone(model)
    states, logits = _read(model, backbone, input_ids, positions[:1])
    size = max(1, most_bytes // (FP32 * logits.shape[-1]))
    for part in positions.split(size):
        if states is None:
            yield part, logits[part]
        else:
            yield part, _head(model, backbone, states, input_ids, part)


def follows(model: Any, input_ids: Any) -> bool:
    """Whether the logits of these rows are made of the backbone's output alone, so that rows can be read together
    without all their logits."""
    import torch

    backbone = _backbone(model)
    first = torch.zeros(1, dtype=torch.int64, device=input_ids.device)
    return backbone is not None and _read(model, backbone, input_ids, first)[0] is not None


def _backbone(model: Any) -> Any:
    """The module whose output the head reads; None where a model names none."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a PEFT model
    found = getattr(inner, "base_model", None)
    return None if found is inner or not hasattr(found, "register_forward_hook") else found


def _read(model: Any, backbone: Any, input_ids: Any, first: Any) -> tuple[Any, Any]:
    """The backbone's output and the logits at the first position [2, V]; None and all logits [B * T, V] where the model
    does not compute them from that output."""
    if backbone is None or input_ids.numel() <= 2:
        return None, _call(model, input_ids)
    seen: list[Any] = []

    def cut(_module: Any, _inputs: Any, output: Any) -> Any:
        seen.append(output)
        return _with_states(output, lambda states: states.flatten(0, 1)[None, _two(first)])

    handle = backbone.register_forward_hook(cut)
    try:
        logits = _call(model, input_ids)
    finally:
        handle.remove()
    if len(seen) == 1 and len(logits) == 2:
        return seen[0], logits
    return None, logits if len(logits) == input_ids.numel() else _call(model, input_ids)


def _head(model: Any, backbone: Any, output: Any, input_ids: Any, positions: Any) -> Any:
    """Logits [n, V] at some positions, from the backbone's output."""
    wanted = _two(positions)
    chosen = _with_states(output, lambda states: states.flatten(0, 1)[None, wanted])
    return logits_of(model, backbone, chosen, input_ids.flatten()[None, : len(wanted)])[: len(positions)]


def logits_of(model: Any, backbone: Any, output: Any, input_ids: Any) -> Any:
    """Logits [n, V] by the model's own forward, its backbone giving out `output` (hidden states [1, n, d]) unasked.

    Args:
        input_ids: [1, n], any.
    """
    with _answering(backbone, output):
        return _call(model, input_ids)


def _call(model: Any, input_ids: Any) -> Any:
    """Logits [positions, V], those of one row after those of another."""
    import torch

    with torch.inference_mode():
        return model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)


def _with_states(output: Any, change: Callable[[Any], Any]) -> Any:
    """A backbone's output with its hidden states changed; as it is, where it has none."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        return output
    changed = copy.copy(output)
    changed.last_hidden_state = change(states)
    return changed


@contextmanager
def _answering(backbone: Any, output: Any) -> Iterator[None]:
    """For this time the backbone computes nothing and gives out `output`."""
    before = vars(backbone).get("forward")
    backbone.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del backbone.forward
        if before is not None:
            backbone.forward = before


def _two(positions: Any) -> Any:
    """A single position twice: Unsloth multiplies a single one by the head's weight alone, past an adapter on it."""
    return positions if len(positions) > 1 else positions.repeat(2)
