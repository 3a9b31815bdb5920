"""A run from its config to its export, as it happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from qdora_fast.back_off import Note
from qdora_fast.config import AdapterSettings
from qdora_fast.errors import QdoraError, first_line
from qdora_fast.resume import Start
from qdora_fast.run_folder import RunFolder
from qdora_fast.show.console import bar, line, listed

STEPS_SAID = 8
"""Numbers of steps that one line names."""


def chosen(console: Console, path: Path, why: str | None) -> None:
    """Which config, and why that one."""
    line(console, "config", f"{path}" + (f" ({why})" if why else ""))


def started(console: Console, folder: RunFolder, start: Start) -> None:
    """Where the run's files go, and where it begins."""
    line(console, "run", f"{folder.path}" + (f", going on from {start.checkpoint.name}" if start.checkpoint else ""))
    for said in start.said:
        line(console, "", said)


def note(console: Console, said: str) -> None:
    """Something that happened on the way."""
    line(console, "note", said)


def own_code(console: Console, name: str, files: Sequence[str], *, runs: bool) -> None:
    """Python files that came with the base: whether they are run; nothing where there are none."""
    if files and runs:
        line(console, "warning", f"running code that came with {name}: {', '.join(files)}")
    elif files:
        line(console, "base", f"{', '.join(files)} came with it and is not run; Transformers has classes for it")


def code_elsewhere(console: Console, paths: Sequence[str]) -> None:
    """Code that the run has no copy of; nothing where there is none."""
    for path in paths:
        line(
            console,
            "code",
            f"{path} is not copied into the run; going on with the run and evaluating it need it there, unchanged",
        )


def settled(console: Console, found: Any) -> None:
    """What `auto` became, and why."""
    listed(console, "auto", filter(None, (*found.said, found.peak)))


def adapter(console: Console, settings: AdapterSettings, targets: Any, model: Any) -> None:
    """What is trained."""
    from qdora_fast.model import parameter_report

    scale = "alpha/sqrt(r)" if settings.rslora else "alpha/r"
    base = "4-bit NF4 base" if settings.quantized else "16-bit base"
    kind = "DoRA" if settings.decomposed else "LoRA"
    line(console, "adapter", f"{settings.method}: {kind} r={settings.r} alpha={settings.alpha:g} ({scale}) on a {base}")
    line(console, "", targets.said)
    line(console, "", str(parameter_report(model)))


def engine(console: Console, report: Any) -> None:
    """How adapted layers are computed, and what was left to PEFT."""
    listed(console, "engine", report.lines())


def engine_afterwards(console: Console, model: Any) -> None:
    """What changed while training: layer calls that PEFT's forward took, and memory that was given back."""
    from qdora_fast.engine.patch import fallbacks, residency

    for why, calls in fallbacks(model).items():
        line(console, "engine", f"{calls} layer calls ran PEFT's own forward: {why}")
    kept = residency(model)
    if kept is not None and kept.given_up:
        line(console, "engine", f"gave its kept weights back: {kept.given_up}; the run was slower from there on")


def recipe(console: Console, lines: Sequence[str]) -> None:
    """What the training will do."""
    listed(console, "train", lines)


def probed(console: Console, found: Any) -> None:
    """What the longest batch takes, tried before step 1."""
    listed(console, "memory", found.said())


def trained(console: Console, state: Any, notes: Sequence[Note]) -> None:
    """Where training ended, and what happened on the way."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    best = f", best {min(losses):.4f}" if losses else ""
    last = f"; held-out loss {losses[-1]:.4f}{best}" if losses else ""
    line(console, "trained", f"{state.global_step} steps{last}")
    for kind in dict.fromkeys(each.kind for each in notes):
        alike = [each for each in notes if each.kind == kind]
        steps = list(dict.fromkeys(str(each.step) for each in alike))
        numbers = f"step{'s' * (len(steps) > 1)} {', '.join(steps[:STEPS_SAID])}{' …' * (len(steps) > STEPS_SAID)}"
        all_of_them = f" (the last of {len(alike)} notes; all are in metrics.jsonl)" if len(alike) > 1 else ""
        line(console, "", f"{numbers}: {alike[-1].said}{all_of_them}")


def dry_run(console: Console, targets: Any) -> None:
    """What a real run would adapt; said in place of training."""
    line(console, "adapter", targets.said)
    line(console, "dry run", "everything checked; no weights were read and nothing was written")


_MERGED_INTO = {"original16": "the 16-bit base", "dequant4": "the 4-bit weights that training saw"}


def exported(console: Console, report: dict[str, Any]) -> None:
    """The proof, check by check."""
    proof = report.get("proof")
    for check in proof["checks"] if proof else []:
        mark = "[green]passed[/]" if check["passed"] else "[red]FAILED[/]"
        line(console, "", f"{mark} {escape(check['words'])}", markup=True)
    if proof and "words" in proof:
        line(console, "", proof["words"])
    if proof and "distance" in proof:
        line(console, "distance", proof["distance"]["words"])
    if report.get("merge_base_reason"):
        line(console, "merged", f"into {_MERGED_INTO[report['merge_base']]}: {report['merge_base_reason']}")
    for warning in proof.get("warnings", ()) if proof else ():
        line(console, "", f"[yellow]warning[/] {escape(warning)}", markup=True)
    size = f", {report['bytes'] / 2**20:,.0f} MiB" if report.get("bytes") else ""
    line(console, "exported", f"{report['format']} to {report['path']}{size}")


def not_evaluated(console: Console, folder: RunFolder, error: Exception) -> None:
    """The evaluation ended with an error, and the run goes on."""
    said = str(error) if isinstance(error, QdoraError) else first_line(error)
    line(console, "warning", f"the model is not evaluated: {said}")
    line(console, "", f"the run goes on to its export; later: qdora-fast evaluate {folder.path}")


def finished(console: Console, folder: RunFolder) -> None:
    """Where everything is, and what to do next."""
    merged, completions = folder.path / "merged_16bit", folder.evaluation / "completions.html"
    console.print()
    if merged.is_dir():
        console.print(f"merged model  {merged}  (load it with AutoModelForCausalLM)", markup=False)
    console.print(f"adapter       {folder.adapter}", markup=False)
    console.print(f"report        {folder.path / 'report.html'}", markup=False)
    if completions.is_file():
        then = f"(mark them, save, then: qdora-fast review {folder.path} FILE)"
        console.print(f"read answers  {completions}  {then}", markup=False)
    console.print(f"try it        qdora-fast chat {folder.path}", markup=False)


def presets(console: Console, *, schema: bool) -> None:
    """The shipped configs as a table, or the config schema as JSON on standard output."""
    from qdora_fast import config_file, hardware
    from qdora_fast import presets as shipped
    from qdora_fast.errors import ConfigError

    if schema:
        print(json.dumps(config_file.json_schema(), indent=2, ensure_ascii=False))
        return
    for preset in shipped.list_presets():
        print(f"{preset.name:<24} {preset.about}\n{'':<24} card: {preset.card}")
    try:
        path, why = shipped.choose_preset(hardware.gpus())
        console.print(f"\nHere `qdora-fast train` takes {path.stem}: {why}.", markup=False)
    except ConfigError as error:
        console.print(f"\n{error}", markup=False)


@contextmanager
def writing(console: Console, total: int, what: str = "merging") -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes written."""
    with bar(console) as progress:
        task = progress.add_task(what, total=total, said="")
        yield lambda count: progress.advance(task, count)
