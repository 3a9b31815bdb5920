"""All groups, in the order of the table."""

from __future__ import annotations

from faults import configs, damage, disk, foreign, grid, hostile, kills, locks, memory, numbers, signalled
from faults.trial import Group

GROUPS: tuple[Group, ...] = (
    *kills.GROUPS,
    *signalled.GROUPS,
    *disk.GROUPS,
    *damage.GROUPS,
    *foreign.GROUPS,
    *numbers.GROUPS,
    *memory.GROUPS,
    *locks.GROUPS,
    *grid.GROUPS,
    *configs.GROUPS,
    *hostile.GROUPS,
)
