"""What a run trained, as its model.json says it: enough to open its base and its adapter again.

Written once, before the first step; export, chat and evaluation read it. The embedded base is recorded as `demo`,
because its path is another in each environment; whoever reads gets a name that loaders take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from qdora_fast.data.demo.base import loadable_name, recorded_name
from qdora_fast.data.tokenize.thinking import Mode
from qdora_fast.system.run_folder import RunFolder

NAME = "model.json"
SHAPE = {
    **{"base": str, "revision": str | None, "method": str, "precision": str, "template": str | None},
    **{"targets": [str], "quantized_modules": [str], "stop_ids": [int], "own_code?": [str], "imported?": dict | None},
    **{"thinking?": str},
}
OPTIONAL = ("imported", "thinking")
"""Written only where they say something."""


@dataclass(frozen=True)
class RunInfo:
    """The base of a run and what was made of it.

    Attributes:
        base: what loaders take: a hub name or a folder.
        revision: commit of the hub; None for a folder.
        method: lora, qlora, dora or qdora.
        targets: full names of the adapted layers.
        quantized_modules: full names of the layers held in NF4; [] on a 16-bit base.
        precision: dtype of training: bf16, fp16 or fp32.
        template: name of the chat template that came from the config; None: the tokenizer's own.
        stop_ids: token ids that end an answer.
        own_code: Python files of the base that were run while training.
        thinking: the mode that all rows had, on or off, in which the model is asked; None: the chat template's default.
        imported: about an adapter that was trained elsewhere; None after a training here.
    """

    base: str
    revision: str | None
    method: str
    targets: Sequence[str]
    quantized_modules: Sequence[str]
    precision: str
    template: str | None
    stop_ids: Sequence[int]
    own_code: Sequence[str] = ()
    thinking: Mode | None = None
    imported: Mapping[str, Any] | None = None


def write_run_info(folder: RunFolder, info: RunInfo) -> None:
    """Write model.json."""
    content = asdict(replace(info, base=recorded_name(info.base)))
    folder.write_json(NAME, {key: value for key, value in content.items() if key not in OPTIONAL or value})


def read_run_info(folder: RunFolder) -> RunInfo:
    """Read model.json; keys that another version has written beside ours are left alone.

    Raises:
        ConfigError: the run did not get that far.
        IntegrityError: the file is damaged, or the run is on the embedded base and that is.
    """
    content = folder.read_json(NAME, SHAPE)
    info = RunInfo(**{field.name: content[field.name] for field in fields(RunInfo) if field.name in content})
    return replace(info, base=loadable_name(info.base))
