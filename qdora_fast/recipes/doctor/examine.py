"""All checks, each printed as soon as it is done under its heading, and at the end what to do first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from qdora_fast.recipes.doctor import cards, hub, machine, packages, selftest, stack
from qdora_fast.recipes.doctor.finding import Check, Finding, examined
from qdora_fast.system import console, hardware

_MARKS = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]wrong[/]"}
_WIDTH = 13
"""Characters of the longest name of a check."""


def examine(*, as_json: bool = False, offline: bool = False) -> int:
    """Run all checks and print each as it ends; returns the exit code, 1 when something must be fixed.

    Args:
        as_json: print one JSON object {ready, findings} and nothing else.
        offline: make no connection to the hub.
    """
    coming = (finding for check in _checks(hardware.gpus(), offline=offline) for finding in examined(check))
    findings = list(coming) if as_json else show(coming)
    ready = all(finding.status != "wrong" for finding in findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}))
    return int(not ready)


def _checks(gpus: list[hardware.Gpu], *, offline: bool) -> Iterator[Check]:
    """All checks in the order of the page: what the rest stands on comes first."""
    gpu, here = bool(gpus), Path.cwd()
    yield Check("Machine", "Python", machine.python)
    yield Check("Machine", "memory", lambda: machine.memory(gpu=gpu))
    yield Check("Machine", "disk", lambda: machine.disks(_folders(here), gpu=gpu))
    yield Check("Machine", "WSL", lambda: machine.windows_linux(machine.proc_version(), here, gpu=gpu))

    yield Check("GPU", "GPU", lambda: cards.cards(gpus, hidden=cards.on_the_bus()))
    yield Check("GPU", "GPU now", lambda: cards.health(cards.ask_driver(*cards.health_question()) if gpu else ""))
    yield Check("GPU", "driver", lambda: cards.driver(gpus, cards.torch_build(), cards.ask_driver() if gpu else ""))
    yield Check("GPU", "torch", lambda: cards.torch_sees(gpus, cards.torch_build()), vital=True)

    yield Check("Packages", "packages", lambda: packages.packages(gpu=gpu))

    yield Check("Training", "backend", stack.backend, vital=True)
    yield Check("Training", "threads", lambda: stack.threads(machine.cores(), gpu=gpu))
    yield Check("Training", "bitsandbytes", lambda: stack.bitsandbytes_library(stack.device()), vital=True)
    yield Check("Training", "NF4", lambda: stack.nf4(stack.device()), vital=True)
    yield Check("Training", "Triton", lambda: stack.triton(stack.device()), vital=True)
    yield Check("Training", "attention", lambda: stack.attention(stack.device()), vital=True)
    yield Check("Training", "engine", lambda: selftest.engine(stack.device()), vital=True)

    yield Check("Models and data", "hub", lambda: hub.hub(offline=offline))
    yield Check("Models and data", "model cache", hub.model_cache)
    yield Check("Models and data", "demo base", hub.demo)
    yield Check("Models and data", "own cache", hub.own_cache)


def _folders(here: Path) -> dict[str, Path]:
    return {"models": hub.hub_cache(), "runs": here, "cache": hardware.cache_folder()}


def show(findings: Iterable[Finding]) -> list[Finding]:
    """Print findings as they come, each fix once below the last finding that it is for, then the summary.

    Returns:
        The findings.
    """
    seen: list[Finding] = []
    for finding in findings:
        last = seen[-1] if seen else None
        if last and (last.fix, last.topic) != (finding.fix, finding.topic):
            _fix(last)
        if last is None or last.topic != finding.topic:
            console.result(f"{'' if last is None else chr(10)}[bold]{finding.topic}[/]", markup=True)
        console.result(f"  {_MARKS[finding.status]}  {finding.check:<{_WIDTH}} ", end="", markup=True)
        console.result(finding.found)
        seen.append(finding)
    if seen:
        _fix(seen[-1])
    console.result(f"\n{_summary(seen)}")
    return seen


def _fix(finding: Finding) -> None:
    if finding.fix:
        console.result(f"         {'':<{_WIDTH}} → {finding.fix}")


def _summary(findings: list[Finding]) -> str:
    wrong = [finding for finding in findings if finding.status == "wrong"]
    notes = sum(finding.status == "note" for finding in findings)
    also = f"{notes} note{'s'[: notes != 1]} to read" if notes else ""
    if not wrong:
        return "ready to train" + (f"; {also}" if also else "")
    first = wrong[0]
    do = f": {first.fix}" if first.fix else ""
    return f"{len(wrong)} to fix before training{f'; {also}' if also else ''}\nfirst, {first.check}{do}"
