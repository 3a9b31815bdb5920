"""State comes back to the bit and of the same types, with no pickle in between."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdora_fast.training.optimizer import build_optimizer
from qdora_fast.training.state import (
    load_optimizer_state,
    optimizer_state,
    random_state,
    read_state,
    set_random_state,
    write_state,
)

_leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=9)
_nests = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=9) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_nests)
def test_any_nest_of_plain_values_comes_back(tmp_path: Path, nest: Any) -> None:
    nest = {"state": nest}
    write_state(tmp_path, nest)
    assert read_state(tmp_path) == nest
    assert repr(read_state(tmp_path)) == repr(nest)  # tuples stay tuples, 1 stays 1 and True stays True


def test_words_of_ours_in_a_state_are_no_trap(tmp_path: Path) -> None:
    nest = {"$tensor": "a", "$tuple": [1], "$pairs": {"$tensor": 2}}
    write_state(tmp_path, nest)
    assert read_state(tmp_path) == nest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_tensors_keep_type_shape_and_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 3).to(dtype)
    write_state(tmp_path, {0: [tensor, tensor, tensor.sum(), tensor.T]})
    back = read_state(tmp_path)[0]
    for saved, expected in zip(back, [tensor, tensor, tensor.sum(), tensor.T], strict=True):
        assert saved.dtype == expected.dtype
        assert torch.equal(saved, expected)


def test_what_would_need_a_pickle_is_an_error_that_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"\.a\.1: a set"):
        write_state(tmp_path, {"a": [0, {1}]})


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), numpy.random.standard_normal(3).tolist(), torch.randn(3).tolist()]

    random.gauss(0, 1), numpy.random.standard_normal()  # leave a half-used pair behind
    write_state(tmp_path, random_state())
    expected = draw()
    set_random_state(read_state(tmp_path))
    assert draw() == expected


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_an_optimizer_goes_on_as_if_it_had_never_been_written(tmp_path: Path, name: str) -> None:
    def start(seed: int) -> tuple[dict[int, str], Any, list[torch.nn.Parameter]]:
        torch.manual_seed(seed)
        parameters = [torch.nn.Parameter(torch.randn(96, 96)), torch.nn.Parameter(torch.randn(96))]
        groups = [{"name": "A", "params": parameters[:1], "lr": 0.1}, {"name": "magnitude", "params": parameters[1:]}]
        optimizer = build_optimizer(name, [{"lr": 0.05, "weight_decay": 0.01} | group for group in groups])
        return {id(parameter): f"p{n}" for n, parameter in enumerate(parameters)}, optimizer, parameters

    def step(optimizer: Any, parameters: list[torch.nn.Parameter], seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    names, optimizer, parameters = start(0)
    step(optimizer, parameters, 1)
    write_state(tmp_path, optimizer_state(optimizer, names))
    other_names, other, others = start(5)
    for mine, parameter in zip(others, parameters, strict=True):
        mine.data.copy_(parameter.data)
    load_optimizer_state(other, read_state(tmp_path), other_names)
    for seed in (2, 3):
        step(optimizer, parameters, seed)
        step(other, others, seed)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(others, parameters, strict=True))


def test_the_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer("adamw", [{"params": [parameter], "lr": 1.0, "weight_decay": 0.0}])
    saved = optimizer_state(optimizer, {id(parameter): "a"})
    with pytest.raises(ValueError, match="other parameters"):
        load_optimizer_state(optimizer, saved, {id(parameter): "b"})


def test_nothing_but_json_and_safetensors_is_written(tmp_path: Path) -> None:
    write_state(tmp_path, {"t": torch.zeros(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training_state.json", "training_state.safetensors"]
    assert json.loads((tmp_path / "training_state.json").read_text()) == {"t": {"$tensor": ".t"}}
