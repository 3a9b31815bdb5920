"""A run that an earlier version has made, unpacked; see `tests/fixtures/README.md`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from qdora_fast.system.manifest import NAME, write_manifest

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "run-of-7aa6e70.tar.xz"
MADE_IN = "/somewhere"


def unpack(folder: Path) -> Path:
    """Unpack base, rows, run and cache into `folder`, as if all had been made there; returns the run's folder.

    Paths are replaced in the files that name them, and the manifests over these files follow.
    """
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".md") and MADE_IN in (text := file.read_text(encoding="utf-8")):
            file.write_text(text.replace(MADE_IN, str(folder)), encoding="utf-8")
    for manifest in folder.rglob(NAME):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        others = {file.name for file in manifest.parent.iterdir()} - content["files"].keys()
        write_manifest(manifest.parent, content["about"], leave_out=sorted(others))
    return folder / "runs" / "old"
