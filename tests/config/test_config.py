"""The schema accepts what is sensible and refuses what cannot work, whatever the value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qdora_fast.config import Config, layer_indices

LEAST = {"model": {"name": "demo"}, "data": {"path": "demo"}}


def test_defaults_are_the_recipe_we_stand_for() -> None:
    config = Config.model_validate(LEAST)
    assert (config.adapter.method, config.adapter.r, config.adapter.alpha) == ("qdora", 16, 16)
    assert config.adapter.target_modules == "all-linear"
    assert config.adapter.dropout == 0
    assert (config.train.learning_rate, config.train.scheduler, config.train.warmup) == (2e-4, "cosine", 0.05)
    assert (config.train.batch_size, config.train.accumulation, config.model.max_length) == (2, 8, 2048)
    assert config.train.loraplus_ratio is None
    assert config.data.held_out == 0.10
    assert config.data.train_on == "responses"
    assert config.train.tracker == "none"
    assert (config.export.at_end, config.export.merge_base) == ("merged_16bit", "auto")


@pytest.mark.parametrize(
    ("method", "decomposed", "quantized"),
    [("qdora", True, True), ("dora", True, False), ("qlora", False, True), ("lora", False, False)],
)
def test_one_word_chooses_the_method(method: str, decomposed: bool, quantized: bool) -> None:
    adapter = Config.model_validate({**LEAST, "adapter": {"method": method}}).adapter
    assert (adapter.decomposed, adapter.quantized) == (decomposed, quantized)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "learning_rate", -1),
        ("train", "learning_rate", 0),
        ("train", "learning_rate", float("nan")),
        ("train", "learning_rate", float("inf")),
        ("train", "learning_rate", True),
        ("train", "batch_size", 0),
        ("train", "batch_size", 1.5),
        ("train", "batch_size", True),
        ("train", "batch_size", "automatic"),
        ("train", "effective_batch", 0),
        ("train", "effective_batch", 3),
        ("train", "vram", 0),
        ("train", "loraplus_ratio", 0.5),
        ("train", "warmup", 1.0),
        ("train", "seed", -1),
        ("train", "optimizer", "sgd"),
        ("adapter", "r", 0),
        ("adapter", "dropout", 1.0),
        ("adapter", "layers", "3-1"),
        ("adapter", "layers", "a"),
        ("adapter", "target_modules", "q_proj"),
        ("data", "held_out", 0.95),
        ("data", "columns", {"prompt": "q"}),
        ("model", "max_length", 0),
        ("model", "max_length", 2**20 + 1),
        ("model", "max_length", "longest"),
        ("run", "name", "../elsewhere"),
        ("export", "merge_base", "w16"),
        ("engine", "impl", "cuda"),
        ("engine", "resident", 0),
        ("engine", "resident", "some"),
    ],
)
def test_nonsense_is_refused(section: str, key: str, value: object) -> None:
    values = {**LEAST, section: {**LEAST.get(section, {}), key: value}}
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(values)
    assert caught.value.errors()[0]["loc"][0] == section


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"adapter": {"method": "dora"}, "export": {"merge_base": "dequant4"}}, "dequant4 needs a 4-bit base"),
        ({"data": {"path": "demo", "held_out": 0}, "train": {"early_stopping": 2}}, "held_out is 0"),
        ({"train": {"effective_batch": 16, "batch_size": 4, "gradient_accumulation": 8}}, "is not batch_size 4 × grad"),
        ({"train": {"effective_batch": 10, "batch_size": 4}}, "10 is not a multiple of batch_size 4"),
        ({"train": {"batch_size": "auto", "gradient_accumulation": 8}}, "set effective_batch"),
        ({"adapter": {"method": "qlora"}, "train": {"magnitude_learning_rate": 1e-4}}, "has no magnitudes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config.model_validate({**LEAST, **sections})


@pytest.mark.parametrize(
    ("train", "batch"),
    [
        ({}, (2, 8, 16)),
        ({"batch_size": 4}, (4, 8, 32)),
        ({"gradient_accumulation": 4}, (2, 4, 8)),
        ({"effective_batch": 6}, (2, 3, 6)),
        ({"batch_size": 8, "effective_batch": 8}, (8, 1, 8)),
        ({"batch_size": 4, "gradient_accumulation": 2, "effective_batch": 8}, (4, 2, 8)),
    ],
)
def test_two_of_batch_size_accumulation_and_effective_batch_give_the_third(
    train: dict[str, int], batch: tuple[int, int, int]
) -> None:
    found = Config.model_validate({**LEAST, "train": train}).train
    assert (found.micro_batch, found.accumulation, found.rows_per_step) == batch
    smaller = found.in_pieces_of(1)
    assert (smaller.micro_batch, smaller.accumulation, smaller.rows_per_step) == (1, batch[2], batch[2])


def test_auto_leaves_the_effective_batch_as_it_is_said_or_usual() -> None:
    auto = Config.model_validate(
        {**LEAST, "model": {"name": "demo", "max_length": "auto"}, "train": {"batch_size": "auto"}}
    )
    assert (auto.train.batch_size, auto.train.rows_per_step, auto.model.max_length) == ("auto", 16, "auto")
    said = Config.model_validate({**LEAST, "train": {"batch_size": "auto", "effective_batch": 24}}).train
    assert said.rows_per_step == 24
    assert said.in_pieces_of(8).accumulation == 3


@given(st.sets(st.integers(0, 200), min_size=1))
def test_layer_ranges_name_exactly_their_layers(layers: set[int]) -> None:
    text = ",".join(f"{layer}" if layer % 2 else f"{layer}-{layer}" for layer in layers)
    assert layer_indices(text) == sorted(layers)
