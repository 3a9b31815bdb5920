"""Memory that runs out: in a forward or backward pass, the optimizer's step, an evaluation, a save, an export.

A pass is repeated in parts, or after cached weights were released, and the losses stay what they were;
what cannot be repeated ends with 31, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faults.kills import prove_here
from faults.lab import STEPS, VARIANTS, Job
from faults.trial import Group, Trial
from faults.victim import found, put, require

_PHASES = ("forward", "backward", "optimizer", "evaluation", "save", "export")
_NEAR = 1e-4
"""Losses of a step computed in parts differ from the whole by rounding, and by what that comes to in later steps."""


def runs_out(trial: Trial) -> None:
    """In one of the phases, at a random moment."""
    phase = _PHASES[trial.number % len(_PHASES)]
    step = trial.random.randrange(2, STEPS)
    trial.note = f"{phase}, step {step}"
    if phase == "export":
        _in_an_export(trial)
        return
    job = trial.lab.job(trial.folder, **VARIANTS["undropped"])
    ended = job.run(fault=lambda: _FAULTS[phase](step, trial.random.randrange(2)))
    if phase in ("forward", "backward", "evaluation"):
        ended.require(0, saying="memory ran out")
        _require_near(job, trial.lab.job(trial.lab.folder / "undropped"))
        return
    ended.require(31, saying="checkpoint-")
    job.require_whole()
    job.run().require(0, saying="resuming from")
    require(job.adapter() == trial.lab.untouched("undropped").adapter, "the adapter is not the uninterrupted run's")


def _require_near(job: Job, whole: Job) -> None:
    ours, theirs = ([each["loss"] for each in one.logged() if "loss" in each] for one in (job, whole))
    require(len(ours) == len(theirs), f"{len(ours)} losses instead of {len(theirs)}")
    worst = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    require(worst < _NEAR, f"losses differ by {worst}")


def _in_an_export(trial: Trial) -> None:
    job = trial.lab.copy_of_finished(trial.folder)
    adapter, run = job.adapter(), job.last()
    target = run.path / "merged_16bit"
    arguments = ("export", str(run.path), "--to", "merged_16bit")
    count = trial.random.randrange(1, 12)

    def fault() -> None:
        prove_here()
        _fail_at_call("torch", "matmul", count)

    trial.note = f"export, product {count}"
    ended = job.run(*arguments, fault=fault)
    if ended.code:
        ended.require(31, saying="memory")
        require(not target.exists(), "half a model has its name")
    job.run(*arguments, *(() if ended.code else ("--overwrite",)), fault=prove_here).require(0)
    require(job.adapter() == adapter, "the adapter has changed")


def _in_a_pass(step: int, micro_batch: int, *, training: bool) -> None:
    def strike(model: Any, state: Any) -> None:
        calls = {"now": 0, "struck": 0}

        def before(module: Any, *_: Any) -> None:
            here = state.global_step + 1 == step if training else True
            if module.training != training or not here:
                return
            calls["now"] += 1
            if calls["now"] == micro_batch + 1 and not calls["struck"]:
                calls["struck"] = 1
                raise _no_memory()

        model.register_forward_pre_hook(before)

    _when_training_begins(strike)


def _in_a_backward(step: int, micro_batch: int) -> None:
    def strike(model: Any, state: Any) -> None:
        trained = [each for each in model.parameters() if each.requires_grad]
        calls = {"now": 0}

        def on_gradient(gradient: Any) -> Any:
            if state.global_step + 1 == step:
                calls["now"] += 1
                if calls["now"] == micro_batch + 1:
                    raise _no_memory()
            return gradient

        trained[len(trained) // 2].register_hook(on_gradient)

    _when_training_begins(strike)


def _in_the_optimizer(step: int, _: int) -> None:
    """In the middle of a step, in which 42 tensors are updated."""
    _fail_at_call("bitsandbytes.optim.optimizer:Optimizer2State", "update_step", 42 * (step - 1) + 20)


def _in_a_save(step: int, _: int) -> None:
    _fail_at_call("qdora_fast.training.checkpoint", "write_state", step)


def _fail_at_call(place: str, name: str, number: int) -> None:
    original, calls = found(place, name), {"now": 0}

    def function(*args: Any, **kwargs: Any) -> Any:
        calls["now"] += 1
        if calls["now"] == number:
            raise _no_memory()
        return original(*args, **kwargs)

    put(place, **{name: function})


def _when_training_begins(strike: Callable[[Any, Any], None]) -> None:
    from transformers.trainer_callback import DefaultFlowCallback

    begin = DefaultFlowCallback.on_train_begin

    def on_train_begin(self: Any, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> Any:
        strike(model, state)
        return begin(self, args, state, control, model=model, **kwargs)

    put("transformers.trainer_callback:DefaultFlowCallback", on_train_begin=on_train_begin)


def _no_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 24 GiB")


_FAULTS: dict[str, Callable[[int, int], None]] = {
    "forward": lambda step, which: _in_a_pass(step, which, training=True),
    "backward": _in_a_backward,
    "optimizer": _in_the_optimizer,
    "evaluation": lambda step, which: _in_a_pass(step, which, training=False),
    "save": _in_a_save,
}

GROUPS = (
    Group(
        "memory",
        "out of memory in a forward or backward pass, optimizer step, evaluation, save, export",
        "repeated in parts, losses within 1e-4 of the untouched run's; else exit code 31, and bit-equal after going on",
        18,
        120,
        runs_out,
    ),
)
