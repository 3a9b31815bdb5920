"""The fused DoRA path: PEFT's adapters, PEFT's parameters, our forward and backward.

Depends on nothing else of this package and could be lifted out. Reading order: reference.py (the mathematics),
frozen.py (the base weight), cache.py (what is cached, and until when), functions.py and blocks.py (forward and
backward), kernels/ (Triton, each with its PyTorch twin), residency.py, layers.py and hooks.py (how it gets into a
model), patch.py (install and uninstall).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdora_fast.engine.patch import EngineReport as EngineReport
    from qdora_fast.engine.patch import fallbacks as fallbacks
    from qdora_fast.engine.patch import install as install
    from qdora_fast.engine.patch import uninstall as uninstall

__all__ = ["EngineReport", "fallbacks", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    """Look names up late: patch.py imports peft, which must not come before unsloth."""
    if name in __all__:
        from qdora_fast.engine import patch

        return getattr(patch, name)
    raise AttributeError(f"module 'qdora_fast.engine' has no attribute {name!r}")
