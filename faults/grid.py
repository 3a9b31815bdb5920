"""Stop and go on, over optimizers, dropout, place in the epoch, packing and LoRA+: the same adapter to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

from faults.trial import Group, Trial
from faults.victim import put, require

_OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
_CELLS = list(product(_OPTIMIZERS, (0.0, 0.05), ("mid-epoch", "boundary"), (False, True), (None, 4)))
_ORDER = [number * 13 % len(_CELLS) for number in range(len(_CELLS))]
"""So that the first 16 have every value of every axis."""


def cell(trial: Trial) -> None:
    """One cell: whole, and stopped and resumed."""
    optimizer, dropout, place, packing, ratio = _CELLS[_ORDER[trial.number % len(_CELLS)]]
    packed = "packed" if packing else "not packed"
    trial.note = f"{optimizer}, dropout {dropout}, {place}, {packed}, LoRA+ {ratio or 'off'}"
    train = {"optimizer": optimizer, "loraplus_ratio": ratio, "max_steps": 9, "save_steps": 1000, "eval_steps": 4}
    sections: dict[str, dict[str, Any]] = {
        "adapter": {"dropout": dropout},
        "data": {"max_rows": 24},
        "train": train,
    }
    whole = trial.lab.job(trial.folder / "whole", **sections)
    whole.run(fault=_packing if packing else None).require(0)
    job = trial.lab.job(trial.folder / "stopped", **sections)
    job.run(fault=_stop(place == "boundary", packing=packing)).require(75)
    job.run("train", str(job.config), "--resume", fault=_packing if packing else None).require(0)
    require(job.adapter() == whole.adapter(), "the adapter is not the uninterrupted run's")


def _packing() -> None:
    """Pack on the CPU as well: rows then see each other, which does not matter for what is asked here."""
    from qdora_fast.training import trainer

    make = trainer.make_recipe

    def make_recipe(train: Any, **counts: Any) -> Any:
        return replace(make(train, **counts), packing=train.packing)

    put("qdora_fast.recipes.fit", make_recipe=make_recipe)


def _stop(boundary: bool, *, packing: bool) -> Callable[[], None]:
    """A fault: SIGTERM at the end of the first epoch, or in the middle of one."""

    def fault() -> None:
        if packing:
            _packing()
        from transformers.trainer_callback import DefaultFlowCallback

        original = DefaultFlowCallback.on_step_end
        sent = False

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            nonlocal sent
            if not sent and state.global_step > 1 and float(state.epoch).is_integer() == boundary:
                sent = True
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, args, state, control, **kwargs)

        put("transformers.trainer_callback:DefaultFlowCallback", on_step_end=on_step_end)

    return fault


GROUPS = (
    Group(
        "grid",
        "stop and go on: 4 optimizers x dropout x place in the epoch x packing x LoRA+",
        "adapter bit-equal to the uninterrupted run's",
        16,
        len(_CELLS),
        cell,
    ),
)
