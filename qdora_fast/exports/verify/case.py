"""What a run's export is held against: the live model's own words, the base's folder, and how it is merged.

`record_trained` asks the model while it is loaded: at the end of training, or loaded again from the run
(`record_saved`). `case_of` puts that, the run's records and an exported folder together for
`checks.py`, which needs neither the run nor the training stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.verify.checks import Case, Evidence
from qdora_fast.models.base_files import require_sound
from qdora_fast.models.out_of_memory import OutOfMemoryEvent, attempt, give_back, make_room, release_memory
from qdora_fast.models.run_info import RunInfo, read_run_info
from qdora_fast.models.trained import TrainedModel
from qdora_fast.system.errors import ConfigError, OutOfMemory, first_line
from qdora_fast.system.paths import typed
from qdora_fast.system.run_folder import RunFolder

PROOF_ROWS = "data/proof_rows.json"
PROOF_ROWS_SHAPE = {"held_out": bool, "rows": [{"input_ids": [int], "labels": [int]}]}


def record_trained(model: Any, folder: RunFolder) -> Evidence:
    """Record a live trained model, and its base with the adapter switched off, on the run's proof rows.

    Raises:
        OutOfMemory: not even one row fits beside the model; the adapter is saved.
    """
    make_room(model)  # the last answers' keys and values, too
    while isinstance(evidence := attempt(lambda: _record(model, folder)), OutOfMemoryEvent):
        if not give_back(model):
            raise OutOfMemory(
                f"memory ran out while the export's proof recorded what the trained model says ({evidence.reason}).\n"
                f"  The adapter is saved in {folder.adapter}; `qdora-fast export {typed(folder.path)}` exports it "
                "where more memory is free"
            )
    return evidence


def _record(model: Any, folder: RunFolder) -> Evidence:
    from qdora_fast.exports.verify import base_sample
    from qdora_fast.exports.verify.recording import record
    from qdora_fast.models.adapter import WEIGHTS_NAME
    from qdora_fast.models.adapter_guard import unsaved

    sample = base_sample.load(folder.path)
    if sample is None:  # of an imported adapter, or an older run
        sample = base_sample.take(model, read_run_info(folder).targets)
    rows = folder.read_json(PROOF_ROWS, PROOF_ROWS_SHAPE)["rows"]
    tuned = record(model, rows)
    with model.disable_adapter():
        base = record(model, rows)
    return Evidence(rows, tuned, base, sample, tuple(unsaved(model, folder.adapter / WEIGHTS_NAME)))


def record_saved(folder: RunFolder, trained: TrainedModel) -> Evidence:
    """Load the run's adapter on its base and record both."""
    from qdora_fast.training.trainer import choose_precision

    _, model = trained.load(precision=choose_precision(trained.train))
    evidence = record_trained(model, folder)
    del model
    release_memory()
    return evidence


def case_of(
    folder: RunFolder,
    evidence: Evidence,
    exported: Path,
    recipe: MergeRecipe,
    *,
    base: Path,
    added_stops: Sequence[int] = (),
    measure: bool = False,
) -> Case:
    """An exported folder of a run with all that it is held against; see `checks.Case`.

    Args:
        base: folder of the weights that were merged into, see `base_folder`.
    """
    from qdora_fast.exports.verify.outputs import Models
    from qdora_fast.exports.verify.token_identity import RECORD, RECORD_SHAPE

    info = read_run_info(folder)
    models = Models(
        exported=exported,
        adapter=folder.adapter,
        base=base,
        recipe=recipe,
        trained_base=_weights_folder(info.base, info.revision),
        quantized=frozenset(info.quantized_modules),
        precision=_dtype(info.precision),
    )
    recorded = folder.read_json(RECORD, RECORD_SHAPE) if (folder.path / RECORD).is_file() else None
    held_out = folder.read_json(PROOF_ROWS, PROOF_ROWS_SHAPE)["held_out"]
    return Case(models, evidence, held_out, recorded, tuple(added_stops), measure)


def base_folder(info: RunInfo, base_16bit: str | None) -> Path:
    """The folder of the base's 16-bit weights; downloaded to the hub cache when the base has a hub name.

    Args:
        base_16bit: `model.base_16bit` of the run.

    Raises:
        ConfigError: neither a folder nor reachable.
    """
    name = base_16bit or info.base
    return _weights_folder(name, info.revision if name == info.base else None)


def recipe_of(to: str, merge_base: str, info: RunInfo) -> MergeRecipe:
    """How a run is merged into a format."""
    return MergeRecipe(
        merge_base=merge_base,  # type: ignore[arg-type]
        quantized_modules=frozenset(info.quantized_modules) or None,  # after training on 16 bits: all in the blocks
        trained_dtype=_dtype(info.precision),
        nf4=to != "merged_16bit",
    )


def _weights_folder(name: str, revision: str | None) -> Path:
    """A folder as it is; for a hub name that of the hub cache, downloaded if need be."""
    if Path(name).is_dir():
        require_sound(name)
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["original/*"]))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError) as error:
        raise ConfigError(
            f"the 16-bit weights of `{name}` are neither a folder nor reachable on the hub ({first_line(error)}); "
            "set model.base_16bit to a local folder in the run's config.yaml"
        ) from None


def _dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
