"""Does the merged model say what the trained model says? Measured on held-out rows.

Each model is run over the same rows and leaves a `Recording`: its loss on every trained position,
and its full next-token distribution on some of them. Two recordings give an `Agreement`, and
`judge` turns agreements into checks. Recordings are plain tensors on the CPU, so that the models
can be loaded one after the other and need never be in memory together.

What agreement to ask for depends on the merge. `dequant4`, and a base that was never quantised,
reproduce the trained function up to rounding. `original16` differs from it by the base's own
4-bit error, by design: that error is the yardstick then, not zero. What behaviour cannot show is
a magnitude dropped after a light tune, which moves outputs less than quantisation does: that is
caught by structure (`adapter_guard.py`) and by the weights (`proof.py`).
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qdora_fast.errors import ProofError
from qdora_fast.remote_code import remote_code_allowed

BUDGET_BYTES = 256 * 2**20
"""Host memory for the distributions of one recording: with 16 rows and 128k tokens, 32 positions a row."""

NEAR_TIE = 0.1
"""Nats. Two candidates closer than this are a tie that 16-bit logits (spacing 0.125 at 16) cannot decide."""

NOISE_FACTOR = 3.0
"""original16: the merged model may be this many times as far from the trained one as NF4 is from 16 bits."""
NOISE_FLOOR = 1e-4
"""Nats per token. Smaller 4-bit errors are taken for this, so that the yardstick never vanishes."""
LOSS_SHARE, LOSS_FLOOR = 0.01, 0.005
"""original16: held-out loss may rise by 1 %, or by this many nats where the loss itself is tiny."""
EXACT_KL, EXACT_TOP1 = 1e-3, 0.99
"""Merges that reproduce the trained function: KL below, agreement on the first choice above."""

IGNORED = -100


@dataclass(frozen=True)
class Recording:
    """What one model says about some rows."""

    rows_sha256: str
    """Of token ids and labels: only recordings of the same rows can be compared."""
    log_probs: tuple[Tensor, ...]
    """Per row [positions, vocabulary], fp32: log-softmax at evenly spaced trained positions."""
    loss: float
    """Mean cross-entropy over all trained positions, in nats."""
    tokens: int
    """Number of trained positions."""


@dataclass(frozen=True)
class Agreement:
    """How close another model is to a reference."""

    mean_kl: float
    """KL(reference ‖ other), nats per position."""
    top1: float
    """Share of positions where the other's first choice is the reference's, or within `NEAR_TIE` of it."""
    ce_reference: float
    """Held-out loss of the reference in nats per token."""
    ce_other: float
    """The same of the other model."""
    positions: int
    """Positions whose distributions were compared."""


@dataclass(frozen=True)
class Check:
    """One measured value against its limit."""

    name: str
    value: float
    limit: float
    passed: bool
    words: str


@dataclass(frozen=True)
class BehaviourProof:
    """Every check, and the measurements behind them."""

    merge_base: str
    merged: Agreement
    """Trained model against the merged one."""
    base: Agreement
    """Trained model against its base."""
    quantization: Agreement | None
    """Base in NF4 against base in 16 bits; None where no such error enters."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For export.json."""
        return {"passed": self.passed, "kl": self.merged.mean_kl, "top1": self.merged.top1, **asdict(self)}


