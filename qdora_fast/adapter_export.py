"""A run's adapter for others to load: checked whole, and copied whole.

For a DoRA run `lora` is refused, since A and B without the magnitudes are another model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from qdora_fast import show
from qdora_fast.backend import open_backend
from qdora_fast.config import Config
from qdora_fast.errors import RefusedError
from qdora_fast.run_folder import RunFolder
from qdora_fast.staging import staged_folder


def export_run(
    folder: RunFolder, config: Config, *, out: Path | None, overwrite: bool, console: Console, to: str = "adapter"
) -> dict[str, Any]:
    """Check the run's adapter and, when another place is asked for, copy it there whole."""
    open_backend()
    from qdora_fast.adapter import WEIGHTS_NAME, assert_complete, sha256_of

    target = out or folder.adapter
    expected = folder.read_json("model.json")["targets"]
    assert_complete(folder.adapter, decomposed=config.adapter.decomposed, expected_modules=expected)
    if target != folder.adapter:
        with staged_folder(target, overwrite=overwrite) as staging:
            shutil.copytree(folder.adapter, staging, dirs_exist_ok=True)
            assert_complete(staging, decomposed=config.adapter.decomposed, expected_modules=expected)
    size = sum(file.stat().st_size for file in target.iterdir())
    report = {"format": to, "path": str(target), "bytes": size, "sha256": sha256_of(target / WEIGHTS_NAME)}
    show.exported(console, report)
    return report


def export_lora(
    folder: RunFolder, config: Config, *, out: Path | None, overwrite: bool, console: Console
) -> dict[str, Any]:
    """The adapter of a run without DoRA, which is plain LoRA.

    Raises:
        RefusedError: the run trained DoRA.
    """
    if config.adapter.decomposed:
        raise RefusedError(
            f"--to lora: this run trained DoRA (method `{config.adapter.method}`). A lora-only save keeps A and B and "
            "drops the magnitude vectors; it loads without an error and is another model. Use `--to merged_16bit` to "
            "deploy it, or `--to adapter` for a complete DoRA adapter"
        )
    return export_run(folder, config, out=out, overwrite=overwrite, console=console, to="lora")
