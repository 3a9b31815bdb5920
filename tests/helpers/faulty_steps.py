"""The real trainer over a tiny model, and faults that strike it at a chosen moment. For the tests of steps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qdora_fast.training.oom import Note
from qdora_fast.training.trainer import build_trainer, make_recipe, sft_arguments

ROWS = [[5 + (7 * row + 3 * place) % 60 for place in range(6 + row % 5)] for row in range(24)]
"""24 rows of 6 to 10 tokens, all different."""
STEADY = {"scheduler": "constant", "warmup": 0.0, "max_steps": 3, "save_steps": 50, "eval_steps": 50}
"""Settings with which step n is the same however many follow it."""


@dataclass
class Fit:
    """A trainer, ready to train, and its model."""

    trainer: Any
    model: Any
    notes: list[Note] = field(default_factory=list)
    calls: int = 0
    """Forward passes of training so far, counted once something is to strike in them."""
    _strikes: list[Callable[[torch.Tensor], None]] = field(default_factory=list)

    def train(self, **arguments: Any) -> Fit:
        """Train, and return itself."""
        self.trainer.train(**arguments)
        return self

    def trained(self) -> dict[str, torch.Tensor]:
        """The trained tensors as they are now."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def logged(self, key: str) -> list[float]:
        """All values of one figure."""
        return [entry[key] for entry in self.trainer.state.log_history if key in entry]

    def kinds(self) -> list[str]:
        """Of its notes."""
        return [note.kind for note in self.notes]

    def before_forward(self, strike: Callable[[torch.Tensor], None]) -> None:
        """Call `strike(input_ids)` before every forward pass of training; `calls` counts them from 1."""

        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if module.training:
                self.calls += 1
                for each in self._strikes:
                    each(kwargs["input_ids"])

        if not self._strikes:
            self.model.register_forward_pre_hook(hook, with_kwargs=True)
        self._strikes.append(strike)

    def on_gradient(self, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Change the gradient of one parameter in every backward pass."""
        self.before_forward(lambda ids: None)
        next(p for p in self.model.parameters() if p.requires_grad).register_hook(change)

    def no_memory_at(self, calls: Collection[int], *, backward: bool = False) -> Fit:
        """Run out of memory in these passes of training, forward or backward; returns itself."""

        def strike(_: Any) -> None:
            if self.calls in calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 24")

        (self.on_gradient if backward else self.before_forward)(strike)
        return self


def build(config: Any, folder: Path, **more: Any) -> Fit:
    """The trainer of a config over ROWS, the first 8 held out too.

    Args:
        more: arguments of `build_trainer` and of TRL that differ.
    """
    from datasets import Dataset
    from loaded_models import loaded_base

    from qdora_fast.models.loading import attach, fuse_layers

    recipe = make_recipe(config.train, rows=24, tokens=200, max_length=32, precision="fp32")
    arguments = sft_arguments(config.train, recipe, folder=folder, max_length=32, evaluates=True)
    base = loaded_base(config)
    model = attach(base, config.adapter, config.train)
    fuse_layers(model, config.engine)
    rows = Dataset.from_dict({"input_ids": ROWS, "labels": ROWS})
    fit = Fit(None, model)
    fit.trainer = build_trainer(
        model,
        base.tokenizer,
        (rows, rows.select(range(8))),
        config.train,
        recipe=recipe,
        arguments=arguments | more,
        callbacks=[],
        source_of=lambda ids: f"row {ROWS.index(list(ids))}",
        on_note=fit.notes.append,
    )
    return fit


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any two numbers."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)
