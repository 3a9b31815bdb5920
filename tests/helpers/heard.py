"""What the package says on its console, as text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from qdora_fast.system import console


@contextmanager
def heard(width: int = 1000, **how: Any) -> Iterator[io.StringIO]:
    """Collect what is printed while the block runs; `how` as for rich's `Console`."""
    out = io.StringIO()
    with console.use(Console(file=out, width=width, highlight=False, soft_wrap=True, **how)):
        yield out
