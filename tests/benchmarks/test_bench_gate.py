"""The gate is green for what is right, red for what is wrong, and its oracle is right by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.engine import gate, oracle
from benchmarks.engine.arms import ARMS, Arm
from benchmarks.engine.cases import Case
from benchmarks.engine.subjects import Subject, adapted, build

PEFT, OURS = ARMS[1], ARMS[2]
LINEAR = Case("linear", "fp32", 128, 40, 1, rank=4)
MODEL = Case("model", "fp32", 128, 24, 1, layers=2, rank=4)


@pytest.mark.parametrize(
    "case",
    [
        LINEAR,
        replace(LINEAR, dtype="bf16"),
        replace(LINEAR, dtype="bf16-pure"),
        MODEL,
        replace(MODEL, dtype="bf16", checkpointing=True),
    ],
    ids=str,
)
def test_every_arm_is_green(case: Case) -> None:
    found = gate.check([build(case, arm) for arm in ARMS])
    assert found.passed, (found.red, found.strangers)
    compared = {(finding.arm, finding.tensor.split()[0]) for finding in found.findings}
    assert {kind for arm, kind in compared if arm == "qdora-ours"} == {"output", "dx", "dA", "dB", "dm"}
    assert {kind for arm, kind in compared if arm == "qlora-ours"} == {"output", "dx", "dA", "dB"}


def test_all_arms_start_from_the_same_numbers() -> None:
    first, *others = [dict(adapted(build(MODEL, arm).model)) for arm in ARMS if arm.dora]
    for layers in others:
        for name, layer in layers.items():
            for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
                mine, theirs = (getattr(each, part)["default"].weight for each in (first[name], layer))
                assert torch.equal(mine, theirs)
                assert mine.any()


def test_a_magnitude_off_by_one_per_cent_is_red() -> None:
    peft, ours = build(LINEAR, PEFT), build(LINEAR, OURS)
    ((_, layer),) = adapted(ours.model)
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(1.01)
    found = gate.check([peft, ours])
    assert not found.passed
    assert {finding.tensor for finding in found.red} >= {"output", "dx", "dA linear", "dB linear"}
    assert found.red[0].ours == pytest.approx(0.01, rel=0.01)


def test_one_wrong_layer_of_many_is_red_and_named() -> None:
    peft = {f"dA layer{number}": 1e-2 for number in range(300)}
    ours = {**peft, "dA layer7": 3e-2}
    mean, single = gate.compare("ours", ours, peft, tolerance=2**-8)
    assert mean.passed
    assert not single.passed
    assert single.tensor == "dA layer7"


def test_a_value_that_is_not_a_number_is_red() -> None:
    (finding,) = gate.compare("ours", {"output": math.nan}, {"output": 1e-7}, tolerance=1e-5)
    assert not finding.passed


def test_an_arm_that_runs_pefts_forward_is_no_arm_of_ours() -> None:
    off = Arm("qdora-ours", dora=True, install={"impl": "off"})
    found = gate.check([build(LINEAR, PEFT), build(LINEAR, off)])
    assert not found.red
    assert not found.passed
    assert "1 of 1 layers were left to PEFT" in found.strangers[0]


@pytest.mark.parametrize("case", [LINEAR, MODEL], ids=str)
def test_the_oracle_agrees_with_stock_peft(case: Case) -> None:
    for arm in ARMS[:2]:
        subject = build(case, arm)
        truth = oracle.ask(subject)
        assert max(gate.errors(subject.probe(), truth).values()) < 1e-5


def test_the_oracles_gradients_are_those_of_its_output() -> None:
    """By central differences, for A, B and m; the norm is detached, so it is held still for A and B."""
    subject = build(LINEAR, PEFT)
    ((_, layer),) = adapted(subject.model)
    x = torch.randn(8, LINEAR.width, dtype=torch.float64)
    upstream = torch.randn(8, LINEAR.width, dtype=torch.float64)
    mine = oracle.OracleLinear(layer)
    mine(x).backward(upstream)
    norm = (mine.weight + mine.scale * mine.b @ mine.a).norm(dim=1).detach()

    def value() -> float:
        dense = mine.m[:, None] / norm[:, None] * (mine.weight + mine.scale * mine.b @ mine.a)
        return float((upstream * (x @ dense.T)).sum())

    for parameter, place in ((mine.a, (1, 5)), (mine.b, (7, 2)), (mine.m, (11,))):
        with torch.no_grad():
            parameter[place] += 1e-4
            above = value()
            parameter[place] -= 2e-4
            below = value()
            parameter[place] += 1e-4
        assert parameter.grad[place].item() == pytest.approx((above - below) / 2e-4, rel=1e-6)


def test_a_probe_leaves_the_weights_alone() -> None:
    subject: Subject = build(LINEAR, OURS)
    first, second = subject.probe(), subject.probe()
    assert all(torch.equal(first[name], second[name]) for name in first)
