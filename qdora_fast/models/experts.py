"""Which parts of a model's blocks are no plain linear layers: experts, their routers, and parameters of other kinds.

Experts are told by the word in the name of their class or attribute, as every family of Transformers has it. A class
that knows experts but was configured without them (Granite 4 micro) builds none, and is a dense model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHARE = 0.01
"""Of the blocks' parameters; smaller kinds are norms, biases and short convolutions."""


@dataclass(frozen=True)
class Experts:
    """Full names of what belongs to experts."""

    modules: tuple[str, ...]
    linears: frozenset[str]


def expert_modules(stack: Any, names: Mapping[int, str]) -> Experts:
    """The experts of a stack of blocks, with all linear layers in the same part of a block, and its routers.

    Args:
        names: full names of modules by their ids.
    """
    from torch import nn

    modules: list[str] = []
    linears: set[str] = set()
    for block in stack:
        experts = _told_by("expert", block, names)
        routers = _told_by("router", block, names) if experts else []
        modules += experts
        for part in block.children():
            held = {names[id(module)] for module in part.modules()}
            if not held.isdisjoint((*experts, *routers)):
                linears |= {names[id(module)] for module in part.modules() if isinstance(module, nn.Linear)}
    return Experts(tuple(modules), frozenset(linears))


def other_parameters(stack: Any) -> dict[str, int]:
    """How many parameters of a stack of blocks lie in no linear layer, by the last two parts of their names; those of a
    hundredth of the blocks and more."""
    from torch import nn

    counts: Counter[str] = Counter()
    for name, module in stack.named_modules():
        if not isinstance(module, nn.Linear):
            for leaf, parameter in module.named_parameters(recurse=False):
                counts[f"{name.rpartition('.')[2]}.{leaf}".removesuffix(".weight")] += parameter.numel()
    everything = sum(parameter.numel() for parameter in stack.parameters())
    return {name: count for name, count in counts.items() if count >= SHARE * everything}


def _told_by(word: str, block: Any, names: Mapping[int, str]) -> list[str]:
    """Full names of the modules with parameters in whose class or attribute a word occurs."""
    return [
        names[id(module)]
        for module in block.modules()
        if any(word in each.lower() for each in (type(module).__name__, names[id(module)].rpartition(".")[2]))
        and next(module.parameters(), None) is not None
    ]
