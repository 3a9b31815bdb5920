"""The merged model of a run, and the proof that it is the model that was trained.

It is built beside its final place and moves there only when its proof (`checks.py`) has passed. A failed
proof is a failed export: the folder stays under another name, with export.json saying what failed.

`merged_4bit_forced` is the same model in bitsandbytes' NF4, loadable by plain Transformers. PEFT's `merge_and_unload`
on the 4-bit model loses a light tune: the weights that training saw lie on the NF4 grid, and a small update added to
them is rounded away again. So the adapter is merged into the original 16-bit weights, which do not lie on that grid,
and each tensor is quantised as it is written. What is left of the gain is measured on held-out rows, and the export is
refused where it is less than half.

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

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.report import print_report
from qdora_fast.exports.verify.case import base_folder, case_of, recipe_of, record_saved
from qdora_fast.exports.verify.checks import Evidence
from qdora_fast.models.backend import open_backend
from qdora_fast.models.few_bits import few_bits_in
from qdora_fast.models.run_info import RunInfo, read_run_info
from qdora_fast.models.trained import TrainedModel
from qdora_fast.system import console
from qdora_fast.system.atomic import publish, refuse_existing
from qdora_fast.system.errors import ProofError, RefusedError
from qdora_fast.system.hardware import package_versions
from qdora_fast.system.manifest import sha256_of, write_manifest
from qdora_fast.system.remote_code import require_allowed
from qdora_fast.system.run_folder import EXPORT, UNPROVEN, RunFolder, write_json

SIXTEEN_BIT, FOUR_BIT = "merged_16bit", "merged_4bit_forced"
FOUR_BIT_COST = (
    "merged_4bit_forced rounds the merged weights to 4 bits, and that cannot be undone: the result is no input for "
    "GGUF, AWQ or another training. merged_16bit opened with load_in_4bit has the same weights in memory and keeps all "
    "ways open; take 4 bits where the disk or the download must be small. How much of what tuning gained is left is "
    "measured, and the export is refused if it is less than half"
)


def export_merged_16bit(
    folder: RunFolder, trained: TrainedModel, *, merge_base: str, out: Path | None, overwrite: bool
) -> dict[str, Any]:
    """Load a finished run, merge it and prove the result.

    Args:
        merge_base: auto, original16 or dequant4.
        out: folder to write; None: inside the run.

    Returns:
        What export.json holds: format, path, merge_base (the one that was taken) and why, proof, seconds, ...

    Raises:
        RefusedError: dequant4 for a base that was not quantised.
        ProofError: the merged model is not the trained one.
        DiskSpaceError, IntegrityError, ConfigError: see `merge.merge`.
    """
    adapter = trained.adapter
    if merge_base == "dequant4" and not adapter.quantized:
        raise RefusedError(f"--merge-base dequant4: method `{adapter.method}` has no 4-bit base; use original16")
    target = out or merged_folder(folder, merge_base)
    return _export_saved(folder, trained, merge_base, to=SIXTEEN_BIT, out=target, overwrite=overwrite)


def export_merged_4bit(
    folder: RunFolder, trained: TrainedModel, *, merge_base: str, out: Path | None, overwrite: bool
) -> dict[str, Any]:
    """Merge a finished run into its 16-bit base, in bitsandbytes' NF4, and prove the result.

    Args:
        merge_base: the run's own setting; dequant4 is not followed, and that is said.

    Raises:
        ProofError: the artefact is not the trained model in NF4, or is nearer the base than the trained model.
        ConfigError: the base exists in 4 bits alone; see also `merge.merge`.
    """
    if merge_base == "dequant4":
        console.note(
            "export.merge_base: dequant4 is not used for this format: 4 bits merged into 4 bits would round the tuning "
            "away; merged into the original 16-bit weights instead",
        )
    target = out or folder.path / FOUR_BIT
    return _export_saved(folder, trained, "original16", to=FOUR_BIT, out=target, overwrite=overwrite)


def _export_saved(
    folder: RunFolder, trained: TrainedModel, merge_base: str, *, to: str, out: Path, overwrite: bool
) -> dict[str, Any]:
    """Load the trained model for its evidence, then merge and prove."""
    refuse_existing(out, overwrite=overwrite)
    require_allowed(read_run_info(folder).own_code)  # says so when the run did not finish, too
    open_backend()
    return export_merged(
        folder,
        record_saved(folder, trained),
        to=to,
        merge_base=merge_base,
        base_16bit=trained.model.base_16bit,
        out=out,
        overwrite=overwrite,
    )


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
    to: str = SIXTEEN_BIT,
    merge_base: str,
    base_16bit: str | None = None,
    out: Path,
    overwrite: bool,
) -> dict[str, Any]:
    """Merge, prove, and move into place.

    Args:
        evidence: from `record_trained`.
        to: merged_16bit or merged_4bit_forced.
        base_16bit: `model.base_16bit` of the run.
    """
    from qdora_fast.exports.merge.merge import refuse_own_sources

    refuse_existing(out, overwrite=overwrite)
    info = read_run_info(folder)
    base = base_folder(info, base_16bit)
    refuse_own_sources(out, base, folder.adapter)
    chosen, reason = (merge_base, None) if merge_base != "auto" else _before_measuring(base, info)
    report = _build_and_prove(folder, evidence, base, recipe_of(to, chosen, info), out, measure=reason == MEASURE)
    if "instead" in report["proof"]:
        reason = report["proof"]["instead"]
        console.note("the 16-bit weights would cost held-out loss: merging into the 4-bit ones that training saw")
        report = _build_and_prove(folder, evidence, base, recipe_of(to, "dequant4", info), out)
    elif reason == MEASURE:
        reason = "they cost nothing that matters on these rows"
    report["merge_base_reason"] = reason
    unproven = unproven_folder(out)
    write_json(unproven / EXPORT, report)
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
    if few_bits_in(base) is not None:
        return "dequant4", "the base exists in 4 bits alone; name its 16-bit weights as model.base_16bit to compare"
    return "original16", MEASURE


def _build_and_prove(
    folder: RunFolder,
    evidence: Evidence,
    base: Path,
    recipe: MergeRecipe,
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
    from qdora_fast.models.adapter import WEIGHTS_NAME

    started = time.monotonic()
    info, unproven = read_run_info(folder), unproven_folder(out)
    model = MergedModel(base, folder.adapter, recipe)
    with console.counting_bytes(model.total_bytes) as on_bytes:
        merged = _timed(lambda: build(model, unproven, tokenizer_from=folder.adapter, on_bytes=on_bytes))
    proof = _timed(lambda: _prove(folder, evidence, unproven, base, recipe, measure=measure))
    close_ledger(unproven)
    return {
        "format": FOUR_BIT if recipe.nf4 else SIXTEEN_BIT,
        "path": str(out),
        "merge_base": recipe.merge_base,
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


def _prove(
    folder: RunFolder, evidence: Evidence, exported: Path, base: Path, recipe: MergeRecipe, *, measure: bool
) -> dict[str, Any]:
    """The findings of a fresh process on an exported folder."""
    from qdora_fast.exports.verify.fresh_process import examine_in_new_process
    from qdora_fast.exports.verify.token_identity import complete_stop_ids

    added = complete_stop_ids(exported, read_run_info(folder).stop_ids)
    case = case_of(folder, evidence, exported, recipe, base=base, added_stops=added, measure=measure)
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
