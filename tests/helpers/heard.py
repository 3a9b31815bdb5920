"""What the package says on its console, as text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qdora_fast.system import console
from qdora_fast.system.terminal import Terminal


@contextmanager
def heard(width: int = 1000, **how: Any) -> Iterator[io.StringIO]:
    """Collect what is printed while the block runs; `how` as for rich's `Console`."""
    out = io.StringIO()
    with console.use(Terminal(file=out, width=width, soft_wrap=True, **how)):
        yield out
