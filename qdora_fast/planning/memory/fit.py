"""What fits on a card: yes or no, the longest rows, and the pair of batch size and accumulation to train with.

The margin is for what the estimate assumes. A run fits if its held-out rows can be answered one at a time: how many are
at once follows what is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qdora_fast.planning.cards import GIB, Card
from qdora_fast.planning.memory.estimate import Estimate, estimate, evaluation_bytes
from qdora_fast.planning.memory.job import Job

MARGIN_SHARE = 0.05
MARGIN_BYTES = int(0.3 * GIB)
STEP = 64
"""Lengths are tried in multiples of this."""
ENOUGH_TOKENS = 8192
"""More tokens a forward pass no longer make a step faster: a large GPU is busy long before. Not measured yet."""


@dataclass(frozen=True)
class Fit:
    """Settings that fit, with the effective batch unchanged."""

    batch_size: int
    gradient_accumulation: int
    length: int
    """As asked for; shorter only if not even one such row fits."""
    answers: int
    """Held-out rows of full length that can be answered at a time, at most as many as asked for."""
    estimate: Estimate


def margin(card: Card) -> int:
    """Bytes that are to stay free: 5 % of the card and 0.3 GiB."""
    return int(MARGIN_SHARE * card.memory) + MARGIN_BYTES


def fits(need: Estimate, card: Card) -> bool:
    """Whether every phase leaves the margin free."""
    return need.peak_bytes + margin(card) <= card.memory


def longest_length(job: Job, card: Card, batch_size: int = 1) -> int:
    """The longest rows that fit, `batch_size` at a time, in tokens: a multiple of 64, at most what the model was made
    for; 0 if not even 64 fit."""
    most = job.sizes.longest or 1_048_576
    some = replace(job, batch_size=batch_size)
    return STEP * _largest(most // STEP, lambda count: fits(estimate(replace(some, length=count * STEP), card), card))


def best_fit(job: Job, card: Card, *, usual: float | None = None) -> Fit | None:
    """Of the batch sizes that divide the effective batch, the one that should train fastest: the smallest with enough
    tokens to keep a GPU busy, else the largest that fits. If not even one row fits, the longest that does; None if
    nothing does.

    Args:
        usual: tokens that a row usually has, where rows are not packed; None: as many as it may have.
    """
    best: Job | None = None
    for size in (size for size in range(1, job.effective_batch + 1) if job.effective_batch % size == 0):
        tried = replace(job, batch_size=size, gradient_accumulation=job.effective_batch // size)
        if not fits(estimate(tried, card), card):
            break
        best = tried
        if size * (usual or tried.length) >= ENOUGH_TOKENS:
            break
    if best is None:
        longest = longest_length(job, card)
        if longest == 0:
            return None
        best = replace(job, batch_size=1, gradient_accumulation=job.effective_batch, length=longest)
    best = replace(best, answer_batch=most_answers(best, card))
    return Fit(best.batch_size, best.gradient_accumulation, best.length, best.answer_batch, estimate(best, card))


def most_answers(job: Job, card: Card) -> int:
    """Held-out rows of full length that can be answered at a time; at most as many as asked for."""

    def fitting(batch: int) -> bool:
        return evaluation_bytes(job, batch) + margin(card) <= card.memory

    return _largest(job.answer_batch, fitting) if job.evaluates else job.answer_batch


def _largest(most: int, fitting: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, where all smaller ones fit too; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fitting(middle):
            low = middle
        else:
            high = middle - 1
    return low
