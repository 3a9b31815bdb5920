"""QDoRA fine-tuning on one 24 GB card. Importing this package imports nothing heavy.

import qdora_fast
run = qdora_fast.train("demo")                      # a preset, a YAML file, or a dictionary
run = qdora_fast.train("demo", train={"epochs": 1}) # with settings changed
qdora_fast.export(run.path, to="merged_16bit")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["export", "train"]

_PUBLIC = {"train": "qdora_fast.run", "export": "qdora_fast.export"}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'qdora_fast' has no attribute {name!r}")
