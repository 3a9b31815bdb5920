"""Which rows are held out: by a hash of their group's key, so that nothing of a group lies on both sides.

Rows with the same normalised prompt form a group, and so do those that a column of the user or a near-duplicate
ties together; groups move as a whole. A random row split of a set with repeated questions measures memory, not
learning. A group is held out when SHA-256(seed, key), read as a number from 0 to 1, lies below 1.25 times the share:

- The order of the rows does not matter, and neither do the other rows: what is held out stays held out when rows
  are added.
- The price is a share that varies. It is kept between the share and 1.5 times the share by taking more groups, in the
  order of the hash, or fewer. In sets of a few hundred rows these bounds are met often, and groups near them change
  sides when rows are added; from some thousand rows on hardly ever.
- A group too large for the upper bound is never held out. Sets made of few large groups can miss the lower one.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from qdora_fast.data.clean.groups import Components
from qdora_fast.data.read.messages import Row, prompt_of
from qdora_fast.system.errors import DataError

FEWEST_ROWS = 10
AIM = 1.25
"""Where the hash cuts, in shares."""
MOST = 1.5
"""The most that is held out, in shares."""
RANKS = 2**256

Key = str | bytes


def hold_out(
    groups: Sequence[Key] | np.ndarray, share: float, seed: int, *, strata: Sequence[str] | None = None
) -> np.ndarray:
    """For each row whether it is held out, bool [n]: `share` to 1.5 * `share` of them, at least one if `share` > 0.

    Args:
        groups: each row's group key; as an array, uint8 [n, bytes of a key].
        share: of the rows, 0 to 1.
        seed: other seeds, other groups.
        strata: each row's stratum; the share is then kept within every one. A group lies in the first, in the order
            of the alphabet, that one of its rows names. Strata of fewer than 10 rows are taken together as one; those
            that are a single group get none (see `strata_without`).

    Raises:
        DataError: `share` > 0 with fewer than 10 rows, or with one group for all rows.
    """
    keys: list[Key] = [row.tobytes() for row in groups] if isinstance(groups, np.ndarray) else list(groups)
    if share == 0:
        return np.zeros(len(keys), bool)
    if len(keys) < FEWEST_ROWS:
        raise DataError(
            f"{len(keys)} usable rows are too few to hold any out for evaluation; "
            f"give at least {FEWEST_ROWS}, or set data.held_out: 0 to train on all of them"
        )
    sizes = Counter(keys)
    if len(sizes) == 1:
        raise DataError(
            "all rows have the same prompt or group, so that none can be held out without being trained on; "
            "set data.held_out: 0, or check the prompt column and data.group"
        )
    ranks = {key: _rank(key, seed) for key in sizes}
    ranked = sorted(sizes, key=ranks.__getitem__)
    parts = [ranked] if strata is None else _by_stratum(ranked, keys, strata, sizes)
    chosen = {key for part in parts for key in _choose(part, sizes, ranks, share)}
    chosen = chosen or _choose(ranked, sizes, ranks, share)
    chosen = chosen or {min(ranked, key=sizes.__getitem__)}  # every group is too large: the smallest one
    return np.fromiter((key in chosen for key in keys), bool, len(keys))


def strata_without(held_out: np.ndarray, strata: Sequence[str]) -> list[str]:
    """The strata of which no row is held out, in the order of the alphabet; for the report."""
    return sorted(set(strata) - {stratum for stratum, held in zip(strata, held_out, strict=True) if held})


def merge_groups(
    prompts: Sequence[Key], columns: Sequence[str | None], links: Iterable[tuple[int, int]] = ()
) -> list[bytes]:
    """For each row the key of its group: rows with the same prompt, the same column value or a link are together.

    The key is the smallest column value of the group, else its smallest prompt: a conversation keeps its key, and so
    its side of the split, whatever rows it gains.

    Args:
        prompts: `group_key` of each row, or its hash.
        columns: the value of the user's `data.group` column; None or "": the row has none.
        links: pairs of row numbers.
    """
    components = Components(len(prompts))
    first: dict[tuple[bool, bytes], int] = {}
    keys: list[tuple[bool, bytes]] = []
    for number, (prompt, value) in enumerate(zip(prompts, columns, strict=True)):
        own = [(True, _bytes(prompt))] + ([(False, value.encode())] if value else [])
        for key in own:
            components.join(first.setdefault(key, number), number)
        keys.append(min(own))  # False before True: a column value goes before a prompt
    for one, other in links:
        components.join(one, other)
    labels = components.labels.tolist()
    smallest: dict[int, tuple[bool, bytes]] = {}
    for label, key in zip(labels, keys, strict=True):
        smallest[label] = min(key, smallest.get(label, key))
    return [smallest[label][1] for label in labels]


def group_key(row: Row) -> str:
    """What makes two rows the same question: all before the last answer (or the plain text), NFC, folded.

    Case and whitespace do not count; accents and vowel signs do (NFC, never NFKC).
    """
    if "text" in row:
        asked = row["text"]
    else:
        asked = "\n".join(f"{m['role']}: {m['content']}{_calls(m)}" for m in prompt_of(row["messages"]))
    return " ".join(unicodedata.normalize("NFC", asked).casefold().split())


def _calls(message: dict[str, object]) -> str:
    return json.dumps(message["tool_calls"], sort_keys=True) if "tool_calls" in message else ""


def _bytes(key: Key) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _rank(key: Key, seed: int) -> int:
    """0 to `RANKS`, evenly spread."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0".encode() + _bytes(key)).digest())


def _choose(ranked: Sequence[Key], sizes: Counter[Key], ranks: dict[Key, int], share: float) -> set[Key]:
    """Groups to hold out of those in `ranked`; none if all are too large."""
    rows = sum(sizes[key] for key in ranked)
    most = max(1, math.floor(round(MOST * share * rows, 6)))  # rounded: 0.1 * 30 is a little more than 3
    most = min(most, rows - 1)
    least = min(most, math.ceil(round(share * rows, 6)))
    chosen: set[Key] = set()
    taken = 0
    for key in ranked:
        if taken >= least and ranks[key] >= AIM * share * RANKS:
            break
        if taken + sizes[key] <= most:
            chosen.add(key)
            taken += sizes[key]
    return chosen


def _by_stratum(
    ranked: Sequence[Key], keys: Sequence[Key], strata: Sequence[str], sizes: Counter[Key]
) -> list[list[Key]]:
    """The groups of each stratum, in the order of `ranked`; those of the small strata together come last."""
    stratum_of: dict[Key, str] = {}
    for key, stratum in zip(keys, strata, strict=True):
        stratum_of[key] = min(stratum, stratum_of.get(key, stratum))
    rows = Counter[str]()
    for key, stratum in stratum_of.items():
        rows[stratum] += sizes[key]
    parts: dict[str | None, list[Key]] = {}
    for key in ranked:
        stratum = stratum_of[key]
        parts.setdefault(stratum if rows[stratum] >= FEWEST_ROWS else None, []).append(key)
    small = parts.pop(None, [])
    large_enough = sum(sizes[key] for key in small) >= FEWEST_ROWS
    return [*parts.values(), *([small] if large_enough else [])]
