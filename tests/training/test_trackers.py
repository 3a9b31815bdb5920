"""One curve for one run in each tracker, by stand-ins of their packages: none is in the tested environment."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from qdora_fast.config import TrainSettings
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.trackers import continued, ids_of, log_summary, name_of, take_back_events, tracker_callback

EVERY = ["wandb", "mlflow", "trackio", "tensorboard"]
VARIABLES = ("WANDB_RUN_ID", "WANDB_RESUME", "MLFLOW_RUN_ID", "TENSORBOARD_LOGGING_DIR")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Any) -> RunFolder:
    (tmp_path / "demo").mkdir()
    return RunFolder(tmp_path / "demo")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins that take note of every call."""
    from transformers import TrainerCallback  # noqa: F401 - before it can see the stand-ins

    made: dict[str, Any] = {name: MagicMock(name=name) for name in ("wandb", "mlflow", "trackio")}
    made["wandb"].run = None
    made["tensorboard"] = MagicMock(name="SummaryWriter")
    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = made["tensorboard"]  # type: ignore[attr-defined]
    for name in ("wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, made[name])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    return made


def variables(folder: RunFolder, trackers: list[str]) -> dict[str, str]:
    with continued(folder, trackers):
        return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def test_a_resumed_run_has_the_ids_that_it_started_with(folder: RunFolder, packages: dict[str, Any]) -> None:
    first = variables(folder, EVERY)
    assert first["WANDB_RUN_ID"] == ids_of(folder)["id"] and first["WANDB_RESUME"] == "allow"
    assert first["TENSORBOARD_LOGGING_DIR"] == str(folder.path / "tensorboard")
    assert "MLFLOW_RUN_ID" not in first  # the server gives it
    packages["mlflow"].active_run.return_value = SimpleNamespace(info=SimpleNamespace(run_id="given"))
    tracker_callback(folder, EVERY).on_train_begin(None, SimpleNamespace(is_world_process_zero=True), None)
    assert variables(folder, EVERY) == first | {"MLFLOW_RUN_ID": "given"}
    assert not set(VARIABLES) & os.environ.keys()
    assert name_of(folder, ["trackio"]) == f"demo-{ids_of(folder)['id']}" and name_of(folder, ["wandb"]) == "demo"


def test_what_the_user_has_set_stays(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    assert variables(folder, EVERY) == {"WANDB_RUN_ID": "mine", "TENSORBOARD_LOGGING_DIR": "elsewhere"}


def test_without_a_tracker_nothing_is_written(folder: RunFolder) -> None:
    assert variables(folder, []) == {} and not list(folder.path.iterdir())


def test_every_tracker_gets_settings_and_scores(folder: RunFolder, packages: dict[str, Any]) -> None:
    token = "hf_" + "a1" * 20
    folder.write_json("tracker.json", {"id": "abc", "mlflow": "given"})
    settings, scores = {"model": {"name": token}}, {"verdict": "better", "tuned": 0.75, "proven": True}
    assert log_summary(folder, EVERY, settings, scores, 40) == []
    run = packages["wandb"].init.return_value
    run.summary.update.assert_called_once_with({"final/verdict": "better", "final/tuned": 0.75, "final/proven": True})
    run.finish.assert_called_once_with()
    packages["mlflow"].start_run.assert_called_once_with(run_id="given")
    packages["mlflow"].log_metrics.assert_called_once_with({"final/tuned": 0.75, "final/proven": 1.0}, step=40)
    assert packages["trackio"].init.call_args.kwargs["name"] == "demo-abc"
    packages["tensorboard"].return_value.add_scalar.assert_any_call("final/tuned", 0.75, 40)
    assert not any(token in str(each.mock_calls) for each in packages.values())


def test_one_that_fails_is_named_and_the_others_get_theirs(folder: RunFolder, packages: dict[str, Any]) -> None:
    packages["wandb"].init.side_effect = ConnectionError("away\nand more")
    problems = log_summary(folder, ["wandb", "tensorboard"], {}, {"tuned": 1}, 1)
    assert len(problems) == 1 and "wandb did not get the final scores (ConnectionError: away)" in problems[0]
    assert packages["tensorboard"].called


def test_tensorboard_forgets_what_came_after_the_checkpoint(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations

    class TensorBoardCallback:
        _SummaryWriter, logging_dir, tb_writer = MagicMock(), "there", None

    monkeypatch.setattr(transformers.integrations, "TensorBoardCallback", TensorBoardCallback)
    callback = TensorBoardCallback()
    handler = SimpleNamespace(callbacks=[object(), callback])
    take_back_events(SimpleNamespace(callback_handler=handler, is_world_process_zero=lambda: True), 20)
    callback._SummaryWriter.assert_called_once_with(log_dir="there", purge_step=21)
    assert callback.tb_writer is callback._SummaryWriter.return_value


def test_events_of_a_resumed_run_read_back_as_one_curve(folder: RunFolder) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    where = str(folder.path / "tensorboard")
    for steps, purge in ((range(1, 8), None), (range(5, 11), 5)):  # killed at 7, resumed from checkpoint-4
        writer = SummaryWriter(log_dir=where, purge_step=purge)
        for step in steps:
            writer.add_scalar("train/loss", 1 / step, step)
        writer.close()
    read = accumulator.EventAccumulator(where)
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(1, 11))


def test_trackers_are_one_or_several() -> None:
    assert TrainSettings().trackers == TrainSettings(tracker=[]).trackers == []
    assert TrainSettings(tracker="wandb").trackers == ["wandb"]
    assert TrainSettings(tracker=["tensorboard", "wandb"]).trackers == ["tensorboard", "wandb"]
    for wrong in (["wandb", "wandb"], ["none", "wandb"], ["weights"], "weights"):
        with pytest.raises(ValueError, match="tracker"):
            TrainSettings(tracker=wrong)  # type: ignore[arg-type]
