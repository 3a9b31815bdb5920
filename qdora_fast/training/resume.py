"""Going on with a run that was stopped: which run, which checkpoint, and whether it is still the same run.

The newest checkpoint is taken whose every byte is as it was written; newer ones that are not are
named with what is wrong. If none is left that is an error: a run is never started from zero when
it was asked to go on. What decides the result must be what it was (base, data, adapter, optimizer,
template, seed, effective batch): the settings are compared by `run_folder.py`, and what they came
to, which no config shows, is compared here, each difference by name.

Starting a new run from a finished adapter is something else: `adapter.init_adapter`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.recorded import resumable
from qdora_fast.system.errors import CheckpointError
from qdora_fast.system.manifest import problems, read_manifest
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.system.run_lock import in_use

_PEEKS, _PEEK = 16, 2**16
"""Places in each weight file, evenly apart, and the bytes at each that go into the base's fingerprint. The beginning
alone is not enough: it often holds the embeddings, which a fine-tune of the same base leaves as they were."""


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    folder: RunFolder | None
    """The run to go on with; None: a new one."""
    checkpoint: Path | None
    said: tuple[str, ...]
    """For the user: checkpoints passed over and why, or why a new run starts."""


NEW = Start(None, None, ())


def go_on(config: Config, name: str) -> Start:
    """The newest run of this name and its newest whole checkpoint.

    Raises:
        CheckpointError: there is none, each damaged one is named; or the run had other settings.
    """
    folder = resumable(config, name)
    checkpoint, skipped = newest_whole(folder)
    if checkpoint is None:
        listed = "\n".join(f"  - {line}" for line in skipped)
        raise CheckpointError(
            f"--resume: no checkpoint of {folder.path} is whole:\n{listed}\n  Start a new run without --resume"
        )
    return Start(folder, checkpoint, tuple(f"passed over {line}" for line in skipped))


def go_on_if_stopped(config: Config, name: str) -> Start:
    """The same where the newest run of this name has not finished; a new run where it has, or cannot go on."""
    newest = RunFolder.newest(Path(config.run.dir), config.run.name or name)
    if newest is None or newest.finished:
        return NEW
    if in_use(newest.path):
        return Start(None, None, (f"{newest.path} is in use by another process; this is a new run",))
    try:
        return go_on(config, name)
    except CheckpointError as error:
        why = str(error).removeprefix("--resume: ")
        return Start(None, None, (f"{newest.path} did not finish and is not gone on with: {why}",))


def newest_whole(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and what is wrong with each newer one."""
    skipped: list[str] = []
    for checkpoint in reversed(folder.checkpoints()):
        wrong = problems(checkpoint)
        if not wrong:
            return checkpoint, skipped
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        skipped.append(f"{checkpoint.name}: {wrong[0]}{more}")
    return None, skipped


def require_same(checkpoint: Path, identity: Mapping[str, Any], base: str | None = None) -> None:
    """Compare what a run is with what wrote the checkpoint.

    Args:
        identity: from `identity`.
        base: folder of the base, whose fingerprint earlier versions took in another way; None: it has none.

    Raises:
        CheckpointError: names each difference.
    """
    then = read_manifest(checkpoint)["about"]["identity"]
    known = base and then.get("base") == _first_fingerprint(base)
    changed = [
        f"  - {key}: {then.get(key, 'not recorded')} then, {now} now"
        for key, now in identity.items()
        if then.get(key) != now and not (key == "base" and known)
    ]
    if changed:
        raise CheckpointError(
            f"--resume: {checkpoint} is of another run:\n{chr(10).join(changed)}\n"
            "  Put back what it was; or start a new run, from these weights with adapter.init_adapter if you like"
        )


def base_fingerprint(name: str, revision: str | None) -> str:
    """What tells one base from another without reading it whole: hub name and revision, or a hash over a folder's
    config and the size of each weight file and some of its bytes (its path may change)."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for number in range(_PEEKS):
                file.seek(max(0, size - _PEEK) * number // (_PEEKS - 1))
                digest.update(file.read(_PEEK))
    return f"weights {digest.hexdigest()[:16]}"


def _first_fingerprint(name: str) -> str | None:
    """That of the first versions: the beginning and size of each file."""
    digest = hashlib.sha256()
    for path in _weight_files(Path(name)):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
    return f"weights {digest.hexdigest()[:16]}" if Path(name).is_dir() else None


def _weight_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])


def identity(config: Config, *, base: str, data: str, rendering: Mapping[str, Any], recipe: Any) -> dict[str, Any]:
    """What a run must share with a checkpoint to go on from it, beyond its settings.

    Args:
        base: name or folder of the base as loaders take it.
        data: hash of the prepared rows.
        rendering: `Rendering.identity()`; tokenizer and template are in it.
        recipe: `trainer.Recipe`; what `auto` became on this machine.
    """
    adapter, train = config.adapter, config.train
    return {
        "base": base_fingerprint(base, config.model.revision),
        "quantisation": "nf4" if adapter.quantized else "none",
        "adapter": f"{adapter.method}, r {adapter.r}, alpha {adapter.alpha:g}, {adapter.target_modules}",
        "data": data,
        "tokenizer": rendering["tokenizer"],
        "template": rendering["template"],
        "seed": train.seed,
        "effective batch": train.rows_per_step,
        "LoRA+ ratio": train.loraplus_ratio,
        "optimizer": recipe.optimizer,
        "precision": recipe.precision,
        "packing": recipe.packing,
        "steps": recipe.steps,
    }
