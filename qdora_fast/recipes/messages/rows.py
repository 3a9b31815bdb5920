"""What became of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from qdora_fast.show.console import bar, line, visible


def preflight(console: Console, ready: Any) -> None:
    """What was read, what became of it, and two rows as the model will see them."""
    from qdora_fast.data import format_preflight, previews

    prepared, rendering = ready.prepared, ready.rendering
    shown = map(_harmless, previews(prepared.train, prepared.scored_examples, rendering.tokenizer))
    page = format_preflight(prepared.report, rendering.template, shown, colour=console.is_terminal)
    console.out(page, highlight=False)


def _harmless(row: Any) -> Any:
    pieces = tuple((visible(text), trained) for text, trained in row.pieces)
    return replace(row, place=visible(row.place), pieces=pieces)


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
    line(console, "review", f"{review.sentence()}; recorded in {log}")


def tokenizer_differs(console: Console) -> None:
    """The loader changed the tokenizer, so the rows are prepared again with what the model will use."""
    line(console, "data", "the loaded model's tokenizer gives other tokens; preparing the rows again with it")


@contextmanager
def counting_rows(console: Console, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar over rows; without a total it only counts."""
    with bar(console) as progress:
        task = progress.add_task(what, total=total, said="")
        done = [0]

        def on_rows(count: int) -> None:
            done[0] += count
            progress.update(task, completed=done[0], said=f"{done[0]:,} rows")

        yield on_rows
