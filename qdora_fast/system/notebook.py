"""What a notebook shows: cards of results, and bars that move, by IPython's display alone.

No package is needed for it, ipywidgets least of all: a display with an id is replaced when there is something new, at
most about twice a second. The HTML is of the templates of the pages (`pages.py`), in which all foreign text is escaped;
its style applies below its own class only, because a notebook is somebody else's page.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import Progress, TaskID

from qdora_fast.system.charts import Series, line_chart
from qdora_fast.system.pages import TEMPLATES, render

SECONDS = 0.5
"""Between two drawings."""


def card(
    title: str,
    headline: str = "",
    *,
    state: str = "",
    figures: Sequence[tuple[str, str]] = (),
    charts: Sequence[Mapping[str, Any]] = (),
    columns: Sequence[str] = (),
    table: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    file: object = "",
) -> str:
    """A result as HTML for a notebook.

    Args:
        headline: what decides, in a sentence.
        state: good, warn, bad or open: its colour; "": none.
        figures: value and what it means.
        charts: of `charts.line_chart`, with `name` and `unit`.
        columns, table: heads of the columns, and rows; the first value of a row is its name.
        notes: sentences.
        file: where all of it can be read.
    """
    return render(
        "notebook.html.j2",
        TEMPLATES,
        title=title,
        headline=headline,
        state=state,
        figures=figures,
        charts=charts,
        columns=columns,
        table=table,
        notes=notes,
        file=str(file),
    )


class NotebookProgress(Progress):
    """A progress bar in a notebook, with curves below it if a task has the field `curves`, a
    function that gives `charts.Series`.

    Args:
        stays: it remains when it is done; else it leaves nothing behind.
    """

    def __init__(self, *, stays: bool = False) -> None:
        super().__init__(disable=True)
        self._stays = stays
        self._handle: Any = None
        self._drawn = 0.0

    def start(self) -> None:
        """Nothing is shown before there is a task."""

    def stop(self) -> None:
        """Show the end, or nothing any more."""
        if self._handle is not None:
            self._show(self._content() if self._stays else {"text/html": "", "text/plain": ""})
            self._handle = None

    def update(self, task_id: TaskID, **how: Any) -> None:
        """As rich's."""
        super().update(task_id, **how)
        self._draw()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich's."""
        super().advance(task_id, advance)
        self._draw()

    def _draw(self) -> None:
        if time.monotonic() - self._drawn >= SECONDS:
            self._show(self._content())
            self._drawn = time.monotonic()

    def _show(self, content: dict[str, str]) -> None:
        if self._handle is None:
            from IPython.display import display

            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def _content(self) -> dict[str, str]:
        """All tasks, as HTML and as text."""
        shown = [
            {
                "name": task.description,
                "share": task.completed / task.total if task.total else None,
                "count": f"{task.completed:,.0f}/{task.total:,.0f}" if task.total else "",
                "message": str(task.fields.get("message") or ""),
                "chart": _chart(task.fields["curves"]()) if "curves" in task.fields else None,
            }
            for task in self.tasks
        ]
        text = "\n".join(f"{each['name']} {each['count']} {each['message']}" for each in shown)
        return {"text/html": render("notebook_progress.html.j2", TEMPLATES, tasks=shown), "text/plain": text}


def _chart(curves: Sequence[Series]) -> dict[str, Any] | None:
    if max((len(each.points) for each in curves), default=0) < 2:
        return None
    return line_chart(curves, logarithmic=True)
