"""What a run tells its user, all in one place: one line a decision, warnings where they matter.

Only this module and the command line print. Modules return what they decided and why; here
it becomes text. Nothing is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qdora_fast.config import AdapterSettings, Config
from qdora_fast.run_folder import RunFolder


def new_console() -> Console:
    """Progress and decisions go to standard error, so that standard output stays for results."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def json_line(content: Any) -> str:
    """One JSON object on one line."""
    return json.dumps(content, ensure_ascii=False)


def chosen(console: Console, path: Path, why: str | None) -> None:
    """Which config, and why that one."""
    _line(console, "config", f"{path}" + (f" ({why})" if why else ""))


def started(console: Console, folder: RunFolder, checkpoint: Path | None) -> None:
    """Where the run's files go."""
    _line(console, "run", f"{folder.path}" + (f", resumed from {checkpoint.name}" if checkpoint else ""))


def preflight(console: Console, ready: Any) -> None:
    """What was read, what became of it, and two rows as the model will see them."""
    from qdora_fast.data import format_preflight, previews

    prepared, rendering = ready.prepared, ready.rendering
    shown = previews(prepared.train, prepared.scored_examples, rendering.tokenizer)
    page = format_preflight(prepared.report, rendering.template, shown, colour=console.is_terminal)
    console.out(page, highlight=False)


def quality(console: Console, ready: Any) -> None:
    """What the reference model said about the training rows; nothing where it was not asked."""
    from qdora_fast.data.preflight import format_quality

    if ready.prepared.report.quality:
        console.out(format_quality(ready.prepared.report.quality), highlight=False)


def prepared_data(console: Console, folder: Path, review: Any | None) -> None:
    """Where the prepared rows are, and what to do with them."""
    console.print()
    console.print(f"report        {folder / 'report.html'}", markup=False)
    console.print(f"read a sample {folder / 'review.html'}  (mark with the keys g and b, then save)", markup=False)
    if review is not None:
        console.print(f"review        {review.sentence()}", markup=False)


def reviewed(console: Console, review: Any, log: Path) -> None:
    """What a person found in the sample."""
    _line(console, "review", f"{review.sentence()}; recorded in {log}")


def tokenizer_differs(console: Console) -> None:
    """The loader changed the tokenizer, so the rows are prepared again with what the model will use."""
    _line(console, "data", "the loaded model's tokenizer gives other tokens; preparing the rows again with it")


def adapter(console: Console, settings: AdapterSettings, targets: Any, model: Any) -> None:
    """What is trained."""
    from qdora_fast.model import parameter_report

    scale = "alpha/sqrt(r)" if settings.rslora else "alpha/r"
    base = "4-bit NF4 base" if settings.quantized else "16-bit base"
    kind = "DoRA" if settings.decomposed else "LoRA"
    _line(
        console, "adapter", f"{settings.method}: {kind} r={settings.r} alpha={settings.alpha:g} ({scale}) on a {base}"
    )
    _line(console, "", targets.said)
    _line(console, "", str(parameter_report(model)))


def engine(console: Console, report: Any) -> None:
    """How adapted layers are computed, and what was left to PEFT."""
    for number, line in enumerate(report.lines()):
        _line(console, "" if number else "engine", line)


def engine_afterwards(console: Console, model: Any) -> None:
    """What changed while training: layer calls that PEFT's forward took, and memory that was given back."""
    from qdora_fast.engine.patch import fallbacks, residency

    for why, calls in fallbacks(model).items():
        _line(console, "engine", f"{calls} layer calls ran PEFT's own forward: {why}")
    kept = residency(model)
    if kept is not None and kept.given_up:
        _line(console, "engine", f"gave its kept weights back: {kept.given_up}; the run was slower from there on")


def recipe(console: Console, lines: Sequence[str]) -> None:
    """What the training will do."""
    for number, line in enumerate(lines):
        _line(console, "" if number else "train", line)


