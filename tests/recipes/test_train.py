"""The main job, whole: the real stack on the CPU, from a config to a proven model."""

from __future__ import annotations

import json
import shutil
import socket
from types import SimpleNamespace

import psutil
import pytest

from qdora_fast.config.recorded import read_config
from qdora_fast.recipes.train import dry_run, run_recipe, train
from qdora_fast.system.errors import CheckpointError, ConfigError, DataError, DoesNotFit
from qdora_fast.system.run_folder import RunFolder


def test_tuning_teaches_the_demo_base_a_new_skill(demo_run: RunFolder) -> None:
    found = demo_run.read_json("evaluation/evaluation.json")
    figures, loss = found["task"], found["heldout_loss"]
    assert figures["n"] >= 40
    assert figures["base"] <= 0.20
    assert figures["tuned"] >= 0.80
    assert figures["verdict"] == "better"
    assert loss["tuned"] < loss["base"]
    assert found["dataset"]["overlap"] == 0
    assert len(demo_run.read_rows("evaluation/held_out_answers.jsonl")) == figures["n"]


def test_the_main_job_ends_with_a_proven_merged_model(demo_run: RunFolder) -> None:
    report = demo_run.read_json("merged_16bit/export.json")
    assert report["proof"]["passed"]
    assert report["proof"]["held_out"]
    assert report["merge_base"] == "original16"


def test_a_run_explains_itself(demo_run: RunFolder) -> None:
    assert read_config(demo_run).adapter.method == "qdora"
    assert demo_run.read_json("environment.json")["packages"]["unsloth"]
    assert demo_run.read_json("data/report.json")["held_out"] == len(demo_run.read_rows("data/held_out.jsonl"))
    made = demo_run.read_json("model.json")
    assert len(made["targets"]) == len(made["quantized_modules"])
    records = [json.loads(line) for line in demo_run.metrics_file.read_text().splitlines()]
    assert {"loss", "learning_rate", "tokens_per_second", "memory_gib"} <= set(records[1])
    assert any("eval_loss" in record for record in records)


def test_no_held_out_question_was_trained_on(demo_run: RunFolder) -> None:
    def prompts(name: str) -> set[str]:
        return {row["messages"][0]["content"] for row in demo_run.read_rows(f"data/{name}.jsonl")}

    assert not prompts("train") & prompts("held_out")


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("adamw_8bit", "paged_adamw_8bit"))],
)
def test_lora_plus_trains_and_resumes(tiny_config, optimizer: str) -> None:
    settings = {"loraplus_ratio": 16, "optimizer": optimizer, "save_steps": 2, "learning_rate": 1e-3}
    whole = train(tiny_config(train=settings))
    half = train(tiny_config(train=settings))
    for late in half.checkpoints()[1:]:  # as if stopped after the first checkpoint
        late.rename(late.with_name(f"gone-{late.name}"))
    assert [path.name for path in half.checkpoints()] == ["checkpoint-2"]
    resumed = train(tiny_config(train=settings), resume=True)
    assert resumed.path == half.path
    rates = [(r["step"], r["learning_rate"]) for r in _logged(resumed) if "learning_rate" in r]
    assert rates[-2:] == [(r["step"], r["learning_rate"]) for r in _logged(whole) if "learning_rate" in r][-2:]
    assert _adapter(resumed) == _adapter(whole)


def test_a_run_with_auto_goes_on_with_what_it_chose(tiny_config, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {
        "model": {"max_length": "auto"},
        "train": {"batch_size": "auto", "gradient_accumulation": None, "max_steps": 2, "save_steps": 1},
    }
    whole = train(tiny_config(**sections))
    chosen = whole.read_json("fit.json")
    assert chosen["asked"] == ["model.max_length", "train.batch_size"]
    assert (chosen["max_length"], chosen["batch_size"]) == (
        read_config(whole).model.length,
        read_config(whole).train.micro_batch,
    )
    adapter = (whole.adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(whole.checkpoints()[-1])
    little = SimpleNamespace(available=2**29, total=2**34)  # chosen anew, nothing would fit
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    resumed = train(tiny_config(**sections), resume=True)
    assert resumed.path == whole.path
    assert read_config(resumed) == read_config(whole)
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == adapter
    with pytest.raises(DoesNotFit):
        train(tiny_config(**sections))


def test_resume_needs_a_run(tiny_config) -> None:
    with pytest.raises(CheckpointError, match="start it without --resume"):
        train(tiny_config(), resume=True)


def test_early_stopping_and_evaluation_watch_the_held_out_loss(tiny_config) -> None:
    settings = {"early_stopping": 1, "eval_steps": 1, "max_steps": 6, "learning_rate": 1e-12}  # learns nothing
    run = train(tiny_config(train=settings))
    losses = [r["eval_loss"] for r in _logged(run) if "eval_loss" in r]
    assert len(losses) == 2  # the first, and one that is no better


def test_gradient_checkpointing_changes_memory_and_nothing_else(tiny_config) -> None:
    off, on = (train(tiny_config(train={"gradient_checkpointing": choice})) for choice in ("off", "torch"))
    losses = [[record["loss"] for record in _logged(run) if "loss" in record] for run in (off, on)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_engine_changes_speed_and_nothing_else(tiny_config) -> None:
    ours, pefts = (train(tiny_config(engine={"impl": impl})) for impl in ("auto", "peft"))
    assert ours.read_json("engine.json")["layers"] == 14
    assert not ours.read_json("engine.json")["skipped"]
    assert pefts.read_json("engine.json")["impl"] == "peft"
    losses = [[record["loss"] for record in _logged(run) if "loss" in record] for run in (ours, pefts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_engine_that_must_fuse_everything_says_what_it_cannot(tiny_config, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdora_fast.engine import layers

    monkeypatch.setattr(layers, "frozen_weight", lambda base: (_ for _ in ()).throw(layers.Unfusable("it is glass")))
    with pytest.raises(ConfigError, match=r"engine.require.*it is glass"):
        train(tiny_config(engine={"require": True}))


def test_dropout_trains_and_exports(tiny_config) -> None:
    run = train(tiny_config(adapter={"dropout": 0.1, "rslora": True}, export={"at_end": "merged_16bit"}))
    assert run.read_json("merged_16bit/export.json")["proof"]["passed"]


def test_a_dry_run_checks_everything_and_writes_nothing(tiny_config, tmp_path, capsys) -> None:
    dry_run(tiny_config())
    said = capsys.readouterr().err
    assert "54 to train on, 6 held out" in said
    assert "the marked part is learned" in said
    assert "14 linear layers" in said
    assert "no weights were read" in said
    assert not (tmp_path / "runs").exists()


def test_bad_data_stops_before_anything_is_made(tiny_config, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 20)
    with pytest.raises(DataError):
        train(tiny_config(data={"path": str(tmp_path / "rows.jsonl"), "max_rows": None}))
    assert not (tmp_path / "runs").exists()


def test_nothing_is_sent_anywhere(tiny_config, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        calls.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(None, a))  # type: ignore[arg-type]
    run_recipe(tiny_config(export={"at_end": "merged_16bit"}), name="tiny", resume=False)
    assert calls == []


def _logged(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def _adapter(run: RunFolder) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()
