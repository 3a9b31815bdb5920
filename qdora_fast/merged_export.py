"""The merged model of a run, and the proof that it is the model that was trained.

It is built beside its final place and moves there only when three things hold: its weights are
what PEFT's own merge gives (`proof.py`), every other tensor is the base's bit for bit, and a
fresh process with plain Transformers gets the trained model's answers from it (`behaviour.py`).
A failed proof is a failed export: the folder stays under another name, with export.json saying
what failed.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qdora_fast import show
from qdora_fast.backend import open_backend
from qdora_fast.config import Config
from qdora_fast.errors import ConfigError, ProofError, RefusedError, first_line
from qdora_fast.hardware import package_versions
from qdora_fast.remote_code import require_allowed
from qdora_fast.run_folder import RunFolder, write_json
from qdora_fast.staging import refuse_existing, take_place


@dataclass(frozen=True)
class Evidence:
    """What the trained model and its base say about the proof rows; plain tensors, the models are gone."""

    rows: Sequence[Mapping[str, Sequence[int]]]
    tuned: Any
    base: Any


def export_run(
    folder: RunFolder,
    config: Config,
    *,
    out: Path | None,
    overwrite: bool,
    console: Console,
    merge_base: str | None = None,
) -> dict[str, Any]:
    """Load a finished run, merge it and prove the result.

    Args:
        merge_base: original16 or dequant4; None: the run's own setting.
        out: folder to write; None: inside the run.

    Returns:
        What export.json holds: format, path, merge_base, proof, seconds, peak_rss_bytes, ...

    Raises:
        RefusedError: dequant4 for a base that was not quantised.
        ProofError: the merged model is not the trained one.
        DiskSpaceError, IntegrityError, ConfigError: see `merge.merge`.
    """
    chosen = merge_base or config.export.merge_base
    if chosen == "dequant4" and not config.adapter.quantized:
        raise RefusedError(f"--merge-base dequant4: method `{config.adapter.method}` has no 4-bit base; use original16")
    target = out or merged_folder(folder, chosen)
    refuse_existing(target, overwrite=overwrite)
    require_allowed(folder.read_json("model.json"))  # says so when the run did not finish, too
    open_backend()
    evidence = _record_saved(folder, config)
    return export_merged(folder, evidence, merge_base=chosen, out=target, overwrite=overwrite, console=console)


def merged_folder(folder: RunFolder, merge_base: str) -> Path:
    """Where a merged model goes when nothing else is said."""
    return folder.path / ("merged_16bit" if merge_base == "original16" else f"merged_16bit-{merge_base}")


def record_trained(model: Any, folder: RunFolder) -> Evidence:
    """Record a live trained model, and its base with the adapter switched off, on the run's proof rows."""
    from qdora_fast.behaviour import record

    rows = folder.read_json("data/proof_rows.json")["rows"]
    tuned = record(model, rows)
    with model.disable_adapter():
        return Evidence(rows, tuned, record(model, rows))


