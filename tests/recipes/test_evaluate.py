"""Evaluating a run: the same figures from memory and from disk, nothing where nothing was learned, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from loaded_models import loaded_base
from plain_rendering import render

from qdora_fast.cli.main import cli
from qdora_fast.data import choose_template
from qdora_fast.evaluation import log
from qdora_fast.evaluation.record import Evaluation
from qdora_fast.models.loading import attach
from qdora_fast.recipes.evaluate import EvalModel, evaluate, evaluate_model, refuse_regression, write_report
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import ConfigError, IntegrityError, RegressionError
from qdora_fast.system.manifest import read_manifest, write_manifest
from qdora_fast.system.run_folder import RunFolder


def untrained(tiny_config: Any, folder: Path, *, change: float = 0.0) -> tuple[EvalModel, RunFolder, Any]:
    """A run of no steps: base and adapter as attached, B moved by `change` times a random matrix."""
    config = tiny_config(evaluation={"max_rows": 12, "completions": 4})
    run = train(config)
    base = loaded_base(config)
    choose_template(base.tokenizer, "auto")
    model = attach(base, config.adapter, config.train).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.add_(change * torch.randn_like(parameter))
    rows = run.read_rows("data/held_out.jsonl")
    rendered = render(rows, base.tokenizer, max_length=config.model.max_length)
    return EvalModel(model, base.tokenizer, base.stop_ids, rows, rendered.examples, "fp32"), run, config


def test_a_own_demo_run_gives_the_figures_it_ended_with(own_demo_run: RunFolder) -> None:
    before = own_demo_run.read_json("evaluation/evaluation.json")
    found = evaluate(own_demo_run)
    assert found["task"] == before["task"]
    assert found["heldout_loss"]["tuned"] == pytest.approx(before["heldout_loss"]["tuned"], rel=1e-3)
    assert found["heldout_loss"]["base"] == pytest.approx(before["heldout_loss"]["base"], rel=1e-3)
    assert found["training"] == before["training"] and found["dataset"] == before["dataset"]
    entries = log.entries(own_demo_run.path, "evaluation")
    assert len(entries) == 2
    for entry in entries:
        Evaluation.model_validate({key: value for key, value in entry.items() if key not in ("kind", "at")})
    assert (own_demo_run.path / "report.html").is_file()
    assert (own_demo_run.evaluation / "completions.html").is_file()


def test_the_record_says_what_was_measured_on_what(demo_run: RunFolder) -> None:
    found = demo_run.read_json("evaluation/evaluation.json")
    data = demo_run.read_json("data/report.json")
    assert found["dataset"]["hash"] == data["hash"]
    assert (found["dataset"]["train"], found["dataset"]["held_out"]) == (data["train"], data["held_out"])
    assert found["training"]["method"] == "qdora" and found["training"]["quantized"]
    assert found["training"]["steps"] == max(
        json.loads(line)["step"] for line in demo_run.metrics_file.read_text().splitlines()
    )
    assert found["completions"]["n"] == 24 + 4
    assert len(demo_run.read_rows("evaluation/completions.jsonl")) == 28
    answers = demo_run.read_rows("evaluation/held_out_answers.jsonl")
    assert sum(answer["tuned_right"] for answer in answers) / len(answers) == pytest.approx(found["task"]["tuned"])
    low, high = found["heldout_loss"]["ci95"]
    assert low <= found["heldout_loss"]["difference"] <= high < 0


def test_an_adapter_that_learned_nothing_changes_nothing(tiny_config: Any, tmp_path: Path) -> None:
    subject, run, config = untrained(tiny_config, tmp_path)
    found = evaluate_model(subject, config, run)
    task = found["task"]
    assert (task["difference"], task["gained"], task["lost"]) == (0, 0, 0)
    assert task["verdict"] == "no evidence"
    assert found["heldout_loss"]["difference"] == pytest.approx(0, abs=1e-5)


def test_a_harmful_adapter_is_seen_in_the_loss(tiny_config: Any, tmp_path: Path) -> None:
    subject, run, config = untrained(tiny_config, tmp_path, change=3.0)
    loss = evaluate_model(subject, config, run)["heldout_loss"]
    assert loss["ci95"][0] > 0
    assert loss["tuned"] > loss["base"]
    assert loss["perplexity"]["tuned"] > loss["perplexity"]["base"]


def test_other_metrics_are_reported_beside_the_one_that_decides(own_demo_run: RunFolder) -> None:
    changed = ["evaluation.metric=exact_match", "evaluation.more_metrics=[contains, rouge_l]", "evaluation.max_rows=20"]
    task = evaluate(own_demo_run, overrides=changed)["task"]
    assert (task["metric"], task["n"]) == ("exact_match", 20)
    assert set(task["more"]) == {"contains", "rouge_l"}
    assert task["more"]["contains"]["tuned"] >= task["tuned"]
    assert 0 <= task["more"]["rouge_l"]["base"] <= task["more"]["rouge_l"]["tuned"] <= 1


def test_the_likeliest_choice_can_be_the_answer(own_demo_run: RunFolder) -> None:
    changed = [
        "evaluation.metric=choice",
        "evaluation.choices=[It is French., It is Africa., It is Europe., It is Asia.]",
        "evaluation.max_rows=30",
    ]
    task = evaluate(own_demo_run, overrides=changed)["task"]
    answers = own_demo_run.read_rows("evaluation/held_out_answers.jsonl")
    assert {answer["tuned"] for answer in answers} <= {"It is French.", "It is Africa.", "It is Europe.", "It is Asia."}
    among = [answer for answer in answers if answer["reference"] in ("It is Africa.", "It is Europe.", "It is Asia.")]
    assert among and sum(answer["tuned_right"] for answer in among) / len(among) > 0.5
    assert task["metric"] == "choice"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.metric=accuracy", r"evaluation.metric .*choose one of exact_match"),
        ("train.epochs=1", r"only evaluation\.\* can be changed"),
        ("evaluation.metric=regex", "needs a pattern with one group"),
    ],
)
def test_what_cannot_be_asked_is_one_message(own_demo_run: RunFolder, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(own_demo_run, overrides=[override])


def test_a_held_out_row_that_cannot_be_rendered_any_more_is_named(short_run: Any) -> None:
    run = short_run()
    rows = run.read_rows("data/held_out.jsonl")
    rows[1]["messages"][0]["content"] = rows[1]["messages"][-1]["content"] = "word " * 10_000
    run.write_rows("data/held_out.jsonl", rows)
    with pytest.raises(IntegrityError, match=r"held_out.jsonl, row 2: .*copy the run again"):
        evaluate(run.path)


def test_a_run_without_held_out_rows_says_what_to_do(own_demo_run: RunFolder) -> None:
    (own_demo_run.data / "held_out.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"held no rows out.*data.held_out"):
        evaluate(own_demo_run)


def test_a_template_that_is_not_the_runs_is_refused(own_demo_run: RunFolder) -> None:
    template = own_demo_run.adapter / "chat_template.jinja"
    template.write_text(template.read_text().replace("### Response:", "### Answer:"))
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja: [0-9,]+ bytes, but [0-9,]+ were written"):
        evaluate(own_demo_run)
    write_manifest(own_demo_run.adapter, read_manifest(own_demo_run.adapter)["about"])  # and so that nobody notices
    with pytest.raises(ConfigError, match="changed after training"):
        evaluate(own_demo_run)


def test_a_fallen_mmlu_is_an_error_and_any_other_is_not() -> None:
    refuse_regression({"mmlu": None})
    refuse_regression({"mmlu": {"status": "warn", "words": "-2.4 points"}})
    with pytest.raises(RegressionError, match=r"-4.1 points.*--allow-regression") as caught:
        refuse_regression({"mmlu": {"status": "fail", "words": "-4.1 points"}})
    assert caught.value.exit_code == 43


def test_the_command_prints_one_object(own_demo_run: RunFolder) -> None:
    done = CliRunner().invoke(cli, ["evaluate", str(own_demo_run.path), "--json", "--set", "evaluation.max_rows=10"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"metric", "n", "base", "tuned", "ci95"} <= set(found["task"])
    assert {"base", "tuned"} <= set(found["heldout_loss"])
    assert found["mmlu"] is None
    assert "held-out answers (normalized_match)" in done.stderr


def test_the_report_and_the_cards_are_written_anew(own_demo_run: RunFolder) -> None:
    for path in (own_demo_run.path / "report.html", own_demo_run.adapter / "README.md"):
        path.unlink()
    report = write_report(own_demo_run)
    assert "<html" in report.read_text()
    assert "qdora" in (own_demo_run.adapter / "README.md").read_text().lower()
    assert (own_demo_run.path / "merged_16bit" / "README.md").is_file()
