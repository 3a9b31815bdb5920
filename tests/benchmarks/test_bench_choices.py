"""What can be asked for, and what is refused."""

from __future__ import annotations

import pytest

from benchmarks.engine import arms, cases
from benchmarks.gpu.gpu import run_gpu_benchmark
from benchmarks.options import GpuOptions, Options
from qdora_fast.system.errors import ConfigError


def test_all_arms_compete_unless_some_are_named() -> None:
    assert [arm.name for arm in arms.choose(())] == [
        "qlora-peft",
        "qdora-peft",
        "qdora-ours",
        "qdora-ours-folded",
        "qdora-ours-merged",
        "qlora-ours",
        "qlora-ours-no-resident",
    ]


def test_an_arm_brings_the_one_it_is_measured_against() -> None:
    assert [arm.name for arm in arms.choose(["qdora-ours"])] == ["qdora-peft", "qdora-ours"]
    assert arms.ratio_pairs(arms.choose(["qdora-ours"])) == [("qdora-ours", "qdora-peft")]


def test_our_dora_is_compared_with_both_and_our_lora_with_lora() -> None:
    pairs = arms.ratio_pairs(arms.choose(()))
    assert {b for a, b in pairs if a == "qdora-ours"} == {"qdora-peft", "qlora-peft"}
    assert {b for a, b in pairs if a == "qlora-ours"} == {"qlora-peft"}


def test_the_headline_comes_first_and_grad_accum_2_is_measured_there_only() -> None:
    chosen = cases.choose(Options().full())
    assert str(chosen[0]) == "linear 1024, 512 tokens, grad-accum 2, fp32"
    linear = [case for case in chosen if case.kind == "linear"]
    assert {(case.width, case.tokens) for case in linear if case.grad_accum == 2} == {(1024, 512)}
    assert {case.width for case in linear} == {1024, 2048, 4096}
    assert {case.checkpointing for case in chosen if case.kind == "model"} == {False, True}


def test_the_short_protocol_is_part_of_the_full_one() -> None:
    every = (cases.choose(options) for options in (Options(), Options().full()))
    short, full = ({str(case) for case in chosen if case.kind == "linear"} for chosen in every)
    assert short < full


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(case="layer"), "--case layer"),
        (Options(dtypes=("fp8",)), "--dtype fp8"),
        (Options(widths=(100,)), "--widths 100"),
    ],
)
def test_mistakes_are_named(options: Options, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cases.choose(options)


def test_unknown_arms_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unsloth is not an arm; there are qlora-peft"):
        arms.choose(["unsloth"])
    with pytest.raises(ConfigError, match=r"qdora-peft is not an arm; there are qlora-unsloth"):
        run_gpu_benchmark(GpuOptions(device="cpu", arms=("qdora-peft",)))