def record(model: Any, rows: Sequence[Mapping[str, Sequence[int]]], *, budget: int = BUDGET_BYTES) -> Recording:
    """Run a causal language model over rows, one at a time, in evaluation mode.

    Args:
        model: anything that maps input_ids [1, T] to `.logits` [1, T, V]. For the base of a PEFT model, call this
            inside `with model.disable_adapter()`.
        rows: `input_ids` and `labels` (-100 where not trained) of equal length.
        budget: bytes for the distributions; decides how many positions of each row are kept.

    Raises:
        ProofError: no row has a trained position.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [_record_row(model, row, budget // max(1, len(rows))) for row in rows]
    finally:
        model.train(was_training)
    tokens = sum(len(losses) for _, losses in parts)
    if tokens == 0:
        raise ProofError("no held-out row has a trained position, so behaviour cannot be compared; hold out more rows")
    loss = float(torch.cat([losses for _, losses in parts]).double().mean())
    return Recording(_rows_sha256(rows), tuple(log_probs for log_probs, _ in parts), loss, tokens)


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
        p = ours.double()
        terms = p.exp() * (p - theirs.double())  # [positions, V]
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


def judge(
    merge_base: str,
    tuned_vs_merged: Agreement,
    tuned_vs_base: Agreement,
    base_nf4_vs_base16: Agreement | None = None,
    *,
    packed: bool = False,
    trained_in_4bit: bool = True,
) -> BehaviourProof:
    """Decide whether the merged model is the trained one.

    Args:
        merge_base: `original16` or `dequant4`.
        tuned_vs_merged: the trained model against the merged one, opened again from its folder.
        tuned_vs_base: the trained model against the base it was trained on.
        base_nf4_vs_base16: the base in 4 bits against 16 bits. Only for `original16` after training in 4 bits;
            without it the merged model must reproduce the trained one up to rounding.
        packed: the merged model is in 4 bits itself, which is one more 4-bit error after training in 4 bits. Its
            loss is `survival.py`'s business.
        trained_in_4bit: the trained model carries the base's 4-bit error.
    """
    if merge_base == "original16" and base_nf4_vs_base16 is not None:
        errors = packed + trained_in_4bit
        checks = _within_noise(tuned_vs_merged, tuned_vs_base, base_nf4_vs_base16, errors)
        checks = tuple(check for check in checks if not (packed and check.name == "held_out_loss"))
    else:
        checks = _the_same(tuned_vs_merged)
    return BehaviourProof(merge_base, tuned_vs_merged, tuned_vs_base, base_nf4_vs_base16, checks)


def reopen(folder: Path, *, device: str, dtype: torch.dtype | None = None, in_4bit: bool = False) -> Any:
    """Open a model folder as any reader would: plain AutoModelForCausalLM, nothing of the training stack.

    Args:
        device: `cpu`, `cuda`, ...
        dtype: type of computation; None: fp32 on the CPU, where 16-bit arithmetic is slow, else as stored.
        in_4bit: quantise its weights to NF4 as they are loaded.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    chosen = dtype or (torch.float32 if device == "cpu" else "auto")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=chosen,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=remote_code_allowed(),
        device_map={"": device},
        **({"quantization_config": nf4} if in_4bit else {}),
    )
    for module in model.modules():
        if device == "cpu" and hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' Linear4bit
            module.support_avx512bf16_for_cpu = False  # a private packing, with scales in bfloat16
            module.compute_dtype = chosen
    return model.eval()


def release_memory() -> None:
    """Give back what deleted models held, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _within_noise(merged: Agreement, base: Agreement, quantization: Agreement, errors: int) -> tuple[Check, ...]:
    """As far from the trained model as that many 4-bit errors of the base are, no further."""
    noise = NOISE_FACTOR * errors * max(quantization.mean_kl, NOISE_FLOOR)
    loss_limit = merged.ce_reference + max(LOSS_SHARE * merged.ce_reference, LOSS_FLOOR)
    nearer, words = base.mean_kl, "KL(trained ‖ merged), at most KL(trained ‖ base)"
    if base.mean_kl <= noise:
        nearer = noise
        words = "training moved the outputs less than 4-bit noise does: held to that noise, not to KL(trained ‖ base)"
    return (
        _at_most(
            "kl_to_trained",
            merged.mean_kl,
            noise,
            f"KL(trained ‖ merged), at most {NOISE_FACTOR * errors:g} times the 4-bit error",
        ),
        _at_most("held_out_loss", merged.ce_other, loss_limit, "held-out loss of the merged model, at most 1 % more"),
        _at_most("closer_than_base", merged.mean_kl, nearer, words),
    )


def _the_same(merged: Agreement) -> tuple[Check, ...]:
    """dequant4, or a base that was never quantised: the trained function up to rounding."""
    top1 = Check("top1", merged.top1, EXACT_TOP1, merged.top1 > EXACT_TOP1, "share of equal first choices, at least")
    return (_at_most("kl_to_trained", merged.mean_kl, EXACT_KL, "KL(trained ‖ merged), at most"), top1)


def _at_most(name: str, value: float, limit: float, words: str) -> Check:
    """A check that fails above its limit, and on NaN."""
    return Check(name, value, limit, value <= limit, words)


def _record_row(model: Any, row: Mapping[str, Sequence[int]], budget: int) -> tuple[Tensor, Tensor]:
    """Distributions [positions, V] at some trained positions of a row, and the loss [n] at all of them."""
    device = next(model.parameters()).device
    ids = torch.tensor([list(row["input_ids"])], device=device)  # [1, T]
    labels = torch.tensor(list(row["labels"]), device=device)[1:]  # [T - 1], what each position should say next
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        trained = (labels != IGNORED).nonzero()[:, 0]
        losses = torch.cat([cross_entropy(logits[t].float(), labels[t], reduction="none") for t in trained.split(256)])
        kept = trained[_evenly(len(trained), budget // (4 * logits.shape[-1]))]
        return logits[kept].float().log_softmax(dim=-1).cpu(), losses.cpu()


def _evenly(count: int, most: int) -> Tensor:
    """Indices of at most `most` (at least one) evenly spaced items out of `count`."""
    wanted = min(count, max(1, most))
    return torch.linspace(0, count - 1, wanted).round().long() if wanted else torch.empty(0, dtype=torch.long)


def _rows_sha256(rows: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """A fingerprint of token ids and labels."""
    content = [[list(map(int, row["input_ids"])), list(map(int, row["labels"]))] for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
