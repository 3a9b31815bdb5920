"""A trained run in a format that others can load: one function for each format, and the table of formats.

A format that would be wrong for the run is refused. Files are built beside their final folder and checked before they
move there; what is checked is the business of the format's module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qdora_fast.config import Config
from qdora_fast.config.recorded import read_config
from qdora_fast.evaluation.report.card import public_config
from qdora_fast.exports.adapter import export_adapter
from qdora_fast.exports.gguf.export import export_gguf
from qdora_fast.exports.merged import FOUR_BIT, FOUR_BIT_COST, SIXTEEN_BIT, export_merged_4bit, export_merged_16bit
from qdora_fast.exports.report import ExportReport
from qdora_fast.recipes.evaluate import write_report
from qdora_fast.recipes.report import trained_model
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.system.run_lock import locked


class Format(NamedTuple):
    """How a run gets into one format."""

    write: Callable[..., dict[str, Any]]
    """(folder, config, *, out, overwrite, **options) -> the report."""
    options: tuple[str, ...] = ()
    """What it can be told beyond where to write."""
    writes_in_run: bool = False
    """It does so even when `out` lies elsewhere."""
    cost: str | None = None
    """What it gives up, to be confirmed by whoever asks for it on a command line."""


def _merged_16bit(folder: RunFolder, config: Config, *, merge_base: str | None = None, **to: Any) -> dict[str, Any]:
    """`merge_base`: None: the run's own setting."""
    trained = trained_model(folder, config)
    return export_merged_16bit(folder, trained, merge_base=merge_base or config.export.merge_base, **to)


def _merged_4bit(folder: RunFolder, config: Config, **to: Any) -> dict[str, Any]:
    return export_merged_4bit(folder, trained_model(folder, config), merge_base=config.export.merge_base, **to)


def _gguf(folder: RunFolder, config: Config, *, merge_base: str | None = None, **to: Any) -> dict[str, Any]:
    """`merge_base`: None: the run's own setting."""
    trained = trained_model(folder, config)
    return export_gguf(folder, trained, merge_base=merge_base or config.export.merge_base, **to)


def _adapter(folder: RunFolder, config: Config, **to: Any) -> dict[str, Any]:
    return export_adapter(folder, config.adapter, public_config(config.model_dump(mode="json")), **to)


FORMATS = {
    SIXTEEN_BIT: Format(_merged_16bit, ("merge_base",)),
    FOUR_BIT: Format(_merged_4bit, cost=FOUR_BIT_COST),
    "gguf": Format(_gguf, ("merge_base", "llama_cpp", "gguf_type"), writes_in_run=True),
    "adapter": Format(_adapter),
    "lora": Format(partial(_adapter, to="lora")),
}


def export(
    run: str | Path | RunFolder,
    *,
    to: str = "merged_16bit",
    out: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ExportReport:
    """Export a finished run.

    Args:
        run: its folder.
        to: a key of FORMATS; `lora` is refused for DoRA runs.
        out: folder to write; None: inside the run.
        overwrite: replace an existing folder.
        **options: merge_base (merged_16bit, gguf): auto, original16 or dequant4; llama_cpp and gguf_type (gguf): see
            `export_gguf`.

    Returns:
        The report, a dictionary: format, path and what the format says of itself (for merged_16bit what export.json
        holds).

    Raises:
        ConfigError: an unknown format, or an option that it does not have.
        RunLocked: another process works in the run's folder.
        QdoraError: see the format's module.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    config = read_config(folder)
    asked = {name: value for name, value in options.items() if value is not None}
    chosen = _format(to, asked)
    target = Path(out) if out else None
    alone = locked(folder.path) if chosen.writes_in_run or not target else nullcontext()
    with alone:  # no other process writes to the run meanwhile
        report = chosen.write(folder, config, out=target, overwrite=overwrite, **asked)
        if not target:
            write_report(folder)  # the run's report and model cards tell of it
    return ExportReport(report)


def _format(to: str, options: dict[str, Any]) -> Format:
    if to not in FORMATS:
        raise ConfigError(f"--to {to}: unknown format; choose one of {', '.join(FORMATS)}")
    for name in options:
        if name not in FORMATS[to].options:
            takers = [other for other, each in FORMATS.items() if name in each.options]
            owners = f"it belongs to {' and '.join(takers)}" if takers else "no format has it"
            raise ConfigError(f"--{name.replace('_', '-')} means nothing for --to {to}: {owners}")
    return FORMATS[to]
