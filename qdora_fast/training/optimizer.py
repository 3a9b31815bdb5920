"""Who learns how fast: the parameter groups of LoRA, LoRA+ and DoRA, and the optimizer.

LoRA+ (Hayou, Ghosh & Yu 2024, arXiv 2402.12354) gives B a larger learning rate than A:
A starts random and B at zero, and in wide models one rate for both learns too slowly in B.

DoRA's magnitudes are neither. They start at the norm of a pretrained row, so weight decay
would pull the model towards zero and a ×16 rate would throw rows out of scale; yet the usual
LoRA+ rule ("every one-dimensional parameter goes with B") gives them just that. Here they
have a group of their own: A's rate unless set, no decay, and 32-bit optimizer state, because
what a magnitude learns is smaller than the steps of an 8-bit state.

Rows of trained tokens (`adapter.trainable_tokens`) are whole rows of a pretrained matrix: A's rate, no decay, and
32-bit state, as bitsandbytes advises for embeddings, most of whose gradients are zero in a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_KINDS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_magnitude_vector": "magnitude",
    "trainable_tokens_delta": "tokens",
}
_EXACT = ("magnitude", "tokens")
"""Groups with 32-bit state and without decay."""


def parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    learning_rate: float,
    loraplus_ratio: float | None = None,
    magnitude_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Sort every trained parameter into exactly one group: A, B, magnitude, tokens, other.

    Args:
        named_parameters: names as PEFT gives them; frozen parameters are passed over.
        learning_rate: of A, and of whole modules trained beside the adapter ("other").
        loraplus_ratio: learning rate of B = ratio × learning_rate; None: 1.
        magnitude_learning_rate: None: learning_rate.
        weight_decay: of A and B, and of "other" where it is a matrix; magnitudes have none.

    Returns:
        torch optimizer groups with `name`, `lr`, `weight_decay` and `params`; empty ones left out.

    Raises:
        ValueError: nothing is trained.
    """
    rates = {
        "A": (learning_rate, weight_decay),
        "B": (learning_rate * (loraplus_ratio or 1.0), weight_decay),
        "magnitude": (magnitude_learning_rate or learning_rate, 0.0),
        "tokens": (learning_rate, 0.0),
        "other": (learning_rate, weight_decay),
        "other, not decayed": (learning_rate, 0.0),
    }
    members: dict[str, list[torch.nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            members[_kind(name, parameter.ndim)].append(parameter)
    if not any(members.values()):
        raise ValueError("no parameter is trained; was the adapter attached?")
    return [
        {"name": name, "params": members[name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in rates.items()
        if members[name]
    ]


def build_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW in the named variant, betas (0.9, 0.999).

    Args:
        name: adamw, adamw_8bit, paged_adamw_8bit or paged_adamw_32bit. The paged ones let
            state spill to host memory on a GPU; on the CPU they are the unpaged ones.
    """
    if name == "adamw":
        import torch

        return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)
    from bitsandbytes.optim.optimizer import Optimizer2State

    class GroupwiseAdamW(Optimizer2State):
        """bitsandbytes' AdamW, in which a group may ask for 32-bit state.

        bitsandbytes' own way, GlobalOptimManager.override_config, is one table for the whole
        process, keyed by object ids; it would outlive this optimizer.
        """

        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            if group.get("name") in _EXACT:
                config["optim_bits"] = 32
            return config

    return GroupwiseAdamW(
        "adam",
        groups,
        betas=(0.9, 0.999),
        optim_bits=8 if name.endswith("8bit") else 32,
        is_paged=name.startswith("paged"),
    )


def describe_groups(groups: list[dict[str, Any]]) -> str:
    """One line: `A 2e-04, B 3.2e-03, magnitude 2e-04 (not decayed)`."""
    parts = []
    for group in groups:
        decay = "" if group["weight_decay"] else " (not decayed)"
        parts.append(f"{group['name']} {group['lr']:.3g}{decay if group['name'] in _EXACT else ''}")
    return ", ".join(parts)


def _kind(name: str, ndim: int) -> str:
    for part in name.split("."):
        if part in _KINDS:
            return _KINDS[part]
    return "other" if ndim >= 2 else "other, not decayed"
