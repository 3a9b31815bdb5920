"""Which trainings a comparison consists of, and what they have in common."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.config.loader import make_config
from qdora_fast.recipes.compare.arms import Arm, Trial, choose_arms, choose_rates, choose_trials, numbers, settings_for
from qdora_fast.system.errors import ConfigError

CONFIG = {"model": {"name": "demo"}, "data": {"path": "demo"}}


def test_every_method_comes_with_every_ratio_but_full_has_none() -> None:
    arms = choose_arms(["qdora", "full", "lora"], [1, 16])
    assert [arm.name for arm in arms] == ["qdora", "qdora-plus16", "full", "lora", "lora-plus16"]
    assert [arm.spoken for arm in arms][:3] == ["QDoRA", "QDoRA, LoRA+ 16", "full fine-tuning"]


def test_what_is_named_twice_is_trained_once() -> None:
    assert choose_arms(["lora", "lora"], [1, 1.0]) == [Arm("lora")]


@pytest.mark.parametrize(
    ("methods", "ratios", "words"),
    [
        (["lora", "dorra"], [1], r"--methods: there is no method 'dorra'; choose from lora, qlora, dora, qdora, full"),
        (["lora"], [0.5], r"--loraplus: 0.5 is no ratio"),
        (["lora"], [float("nan")], r"--loraplus: nan is no ratio"),
        ([], [1], r"must each name at least one"),
        (["lora"], [], r"must each name at least one"),
    ],
)
def test_a_wrong_arm_is_named_with_the_fix(methods: list[str], ratios: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_arms(methods, ratios)


def test_a_list_of_numbers_that_is_none_is_an_error_of_its_option() -> None:
    assert numbers("--loraplus", " 1, 16,") == [1, 16]
    with pytest.raises(ConfigError, match=r"--loraplus: '1;16' is not a list of numbers"):
        numbers("--loraplus", "1;16")


def test_full_fine_tuning_learns_at_a_tenth_of_the_rate_unless_told() -> None:
    config = make_config(CONFIG)
    assert choose_rates(config, [], [])["dora"] == (config.train.learning_rate,)
    assert choose_rates(config, [1e-3, 2e-3], [])["full"] == pytest.approx((1e-4, 2e-4))
    assert choose_rates(config, [1e-3], [5e-5, 1e-4]) == {"full": (5e-5, 1e-4)} | dict.fromkeys(
        ("lora", "qlora", "dora", "qdora"), (1e-3,)
    )
    with pytest.raises(ConfigError, match="2 is no learning rate"):
        choose_rates(config, [2.0], [])


def test_trials_go_seed_by_seed_so_that_an_early_end_leaves_whole_seeds() -> None:
    arms = choose_arms(["lora", "full"], [1])
    trials = choose_trials(arms, {"lora": (1e-3, 2e-3), "full": (1e-4,)}, 7, 2)
    assert [(trial.seed, trial.arm.method, trial.learning_rate) for trial in trials] == [
        (seed, method, rate) for seed in (7, 8) for method, rate in (("lora", 1e-3), ("lora", 2e-3), ("full", 1e-4))
    ]
    with pytest.raises(ConfigError, match="--seeds: 0 is out of range"):
        choose_trials(arms, {}, 7, 0)


@settings(deadline=None)
@given(
    st.sampled_from(["lora", "qlora", "dora", "qdora", "full"]),
    st.sampled_from([1.0, 4.0, 16.0]),
    st.integers(0, 2**32 - 1),
)
def test_trials_differ_in_method_rates_and_seed_and_in_nothing_else(method: str, ratio: float, seed: int) -> None:
    train = {"magnitude_learning_rate": 1e-3, "early_stopping": 2, "epochs": 3, "tracker": "wandb"}
    config = make_config(CONFIG | {"train": train, "export": {"merge_base": "dequant4"}})
    settings = settings_for(config, Trial(Arm(method, ratio), 5e-4, seed))
    make_config(settings.model_dump())  # valid, though it was not made through the validators
    assert settings.train.seed == seed
    assert settings.train.loraplus_ratio == (None if ratio == 1 else ratio)
    assert settings.adapter.quantized == (method in ("qlora", "qdora"))
    assert settings.adapter.decomposed == (method in ("dora", "qdora"))
    assert settings.train.early_stopping is None
    assert settings.train.tracker == "none"
    free = {"learning_rate", "loraplus_ratio", "seed", "early_stopping", "tracker", "magnitude_learning_rate"}
    assert settings.train.model_dump(exclude=free) == config.train.model_dump(exclude=free)
    assert settings.adapter.model_dump(exclude={"method"}) == config.adapter.model_dump(exclude={"method"})
    for section in ("model", "data", "engine", "evaluation"):
        assert getattr(settings, section) == getattr(config, section)
