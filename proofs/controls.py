"""Exports made wrongly, as real mistakes would make them. Each must be refused.

Three places for a mistake: the run (its base or adapter is another one), the model as it is merged (a scale, a layer),
the folder once it is built. A control of the weights counts only where the stored weights came out different from the
right ones in some value; files and settings always do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from proofs import mistakes_in_files as files
from proofs import mistakes_in_weights as weights
from proofs.plan import Batch


@dataclass
class Case:
    """One export to be made wrongly."""

    run: Any
    """A RunFolder that may be changed."""
    base: Path
    scratch: Path
    """An empty folder."""
    earlier: Path | None
    """The adapter of an earlier step; None: there is none, and the base itself stands for it."""
    random: Random


def _always(batch: Batch, form: str) -> bool:
    return True


def _decomposed(batch: Batch, form: str) -> bool:
    return batch.training.method in ("qdora", "dora")


def _packed(batch: Batch, form: str) -> bool:
    return form == "nf4"


def _dense(batch: Batch, form: str) -> bool:
    return form != "nf4"


def _later(batch: Batch, form: str) -> bool:
    return batch.step > batch.training.steps[0]


@dataclass(frozen=True)
class Control:
    """One mistake."""

    name: str
    place: Literal["run", "model", "folder"]
    make: Callable[..., None]
    """(case) for a run, (case, MergedModel) for a model, (case, folder, MergedModel) for a folder."""
    fits: Callable[[Batch, str], bool] = _always
    """Whether it can be made of this batch in this form."""
    of_weights: bool = True
    """False: of files or settings, which is always refused."""


NOISE = (0.001, 0.002, 0.005, 0.01, 0.02)
"""Of another base, as a share of each tensor's spread."""

CONTROLS = (
    Control("magnitudes dropped", "model", weights.drop_magnitudes, _decomposed),
    Control("one layer unmerged", "model", weights.leave_one_unmerged),
    Control("updates of two layers swapped", "model", weights.swap_updates),
    Control("alpha doubled", "model", weights.double_alpha),
    Control("rsLoRA mistaken", "model", weights.mistake_rslora),
    *(Control(f"another base, noise {share:.1%}", "run", weights.noisy_base(share)) for share in NOISE),
    Control("another base, noise elsewhere", "run", weights.noisy_base(NOISE[0], adapted=False)),
    Control("adapter of an earlier step", "run", weights.earlier_adapter, _later),
    Control("weights of two layers swapped", "folder", weights.swap_weights),
    Control("a block transposed", "folder", weights.transpose_block),
    Control("a stale shard", "folder", weights.stale_shard),
    Control("a value of an untouched tensor", "folder", weights.touch_untouched),
    Control("one ulp in one value", "folder", weights.one_ulp_off, _dense),
    Control("an NF4 scale", "folder", weights.change_scale, _packed),
    Control("an NF4 code", "folder", weights.change_code, _packed),
    Control("two tokens swapped", "folder", files.swap_tokens, of_weights=False),
    Control("another chat template", "folder", files.change_template, of_weights=False),
    Control("another end of text", "folder", files.change_eos, of_weights=False),
    Control("other stop tokens", "folder", files.change_stop_tokens, of_weights=False),
    Control("rope_theta", "folder", files.change_rope, of_weights=False),
    Control("rms_norm_eps", "folder", files.change_eps, of_weights=False),
    Control("tie_word_embeddings", "folder", files.change_tying, of_weights=False),
)
