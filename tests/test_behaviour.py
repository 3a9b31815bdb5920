"""Recording, comparing and judging, on real tiny models and on distributions whose answer is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import VOCABULARY, adapt, edit, load, load_in_4bit, save_base

from qdora_fast.base_weights import MergeRecipe
from qdora_fast.behaviour import Agreement, Recording, compare, judge, record, reopen
from qdora_fast.errors import ProofError
from qdora_fast.merge import merge

Rows = list[dict[str, list[int]]]


@pytest.fixture
def rows() -> Rows:
    """Six rows; the first third of each is a prompt."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (6, 30), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100] * 10 + row[10:]} for row in ids]


def agreement(kl: float, *, ce: float = 2.0, top1: float = 1.0) -> Agreement:
    """An invented measurement."""
    return Agreement(mean_kl=kl, top1=top1, ce_reference=2.0, ce_other=ce, positions=100)


def recording(*log_probs: torch.Tensor) -> Recording:
    """An invented recording."""
    return Recording("rows", log_probs, loss=1.0, tokens=sum(len(part) for part in log_probs))


def test_the_loss_is_the_models_own(tmp_path: Path, rows: Rows) -> None:
    model = load(save_base(tmp_path / "base")).train()
    recorded = record(model, rows)
    losses = [model(torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss.item() for r in rows]
    assert recorded.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)  # rows of equal length
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


def test_kl_and_first_choices_on_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), torch.tensor([[0.25, 0.25, 0.5], [0.9, 0.1, 0.0]])
    measured = compare(recording(p.log()), recording(q.log()))
    assert measured.mean_kl == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert measured.top1 == 0.5
    near, nearer = torch.tensor([[0.50, 0.47, 0.03]]).log(), torch.tensor([[0.47, 0.50, 0.03]]).log()
    assert compare(recording(near), recording(nearer)).top1 == 1.0
    with pytest.raises(ProofError, match="vocabularies of 3 and 2"):
        compare(recording(p.log()), recording(p[:, :2].log()))


def test_original16_is_held_to_the_4bit_error() -> None:
    noise, base = agreement(0.002), agreement(0.2)

    def failed(merged: Agreement, base: Agreement = base, noise: Agreement = noise) -> list[str]:
        return [check.name for check in judge("original16", merged, base, noise).checks if not check.passed]

    assert failed(agreement(0.0059)) == []
    assert failed(agreement(0.0061)) == ["kl_to_trained"]
    assert failed(agreement(0.001, ce=2.03)) == ["held_out_loss"]
    assert failed(agreement(0.3)) == ["kl_to_trained", "closer_than_base"]
    assert failed(agreement(math.nan)) == ["kl_to_trained", "closer_than_base"]
    assert failed(agreement(2e-4), noise=agreement(0.0)) == []  # a vanishing yardstick has a floor
    assert failed(agreement(0.002), base=agreement(1e-5)) == []  # a tune too light to be told from noise
    tiny = replace(agreement(0.001), ce_reference=0.01, ce_other=0.012)
    assert failed(tiny) == []  # 1 % of a tiny loss is less than what can be measured


@pytest.mark.parametrize(("merge_base", "noise"), [("dequant4", agreement(0.002)), ("original16", None)])
def test_a_merge_without_4bit_error_is_held_to_rounding(merge_base: str, noise: Agreement | None) -> None:
    assert judge(merge_base, agreement(1e-6), agreement(0.2), noise).passed
    assert not judge(merge_base, agreement(0.0019), agreement(0.2), noise).passed
    assert not judge(merge_base, agreement(1e-6, top1=0.98), agreement(0.2), noise).passed


@pytest.mark.parametrize("merge_base", ["original16", "dequant4"])
def test_a_qdora_run_is_proven_and_a_bad_merge_is_not(merge_base: str, tmp_path: Path, rows: Rows) -> None:
    base = save_base(tmp_path / "base")
    live = adapt(load_in_4bit(base, torch.float32), use_dora=True, b_std=0.3)
    live.save_pretrained(tmp_path / "adapter")
    tuned = record(live, rows)
    with live.disable_adapter():
        base_nf4 = record(live, rows)
    recipe = MergeRecipe(merge_base, trained_dtype=torch.float32)  # type: ignore[arg-type]
    merge(base, tmp_path / "adapter", tmp_path / "out", recipe)
    to_base = compare(tuned, base_nf4)
    noise = compare(base_nf4, record(reopen(base, device="cpu"), rows)) if merge_base == "original16" else None

    merged = record(reopen(tmp_path / "out", device="cpu"), rows)
    proof = judge(merge_base, compare(tuned, merged), to_base, noise)
    assert proof.passed, proof.checks
    said = json.loads(json.dumps(proof.to_dict()))
    assert said["passed"] is True and said["kl"] == proof.merged.mean_kl

    edit(tmp_path / "adapter", lambda tensors: [t.mul_(1.5) for key, t in tensors.items() if key.endswith("vector")])
    merge(base, tmp_path / "adapter", tmp_path / "bad", recipe)
    bad = record(reopen(tmp_path / "bad", device="cpu"), rows)
    assert not judge(merge_base, compare(tuned, bad), to_base, noise).passed
