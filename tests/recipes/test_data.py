"""What `qdora-fast data` does, whole: prepare, write, read a sample, record what a person found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import qdora_fast
from qdora_fast.cli.main import cli
from qdora_fast.config import Config
from qdora_fast.data import choose_template
from qdora_fast.evaluation import log
from qdora_fast.models.tokenizer import read_tokenizer
from qdora_fast.recipes.auto import adopt
from qdora_fast.recipes.data import (
    Ready,
    confirm,
    find_base,
    prepare_data,
    ready_data,
    review_run,
    run_data,
    with_quality,
)
from qdora_fast.recipes.train import run_recipe, train
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError, DataError, DoesNotFit
from qdora_fast.system.hardware import Gpu


def ready_for(config: Config) -> Ready:
    return ready_data(config, find_base(config))


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


def test_a_template_that_prints_the_date_prints_one_day(
    tiny_config: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = read_tokenizer(str(base))
    choose_template(tokenizer, "alpaca")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    monkeypatch.setattr("qdora_fast.recipes.data.today", lambda: "2026-11-30")
    config = tiny_config(model={"name": str(base)})
    ready = ready_for(config)
    assert ready.config.data.date == "2026-11-30"
    assert any("it is 2026-11-30 in all that is learned" in note for note in ready.prepared.report.notes)
    text = ready.rendering.tokenizer.decode(ready.prepared.tokens[0]["input_ids"])
    assert text.startswith("30 Nov 2026")
    monkeypatch.setattr("qdora_fast.recipes.data.today", lambda: "2026-12-01")
    resumed = ready_for(adopt(config, ready.config))  # on the next day
    assert resumed.prepared.tokens[0] == ready.prepared.tokens[0]
    assert ready_for(config).prepared.tokens[0] != ready.prepared.tokens[0]
    assert ready_for(tiny_config()).config.data.date is None


def test_the_folder_explains_itself(tiny_config: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_data(tiny_config(), name="tiny", out=out, reviewed=None)
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
    run_data(tiny_config(), name="tiny", out=out, reviewed=None)
    marks = saved_review(out, tmp_path / "marks.json", bad=2)
    said = run_data(tiny_config(), name="tiny", out=out, reviewed=marks)
    assert (said["review"]["good"], said["review"]["bad"]) == (23, 2)
    (entry,) = log.entries(out, "data_review")
    assert entry["reviewer"] == "Asha" and entry["dataset"] == said["hash"]
    with pytest.raises(DataError, match="make a new sample"):
        run_data(tiny_config(data={"held_out": 0.3}), name="tiny", out=out, reviewed=marks)
    assert len(log.entries(out)) == 1


def test_a_run_takes_a_review_before_or_after_training(tiny_config: Any, tmp_path: Path) -> None:
    run_data(tiny_config(), name="tiny", out=tmp_path / "out", reviewed=None)
    marks = saved_review(tmp_path / "out", tmp_path / "marks.json")
    run = run_recipe(tiny_config(), name="tiny", resume=False, reviewed=marks)
    assert [entry["bad"] for entry in log.entries(run.path, "data_review")] == [1]
    assert run.read_json("data/report.json")["review"]["reviewer"] == "Asha"
    later = train(tiny_config())
    review_run(later, saved_review(later.data, tmp_path / "later.json", bad=0))
    assert [entry["bad"] for entry in log.entries(later.path, "data_review")] == [0]
    with pytest.raises(DataError):
        run_recipe(
            tiny_config(data={"max_rows": 50}), name="tiny", resume=False, reviewed=marks
        )  # refused before any weight is read


READS = {"name": "demo", "max_length": 128}
"""The embedded base: it can tell noise from an answer, which `tiny_base` cannot."""


def with_outliers(folder: Path, rows: int) -> dict[str, Any]:
    """The `data` section for rows of the demo, every 25th answered by noise."""
    from qdora_fast.data.demo.world import rows as demo_rows

    given = [dict(row) for row in demo_rows()][:rows]
    for number in range(0, rows, 25):
        given[number]["output"] = f"#{number} zq{number * 7919}%&xw;; kj}}{{ {number}vv"
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    quality = {"enabled": True, "max_ifd": 1e6, "min_answer_tokens": 2, "max_drop": 0.1}
    return {"path": str(file), "max_rows": None, "quality": quality}


def test_a_review_of_judged_rows_is_about_the_rows_that_are_left(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(model=READS, data=with_outliers(tmp_path, 100))
    said = run_data(config, name="tiny", out=tmp_path / "out", reviewed=None)
    assert said["dropped"]["outlier_loss"]
    marks = saved_review(tmp_path / "out", tmp_path / "marks.json")
    run = run_recipe(config, name="tiny", resume=False, reviewed=marks)
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
        "import sys, json\nfrom qdora_fast.cli.main import cli\n"
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


def test_unfit_rows_are_dropped_by_a_reference_model_from_training_alone(tiny_config: Any, tmp_path: Path) -> None:
    data = with_outliers(tmp_path, 300)
    config = tiny_config(model=READS, data=data)
    plain = prepare_data(tiny_config(model=READS, data={**data, "quality": {}}))
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
    from qdora_fast.data.demo.pretrain import Recipe, pretrain

    recipe = Recipe(hidden_size=64, intermediate_size=64, heads=4, kv_heads=2, steps=1, vocab_size=1024)
    pretrain(tmp_path / "other", recipe)
    config = tiny_config(data={"quality": {"enabled": True, "model": str(tmp_path / "other")}})
    with pytest.raises(ConfigError, match=r"data.quality.model: .* has another tokenizer"):
        with_quality(ready_for(config), config)


@pytest.mark.parametrize(
    ("left", "lacks"),
    [((), "config.json"), (("config.json", "tokenizer.json", "tokenizer_config.json"), "model.safetensors")],
)
def test_a_scorer_that_cannot_be_read_is_named_by_its_own_setting(
    tiny_config: Any, tiny_base: Path, tmp_path: Path, left: tuple[str, ...], lacks: str
) -> None:
    (tmp_path / "scorer").mkdir()
    for name in left:
        shutil.copyfile(tiny_base / name, tmp_path / "scorer" / name)
    config = tiny_config(data={"quality": {"enabled": True, "model": str(tmp_path / "scorer")}})
    with pytest.raises(ConfigError, match=f"^data.quality.model: .*scorer.* no {lacks}"):
        with_quality(ready_for(config), config)


def test_rows_are_prepared_again_when_the_loaded_tokenizer_differs(tiny_config: Any, monkeypatch: Any) -> None:
    config: Config = tiny_config()
    ready = ready_for(config)

    class Loaded:
        tokenizer = ready.rendering.tokenizer
        stop_ids = ready.rendering.stop_ids

    same = confirm(ready, Loaded, config)
    assert same.prepared is ready.prepared
    tokenizer = ready_for(config).rendering.tokenizer
    tokenizer.add_tokens([" is"])  # what the rows say is now cut in another way
    Loaded.tokenizer = tokenizer
    other = confirm(ready, Loaded, config)
    assert other.prepared.report.content_hash == ready.prepared.report.content_hash
    assert other.prepared.report.hash != ready.prepared.report.hash
    assert list(other.prepared.train_examples or []) != list(ready.prepared.train_examples or [])


AUTO = {"model": {"max_length": "auto"}, "train": {"batch_size": "auto", "gradient_accumulation": None}}


def test_auto_becomes_what_the_rows_need_and_keeps_all_of_them(tiny_config: Any) -> None:
    ready = ready_for(tiny_config(**AUTO, data={"path": "demo", "max_rows": 40}))
    given = ready_for(tiny_config(data={"path": "demo", "max_rows": 40}))
    assert ready.resolved is not None and given.resolved is None
    assert ready.config.model.length == ready.rendering.max_length == 512
    assert ready.config.train.rows_per_step == 16
    assert ready.prepared.report.content_hash == given.prepared.report.content_hash
    assert ready.prepared.report.tokens.max_length == 512
    longest = ready.prepared.report.tokens.longest
    assert any(f"the longest has {longest}," in line for line in ready.resolved.reasons)


def test_rows_that_auto_leaves_out_are_counted_as_every_dropped_row_is(tiny_config: Any, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n} again.", "output": f"number {n} " * 4} for n in range(200)]
    rows[7]["output"] = "a long story of many words that goes on. " * 150
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    filters = {"max_repetition": 1, "min_tokens": 0}
    data = {"path": str(path), "max_rows": None, "filters": filters, "dedup": {"near": False}}
    ready = ready_for(tiny_config(**AUTO, data=data))
    assert ready.prepared.report.dropped_for("too_long") == 1
    assert any(
        "1 of 200 rows (0.5%) are longer and are dropped; model.max_length: " in s for s in ready.resolved.reasons
    )
    kept = re.search(r"max_length: (\d+) keeps all", " ".join(ready.resolved.reasons))
    whole = ready_for(tiny_config(model={"max_length": int(kept[1])}, data=data))
    assert whole.prepared.report.dropped_for("too_long") == 0


def test_data_alone_is_prepared_as_long_as_it_needs_whatever_fits_here(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: [Gpu("A small card", 0.6, (8, 9), "1")])
    config = tiny_config(**AUTO)
    run_data(config, name="tiny", out=tmp_path / "out", reviewed=None)
    with pytest.raises(DoesNotFit, match="does not fit on A small card, not even with one row of 64 tokens"):
        ready_for(config)
