"""Recording and comparing, on real tiny models and on distributions whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import VOCABULARY, load, save_base

from qdora_fast.exports.verify.recording import Recording, compare, record
from qdora_fast.system.errors import ProofError

Rows = list[dict[str, list[int]]]


@pytest.fixture
def rows() -> Rows:
    """Six rows; the first third of each is a prompt."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (6, 30), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100] * 10 + row[10:]} for row in ids]


def recording(*log_probs: torch.Tensor) -> Recording:
    """An invented recording."""
    return Recording("rows", log_probs, (1.0,) * len(log_probs), tuple(len(part) for part in log_probs))


def test_the_loss_is_the_models_own(tmp_path: Path, rows: Rows) -> None:
    model = load(save_base(tmp_path / "base")).train()
    recorded = record(model, rows)
    losses = [model(torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss.item() for r in rows]
    assert recorded.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)  # rows of equal length
    assert [total / 20 for total in recorded.losses] == pytest.approx(losses, rel=1e-5)
    assert recorded.tokens == 6 * 20
    assert [len(part) for part in recorded.log_probs] == [20] * 6
    assert model.training


def test_memory_is_bounded_and_every_row_is_heard(tmp_path: Path, rows: Rows) -> None:
    model = load(save_base(tmp_path / "base"))
    small = record(model, rows, budget=6 * 3 * VOCABULARY * 4)
    assert [len(part) for part in small.log_probs] == [3] * 6
    full = record(model, rows)
    assert torch.equal(small.log_probs[2], full.log_probs[2][[0, 10, 19]])
    assert small.loss == full.loss
    assert [len(part) for part in record(model, rows, budget=1).log_probs] == [1] * 6


def test_rows_without_an_answer_cannot_be_compared(tmp_path: Path, rows: Rows) -> None:
    silent = [{**row, "labels": [-100] * 30} for row in rows]
    model = load(save_base(tmp_path / "base"))
    with pytest.raises(ProofError, match="hold out more rows"):
        record(model, silent)
    assert record(model, [silent[0], rows[0]]).tokens == 20


def test_a_recording_is_read_as_it_was_written(tmp_path: Path, rows: Rows) -> None:
    recorded = record(load(save_base(tmp_path / "base")), [*rows, {**rows[0], "labels": [-100] * 30}])
    recorded.save(tmp_path / "file.safetensors")
    again = Recording.load(tmp_path / "file.safetensors")
    assert (again.losses, again.counts, again.rows_sha256) == (recorded.losses, recorded.counts, recorded.rows_sha256)
    assert all(map(torch.equal, again.log_probs, recorded.log_probs)) and len(again.log_probs) == 7
    assert compare(recorded, again).mean_kl == 0


def test_kl_and_first_choices_on_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), torch.tensor([[0.25, 0.25, 0.5], [0.9, 0.1, 0.0]])
    measured = compare(recording(p.log()), recording(q.log()))
    assert measured.mean_kl == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert measured.top1 == 0.5
    near, nearer = torch.tensor([[0.50, 0.47, 0.03]]).log(), torch.tensor([[0.47, 0.50, 0.03]]).log()
    assert compare(recording(near), recording(nearer)).top1 == 1.0
    with pytest.raises(ProofError, match="vocabularies of 3 and 2"):
        compare(recording(p.log()), recording(p[:, :2].log()))
