"""Reviews are about the completions that were read; the log lists runs side by side; exports can wait for both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from qdora_fast.cli.main import cli
from qdora_fast.evaluation import log
from qdora_fast.evaluation.report.completions import VERDICTS
from qdora_fast.recipes.report import read_parts
from qdora_fast.recipes.review import list_evaluations, require_review, review
from qdora_fast.system.errors import ConfigError, DataError, RefusedError
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture
def run(own_demo_run: RunFolder) -> RunFolder:
    return own_demo_run


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_an_export_waits_for_a_review_that_passes(run: RunFolder) -> None:
    assert read_parts(run).review() is None
    with pytest.raises(RefusedError, match=r"nobody has reviewed .*completions.html"):
        require_review(run)
    assert (
        invoke("review", run.path, "--reviewer", "Asha", "--verdict", "needs-work", "--note", "too short").exit_code
        == 0
    )
    with pytest.raises(RefusedError, match="Asha said `needs-work`.*too short"):
        require_review(run)
    done = invoke("export", run.path, "--to", "adapter", "--require-review")
    assert isinstance(done.exception, RefusedError)
    review(run.path, reviewer="Asha", verdict="pass")
    require_review(run)
    assert len(log.entries(run.path, "review")) == 2, "what was said before stays"


def test_the_file_of_the_page_is_a_review_of_these_completions_alone(run: RunFolder, tmp_path: Path) -> None:
    kept = run.read_json("evaluation/evaluation.json")["completions"]
    rows = [{"id": row["id"], "mark": "good", "note": ""} for row in run.read_rows("evaluation/completions.jsonl")]
    content = {
        "kind": "qdora_fast.completions_review",
        "version": 1,
        "run": "demo",
        "sha256": kept["sha256"],
        "reviewer": "Ravi",
        "verdict": "pass",
        "note": "reads well",
        "finished": "2026-11-25T10:00:00Z",
        "rows": rows,
    }
    path = tmp_path / "review.json"
    path.write_text(json.dumps(content))
    found = review(run.path, file=path)
    assert (found["reviewer"], found["good"]) == ("Ravi", len(rows))
    assert read_parts(run).review() is not None
    path.write_text(json.dumps(content | {"sha256": "0" * 64}))
    with pytest.raises(DataError):
        review(run.path, file=path)


def test_a_review_needs_a_name_and_a_verdict_or_a_file(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="--reviewer NAME and --verdict"):
        review(run.path, reviewer=" ", verdict="pass")


def test_the_command_takes_the_verdicts_of_the_page() -> None:
    (verdict,) = (option for option in cli.commands["review"].params if option.name == "verdict")
    assert isinstance(verdict.type, click.Choice) and tuple(verdict.type.choices) == VERDICTS


def test_the_log_lists_evaluations_of_several_runs_with_their_reviews(run: RunFolder) -> None:
    shutil.copytree(run.path, run.path.with_name("demo-2"))
    review(run.path, reviewer="Asha", verdict="pass")
    found = list_evaluations([str(run.path.parent)])
    assert [Path(entry["path"]).name for entry in found] in (["demo", "demo-2"], ["demo-2", "demo"])
    assert {Path(entry["path"]).name: (entry["review"] or {}).get("verdict") for entry in found} == {
        "demo": "pass",
        "demo-2": None,
    }
    table = invoke("log", run.path.parent).stdout
    assert "normalized_match" in table and "pending" in table and "pass" in table
    as_json = json.loads(invoke("log", run.path, "--json").stdout.splitlines()[-1])
    assert len(as_json["evaluations"]) == 1
    with pytest.raises(ConfigError, match="is not a run"):
        list_evaluations([str(run.path.parent / "nowhere")])
