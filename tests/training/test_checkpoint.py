"""A checkpoint is whole or not there; what goes on from it ends where the uninterrupted run ends, to the bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from qdora_fast.config.loader import dump_config
from qdora_fast.models.run_info import read_run_info
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import CheckpointError, DiskSpaceError, NonFiniteError, QdoraError, Stopped
from qdora_fast.system.manifest import problems, read_manifest
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training import checkpoint


def _adapter(run: RunFolder) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def _steps(run: RunFolder) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in run.checkpoints()]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send this process a signal at the end of a step, once."""
    from transformers.trainer_callback import DefaultFlowCallback

    original = DefaultFlowCallback.on_step_end

    def arrange(step: int, number: int = signal.SIGTERM) -> None:
        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == step:
                os.kill(os.getpid(), number)
            return original(self, args, state, control, **kwargs)

        monkeypatch.setattr(DefaultFlowCallback, "on_step_end", on_step_end)

    yield arrange
    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", original)


@pytest.mark.parametrize(
    ("optimizer", "dropout", "ratio", "step"),  # 14 steps an epoch
    [
        ("adamw", 0.1, None, 5),
        pytest.param("adamw_8bit", 0.0, 4, 14, marks=pytest.mark.exhaustive),
        ("paged_adamw_8bit", 0.1, 4, 16),
        pytest.param("paged_adamw_32bit", 0.1, None, 14, marks=pytest.mark.exhaustive),
    ],
)
def test_a_stopped_run_ends_where_the_uninterrupted_one_does(
    tiny_config, stop_at, optimizer: str, dropout: float, ratio: float | None, step: int
) -> None:
    settings = {"optimizer": optimizer, "loraplus_ratio": ratio, "max_steps": 18, "eval_steps": 7, "save_steps": 50}
    config = tiny_config(train=settings, adapter={"dropout": dropout})
    whole = train(config)
    stop_at(step)
    with pytest.raises(Stopped, match=f"checkpoint-{step} of") as stopped:
        train(config)
    assert stopped.value.exit_code == 75
    stop_at(-1)
    resumed = train(config, resume="auto")
    assert resumed.path != whole.path
    assert _steps(resumed)[0] == step
    assert _adapter(resumed) == _adapter(whole)


def test_auto_resume_starts_anew_where_there_is_nothing_to_go_on_with(tiny_config, stop_at, capsys) -> None:
    first = train(tiny_config(), resume="auto")
    second = train(tiny_config(), resume="auto")  # the first has finished
    assert second.path != first.path
    stop_at(2)
    with pytest.raises(Stopped):
        train(tiny_config(), resume="auto")
    stop_at(-1)
    capsys.readouterr()
    other = train(tiny_config(train={"learning_rate": 1e-3}), resume="auto")
    said = capsys.readouterr().err
    assert "did not finish and is not resumed" in said
    assert "train.learning_rate: 0.01 then, 0.001 now" in said
    assert other.path.name == "tiny-4"


def test_resumed_at_the_last_step_no_step_is_added(tiny_config) -> None:
    settings = {"max_steps": 5, "save_steps": 1}
    run = train(tiny_config(train=settings))
    before = _adapter(run)
    (run.path / "finished.json").unlink()  # as if it had been killed while it was evaluated
    again = train(tiny_config(train=settings), resume="auto")
    assert again.path == run.path
    assert _steps(again)[-1] == 5
    assert _adapter(again) == before


