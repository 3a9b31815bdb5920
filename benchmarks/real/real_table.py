"""What the stages of `make real` measured, a line each, for the terminal and for BENCHMARKS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Stages = Mapping[str, Mapping[str, Any]]


def lines(stages: Stages) -> Iterator[str]:
    """A line for each stage that ended well, with its time; for another one its reason."""
    for name, figures in stages.items():
        why = figures.get("failed") or figures.get("skipped")
        words = why or _LINES[name](figures)
        yield f"{name}: {words} ({figures['stage_seconds']:.0f} s)"


def _train(figures: Mapping[str, Any]) -> str:
    task, loss, export = figures["accuracy"], figures["heldout_loss"], figures["export"]
    low, high = task["ci95"]
    return (
        f"{figures['steps']} steps at {figures['tokens_per_second']:.0f} tokens/s; {_percent(task['tuned'])} of "
        f"{figures['questions']} held-out rows right against {_percent(task['base'])} for the base (95 % CI of the "
        f"gain {100 * low:.1f} to {100 * high:.1f} points); held-out loss {loss['base']:.3f} to {loss['tuned']:.3f} "
        f"(difference {loss['ci95'][0]:.3f} to {loss['ci95'][1]:.3f}); merged_16bit into {export['merge_base']}, "
        f"{export['checks']} checks passed"
    )


def _answer(figures: Mapping[str, Any]) -> str:
    return f"{'right' if figures['right'] else 'wrong'}, from plain Transformers: {figures['answer']}"


def _merge_bases(figures: Mapping[str, Any]) -> str:
    names = ("original16", "dequant4", "merged_4bit_forced")
    return "; ".join(
        f"{name} {figures[name]['bytes'] / 2**20:,.0f} MiB, KL {figures[name]['kl']:.2g}, loss "
        f"{figures[name]['exported']:.4f} (trained {figures[name]['trained']:.4f}, base {figures[name]['base']:.4f}), "
        f"{figures[name]['seconds']:.0f} s"
        for name in names
    )


def _adapter(figures: Mapping[str, Any]) -> str:
    return f"imported and merged again: {'the same bytes' if figures['same_weights'] else 'other weights'}"


def _chat(figures: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {'right' if right else 'wrong'}" for name, right in figures["right"].items())


def _serve(figures: Mapping[str, Any]) -> str:
    return f"{'the' if figures['passed'] else 'not the'} answer of chat"


def _gguf(figures: Mapping[str, Any]) -> str:
    return f"q8_0, {figures['bytes'] / 2**20:,.0f} MiB, its contents as expected"


def _exchanged(figures: Mapping[str, Any]) -> str:
    return (
        f"{figures['dropped']} of {figures['exchanged']} rows with another row's answer dropped, and "
        f"{figures['right_rows_dropped']} right ones"
    )


def _step_time(figures: Mapping[str, Any]) -> str:
    seconds, ratio = figures["step_seconds"], figures["peft_over_ours"]
    return "; ".join(
        f"{method.upper()} {seconds[f'{method}-auto']:.2f} s a step, PEFT's layers {seconds[f'{method}-peft']:.2f} s "
        f"({ratio[method]:.2f} times)"
        for method in ("qdora", "qlora")
    )


def _mmlu(figures: Mapping[str, Any]) -> str:
    return f"{_percent(figures['tuned'])} against {_percent(figures['base'])} of {figures['n']} questions"


def _compare(figures: Mapping[str, Any]) -> str:
    arms = "; ".join(
        f"{arm['method']} loss {arm['loss']['mean']:.4f} ({arm['loss']['low']:.4f} to {arm['loss']['high']:.4f}, "
        f"{arm['loss']['n']} seeds), {_percent(arm['score']['mean'])} right, {arm['step_seconds']:.2f} s a step"
        for arm in figures["arms"]
    )
    return f"{figures['steps']} steps: {arms}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "train": _train,
    "answer": _answer,
    "merge bases": _merge_bases,
    "adapter out and in": _adapter,
    "chat": _chat,
    "serve": _serve,
    "gguf": _gguf,
    "exchanged answers": _exchanged,
    "step time": _step_time,
    "mmlu": _mmlu,
    "compare": _compare,
}