def trained(console: Console, state: Any) -> None:
    """Where training ended."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    best = f", best {min(losses):.4f}" if losses else ""
    last = f"; held-out loss {losses[-1]:.4f}{best}" if losses else ""
    _line(console, "trained", f"{state.global_step} steps{last}")


def dry_run(console: Console, targets: Any) -> None:
    """What a real run would adapt; said in place of training."""
    _line(console, "adapter", targets.said)
    _line(console, "dry run", "everything checked; no weights were read and nothing was written")


def exported(console: Console, report: dict[str, Any]) -> None:
    """The proof, check by check."""
    proof = report.get("proof")
    for check in proof["checks"] if proof else []:
        mark = "[green]passed[/]" if check["passed"] else "[red]FAILED[/]"
        _line(console, "", f"{mark} {escape(check['words'])}", markup=True)
    size = f", {report['bytes'] / 2**20:,.0f} MiB" if report.get("bytes") else ""
    _line(console, "exported", f"{report['format']} to {report['path']}{size}")


def finished(console: Console, folder: RunFolder, config: Config, comparison: Any | None) -> None:
    """Base against tuned, some answers side by side, and what to do next."""
    if comparison is not None:
        _comparison(console, comparison, config.evaluation.completions)
    merged = folder.path / "merged_16bit"
    console.print()
    if merged.is_dir():
        console.print(f"merged model  {merged}  (load it with AutoModelForCausalLM)", markup=False)
    console.print(f"adapter       {folder.adapter}", markup=False)
    console.print(f"try it        qdora-fast chat {folder.path}", markup=False)


@contextmanager
def demo_base(console: Console) -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar that appears only if the embedded base has to be pretrained."""
    with _bar(console) as progress:
        tasks: list[Any] = []

        def on_step(step: int, total: int, loss: float) -> None:
            if not tasks:
                _line(console, "base", "pretraining the embedded base; this happens once and is kept in the cache")
                tasks.append(progress.add_task("pretraining", total=total, said=""))
            progress.update(tasks[0], completed=step, said=f"loss {loss:.3f}")

        yield on_step


@contextmanager
def counting_rows(console: Console, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar over rows; without a total it only counts."""
    with _bar(console) as progress:
        task = progress.add_task(what, total=total, said="")
        done = [0]

        def on_rows(count: int) -> None:
            done[0] += count
            progress.update(task, completed=done[0], said=f"{done[0]:,} rows")

        yield on_rows


@contextmanager
def answering(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over generated answers."""
    with _bar(console) as progress:
        task = progress.add_task("answering held-out questions, base and tuned", total=total, said="")
        yield lambda count: progress.advance(task, count)


@contextmanager
def writing(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes written."""
    with _bar(console) as progress:
        task = progress.add_task("merging", total=total, said="")
        yield lambda count: progress.advance(task, count)


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


def _comparison(console: Console, comparison: Any, completions: int) -> None:
    console.print()
    if comparison.base_accuracy is not None:
        figures = f"base {comparison.base_accuracy:.1%}, tuned {comparison.tuned_accuracy:.1%}"
        console.print(f"held-out accuracy (exact match, {len(comparison.answers)} rows): {figures}", style="bold")
    console.print(f"held-out loss: base {comparison.base_loss:.4f}, tuned {comparison.tuned_loss:.4f}")
    for answer in comparison.answers[:completions]:
        console.print()
        for label, text in (
            ("question", answer.question),
            ("expected", answer.reference),
            ("base", answer.base),
            ("tuned", answer.tuned),
        ):
            console.print(f"  {label:<9} {_short(text)}", markup=False)


def _short(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _line(console: Console, label: str, text: str, *, markup: bool = False) -> None:
    console.print(f"{label.capitalize():<9} {text}", markup=markup)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=24), TimeRemainingColumn(compact=True))
    return Progress(
        *columns, TextColumn("{task.fields[said]}"), console=console, transient=True, disable=not console.is_terminal
    )
