"""What is not finite changes no weight and is named; a failed evaluation or tracker ends nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_steps import ROWS, STEADY, Fit, build, same
from safetensors.torch import load_file

from qdora_fast.recipes.train import train as run_train
from qdora_fast.system.errors import NonFiniteError
from qdora_fast.training import oom

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def ready(tiny_config, tmp_path: Path) -> Callable[..., Fit]:
    """A function that builds the trainer: 3 steps of 2 micro-batches of 4 rows unless told otherwise."""

    def make(*, dropout: float = 0.0, more: dict[str, Any] | None = None, **train: Any) -> Fit:
        config = tiny_config(train={"gradient_accumulation": 2, **STEADY, **train}, adapter={"dropout": dropout})
        return build(config, tmp_path / "checkpoints", **(more or {}))

    return make


def _break_loss(fit: Fit, calls: set[int], value: float = NAN) -> Fit:
    """Make the loss of these forward passes of training not finite; returns `fit`."""
    fit.before_forward(lambda ids: None)
    original = fit.trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        return loss * value if fit.calls in calls and torch.is_grad_enabled() else loss

    fit.trainer.compute_loss = compute_loss
    return fit


def _break_gradient(fit: Fit, row: int, value: float = NAN) -> Fit:
    """Put one such number into one gradient of every micro-batch that holds this row; returns `fit`."""
    here = []
    fit.before_forward(lambda ids: here.append(ROWS[row] in [_unpadded(each) for each in ids.tolist()]))

    def change(gradient: torch.Tensor) -> torch.Tensor | None:
        if not here[-1]:
            return None
        changed = gradient.clone()
        changed.view(-1)[3] = value
        return changed

    fit.on_gradient(change)
    return fit


def _unpadded(ids: list[int]) -> list[int]:
    return next((ids[:end] for end in range(len(ids), 0, -1) if ids[:end] in ROWS), ids)


def _state(fit: Fit) -> dict[str, torch.Tensor]:
    """Everything the optimizer remembers."""
    optimizer = fit.trainer.optimizer
    remembered = getattr(optimizer, "optimizer", optimizer).state
    return {
        f"{index} {key}": value.detach().clone()
        for index, state in enumerate(remembered.values())
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_skipped_step_leaves_weights_decay_and_optimizer_as_they_were(ready, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "weight_decay": 0.5}
    one = ready(max_steps=1, **settings).train()
    fit = _break_loss(ready(max_steps=2, **settings), {4}).train()
    assert fit.trainer.skipped == 1
    assert same(fit.trained(), one.trained())
    assert _state(one) and same(_state(fit), _state(one))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_loss_names_its_micro_batch_and_its_rows(ready, value: float) -> None:
    fit = _break_loss(ready(), {3}, value)
    seen = []
    fit.before_forward(lambda ids: seen.append([ROWS.index(_unpadded(row)) for row in ids.tolist()]))
    fit.train()
    (note,) = fit.notes
    assert (note.step, note.kind) == (2, "skipped")
    assert note.rows == tuple(f"row {number}" for number in seen[2])
    assert note.message.startswith(f"skipped, no weight was changed: the loss of micro-batch 1 of 2 is {value} (row ")
    assert all(torch.isfinite(tensor).all() for tensor in fit.trained().values())
    losses = {entry["step"]: entry.get("loss") for entry in fit.trainer.state.log_history if "epoch" in entry}
    assert losses[2] is None and losses[1] > 0
    assert "grad_norm" not in fit.trainer.state.log_history[1]
    assert fit.logged("skipped_steps") == [1, 1]
    assert all(0 < loss < 100 for loss in fit.logged("loss"))


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_gradient_alone_is_narrowed_down_by_computing_again(ready, value: float) -> None:
    fit = _break_gradient(ready(dropout=0.1), 7, value).train()
    (note,) = fit.notes
    assert re.search(r"gradients of micro-batch [12] of 2 are not finite \(", note.message)
    assert len(note.rows) == 4 and "row 7" in note.rows
    by_loss = _break_loss(ready(dropout=0.1), {2 * note.step}).train()  # another reason, the same step
    assert same(fit.trained(), by_loss.trained()), "looking for rows must leave no trace"
    assert fit.logged("num_tokens") == by_loss.logged("num_tokens")


def test_a_row_whose_tokens_break_the_forward_pass_is_always_among_the_named(ready) -> None:
    """NaN in the embedding of one token, as after a fault of memory: exactly the rows with it break."""
    fit = ready(max_steps=6, max_nonfinite=6, learning_rate=1e-3)
    token = 37
    having = {f"row {number}" for number, row in enumerate(ROWS) if token in row}
    assert 0 < len(having) < len(ROWS) / 3
    embedding = fit.model.get_input_embeddings()

    def hook(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out.masked_fill((args[0] == token).unsqueeze(-1) & module.training, NAN)

    embedding.register_forward_hook(hook)
    fit.train()
    named = [set(note.rows) for note in fit.notes]
    assert having <= set().union(*named)
    assert all(rows & having for rows in named)
    assert all(torch.isfinite(tensor).all() for tensor in fit.trained().values())


def test_too_many_in_a_row_end_training_with_rows_and_the_last_good_checkpoint(ready, tmp_path: Path) -> None:
    fit = _break_loss(ready(max_steps=9, save_steps=1, max_nonfinite=2), {5, 7, 9, 11, 12, 13, 14, 15})
    with pytest.raises(NonFiniteError) as ended:
        fit.train()
    said = str(ended.value)
    assert ended.value.exit_code == 30
    assert "training ended at step 4: losses or gradients were not finite in 2 steps in a row (" in said
    assert re.search(r"- step 3: the loss of micro-batch 1 of 2 is nan \(row \d+, row \d+, row \d+, row \d+\)\n", said)
    assert "- step 4: " in said
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'checkpoint-3'}" in said
    saved = [load_file(path) for path in tmp_path.rglob("adapter_model.safetensors")]
    assert saved and all(torch.isfinite(tensor).all() for tensors in saved for tensor in tensors.values())


def test_too_many_in_all_end_training_too(ready) -> None:
    fit = _break_loss(ready(max_steps=40, max_nonfinite=2), set(range(1, 80, 4)))  # every other step
    with pytest.raises(NonFiniteError, match="not finite in 20 steps in all"):
        fit.train()
    assert fit.trainer.skipped == 20


def test_the_same_fault_in_a_row_of_none_does_not(ready) -> None:
    fit = _break_loss(ready(max_steps=4, max_nonfinite=2), {1, 5}).train()
    assert fit.trainer.state.global_step == 4
    assert fit.kinds() == ["skipped", "skipped"]


def test_a_trained_weight_that_is_not_finite_ends_training_at_once(ready) -> None:
    fit = ready(max_steps=6, save_steps=1, max_nonfinite=5)
    name, weight = next((name, p) for name, p in fit.model.named_parameters() if "lora_B" in name)

    def strike(_: Any) -> None:
        if fit.calls == 5:
            weight.data[0, 0] = NAN

    fit.before_forward(strike)
    with pytest.raises(NonFiniteError, match=rf"1 trained tensors hold NaN .*{re.escape(name)}.*checkpoint-2"):
        fit.train()
    assert fit.trainer.state.global_step == 2


def _with_scaler(fit: Fit, scale: float) -> Any:
    """Train with fp16's scaler, which starts at `scale`; returns the scaler."""
    accelerator = fit.trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    try:
        fit.train()
    finally:
        accelerator.state._mixed_precision = "no"
    return accelerator.scaler


