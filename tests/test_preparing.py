"""What `qdora-fast data` does, whole: prepare, write, read a sample, record what a person found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import qdora_fast
from qdora_fast.cli import cli
from qdora_fast.config import Config
from qdora_fast.errors import ConfigError, DataError
from qdora_fast.evaluation import log
from qdora_fast.preparing import Ready, confirm, find_base, prepare_data, ready_data, review_run, run_data, with_quality
from qdora_fast.run import run_recipe, train

QUIET = Console(quiet=True)


def ready_for(config: Config) -> Ready:
    return ready_data(config, find_base(config, QUIET), QUIET)


def saved_review(folder: Path, path: Path, *, bad: int = 1) -> Path:
    """What a person's browser saves from review.html: the first rows bad, the others good."""
    report = json.loads((folder / "report.json").read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    page = (folder / "review.html").read_text()
    hashes = [row["meta"]["hash"] for row in rows if row["meta"]["hash"] in page]
    marks = [{"hash": h, "verdict": "bad" if i < bad else "good", "note": ""} for i, h in enumerate(hashes)]
    content = {"kind": "qdora_fast.review", "version": 1, "dataset": report["hash"], "reviewer": "Asha"}
    path.write_text(json.dumps(content | {"finished": "2026-11-25T10:00:00Z", "rows": marks}))
    return path


def test_the_folder_explains_itself(tiny_config: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_data(tiny_config(), name="tiny", out=out, reviewed=None, console=QUIET)
    assert {path.name for path in out.iterdir()} == {
        *("train.jsonl", "held_out.jsonl", "rejected.jsonl", "duplicates.jsonl"),
        *("report.json", "report.html", "review.html"),
    }
    report = json.loads((out / "report.json").read_text())
    assert report["hash"] == said["hash"] and report["name"] == "tiny"
    assert report["train"] == len((out / "train.jsonl").read_text().splitlines())
    assert report["held_out"] == len((out / "held_out.jsonl").read_text().splitlines())
    assert report["rows_in"] == report["kept"] + sum(report["dropped"].values())
    assert report["hash"][:12] in (out / "report.html").read_text()


def test_a_review_is_recorded_for_the_data_that_was_read_and_for_no_other(tiny_config: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_data(tiny_config(), name="tiny", out=out, reviewed=None, console=QUIET)
    marks = saved_review(out, tmp_path / "marks.json", bad=2)
    said = run_data(tiny_config(), name="tiny", out=out, reviewed=marks, console=QUIET)
    assert (said["review"]["good"], said["review"]["bad"]) == (23, 2)
    (entry,) = log.entries(out, "data_review")
    assert entry["reviewer"] == "Asha" and entry["dataset"] == said["hash"]
    with pytest.raises(DataError, match="make a new sample"):
        run_data(tiny_config(data={"held_out": 0.3}), name="tiny", out=out, reviewed=marks, console=QUIET)
    assert len(log.entries(out)) == 1


def test_a_run_takes_a_review_before_or_after_training(tiny_config: Any, tmp_path: Path) -> None:
    run_data(tiny_config(), name="tiny", out=tmp_path / "out", reviewed=None, console=QUIET)
    marks = saved_review(tmp_path / "out", tmp_path / "marks.json")
    run = run_recipe(tiny_config(), name="tiny", resume=False, console=QUIET, reviewed=marks)
    assert [entry["bad"] for entry in log.entries(run.path, "data_review")] == [1]
    assert run.read_json("data/report.json")["review"]["reviewer"] == "Asha"
    later = train(tiny_config())
    review_run(later, saved_review(later.data, tmp_path / "later.json", bad=0), QUIET)
    assert [entry["bad"] for entry in log.entries(later.path, "data_review")] == [0]
    with pytest.raises(DataError):
        run_recipe(
            tiny_config(data={"max_rows": 50}), name="tiny", resume=False, console=QUIET, reviewed=marks
        )  # refused before any weight is read


def test_a_review_of_judged_rows_is_about_the_rows_that_are_left(tiny_config: Any, tmp_path: Path) -> None:
    quality = {"enabled": True, "max_ifd": 100, "outliers": 0.5, "min_answer_tokens": 2, "max_drop": 0.1}
    config = tiny_config(data={"quality": quality})
    said = run_data(config, name="tiny", out=tmp_path / "out", reviewed=None, console=QUIET)
    assert said["dropped"]["outlier_loss"]
    marks = saved_review(tmp_path / "out", tmp_path / "marks.json")
    run = run_recipe(config, name="tiny", resume=False, console=QUIET, reviewed=marks)
    assert [entry["dataset"] for entry in log.entries(run.path, "data_review")] == [said["hash"]]


def test_the_command_prints_one_object_and_a_page(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"model.name={tiny_base}", f"data.path={tmp_path / 'rows.jsonl'}", f"run.dir={tmp_path / 'runs'}"]
    arguments = ["data", "demo", "--json", *(part for each in settings for part in ("--set", each))]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["rows_in"], report["kept"]) == (40, 40)
    assert report["path"] == str(tmp_path / "runs" / "demo-data")
    assert "40 rows in, 40 kept" in done.stderr
    assert "review.html" in done.stderr
    wrong = CliRunner().invoke(cli, [*arguments, "--reviewed", str(tmp_path / "nowhere.json")])
    assert wrong.exit_code == 2


def test_the_command_needs_no_model_code(tiny_base: Path, tmp_path: Path) -> None:
    script = (
        "import sys, json\nfrom qdora_fast.cli import cli\n"
        f"cli.main(['data', 'demo', '--set', 'model.name={tiny_base}', '--out', r'{tmp_path / 'out'}'],"
        " standalone_mode=False)\n"
        "print([name for name in ('unsloth', 'trl', 'peft', 'bitsandbytes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_python_call_gives_rows_and_tokens(tiny_config: Any) -> None:
    data = qdora_fast.prepare_data(tiny_config(), data={"held_out": 0.2})
    assert len(data.train) == data.report.train == len(data.train_examples or [])
    assert 0.2 <= data.report.held_out / data.report.kept <= 0.3


def test_unfit_rows_are_dropped_by_a_reference_model_from_training_alone(tiny_config: Any) -> None:
    settings = {"enabled": True, "max_ifd": 100, "outliers": 0.5, "min_answer_tokens": 2, "max_drop": 0.1}
    config = tiny_config(data={"quality": settings, "path": "demo", "max_rows": None})
    plain = prepare_data(tiny_config(data={"path": "demo", "max_rows": None}))
    judged = prepare_data(config)
    report = judged.report
    assert report.quality is not None and report.quality.scored == plain.report.train
    assert report.held_out == plain.report.held_out, "held-out rows are never judged"
    dropped = plain.report.train - report.train
    assert 0 < dropped <= 0.1 * plain.report.train
    assert report.dropped_for("outlier_loss") == dropped
    assert report.rows_in == report.kept + sum(each.count for each in report.dropped)
    assert report.hash != plain.report.hash
    assert len(judged.train_examples or []) == report.per_epoch == report.train
    assert list(judged.folder.glob("scores-*")), "scores are kept"
    assert prepare_data(config).report == report


def test_a_scorer_of_another_family_is_refused(tiny_config: Any, tmp_path: Path) -> None:
    from qdora_fast.demo.base import Recipe, pretrain

    recipe = Recipe(hidden_size=64, intermediate_size=64, heads=4, kv_heads=2, steps=1, vocab_size=1024)
    pretrain(tmp_path / "other", recipe)
    config = tiny_config(data={"quality": {"enabled": True, "model": str(tmp_path / "other")}})
    with pytest.raises(ConfigError, match=r"data.quality.model: .* has another tokenizer"):
        with_quality(ready_for(config), config, QUIET)


def test_rows_are_prepared_again_when_the_loaded_tokenizer_differs(tiny_config: Any, monkeypatch: Any) -> None:
    config: Config = tiny_config()
    ready = ready_for(config)

    class Loaded:
        tokenizer = ready.rendering.tokenizer
        stop_ids = ready.rendering.stop_ids

    same = confirm(ready, Loaded, config, QUIET)
    assert same.prepared is ready.prepared
    tokenizer = ready_for(config).rendering.tokenizer
    tokenizer.add_tokens([" is"])  # what the rows say is now cut in another way
    Loaded.tokenizer = tokenizer
    other = confirm(ready, Loaded, config, QUIET)
    assert other.prepared.report.content_hash == ready.prepared.report.content_hash
    assert other.prepared.report.hash != ready.prepared.report.hash
    assert list(other.prepared.train_examples or []) != list(ready.prepared.train_examples or [])
