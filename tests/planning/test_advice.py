"""Advice follows from settings and facts alone, each line with its reason, and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.planning import advice as planning
from qdora_fast.planning.advice import Advice, Facts


def _config(**sections: dict[str, Any]) -> Config:
    return make_config({"model": {"name": "base"}, "data": {"path": "rows.jsonl"}, **sections})


def advise(config: Config, facts: Facts) -> list[Advice]:
    """Advice on a config."""
    return planning.advise(facts, config.model, config.adapter, config.data, config.train)


def _changes(config: Config, **facts: Any) -> list[str]:
    return [advice.change for advice in advise(config, Facts(**facts))]


def test_memory_short_means_quantise_and_keeps_the_decomposition() -> None:
    assert "adapter.method=qdora" in _changes(_config(adapter={"method": "dora"}), fits=False)
    assert "adapter.method=qlora" in _changes(_config(adapter={"method": "lora"}), fits=False)
    assert "adapter.method=qdora" not in _changes(_config(adapter={"method": "dora"}), fits=True)


def test_quality_short_means_decompose() -> None:
    assert "adapter.method=qdora" in _changes(_config(adapter={"method": "qlora"}))
    assert "adapter.method=dora" in _changes(_config(adapter={"method": "lora"}))
    assert not any("method" in change for change in _changes(_config()))


def test_speed_short_means_loraplus_unless_it_is_on() -> None:
    assert "train.loraplus_ratio=16" in _changes(_config())
    assert "train.loraplus_ratio=16" not in _changes(_config(train={"loraplus_ratio": 8}))


def test_a_16_bit_base_that_fits_is_offered_to_a_quantised_run() -> None:
    assert "adapter.method=dora" in _changes(_config(), dense_fits=True)
    assert "adapter.method=dora" not in _changes(_config(), dense_fits=False)


@pytest.mark.parametrize(
    ("rows", "rank", "advised"),
    [(499, 16, "8"), (499, 8, None), (500, 16, None), (500, 8, "16"), (20_000, 16, "32"), (20_000, 32, None)],
)
def test_rank_follows_the_number_of_rows(rows: int, rank: int, advised: str | None) -> None:
    found = [change for change in _changes(_config(adapter={"r": rank}), rows=rows) if change.startswith("adapter.r=")]
    assert found == ([f"adapter.r={advised}"] if advised else [])


def test_small_sets_get_dropout_three_epochs_half_the_rate_and_early_stopping() -> None:
    changes = _changes(_config(), rows=300)
    assert {"adapter.dropout=0.05", "train.epochs=3", "train.learning_rate=1e-4", "train.early_stopping=2"} <= set(
        changes
    )
    settled = _config(
        adapter={"r": 8, "dropout": 0.1},
        train={"epochs": 3, "learning_rate": 1e-4, "early_stopping": 2, "loraplus_ratio": 16},
    )
    assert _changes(settled, rows=300) == []


def test_large_sets_get_one_epoch_no_dropout_and_plain_lora_at_a_higher_rank_if_time_is_short() -> None:
    advice = advise(_config(adapter={"dropout": 0.1}), Facts(rows=60_000))
    changes = [line.change for line in advice]
    assert {"adapter.method=qlora --set adapter.r=32", "train.epochs=1", "adapter.dropout=0"} <= set(changes)
    assert "time" in next(line.why for line in advice if "qlora" in line.change)
    assert "adapter.method=qlora --set adapter.r=32" not in _changes(_config(), rows=50_000)


def test_what_saves_memory_comes_first_and_is_marked() -> None:
    advice = advise(_config(train={"gradient_checkpointing": "off"}), Facts(fits=False, smaller=(1, 16)))
    assert [line.saves_memory for line in advice[:2]] == [True, True]
    assert advice[1].change == "train.batch_size=1 --set train.gradient_accumulation=16"
    assert not any(line.saves_memory for line in advice[2:])


def test_shorter_rows_are_advised_where_no_batch_fits_and_another_base_where_nothing_does() -> None:
    assert _changes(_config(), fits=False, longest=512)[0] == "model.max_length=512 --set train.batch_size=1"
    assert "smaller base" in advise(_config(), Facts(fits=False, longest=0))[0].why


def test_rows_that_would_be_dropped_are_mentioned() -> None:
    assert any("12%" in line.why and "dropped" in line.why for line in advise(_config(), Facts(too_long=0.12)))
    cut = _config(data={"path": "r", "on_long": "truncate"})
    assert any("cut" in line.why for line in advise(cut, Facts(too_long=0.12)))


def test_few_steps_and_large_models_are_noticed() -> None:
    assert "train.effective_batch=4" in _changes(_config(), steps=9)
    assert "train.learning_rate=1e-4" in _changes(_config(), parameters=70_000_000_000)
    assert "train.learning_rate=1e-4" not in _changes(_config(), parameters=8_000_000_000)


def test_the_demo_is_left_alone() -> None:
    assert advise(make_config({"model": {"name": "demo"}, "data": {"path": "demo"}}), Facts(rows=300, fits=False)) == []


@given(
    st.none() | st.integers(1, 10**7),
    st.none() | st.integers(1, 10**6),
    st.none() | st.booleans(),
    st.sampled_from(["qdora", "dora", "qlora", "lora"]),
    st.integers(1, 256),
)
def test_every_advised_change_is_a_valid_setting_with_a_reason(
    rows: int | None, steps: int | None, fits: bool | None, method: str, rank: int
) -> None:
    config = _config(adapter={"method": method, "r": rank})
    for line in advise(config, Facts(rows=rows, steps=steps, fits=fits, dense_fits=fits, longest=256, smaller=(1, 16))):
        assert line.why
        assert "\n" not in str(line)
        overrides = line.change.split(" --set ") if line.change else []
        changed = make_config(config.model_dump(), overrides)
        assert (changed != config) == bool(overrides)
