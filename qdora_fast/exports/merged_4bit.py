"""merged_4bit_forced: the merged model in bitsandbytes' NF4, loadable by plain Transformers.

The usual way there, PEFT's `merge_and_unload` on the 4-bit model, loses a light tune: the weights
that training saw lie on the NF4 grid, and a small update added to them is rounded away again. So
the adapter is merged into the original 16-bit weights, which do not lie on that grid, and each
tensor is quantised as it is written, in one pass and with no model in memory. What is left of the
gain is measured on held-out rows, and the export is refused where it is less than half.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.exports import merged
from qdora_fast.system import console
from qdora_fast.system.run_folder import RunFolder

FORMAT = "merged_4bit_forced"

COST = (
    "merged_4bit_forced rounds the merged weights to 4 bits, and that cannot be undone: the result is no input for "
    "GGUF, AWQ or another training. merged_16bit opened with load_in_4bit has the same weights in memory and keeps all "
    "ways open; take 4 bits where the disk or the download must be small. How much of what tuning gained is left is "
    "measured, and the export is refused if it is less than half"
)


def export_run(folder: RunFolder, config: Config, *, out: Path | None, overwrite: bool) -> dict[str, Any]:
    """Merge a finished run into its 16-bit base, in NF4, and prove the result.

    Raises:
        ProofError: the artefact is not the trained model in NF4, or is nearer the base than the trained model.
        ConfigError: the base exists in 4 bits alone; see also `merge.merge`.
    """
    if config.export.merge_base == "dequant4":
        console.note(
            "export.merge_base: dequant4 is not used for this format: 4 bits merged into 4 bits would round the tuning "
            "away; merged into the original 16-bit weights instead",
        )
    target = out or folder.path / FORMAT
    return merged.export_to(folder, config, "original16", to=FORMAT, out=target, overwrite=overwrite)
