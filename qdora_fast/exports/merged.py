"""The merged model of a run, and the proof that it is the model that was trained.

It is built beside its final place and moves there only when its proof (`checks.py`) has passed. A failed
proof is a failed export: the folder stays under another name, with export.json saying what failed.

With `merge_base: auto` the original 16-bit weights are merged into first. Where that turns out to cost held-out
loss that matters (`distance.py`), the 4-bit weights of training are taken instead, in the same place.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.recorded import read_config
from qdora_fast.exports.report import print_report
from qdora_fast.exports.verify.case import base_folder, case_of, recipe_of, record_saved
from qdora_fast.exports.verify.checks import Evidence
from qdora_fast.models.backend import open_backend
from qdora_fast.models.run_info import RunInfo, read_run_info
from qdora_fast.system import console
from qdora_fast.system.atomic import publish, refuse_existing
from qdora_fast.system.errors import ProofError, RefusedError
from qdora_fast.system.hardware import package_versions
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import write_manifest
from qdora_fast.system.remote_code import require_allowed
from qdora_fast.system.run_folder import UNPROVEN, RunFolder, write_json


def export_run(
    folder: RunFolder,
    config: Config,
    *,
    out: Path | None,
    overwrite: bool,
    merge_base: str | None = None,
) -> dict[str, Any]:
    """Load a finished run, merge it and prove the result.

    Args:
        merge_base: auto, original16 or dequant4; None: the run's own setting.
        out: folder to write; None: inside the run.

    Returns:
        What export.json holds: format, path, merge_base (the one that was taken) and why, proof, seconds, ...

    Raises:
        RefusedError: dequant4 for a base that was not quantised.
        ProofError: the merged model is not the trained one.
        DiskSpaceError, IntegrityError, ConfigError: see `merge.merge`.
    """
    chosen = merge_base or config.export.merge_base
    if chosen == "dequant4" and not config.adapter.quantized:
        raise RefusedError(f"--merge-base dequant4: method `{config.adapter.method}` has no 4-bit base; use original16")
    target = out or merged_folder(folder, chosen)
    return export_to(folder, config, chosen, to="merged_16bit", out=target, overwrite=overwrite)


def export_to(
    folder: RunFolder, config: Config, merge_base: str, *, to: str, out: Path, overwrite: bool
) -> dict[str, Any]:
    """`export_run` into one of the merged formats: merged_16bit or merged_4bit_forced."""
    refuse_existing(out, overwrite=overwrite)
    require_allowed(read_run_info(folder).own_code)  # says so when the run did not finish, too
    open_backend()
    evidence = record_saved(folder, config)
    return export_merged(folder, evidence, to=to, merge_base=merge_base, out=out, overwrite=overwrite)


def merged_folder(folder: RunFolder, merge_base: str) -> Path:
    """Where a merged model goes when nothing else is said."""
    return folder.path / ("merged_16bit-dequant4" if merge_base == "dequant4" else "merged_16bit")


def unproven_folder(out: Path) -> Path:
    """Where a merged model is built, and stays if it does not pass its proof."""
    return out.with_name(f"{out.name}{UNPROVEN}")


def export_merged(
    folder: RunFolder,
    evidence: Evidence,
    *,
    to: str = "merged_16bit",
    merge_base: str,
    out: Path,
    overwrite: bool,
) -> dict[str, Any]:
    """Merge, prove, and move into place. `evidence` comes from `record_trained`."""
    from qdora_fast.exports.merge.merge import refuse_own_sources

    refuse_existing(out, overwrite=overwrite)
    config, info = read_config(folder), read_run_info(folder)
    base = base_folder(info, config)
    refuse_own_sources(out, base, folder.adapter)
    chosen, reason = (merge_base, None) if merge_base != "auto" else _before_measuring(base, info)
    report = _build_and_prove(folder, evidence, to, chosen, out, measure=reason == MEASURE)
    if "instead" in report["proof"]:
        reason = report["proof"]["instead"]
        console.note("the 16-bit weights would cost held-out loss: merging into the 4-bit ones that training saw")
        report = _build_and_prove(folder, evidence, to, "dequant4", out)
    elif reason == MEASURE:
        reason = "they cost nothing that matters on these rows"
    report["merge_base_reason"] = reason
    unproven = unproven_folder(out)
    write_json(unproven / "export.json", report)
    about = {"kind": "export", "format": report["format"], "adapter_sha256": report["adapter_sha256"]}
    write_manifest(unproven, about, known=report["sha256"])
    if not report["proof"]["passed"]:
        failed = [check["words"] for check in report["proof"]["checks"] if not check["passed"]]
        raise ProofError(
            f"the merged model is not the model that was trained:\n  - {chr(10).join(failed)}\n"
            f"  It was left in {unproven} for inspection (see its export.json); do not deploy it"
        )
    publish(unproven, out)
    print_report(report)
    return report


MEASURE = "measured"
"""The base to merge into is decided by what the export in `original16` costs."""


def _before_measuring(base: Path, info: RunInfo) -> tuple[str, str]:
    """What `merge_base: auto` takes first, and why: `MEASURE` where only the result can tell."""
    if not info.quantized_modules:
        return "original16", "training saw the 16-bit weights"
    if read_object(base / "config.json").get("quantization_config") is not None:
        return "dequant4", "the base exists in 4 bits alone; name its 16-bit weights as model.base_16bit to compare"
    return "original16", MEASURE


def _build_and_prove(
    folder: RunFolder,
    evidence: Evidence,
    to: str,
    merge_base: str,
    out: Path,
    *,
    measure: bool = False,
) -> dict[str, Any]:
    """Build the folder beside `out` and have it examined; the report, whose proof may have failed.

    Args:
        measure: the proof may say that the other base is to be taken instead, and then says nothing else.
    """
    from qdora_fast.exports.merge.merge import build
    from qdora_fast.exports.merge.merged_model import MergedModel
    from qdora_fast.exports.merge.shards import close_ledger
    from qdora_fast.models.adapter import WEIGHTS_NAME, sha256_of

    started = time.monotonic()
    config, info = read_config(folder), read_run_info(folder)
    base, unproven = base_folder(info, config), unproven_folder(out)
    recipe = recipe_of(to, merge_base, info)
    model = MergedModel(base, folder.adapter, recipe)
    with console.counting_bytes(model.total_bytes) as on_bytes:
        merged = _timed(lambda: build(model, unproven, tokenizer_from=folder.adapter, on_bytes=on_bytes))
    proof = _timed(lambda: _prove(folder, evidence, unproven, recipe, measure=measure))
    close_ledger(unproven)
    return {
        "format": to,
        "path": str(out),
        "merge_base": merge_base,
        "proof": proof.value,
        "bytes": merged.value.bytes,
        "peak_rss_bytes": _peak_rss_bytes(),
        "seconds": round(time.monotonic() - started, 2),
        "merge_seconds": round(merged.seconds, 2),
        "proof_seconds": round(proof.seconds, 2),
        "base": {"name": info.base, "folder": str(base), "revision": info.revision},
        "adapter_sha256": sha256_of(folder.adapter / WEIGHTS_NAME),
        "sha256": merged.value.sha256,
        "resumed_shards": merged.value.resumed,
        "packages": package_versions(),
    }


def _prove(folder: RunFolder, evidence: Evidence, exported: Path, recipe: Any, *, measure: bool) -> dict[str, Any]:
    """The findings of a fresh process on an exported folder."""
    from qdora_fast.exports.verify.fresh_process import examine_in_new_process
    from qdora_fast.exports.verify.token_identity import complete_stop_ids

    added = complete_stop_ids(exported, read_run_info(folder).stop_ids)
    case = case_of(folder, evidence, exported, recipe, added_stops=added, measure=measure)
    with console.status("proving the merged model") as status:
        return examine_in_new_process(case, lambda phase: status.update(f"proving the merged model: {phase}"))


@dataclass(frozen=True)
class _Timed:
    value: Any
    seconds: float


def _timed(work: Callable[[], Any]) -> _Timed:
    started = time.monotonic()
    value = work()
    return _Timed(value, time.monotonic() - started)


def _peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
