"""Whether files are as they were written: a run, a checkpoint, an adapter or an export, hashed again file by file.

Each of them carries a manifest (`manifest.py`); a run is all of its parts together, and an export in it must be of the
adapter that the run holds now. Nothing is loaded, so this needs neither the base nor torch. What it does not do: say
whether the model is a good one, or whether an export was proven (export.json does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.system import manifest
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.paths import refuse_links_out
from qdora_fast.system.run_folder import EXPORT, UNPROVEN, RunFolder

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Part:
    """One folder with a manifest: what it holds, and what is wrong with it, file by file."""

    path: Path
    files: int
    bytes: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        if not self.problems:
            return f"intact   {self.path}  ({self.files} files, {self.bytes / 2**20:,.1f} MiB)"
        return "\n".join([f"DAMAGED  {self.path}", *(f"  - {problem}" for problem in self.problems)])

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"path": str(self.path), "files": self.files, "bytes": self.bytes, "problems": list(self.problems)}


def verify(path: Path) -> Iterator[Part]:
    """Yield the parts of a run, or the one folder that `path` is, each when it has been read.

    Raises:
        ConfigError: there is nothing here that could be verified.
        RefusedError: a link in it leads out of the folder.
    """
    run = RunFolder.open(path) if (path / "config.yaml").is_file() else None
    if run is None:
        refuse_links_out(path)
    folders = _parts(run) if run else [path]
    if not folders or (run is None and not (path / manifest.NAME).is_file()):
        raise ConfigError(
            f"{path}: no {manifest.NAME} says what it should hold; name a run, or its checkpoint, adapter or export"
        )
    for folder in folders:
        yield _part(folder, run)


def summary(parts: Sequence[Part], path: Path) -> dict[str, Any]:
    """All parts, for `--json`."""
    intact = not any(part.problems for part in parts)
    return {"path": str(path), "whole": intact, "parts": [part.as_dict() for part in parts]}


def require_undamaged(parts: Sequence[Part], path: Path) -> None:
    """Raise IntegrityError when something is not as it was written."""
    damaged = [part for part in parts if part.problems]
    if damaged:
        raise IntegrityError(
            f"{path}: {len(damaged)} of {len(parts)} parts are not as they were written (listed above). Damaged "
            "checkpoints are passed over by --resume; an export is made again by `qdora-fast export RUN --overwrite`"
        )


def _parts(run: RunFolder) -> list[Path]:
    """Every folder of a run that carries a manifest, or should."""
    written = {file.parent for name in (EXPORT, manifest.NAME) for file in run.path.glob(f"*/{name}")}
    exports = {folder for folder in written if folder != run.adapter and folder.suffix != UNPROVEN}
    adapter = [run.adapter] if run.adapter.is_dir() else []
    return [*run.checkpoints(), *adapter, *sorted(exports)]


def _part(folder: Path, run: RunFolder | None) -> Part:
    problems = manifest.problems(folder)
    try:
        written = manifest.read_manifest(folder)
    except IntegrityError:
        return Part(folder, 0, 0, tuple(problems))
    files = written["files"].values()
    exported, here = written["about"].get("adapter_sha256"), _adapter_hash(run) if run else None
    if exported and here and exported != here:
        problems.append(f"it was made from another adapter ({exported[:12]}) than the run holds now ({here[:12]})")
    return Part(folder, len(files), sum(entry["bytes"] for entry in files), tuple(problems))


def _adapter_hash(run: RunFolder) -> str | None:
    """By its manifest, which is another part's business."""
    try:
        return str(manifest.read_manifest(run.adapter)["files"][WEIGHTS]["sha256"])
    except (IntegrityError, KeyError):
        return None