def export_merged(
    folder: RunFolder, evidence: Evidence, *, merge_base: str, out: Path, overwrite: bool, console: Console
) -> dict[str, Any]:
    """Merge, prove, and move into place. `evidence` comes from `record_trained`."""
    from qdora_fast.adapter import WEIGHTS_NAME, sha256_of
    from qdora_fast.merge import merge, merged_bytes
    from qdora_fast.proof import prove_weights

    refuse_existing(out, overwrite=overwrite)
    started = time.monotonic()
    config, made = folder.config(), folder.read_json("model.json")
    base = base_folder(made, config)
    recipe = _recipe(merge_base, made)
    unproven = out.with_name(f"{out.name}.unproven")
    with show.writing(console, merged_bytes(base, recipe)) as on_bytes:
        merged = _timed(
            lambda: merge(
                base, folder.adapter, unproven, recipe, tokenizer_from=folder.adapter, overwrite=True, on_bytes=on_bytes
            )
        )
    with console.status("proving the merged model"):
        weights = prove_weights(base, folder.adapter, unproven, recipe, seed=config.train.seed)
        behaviour = _prove_behaviour(evidence, unproven, base, merge_base, config)
    report = {
        "format": "merged_16bit",
        "path": str(out),
        "merge_base": merge_base,
        "proof": {**_proof(weights, behaviour), "held_out": folder.read_json("data/proof_rows.json")["held_out"]},
        "bytes": merged.value.bytes,
        "peak_rss_bytes": _peak_rss_bytes(),
        "seconds": round(time.monotonic() - started, 2),
        "merge_seconds": round(merged.seconds, 2),
        "base": {"name": made["base"], "folder": str(base), "revision": made["revision"]},
        "adapter_sha256": sha256_of(folder.adapter / WEIGHTS_NAME),
        "sha256": merged.value.sha256,
        "packages": package_versions(),
    }
    write_json(unproven / "export.json", report)
    if not report["proof"]["passed"]:
        failed = [check["words"] for check in report["proof"]["checks"] if not check["passed"]]
        raise ProofError(
            f"the merged model is not the model that was trained:\n  - {chr(10).join(failed)}\n"
            f"  It was left in {unproven} for inspection (see its export.json); do not deploy it"
        )
    take_place(unproven, out)
    show.exported(console, report)
    return report


def base_folder(made: Mapping[str, Any], config: Config) -> Path:
    """The folder of the base's 16-bit weights; downloaded to the hub cache when the base has a hub name.

    Raises:
        ConfigError: neither a folder nor reachable.
    """
    name = config.model.base_16bit or made["base"]
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    revision = made["revision"] if name == made["base"] else None
    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["original/*"]))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError) as error:
        raise ConfigError(
            f"the 16-bit weights of `{name}` are neither a folder nor reachable on the hub ({first_line(error)}); "
            "set model.base_16bit to a local folder in the run's config.yaml"
        ) from None


def _record_saved(folder: RunFolder, config: Config) -> Evidence:
    """Load the run's adapter on its base and record both."""
    from qdora_fast.behaviour import release_memory
    from qdora_fast.model import load_trained
    from qdora_fast.trainer import choose_precision

    made = folder.read_json("model.json")
    _, model = load_trained(made["base"], config, folder.adapter, precision=choose_precision(config.train))
    evidence = record_trained(model, folder)
    del model
    release_memory()
    return evidence


def _prove_behaviour(evidence: Evidence, merged: Path, base: Path, merge_base: str, config: Config) -> Any:
    from qdora_fast.behaviour import compare, judge
    from qdora_fast.plain_reader import record_in_new_process

    needs_noise = merge_base == "original16" and config.adapter.quantized
    opened = record_in_new_process([merged, base] if needs_noise else [merged], evidence.rows)
    noise = compare(evidence.base, opened[1]) if needs_noise else None
    return judge(merge_base, compare(evidence.tuned, opened[0]), compare(evidence.tuned, evidence.base), noise)


def _proof(weights: Any, behaviour: Any) -> dict[str, Any]:
    """Both proofs in one table of checks, weights first."""
    layers = f"{weights.layers} merged layers equal PEFT's merge (worst error {weights.worst_error:.3%})"
    said = f"{layers}; {weights.untouched} other tensors identical to the base's"
    faults = "; ".join(weights.faults[:5])
    checks = [{"name": "weights", "passed": weights.passed, "words": said if weights.passed else faults}]
    for check in behaviour.checks:
        words = f"{check.words}: {check.value:.3g} (limit {check.limit:.3g})"
        checks.append({"name": check.name, "passed": check.passed, "words": words})
    return {
        "passed": weights.passed and behaviour.passed,
        "kl": behaviour.merged.mean_kl,
        "top1": behaviour.merged.top1,
        "checks": checks,
        "weights": weights.to_dict(),
        "behaviour": behaviour.to_dict(),
    }


def _recipe(merge_base: str, made: Mapping[str, Any]) -> Any:
    import torch

    from qdora_fast.base_weights import MergeRecipe

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return MergeRecipe(
        merge_base=merge_base,  # type: ignore[arg-type]
        quantized_modules=frozenset(made["quantized_modules"]),
        trained_dtype=dtypes[made["precision"]],
    )


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
