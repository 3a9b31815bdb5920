"""What recipes tell their user: one line a decision, warnings where they matter. Nothing is decided here.

Reports that have sentences of their own (the plan, the proof, the engine) are printed by `console.line` and
`console.lines` where they are made; here is what belongs to a recipe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from qdora_fast.config import AdapterSettings, Config
from qdora_fast.config.metrics import METRICS
from qdora_fast.evaluation.report.before_after import kind_of
from qdora_fast.planning.auto.kinds import Resolved
from qdora_fast.recipes.resume import Start
from qdora_fast.system import console
from qdora_fast.system.errors import QdoraError, first_line
from qdora_fast.system.json_files import read_object
from qdora_fast.system.paths import typed
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.system.terminal import Terminal
from qdora_fast.training.oom import Note

STEPS_NAMED = 8
"""Numbers of steps that one line names."""
ANSWERS_SHOWN = 3
"""Answers of an evaluation that are shown in the terminal."""


def chosen(path: Path, why: str | None) -> None:
    """Which config, and why that one."""
    console.line("config", f"{path}" + (f" ({why})" if why else ""))


def started(folder: RunFolder, start: Start) -> None:
    """Where the run's files go, and where it begins."""
    console.line("run", f"{folder.path}" + (f", resuming from {start.checkpoint.name}" if start.checkpoint else ""))
    for message in start.messages:
        console.line("", message)


def own_code(name: str, files: Sequence[str], *, runs: bool) -> None:
    """Python files that came with the base: whether they are run; nothing where there are none."""
    if files and runs:
        console.line("warning", f"running code that came with {name}: {', '.join(files)}")
    elif files:
        console.line("base", f"{', '.join(files)} came with {name} and is not run: Transformers knows this model")


def code_elsewhere(paths: Sequence[str]) -> None:
    """Code that the run has no copy of; nothing where there is none."""
    for path in paths:
        console.line(
            "code",
            f"{path} is not copied into the run; to resume or evaluate the run it must still be there, unchanged",
        )


def resolved(report: Resolved) -> None:
    """What `auto` became, and why."""
    console.lines("auto", report.lines())


def length_limited(asked: int, limit: int) -> None:
    """That `model.max_length` is more than the base was made for, where no row is that long."""
    console.line(
        "length", f"rows of up to {limit:,} tokens, which the base was made for, instead of {asked:,}: none is longer"
    )


def adapter(settings: AdapterSettings, targets: Any, model: Any) -> None:
    """What is trained."""
    from qdora_fast.models.loading import parameter_report

    scale = "alpha/sqrt(r)" if settings.rslora else "alpha/r"
    base = "4-bit NF4 base" if settings.quantized else "16-bit base"
    kind = "DoRA" if settings.decomposed else "LoRA"
    console.line("adapter", f"{settings.method}: {kind} r={settings.r} alpha={settings.alpha:g} ({scale}) on a {base}")
    console.line("", targets.summary)
    console.line("", str(parameter_report(model)))


def trained_tokens(base: Any) -> None:
    """Which rows of the embeddings learn, and which of them are new."""
    names = base.tokenizer.convert_ids_to_tokens(list(base.tokens))
    if base.tokens:
        numbered = zip(names, base.tokens, strict=True)
        console.line("", "rows of tokens: " + ", ".join(f"{name!r} ({number})" for name, number in numbered))
    if base.new_tokens:
        new = ", ".join(map(repr, base.tokenizer.convert_ids_to_tokens(list(base.new_tokens))))
        console.line("", f"new to the tokenizer, added as special tokens, from the mean of all rows on: {new}")


def engine(report: Any) -> None:
    """How adapted layers are computed, and what was left to PEFT."""
    console.lines("engine", report.lines())


def engine_afterwards(model: Any) -> None:
    """What changed while training: layer calls that PEFT's forward took, and memory that was given back."""
    from qdora_fast.engine.patch import fallbacks, residency

    for why, calls in fallbacks(model).items():
        console.line("engine", f"{calls} layer calls ran PEFT's own forward: {why}")
    cached = residency(model)
    if cached is not None and cached.given_up:
        console.line("engine", f"released its cached merged weights: {cached.given_up}; steps were slower from then on")


def recipe(lines: Sequence[str]) -> None:
    """What the training will do."""
    console.lines("train", lines)


def probed(report: Any) -> None:
    """What the longest batch takes, tried before step 1."""
    console.lines("memory", report.summary())


