"""Bytes that are there before a token is seen: base, adapter, gradients, optimizer state, what the engine derives.

All of it is exact: the tests compare each with tensors that bitsandbytes, PEFT, the engine and the optimizers have
really allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from qdora_fast.planning.memory.architecture import Linear
from qdora_fast.planning.memory.job import Job

NF4_BLOCK = 64
"""Weights that share one absmax."""
ABSMAX_BLOCK = 256
"""Absmax values that share one of their own (double quantisation)."""
NF4_TABLES = 16 * 4 + 256 * 4 + 4
"""Of each weight: NF4's 16 values, the 256 values of its absmax codes, and the offset, in fp32."""
STATE_BLOCK = 256
"""Values of 8-bit optimizer state that share one absmax."""
SMALLEST_8BIT = 4096
"""Parameters with fewer values keep 32-bit state."""
STATE_TABLES = 2 * 256 * 4
"""The 256 values of 8-bit state, for both states; once an optimizer."""
EXACT = 4
"""Bytes of a trained value, of its gradient and of 32-bit state: fp32."""


class Trained(NamedTuple):
    """One trained tensor."""

    kind: str
    """A, B, magnitude, tokens or other, as in optimizer.py."""
    values: int


def nf4_bytes(rows: int, columns: int, *, nested: bool = True) -> int:
    """A weight in NF4, as bitsandbytes lays it out; `nested`: with double quantisation."""
    values = rows * columns
    scales = math.ceil(values / NF4_BLOCK)
    if not nested:
        return math.ceil(values / 2) + EXACT * scales + 16 * 4
    return math.ceil(values / 2) + scales + 4 * math.ceil(scales / ABSMAX_BLOCK) + NF4_TABLES


def linear_bytes(job: Job) -> int:
    """The frozen linear layers, without biases."""
    sizes = job.sizes
    if not job.quantized:
        return sizes.linear_values * job.element
    outside = sum(_bytes_of(linear, job) for linear in sizes.outside)
    return outside + sum(_bytes_of(linear, job) * count for block, count in sizes.alike for linear in block.linears)


def _bytes_of(linear: Linear, job: Job) -> int:
    if linear.dense:
        return linear.values * job.element
    return nf4_bytes(linear.rows, linear.columns, nested=job.sizes.nested)


def unquantized_bytes(job: Job) -> int:
    """Embeddings, output head, norms and biases: what NF4 leaves alone."""
    sizes = job.sizes
    return (sizes.embedding_values + sizes.head_values + sizes.norm_values + sizes.bias_values) * job.element


def expert_bytes(job: Job) -> int:
    """Experts that are packed into one tensor a block: NF4 takes linear layers alone."""
    return job.sizes.expert_values * job.element


def tower_bytes(job: Job) -> int:
    """Towers and projectors, which stay as they are."""
    return job.sizes.tower_values * job.element


def trained_tensors(job: Job) -> Iterator[Trained]:
    """Every tensor that learns."""
    for group in job.groups:
        for linear in group.adapted * group.count:
            yield Trained("A", job.rank * linear.columns)
            yield Trained("B", job.rank * linear.rows)
            if job.decomposed:
                yield Trained("magnitude", linear.rows)
    if job.tokens_trained:
        for _ in range(1 if job.sizes.tied else 2):
            yield Trained("tokens", job.tokens_trained * job.sizes.hidden)
    width = job.sizes.vocabulary * job.sizes.hidden
    for _ in range(job.saved_values // width):
        yield Trained("other", width)


def trained_bytes(job: Job) -> int:
    """Adapter and modules trained in full; their gradients take the same again."""
    return EXACT * sum(tensor.values for tensor in trained_tensors(job))


def optimizer_bytes(job: Job) -> int:
    """State of AdamW in the job's variant, as optimizer.py builds it. Paged state counts as if it lay on the card."""
    if job.optimizer == "adamw":
        return sum(2 * EXACT * tensor.values + EXACT for tensor in trained_tensors(job))  # and a count of steps
    small = job.optimizer.endswith("8bit")
    total, tables = 0, 0
    for tensor in trained_tensors(job):
        if small and tensor.kind not in ("magnitude", "tokens") and tensor.values >= SMALLEST_8BIT:
            total += 2 * tensor.values + 2 * 4 * math.ceil(tensor.values / STATE_BLOCK)
            tables = STATE_TABLES
        else:
            total += 2 * EXACT * tensor.values
    return total + tables


def engine_bytes(job: Job) -> int:
    """What the engine derives from A, B and m and keeps until the next optimizer step, and m as it was at the start.

    Copies of A and of s·diag(g)·B in the type of computation, s·diag(g)·B in fp32 for the merged form, c and g, and
    two copies of m.
    """
    if not job.ours:
        return 0
    total = 0
    for group in job.groups:
        for linear in group.adapted:
            each = EXACT * job.rank * linear.rows
            if job.element != EXACT:
                each += job.element * job.rank * (linear.rows + linear.columns)
            if job.decomposed:
                each += 4 * EXACT * linear.rows
            total += each * group.count
    return total
