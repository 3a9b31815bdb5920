"""`make bench`, from the options to the JSON line: case by case the gate, the clock, then the counting.

The gate comes first, on freshly built arms; only then does an optimizer step. Everything is returned as one
dictionary, which is also what `--record` keeps; the tables are for people and go to the console on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.engine import arms as arms_module
from benchmarks.engine import cases, table
from benchmarks.engine.arms import Arm
from benchmarks.engine.cases import Case
from benchmarks.engine.footprint import footprint, held_bytes, saved_bytes
from benchmarks.engine.gate import Gate, check
from benchmarks.engine.measure import interleaved, ratio, spread
from benchmarks.engine.operations import operations
from benchmarks.engine.subjects import Subject, build
from benchmarks.machine import machine
from benchmarks.options import Options
from qdora_fast.system import console

Said = Callable[[str], None]


def run_benchmark(options: Options, *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every case asked for and return the whole record; `result["gate"]["passed"]` decides the exit code.

    Raises:
        ConfigError: the options name an arm, case or dtype that does not exist.
    """
    arms = [_with_impl(arm, options.impl) for arm in arms_module.choose(options.arms)]
    results = []
    for case in cases.choose(options):
        results.append(run_case(case, arms, options, said=lambda text: console.print(text)))
        table.show_case(results[-1])
    record = _record(options, results, command)
    table.show_machine(record)
    return record


def run_case(case: Case, arms: Sequence[Arm], options: Options, said: Said = lambda text: None) -> dict[str, Any]:
    """One case: gate, clock, footprint, operations."""
    said(f"\n{case}")
    subjects = [build(case, arm) for arm in arms]
    gate = check(subjects)
    said("  gate " + ("green" if gate.passed else "RED; no ratios for this case"))
    samples = interleaved(
        {subject.arm.name: subject.step for subject in subjects},
        rounds=options.rounds,
        warmup=options.warmup,
        sample_s=options.sample_s,
        device=case.device,
    )
    per_layer = _per_layer(case, arms)
    figures = {subject.arm.name: _figures(subject, samples, per_layer) for subject in subjects}
    return {
        "case": str(case),
        **asdict(case),
        "arms": figures,
        "ratios": _ratios(arms, samples, gate),
        "gate": gate.as_dict(),
    }


def _figures(subject: Subject, samples: dict[str, list[float]], per_layer: dict[str, Any]) -> dict[str, Any]:
    name, case = subject.arm.name, subject.case
    time = spread(samples[name])
    return {
        "step_s": time.median,
        "step_s_spread": time.as_dict(),
        "tokens_per_s": case.tokens * case.grad_accum / time.median,
        **footprint(subject).as_dict(),
        "resident_bytes": resident_bytes(subject.model) if subject.arm.ours else None,
        **per_layer[name],
        "engine": subject.report,
    }


def resident_bytes(model: Any) -> int:
    """What the engine keeps between micro-batches now; on a GPU it decides that after the first step."""
    from qdora_fast.engine.patch import residency

    kept = residency(model)
    return 0 if kept is None else kept.bytes


def _ratios(arms: Sequence[Arm], samples: dict[str, list[float]], gate: Gate) -> dict[str, Any]:
    if not gate.passed:
        return {}
    return {f"{a}/{b}": ratio(samples[a], samples[b]).as_dict() for a, b in arms_module.ratio_pairs(arms)}


def _per_layer(case: Case, arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Operations and bytes of one layer. A transformer layer is the difference of two layers and one."""
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        one = _count(build(replace(case, layers=1, grad_accum=1), arm))
        if case.kind == "model":
            two = _count(build(replace(case, layers=2, grad_accum=1), arm))
            one = two[0].minus(one[0]), two[1] - one[1], two[2] - one[2]
        found[arm.name] = {"operations": one[0].as_dict(), "layer_saved_bytes": one[1], "layer_held_bytes": one[2]}
    return found


def _count(subject: Subject) -> Any:
    return operations(subject), saved_bytes(subject), held_bytes(subject)


def _with_impl(arm: Arm, impl: str) -> Arm:
    return arm if arm.install is None else replace(arm, install={"impl": impl, **arm.install})


def _record(options: Options, results: list[dict[str, Any]], command: Sequence[str] | None) -> dict[str, Any]:
    """The JSON line. Top-level arms and ratios are the first case's: the headline where it was asked for."""
    red = [result["case"] for result in results if not result["gate"]["passed"]]
    return {
        "kind": "cpu" if options.device == "cpu" else "gpu",
        "headline": results[0]["case"],
        "arms": results[0]["arms"],
        "ratios": results[0]["ratios"],
        "gate": {"passed": not red, "red": red},
        "machine": machine(command),
        "options": asdict(options),
        "cases": results,
    }
