"""The account of a preparation: what went in, what came out at each step, and what the result looks like.

Every row that was read is either used or counted under one reason, and each reason belongs to one step. The report is
data; `preflight.py` says it in words, `pages.py` shows it. It is stored with the prepared rows as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdora_fast.data.clean.lengths import TokenReport
from qdora_fast.data.clean.quality import QualityReport
from qdora_fast.data.clean.rejects import REASONS, Dropped
from qdora_fast.data.report.thinking import ThinkingReport

FORMAT_VERSION = 1

STEPS: dict[str, tuple[str, ...]] = {
    "read": ("bad_json", "not_an_object", "line_too_long", "wrong_columns", "formatter_failed", "left_out"),
    "convert": (
        *("missing_field", "wrong_type", "not_text", "broken_unicode", "unknown_role", "system_not_first"),
        *("same_role_twice", "no_user_turn", "no_assistant_turn", "empty_prompt", "empty_answer"),
        *("nothing_to_train", "labelled_bad", "broken_tool_json"),
    ),
    "filters": (
        *("placeholder_answer", "truncated_answer", "role_order", "mojibake", "control_characters"),
        *("repetition", "refusal"),
    ),
    "tokens": ("template_error", "special_token_in_text", "answer_not_located", "no_trained_tokens", "too_long"),
    "exact duplicates": ("exact_duplicate",),
    "near-duplicates": ("near_duplicate",),
    "short rows": ("too_short",),
    "split": ("in_held_out",),
    "weights": ("thinned",),
    "quality": ("high_ifd", "outlier_loss"),
}
"""Step -> its reasons, in the order in which rows meet them."""
STEP_OF = {reason: step for step, reasons in STEPS.items() for reason in reasons}
"""Reason -> its step, in the same order."""

DuplicateIds = tuple[str, int, tuple[str, ...]]
"""Rows with the id of an earlier one: the column, how many, the sources of the first."""


@dataclass(frozen=True)
class UnusedColumn:
    """A column, or a key of messages such as messages[].refusal, of which nothing is learned."""

    name: str
    rows: int
    """Rows with a value in it."""
    words: int
    """Mean words, where it holds text that stands nowhere in the conversations; 0: it does not."""
    first: str
    """The source of the first of the rows."""
    fix: str = ""
    """The setting with which a text would be read."""


@dataclass(frozen=True)
class SourceReport:
    """One source. `train` counts its different training rows, `per_epoch` how many an epoch holds after weights."""

    path: str
    weight: float
    rows_in: int
    train: int
    held_out: int
    per_epoch: int
    tokens: int
    """Tokens of an epoch."""
    format: str
    why: str
    agreement: float
    checked: int
    files: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...]
    other_splits: tuple[tuple[str, str], ...] = ()
    """Files of a folder that are left out, since they are of another split: (name, split)."""
    unused: tuple[UnusedColumn, ...] = ()
    read: int = 0
    """Rows that could be read as conversations."""


@dataclass(frozen=True)
class Cluster:
    """Rows that say the same: the one that stays, and the others with how alike they are."""

    kept: str
    text: str
    """The first 200 characters of the row that stays."""
    members: tuple[tuple[str, str, float], ...]
    """(source, "exact" or "near", similarity) of the first few."""
    size: int
    """How many others there are."""


@dataclass(frozen=True)
class DuplicateReport:
    """Which duplicates there were, and whether training and held-out rows were still alike afterwards."""

    exact: int
    near: int
    similarity: float
    clusters: int
    largest: tuple[Cluster, ...]
    contaminated: int
    """Training rows that repeated a held-out row in the check after the split; they were dropped."""

    def as_json(self) -> dict[str, Any]:
        """For the report's `duplicates`."""
        keys = ("place", "kind", "similarity")
        largest = [
            asdict(cluster) | {"members": [dict(zip(keys, member, strict=True)) for member in cluster.members]}
            for cluster in self.largest
        ]
        return {"exact": self.exact, "near": self.near, "clusters": self.clusters, "largest": largest}


