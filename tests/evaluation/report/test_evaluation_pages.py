from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from html_pages import HOSTILE, Page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import (
    WORDS,
    add_to_log,
    answer,
    completion,
    damaged_run,
    data_report,
    evaluation,
    finished_run,
    general,
    mmlu,
    review_of,
    task,
)

from qdora_fast.evaluation.report.completions import write
from qdora_fast.evaluation.report.pages import run_page
from qdora_fast.recipes.report import read_parts
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(tmp_path / "my-run")


def text_of(folder: RunFolder) -> str:
    return Page(run_page(read_parts(folder))).text


def test_the_verdict_stands_on_top_with_both_accuracies_and_their_intervals(run: RunFolder) -> None:
    text = text_of(run)
    start = text[: text.index("What else decides")]
    assert "Run my-run qdora , r 16, alpha 16, on owner/Base-1B abc123" in start
    assert "The tuned model is better than its base normalized_match on 50 rows" in start
    assert "Base 20.0 % 11.0 to 33.0 % Tuned 80.0 % 67.0 to 89.0 %" in start
    assert WORDS in start


@pytest.mark.parametrize(
    ("verdict", "said", "kind"),
    [
        ("better", "The tuned model is better than its base", "good"),
        ("no evidence", "No evidence that the tuned model is better", "warn"),
        ("worse", "The tuned model is worse than its base", "bad"),
        (None, "Not evaluated", "open"),
    ],
)
def test_each_verdict_has_its_words_and_its_colour(run: RunFolder, verdict: str | None, said: str, kind: str) -> None:
    run.write_json("evaluation/evaluation.json", evaluation(task=task(verdict=verdict) if verdict else None))
    html = run_page(read_parts(run))
    assert said in Page(html).text
    assert f'class="verdict {kind}"' in html


def test_intervals_are_drawn_where_they_are(run: RunFolder) -> None:
    html = run_page(read_parts(run))
    assert '<i class="range" style="left:67.0%;width:22.0%"></i><i class="point" style="left:80.0%"></i>' in html


def test_what_speaks_for_and_against_the_model_is_listed(run: RunFolder) -> None:
    text = text_of(run)
    for said in (
        "! What it forgot MMLU fell by 2.3 points",
        "✓ Held-out rows unseen no held-out row was trained on",
        "✓ Whole answers 2 % of the tuned model's answers were cut",
        "✓ Training the held-out loss fell to 0.05",
        "✓ Export merged_16bit: proven to be the model that was trained",
        "○ Answers read by a person review: pending",
        "○ Rows read by a person review: pending",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mmlu": mmlu(status="fail", words="MMLU fell by 9 points")}, "✗ What it forgot MMLU fell by 9 points"),
        ({"mmlu": mmlu(status="ok", words="MMLU held")}, "✓ What it forgot MMLU held"),
        ({"mmlu": None}, "○ What it forgot MMLU was not measured"),
        ({"dataset": {"overlap": 7}}, "✗ Held-out rows unseen 7 of the held-out rows were trained on"),
        ({"task": task(truncated={"base": 0, "tuned": 0.4})}, "! Whole answers 40 % of the tuned model's answers"),
        ({"task": task(truncated={"base": 0, "tuned": 0.0})}, "✓ Whole answers none was cut"),
    ],
)
def test_a_point_is_judged_by_what_was_found(run: RunFolder, changes: dict[str, Any], said: str) -> None:
    run.write_json("evaluation/evaluation.json", evaluation(**changes))
    assert said in text_of(run)


def test_a_held_out_loss_that_rose_again_is_said(run: RunFolder) -> None:
    rows = [{"step": step, "eval_loss": loss} for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5))]
    run.write_rows("metrics.jsonl", rows)
    assert "! Training the held-out loss rose from 1 to 1.5 before the end" in text_of(run)


def test_steps_that_were_skipped_are_said(run: RunFolder) -> None:
    assert "Steps skipped" not in text_of(run)
    rows = [{"step": step, "event": "skipped", "said": "the loss is nan", "rows": ["a.jsonl:1"]} for step in (2, 5)]
    run.write_rows("metrics.jsonl", [{"step": 2, "skipped_steps": 1}, *rows])
    assert "! Steps skipped 2 changed nothing" in text_of(run)


