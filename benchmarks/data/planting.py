"""A training set with a known truth: which rows are duplicates, which only look like it, and which are broken.

Three files: Alpaca rows to train on, a few conversations beside them (some faults need roles), and the user's own
held-out rows. All rows are different at first (seed_text.py). Then are planted, each from a row of its own:

    exact duplicates    as they are, in capitals, with other white space, with decomposed accents
    near-duplicates     a few words replaced, dropped or doubled: Jaccard similarity 0.8 to 1
    decoys              a few more words: 0.6 to 0.78, of a training row or of a held-out one; to be kept
    crossed             held-out rows again in the training file: exactly, nearly, or the question with another answer
    faults              faults.py
    repeated ids        on rows that are otherwise good; to be counted and kept
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from benchmarks.data.faults import ALPACA_FAULTS, CHAT_FAULTS, Fault, as_chat, as_line
from benchmarks.data.seed_text import AlpacaRow, Writer, folded, shingles_of
from qdora_fast.data.clean.similarity import jaccard

EXACT, NEAR, DECOYS, CROSSED, FAULTS, REPEATED_IDS = 0.04, 0.04, 0.02, 0.03, 0.04, 0.004
"""Shares of the training file."""
HELD_OUT = 0.06
"""Rows held out, as a share of the training file; half of them come back in it."""
CHATS = 0.01
"""Good conversations, likewise."""
NEAR_RANGE, DECOY_RANGE = (0.8, 0.995), (0.6, 0.78)
FEWEST_SHINGLES = 50
"""Of a row that is to be changed a little: in a shorter one a single word is already more than a fifth."""
TRIES = 40

TRAIN, CHAT, HELD = "train.jsonl", "chat.jsonl", "held_out.jsonl"

Place = tuple[str, int]
"""Name of a file, and the line from 1."""


@dataclass
class Planted:
    """What was planted where. Pairs are (place of the row, place of what was made of it)."""

    folder: Path
    contents: dict[Place, AlpacaRow] = field(default_factory=dict)
    """Question and answer of every row, those with faults left out."""
    pairs: dict[str, list[tuple[Place, Place]]] = field(default_factory=dict)
    """exact, near, decoys, and crossed: "held out, exact", "held out, near", "held out, prompt"."""
    faults: dict[Place, Fault] = field(default_factory=dict)
    repeated_ids: int = 0
    rows: int = 0
    """Of all files."""

    def place(self, text: str) -> Place:
        """A place as `prepare` names it, "/folder/train.jsonl:12"."""
        path, _, line = text.rpartition(":")
        return Path(path).name, int(line)


def plant(folder: Path, rows: int, writer: Writer) -> Planted:
    """Write the three files into `folder`, the training file with `rows` lines."""
    planted, rng = Planted(folder), writer.rng
    shares = {"exact": EXACT, "near": NEAR, "decoys": DECOYS, "crossed": CROSSED, "faults": FAULTS}
    count = {name: max(3, int(share * rows)) for name, share in shares.items()}
    held_rows, chat_rows = max(6, int(HELD_OUT * rows)), max(3, int(CHATS * rows))
    chat_faults = count["faults"] // 4
    good = rows - sum(count.values())
    spoiled = count["faults"] + chat_faults
    different = writer.different(good + held_rows + chat_rows + spoiled)
    for number, row in enumerate(different):
        row["id"] = number
    held, chats, broken, originals = _shares(different, [held_rows, chat_rows, spoiled])

    made = list(_made(planted, originals, held, count, writer))
    for number, (_, _, row) in enumerate(made, len(different)):
        row["id"] = number
    planted.repeated_ids = max(3, int(REPEATED_IDS * rows))
    for row in originals[-planted.repeated_ids :]:
        row["id"] = originals[0]["id"]
    entries: list[tuple[AlpacaRow, Fault | None]] = [(row, None) for row in (*originals, *(row for _, _, row in made))]
    entries += [(row, fault) for fault, row in zip(cycle(ALPACA_FAULTS), broken[chat_faults:], strict=False)]
    rng.shuffle(entries)
    conversations: list[tuple[AlpacaRow, Fault | None]] = [(row, None) for row in chats]
    conversations += [(row, fault) for fault, row in zip(cycle(CHAT_FAULTS), broken[:chat_faults], strict=False)]
    rng.shuffle(conversations)

    places = _write(planted, TRAIN, entries, writer)
    places |= _write(planted, HELD, [(row, None) for row in held], writer)
    _write(planted, CHAT, conversations, writer)
    for kind, original, row in made:
        planted.pairs.setdefault(kind, []).append((places[id(original)], places[id(row)]))
    planted.rows = len(planted.contents) + len(planted.faults)
    return planted


def altered(row: AlpacaRow, writer: Writer, low: float, high: float, *, question: bool) -> AlpacaRow | None:
    """The row with some words changed, so that its exact similarity lies from `low` to `high`; None if that fails.

    Args:
        question: change a word of the question, too.
    """
    before, rng = shingles_of(row), writer.rng
    if len(before) < FEWEST_SHINGLES:
        return None
    for _ in range(TRIES):
        aim = rng.uniform(low, high)
        words = max(1, round(len(before) * (1 - aim) / (1 + aim) / 5))
        changed = dict(row)
        if question:
            changed["instruction"] = _changed(row["instruction"], 1, writer)
            if folded(changed["instruction"]) == folded(row["instruction"]):
                continue
        if words > question:
            changed["output"] = _changed(row["output"], words - question, writer)
        if changed != row and low <= jaccard(before, shingles_of(changed)) <= high:
            return changed
    return None


def repeated(row: AlpacaRow, number: int, rng: random.Random) -> AlpacaRow:
    """The row again, in a form that says the same: in turn as it is, in capitals, spaced, decomposed."""
    copy = {name: row[name] for name in ("instruction", "output")}
    match number % 4:
        case 1:
            copy = {name: text.upper() if len(text.upper()) == len(text) else text for name, text in copy.items()}
        case 2:
            spaces = (" ", " ", "  ", "\u00a0", " \t")
            copy = {name: "".join(rng.choice(spaces) if c == " " else c for c in text) for name, text in copy.items()}
        case 3:
            copy = {name: unicodedata.normalize("NFD", text) for name, text in copy.items()}
    return copy


def _made(
    planted: Planted, originals: Sequence[AlpacaRow], held: Sequence[AlpacaRow], count: dict[str, int], writer: Writer
) -> Iterator[tuple[str, AlpacaRow, AlpacaRow]]:
    """(kind, row, what was made of it), each of a row of its own."""
    rng, unused = writer.rng, iter(originals)
    for number, row in enumerate(islice(unused, count["exact"])):
        yield "exact", row, repeated(row, number, rng)
    yield from _altered(unused, "near", count["near"], NEAR_RANGE, writer)
    held_unused = iter(held)
    yield from _altered(held_unused, "decoys", count["decoys"] // 3, DECOY_RANGE, writer, question=True)
    yield from _altered(unused, "decoys", count["decoys"] - count["decoys"] // 3, DECOY_RANGE, writer)
    third = count["crossed"] // 3
    yield from _altered(held_unused, "held out, near", third, NEAR_RANGE, writer, question=True)
    for number, row in enumerate(islice(held_unused, third)):
        yield "held out, exact", row, repeated(row, number, rng)
    for number, row in enumerate(islice(held_unused, count["crossed"] - 2 * third)):
        other = repeated(row, number, rng) | {"output": writer.row()["output"]}
        yield "held out, prompt", row, other


def _altered(
    unused: Iterator[AlpacaRow],
    kind: str,
    count: int,
    limits: tuple[float, float],
    writer: Writer,
    *,
    question: bool = False,
) -> Iterator[tuple[str, AlpacaRow, AlpacaRow]]:
    made = 0
    for row in unused:
        if made == count:
            return
        changed = altered(row, writer, *limits, question=question)
        if changed:
            made += 1
            yield kind, row, changed


def _changed(text: str, count: int, writer: Writer) -> str:
    """The text with `count` of its words replaced, dropped or doubled; never the first or the last one."""
    rng, words = writer.rng, text.split(" ")
    places = [place for place in range(1, len(words) - 1) if words[place].isalpha() and words[place].isascii()]
    for place in rng.sample(places, min(count, len(places))):
        other = rng.choice(rng.choice(writer.sentences).split()).strip(".,!?").lower()
        words[place] = rng.choice((other, f"{words[place]} {words[place]}", "", other))
    return " ".join(word for word in words if word)


def _shares(rows: Sequence[AlpacaRow], counts: Sequence[int]) -> Iterator[list[AlpacaRow]]:
    """The first rows in shares of these counts, and what is left."""
    rest = iter(rows)
    yield from [list(islice(rest, count)) for count in counts]
    yield list(rest)


def _write(
    planted: Planted, name: str, entries: Sequence[tuple[AlpacaRow, Fault | None]], writer: Writer
) -> dict[int, Place]:
    """Write a file; the place of each row by the identity of its object."""
    places: dict[int, Place] = {}
    with (planted.folder / name).open("wb") as file:
        for number, (row, fault) in enumerate(entries, 1):
            place = (name, number)
            places[id(row)] = place
            if fault:
                planted.faults[place] = fault
                file.write(fault.make(row, writer))
                continue
            planted.contents[place] = row
            file.write(as_line(as_chat(row) if name == CHAT else {"input": ""} | row))
    return places