@dataclass(frozen=True)
class SplitReport:
    """How rows were held out. `groups` move as a whole; `strata` are (value, training rows, held-out rows)."""

    groups: int
    group: str | None
    stratify: str | None
    strata: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class DataReport:
    """What became of the rows. `rows_in` = `kept` + dropped; `kept` = `train` + `held_out`."""

    rows_in: int
    kept: int
    dropped: tuple[Dropped, ...]
    train: int
    held_out: int
    per_epoch: int
    """Training rows of an epoch: `train`, unless a source's weight repeats rows."""
    hash: str
    """SHA-256 of `content_hash` and `settings_hash`: the version of the data."""
    content_hash: str
    """SHA-256 of the contents of both sides: the same for the same rows in any order, from any file."""
    settings_hash: str
    """SHA-256 of the settings, the tokenizer and the template that made it, without paths."""
    repairs: Mapping[str, int]
    """How often what was mended, by the codes of `messages.REPAIRS`."""
    sources: tuple[SourceReport, ...]
    duplicates: DuplicateReport
    split: SplitReport
    tokens: TokenReport | None
    """None when rows were prepared without a tokenizer."""
    scripts: Mapping[str, float]
    languages: Mapping[str, float]
    languages_of: int
    """Number of rows whose language was told."""
    duplicate_ids: DuplicateIds | None
    warnings: tuple[str, ...]
    quality: QualityReport | None = None
    notes: tuple[str, ...] = ()
    """What is no fault, and worth a line."""
    thinking: ThinkingReport | None = None
    """None where the chat template knows of no reasoning, or is not asked about it."""

    def __repr__(self) -> str:
        """How many rows, and of what, in two lines."""
        named = ", ".join(source.path for source in self.sources)
        tokens = f", {self.tokens.total:,} tokens an epoch" if self.tokens else ""
        sides = f"{self.train:,} to train on, {self.held_out:,} held out, {self.rows_in - self.kept:,} dropped"
        return f"{self.rows_in:,} rows of {named}\n  {sides}{tokens}; {len(self.warnings)} warnings"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from qdora_fast.data.report.pages import report_card

        return report_card(self.as_json())

    def dropped_for(self, reason: str) -> int:
        """Rows dropped for one reason."""
        return next((each.count for each in self.dropped if each.reason == reason), 0)

    def steps(self) -> list[dict[str, Any]]:
        """What went into each step, came out of it, and was dropped by it; steps without a drop are there, too."""
        counts = {each.reason: each.count for each in self.dropped}
        rows, steps = self.rows_in, []
        for step, reasons in STEPS.items():
            dropped = {reason: counts[reason] for reason in reasons if reason in counts}
            left = rows - sum(dropped.values())
            steps.append({"step": step, "rows_in": rows, "rows_out": left, "dropped": dropped})
            rows = left
        assert rows == self.kept, "every dropped row belongs to one step"
        return steps

    def as_json(self) -> dict[str, Any]:
        """Everything, for `--json`, report.json and the page. rows_in, kept, dropped {reason: n}, train, held_out and
        hash are a contract."""
        plain = asdict(self)
        plain |= {
            "version": FORMAT_VERSION,
            "dropped": {each.reason: each.count for each in self.dropped},
            "steps": self.steps(),
            "examples": {each.reason: list(each.examples) for each in self.dropped},
            "reasons": {each.reason: REASONS[each.reason] for each in self.dropped},
            "duplicates": self.duplicates.as_json(),
            "contamination": {"found": self.duplicates.contaminated, "similarity": self.duplicates.similarity},
            "quality": self.quality.as_json() if self.quality else None,
        }
        plain["split"]["strata"] = {value: sides for value, *sides in self.split.strata} or None
        if self.duplicate_ids:
            plain["duplicate_ids"] = dict(zip(("column", "count", "examples"), self.duplicate_ids, strict=True))
        if self.tokens:
            plain |= self.tokens.as_json()
        plain_values: dict[str, Any] = json.loads(json.dumps(plain))  # lists for tuples, as a reader of the file has it
        return plain_values


def save_report(path: Path, report: DataReport) -> None:
    """Write a report so that `load_report` gives the same one."""
    from pydantic import TypeAdapter

    path.write_bytes(TypeAdapter(DataReport).dump_json(report))


def load_report(path: Path) -> DataReport:
    """Read what `save_report` wrote."""
    from pydantic import TypeAdapter

    return TypeAdapter(DataReport).validate_json(path.read_bytes())
