"""Where, when and with what a figure was measured: it is no figure without."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import qdora_fast
from qdora_fast.system import hardware


def machine(command: Sequence[str] | None) -> dict[str, Any]:
    """Machine, versions, commit, date and command, as every record carries them."""
    return {
        **hardware.describe(),
        "qdora_fast": qdora_fast.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "command": shlex.join(command if command is not None else ["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def _commit() -> str:
    """Short hash, with + when files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
