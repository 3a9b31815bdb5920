"""One part of `make bench-export` in a process of its own: `python export_arm.py SPEC OUT`.

Run by its path, as data_arm.py is, so that the process holds no more than the work itself does. Tasks, by
`spec["task"]`:

    train      a run whose settings export_cases.py gives
    export     `qdora_fast.recipes.export.export`, as the command does it
    peft       PEFT's `merge_and_unload` on the 4-bit model, on the same rows
    controls   exports that must fail: magnitudes dropped, one layer left unmerged, another base
    merge      the streaming merge alone; with `kill_after` bytes the process kills itself in the middle
    copy       the same files copied, for comparison
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdora_fast.config.recorded import read_config
from qdora_fast.models.run_info import read_run_info

Spec = dict[str, Any]


def train(spec: Spec) -> Spec:
    """Train one of the cases; the path of its run."""
    from benchmarks.export.export_cases import settings
    from qdora_fast.recipes.train import train as train_run

    sections: dict[str, Any] = settings(spec["case"], Path(spec["folder"]))
    return {"run": str(train_run("demo", **sections).path)}


def export(spec: Spec) -> Spec:
    """One format of a run; the report of one that fails its proof, too."""
    from qdora_fast.recipes.export import export as export_run
    from qdora_fast.system.errors import ProofError

    try:
        return dict(export_run(spec["run"], to=spec["to"], out=spec["out"], **spec["options"]))
    except ProofError:
        return _report(Path(spec["out"]))


def peft(spec: Spec) -> Spec:
    """What the usual way into 4 bits leaves of a run: PEFT merges into the 4-bit model and rounds again."""
    from qdora_fast.models.backend import open_backend

    open_backend()
    from qdora_fast.exports.verify.case import record_trained
    from qdora_fast.exports.verify.distance import Distance
    from qdora_fast.exports.verify.recording import record
    from qdora_fast.recipes.report import trained_model
    from qdora_fast.system.run_folder import RunFolder
    from qdora_fast.training.trainer import choose_precision

    folder = RunFolder(Path(spec["run"]))
    config = read_config(folder)
    plain = config.model_copy(update={"engine": config.engine.model_copy(update={"impl": "off"})})
    _, model = trained_model(folder, plain).load(precision=choose_precision(config.train))
    evidence = record_trained(model, folder)
    begin = time.perf_counter()
    merged = model.merge_and_unload()
    seconds = time.perf_counter() - begin
    said = record(merged, evidence.rows)
    held_out = folder.read_json("data/proof_rows.json")["held_out"]
    distance = Distance.measure(evidence.base, evidence.tuned, said, held_out=held_out)
    return {"seconds": seconds, "kl": distance.kl, "top1": distance.top1, "distance": distance.to_dict()}


def controls(spec: Spec) -> Spec:
    """Exports of a run that must not pass, and the checks that they fail."""
    from qdora_fast.models.backend import open_backend

    open_backend()

    from qdora_fast.exports.merged import export_merged, unproven_folder
    from qdora_fast.exports.verify.case import record_saved
    from qdora_fast.recipes.report import trained_model
    from qdora_fast.system.errors import ProofError
    from qdora_fast.system.run_folder import RunFolder

    folder = RunFolder(Path(spec["run"]))
    evidence = record_saved(folder, trained_model(folder, read_config(folder)))
    found: Spec = {}
    for name, tampering in CONTROLS.items():
        out = Path(spec["out"])
        with tampering(folder, out.with_name("other-base")):
            try:
                export_merged(
                    folder,
                    evidence,
                    to=spec["to"],
                    merge_base="original16",
                    out=out,
                    overwrite=True,
                )
                found[name] = []
            except ProofError:
                checks = _report(out)["proof"]["checks"]
                found[name] = [check["name"] for check in checks if not check["passed"]]
                shutil.rmtree(unproven_folder(out))
    return {"failed": found}


def merge(spec: Spec) -> Spec:
    """The streaming merge and nothing else."""
    from qdora_fast.exports.merge.base import MergeRecipe
    from qdora_fast.exports.merge.merge import merge as merge_shards

    written = 0

    def on_bytes(count: int) -> None:
        nonlocal written
        written += count
        if written > spec.get("kill_after", float("inf")):
            os.kill(os.getpid(), signal.SIGKILL)

    recipe = MergeRecipe(spec["merge_base"], nf4=spec["nf4"])
    begin, cpu = time.perf_counter(), time.process_time()
    report = merge_shards(
        Path(spec["base"]), Path(spec["adapter"]), Path(spec["out"]), recipe, workers=spec["workers"], on_bytes=on_bytes
    )
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_s": time.process_time() - cpu,
        "bytes": report.bytes,
        "sha256": report.sha256,
        "resumed": report.resumed,
    }


def copy(spec: Spec) -> Spec:
    """Copy a folder's files one after the other, each flushed to the disk as the merge does."""
    out = Path(spec["out"])
    out.mkdir()
    begin = time.perf_counter()
    for source in sorted(Path(spec["base"]).glob("*.safetensors")):
        with source.open("rb") as given, (out / source.name).open("wb") as taken:
            shutil.copyfileobj(given, taken, 4 * 2**20)
            taken.flush()
            os.fsync(taken.fileno())
    return {"seconds": time.perf_counter() - begin}


