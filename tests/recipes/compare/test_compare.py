"""A whole comparison on a base that knows nothing: the same budget for every arm, a record, a page, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from heard import heard

from qdora_fast.cli.main import cli
from qdora_fast.recipes.compare import trial as trial_module
from qdora_fast.recipes.compare.compare import compare
from qdora_fast.system.errors import ConfigError, OutOfMemory, QdoraError

SETTINGS = {
    "adapter": {"r": 4, "alpha": 8},
    "data": {"path": "demo", "max_rows": 60},
    "train": {"max_steps": 3, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 1e-2},
    "evaluation": {"max_rows": 4, "max_new_tokens": 4},
}


def _config(tiny_base: Path, runs: Path) -> dict[str, Any]:
    return SETTINGS | {"run": {"dir": str(runs), "name": "tiny"}, "model": {"name": str(tiny_base), "max_length": 128}}


@pytest.fixture(scope="module")
def compared(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The record of LoRA, QDoRA and full fine-tuning with two seeds, and what was printed."""
    config = _config(tiny_base, tmp_path_factory.mktemp("runs"))
    with heard(width=120) as printed:
        record = compare(config, methods=["lora", "qdora", "full"], ratios=[1, 16], seeds=2)
    return record, printed.getvalue()


def test_every_arm_has_the_same_steps_measured_at_the_same_places(compared: Any) -> None:
    record, _ = compared
    assert list(record["arms"]) == ["lora", "lora-plus16", "qdora", "qdora-plus16", "full"]
    assert len(record["trials"]) == 5 * 2
    for one in record["trials"]:
        assert one["steps"] == record["steps"] == 3
        assert [step for step, _ in one["curve"]] == [0, 1, 2, 3]
        assert one["loss"] == one["curve"][-1][1] < one["curve"][0][1]
        assert len(one["scores"]) == record["dataset"]["asked"] == 4


def test_arms_start_from_the_same_base_and_seeds_change_what_follows(compared: Any) -> None:
    record, _ = compared
    starts = {(one["arm"], one["seed"]): one["curve"][0][1] for one in record["trials"]}
    assert starts["lora", 42] == pytest.approx(starts["full", 43], rel=1e-5)
    assert starts["qdora", 42] == pytest.approx(starts["qdora-plus16", 43], rel=1e-5)
    assert starts["qdora", 42] != pytest.approx(starts["lora", 42], rel=1e-5), "4 bits are another base"
    for arm in record["arms"].values():
        assert len(set(arm["losses"])) == 2


def test_what_is_trained_and_held_is_counted(compared: Any) -> None:
    arms = compared[0]["arms"]
    assert arms["full"]["trained_parameters"] > 5 * arms["lora"]["trained_parameters"]
    assert arms["qdora"]["trained_parameters"] > arms["lora"]["trained_parameters"], "magnitudes"
    assert arms["qdora"]["memory"]["weights"] < arms["lora"]["memory"]["weights"], "4 bits instead of 32"
    memory = arms["full"]["memory"]
    assert memory["trained"] == 4 * arms["full"]["trained_parameters"]
    assert memory["optimizer"] == pytest.approx(2 * memory["trained"], rel=0.01), "Adam's two moments"
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    assert arms["full"]["learning_rate"] == pytest.approx(arms["lora"]["learning_rate"] / 10)


def test_the_record_and_the_page_lie_in_the_folder_and_the_table_says_the_same(compared: Any) -> None:
    record, printed = compared
    folder = Path(record["path"])
    assert folder.name == "tiny-compare"
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8")) == record
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    said = " ".join(printed.split())
    for arm in record["arms"].values():
        assert arm["spoken"] in page
        assert f"{arm['loss']['mean']:.4f}" in said
    for difference in record["differences"]:
        assert difference["words"] in said
    assert {one["about"] for one in record["differences"]} == {"loraplus", "full"}
    assert not list(folder.rglob("*.safetensors")), "a trial leaves figures only"


def test_an_interrupted_comparison_goes_on_where_it_stopped_and_ends_the_same(
    compared: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    whole = trial_module.run_trial

    def stopped(trial: Any, material: Any) -> Any:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(trial.name)
        return whole(trial, material)

    def begin(runner: Any) -> Any:
        monkeypatch.setattr(trial_module, "run_trial", runner)
        config = _config(tiny_base, tmp_path)
        return compare(config, methods=["lora", "qdora"], ratios=[16], seeds=1)

    with pytest.raises(KeyboardInterrupt):
        begin(stopped)
    assert not (tmp_path / "tiny-compare" / "comparison.json").exists()
    record = begin(lambda trial, material: trained.append(trial.name) or whole(trial, material))
    assert trained == ["lora-plus16_lr0.01_seed42", "qdora-plus16_lr0.01_seed42"], "each once"
    before = {(one["arm"], one["seed"]): one["loss"] for one in compared[0]["trials"]}
    for one in record["trials"]:
        assert one["loss"] == pytest.approx(before[one["arm"], one["seed"]], rel=1e-4)


def test_results_of_other_settings_are_never_mixed_in(compared: Any, tiny_base: Path) -> None:
    config = _config(tiny_base, Path(compared[0]["path"]).parent)
    config["train"] = config["train"] | {"max_steps": 5}
    with pytest.raises(ConfigError, match=r"trials with other settings \(train.max_steps: 3 then, 5 now\)"):
        compare(config, methods=["lora"], ratios=[1], seeds=1)


def test_more_arms_and_a_target_of_ones_own_need_no_new_training_of_what_is_there(
    compared: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "run_trial", lambda *_: pytest.fail("it was trained already"))
    config = _config(tiny_base, Path(compared[0]["path"]).parent)
    record = compare(config, methods=["qdora"], ratios=[1], seeds=1, target=1e9)
    assert record["arms"]["qdora"]["to_target"] == {"median": 0, "reached": 1, "each": [0]}
    assert record["target"]["from"] == "given"


@pytest.mark.parametrize("lack", [torch.OutOfMemoryError, OutOfMemory])  # while loading, and after backing off
def test_an_arm_that_does_not_fit_is_named_and_what_is_finished_stays(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: type[Exception]
) -> None:
    def runner(trial: Any, material: Any) -> Any:
        if trial.arm.method == "full":
            raise lack("no memory")
        return {"loss": 1.0, "scores": [], "seconds": 1.0, "notes": []}

    monkeypatch.setattr(trial_module, "run_trial", runner)
    config = _config(tiny_base, tmp_path)
    with pytest.raises(QdoraError, match="full fine-tuning does not fit into this GPU's memory; leave full out"):
        compare(config, methods=["lora", "full"], ratios=[1], seeds=1)
    assert [path.name for path in tmp_path.rglob("trials/*")] == ["lora_lr0.01_seed42.json"]


def test_without_held_out_rows_there_is_nothing_to_compare_by(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path) | {"evaluation": {"max_rows": 0}}
    with pytest.raises(ConfigError, match="compare needs held-out rows"):
        compare(config, methods=["lora"], ratios=[1], seeds=1)
    assert not (tmp_path / "tiny-compare").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "lora,sora"], "there is no method 'sora'"),
        (["--loraplus", "one"], "--loraplus: 'one' is not a list of numbers"),
        (["--learning-rates", "7"], "7 is no learning rate"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(options: list[str], words: str) -> None:
    done = CliRunner().invoke(cli, ["compare", "demo", *options])
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)
