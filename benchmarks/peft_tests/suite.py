"""`python -m benchmarks peft-tests`: PEFT's own tests of LoRA and DoRA, plain and with every model fused, side by side.

Two processes run pytest in a checkout of PEFT whose version is the installed one: in the second, plugin.py fuses each
model that a test makes. Right is what PEFT's tests say without the engine: a test that ends otherwise with it is named,
and the gate is red. Nothing is fetched: instead of the small models of the hub, models of the same architectures with
random weights lie where the tests run; a test that wants anything else of the hub is counted as such.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.machine import machine
from benchmarks.options import PeftTestOptions
from benchmarks.peft_tests.models import write_models
from benchmarks.peft_tests.plugin import ARM, FOLDER, LIMIT
from qdora_fast.system import child, console
from qdora_fast.system.errors import ConfigError, QdoraError

FILES = ("test_custom_models", "test_lora_variants", "test_initialization", "test_decoder_models")
ARMS = ("plain", "fused")
RAN = ("passed", "failed", "xfailed", "xpassed")
"""How a test can end that has run; the others are skipped, and hub."""


def run_peft_tests(options: PeftTestOptions, *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Run both arms and compare; `result["gate"]["passed"]` decides the exit code.

    Raises:
        ConfigError: no checkout of PEFT, or not of the installed version.
        QdoraError: pytest could not run; its last lines.
    """
    checkout = Path(options.checkout).resolve()
    _require_version(checkout)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_models(folder / "models")
        for arm in ARMS:
            console.print(f"{arm}: PEFT's tests in {checkout}")
            _run(arm, checkout, folder, options)
        collected: list[str] = json.loads((folder / "fused-collected.json").read_text(encoding="utf-8"))
        results = {arm: _results(folder / f"{arm}.jsonl") for arm in ARMS}
    figures = compared(collected, results["plain"], results["fused"])
    for name, plain, fused, why in figures["differing"]:
        console.print(f"differs: {name}: {plain} plain, {fused} fused{': ' + why if why else ''}")
    return {"kind": "peft-tests", "machine": machine(command), **figures}


def compared(
    collected: Sequence[str], plain: dict[str, dict[str, Any]], fused: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Counts, and the tests that ended otherwise: (name, how plain, how fused, the error's first line).

    Args:
        collected: names of the tests that were to run.
        plain, fused: by name, as plugin.py writes them.
    """
    both = [name for name in collected if name in plain and name in fused]
    ends = {name: (plain[name]["outcome"], fused[name]["outcome"]) for name in both}
    alike = Counter(one for one, other in ends.values() if one == other)
    differing = [
        (name, one, other, _first_line(fused[name]["why"] or plain[name]["why"]))
        for name, (one, other) in ends.items()
        if one != other
    ]
    return {
        "collected": len(collected),
        "run": sum(one in RAN or other in RAN for one, other in ends.values()),
        "skipped": alike["skipped"],
        "hub": alike["hub"],
        "passed": alike["passed"],
        "failed": alike["failed"] + alike["xfailed"] + alike["xpassed"],
        "fused": sum(fused[name]["layers"] > 0 for name in both),
        "called": sum(fused[name]["calls"] > 0 for name in both),
        "unfinished": len(collected) - len(both),
        "differing": differing,
        "gate": {"passed": not differing and len(both) == len(collected), "red": [name for name, *_ in differing]},
    }


def _require_version(checkout: Path) -> None:
    source = checkout / "src" / "peft" / "__init__.py"
    missing = [name for name in FILES if not (checkout / "tests" / f"{name}.py").is_file()]
    if not source.is_file() or missing:
        raise ConfigError(f"--checkout {checkout}: no checkout of PEFT with its tests; unpack its sdist or clone it")
    found = re.search(r'^__version__ = "([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    theirs, ours = found[1] if found else "unknown", version("peft")
    if theirs != ours:
        raise ConfigError(f"--checkout {checkout}: PEFT {theirs}, but {ours} is installed; take the tests of {ours}")


def _run(arm: str, checkout: Path, folder: Path, options: PeftTestOptions) -> None:
    """One arm: the tests that have no result yet."""
    files = [str(checkout / "tests" / f"{name}.py") for name in options.files or FILES]
    quiet = ["-q", "--no-header", "--tb=short", "-W", "ignore", "-o", "addopts=", "-p", "no:cacheprovider"]
    found = ["--rootdir", str(checkout), "--import-mode=importlib", "-p", "benchmarks.peft_tests.plugin"]
    environment = child.environment(
        PYTHONPATH=os.pathsep.join([str(checkout), str(ROOT)]),
        HF_HUB_OFFLINE="1",
    )
    environment |= {ARM: arm, FOLDER: str(folder), LIMIT: str(options.limit or 0)}
    log = folder / f"{arm}.log"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            child.python("-m", "pytest", *quiet, *found, "-k", options.select, *files),
            cwd=folder / "models",
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode not in (0, 1, 5):  # all passed, some failed, none left to run
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise QdoraError(f"pytest ended with {done.returncode} on PEFT's tests ({arm}):\n{last}")


def _results(file: Path) -> dict[str, dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {line["id"]: line for line in map(json.loads, lines)}


def _first_line(text: str) -> str:
    """Of an error as pytest shows it: the first line marked E, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
    return [*marked, *lines[-1:], ""][0][:200]
