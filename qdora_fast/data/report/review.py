"""A person reads a sample: which rows are shown, and what the saved marks say about all the others.

Fifty rows read with care find what no filter looks for. The sample is a random 5 % of the rows, at least 25 and
at most 50, in an order given by SHA-256(seed, row): the same rows whatever their order in the file, and no row is
likelier than another. `pages.review_page` shows it and saves the marks as JSON:

    {"kind": "qdora_fast.review", "version": 1, "dataset": version hash, "reviewer": name, "finished": ISO 8601 time,
     "rows": [{"hash": row hash, "verdict": "good" | "bad" | null, "note": text}]}

`read_review` takes such a file only for the version of the data that was read, since a review of other rows proves
nothing. It never drops a row: what to do about a bad one is the person's decision.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qdora_fast.data.read.messages import Row
from qdora_fast.system.errors import DataError
from qdora_fast.system.json_files import NotJson, parse_json, read_limited

SHARE, FEWEST, MOST = 0.05, 25, 50
CONFIDENCE = 0.95
KIND, VERSION = "qdora_fast.review", 1
VERDICTS = ("good", "bad")
SHORT_HASH = 12


def sample(rows: Sequence[Row], *, seed: int) -> list[int]:
    """Indices of the rows to read, in the order to show them; rows with the same content count once."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row["meta"]["hash"], index)
    ranked = sorted(first, key=lambda each: hashlib.sha256(f"review\0{seed}\0{each}".encode()).digest())
    return [first[each] for each in ranked[: _sample_size(len(ranked))]]


@dataclass(frozen=True)
class ReviewResult:
    """What a person found in the sample. Counts are rows."""

    file: str
    sha256: str
    """Of the file's bytes."""
    dataset: str
    reviewer: str
    finished: str
    """When it was saved, as ISO 8601."""
    good: int
    bad: int
    unmarked: int
    bad_rows: tuple[tuple[str, str], ...]
    """Row hash and note of each bad row, in the order of the file."""

    @property
    def upper_bound(self) -> float:
        """With 95 % confidence at most this share of all rows is bad.

        The exact one-sided bound of Clopper and Pearson for marked rows out of a set without end, so that it is on
        the safe side for small sets. Unmarked rows do not count: those passed over should not be the hard ones.
        """
        from scipy.stats import beta

        return float(beta.ppf(CONFIDENCE, self.bad + 1, self.good)) if self.good else 1.0

    def sentence(self) -> str:
        """The finding in one line, the bound rounded up."""
        marked = self.good + self.bad
        bound = math.ceil(1000 * self.upper_bound) / 10
        return (
            f"{self.reviewer} marked {marked} of {marked + self.unmarked} rows: {self.good} good, {self.bad} bad; "
            f"with {100 * CONFIDENCE:.0f} % confidence at most {bound:g} % of the rows are bad"
        )

    def as_json(self) -> dict[str, Any]:
        """For the evaluation log and the data report."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "dataset": self.dataset,
            "reviewer": self.reviewer,
            "finished": self.finished,
            "good": self.good,
            "bad": self.bad,
            "unmarked": self.unmarked,
            "upper_bound": self.upper_bound,
            "confidence": CONFIDENCE,
            "bad_rows": [{"hash": row, "note": note} for row, note in self.bad_rows],
            "sentence": self.sentence(),
        }


def read_review(path: Path, *, dataset: str, hashes: Collection[str]) -> ReviewResult:
    """Read what the review page saved, and check that it is about these rows.

    Args:
        path: the saved JSON file.
        dataset: version hash of the data as it is now.
        hashes: row hashes of the sample, or of all rows that it was drawn from.

    Raises:
        DataError: the file cannot be read, is no review, is one of other data, or holds no mark.
    """
    raw, saved = load_saved(path)
    if saved.get("kind") != KIND or saved.get("version") != VERSION:
        raise DataError(f"{path}: not a review of version {VERSION}; save one with the button of the review page")
    _check_dataset(path, saved.get("dataset"), dataset)
    reviewer = one_line(saved.get("reviewer"))
    if not reviewer:
        raise DataError(f"{path}: `reviewer` is empty; a review needs the name of the person who read the rows")
    finished = finishing_time(path, saved.get("finished"))
    verdicts, notes = read_marks(path, saved.get("rows"), noun="row", name="hash", mark="verdict", marks=VERDICTS)
    _check_rows(path, verdicts, frozenset(hashes))
    good, bad = (list(verdicts.values()).count(verdict) for verdict in VERDICTS)
    if good + bad == 0:
        raise DataError(f"{path}: no row is marked good or bad; open the review page, read, mark, and save again")
    return ReviewResult(
        file=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
        dataset=dataset,
        reviewer=reviewer,
        finished=finished,
        good=good,
        bad=bad,
        unmarked=len(verdicts) - good - bad,
        bad_rows=tuple((row, notes[row]) for row, verdict in verdicts.items() if verdict == "bad"),
    )


def _sample_size(rows: int) -> int:
    return min(rows, MOST, max(FEWEST, round(SHARE * rows)))


def load_saved(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes and the object of a file that one of our pages saved.

    Raises:
        DataError: it cannot be read, or holds no JSON object.
    """
    try:
        raw = read_limited(path)
        saved = parse_json(raw)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the file that the review page saved"
        ) from error
    except NotJson as error:
        raise DataError(f"{path}: {error}; save the review again from its page") from error
    if not isinstance(saved, dict):
        raise DataError(f"{path}: holds no review; give the file that the review page saved")
    return raw, saved


