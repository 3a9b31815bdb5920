"""Whether a checkpoint can be resumed: is it complete, and is it of the same run?

A checkpoint is taken only if its every byte is as it was written; newer ones that are not are named with what is
wrong. What decides the result must be what it was (base, data, adapter, optimizer, template, seed, effective batch).
The settings are compared by `config/recorded.py`; what they came to, which no config shows, is compared here, each
difference by name. Which run is resumed is the choice of `recipes/resume.py`.

Starting a new run from a finished adapter is something else: `adapter.init_adapter`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings, ModelSettings, TrainSettings
from qdora_fast.system.errors import CheckpointError
from qdora_fast.system.manifest import problems, read_manifest
from qdora_fast.system.run_folder import RunFolder

_PEEKS, _PEEK = 16, 2**16
"""Positions in each weight file, evenly spaced, and the bytes at each that go into the base's fingerprint. The
beginning alone is not enough: it often holds the embeddings, which a fine-tune of the same base leaves as they were."""


def newest_complete(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, every byte as it was written, and what is wrong with each newer one.

    Returns:
        The checkpoint, None where there is none; one sentence for each newer one.
    """
    skipped: list[str] = []
    for checkpoint in reversed(folder.checkpoints()):
        wrong = problems(checkpoint)
        if not wrong:
            return checkpoint, skipped
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        skipped.append(f"{checkpoint.name}: {wrong[0]}{more}")
    return None, skipped


def require_same(checkpoint: Path, identity: Mapping[str, Any], base: str | None = None) -> None:
    """Compare the identity of a run with that of the run that wrote the checkpoint.

    Args:
        identity: from the function `identity`.
        base: folder of the base, whose fingerprint earlier versions took in another way; None: no folder.

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
    """What tells one base from another without reading all of it: hub name and revision, or, for a folder, a hash over
    its config and the size and some bytes of each weight file. The folder's path may change."""
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
    """The fingerprint that the first versions took: the beginning and size of each file."""
    digest = hashlib.sha256()
    for path in _weight_files(Path(name)):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
    return f"weights {digest.hexdigest()[:16]}" if Path(name).is_dir() else None


def _weight_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])


def identity(
    model: ModelSettings,
    adapter: AdapterSettings,
    train: TrainSettings,
    *,
    base: str,
    data: str,
    rendering: Mapping[str, Any],
    recipe: Any,
) -> dict[str, Any]:
    """What a run and a checkpoint must share, beyond equal settings, for the run to be resumed from it.

    Args:
        base: name or folder of the base as loaders take it.
        data: hash of the prepared rows.
        rendering: `Rendering.identity()`; tokenizer and template are in it.
        recipe: `trainer.Recipe`; what `auto` became on this machine.
    """
    return {
        "base": base_fingerprint(base, model.revision),
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
