"""Before a weight is read: does a run fit, how long does it take, how much disk does it need, which method suits it.

Reading order: cards.py (the card or machine), memory/ (what a run needs), rows.py (a glance at its rows), auto/
(numbers for `auto`), history.py (what earlier runs measured), advice.py (what to consider), plan.py (all of it
together), text.py and page.py (a plan for the terminal and as a page). recipes/plan.py puts them together.
"""
