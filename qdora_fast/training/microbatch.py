"""Micro-batches as collators make them, split into parts whose gradients add up, and read back into conversations.

There are two kinds. A padded one has a row a conversation: every tensor is [rows, tokens]. A padding-free one is a
single row [1, tokens] in which conversations follow each other: `position_ids` start from 0 with each, and Unsloth puts
their lengths beside it (`packed_seq_lengths`). The first is split between rows, and a part loses the columns that only
padded the other; the second between conversations. Never inside one: its tokens see each other.

Nothing here knows why a batch is split; see `oom.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

Batch = Mapping[str, Any]
"""Tensors by name, `input_ids` among them, and flags that hold for all rows."""

LENGTHS = "packed_seq_lengths"


class CannotSplit(Exception):
    """A batch that cannot be split; the message says what it is."""


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` parts, a power of two, in order; in fewer where it cannot be split so often."""
    if parts < 2:
        return [batch]
    try:
        first, second = halves(batch)
    except CannotSplit:
        return [batch]
    return [*split(first, parts // 2), *split(second, parts // 2)]


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Two parts, as equal in rows (padded) or tokens (padding-free) as can be.

    Raises:
        CannotSplit: one conversation, or something in the batch that cannot be split to match.
    """
    rows, tokens = batch["input_ids"].shape
    if rows > 1:
        middle = (rows + 1) // 2
        return _rows(batch, slice(0, middle)), _rows(batch, slice(middle, rows))
    inner = _starts(batch)[1:]
    if not inner:
        raise CannotSplit(f"one row of {tokens:,} tokens")
    cut = min(inner, key=lambda start: abs(2 * start - tokens))
    return _tokens(batch, slice(0, cut)), _tokens(batch, slice(cut, tokens))


def conversations(batch: Batch) -> list[list[int]]:
    """The token ids of each conversation, without padding."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is not None:
        return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
    if len(ids) > 1:
        return [row.tolist() for row in ids]
    return [ids[0, start:end].tolist() for start, end in pairwise([*_starts(batch), ids.shape[1]])]


def trained_tokens(batch: Batch) -> Any:
    """How many tokens carry loss: a tensor without dimensions."""
    return (batch["labels"][..., 1:] != -100).sum()


def _starts(batch: Batch) -> list[int]:
    """Where the conversations of a single row begin."""
    positions = batch.get("position_ids")
    starts: list[int] = [0] if positions is None else (positions[0] == 0).nonzero().flatten().tolist()
    return starts


def _rows(batch: Batch, chosen: slice) -> Batch:
    """These rows, without columns at the end that are padding in all of them. (At the beginning a row's first token
    would lose the column that predicts it.)"""
    shape = batch["input_ids"].shape
    part = {key: value if _is_flag(value) else _slice(key, value, shape, chosen) for key, value in batch.items()}
    mask = part.get("attention_mask")
    if mask is None:
        return part
    columns = (slice(None), slice(0, int(mask.any(dim=0).nonzero().max()) + 1))
    return {key: value if _is_flag(value) else value[columns].contiguous() for key, value in part.items()}


def _tokens(batch: Batch, chosen: slice) -> Batch:
    """These tokens of a single row."""
    shape = batch["input_ids"].shape
    part = {}
    for key, value in batch.items():
        if key == LENGTHS:
            ends = value.cumsum(0)
            part[key] = value[(ends > chosen.start) & (ends <= chosen.stop)]
            if int(part[key].sum()) != chosen.stop - chosen.start:
                raise CannotSplit(f"{LENGTHS} say otherwise than position_ids where its conversations begin")
        else:
            part[key] = value if _is_flag(value) else _slice(key, value, shape, slice(None), chosen).contiguous()
    return part


def _slice(key: str, value: Any, shape: Any, *chosen: slice) -> Any:
    if getattr(value, "shape", None) != shape:
        raise CannotSplit(f"its {key} cannot be split with the rows")
    return value[chosen]


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
