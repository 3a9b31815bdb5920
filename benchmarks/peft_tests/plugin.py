"""A pytest plugin for PEFT's tests: each model that a test makes is fused, and how each test ended is written down.

The child of suite.py, one process an arm: `plain` changes nothing, `fused` calls `qdora_fast.fuse` wherever PEFT gives
out a model with an adapter. A line of JSON a test is appended as it ends, so a run that was stopped goes on where it
was. Both arms seed each test alike, as some of PEFT's draw their weights without.

diffusers is imported by PEFT's helpers for tests of diffusion models alone; where it is not installed an empty module
stands in.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ARM, FOLDER, LIMIT = "QDORA_PEFT_TESTS_ARM", "QDORA_PEFT_TESTS_FOLDER", "QDORA_PEFT_TESTS_LIMIT"
"""What suite.py says to its children by environment."""

HUB = ("huggingface.co", "HF_HUB_OFFLINE", "offline mode", "LocalEntryNotFound", "OfflineMode")
"""By which an error says that a test wants something from the hub."""


def pytest_configure(config: pytest.Config) -> None:
    """Fuse from here on, if this is the arm, and write down what happens."""
    if find_spec("diffusers") is None:
        _stand_in("diffusers", "StableDiffusionPipeline")
    counts = _Counts()
    if os.environ[ARM] == "fused":
        _fuse_all(counts)
    config.pluginmanager.register(_Records(Path(os.environ[FOLDER]), os.environ[ARM], counts))


class _Counts:
    """Of one test: layers that were fused in it, and calls of them that ran our forward."""

    layers = calls = 0

    def reset(self) -> None:
        """Begin the next test."""
        self.layers = self.calls = 0


class _Records:
    """Chooses the tests that have not run yet, and keeps how each ended."""

    def __init__(self, folder: Path, arm: str, counts: _Counts) -> None:
        self._results, self._collected = folder / f"{arm}.jsonl", folder / f"{arm}-collected.json"
        self._counts, self._ends, self._begun = counts, list[tuple[str, str]](), 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is over the limit, and what has its line already."""
        limit = int(os.environ.get(LIMIT, "0")) or len(items)
        wanted = items[:limit]
        self._collected.write_text(json.dumps([item.nodeid for item in wanted]), encoding="utf-8")
        lines = self._results.read_text(encoding="utf-8").splitlines() if self._results.exists() else []
        done = {json.loads(line)["id"] for line in lines}
        items[:] = [item for item in wanted if item.nodeid not in done]

    def pytest_runtest_logstart(self) -> None:
        """A test begins."""
        import torch

        torch.manual_seed(0)
        self._counts.reset()
        self._ends, self._begun = [], time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One of a test's three phases has ended."""
        if hasattr(report, "wasxfail"):
            self._ends.append(("xfailed" if report.skipped else "xpassed", ""))
        elif report.failed:
            self._ends.append(("failed", str(report.longrepr)))
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._ends.append(("skipped", why))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended: write it down."""
        outcome, why = self._ends[0] if self._ends else ("passed", "")
        if outcome == "failed" and any(word in why for word in HUB):
            outcome, why = "hub", ""
        line = {
            "id": nodeid,
            "outcome": outcome,
            "why": why[-1500:],
            "layers": self._counts.layers,
            "calls": self._counts.calls,
            "seconds": round(time.monotonic() - self._begun, 2),
        }
        with self._results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _fuse_all(counts: _Counts) -> None:
    """Call `fuse` after everything of PEFT's that gives out or changes a model's adapters."""
    import peft

    import qdora_fast
    from qdora_fast.engine import layers
    from qdora_fast.system.errors import ConfigError

    def fuse(model: Any) -> None:
        try:
            counts.layers += qdora_fast.fuse(model, quiet=True).layers
        except ConfigError as error:
            if "no LoRA layers" not in str(error):
                raise

    def then_fuse(function: Callable[..., Any], subject: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            fuse(subject(args, result))
            return result

        return wrapped

    for owner in (peft.PeftModel, peft.PeftMixedModel):
        for name in ("__init__", "add_adapter", "load_adapter", "add_weighted_adapter"):
            if name in owner.__dict__:
                setattr(owner, name, then_fuse(owner.__dict__[name], lambda args, result: args[0]))
    peft.inject_adapter_in_model = then_fuse(peft.inject_adapter_in_model, lambda args, result: result)
    ours = layers.fused_forward

    def counted(*args: Any) -> Any:
        counts.calls += 1
        return ours(*args)

    layers.fused_forward = counted


def _stand_in(name: str, *classes: str) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for each in classes:
        setattr(module, each, type(each, (), {}))
    import peft  # noqa: F401  # before the stand-in: it looks which libraries there are

    sys.modules[name] = module
