"""From a path to rows: read, recognise, convert, check, split. No model and no tokenizer yet.

This is the first of two stages. It needs milliseconds per thousand rows, so that bad data fails before any
weight is read. The second stage, `render`, turns rows into token ids with the tokenizer of the model.

What is here is deliberately only what every run needs; filters that judge the quality of rows, and the removal
of duplicates, belong between conversion and split and are not part of this file.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.config import DataSettings
from qdora_fast.data.detection import Detection, choose_format
from qdora_fast.data.formats import Conversation, convert
from qdora_fast.data.messages import Row
from qdora_fast.data.readers import RawRow
from qdora_fast.data.rejects import Dropped, RejectedRow, Tally, bullet_list, total
from qdora_fast.data.sources import ReadReport, read_rows
from qdora_fast.data.split import group_key, hold_out
from qdora_fast.errors import DataError


@dataclass(frozen=True)
class PrepareReport:
    """What became of the rows. `rows_in` = `kept` + dropped; `kept` = `train` + `held_out`."""

    source: ReadReport
    format: Detection
    rows_in: int
    kept: int
    dropped: tuple[Dropped, ...]
    repairs: Mapping[str, int]
    """How often what was mended, by the codes of `messages.REPAIRS`."""
    train: int
    held_out: int
    prompts: int
    """Distinct normalised prompts among the kept rows; the groups of the split."""
    hash: str
    """SHA-256 over the contents of both sides: the same for the same rows in any order."""

    def as_json(self) -> dict[str, Any]:
        """The stable part, for `--json`: rows_in, kept, dropped {reason: n}, train, held_out, hash."""
        return {
            "rows_in": self.rows_in,
            "kept": self.kept,
            "dropped": {each.reason: each.count for each in self.dropped},
            "train": self.train,
            "held_out": self.held_out,
            "hash": self.hash,
        }


@dataclass(frozen=True)
class Prepared:
    """Rows to train on, rows never trained on, and how they came about. Both keep the order of the file."""

    train: list[Row]
    held_out: list[Row]
    report: PrepareReport


def prepare(settings: DataSettings, *, seed: int) -> Prepared:
    """Read the rows that `settings` describes, in one shape and split in two.

    Args:
        settings: the `data` section of a config.
        seed: decides which prompts are held out, nothing else.

    Raises:
        DataError: unreadable, of unknown format, mostly malformed, or too few to hold any out.
    """
    raw_rows, source = read_rows(
        settings.path, split=settings.split, config=settings.config, max_rows=settings.max_rows
    )
    detection = choose_format(raw_rows, settings)
    rows, dropped, repairs = _convert_all(raw_rows, detection)
    if total(dropped) * 2 > len(raw_rows):
        raise DataError(_mostly_malformed(settings.path, len(raw_rows), detection, dropped))

    is_held_out = hold_out(rows, settings.held_out, seed)
    train = [row for row, held in zip(rows, is_held_out, strict=True) if not held]
    held_out = [row for row, held in zip(rows, is_held_out, strict=True) if held]
    report = PrepareReport(
        source=source,
        format=detection,
        rows_in=len(raw_rows),
        kept=len(rows),
        dropped=dropped,
        repairs=repairs,
        train=len(train),
        held_out=len(held_out),
        prompts=len({group_key(row) for row in rows}),
        hash=_content_hash(train, held_out),
    )
    return Prepared(train, held_out, report)


def _convert_all(
    raw_rows: Sequence[RawRow], detection: Detection
) -> tuple[list[Row], tuple[Dropped, ...], dict[str, int]]:
    converter = detection.converter()
    tally, repairs, rows = Tally(), Counter[str](), list[Row]()
    for number, raw in enumerate(raw_rows, 1):
        try:
            conversation = convert(raw.row, converter)
        except RejectedRow as rejected:
            tally.add(rejected, raw.place)
            continue
        repairs.update(conversation.repairs)
        rows.append(_row(conversation, raw.place, number))
    return rows, tally.freeze(), dict(repairs)


def _row(conversation: Conversation, place: str, number: int) -> Row:
    content = {"messages": conversation.messages, "tools": conversation.tools, "text": conversation.text}
    canonical = unicodedata.normalize("NFC", json.dumps(content, sort_keys=True, ensure_ascii=False))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    row: Row = {
        "messages": conversation.messages,
        "tools": conversation.tools,
        "meta": {"source": place, "row": number, "hash": digest},
    }
    if conversation.text is not None:
        row["text"] = conversation.text
    return row


def _content_hash(train: Sequence[Row], held_out: Sequence[Row]) -> str:
    sides = ("\n".join(sorted(row["meta"]["hash"] for row in side)) for side in (train, held_out))
    return hashlib.sha256("\n\nheld out\n".join(sides).encode()).hexdigest()


def _mostly_malformed(path: str, rows_in: int, detection: Detection, dropped: tuple[Dropped, ...]) -> str:
    return (
        f"{path}: {total(dropped)} of {rows_in} rows cannot be used as `{detection.name}` ({detection.why}):\n"
        f"{bullet_list(dropped)}\nRepair these rows, or choose another data.format or data.columns."
    )
