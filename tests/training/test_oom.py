"""Memory that runs out changes how a step is computed, not what it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_steps import STEADY, Fit, build, distance, same

from qdora_fast.system.errors import OutOfMemory

BATCHES = {"gradient_accumulation": 3, "learning_rate": 1e-3, **STEADY}  # 3 micro-batches of 4 rows a step


@pytest.fixture
def ready(tiny_config, tmp_path: Path) -> Callable[..., Fit]:
    """A function that builds the trainer, 3 steps long unless told otherwise."""

    def make(*, dropout: float = 0.0, resident: float | str = "off", **train: Any) -> Fit:
        engine = {"resident": resident}
        config = tiny_config(train=BATCHES | train, engine=engine, adapter={"dropout": dropout})
        return build(config, tmp_path / "checkpoints")

    return make


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(  # of the second step
    "call", [4, pytest.param(5, marks=pytest.mark.exhaustive), 6], ids=["first", "middle", "last"]
)
def test_a_step_that_does_not_fit_is_repeated_in_parts(ready, call: int, backward: bool) -> None:
    whole = ready().train()
    fit = ready().no_memory_at([call], backward=backward).train()
    assert fit.trainer.micro_parts == 2
    assert distance(fit.trained(), whole.trained()) < 1e-5
    assert fit.logged("loss") == pytest.approx(whole.logged("loss"), abs=1e-5)
    assert fit.logged("num_tokens") == whole.logged("num_tokens")
    (note,) = fit.notes
    assert (note.step, note.kind) == (2, "memory")
    assert note.message.startswith(
        "memory ran out (CUDA out of memory); the step is repeated with each micro-batch in 2 parts"
    )


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_twice_in_one_step(ready, optimizer: str) -> None:
    whole = ready(optimizer=optimizer).train()
    fit = ready(optimizer=optimizer).no_memory_at([2, 4]).train()
    assert fit.trainer.micro_parts == 4
    assert [note.step for note in fit.notes] == [1, 1]
    assert distance(fit.trained(), whole.trained()) < 1e-5
    assert fit.logged("loss") == pytest.approx(whole.logged("loss"), abs=1e-5)


def test_nothing_of_the_failed_attempt_is_left(ready) -> None:
    """Retried in the very first step, it is the run that was in parts from the start: to the bit, dropout too."""
    fit = ready(dropout=0.1).no_memory_at([3], backward=True).train()
    parts = ready(dropout=0.1)
    parts.trainer.micro_parts = 2
    assert same(fit.trained(), parts.train().trained())


def test_cached_weights_go_first_and_then_nothing_has_changed(ready) -> None:
    whole = ready(dropout=0.1, resident=1.0).train()
    fit = ready(dropout=0.1, resident=1.0).no_memory_at([5]).train()
    assert fit.trainer.micro_parts == 1
    assert "of cached weights, and the same is tried again" in fit.notes[0].message
    assert same(fit.trained(), whole.trained())


def test_a_resumed_run_continues_in_the_same_parts(ready, tmp_path: Path) -> None:
    fit = ready(max_steps=4, save_steps=2).no_memory_at([2]).train()
    resumed = ready(max_steps=4, save_steps=50)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert resumed.trainer.micro_parts == 2
    assert same(resumed.trained(), fit.trained())


def test_a_resumed_run_keeps_the_more_parts_that_this_card_needs(ready, tmp_path: Path) -> None:
    ready(max_steps=2, save_steps=1).train()
    resumed = ready(max_steps=2, save_steps=50)
    resumed.trainer.micro_parts = 4  # found by probe.py
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-1"))
    assert resumed.trainer.micro_parts == 4


def test_where_each_micro_batch_is_a_mean_its_parts_weigh_by_their_tokens(ready) -> None:
    def means(fit: Fit) -> Fit:
        fit.trainer.model_accepts_loss_kwargs = False  # as for gemma3: the Trainer then counts no tokens
        return fit.train()

    whole, fit = means(ready()), means(ready().no_memory_at([2]))
    assert fit.trainer.window.items is None
    assert distance(fit.trained(), whole.trained()) < 1e-5
    assert fit.logged("loss") == pytest.approx(whole.logged("loss"), abs=1e-5)


@pytest.mark.parametrize(
    ("error", "means_memory"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_memory(ready, error: Exception, means_memory: bool) -> None:
    fit = ready(max_steps=1)

    def strike(_: Any) -> None:
        if fit.calls == 1:
            raise error

    fit.before_forward(strike)
    if means_memory:
        assert fit.train().trainer.micro_parts == 2
    else:
        with pytest.raises(type(error)):
            fit.train()


def test_one_row_that_does_not_fit_ends_the_run_with_what_was_tried(ready) -> None:
    fit = ready(save_steps=1).no_memory_at(range(4, 50))
    with pytest.raises(OutOfMemory) as ended:
        fit.train()
    said = str(ended.value)
    assert ended.value.exit_code == 31
    assert [note.message.split(" parts")[0][-1] for note in fit.notes] == ["2", "4"]
    assert said.startswith("memory ran out in step 2 (CUDA out of memory).\n")
    assert "The smallest part is one row of" in said and "tried in 4 parts" in said
    assert "The last good checkpoint is" in said and "checkpoint-1" in said
    assert "model.max_length" in said and "qdora-fast plan" in said


def test_an_evaluation_that_does_not_fit_is_computed_in_parts_of_its_own(ready) -> None:
    def evaluates(fit: Fit, fails: int) -> Fit:
        seen = []

        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if not module.training:
                seen.append(kwargs["input_ids"].shape[0])
                if len(seen) == fails:
                    raise torch.OutOfMemoryError("CUDA out of memory")

        fit.model.register_forward_pre_hook(hook, with_kwargs=True)
        return fit.train()

    whole, fit = evaluates(ready(eval_steps=1), 0), evaluates(ready(eval_steps=1), 2)
    assert (fit.trainer.micro_parts, fit.trainer.eval_parts) == (1, 2)
    (note,) = fit.notes
    assert note.step == 1
    assert "held-out batches are computed in 2 parts from here on, training as before" in note.message
    assert same(fit.trained(), whole.trained())
    assert fit.logged("loss") == whole.logged("loss")
    assert fit.logged("eval_loss") == pytest.approx(whole.logged("eval_loss"), abs=1e-5)


def test_a_held_out_row_that_does_not_fit_ends_the_run(ready) -> None:
    fit = ready(eval_steps=1)

    def hook(module: Any, *_: Any) -> None:
        if not module.training:
            raise torch.OutOfMemoryError("CUDA out of memory")

    fit.model.register_forward_pre_hook(hook)
    with pytest.raises(
        OutOfMemory, match=r"in the evaluation after step 1 \(CUDA out of memory\).\n  The smallest part is one row"
    ):
        fit.train()


def test_the_optimizers_step_is_never_repeated(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = ready(save_steps=1)
    original = torch.optim.AdamW.step
    steps = []

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfMemory, match=r"(?s)inside the optimizer's step 3 .*never repeated.*checkpoint-2"):
        fit.train()
    assert len(steps) == 3


def test_several_processes_do_not_retry(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = ready()

    def strike(_: Any) -> None:
        if fit.calls == 2:
            monkeypatch.setenv("WORLD_SIZE", "2")
            raise torch.OutOfMemoryError("CUDA out of memory")

    fit.before_forward(strike)
    with pytest.raises(OutOfMemory, match="several processes no step is repeated.* a smaller train.batch_size"):
        fit.train()
    assert fit.notes == []
