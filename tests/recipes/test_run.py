"""What Python users hold after a training: rows in memory, a function that is told of steps, results that are short."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pandas
import pytest

import qdora_fast
from qdora_fast.data.demo.world import rows
from qdora_fast.evaluation.record import EvaluationResult
from qdora_fast.exports.report import ExportReport
from qdora_fast.recipes.given import settings_given
from qdora_fast.system.run_folder import RunFolder

ROOT = Path(qdora_fast.__file__).parent.parent


def test_rows_become_a_path_wherever_they_may_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path))
    frame = pandas.DataFrame(list(islice(rows(), 3)))
    config, name = settings_given("demo", {"data": {"rows": frame, "held_out_rows": list(islice(rows(), 2))}})
    assert name == "demo" and config.data.path and Path(config.data.path).is_file()
    assert config.data.held_out_path and Path(config.data.held_out_path) != Path(config.data.path)
    mixture = {"model": {"name": "demo"}, "data": {"sources": [{"rows": frame, "weight": 2}, {"path": "demo"}]}}
    first, second = settings_given(mixture, {})[0].data.sources
    assert Path(first.path).is_file() and first.weight == 2 and second.path == "demo"

    for wrong, said in (
        ({"rows": frame, "path": "demo"}, "`rows` stands beside `path`"),
        ({"rows": frame, "sources": []}, "`rows` stands beside `sources`"),
        ({"path": frame}, r"data\.path: got a DataFrame; rows in memory go into data\.rows"),
        (frame, 'give them as data={"rows": ...}'),
    ):
        with pytest.raises(qdora_fast.ConfigError, match=said) as error:
            settings_given("demo", {"data": wrong})
        assert len(str(error.value)) < 300
    (tmp_path / "my.yaml").write_text("model: {name: demo}\ndata: {rows: my.jsonl}\n")
    with pytest.raises(qdora_fast.ConfigError, match="Python alone takes rows"):
        settings_given(tmp_path / "my.yaml", {})


@pytest.mark.slow
def test_a_run_on_rows_in_memory_that_its_own_function_ends_and_resumes(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    open_telemetry(monkeypatch, sent)
    told: list[dict[str, Any]] = []

    def on_step(step: dict[str, Any]) -> None:
        told.append(step)
        if len(told) == 2:
            raise ZeroDivisionError("my own")

    config, frame = tiny_config(), pandas.DataFrame(list(islice(rows(), 60)))
    with pytest.raises(ZeroDivisionError, match="my own") as error:
        train(config, frame, on_step=on_step)
    assert "checkpoint-2" in error.value.__notes__[0] and "resume=True" in error.value.__notes__[0]
    run = train(config, frame.copy(), resume=True, on_step=told.append)
    assert [step["step"] for step in told] == [1, 2, 3, 4]
    assert told[0]["steps"] == 4 and {"loss", "learning_rate", "epoch"} <= told[0].keys()
    assert sent == []

    assert list(run.metrics()["step"]) == [1, 2, 3, 4]
    assert run.metrics()["loss"].notna().all() and run.metrics()["eval_loss"].notna().any()
    assert len(run.answers()) == 4
    assert run.read_rows("data/train.jsonl")[0]["meta"]["source"].startswith("rows in memory row ")
    assert repr(run).count("\n") == 1 and len(repr(run)) < 600
    assert "<polyline" in run._repr_html_() and "tuned" in run._repr_html_()

    evaluation = EvaluationResult(run.read_json("evaluation/evaluation.json"))
    assert repr(evaluation).count("\n") == 1 and len(repr(evaluation)) < 800
    assert "held-out" in evaluation._repr_html_()


def train(config: Any, frame: Any, **how: Any) -> qdora_fast.Run:
    """A run of the config on rows in memory."""
    tree = config.model_dump()
    tree["data"] |= {"path": None}
    del tree["data"]["path"]
    run = qdora_fast.train(tree, data={"rows": frame}, **how)
    assert isinstance(run, qdora_fast.Run)
    return run


def open_telemetry(monkeypatch: pytest.MonkeyPatch, sent: list[Any]) -> None:
    """As if the hub's variables had been read before they were set; what is sent is recorded."""
    from qdora_fast.models.backend import open_backend

    open_backend()
    import huggingface_hub.constants
    import trl.trainer.base_trainer as trainers

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(trainers, "send_telemetry", lambda *what, **how: sent.append(what))


@pytest.mark.parametrize(
    ("value", "said"), [(None, "False True"), pytest.param("0", "False False", marks=pytest.mark.exhaustive)]
)
def test_the_hub_is_told_to_send_nothing_though_it_was_imported_before(
    value: str | None, said: str, tmp_path: Path
) -> None:
    script = (
        "import datasets, huggingface_hub\n"
        "from huggingface_hub import constants\n"
        "before = constants.HF_HUB_DISABLE_TELEMETRY\n"
        "from qdora_fast.models.backend import open_backend\n"
        "open_backend()\n"
        "print(before, constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_TELEMETRY")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {} if value is None else {names[0]: value}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == said, done.stderr


def test_an_unfinished_run_and_an_export_are_short(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: demo}\ndata: {path: demo}\n")
    run = qdora_fast.Run.open(tmp_path)
    assert isinstance(run, RunFolder) and run.metrics().empty and run.answers().empty
    assert "not finished" in repr(run) and "Not evaluated" in run._repr_html_()
    check = {"passed": True, "words": "<b>all weights"}
    proven = ExportReport(format="merged_16bit", path="out", bytes=2**20, proof={"passed": True, "checks": [check]})
    assert repr(proven).count("\n") == 1 and "proven to be the model" in repr(proven)
    assert "&lt;b&gt;all weights" in proven._repr_html_()
    assert "NOT the model" in repr(ExportReport(proven, proof={"passed": False, "checks": [check]}))
    assert proven == dict(proven)


USER = """
import qdora_fast
run: qdora_fast.Run = qdora_fast.train("demo", train={"epochs": 1}, on_step=lambda step: print(step["loss"]))
report = qdora_fast.export(run, to="merged_16bit", merge_base="dequant4", overwrite=True)
words: str = qdora_fast.evaluate(run, overrides=["evaluation.metric=exact_match"])["task"]["words"]
rows: int = qdora_fast.prepare_data("demo", data={"rows": [{"question": "a", "answer": "b"}]}).report.train
try:
    qdora_fast.Run.open("runs/demo").metrics()
except qdora_fast.QdoraError as error:
    reveal_type(error.exit_code)
qdora_fast.train(3)
"""


@pytest.mark.exhaustive
def test_a_users_strict_type_checker_sees_the_types(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(USER)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nignore_missing_imports = true\nfollow_imports = silent\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(ROOT)}, cwd=tmp_path
    )
    lines = [line for line in done.stdout.splitlines() if "user.py" in line]
    assert len(lines) == 2, done.stdout
    assert 'Revealed type is "builtins.int"' in lines[0] or 'Revealed type is "int"' in lines[0]
    assert 'Argument 1 to "train" has incompatible type "int"' in lines[1]