def test_a_failed_proof_is_said_even_beside_a_proven_model(run: RunFolder) -> None:
    check = {"name": "weights", "passed": False, "words": "layer 3 differs"}
    run.write_json("merged_16bit-dequant4.unproven/export.json", {"proof": {"passed": False, "checks": [check]}})
    text = text_of(run)
    assert "✗ Export merged_16bit-dequant4.unproven is not the model that was trained" in text
    assert "✗ layer 3 differs" in text and "✓ 14 merged layers equal PEFT's merge" in text


@pytest.mark.parametrize(("verdict", "symbol"), [("pass", "✓"), ("needs-work", "!"), ("fail", "✗")])
def test_reviews_are_shown_with_name_and_verdict(run: RunFolder, verdict: str, symbol: str) -> None:
    add_to_log(run, "review", **review_of(run, verdict=verdict, note="wrong tone"))
    add_to_log(run, "data_review", dataset=data_report()["hash"], sentence="Ben marked 25 of 25 rows")
    text = text_of(run)
    assert f"{symbol} Answers read by a person Asha says {verdict}: wrong tone" in text
    assert "✓ Rows read by a person Ben marked 25 of 25 rows" in text
    assert "review: pending" not in text


def test_curves_data_settings_and_versions_are_there(run: RunFolder) -> None:
    html = run_page(read_parts(run))
    text = Page(html).text
    for chart in ("Loss over the steps", "Learning rate over", "Tokens a second over", "Memory over"):
        assert f'aria-label="{chart}' in html
    for said in (
        "steps 40 epochs",
        "last training loss 0.1 last held-out loss, best 0.05 0.05",
        "rows in 600 to train on 500 held out 50 tokens 123,456 of the tokens are learned 25 %",
        "one row in ten is short",
        "triton : 14 of 14 adapted layers on the fused path, 2 mlp blocks",
        "14 merged layers equal PEFT's merge",
        "2,048 MiB",
        "model.revision abc123",
        "RTX 4090 24 GiB, a CPU, 8 cores, Python 3.11.7",
        "torch 2.13.0",
        "34" * 32,
        "MMLU by subject (1) Subject Questions Base Tuned anatomy 36 61 % 58 %",
        "a difference of 12 points or more would be found",
    ):
        assert said in text


def test_answers_are_shown_side_by_side_those_of_the_task_first(run: RunFolder) -> None:
    text = text_of(run)
    part = text[text.index("Answers, side by side") : text.index("Where it is wrong")]
    assert part.index("prompt 3") < part.index("A shop sells pens") < part.index("Which planet")
    assert "Base cut at the limit said by the base 3 Tuned said by the tuned model 3" in part
    assert "prompt 4" not in part and "Rewrite this politely" not in part
    assert "All 14 to read and mark" in part


def test_the_worst_rows_and_those_that_were_right_before_are_shown(run: RunFolder) -> None:
    rows = [answer(number) for number in range(50)]
    rows += [answer(100, base_right=1.0, tuned_right=0.0, tuned_loss=0.0)]
    run.write_rows("evaluation/held_out_answers.jsonl", rows)
    text = text_of(run)
    part = text[text.index("Where it is wrong") : text.index("rows in 600")]
    assert "Right before, wrong now: 1 of 51 question 100" in part
    assert [number for number in range(50) if f"question {number} " in part] == [45, 46, 47, 48, 49]
    assert part.index("question 49") < part.index("question 48")


def test_links_lead_only_to_files_of_the_run_that_are_there(run: RunFolder) -> None:
    page = Page(run_page(read_parts(run)))
    links = page.attributes("href")
    assert {"data/report.html", "evaluation/completions.html", "config.yaml"} <= set(links)
    assert all((run.path / link).is_file() for link in links)
    (run.data / "report.html").unlink()
    assert "data/report.html" not in Page(run_page(read_parts(run))).attributes("href")


def test_the_page_has_no_script_and_asks_nothing_of_the_network(run: RunFolder) -> None:
    html = run_page(read_parts(run))
    page = Page(html)
    names = [key for _, attrs in page.tags for key in attrs]
    assert not {"src", "srcset", "action"} & set(names)
    assert not [name for name in names if name.startswith("on")]
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "img")]
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src")


FILES = (
    *("config.yaml", "metrics.jsonl", "data", "model.json", "engine.json", "environment.json", "merged_16bit"),
    *("evaluation", "evaluation/evaluation.json", "evaluation/held_out_answers.jsonl"),
    "evaluation/completions.jsonl",
)