def trained(state: Any, notes: Sequence[Note]) -> None:
    """Where training ended, and what happened on the way."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    best = f", best {min(losses):.4f}" if losses else ""
    last = f"; held-out loss {losses[-1]:.4f}{best}" if losses else ""
    console.line("trained", f"{state.global_step} steps{last}")
    for kind in dict.fromkeys(each.kind for each in notes):
        alike = [each for each in notes if each.kind == kind]
        steps = list(dict.fromkeys(str(each.step) for each in alike))
        numbers = f"step{'s' * (len(steps) > 1)} {', '.join(steps[:STEPS_NAMED])}{' …' * (len(steps) > STEPS_NAMED)}"
        all_of_them = f" (the last of {len(alike)} notes; all are in metrics.jsonl)" if len(alike) > 1 else ""
        console.line("", f"{numbers}: {alike[-1].message}{all_of_them}")


def dry_run(targets: Any) -> None:
    """What a real run would adapt; printed in place of training."""
    console.line("adapter", targets.summary)
    console.line("dry run", "all checks passed; no weights were read and nothing was written")


def not_evaluated(folder: RunFolder, error: Exception) -> None:
    """The evaluation ended with an error, and the run continues."""
    why = str(error) if isinstance(error, QdoraError) else first_line(error)
    console.line("warning", f"the model is not evaluated: {why}")
    console.line("", f"the run continues with its export; evaluate it later: qdora-fast evaluate {typed(folder.path)}")


def finished(folder: RunFolder) -> None:
    """Where everything is, and what to do next."""
    merged, completions = folder.path / "merged_16bit", folder.evaluation / "completions.html"
    console.print()
    if (merged / "config.json").is_file():
        published: Any = read_object(merged / "config.json").get("architectures") or ["ForCausalLM"]
        opener = "AutoModelForCausalLM" if "ForCausalLM" in published[0] else published[0]
        console.print(f"merged model  {merged}  (load it with {opener})")
    console.print(f"adapter       {folder.adapter}")
    console.print(f"report        {folder.path / 'report.html'}")
    if completions.is_file():
        then = f"(mark them, save, then: qdora-fast review {typed(folder.path)} FILE)"
        console.print(f"read answers  {completions}  {then}")
    console.print(f"try it        qdora-fast chat {typed(folder.path)}")


def presets(*, schema: bool) -> None:
    """The shipped configs as a table, or the config schema as JSON on standard output."""
    from qdora_fast.config import loader
    from qdora_fast.config import presets as shipped
    from qdora_fast.system import hardware
    from qdora_fast.system.errors import ConfigError

    if schema:
        print(json.dumps(loader.json_schema(), indent=2, ensure_ascii=False))
        return
    for preset in shipped.list_presets():
        print(f"{preset.name:<24} {preset.about}\n{'':<24} card: {preset.card}")
    try:
        path, why = shipped.choose_preset(hardware.gpus())
        console.print(f"\nHere `qdora-fast train` takes {path.stem}: {why}.")
    except ConfigError as error:
        console.print(f"\n{error}")


def preflight(ready: Any) -> None:
    """What was read, what became of it, and two rows as the model will see them."""
    from qdora_fast.data import format_preflight, previews

    prepared, rendering = ready.prepared, ready.rendering
    shown = previews(prepared.train, prepared.scored_examples, rendering.tokenizer)
    page = format_preflight(prepared.report, rendering.template, shown, colour=console.is_terminal())
    console.page(page)


def quality(ready: Any) -> None:
    """What the reference model said about the training rows; nothing where it was not asked."""
    from qdora_fast.data.report.preflight import format_quality

    if ready.prepared.report.quality:
        console.page(format_quality(ready.prepared.report.quality))


def prepared_data(folder: Path, review: Any | None) -> None:
    """Where the prepared rows are, and what to do with them."""
    console.print()
    console.print(f"report        {folder / 'report.html'}")
    console.print(f"read a sample {folder / 'review.html'}  (mark with the keys g and b, then save)")
    if review is not None:
        console.print(f"review        {review.sentence()}")


def reviewed(review: Any, log: Path) -> None:
    """What a person found in the sample."""
    console.line("review", f"{review.sentence()}; recorded in {log}")


def tokenizer_differs() -> None:
    """The loader changed the tokenizer, so the rows are prepared again with what the model will use."""
    console.line("data", "the loaded model's tokenizer gives other tokens; preparing the rows again with it")


def evaluation_time(lines: Sequence[str]) -> None:
    """How long the evaluation will take, and whether held-out losses take more than their share."""
    console.lines("compare", lines)


def asking(asked: Any) -> None:
    """By what the held-out answers are judged and why, and how long they may be."""
    chosen = asked.chosen
    settings = chosen.settings
    beside = f"; {', '.join(settings.more_metrics)} beside it" if settings.more_metrics else ""
    why = f": {chosen.why}" if chosen.why else ""
    console.line("metric", f"{settings.metric}{why}{beside}")
    written = min(len(asked.questions), chosen.written)
    tokens = f"{chosen.new_tokens:,} tokens at most" + (f" ({chosen.tokens_why})" if chosen.tokens_why else "")
    if settings.metric == "choice":
        console.line("", f"base and tuned choose on {written:,} rows")
    elif written < asked.rows or (settings.metric in METRICS and METRICS[settings.metric].kind == "loss"):
        them = "they" if written == asked.rows else f"{written:,} of them"
        also = f"; {them} are answered as well, in {tokens}" if written else ""
        console.line("", f"base and tuned read {asked.rows:,} rows{also}")
    elif written:
        console.line("", f"base and tuned answer {written:,} rows in {tokens}")


def evaluation(record: dict[str, Any], answered: Any) -> None:
    """The verdict, what it rests on, and a few answers side by side."""
    task, loss, mmlu = record["task"], record["heldout_loss"], record["mmlu"]
    console.print()
    if task:
        what = "references" if kind_of(task) == "loss" else "answers"
        console.print(f"held-out {what} ({task['metric']}): {task['words']}", style="bold", markup=False)
        for name, other in task["more"].items():
            console.print(f"  {name}: {other['words']}", markup=False)
        for side in ("base", "tuned"):
            if task["truncated"][side] > 0.05 or task["empty"][side] > 0.05:
                console.print(
                    f"  {side}: {task['truncated'][side]:.0%} of the answers were cut at "
                    f"{task['decoding']['max_new_tokens']} tokens, {task['empty'][side]:.0%} are empty",
                    markup=False,
                )
            if share := task.get("in_thought", {}).get(side):
                console.print(
                    f"  {side}: {share:.0%} of the answers ended within their reasoning, and count as none; "
                    "evaluation.max_new_tokens gives them more room",
                    markup=False,
                )
    if loss and not (task and kind_of(task) == "loss"):  # else it was told
        interval = ", 95% interval {:+.4f} to {:+.4f}".format(*loss["ci95"]) if loss["ci95"] else ""
        console.print(
            f"held-out loss: base {loss['base']:.4f}, tuned {loss['tuned']:.4f} "
            f"(difference {loss['difference']:+.4f}{interval})"
        )
    if mmlu:
        console.print(f"MMLU: {mmlu['words']}", style="bold" if mmlu["status"] != "ok" else None, markup=False)
    for name, found in (record.get("benchmarks") or {}).items():
        interval = ", 95 % CI {:+.3f} to {:+.3f}".format(*found["ci95"]) if found["ci95"] else ""
        change = f"{found['base']:.3f} to {found['tuned']:.3f} ({found['delta']:+.3f}{interval})"
        console.print(f"{name} ({found['metric']}, {found['n']:,} questions): {change}", markup=False)
    replies = zip(answered.questions, answered.replies.base, answered.replies.tuned, strict=True)
    for question, base, tuned in islice(replies, ANSWERS_SHOWN):
        console.print()
        for label, text in (
            ("question", question.shown),
            ("expected", question.reference),
            ("base", base.text),
            ("tuned", tuned.text),
        ):
            console.print(f"  {label:<9} {console.short(text)}", markup=False)


def review_recorded(review: dict[str, Any], path: Path) -> None:
    """A person's verdict on the completions."""
    console.line("review", f"{review['reviewer']}: {review['verdict']}; recorded in {path}")


