"""`qdora-fast plan`: does it fit, how long, how much disk, which method, before a weight is read.

rows.py glances at the rows; plan.py is the recipe, text.py and picture.py say it, recipes/plan.py
is what the command calls.
"""

from qdora_fast.planning.picture import write_page
from qdora_fast.planning.plan import Plan, choose_place, make_plan, preset_plans
from qdora_fast.planning.text import lines, preset_table, verdict, what_to_do

__all__ = [
    "Plan",
    "choose_place",
    "lines",
    "make_plan",
    "preset_plans",
    "preset_table",
    "verdict",
    "what_to_do",
    "write_page",
]
