from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import add_to_log, finished_run, review_of

from qdora_fast.config.loader import make_config
from qdora_fast.evaluation.report.run_parts import (
    base_name,
    base_on_hub,
    is_hub_id,
    public_name,
)
from qdora_fast.recipes.report import changed_settings, read_parts
from qdora_fast.system.run_folder import RunFolder


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    parts = read_parts(finished_run(tmp_path / "run"))
    assert parts.name == "run" and parts.unreadable == []
    assert parts.settings is not None and parts.settings.model.name == "owner/Base-1B"
    assert (len(parts.metrics), len(parts.answers), len(parts.completions)) == (42, 50, 14)
    assert [(each["folder"], each["unproven"]) for each in parts.exports] == [("merged_16bit", False)]
    assert {"data/report.html", "evaluation/completions.html"} <= parts.files


def test_an_empty_folder_gives_empty_parts(tmp_path: Path) -> None:
    parts = read_parts(RunFolder(tmp_path))
    assert parts.settings is None and parts.unreadable == ["config.yaml"]
    assert not any([parts.evaluation, parts.data, parts.model, parts.engine, parts.environment])
    assert not any([parts.metrics, parts.answers, parts.completions, parts.log, parts.exports, parts.files])
    assert parts.review() is None and parts.data_review() is None


def test_broken_files_are_named_and_broken_lines_passed_over(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    (tmp_path / "run/model.json").write_text("[1", encoding="utf-8")
    (tmp_path / "run/engine.json").write_bytes(b"\xff")
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 41, "lo')
    parts = read_parts(folder)
    assert parts.unreadable == ["model.json", "engine.json"]
    assert parts.model == parts.engine == {}
    assert len(parts.metrics) == 42


def test_a_step_that_was_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "eval_loss": 9.0}, {"step": 2, "loss": 3.0}]
    folder.write_rows("metrics.jsonl", [*rows, {"step": "x", "loss": 1.0}, {"step": 1, "train_loss": 2.0}])
    found = [(line["step"], line.get("loss"), line.get("eval_loss")) for line in read_parts(folder).metrics]
    assert found == [(1, None, None), (1, 5.0, None), (2, None, 9.0), (2, 3.0, None)]


def test_a_review_counts_for_the_answers_and_rows_that_were_read(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    add_to_log(folder, "review", **review_of(folder, verdict="fail", completions_sha256="00" * 32))
    add_to_log(folder, "data_review", dataset="other", sentence="of other rows")
    parts = read_parts(folder)
    assert parts.review() is None and parts.data_review() is None
    add_to_log(folder, "review", **review_of(folder, verdict="fail"))
    add_to_log(folder, "review", **review_of(folder, verdict="pass"))
    add_to_log(folder, "data_review", dataset=parts.data["hash"], sentence="of these rows")
    review, data_review = read_parts(folder).review(), read_parts(folder).data_review()
    assert review and review["verdict"] == "pass"
    assert data_review and data_review["sentence"] == "of these rows"


def test_a_model_whose_proof_failed_is_told_apart(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    folder.write_json("merged_16bit.unproven/export.json", {"proof": {"passed": False}})
    assert [each["unproven"] for each in read_parts(folder).exports] == [False, True]


def test_changed_settings_are_those_that_differ_from_the_defaults() -> None:
    least = {"model": {"name": "owner/base"}, "data": {"path": "demo"}, "run": {"dir": "elsewhere"}}
    assert [each.key for each in changed_settings(make_config(least))] == ["model.name", "data.path"]
    more = least | {"train": {"epochs": 7}, "evaluation": {"mmlu": {"shots": 0}}}
    found = {each.key: (each.value, each.default) for each in changed_settings(make_config(more))}
    assert found["train.epochs"] == (7.0, 2.0) and found["evaluation.mmlu.shots"] == (0, 5)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("text", "on_hub", "name"),
    [
        ("owner/Base-1.5B", True, "owner/Base-1.5B"),
        ("/home/asha/models/base", False, "base"),
        ("~/models/base/", False, "base"),
        ("..\\models\\base", False, "base"),
        ("data/rows.jsonl", False, "rows.jsonl"),
        ("a/b/c", False, "c"),
        ("base", False, "base"),
        ("/", False, "a folder"),
    ],
)
def test_of_a_path_only_the_last_name_is_public(text: str, on_hub: bool, name: str) -> None:
    assert (is_hub_id(text), public_name(text)) == (on_hub, name)


def test_a_folder_with_the_name_of_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("owner/base") and public_name("owner/base") == "base"


def test_the_base_is_on_the_hub_only_if_it_was_read_from_there(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    assert base_on_hub(read_parts(folder)) == "owner/Base-1B"
    folder.write_json("model.json", {"base": "/somewhere/owner/Base-1B"})
    assert base_on_hub(read_parts(folder)) is None
    demo = finished_run(tmp_path / "demo", config={"model": {"name": "demo"}, "data": {"path": "demo"}})
    assert base_on_hub(read_parts(demo)) is None and base_name(read_parts(demo)) == "the embedded demo base"
