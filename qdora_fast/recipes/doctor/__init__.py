"""Is this machine ready? Every check says what it found and, where it matters, the fix.

    machine.py    Python, memory, disks, WSL                       cards.py     GPU, driver, torch, clocks
    packages.py   what is installed against what is tested         stack.py     Unsloth, bitsandbytes, Triton, attention
    selftest.py   a fused layer against the reference              hub.py       hub, token, caches
    finding.py    one result, and checks kept apart                page.py      the printed page

Libraries are made to do a little of their real work, because those of this field fail in ways that a version number
does not show. The exit code serves scripts: `qdora-fast doctor && make train`. Whether a model fits into the memory
is not asked here, as that depends on the config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from qdora_fast.recipes.doctor import cards, hub, machine, page, selftest, stack
from qdora_fast.recipes.doctor import packages as pinned
from qdora_fast.recipes.doctor.finding import Check, Finding, examined
from qdora_fast.recipes.doctor.packages import tested_versions as tested_versions
from qdora_fast.system import hardware

__all__ = ["Finding", "examine", "tested_versions"]


def examine(*, as_json: bool = False, offline: bool = False) -> int:
    """Run all checks and print each as it ends; returns the exit code, 1 when something must be mended.

    Args:
        as_json: print one JSON object {ready, findings} and nothing else.
        offline: make no connection to the hub.
    """
    coming = (finding for check in _checks(hardware.gpus(), offline=offline) for finding in examined(check))
    findings = list(coming) if as_json else page.show(coming)
    ready = all(finding.status != "wrong" for finding in findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}))
    return int(not ready)


def _checks(found: list[hardware.Gpu], *, offline: bool) -> Iterator[Check]:
    """All checks in the order of the page: what the rest stands on comes first."""
    gpu, here = bool(found), Path.cwd()
    yield Check("Machine", "Python", machine.python)
    yield Check("Machine", "memory", lambda: machine.memory(gpu=gpu))
    yield Check("Machine", "disk", lambda: machine.disks(_places(here), gpu=gpu))
    yield Check("Machine", "WSL", lambda: machine.windows_linux(machine.proc_version(), here, gpu=gpu))

    yield Check("GPU", "GPU", lambda: cards.cards(found, hidden=cards.on_the_bus()))
    yield Check("GPU", "GPU now", lambda: cards.health(cards.ask_driver(*cards.health_question()) if gpu else ""))
    yield Check("GPU", "driver", lambda: cards.driver(found, cards.torch_build(), cards.ask_driver() if gpu else ""))
    yield Check("GPU", "torch", lambda: cards.torch_sees(found, cards.torch_build()), vital=True)

    yield Check("Packages", "packages", lambda: pinned.packages(gpu=gpu))

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


def _places(here: Path) -> dict[str, Path]:
    return {"models": hub.hub_cache(), "runs": here, "cache": hardware.cache_folder()}