def test_a_checkpoint_holds_no_pickle_says_whose_it_is_and_only_the_newest_are_kept(
    tiny_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", None)  # whoever reads a pickle fails
    monkeypatch.setattr(torch, "save", None)
    run = train(tiny_config(train={"max_steps": 5, "save_steps": 1, "optimizer": "adamw_8bit"}))
    assert _steps(run) == [4, 5]
    names = {path.name for path in run.checkpoints()[-1].iterdir()}
    assert not {name for name in names if Path(name).suffix not in (".json", ".safetensors", ".md")}
    about = read_manifest(run.checkpoints()[-1])["about"]
    assert (about["kind"], about["step"]) == ("checkpoint", 5)
    assert about["identity"]["optimizer"] == "adamw_8bit"
    assert about["identity"]["effective batch"] == 4


def test_the_best_checkpoint_is_kept_beside_the_newest_and_found_where_the_run_lies(
    tiny_config, tmp_path: Path
) -> None:
    settings = {"early_stopping": 9, "eval_steps": 1, "save_steps": 1, "max_steps": 6, "learning_rate": 0.9}
    settings["magnitude_learning_rate"] = 1e-6  # early stopping takes the best one; here all steps are done before
    run = train(tiny_config(train=settings))
    state = json.loads((run.checkpoints()[-1] / "trainer_state.json").read_text())
    best = state["best_global_step"]
    assert best < state["global_step"] - 1, "this rate makes it worse"
    assert _steps(run)[0] == best
    adapter = _adapter(run)
    assert adapter == (run.path / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "runs").rename(tmp_path / "moved")
    again = train(tiny_config(train=settings, run={"dir": str(tmp_path / "moved")}), resume=True)
    assert again.path == tmp_path / "moved" / run.path.name
    assert _adapter(again) == adapter


def test_a_damaged_checkpoint_is_passed_over_and_named(tiny_config, capsys) -> None:
    settings = {"max_steps": 6, "save_steps": 2}
    run = train(tiny_config(train=settings))
    before = _adapter(run)
    newest = run.checkpoints()[-1] / "training_state.safetensors"
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    newest.write_bytes(flipped)
    capsys.readouterr()
    resumed = train(tiny_config(train=settings), resume=True)
    said = capsys.readouterr().err
    assert "resuming from checkpoint-4" in said
    assert "passed over checkpoint-6" in said
    assert "training_state.safetensors: its content has changed" in said
    assert _adapter(resumed) == before
    assert problems(resumed.checkpoints()[-1]) == []  # written anew


def test_without_a_whole_checkpoint_resume_is_an_error_and_never_a_new_start(tiny_config) -> None:
    run = train(tiny_config(train={"save_steps": 2}))
    for path in run.checkpoints():
        (path / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is complete:\n.*checkpoint-4.*\n.*checkpoint-2"):
        train(tiny_config(train={"save_steps": 2}), resume=True)


def test_a_run_on_an_embedded_base_of_an_earlier_version_goes_on_with_that_base(
    tiny_config, tiny_base: Path, tmp_path: Path
) -> None:
    config = tiny_config(train={"save_steps": 2})
    whole, half = train(config), train(config)
    shutil.rmtree(half.checkpoints()[-1])
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": "demo"})})
    half.config_file.write_text(dump_config(config))
    gone = Path(shutil.copytree(half.path, tmp_path / "gone" / half.path.name))

    resumed = train(config, resume=True)
    assert resumed.path == half.path
    assert read_run_info(resumed).base == str(tiny_base)
    assert _adapter(resumed) == _adapter(whole)

    made = json.loads((gone / "model.json").read_text())
    (gone / "model.json").write_text(
        json.dumps(made | {"base": str(tmp_path / "cache" / "demo-base-0123456789abcdef")})
    )
    elsewhere = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(gone.parent)})})
    with pytest.raises(CheckpointError, match=r"is of another run:\n  - base: weights .* then, weights .* now"):
        train(elsewhere, resume=True)


def test_another_runs_checkpoint_is_refused_before_the_base_is_read(
    tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"

    def write(answer: str) -> None:
        lines = [{"prompt": f"What is the number after {n}?", "response": f"{answer} {n + 1}."} for n in range(40)]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))

    data = {"path": str(rows), "filters": {"min_tokens": 0}}
    write("It is")
    train(tiny_config(data=data))
    write("That would be")  # same settings, other rows
    monkeypatch.setattr("qdora_fast.models.loading.load_base", None)
    with pytest.raises(CheckpointError, match=r"is of another run:\n  - data: \w+ then, \w+ now\n"):
        train(tiny_config(data=data), resume=True)


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [(errno.ENOSPC, DiskSpaceError, "No space left"), (errno.EIO, QdoraError, "Input/output error")],
)
def test_a_full_or_broken_disk_leaves_the_last_checkpoint_and_no_half_one(
    tiny_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, kind: type[QdoraError], said: str
) -> None:
    original = checkpoint.write_state

    def fail(folder: Path, content: Any) -> None:
        if "checkpoint-3" in folder.name:
            raise OSError(number, os.strerror(number))
        original(folder, content)

    monkeypatch.setattr(checkpoint, "write_state", fail)
    with pytest.raises(kind, match=rf"{said}.*checkpoint-2 is untouched.*--auto-resume"):
        train(tiny_config(train={"save_steps": 1}))
    run = RunFolder.open(tmp_path / "runs" / "tiny")
    assert _steps(run) == [1, 2]
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"checkpoint-1", "checkpoint-2"}


def test_what_is_not_finite_is_never_saved(tiny_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers.trainer_callback import DefaultFlowCallback

    original = DefaultFlowCallback.on_step_end

    def poison(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == 2:
            trained = [p for p in kwargs["model"].parameters() if p.requires_grad]
            with torch.no_grad():
                trained[3].view(-1)[0] = float("nan")
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", poison)
    with pytest.raises(NonFiniteError, match=r"1 trained tensors .*the last good checkpoint is .*checkpoint-1"):
        train(tiny_config(train={"save_steps": 1}))
    assert _steps(RunFolder.open(tmp_path / "runs" / "tiny")) == [1]
