"""What the evaluation found, and what people said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qdora_fast.show.console import bar, line, short

ANSWERS_SHOWN = 3


def evaluation(console: Console, found: dict[str, Any], answered: Any) -> None:
    """The verdict, what it rests on, and a few answers side by side."""
    task, loss, mmlu = found["task"], found["heldout_loss"], found["mmlu"]
    console.print()
    if task:
        console.print(f"held-out answers ({task['metric']}): {task['words']}", style="bold", markup=False)
        for name, other in task["more"].items():
            console.print(f"  {name}: {other['words']}", markup=False)
        for side in ("base", "tuned"):
            if task["truncated"][side] > 0.05 or task["empty"][side] > 0.05:
                console.print(
                    f"  {side}: {task['truncated'][side]:.0%} of the answers were cut at "
                    f"{task['decoding']['max_new_tokens']} tokens, {task['empty'][side]:.0%} are empty",
                    markup=False,
                )
    if loss:
        low, high = loss["ci95"]
        console.print(
            f"held-out loss: base {loss['base']:.4f}, tuned {loss['tuned']:.4f} "
            f"(difference {loss['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f})"
        )
    if mmlu:
        console.print(f"MMLU: {mmlu['words']}", style="bold" if mmlu["status"] != "ok" else None, markup=False)
    replies = zip(answered.questions, answered.replies.base, answered.replies.tuned, strict=True)
    for question, base, tuned in islice(replies, ANSWERS_SHOWN):
        console.print()
        for label, text in (
            ("question", question.shown),
            ("expected", question.reference),
            ("base", base.text),
            ("tuned", tuned.text),
        ):
            console.print(f"  {label:<9} {short(text)}", markup=False)


def review_recorded(console: Console, found: dict[str, Any], path: Path) -> None:
    """A person's verdict on the completions."""
    line(console, "review", f"{found['reviewer']}: {found['verdict']}; recorded in {path}")


def evaluations(entries: Sequence[dict[str, Any]]) -> None:
    """The evaluations of several runs as a table on standard output."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "when", "data", "method", "metric", "base", "tuned", "95% of gain", "loss", "MMLU", "review"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        task, loss, mmlu = entry["task"] or {}, entry["heldout_loss"] or {}, entry["mmlu"] or {}
        interval = " to ".join(f"{100 * end:+.1f}" for end in task.get("ci95") or ())
        table.add_row(
            entry["run"],
            str(entry["at"])[:16].replace("T", " "),
            entry["dataset"]["hash"][:8],
            entry["training"]["method"],
            task.get("metric", "-"),
            f"{task['base']:.1%}" if task else "-",
            f"{task['tuned']:.1%}" if task else "-",
            interval or "-",
            f"{loss['base']:.3f} → {loss['tuned']:.3f}" if loss else "-",
            f"{mmlu['delta_points']:+.1f} ({mmlu['status']})" if mmlu else "-",
            entry["review"]["verdict"] if entry["review"] else "pending",
        )
    Console(highlight=False, width=None if Console().is_terminal else 160).print(table)


@contextmanager
def answering(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over generated answers."""
    with bar(console) as progress:
        task = progress.add_task("answering held-out questions, base and tuned", total=total, said="")
        yield lambda count: progress.advance(task, count)


@contextmanager
def asking_benchmark(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over a benchmark's requests."""
    with bar(console) as progress:
        task = progress.add_task("asking benchmark questions, base and tuned", total=None, said="")
        yield lambda done, total: progress.update(task, completed=done, total=total)
