"""Which rows are held out: by a hash of the prompt, so that no prompt lies on both sides.

Rows with the same normalised prompt form a group, and groups move as a whole; a random row split
of a set with repeated questions measures memory, not learning. Groups are ranked by
SHA-256(seed, prompt) and taken in that order while they fit into the wanted number of rows.

- The order of the rows does not matter.
- With prompts that occur once the share is exact. Otherwise a group that would overshoot is passed over,
  so that the share is missed by less than the smallest group passed over.
- Adding rows leaves most of the held-out rows held out, since the ranks of old prompts do not move;
  only groups near the cut change sides. A threshold on the hash would be stable without exception,
  but gives 3 rows or 17 when 10 were asked for.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence

from qdora_fast.data.messages import Row, prompt_of
from qdora_fast.errors import DataError

FEWEST_ROWS = 10


def hold_out(rows: Sequence[Row], share: float, seed: int) -> list[bool]:
    """For each row whether it is held out; about `share` of them, at least one when `share` > 0.

    Raises:
        DataError: `share` > 0 with fewer than 10 rows, or with one prompt for all rows.
    """
    if share == 0:
        return [False] * len(rows)
    if len(rows) < FEWEST_ROWS:
        raise DataError(
            f"{len(rows)} usable rows are too few to hold any out for evaluation; "
            f"give at least {FEWEST_ROWS}, or set data.held_out: 0 to train on all of them"
        )
    keys = [group_key(row) for row in rows]
    sizes = Counter(keys)
    if len(sizes) == 1:
        raise DataError(
            "all rows have the same prompt, so that none can be held out without being trained on; "
            "set data.held_out: 0, or check the prompt column"
        )
    chosen = _choose_groups(sizes, max(1, round(share * len(rows))), seed)
    return [key in chosen for key in keys]


def group_key(row: Row) -> str:
    """What makes two rows the same question: all before the last answer (or the plain text), NFC, folded.

    Case and whitespace do not count; accents and vowel signs do (NFC, never NFKC).
    """
    if "text" in row:
        said = row["text"]
    else:
        said = "\n".join(f"{m['role']}: {m['content']}{_calls(m)}" for m in prompt_of(row["messages"]))
    return " ".join(unicodedata.normalize("NFC", said).casefold().split())


def _calls(message: dict[str, object]) -> str:
    return json.dumps(message["tool_calls"], sort_keys=True) if "tool_calls" in message else ""


def _choose_groups(sizes: Counter[str], target: int, seed: int) -> set[str]:
    ranked = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    chosen: set[str] = set()
    taken = 0
    for key in ranked:
        if taken + sizes[key] <= target:
            chosen.add(key)
            taken += sizes[key]
    return chosen or {min(ranked, key=lambda key: sizes[key])}  # every group is too large: the smallest one
