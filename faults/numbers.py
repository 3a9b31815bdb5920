"""Numbers that are not finite: in a loss, a gradient, a weight, a row of the embeddings; once, or from some step on.

None may reach a file, and none may pass without a word. One bad step is skipped and said; what goes on
ends the run with 30; a weight that is broken itself ends it at once, and the run goes on from the last
checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from faults.lab import STEPS, Job
from faults.trial import Group, Trial
from faults.victim import put, require

_KINDS = ("loss", "gradient", "weight", "embedding")


def not_finite(trial: Trial) -> None:
    """One of the four kinds, at a random step, in a random place."""
    kind = _KINDS[trial.number % len(_KINDS)]
    value = trial.random.choice([math.nan, math.inf, -math.inf])
    once = trial.random.random() < 0.5 and kind != "weight"
    step = trial.random.randrange(2, STEPS - 1)
    trial.note = f"{value} in a {kind}, {'once, in' if once else 'from'} step {step}"
    job = trial.lab.job(trial.folder)
    seed = trial.random.randrange(2**31)
    ended = job.run(fault=lambda: _inject(kind, value, step, once, seed))
    _require_finite_files(job)
    if kind == "weight":
        ended.require(30, saying="checkpoint-")
        job.run().require(0, saying="resuming from")
        require(job.adapter() == trial.lab.untouched().adapter, "the adapter is not the uninterrupted run's")
    elif once:
        ended.require(0, saying="skipped, no weight was changed")
    else:
        rows = kind == "embedding"  # rows without that token are fine
        ended.require(0 if rows and ended.code == 0 else 30, saying="skipped, no weight was changed")
        require(ended.code == 0 or "rows" in ended.said, "does not say which rows")


def _require_finite_files(job: Job) -> None:
    from safetensors.torch import load_file

    for file in job.last().path.rglob("*.safetensors"):
        broken = [name for name, tensor in load_file(file).items() if not bool(tensor.isfinite().all())]
        require(not broken, f"{file.parent.name}/{file.name}: {len(broken)} tensors are not finite, first {broken[:1]}")


def _inject(kind: str, value: float, step: int, once: bool, seed: int) -> None:
    """In this process, from that step on (or in it alone), put `value` where it is to be."""
    from transformers.trainer_callback import DefaultFlowCallback

    begin = DefaultFlowCallback.on_train_begin

    def on_train_begin(self: Any, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> Any:
        def now() -> bool:
            here = state.global_step + 1
            return bool(model.training and (here == step if once else here >= step))

        _PLACES[kind](model, value, now, seed)
        return begin(self, args, state, control, model=model, **kwargs)

    put("transformers.trainer_callback:DefaultFlowCallback", on_train_begin=on_train_begin)


def _in_the_loss(model: Any, value: float, now: Callable[[], bool], _: int) -> None:
    def strike(module: Any, arguments: Any, output: Any) -> Any:
        if now():
            output["loss"] = output["loss"] * value
        return output

    model.register_forward_hook(strike)


def _in_a_gradient(model: Any, value: float, now: Callable[[], bool], seed: int) -> None:
    trained = [each for each in model.parameters() if each.requires_grad]

    def strike(gradient: Any) -> Any:
        if not now():
            return gradient
        changed = gradient.clone()
        changed.view(-1)[seed % changed.numel()] = value
        return changed

    trained[seed % len(trained)].register_hook(strike)


def _in_a_weight(model: Any, value: float, now: Callable[[], bool], seed: int) -> None:
    trained = [each for each in model.parameters() if each.requires_grad]
    weight = trained[seed % len(trained)].data.view(-1)
    _before_each_pass(model, now, lambda: weight.__setitem__(seed % weight.numel(), value))


def _in_the_embeddings(model: Any, value: float, now: Callable[[], bool], seed: int) -> None:
    rows = model.get_input_embeddings().weight.data
    before: list[Any] = []

    def strike(_: Any, arguments: Any) -> None:
        token = int(arguments[0].view(-1)[seed % arguments[0].numel()])
        if now():
            before.append((token, rows[token].clone()))
            rows[token] = value
        else:
            while before:
                place, row = before.pop()
                rows[place] = row

    model.get_input_embeddings().register_forward_pre_hook(strike)


def _before_each_pass(model: Any, now: Callable[[], bool], strike: Callable[[], object]) -> None:
    model.register_forward_pre_hook(lambda *_: strike() and None if now() else None)


_PLACES: dict[str, Callable[[Any, float, Callable[[], bool], int], None]] = {
    "loss": _in_the_loss,
    "gradient": _in_a_gradient,
    "weight": _in_a_weight,
    "embedding": _in_the_embeddings,
}

GROUPS = (
    Group(
        "nonfinite",
        "NaN or infinity in a loss, gradient, weight or embedding row",
        "never in a file; one step skipped and its rows named, or exit code 30 with the last good checkpoint",
        30,
        300,
        not_finite,
    ),
)