def evaluations(entries: Sequence[dict[str, Any]]) -> None:
    """The evaluations of several runs as a table on standard output."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "when", "data", "method", "metric", "base", "tuned", "95% of gain", "loss", "MMLU", "review"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        task, loss, mmlu = entry["task"] or {}, entry["heldout_loss"] or {}, entry["mmlu"] or {}
        share = kind_of(task) == "rate"  # else a score or a loss, whose digits are no per cent
        form, scale, signed = (".1%", 100, "+.1f") if share else (".3f", 1, "+.3f")
        bounds = [scale * end for end in task.get("ci95") or ()]
        if kind_of(task) == "loss":  # less is a gain
            bounds = [-end for end in reversed(bounds)]
        interval = " to ".join(f"{end:{signed}}" for end in bounds)
        table.add_row(
            entry["run"],
            str(entry["at"])[:16].replace("T", " "),
            entry["dataset"]["hash"][:8],
            entry["training"]["method"],
            task.get("metric", "-"),
            format(task["base"], form) if task else "-",
            format(task["tuned"], form) if task else "-",
            interval or "-",
            f"{loss['base']:.3f} → {loss['tuned']:.3f}" if loss else "-",
            f"{mmlu['delta_points']:+.1f} ({mmlu['status']})" if mmlu else "-",
            entry["review"]["verdict"] if entry["review"] else "pending",
        )
    Terminal(width=None if Terminal().is_terminal else 160).print(table)


@contextmanager
def answering(total: int, side: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the answers that one model writes, with its speed; `side`: which model, for the user."""
    with _counting(f"answers, {side}", total) as on_done:
        yield on_done


