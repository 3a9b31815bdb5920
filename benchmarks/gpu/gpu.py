"""`make bench-gpu`: the field's protocol on a random Llama-3.1-8B, one process an arm, in a few minutes.

The parent plans the time and reads results; it never touches the GPU itself, so that each child has all of it. Order:
the random model is written, the gate is run, the arms train, the kernels are held against their roofline. Time is
given to arms by weight (Unsloth's DoRA is the slow one) and an arm that is short of it measures fewer steps, never
fewer than three. Where there is no GPU nothing is measured, and the caller exits with 2.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.engine import table
from benchmarks.engine.arms import GPU_ARMS, Arm
from benchmarks.machine import machine
from benchmarks.options import GpuOptions
from qdora_fast.system import console
from qdora_fast.system.child import environment, python
from qdora_fast.system.errors import ConfigError, QdoraError

SLOW = 2.0
"""Weight of Unsloth's DoRA in the share of time."""
KERNELS_SHARE = 0.08
GRACE_S = 90.0
"""Beyond its time a child gets this long to load and to finish its least steps; then it is stopped."""
LOSS_TOLERANCE, NORM_TOLERANCE = 2.0**-8, 0.05
"""Relative, between arms with the same adapter, on the first micro-batch; bf16."""
PAIRS = (
    ("qdora-unsloth", "qlora-unsloth"),
    ("qdora-ours", "qlora-unsloth"),
    ("qdora-ours", "qdora-unsloth"),
    ("qdora-ours-no-resident", "qlora-unsloth"),
    ("qdora-ours-no-resident", "qdora-unsloth"),
    ("qlora-ours", "qlora-unsloth"),
)


def run_gpu_benchmark(options: GpuOptions, *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the protocol and return its record; `result["gate"]["passed"]` decides the exit code.

    Raises:
        ConfigError: no GPU (exit code 2), or an arm that does not exist.
        QdoraError: the random model could not be written.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("bench-gpu needs an NVIDIA GPU and a CUDA build of torch; `make bench` runs on a CPU")
    arms = _chosen(options.arms)
    begun = time.monotonic()
    end = begun + 60 * options.minutes

    def said(text: str) -> None:
        console.print(f"[{time.monotonic() - begun:5.0f} s] {text}")

    said("writing the random model (NF4, kept in the cache)")
    folder = child({"task": "checkpoint"}, options, end - time.monotonic())
    if "error" in folder:
        raise QdoraError(f"the random model could not be written: {folder['error']}")
    said("gate")
    gate = child({"task": "gate"}, options, end - time.monotonic())
    results: dict[str, dict[str, Any]] = {}
    for place, arm in enumerate(arms):
        seconds = _share(arms[place:], end - time.monotonic(), options)
        said(f"{arm.name}: {seconds:.0f} s")
        results[arm.name] = child({"task": "arm", "arm": arm.name, "folder": folder["folder"]}, options, seconds)
    kernels: dict[str, Any] = {}
    if options.kernels:
        said("kernels")
        kernels = child({"task": "kernels"}, options, max(30.0, end - time.monotonic()))
    record = _record(options, gate, results, kernels, command)
    table.show_gpu(record)
    return record


def child(task: dict[str, Any], options: GpuOptions, seconds: float) -> dict[str, Any]:
    """Run a task of gpu_arm.py in a fresh process; {"error": ...} if it failed or took far too long."""
    with tempfile.TemporaryDirectory() as scratch:
        spec, out = Path(scratch) / "spec.json", Path(scratch) / "out.json"
        spec.write_text(json.dumps({**task, "seconds": max(0.0, seconds), "options": asdict(options)}))
        ask = python("-m", "benchmarks.gpu.gpu_arm", str(spec), str(out))
        try:
            patience = max(0.0, seconds) + GRACE_S
            done = subprocess.run(
                ask, capture_output=True, text=True, timeout=patience, env=environment(searched=ROOT), check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {seconds + GRACE_S:.0f} s"}
        if done.returncode or not out.exists():
            return {"error": f"exit code {done.returncode}: {_last_lines(done.stderr or done.stdout)}"}
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def ratios(results: dict[str, dict[str, Any]], place: int) -> dict[str, float]:
    """Step time of ours over theirs, for the shape at `place`, where both were measured."""
    times = {name: result["shapes"][place]["step_s"] for name, result in results.items() if "shapes" in result}
    return {f"{a}/{b}": times[a] / times[b] for a, b in PAIRS if a in times and b in times}


def disagreements(results: dict[str, dict[str, Any]]) -> list[str]:
    """Arms of ours that do not compute what Unsloth's arm with the same adapter computes, or are not all ours."""
    said = []
    for arm in GPU_ARMS:
        ours, theirs = results.get(arm.name, {}), results.get("qdora-unsloth" if arm.dora else "qlora-unsloth", {})
        if not arm.ours or "shapes" not in ours:
            continue
        said += [f"{arm.name}: {why}" for why in ours.get("strangers", ())]
        for mine, yours in zip(ours["shapes"], theirs.get("shapes", ()), strict=False):
            pairs = [("loss", mine["first_loss"], yours["first_loss"], LOSS_TOLERANCE)]
            pairs += [
                (f"gradient norm of {kind}", norm, yours["gradient_norms"][kind], NORM_TOLERANCE)
                for kind, norm in mine["gradient_norms"].items()
            ]
            said += [
                f"{arm.name}: {what} is {a:.6g} and Unsloth's is {b:.6g}"
                for what, a, b, tolerance in pairs
                if not abs(a - b) <= tolerance * abs(b)
            ]
    return said


def _record(
    options: GpuOptions,
    gate: dict[str, Any],
    results: dict[str, dict[str, Any]],
    kernels: dict[str, Any],
    command: Sequence[str] | None,
) -> dict[str, Any]:
    differ = disagreements(results)
    passed = gate.get("passed", False) and not differ
    cases = [
        {
            "case": f"{rows} x {tokens}, grad-accum {grad_accum}",
            "arms": {
                name: result["shapes"][place] if "shapes" in result else result for name, result in results.items()
            },
            "ratios": ratios(results, place) if passed else {},
        }
        for place, (rows, tokens, grad_accum) in enumerate(options.shapes)
    ]
    return {
        "kind": "gpu",
        "headline": cases[-1]["case"],
        "arms": cases[-1]["arms"],
        "ratios": cases[-1]["ratios"],
        "gate": {**gate, "passed": passed, "disagreements": differ},
        "machine": machine(command),
        "options": asdict(options),
        "cases": cases,
        "engines": {
            name: {key: result.get(key) for key in ("engine", "resident_bytes")}
            for name, result in results.items()
            if result.get("engine")
        },
        "kernels": kernels,
    }


def _chosen(names: Sequence[str]) -> list[Arm]:
    unknown = sorted(set(names) - {arm.name for arm in GPU_ARMS})
    if unknown:
        raise ConfigError(f"--arms: {unknown[0]} is not an arm; there are {', '.join(arm.name for arm in GPU_ARMS)}")
    return [arm for arm in GPU_ARMS if not names or arm.name in names]


def _share(arms: Sequence[Arm], seconds: float, options: GpuOptions) -> float:
    """Of the time that is left, what the first of the remaining arms may take."""
    weights = [SLOW if arm.name == "qdora-unsloth" else 1.0 for arm in arms]
    kept = KERNELS_SHARE * 60 * options.minutes if options.kernels else 0.0
    return max(0.0, seconds - kept) * weights[0] / sum(weights)


def _last_lines(text: str, count: int = 3) -> str:
    return " | ".join([line for line in text.splitlines() if line.strip()][-count:])
