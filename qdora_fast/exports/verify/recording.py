"""What a model says about some rows, recorded, and how far two recordings are apart.

A `Recording` holds a model's loss on every trained position of each row and its full next-token
distribution on some of them. Recordings are plain tensors on the CPU, so that models can be loaded one after
the other and need never be in memory together, and they can be handed to another process.
What distance is allowed is the business of `outputs.py`; what it means for the user that of `distance.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdora_fast.data.loss import labelled, token_losses
from qdora_fast.engine.frozen import set_repacking
from qdora_fast.evaluation.logits import logits_at
from qdora_fast.models.model_class import auto_class, config_in
from qdora_fast.system.errors import ProofError
from qdora_fast.system.remote_code import remote_code_allowed

BUDGET_BYTES = 256 * 2**20
"""Host memory for the distributions of one recording: with 16 rows and 128k tokens, 32 positions a row."""

NEAR_TIE = 0.1
"""Nats. Two candidates closer than this are a tie that 16-bit logits (spacing 0.125 at 16) cannot decide."""

Rows = Sequence[Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Recording:
    """What one model says about some rows."""

    rows_sha256: str
    """Of token ids and labels: only recordings of the same rows can be compared."""
    log_probs: tuple[Tensor, ...]
    """Per row [positions, vocabulary], fp32: log-softmax at evenly spaced trained positions."""
    losses: tuple[float, ...]
    """Per row: summed cross-entropy over its trained positions, in nats."""
    counts: tuple[int, ...]
    """Per row: number of trained positions."""

    @property
    def tokens(self) -> int:
        """Number of trained positions."""
        return sum(self.counts)

    @property
    def loss(self) -> float:
        """Mean cross-entropy over all trained positions, in nats."""
        return sum(self.losses) / self.tokens

    def save(self, file: Path) -> None:
        """Write to a safetensors file."""
        from safetensors.torch import save_file

        rows = {f"{number:06d}": row.contiguous() for number, row in enumerate(self.log_probs)}
        facts = {"rows_sha256": self.rows_sha256, "losses": json.dumps(self.losses), "counts": json.dumps(self.counts)}
        save_file(rows, file, metadata=facts)

    @classmethod
    def load(cls, file: Path) -> Recording:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(file, framework="pt") as tensors:
            facts = tensors.metadata()
            rows = tuple(tensors.get_tensor(name) for name in sorted(tensors.keys()))
        losses, counts = (tuple(json.loads(facts[name])) for name in ("losses", "counts"))
        return cls(facts["rows_sha256"], rows, losses, counts)


@dataclass(frozen=True)
class Agreement:
    """How close another model is to a reference."""

    mean_kl: float
    """KL(reference ‖ other), nats per position."""
    top1: float
    """Share of positions where the other's first choice is the reference's, or within `NEAR_TIE` of it."""
    ce_reference: float
    """Loss of the reference in nats per token."""
    ce_other: float
    """The same of the other model."""
    positions: int
    """Positions whose distributions were compared."""


class RowRecorder:
    """Takes logits at trained positions of rows, in any pieces, and keeps what a recording needs.

    Args:
        rows: `input_ids` and `labels` (-100 where not trained) of equal length.
        budget: bytes for the distributions; decides how many positions of each row are kept.
    """

    def __init__(self, rows: Rows, budget: int = BUDGET_BYTES) -> None:
        self._rows = rows
        self._labelled = [labelled(row["labels"]) for row in rows]
        self._budget = budget // max(1, len(rows))
        self._kept: list[list[Tensor]] = [[] for _ in rows]
        self._losses = [0.0] * len(rows)

    def trained(self, number: int) -> Tensor:
        """Positions of a row that say a trained token next, ascending."""
        positions: Tensor = self._labelled[number][0]
        return positions

    def add(self, number: int, positions: Tensor, logits: Tensor) -> None:
        """Take logits [n, V] at `positions` [n] of a row, some of `trained(number)`."""
        logits = logits.float()
        trained, tokens = self._labelled[number]
        said = tokens[torch.searchsorted(trained, positions)]  # `trained` is ascending
        self._losses[number] += float(token_losses(logits, said).sum())
        wanted = trained[_evenly(len(trained), self._budget // (4 * logits.shape[-1]))]
        chosen = torch.isin(positions, wanted).to(logits.device)
        self._kept[number].append(logits[chosen].log_softmax(dim=-1).cpu())

    def recording(self) -> Recording:
        """What was taken.

        Raises:
            ProofError: no row has a trained position.
        """
        counts = tuple(len(self.trained(number)) for number in range(len(self._rows)))
        if not sum(counts):
            raise ProofError("no held-out row has a trained position, so nothing can be compared; hold out more rows")
        width = next(parts[0].shape[-1] for parts in self._kept if parts)
        log_probs = tuple(torch.cat(parts) if parts else torch.empty(0, width) for parts in self._kept)
        return Recording(_rows_sha256(self._rows), log_probs, tuple(self._losses), counts)


def record(model: Any, rows: Rows, *, budget: int = BUDGET_BYTES) -> Recording:
    """Run a causal language model over rows, one at a time, in evaluation mode.

    Args:
        model: maps input_ids [1, T] to `.logits` [1, T, V], of which those of trained positions alone are made. For
            the base of a PEFT model, call this inside `with model.disable_adapter()`.
        rows, budget: see `RowRecorder`.

    Raises:
        ProofError: no row has a trained position.
    """
    recorder, was_training = RowRecorder(rows, budget), model.training
    model.eval()
    try:
        for number, row in enumerate(rows):
            positions = recorder.trained(number)
            ids = torch.tensor([list(row["input_ids"])], device=next(model.parameters()).device)  # [1, T]
            for some, logits in logits_at(model, ids, positions.to(ids.device)):
                recorder.add(number, some.cpu(), logits)
    finally:
        model.train(was_training)
    return recorder.recording()


def compare(reference: Recording, other: Recording) -> Agreement:
    """Measure how far `other` is from `reference`.

    Raises:
        ProofError: the two models have different vocabularies.
    """
    assert reference.rows_sha256 == other.rows_sha256, "recordings of different rows"
    kl, agreed = [], []
    for ours, theirs in zip(reference.log_probs, other.log_probs, strict=True):
        if ours.shape != theirs.shape:
            raise ProofError(
                f"the models have vocabularies of {ours.shape[-1]} and {theirs.shape[-1]} tokens; compare a model with "
                "its own base (was the vocabulary resized?)"
            )
        p, q = ours.double().log_softmax(dim=-1), theirs.double().log_softmax(dim=-1)  # anew: fp32 rounds the sum
        terms = p.exp() * (p - q)  # [positions, V]
        kl.append(terms.where(p > -torch.inf, 0.0).sum(dim=-1))
        choice = ours.gather(1, theirs.argmax(dim=-1, keepdim=True))[:, 0]
        agreed.append(ours.amax(dim=-1) - choice <= NEAR_TIE)
    positions = torch.cat(kl)
    return Agreement(
        mean_kl=float(positions.mean()),
        top1=float(torch.cat(agreed).double().mean()),
        ce_reference=reference.loss,
        ce_other=other.loss,
        positions=len(positions),
    )


def reopen(folder: Path, *, device: str, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """Open a model folder as any reader would: plain Transformers, nothing of the training stack.

    Args:
        device: `cpu`, `cuda`, ...
        dtype: type of computation; None: fp32 on the CPU, where 16-bit arithmetic is slow, else as stored.
        options: of `from_pretrained`, for instance another `device_map`.
    """
    described = config_in(folder)
    chosen = dtype or (torch.float32 if device == "cpu" else "auto")
    model = auto_class(described).from_pretrained(
        str(folder),
        dtype=chosen,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=remote_code_allowed(),
        **{"device_map": {"": device}, **options},
    )
    for module in model.modules():
        four_bit = set_repacking(module, False) is not None
        if four_bit and isinstance(chosen, torch.dtype):
            module.compute_dtype = module.weight.quant_state.dtype = chosen
        elif isinstance(chosen, torch.dtype):  # beside 4-bit weights, a vision model's parts keep their own
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(chosen) if parameter.is_floating_point() else parameter.data
    return model.eval()


def _evenly(count: int, most: int) -> Tensor:
    """Indices of at most `most` (at least one) evenly spaced items out of `count`."""
    wanted = min(count, max(1, most))
    return torch.linspace(0, count - 1, wanted).round().long() if wanted else torch.empty(0, dtype=torch.long)


def _rows_sha256(rows: Rows) -> str:
    """A fingerprint of token ids and labels."""
    content = [[list(map(int, row["input_ids"])), list(map(int, row["labels"]))] for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