def _report(out: Path) -> Spec:
    """That of an export that failed its proof."""
    from qdora_fast.exports.merged import unproven_folder

    report: Spec = json.loads((unproven_folder(out) / "export.json").read_text(encoding="utf-8"))
    return report


@contextmanager
def _merging(change: Callable[..., Any]) -> Iterator[None]:
    """Let `change(real, weight, module, start)` stand in for the merge of a block of rows."""
    from qdora_fast.exports.merge import merged_model

    real = merged_model.merged_rows
    merged_model.merged_rows = lambda weight, module, start: change(real, weight, module, start)
    try:
        yield
    finally:
        merged_model.merged_rows = real


def _magnitudes_dropped(folder: Any, other: Path) -> Any:
    """What a reader makes of a DoRA adapter that takes it for LoRA."""
    from dataclasses import replace

    return _merging(lambda real, weight, module, start: real(weight, replace(module, magnitude=None), start))


def _one_layer_unmerged(folder: Any, other: Path) -> Any:
    """The first layer that is asked for stays the base's."""
    first: list[Any] = []

    def change(real: Any, weight: Any, module: Any, start: int) -> Any:
        first[:] = first or [module]
        return weight if module is first[0] else real(weight, module, start)

    return _merging(change)


@contextmanager
def _another_base(folder: Any, other: Path) -> Iterator[None]:
    """The run names a base that differs from its own by noise of 2 %."""
    import torch
    from safetensors.torch import load_file, save_file

    from qdora_fast.config.loader import dump_config

    base = Path(read_run_info(folder).base)
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(base, other)
    generator = torch.Generator().manual_seed(1)
    for file in sorted(other.glob("*.safetensors")):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator).mul_(0.02 * tensor.float().std())
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    before = folder.config_file.read_text(encoding="utf-8")
    config = read_config(folder)
    named = config.model_copy(update={"model": config.model.model_copy(update={"base_16bit": str(other)})})
    folder.config_file.write_text(dump_config(named), encoding="utf-8")
    try:
        yield
    finally:
        folder.config_file.write_text(before, encoding="utf-8")
        shutil.rmtree(other)


CONTROLS = {
    "magnitudes dropped": _magnitudes_dropped,
    "one layer unmerged": _one_layer_unmerged,
    "another base": _another_base,
}
TASKS = {"train": train, "export": export, "peft": peft, "controls": controls, "merge": merge, "copy": copy}

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = TASKS[given["task"]](given)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
