"""The merged model of a run, and the proof that it is the model that was trained.

It is built beside its final place and moves there only when four things hold: its base is the one
trained on (`base_sample.py`), its weights are what PEFT's own merge gives (`proof.py`), every other
tensor is the base's bit for bit, and a fresh process with plain Transformers gets the trained
model's answers from it (`behaviour.py`).
A failed proof is a failed export: the folder stays under another name, with export.json saying
what failed.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qdora_fast import show
from qdora_fast.backend import open_backend
from qdora_fast.config import Config
from qdora_fast.errors import ConfigError, ProofError, RefusedError, first_line
from qdora_fast.export_proof import Evidence, prove
from qdora_fast.hardware import package_versions
from qdora_fast.manifest import write_manifest
from qdora_fast.remote_code import require_allowed
from qdora_fast.run_folder import UNPROVEN, RunFolder, write_json
from qdora_fast.staging import publish, refuse_existing


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
    return export_to(folder, config, chosen, to="merged_16bit", out=target, overwrite=overwrite, console=console)


def export_to(
    folder: RunFolder, config: Config, merge_base: str, *, to: str, out: Path, overwrite: bool, console: Console
) -> dict[str, Any]:
    """`export_run` into one of the merged formats: merged_16bit or merged_4bit_forced."""
    refuse_existing(out, overwrite=overwrite)
    require_allowed(folder.read_json("model.json"))  # says so when the run did not finish, too
    open_backend()
    evidence = _record_saved(folder, config)
    return export_merged(folder, evidence, to=to, merge_base=merge_base, out=out, overwrite=overwrite, console=console)


def merged_folder(folder: RunFolder, merge_base: str) -> Path:
    """Where a merged model goes when nothing else is said."""
    return folder.path / ("merged_16bit" if merge_base == "original16" else f"merged_16bit-{merge_base}")


def unproven_folder(out: Path) -> Path:
    """Where a merged model is built, and stays if it does not pass its proof."""
    return out.with_name(f"{out.name}{UNPROVEN}")


def record_trained(model: Any, folder: RunFolder) -> Evidence:
    """Record a live trained model, and its base with the adapter switched off, on the run's proof rows."""
    from qdora_fast import base_sample
    from qdora_fast.behaviour import record

    sample = base_sample.load(folder.path)
    if sample is None:  # of an imported adapter, or an older run
        sample = base_sample.take(model, folder.read_json("model.json")["targets"])
    rows = folder.read_json("data/proof_rows.json")["rows"]
    tuned = record(model, rows)
    with model.disable_adapter():
        return Evidence(rows, tuned, record(model, rows), sample)


def export_merged(
    folder: RunFolder,
    evidence: Evidence,
    *,
    to: str = "merged_16bit",
    merge_base: str,
    out: Path,
    overwrite: bool,
    console: Console,
) -> dict[str, Any]:
    """Merge, prove, and move into place. `evidence` comes from `record_trained`."""
    from qdora_fast.adapter import WEIGHTS_NAME, sha256_of
    from qdora_fast.merge import build, refuse_own_sources
    from qdora_fast.merged_model import MergedModel
    from qdora_fast.shards import close_ledger

    refuse_existing(out, overwrite=overwrite)
    started = time.monotonic()
    config, made = folder.config(), folder.read_json("model.json")
    base = base_folder(made, config)
    refuse_own_sources(out, base, folder.adapter)
    recipe = _recipe(to, merge_base, made)
    unproven = unproven_folder(out)
    model = MergedModel(base, folder.adapter, recipe)
    with show.writing(console, model.total_bytes) as on_bytes:
        merged = _timed(lambda: build(model, unproven, tokenizer_from=folder.adapter, on_bytes=on_bytes))
    with console.status("proving the merged model"):
        proof = prove(folder, config, evidence, unproven, base, recipe)
    report = {
        "format": to,
        "path": str(out),
        "merge_base": merge_base,
        "proof": proof,
        "bytes": merged.value.bytes,
        "peak_rss_bytes": _peak_rss_bytes(),
        "seconds": round(time.monotonic() - started, 2),
        "merge_seconds": round(merged.seconds, 2),
        "base": {"name": made["base"], "folder": str(base), "revision": made["revision"]},
        "adapter_sha256": sha256_of(folder.adapter / WEIGHTS_NAME),
        "sha256": merged.value.sha256,
        "resumed_shards": merged.value.resumed,
        "packages": package_versions(),
    }
    write_json(unproven / "export.json", report)
    close_ledger(unproven)
    about = {"kind": "export", "format": report["format"], "adapter_sha256": report["adapter_sha256"]}
    write_manifest(unproven, about, known=merged.value.sha256)
    if not proof["passed"]:
        failed = [check["words"] for check in proof["checks"] if not check["passed"]]
        raise ProofError(
            f"the merged model is not the model that was trained:\n  - {chr(10).join(failed)}\n"
            f"  It was left in {unproven} for inspection (see its export.json); do not deploy it"
        )
    publish(unproven, out)
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


def _recipe(to: str, merge_base: str, made: Mapping[str, Any]) -> Any:
    import torch

    from qdora_fast.base_weights import MergeRecipe

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return MergeRecipe(
        merge_base=merge_base,  # type: ignore[arg-type]
        quantized_modules=frozenset(made["quantized_modules"]) or None,  # after training on 16 bits: all in the blocks
        trained_dtype=dtypes[made["precision"]],
        nf4=to != "merged_16bit",
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