@pytest.mark.parametrize("missing", FILES)
@pytest.mark.parametrize("how", ["gone", "broken", "empty"])
def test_a_run_without_one_of_its_files_has_a_page(run: RunFolder, missing: str, how: str) -> None:
    path = run.path / missing
    folder = path.is_dir()
    shutil.rmtree(path) if folder else path.unlink()
    if not folder and how != "gone":
        path.write_text("{}" if how == "empty" else '{"a": [', encoding="utf-8")
    text = text_of(run)
    assert "my-run" in text and "None" not in text.replace("None were kept", "") and "Undefined" not in text


def test_an_empty_folder_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    text = text_of(RunFolder(tmp_path / "nothing"))
    for said in (
        "Not evaluated",
        "Files that cannot be read config.yaml",
        "Not measured.",
        "Nothing was logged",
        "None were kept.",
        "No held-out row was asked.",
        "No data report",
        "No merged model",
        "Neither machine nor versions were recorded.",
    ):
        assert said in text


inner = [(part, key) for part, value in evaluation().items() if isinstance(value, dict) for key in value]


@pytest.mark.parametrize(("part", "key"), inner)
def test_an_evaluation_without_one_of_its_figures_is_still_shown(run: RunFolder, part: str, key: str) -> None:
    for absent in (True, False):
        partial = evaluation()
        if absent:
            del partial[part][key]
        else:
            partial[part][key] = None
        run.write_json("evaluation/evaluation.json", partial)
        assert "nan" not in text_of(run).lower().split()


wild = st.text(max_size=20) | st.sampled_from(HOSTILE)


@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wild, wild, wild)
def test_no_text_of_the_data_is_ever_markup(tmp_path: Path, one: str, two: str, three: str) -> None:
    def tags(one: str, two: str, three: str) -> list[Any]:
        folder = finished_run(tmp_path / "run", task=task(words=f"w{one}", metric=f"m{two}"))
        said = answer(1, question=f"q{one}", reference=f"r{two}", base=f"b{three}", tuned=f"t{one}", place=f"p{two}")
        folder.write_rows("evaluation/held_out_answers.jsonl", [json.loads(json.dumps(said).encode())])
        prompt = [{"role": "user", "content": f"c{one}"}]
        kept = [completion(1, prompt=prompt, base=f"b{two}", tuned=f"t{three}", reference=f"r{one}"), general(1)]
        write(kept, folder.evaluation, name=f"n{one}")
        report = data_report(warnings=[f"w{one}"], dropped={"too_long": 1, "of_the_user": 2})
        folder.write_json("data/report.json", report | {"reasons": {"of_the_user": f"why {two}"}})
        add_to_log(folder, "data_review", dataset=report["hash"], sentence=f"s{three}")
        return Page(run_page(read_parts(folder))).tags

    def plain(text: str) -> str:
        return text.encode(errors="replace").decode()

    assert tags(plain(one), plain(two), plain(three)) == tags("1", "2", "3")


@pytest.mark.parametrize("seed", range(12))
def test_any_json_in_the_files_gives_a_page(tmp_path: Path, seed: int) -> None:
    html = run_page(read_parts(damaged_run(tmp_path / "run", seed)))
    html.encode()
    assert "run" in Page(html).text


def test_a_verdict_by_likelihood_reads_as_one(run: RunFolder) -> None:
    by_loss = {
        **{"metric": "likelihood", "n": 50, "base": 1.76, "tuned": 1.66, "difference": -0.1, "ci95": [-0.13, -0.07]},
        **{"likelier": 45, "less_likely": 5, "verdict": "better", "words": "better: likelier", "answered": 20},
        **{"more": {}, "truncated": {"base": 0.5, "tuned": 0.4}, "empty": {"base": 0.0, "tuned": 0.0}},
    }
    run.write_json("evaluation/evaluation.json", evaluation(task=by_loss | {"chosen": "long text"}))
    lines = [answer(1, base_loss=2.0, tuned_loss=2.5), answer(2, base_loss=2.0, tuned_loss=1.0, base=None, tuned=None)]
    run.write_rows("evaluation/held_out_answers.jsonl", [line | {"base_right": None} for line in lines])
    said = text_of(run)
    assert "The tuned model predicts the held-out references better than its base" in said
    assert "likelihood, nats per token 50 1.76 1.66 −0.1 −0.13 to −0.07 +45 −5" in said
    assert "held-out loss 50" not in said, "the same figures twice"
    assert "the verdict does not depend on them" in said
    assert "References less likely than before: 1 of 2" in said
    assert "not answered in writing" in said and "Right before, wrong now" not in said
