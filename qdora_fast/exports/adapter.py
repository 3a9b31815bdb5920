"""A run's adapter for others to load: checked to be complete, with its config and a manifest of hashes.

Nothing of the weights is changed, so plain PEFT computes with them what the trained model computed. For a DoRA run
`lora` is refused, since A and B without the magnitudes are another model. The config beside it has names in place of
this machine's paths, like the one in the model card; the run keeps its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings
from qdora_fast.exports.report import print_report
from qdora_fast.models.backend import open_backend
from qdora_fast.models.run_info import RunInfo, read_run_info
from qdora_fast.system import console
from qdora_fast.system.atomic import staged_file, staged_folder
from qdora_fast.system.errors import IntegrityError, RefusedError
from qdora_fast.system.hardware import package_versions
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import NAME, problems, sha256_of, write_manifest
from qdora_fast.system.run_folder import RunFolder

CARD = "README.md"


def export_adapter(
    folder: RunFolder,
    adapter: AdapterSettings,
    public_config: str,
    *,
    out: Path | None,
    overwrite: bool,
    to: str = "adapter",
) -> dict[str, Any]:
    """Check the run's adapter, and complete it where it lies or in a copy at `out`.

    Args:
        public_config: the config.yaml that goes with it, without this machine's paths.
        to: adapter, or lora for a run without DoRA.

    Returns:
        The report: format, path, bytes, sha256 (of the weights), manifest, base.

    Raises:
        IntegrityError: a tensor is missing or broken, or a file has changed since its manifest was written.
        RefusedError: lora of a run that trained DoRA.
    """
    if to == "lora" and adapter.decomposed:
        raise RefusedError(
            f"--to lora: this run trained DoRA (method `{adapter.method}`). A lora-only save keeps A and B and "
            "drops the magnitude vectors; it loads without an error and is another model. Use `--to merged_16bit` to "
            "deploy it, or `--to adapter` for a complete DoRA adapter"
        )
    open_backend()
    from qdora_fast.models.adapter import CONFIG_NAME, WEIGHTS_NAME, assert_complete

    info = read_run_info(folder)
    assert_complete(folder.adapter, decomposed=adapter.decomposed, expected_modules=info.targets)
    changed = problems(folder.adapter) if (folder.adapter / NAME).is_file() else []
    if changed:
        raise IntegrityError(f"the adapter has changed since it was exported: {changed[0]}; train again or restore it")
    target = out or folder.adapter
    if out is None:
        _describe(target, public_config, info)
    else:
        with staged_folder(out, overwrite=overwrite) as staging:
            shutil.copytree(folder.adapter, staging, dirs_exist_ok=True)
            _describe(staging, public_config, info)
            assert_complete(staging, decomposed=adapter.decomposed, expected_modules=info.targets)
    base = read_object(target / CONFIG_NAME).get("base_model_name_or_path")
    report = {
        "format": to,
        "path": str(target),
        "bytes": sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        "sha256": sha256_of(target / WEIGHTS_NAME),
        "manifest": str(target / NAME),
        "base": base,
    }
    print_report(report)
    if Path(str(base)).is_dir():
        console.note(f"it names its base by a path on this machine ({base}); elsewhere that must be put right")
    if adapter.decomposed:
        console.note(SERVERS)
    return report


SERVERS = (
    "no server takes a DoRA adapter as it is: vLLM and SGLang reject it, TGI serves it without its magnitudes, which "
    "is another model. Deploy merged_16bit"
)


def _describe(folder: Path, public_config: str, info: RunInfo) -> None:
    """Write config.yaml and the manifest; the card stays out of it, since it is there to be edited."""
    with staged_file(folder / "config.yaml") as file:
        file.write_text(public_config + "\n", encoding="utf-8")
    about = {
        "kind": "adapter",
        "method": info.method,
        "base_revision": info.revision,
        "layers": len(info.targets),
        "packages": package_versions(),
    }
    write_manifest(folder, about, leave_out=[CARD])
