"""Figures over the lengths of rows: how long they are, how well they pack, which maximum would hold them.

The packing is tried out rather than estimated by a formula, with the method of the trainer (best-fit decreasing).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 40
PACKED_ROWS = 5_000
"""On how many rows at most the packing is tried out."""
PADDED_BATCH = 8
LENGTH_STEP = 64


@dataclass(frozen=True)
class TokenReport:
    """Lengths and counts in tokens, over the rows of one epoch. Rows dropped as too long are in the histogram."""

    total: int
    trained: int
    longest: int
    mean: float
    percentiles: Mapping[str, int]
    max_length: int
    limit: int
    truncated: int
    """Rows cut at `max_length`; their answers lack an end, and therefore a stop token."""
    too_short: int
    too_long: int
    flags: Mapping[str, int]
    """Rows per flag of `masking.Masked`."""
    edges: tuple[int, ...]
    counts: tuple[int, ...]
    packing_efficiency: float
    """Share of a packed sequence that is filled, by best-fit packing of up to 5,000 rows."""
    packed_sequences: int
    padded_efficiency: float
    """The same for random batches of 8 rows, each padded to its longest."""
    suggested_max_length: int
    """Least `model.max_length` with which 99 % of the rows are retained, a multiple of 64."""

    @property
    def trained_share(self) -> float:
        """Share of all tokens that carry loss, 0 to 1."""
        return self.trained / self.total if self.total else 0.0

    def as_json(self) -> dict[str, Any]:
        """For the report's `tokens`, `packing` and `suggested_max_length`."""
        plain = asdict(self)
        packing = {
            "efficiency": plain.pop("packing_efficiency"),
            "sequences": plain.pop("packed_sequences"),
            "padded_efficiency": plain.pop("padded_efficiency"),
        }
        suggested = plain.pop("suggested_max_length")
        plain["histogram"] = {"edges": plain.pop("edges"), "counts": plain.pop("counts")}
        plain["trained_share"] = self.trained_share
        return {"tokens": plain, "packing": packing, "suggested_max_length": suggested}


def describe_tokens(
    lengths: np.ndarray,
    trained: np.ndarray,
    *,
    beyond: Sequence[int],
    max_length: int,
    limit: int,
    fraction: float,
    truncated: int,
    too_short: int,
    flags: Mapping[str, int],
) -> TokenReport:
    """Figures over rows of `lengths` tokens, of which `trained` carry loss; `beyond`: lengths of rows too long."""
    everything = np.concatenate([lengths, np.array(beyond, lengths.dtype)])
    top = int(max(max_length, everything.max(initial=0)))
    edges = np.unique(np.linspace(0, top, BINS + 1).astype(int))
    counts, _ = np.histogram(everything, edges)
    packed, filled = pack(lengths, max_length)
    needed = np.percentile(everything, 99) / fraction if len(everything) else 1
    return TokenReport(
        total=int(lengths.sum()),
        trained=int(trained.sum()),
        longest=int(lengths.max(initial=0)),
        mean=float(lengths.mean()) if len(lengths) else 0.0,
        percentiles={f"{p}": int(np.percentile(lengths, p)) for p in (50, 90, 99)} if len(lengths) else {},
        max_length=max_length,
        limit=limit,
        truncated=truncated,
        too_short=too_short,
        too_long=len(beyond),
        flags=dict(flags),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        packing_efficiency=filled,
        packed_sequences=packed,
        padded_efficiency=padded_fill(lengths, PADDED_BATCH),
        suggested_max_length=max(LENGTH_STEP, int(-(-needed // LENGTH_STEP) * LENGTH_STEP)),
    )


def pack(lengths: np.ndarray, size: int) -> tuple[int, float]:
    """Best-fit decreasing, as the trainer packs: number of sequences of `size` tokens, and the share that is filled.

    More than 5,000 rows are estimated from 5,000 of them, evenly spaced.
    """
    if not len(lengths):
        return 0, 0.0
    chosen = lengths[np.linspace(0, len(lengths) - 1, min(len(lengths), PACKED_ROWS)).astype(int)]
    room: list[int] = []  # free tokens of open sequences, ascending
    sequences = 0
    for length in sorted(np.minimum(chosen, size).tolist(), reverse=True):
        index = bisect_left(room, length)
        if index == len(room):
            sequences += 1
            left = size - length
        else:
            left = room.pop(index) - length
        room.insert(bisect_left(room, left), left)
    filled = float(np.minimum(chosen, size).sum()) / (sequences * size)
    return round(sequences * len(lengths) / len(chosen)), filled


def padded_fill(lengths: np.ndarray, rows: int) -> float:
    """Share of random batches of so many rows, each padded to its longest, that is not padding."""
    if not len(lengths):
        return 0.0
    shuffled = np.random.default_rng(0).permutation(lengths)
    batches = np.array_split(shuffled, max(1, len(shuffled) // rows))
    return float(lengths.sum()) / sum(int(batch.max()) * len(batch) for batch in batches)
