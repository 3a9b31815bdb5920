"""What `prepare` made of planted rows, held against the truth; and the gate that decides whether speed is told.

Places say which row became what. The texts are those that were planted, not those that came out, and similarity is
found by the exact join of near_pairs.py, so that nothing is believed that is to be checked.

A pair is found if not both of its rows are left. Pairs of which a row fell to a filter never reached the search; real
text can have such faults without being asked. They are counted, and left out of the recall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.data.near_pairs import near_pairs
from benchmarks.data.planting import HELD, Place, Planted
from benchmarks.data.seed_text import folded, shingles_of
from qdora_fast.data.clean.similarity import jaccard

SIMILAR = 0.8
NEAR_RECALL, NEAR_PRECISION = 0.95, 0.99
SEARCHED = ("exact_duplicate", "near_duplicate", "in_held_out")
"""Reasons of rows that reached the search for duplicates."""
PAIRS = ("exact", "near", "held out, exact", "held out, near", "held out, prompt")


@dataclass(frozen=True)
class Outcome:
    """What became of the rows, by place."""

    train: frozenset[Place]
    held_out: frozenset[Place]
    reasons: Mapping[Place, str]
    """Of the rows that were dropped."""
    kept_for: Mapping[Place, Place]
    """The row that stays for a near-duplicate."""


def outcome(planted: Planted, result: Mapping[str, Any]) -> Outcome:
    """The result of data_arm.py in terms of places."""
    near = [
        (member["place"], each["kept"])
        for each in result["duplicates"]
        for member in each["members"]
        if member["kind"] == "near"
    ]
    return Outcome(
        train=frozenset(map(planted.place, result["train"])),
        held_out=frozenset(map(planted.place, result["held_out"])),
        reasons={planted.place(each["place"]): each["reason"] for each in result["rejected"]},
        kept_for={planted.place(one): planted.place(other) for one, other in near},
    )


def grade(planted: Planted, result: Mapping[str, Any]) -> dict[str, Any]:
    """Recall and precision of all that was planted, what is left on both sides of the split, and the gate."""
    found = outcome(planted, result)
    report = result["report"]
    graded: dict[str, Any] = {
        "pairs": {kind: _recall(planted.pairs[kind], found) for kind in PAIRS},
        "decoys": {"planted": len(planted.pairs["decoys"]), "kept": _decoys_kept(planted, found)},
        "near": _near_precision(planted, found),
        "exact": _exact_precision(planted, found),
        "faults": _faults(planted, found),
        "unplanted": dict(_unplanted(planted, found)),
        "duplicate_ids": {"planted": planted.repeated_ids, "found": result["duplicate_ids"]},
        "accounted": {
            "rows": planted.rows,
            "rows_in": report["rows_in"],
            "kept": report["kept"],
            "dropped": sum(report["dropped"].values()),
            "named": len(found.train) + len(found.held_out) + len(found.reasons),
        },
        "left": _left(planted, found),
    }
    return graded | {"gate": gate(graded)}


def gate(graded: Mapping[str, Any]) -> dict[str, Any]:
    """Whether speed may be told: {"passed", "red": what is wrong}."""
    pairs, counted, left = graded["pairs"], graded["accounted"], graded["left"]
    red = []
    for kind in ("exact", "held out, exact", "held out, prompt"):
        if pairs[kind]["recall"] < 1:
            red.append(f"{kind}: {pairs[kind]['recall']:.2%} found, not all")
    for kind in ("near", "held out, near"):
        if pairs[kind]["recall"] < NEAR_RECALL:
            red.append(f"{kind}: {pairs[kind]['recall']:.2%} found, less than {NEAR_RECALL:.0%}")
    for kind in ("exact", "near"):
        if graded[kind]["precision"] < NEAR_PRECISION:
            red.append(f"{kind}: {graded[kind]['precision']:.2%} of the dropped rows are duplicates")
    contaminated = sum(left[kind] for kind in ("held out, exact", "held out, near", "held out, prompt"))
    if contaminated:
        red.append(f"{contaminated} held-out rows have their like in training: {left}")
    numbers = {counted["rows"], counted["rows_in"], counted["kept"] + counted["dropped"], counted["named"]}
    if len(numbers) > 1:
        red.append(f"rows are lost: {counted}")
    return {"passed": not red, "red": red}


def grade_marks(planted: Planted, marked: Sequence[str]) -> dict[str, Any]:
    """Recall and precision of rows that were marked as like an earlier one; for the baseline.

    Pairs with the same question only are no duplicates, and not asked for.
    """
    marks = set(map(planted.place, marked))
    kinds = PAIRS[:-1]
    recall = {
        kind: _share(sum(bool(marks & set(pair)) for pair in planted.pairs[kind]), len(planted.pairs[kind]))
        for kind in kinds
    }
    true = {place for kind in kinds for pair in planted.pairs[kind] for place in pair}
    return {"recall": recall, "marked": len(marks), "precision": _share(len(marks & true), len(marks))}


def _recall(pairs: Sequence[tuple[Place, Place]], found: Outcome) -> dict[str, Any]:
    reached = [pair for pair in pairs if all(found.reasons.get(place, SEARCHED[0]) in SEARCHED for place in pair)]
    caught = sum(any(place in found.reasons for place in pair) for pair in reached)
    return {"planted": len(pairs), "reached": len(reached), "found": caught, "recall": _share(caught, len(reached))}


def _decoys_kept(planted: Planted, found: Outcome) -> int:
    """Decoys that no search for duplicates took; those that fell to a filter count as well."""
    return sum(not any(found.reasons.get(place) in SEARCHED for place in pair) for pair in planted.pairs["decoys"])


def _near_precision(planted: Planted, found: Outcome) -> dict[str, Any]:
    """Of the rows dropped as near-duplicates, those that are, by the exact similarity of what was planted."""
    dropped = [place for place, reason in found.reasons.items() if reason == "near_duplicate"]
    right = 0
    for place in dropped:
        kept = planted.contents.get(found.kept_for.get(place, place))
        own = planted.contents.get(place)
        right += bool(own and kept and own is not kept and jaccard(shingles_of(own), shingles_of(kept)) >= SIMILAR)
    return {"dropped": len(dropped), "right": right, "precision": _share(right, len(dropped))}


def _exact_precision(planted: Planted, found: Outcome) -> dict[str, Any]:
    dropped = [place for place, reason in found.reasons.items() if reason == "exact_duplicate"]
    true = {place for pair in planted.pairs["exact"] for place in pair}
    right = sum(place in true for place in dropped)
    return {"dropped": len(dropped), "right": right, "precision": _share(right, len(dropped))}


def _faults(planted: Planted, found: Outcome) -> dict[str, dict[str, Any]]:
    """By fault: how many were planted, found for their reason, dropped for another one (which), or kept."""
    kinds: dict[str, dict[str, Any]] = {}
    for place, fault in planted.faults.items():
        each = kinds.setdefault(fault.name, {"reason": fault.reason, "planted": 0, "found": 0, "kept": 0, "others": {}})
        reason = found.reasons.get(place)
        each["planted"] += 1
        each["found"] += reason == fault.reason
        each["kept"] += reason is None
        if reason not in (fault.reason, None):
            each["others"][reason] = each["others"].get(reason, 0) + 1
    return kinds


def _unplanted(planted: Planted, found: Outcome) -> Counter[str]:
    """Rows dropped that nothing was planted in, by reason."""
    pairs = {place for kind in PAIRS for pair in planted.pairs[kind] for place in pair}
    searched = (place for place in found.reasons if place not in planted.faults)
    return Counter(
        found.reasons[place] for place in searched if place not in pairs or found.reasons[place] not in SEARCHED
    )


def _left(planted: Planted, found: Outcome) -> dict[str, int]:
    """Pairs that are left: across the split (by text, by question, nearly) and among training rows (nearly)."""
    train, held = ([place for place in side if place in planted.contents] for side in (found.train, found.held_out))
    texts, questions = set[str](), set[str]()
    for place in held:
        row = planted.contents[place]
        questions.add(folded(row["instruction"]))
        texts.add(folded(f"{row['instruction']}\n{row['output']}"))
    rows = [planted.contents[place] for place in train]
    sides = [*train, *held]
    pairs = near_pairs([shingles_of(planted.contents[place]) for place in sides], SIMILAR)
    near = [(sides[one], sides[other]) for one, other, _ in pairs]
    across = [pair for pair in near if (pair[0][0] == HELD) != (pair[1][0] == HELD)]
    within = [pair for pair in near if all(place[0] != HELD for place in pair)]
    return {
        "held out, exact": sum(folded(f"{row['instruction']}\n{row['output']}") in texts for row in rows),
        "held out, prompt": sum(folded(row["instruction"]) in questions for row in rows),
        "held out, near": len(across),
        "near": len(within),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
