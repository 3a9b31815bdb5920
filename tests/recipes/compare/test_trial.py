"""One trial: measured where it should be, judged by the config's metric, and honest about a loss that is no number."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from qdora_fast.config import Config
from qdora_fast.models.loading import check_base
from qdora_fast.recipes.compare import trial as trial_module
from qdora_fast.recipes.compare.arms import Arm, Trial
from qdora_fast.recipes.compare.trial import Material, run_trial
from qdora_fast.recipes.data import ready_data
from qdora_fast.recipes.fit import recipe_of
from qdora_fast.training.oom import OomRetry
from qdora_fast.training.trainer import choose_precision


def _material(config: Config, options: tuple[str, ...] = ()) -> Material:
    ready = ready_data(config, config.model.name)
    targets = check_base(ready.base_name, config.model, config.adapter, merge_base=config.export.merge_base)
    recipe = recipe_of(config, ready, choose_precision(config.train))
    return Material(config, ready.base_name, targets, recipe, ready.prepared, [0, 1, 2], options)


def _run(material: Material, method: str = "lora") -> dict[str, Any]:
    return run_trial(Trial(Arm(method), 1e-2, 7), material)


def test_the_held_out_loss_is_measured_before_at_every_so_many_steps_and_at_the_end(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "POINTS", 2)
    material = _material(tiny_config(train={"max_steps": 5}))
    assert (material.steps, material.every) == (5, 2)
    assert [step for step, _ in _run(material)["curve"]] == [0, 2, 4, 5]


def test_measuring_changes_nothing_about_the_training(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    material = _material(tiny_config())
    often = _run(material)
    monkeypatch.setattr(trial_module, "POINTS", 1)
    seldom = _run(material)
    assert len(often["curve"]) > len(seldom["curve"])
    assert often["loss"] == pytest.approx(seldom["loss"], rel=1e-5)


def test_a_choice_is_made_among_the_options_and_judged(tiny_config: Any) -> None:
    config = tiny_config(evaluation={"metric": "choice"})
    prepared = _material(config).prepared
    right = [prepared.held_out[number]["messages"][-1]["content"] for number in (0, 1, 2)]
    assert _run(_material(config, tuple(right[:1])))["scores"] == [float(one == right[0]) for one in right]


def test_a_loss_that_is_no_number_is_none_and_the_result_is_still_json(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "mean_loss", lambda losses: math.nan)
    result = _run(_material(tiny_config()))
    assert result["loss"] is None
    assert result["best_loss"] is None
    json.dumps(result, allow_nan=False)


def test_a_training_that_was_ended_for_losses_that_are_no_numbers_has_diverged(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = OomRetry.compute_loss
    monkeypatch.setattr(
        OomRetry, "compute_loss", lambda self, *inputs, **more: original(self, *inputs, **more) * math.nan
    )
    result = _run(_material(tiny_config(train={"max_nonfinite": 2})))
    assert (result["loss"], result["steps"]) == (None, 1)
    assert [note.split(", no weight was changed")[0] for note in result["notes"]] == [
        "step 1: skipped",
        "step 2: skipped",
    ]
    json.dumps(result, allow_nan=False)