def test_an_overflow_of_fp16_is_the_scalers_business(ready) -> None:
    fit = ready(max_steps=12, max_nonfinite=2)
    before = fit.trained()
    scale = _with_scaler(fit, 2.0**28).get_scale()
    assert fit.notes == []
    assert scale < 2.0**26, "it overflowed more than twice, the limit for other reasons"
    assert not same(fit.trained(), before), "once the scale fits, it learns"


def test_an_overflow_of_fp16_that_no_scale_cures_ends_training(ready) -> None:
    fit = ready(max_steps=12, max_nonfinite=1)
    with pytest.raises(NonFiniteError, match=r"10 steps in a row(?s:.*)- step 10: gradients overflowed fp16"):
        _with_scaler(fit, 2.0**100)


def test_a_failed_evaluation_is_said_and_costs_its_figures_alone(ready) -> None:
    settings = {"eval_steps": 1, "save_steps": 1, "early_stopping": 2}
    whole = ready(**settings).train()
    fit = ready(**settings)
    evaluations = []
    original = fit.trainer.prediction_step

    def prediction_step(*args: Any, **kwargs: Any) -> Any:
        evaluations.append(1)
        if len(evaluations) == 2:
            raise ValueError("cannot reshape array\nof 3 elements")
        return original(*args, **kwargs)

    fit.trainer.prediction_step = prediction_step
    handler, gradient_state = fit.trainer.callback_handler, fit.trainer.accelerator.gradient_state
    read = []
    fit.before_forward(lambda ids: read.append(gradient_state.active_dataloader))
    fit.train()
    (note,) = fit.notes
    assert (note.step, note.kind) == (1, "evaluation")
    assert "the evaluation failed (ValueError: cannot reshape array); training continues" in note.message
    assert same(fit.trained(), whole.trained())
    assert fit.logged("eval_loss") == whole.logged("eval_loss")[1:]
    assert fit.logged("eval_entropy") == whole.logged("eval_entropy")[1:]
    assert set(map(id, read)) == {id(handler.train_dataloader)}, "never the held-out rows"


