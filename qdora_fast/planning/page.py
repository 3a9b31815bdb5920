"""A plan as one HTML file: the verdict, the card filled by its parts, and the rest as text.

The page stands alone (see pages.py). Colours carry no meaning that the table does not. Nothing is computed here but the
share of the card that each part takes.
"""

from __future__ import annotations

from pathlib import Path

from qdora_fast.planning.cards import GIB
from qdora_fast.planning.plan import Plan
from qdora_fast.planning.text import lines, verdict
from qdora_fast.system.notebook import card
from qdora_fast.system.pages import render

TEMPLATES = "planning/page_templates"


def write_page(plan: Plan, path: Path) -> Path:
    """Write the page and return its path; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(plan), encoding="utf-8")
    return path


def page(plan: Plan) -> str:
    """The page's HTML."""
    scale = max(plan.machine.card.memory, plan.estimate.phases["step"])
    parts = [
        {"name": part.name, "why": part.why, "size": f"{part.bytes / GIB:.2f} GiB", "share": part.bytes / scale}
        for part in plan.estimate.parts
    ]
    return render(
        "plan.html.j2",
        TEMPLATES,
        plan=plan,
        verdict=verdict(plan),
        parts=parts,
        details="\n".join(_details(plan)).strip(),
    )


def plan_card(plan: Plan) -> str:
    """The plan in short, for a notebook: the verdict, what fills the card, and what to consider."""
    return card(
        f"Plan of {plan.name}",
        verdict(plan),
        state="good" if plan.fits else "bad",
        columns=("a training step", "GiB", "what it is"),
        table=[(part.name, f"{part.bytes / GIB:.2f}", part.why) for part in plan.estimate.parts],
        notes=[*filter(None, [plan.limited]), *plan.resolved.reasons, *map(str, plan.advice)],
    )


def _details(plan: Plan) -> list[str]:
    """The plan's text without its verdict and its staircase, which the page draws."""
    text = list(lines(plan))[1:]
    return [line for line in text if "▕" not in line and not line.startswith("A training step in")]