def _check_dataset(path: Path, reviewed: object, dataset: str) -> None:
    if not isinstance(reviewed, str) or not reviewed:
        raise DataError(f"{path}: does not say which version of the data was read; save it again from its page")
    if reviewed != dataset:
        raise DataError(
            f"{path}: this review is of version {short(reviewed)}, the data is now {short(dataset)}; "
            "make a new sample and read that, or go back to the files and settings of the reviewed version"
        )


def read_marks(
    path: Path, rows: object, *, noun: str, name: str, mark: str, marks: Sequence[str]
) -> tuple[dict[str, str | None], dict[str, str]]:
    """Mark and note of each row that a page saved, by the row's name, in the order of the file.

    Args:
        noun: what a row is called in messages.
        name, mark: the keys of its name and its mark.
        marks: those there are; null stands for none.

    Raises:
        DataError: it is not what a page saves.
    """
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: `rows` is not a list of marked {noun}s; save the review again from its page")
    found: dict[str, str | None] = {}
    notes: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        place = f"{path}: {noun} {number}"
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise DataError(f"{place} has no `{name}`; save the review again from its page")
        named, marked, note = plain(row[name]), row.get(mark), row.get("note", "")
        if marked is not None and marked not in marks:
            choice = f"it is {', '.join(marks)}, or null for unmarked"
            raise DataError(f"{place}: the {mark} is {json.dumps(marked)}; {choice}")
        if not isinstance(note, str):
            raise DataError(f"{place}: the note is {json.dumps(note)}; it is a text, empty for none")
        if named in found:
            raise DataError(f"{place}: {short(named)} is marked twice; keep one of its marks")
        found[named], notes[named] = marked, plain(note)
    return found, notes


def _check_rows(path: Path, rows: Collection[str], known: frozenset[str]) -> None:
    for number, name in enumerate(rows, 1):
        if name not in known:
            raise DataError(
                f"{path}: row {number}: {short(name)} is no row of this data; save the review again from its page"
            )
    if len(rows) < _sample_size(len(known)):
        raise DataError(
            f"{path}: holds {len(rows)} rows of a sample of at least {_sample_size(len(known))}; rows that were "
            "passed over stay in the file, without a mark: save the review again from its page"
        )


def finishing_time(path: Path, finished: object) -> str:
    """The time at which a page was saved, as ISO 8601, or a DataError."""
    try:
        return datetime.fromisoformat(str(finished)).isoformat()
    except ValueError as error:
        raise DataError(f"{path}: `finished` is {finished!r}; write a time such as 2026-01-31T12:00:00Z") from error


def one_line(name: object) -> str:
    """A text on one line, without control characters and half surrogates: it is printed in the terminal."""
    text = name if isinstance(name, str) else ""
    return " ".join("".join(" " if unicodedata.category(each) in ("Cc", "Cs") else each for each in text).split())


def plain(text: str) -> str:
    """A text that can be written down: half a surrogate pair becomes "?"."""
    return text.encode(errors="replace").decode()


def short(name: str) -> str:
    """The beginning of a hash, for messages."""
    return f"{one_line(name)[:SHORT_HASH]}..." if len(name) > SHORT_HASH else one_line(name) or '""'
