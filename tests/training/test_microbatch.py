"""Parts of a micro-batch are its rows, each once and whole, in their order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.training.microbatch import CannotSplit, conversations, halves, split, trained_tokens

texts = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=9)
powers = st.sampled_from([1, 2, 4, 8, 16])


def _padded(rows: list[list[int]], *, left: bool = False) -> dict[str, Any]:
    """As TRL's collator makes it; tokens are their own labels."""
    width = max(map(len, rows))

    def filled(row: list[int], filler: int) -> list[int]:
        padding = [filler] * (width - len(row))
        return padding + row if left else row + padding

    return {
        "input_ids": torch.tensor([filled(row, 0) for row in rows]),
        "labels": torch.tensor([filled(row, -100) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row), 0) for row in rows]),
    }


def _height(part: Any) -> int:
    return int(part["input_ids"].shape[0])


def _padding_free(rows: list[list[int]]) -> dict[str, Any]:
    """As TRL's collator and Unsloth's around it make it."""
    flat = torch.tensor([[token for row in rows for token in row]])
    positions = torch.tensor([[place for row in rows for place in range(len(row))]])
    labels = flat.masked_fill(positions == 0, -100)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return {"input_ids": flat, "labels": labels, "position_ids": positions, "packed_seq_lengths": lengths}


@given(texts, powers, st.booleans())
def test_padded_rows_are_dealt_out_without_the_padding_of_others(rows, wanted: int, left: bool) -> None:
    batch = _padded(rows, left=left)
    found = split(batch, wanted)
    assert [row for part in found for row in conversations(part)] == rows
    assert max(map(_height, found)) <= -(-len(rows) // wanted), "as equal as can be"
    assert sum(int(trained_tokens(part)) for part in found) == int(trained_tokens(batch))
    for part in found if wanted > 1 and len(rows) > 1 else []:
        longest = max(map(len, rows if left else conversations(part)))
        assert part["input_ids"].shape[1] == longest
        assert part["labels"].shape == part["attention_mask"].shape == part["input_ids"].shape


@given(texts, powers)
def test_padding_free_rows_are_cut_between_conversations(rows, wanted: int) -> None:
    batch = _padding_free(rows)
    found = split(batch, wanted)
    assert [row for part in found for row in conversations(part)] == rows
    assert len(found) <= min(wanted, len(rows))
    assert sum(int(trained_tokens(part)) for part in found) == int(trained_tokens(batch))
    for part in found:
        assert part["position_ids"][0, 0] == 0
        assert part["packed_seq_lengths"].tolist() == [len(row) for row in conversations(part)]
        assert part["packed_seq_lengths"].dtype == torch.int32
    for key in ("input_ids", "labels", "position_ids"):
        assert torch.equal(torch.cat([part[key] for part in found], dim=1), batch[key])


@given(texts.filter(lambda rows: len(rows) > 1))
def test_no_other_cut_is_nearer_to_the_middle(rows) -> None:
    first, second = halves(_padding_free(rows))
    total = sum(map(len, rows))
    cut = first["input_ids"].shape[1]
    starts = [sum(map(len, rows[:n])) for n in range(1, len(rows))]
    assert abs(cut - total / 2) == min(abs(start - total / 2) for start in starts)
    assert cut + second["input_ids"].shape[1] == total


@given(texts, powers)
def test_the_loss_of_the_parts_is_that_of_the_whole(rows, wanted: int) -> None:
    """A loss that looks at neighbours, as a causal model's does: none is lost at a cut, none is new."""
    table = torch.arange(100.0).outer(torch.arange(100.0)).sin()

    def loss(batch: Any) -> float:
        ids, targets = batch["input_ids"][:, :-1], batch["labels"][:, 1:]
        kept = targets != -100
        return float(table[ids[kept], targets[kept]].double().sum())

    for batch in (_padded(rows), _padding_free(rows)):
        assert sum(map(loss, split(batch, wanted))) == pytest.approx(loss(batch), abs=1e-9)


def test_one_part_is_the_batch_itself() -> None:
    batch = _padded([[1, 2], [3]])
    assert split(batch, 1)[0] is batch


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (_padded([[1, 2, 3]]), "one row of 3 tokens"),
        (_padding_free([[1, 2, 3]]), "one row of 3 tokens"),
        (_padded([[1], [2]]) | {"pixel_values": torch.zeros(5, 3)}, "its pixel_values cannot be split"),
        (_padding_free([[1], [2]]) | {"cu_seq_lens_q": torch.tensor([0, 1, 2])}, "its cu_seq_lens_q cannot be split"),
        (_padding_free([[1], [2]]) | {"packed_seq_lengths": torch.tensor([2])}, "packed_seq_lengths say otherwise"),
        (_padded([[1], [2]]) | {"names": ["a", "b"]}, "its names cannot be split"),
    ],
)
def test_what_cannot_be_split_says_why_and_stays_one_part(batch, why: str) -> None:
    with pytest.raises(CannotSplit, match=why):
        halves(batch)
    assert split(batch, 4) == [batch]


def test_flags_go_with_every_part() -> None:
    found = split(_padded([[1], [2]]) | {"use_cache": False}, 2)
    assert [part["use_cache"] for part in found] == [False, False]
    assert [len(part["input_ids"]) for part in found] == [1, 1]
    assert list(pairwise(conversations(found[0]) + conversations(found[1]))) == [([1], [2])]
