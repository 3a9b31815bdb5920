"""A plan as one HTML file: the verdict, the card filled by its parts, and the rest as text. No script, no network.

Colours carry no meaning that the table does not; both light and dark screens are served.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from qdora_fast.planning.memory import in_gib
from qdora_fast.planning.plan import GIB, Plan
from qdora_fast.planning.text import lines, verdict
from qdora_fast.system.charts import bar
from qdora_fast.system.redact import redact

_COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.card { display: flex; height: 3rem; border: 2px solid; border-radius: 4px; overflow: hidden; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
td { padding: .2rem .6rem; border-bottom: 1px solid #8884; } td.n { text-align: right; }
.key { display: inline-block; width: .9rem; height: .9rem; border-radius: 2px; vertical-align: -1px; }
pre { white-space: pre-wrap; } .no { color: #d33; } .yes { color: #2a2; }
"""


def write_page(plan: Plan, path: Path) -> Path:
    """Write the page; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(redact(page(plan)), encoding="utf-8")
    return path


def page(plan: Plan) -> str:
    """The page's HTML."""
    word = "yes" if plan.fits else "no"
    said = "\n".join(line for line in _words(plan))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Plan: {escape(plan.name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(plan.name)}</h1>"
        f'<p class="{word}"><strong>{escape(verdict(plan))}</strong></p>'
        f'<div class="card" role="img" aria-label="{escape(verdict(plan))}">{"".join(_bars(plan))}</div>'
        f"<table>{''.join(_rows(plan))}</table><pre>{escape(said)}</pre></body></html>\n"
    )


def _bars(plan: Plan) -> Iterator[str]:
    scale = max(plan.place.card.memory, plan.estimate.phases["step"])
    for number, part in enumerate(plan.estimate.parts):
        tip = escape(f"{part.name}: {in_gib(part.bytes)}")
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<div title="{tip}" style="width:{bar(part.bytes, scale):.4f}%;background:{colour}"></div>'


def _rows(plan: Plan) -> Iterator[str]:
    for number, part in enumerate(plan.estimate.parts):
        colour = _COLOURS[number % len(_COLOURS)]
        yield (
            f'<tr><td><span class="key" style="background:{colour}"></span> {escape(part.name)}</td>'
            f'<td class="n">{part.bytes / GIB:.2f} GiB</td><td>{escape(part.why)}</td></tr>'
        )


def _words(plan: Plan) -> Iterator[str]:
    """The plan's text without its verdict and its staircase, which are drawn."""
    for line in list(lines(plan))[1:]:
        if "▕" not in line and not line.startswith("A training step in"):
            yield line
