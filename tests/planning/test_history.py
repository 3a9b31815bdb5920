"""What earlier runs measured is used for runs like them on this machine, and for no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import Config
from qdora_fast.config.loader import dump_config, make_config
from qdora_fast.planning import history
from qdora_fast.planning.evaluation_time import EvaluationTime
from qdora_fast.planning.history import Peak, Shape, Speed, shape_of
from qdora_fast.recipes.plan import shape_of_run
from qdora_fast.system import hardware
from qdora_fast.system.hardware import Gpu
from qdora_fast.system.run_folder import RunFolder


def _config(tmp_path: Path, **sections: dict[str, Any]) -> Config:
    settings = {"model": {"name": "b"}, "data": {"path": "r.jsonl"}, "run": {"dir": str(tmp_path)}}
    return make_config({**settings, **sections})


def _shape(config: Config) -> Shape:
    return shape_of(config.model, config.adapter, config.data, config.train, config.engine)


def _speed(config: Config, name: str) -> Speed | None:
    return history.earlier_speed(Path(config.run.dir), name, _shape(config), shape_of_run)


def _peak(config: Config, name: str) -> Peak | None:
    return history.earlier_peak(Path(config.run.dir), name, _shape(config), shape_of_run)


def _run(config: Config, name: str, seconds: list[float], *, age: float = 0, **files: Any) -> Path:
    folder = Path(config.run.dir) / name
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    lines = [json.dumps({"step": n, "seconds": s, "tokens_per_second": 100.0}) for n, s in enumerate(seconds, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


STEADY = [2.0 * step for step in range(1, 9)]


def test_the_newest_run_of_the_name_that_says_anything_counts(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert _speed(config, "mine") is None
    _run(config, "mine", STEADY, age=20)
    _run(config, "mine-2", [1.0, 2.0], age=10)  # too short
    _run(config, "mine-other", [float(step) for step in range(1, 9)])
    found = _speed(config, "mine")
    assert found is not None
    assert (found.run, found.seconds_per_step) == ("mine", (2.0, 2.0))


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"name": "other"}},
        {"model": {"name": "b", "max_length": 512}},
        {"adapter": {"method": "qlora"}},
        {"engine": {"impl": "peft"}},
        {"data": {"path": "other.jsonl"}},
        {"train": {"batch_size": 4}},
        {"train": {"precision": "fp32"}},
    ],
)
def test_a_run_of_another_shape_says_nothing(changed: dict[str, Any], tmp_path: Path) -> None:
    _run(_config(tmp_path), "mine", STEADY)
    assert _speed(_config(tmp_path, **changed), "mine") is None


def test_settings_that_cost_a_step_nothing_may_differ(tmp_path: Path) -> None:
    _run(_config(tmp_path), "mine", STEADY)
    assert _speed(_config(tmp_path, train={"learning_rate": 1e-3, "epochs": 7}), "mine") is not None


def test_a_run_on_another_machine_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, card = _config(tmp_path), {"name": "A card", "memory_gib": 24.0}
    _run(config, "mine", STEADY, environment={"cpu": hardware.cpu_name(), "gpus": [card]})
    assert _speed(config, "mine") is None
    monkeypatch.setattr(hardware, "gpus", lambda: [Gpu("A card", 24.0, None, "1")])
    assert _speed(config, "mine") is not None
    monkeypatch.setattr(hardware, "cpu_name", lambda: "another processor")
    assert _speed(config, "mine") is None


def test_the_peak_of_a_probed_run_is_remembered_with_its_estimate(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _run(config, "mine", STEADY, fit={"probe": {"peak_bytes": 11, "estimated_bytes": 10}})
    _run(config, "mine-2", STEADY, age=-5)
    assert _peak(config, "mine") == Peak("mine", 11, 10)
    assert _peak(_config(tmp_path, train={"batch_size": 8}), "mine") is None


def _evaluated(tmp_path: Path, timing: Any, then: dict[str, Any], now: dict[str, Any]) -> EvaluationTime | None:
    before, config = (_config(tmp_path, evaluation=settings) for settings in (then, now))
    folder = _run(before, "mine", STEADY)
    (folder / "evaluation").mkdir()
    record = {"timing": timing, "training": {"config": before.model_dump(mode="json")}}
    RunFolder(folder).write_json("evaluation/evaluation.json", record)
    return history.earlier_evaluation(
        tmp_path, "mine", _shape(config), shape_of_run, config.evaluation.model_dump(mode="json")
    )


def test_an_earlier_evaluation_tells_what_a_row_takes(tmp_path: Path) -> None:
    assert _evaluated(tmp_path, {"rows": 20, "seconds": 30.0}, {"max_rows": 20}, {"max_rows": 90}) == EvaluationTime(
        "mine", 1.5
    )


@pytest.mark.parametrize(
    ("timing", "now"),
    [
        (None, {}),
        ({"rows": 0, "seconds": 0.0}, {}),
        ({"rows": "many", "seconds": 3}, {}),
        ({"rows": 20, "seconds": 30.0}, {"metric": "exact_match"}),
        ({"rows": 20, "seconds": 30.0}, {"max_new_tokens": 7}),
    ],
)
def test_one_that_was_not_timed_or_asked_otherwise_tells_nothing(
    tmp_path: Path, timing: Any, now: dict[str, Any]
) -> None:
    assert _evaluated(tmp_path, timing, {}, now) is None
