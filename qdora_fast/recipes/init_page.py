"""The page of `qdora-fast init --html`: four questions, and the config and the command that answer them.

One file without a server, for people who would rather choose than type: rows, card, base, and what a right answer is.
The script in it fills in what stands in a table of presets and cards that is made here; it reads nothing, sends nothing
and starts nothing. The page never knows the rows: `init` on the command line looks at them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.config import presets
from qdora_fast.config.metrics import METRICS
from qdora_fast.config.yaml import read_yaml
from qdora_fast.planning.cards import MEMORY_MIB, Card
from qdora_fast.planning.memory.fit import margin
from qdora_fast.planning.plan import Plan
from qdora_fast.recipes.plan import preset_plans
from qdora_fast.system import console
from qdora_fast.system.pages import embedded, render

TEMPLATES = "planning/page_templates"


def write_page(path: Path) -> Path:
    """Write the page and return its path; missing folders are made."""
    with console.status("planning every preset"):
        plans = preset_plans()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(plans), encoding="utf-8")
    console.line("wrote", f"{path}; open it in a browser")
    return path


def page(plans: list[Plan]) -> str:
    """The page's HTML, with the estimated memory of these plans."""
    cards = [
        {"name": name, "bytes": mib * 2**20, "free": mib * 2**20 - margin(Card(name, mib * 2**20))}
        for name, mib in sorted(MEMORY_MIB.items(), key=lambda item: (item[1], item[0]))
    ]
    known = {"presets": [_preset(plan) for plan in plans], "cards": cards}
    answers = [info for info in METRICS.values() if not info.needs]
    return render("init.html.j2", TEMPLATES, known=embedded(known), answers=answers)


def _preset(plan: Plan) -> dict[str, Any]:
    tree = read_yaml(presets.find_config(plan.name))[0]
    settings = {section: values for section, values in tree.items() if section != "data"}
    return {
        "name": plan.name,
        "base": plan.model.name,
        "method": plan.adapter.method,
        "peak": plan.estimate.peak_bytes,
        "licence": plan.facts.licence,
        "settings": settings,
    }
