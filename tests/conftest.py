"""Shared by all tests: no hub, Unsloth imported first, and two models made once.

`demo_run` is the whole main job on the embedded base, as `make train` runs it; `tiny_base` is a
base of the same make with hardly any training, for tests that only need the machinery.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it: a test that reaches for the hub fails
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels are then run by Python, on the CPU

from qdora_fast.backend import open_backend
from qdora_fast.config import Config
from qdora_fast.config_file import make_config
from qdora_fast.run_folder import RunFolder

open_backend()

# Every run tries the same generated examples, on slow machines too, so that a red test is the change's own.
# HYPOTHESIS_SEARCH=1 looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
if not os.environ.get("HYPOTHESIS_SEARCH"):
    settings.load_profile("same")


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The main job with its shipped settings; about a minute, once per session."""
    from qdora_fast.run import train

    return train("demo", run={"dir": str(tmp_path_factory.mktemp("runs"))})


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained base of the demo's make: two blocks, real tokenizer, bf16 on disk."""
    from qdora_fast.demo.base import Recipe, pretrain

    folder = tmp_path_factory.mktemp("tiny") / "base"
    pretrain(folder, Recipe(hidden_size=64, intermediate_size=128, heads=4, kv_heads=2, steps=2))
    return folder


@pytest.fixture
def tiny_config(tiny_base: Path, tmp_path: Path) -> Any:
    """A function that makes a config for a run of a few steps on `tiny_base`."""

    def make(**sections: dict[str, Any]) -> Config:
        settings: dict[str, dict[str, Any]] = {
            "run": {"dir": str(tmp_path / "runs"), "name": "tiny"},
            "model": {"name": str(tiny_base), "max_length": 128},
            "adapter": {"r": 4, "alpha": 8},
            "data": {"path": "demo", "max_rows": 60},
            "train": {"max_steps": 4, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 1e-2},
            "evaluation": {"max_rows": 4, "max_new_tokens": 4},
            "export": {"at_end": "none", "proof_rows": 4},
        }
        for name, values in sections.items():
            settings[name] = {**settings.get(name, {}), **values}
        return make_config(settings)

    return make


@pytest.fixture
def short_run(tiny_config: Any) -> Any:
    """A function that trains a few steps by a method and returns the run."""
    from qdora_fast.run import train

    def make(method: str = "qdora", whole: Sequence[str] = (), **sections: Any) -> RunFolder:
        return train(tiny_config(adapter={"method": method, "modules_to_save": list(whole)}, **sections))

    return make
