"""The extras of the package: those of pyproject.toml, and `tested-gpu` and `tested-cpu` with an exact version each.

hatchling calls this when a wheel or an sdist is built, so that whoever installs from the index gets what the tests
have seen. Left out are the CUDA packages: torch names the ones that it was built with, and an older driver takes
another build of the same torch. Left out of `tested-cpu` is Unsloth, whose own requirements have no build for the CPU;
it is installed afterwards, with --no-deps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

CUDA = ("cuda-", "nvidia-")
WITHOUT_DEPENDENCIES = ("unsloth", "unsloth-zoo")


class Extras(MetadataHookInterface):
    """What hatchling asks for `project.optional-dependencies`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Write the extras into the metadata."""
        metadata["optional-dependencies"] = {**self.config["extras"], **tested_extras(Path(self.root) / "locks")}


def tested_extras(locks: Path) -> dict[str, list[str]]:
    """The requirements of `tested-gpu` and `tested-cpu`, as the lock files name them."""
    base, gpu = _locked(locks / "base.txt"), _locked(locks / "gpu.txt")
    torch = [line for line in gpu if line.startswith("torch==")]
    return {
        "tested-gpu": sorted([*base, *gpu]),
        "tested-cpu": sorted([*torch, *(line for line in base if line.split("==")[0] not in WITHOUT_DEPENDENCIES)]),
    }


def _locked(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    needs = [line.removesuffix("\\").strip() for line in lines if not line.startswith(("#", " "))]
    return [need for need in needs if not need.startswith(CUDA)]
