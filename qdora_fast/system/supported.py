"""Which systems this package runs on: Linux, WSL among them. Elsewhere one sentence names the way that works.

Asked first by the command line and by every public function, before anything is imported that another system lacks
(`resource`, signals, the fsync of a folder, Triton). `--help` and `--version` answer everywhere.
"""

from __future__ import annotations

import sys

from qdora_fast.system.errors import ConfigError

DOCKER = "or the Docker image (Dockerfile in the repository)"
WAYS = {
    "win32": f"on Windows install it inside WSL2 (`wsl --install`), where the NVIDIA card is seen too, {DOCKER}",
    "darwin": f"on a Mac use a Linux machine with an NVIDIA card, {DOCKER}, whose CPU build needs no card",
}
"""By sys.platform."""
WAYS["cygwin"] = WAYS["msys"] = WAYS["win32"]


def require_linux() -> None:
    """Raise ConfigError on another system, with the way that works there."""
    if not sys.platform.startswith("linux"):
        way = WAYS.get(sys.platform, f"use a Linux machine, {DOCKER}")
        raise ConfigError(f"qdora-fast runs on Linux: {way}")