@contextmanager
def reading(total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the held-out rows that both models read."""
    with _counting("held-out loss, base and tuned", total) as on_done:
        yield on_done


@contextmanager
def _counting(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Rows done, tokens/s and the time that is left."""
    with console.progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[message]}"),
    ) as progress:
        task, tokens, begun = progress.add_task(what, total=total, message=""), 0, monotonic()

        def on_done(rows: int, more_tokens: int) -> None:
            nonlocal tokens
            tokens += more_tokens
            speed = tokens / max(1e-9, monotonic() - begun)
            progress.update(task, advance=rows, message=f"{speed:,.0f} tok/s" if tokens else "")

        yield on_done


@contextmanager
def asking_benchmark() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over a benchmark's requests."""
    with console.progress() as progress:
        task = progress.add_task("asking benchmark questions, base and tuned", total=None, message="")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def adapter_found(adapter: Any, config: Config) -> None:
    """Method, rank, layers, base."""
    kind = "DoRA, each layer with A, B and magnitude" if adapter.use_dora else "LoRA, each layer with A and B"
    scale = "alpha/sqrt(r)" if config.adapter.rslora else "alpha/r"
    console.line("adapter", f"{kind}: r={adapter.r} alpha={adapter.alpha:g} ({scale})")
    leaves = Counter(name.rsplit(".", 1)[-1] for name in adapter.modules)
    console.line("layers", f"{len(adapter.modules)}: {', '.join(f'{name} × {n}' for name, n in leaves.items())}")
    ranks = Counter(module.lora_a.shape[0] for module in adapter.modules.values())
    if len(ranks) > 1:
        console.line("", f"of ranks {', '.join(f'{rank} (× {n})' for rank, n in sorted(ranks.items()))}")
    if adapter.saved_modules:
        console.line("", f"and, trained in full: {', '.join(adapter.saved_modules)}")
    for name, tokens in adapter.tokens.items():
        console.line("", f"and rows of {len(tokens.ids)} tokens of {name}")
    console.line("base", config.model.name)


def adapter_fits(shapes_compared: bool, *, guess: str | None) -> None:
    """What was compared with the base; `guess`: the method that was assumed."""
    if shapes_compared:
        console.line("", "the shapes of all layers match the base's weights")
    else:
        console.line("", "the base's weights are not on this machine: layers were compared by name, not by shape")
    if guess:
        bits, other = ("4", guess.removeprefix("q")) if guess.startswith("q") else ("16", f"q{guess}")
        console.line(
            "method",
            f"{guess}: it seems to have been trained on the base in {bits} bits; if not, import it again "
            f"with --set adapter.method={other}",
        )


def adapter_imported(report: dict[str, Any]) -> None:
    """Template, rows, and what to do next."""
    assumed = ": assumed, as none came with the adapter; --set data.template=FILE.jinja names another"
    console.line("template", report["template"] + (assumed if report["template_assumed"] else ""))
    given = f"{report['rows']} to prove exports on and to evaluate"
    console.line(
        "rows",
        given if report["rows"] else "none: exports are proven on general prompts; --data FILE gives rows",
    )
    console.line("run", report["path"])
    console.print(f"\ntry it        qdora-fast chat {typed(report['path'])}")
    console.print(f"deploy it     qdora-fast export {typed(report['path'])}")