def test_ctrl_c_in_an_evaluation_is_not_swallowed(ready) -> None:
    fit = ready(eval_steps=1)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    fit.trainer.prediction_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        fit.train()


@pytest.mark.parametrize("broken", ["on_train_begin", "on_log"])
def test_a_failing_tracker_is_said_once_and_then_left_alone(ready, monkeypatch, broken: str) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    asked = []

    class TrackioCallback(TrainerCallback):
        def _event(self, event: str) -> None:
            asked.append(event)
            if event == broken:
                raise ConnectionError("the tracker's server\nis away")

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self._event("on_train_begin")

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            self._event("on_log")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", TrackioCallback)
    whole = ready(max_steps=6).train()
    fit = ready(max_steps=6, more={"report_to": "trackio"}).train()
    (note,) = fit.notes
    assert note.kind == "tracker"
    assert "the tracker Trackio failed (ConnectionError: the tracker's server); training continues" in note.message
    assert asked.count("on_log") == (3 if broken == "on_log" else 8)
    assert same(fit.trained(), whole.trained())


def test_a_run_says_it_when_it_happens_and_at_the_end_and_keeps_it(tiny_config, monkeypatch, capsys) -> None:
    original = oom.OomRetry.compute_loss
    calls = []

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
        loss = original(self, model, inputs, *args, **kwargs)
        return loss * (NAN if len(calls) == 6 else 1)

    monkeypatch.setattr(oom.OomRetry, "compute_loss", compute_loss)
    run = run_train(tiny_config(engine={"resident": "off"}, train={"eval_steps": 4}, evaluation={"max_rows": 0}))
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    memory, skipped = [line for line in lines if "event" in line]
    assert (memory["step"], memory["event"], memory["rows"]) == (2, "memory", [])
    assert (skipped["step"], skipped["event"]) == (3, "skipped")
    assert len(skipped["rows"]) == 4 and all(place.startswith("demo row ") for place in skipped["rows"])
    assert said.count(f"  step 3: {skipped['said']}") == 2  # when it happens, and at the end
    assert said.count(f"  step 2: {memory['said']}") == 2
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4]
