"""Any model is scored on a file, and rows that it was trained on are never called held out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from heard import heard
from served import served

from qdora_fast.cli.main import cli
from qdora_fast.inference import ChatModel
from qdora_fast.recipes.chat import load
from qdora_fast.recipes.score.score import evaluate_file
from qdora_fast.system.errors import ConfigError, DataError
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture(scope="module")
def tuned(demo_run: RunFolder) -> ChatModel:
    return load(demo_run.path)


@pytest.fixture(scope="module")
def merged(demo_run: RunFolder) -> ChatModel:
    return load(demo_run.path / "merged_16bit")


@pytest.fixture(scope="module")
def server(tuned: ChatModel) -> Iterator[str]:
    with served(tuned) as url:
        yield url


def _rows(run: RunFolder, name: str, most: int) -> list[dict[str, Any]]:
    rows = run.read_rows(f"data/{name}.jsonl")[:most]
    return [{"question": row["messages"][0]["content"], "answer": row["messages"][1]["content"]} for row in rows]


def _file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_were_trained_on_are_named_and_scored_apart(
    demo_run: RunFolder, tuned: ChatModel, tmp_path: Path
) -> None:
    held, trained = _rows(demo_run, "held_out", 8), _rows(demo_run, "train", 3)
    trained[2]["answer"] = "It is another answer."
    data, out = _file(tmp_path / "t.jsonl", [*held, *trained]), tmp_path / "scored.jsonl"
    with heard() as told:
        found = evaluate_file(tuned, data, out=out)
    assert found["trained_rows"] == [f"{data}:{number}" for number in (9, 10, 11)]
    assert {name: group["n"] for name, group in found["groups"].items()} == {"not_trained_on": 8, "trained_on": 3}
    task = found["groups"]["not_trained_on"]["task"]
    assert found["metric"] == task["metric"] == "normalized_match" and task["n"] == 8
    assert task["base"] == 0 and task["tuned"] >= 0.7
    loss = found["groups"]["not_trained_on"]["loss"]
    assert loss["tuned"] < loss["base"] - 3
    assert "3 rows trained on, with this answer or another: scored apart, and not held out" in told.getvalue()
    assert "rows trained on, not held out: 3" in told.getvalue()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["trained_on"] for line in lines] == [False] * 8 + [True] * 3
    assert sum(line["tuned_score"] for line in lines[:8]) == 8 * task["tuned"]
    assert lines[0]["question"] == held[0]["question"] and lines[0]["reference"] == held[0]["answer"]


def test_the_figures_are_those_of_the_runs_own_evaluation(demo_run: RunFolder, tuned: ChatModel) -> None:
    before = demo_run.read_json("evaluation/evaluation.json")
    found = evaluate_file(tuned, demo_run.data / "held_out.jsonl")["groups"]
    assert list(found) == ["not_trained_on"]
    kept = ("metric", "n", "base", "tuned", "ci95", "p", "gained", "lost", "verdict", "words")
    task = found["not_trained_on"]["task"]
    assert {key: task[key] for key in kept} == {key: before["task"][key] for key in kept}
    for side in ("base", "tuned"):
        assert found["not_trained_on"]["loss"][side] == pytest.approx(before["heldout_loss"][side], rel=1e-3)


def test_a_merged_model_is_scored_alone_and_elsewhere_nothing_is_called_held_out(
    demo_run: RunFolder, merged: ChatModel, tmp_path: Path
) -> None:
    data = _file(tmp_path / "t.csv.jsonl", [*_rows(demo_run, "held_out", 6), *_rows(demo_run, "train", 2)])
    found = evaluate_file(merged, data)
    assert {name: group["n"] for name, group in found["groups"].items()} == {"not_trained_on": 6, "trained_on": 2}
    task = found["groups"]["not_trained_on"]["task"]
    assert task["value"] >= 0.6 and task["ci95"][0] < task["value"] <= task["ci95"][1]
    assert found["groups"]["not_trained_on"]["loss"]["value"] < 1
    shutil.copytree(demo_run.path / "merged_16bit", tmp_path / "elsewhere")
    with heard() as told:
        found = evaluate_file(tmp_path / "elsewhere", data)
    assert list(found["groups"]) == ["rows"] and found["training_known"] is False
    assert "is not known here: none of them is called held out" in told.getvalue()


def test_a_server_is_judged_by_what_it_writes(demo_run: RunFolder, server: str, tmp_path: Path) -> None:
    data = _file(tmp_path / "t.jsonl", _rows(demo_run, "held_out", 6))
    found = evaluate_file(server, data)
    assert found["groups"]["rows"]["loss"] is None and found["groups"]["rows"]["task"]["value"] >= 0.6
    long = [{"question": f"Tell me {number}", "answer": "word and more " * 5} for number in range(3)]
    found = evaluate_file(server, _file(tmp_path / "long.jsonl", long))
    assert found["metric"] == "chrf" and "likelihood" in found["chosen"]
    with pytest.raises(ConfigError, match=r"likelihood needs the likelihood of tokens.*metric=chrf"):
        evaluate_file(server, data, overrides=["evaluation.metric=likelihood"])


def test_rows_without_an_answer_are_counted_and_a_file_without_answers_refused(
    demo_run: RunFolder, tuned: ChatModel, tmp_path: Path
) -> None:
    rows = _rows(demo_run, "held_out", 3)
    with heard() as told:
        found = evaluate_file(tuned, _file(tmp_path / "t.jsonl", [*rows, {"question": "Q", "answer": ""}]))
    assert [each["place"] for each in found["not_scored"]] == [f"{tmp_path / 't.jsonl'}:4"]
    assert "1 row cannot be scored, and not counted" in told.getvalue()
    with pytest.raises(DataError, match="A row needs its answer to be scored; `predict` answers rows without"):
        evaluate_file(tuned, _file(tmp_path / "u.jsonl", [{"question": "Q", "answer": ""}] * 3))
    with pytest.raises(ConfigError, match=r"only evaluation\.\* and data\.\*"):
        evaluate_file(tuned, tmp_path / "t.jsonl", overrides=["train.epochs=1"])


def test_options_of_a_file_go_with_a_file(demo_run: RunFolder) -> None:
    def told(*options: str) -> str:
        done = CliRunner().invoke(cli, ["evaluate", str(demo_run.path), *options])
        assert done.exit_code == 2
        return done.output

    assert "go with --data FILE" in told("--out", "x.jsonl")
    assert "do not go with --data" in told("--mmlu", "--data", "x.jsonl")
