"""Which of the usable rows are trained on, and which are held out: what no row decides on its own.

In this order: duplicates go; rows that are short by the measure of the whole set go; the rest is split, so that no
prompt, no conversation and no near-duplicate lies on both sides; that is checked once more, independently; and
the weights of the sources thin or repeat training rows. No model and no quality score has seen anything yet.

`select` only decides. It reads texts back from the disk where it must (candidates for near-duplicates).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qdora_fast.config import DataSettings
from qdora_fast.data.clean.dedup import KINDS, Duplicates, RowIndex, contaminated, find_duplicates
from qdora_fast.data.clean.rejects import DropCounter, Dropped, after_drops, total
from qdora_fast.data.clean.similarity import PERMUTATIONS, canonical_text, shingles
from qdora_fast.data.clean.split import hold_out, merge_groups, strata_without
from qdora_fast.data.store import Columns, RowWriter
from qdora_fast.system.errors import DataError

TOO_MANY = 1 / 3
"""Share of a set from which on a filter says more about the set than about its rows."""
TEMPLATED = 0.2
"""Share of near-duplicates from which on the rows probably share a template."""


@dataclass
class SelectedRows:
    """Row numbers of both sides, ascending, and what became of the others."""

    train: np.ndarray
    held_out: np.ndarray
    per_epoch: np.ndarray
    """Training rows of one epoch: `train`, thinned and repeated by the weights of the sources."""
    dropped: list[tuple[int, str, str]] = field(default_factory=list)
    """(row, reason, detail)"""
    duplicates: Duplicates | None = None
    contaminated: int = 0
    groups: int = 0
    strata: list[tuple[str, int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def select(
    columns: Columns, writer: RowWriter, settings: DataSettings, *, seed: int, dropped: Sequence[Dropped] = ()
) -> SelectedRows:
    """Decide about all rows of `writer`.

    Args:
        dropped: rows that were dropped before, for the message of an error.

    Raises:
        DataError: too few rows are left to hold any out, or to train on; it says what was dropped, and why.
    """
    selector = _Selector(columns, writer, settings, seed)
    try:
        selector.drop_duplicates()
        selector.drop_short()
        selector.split()
        selector.check_contamination()
        return selector.weigh()
    except DataError as error:
        late = DropCounter()
        for row, reason, detail in selector.selection.dropped:
            late.count(reason, selector.rows.source_of(row), detail)
        everything = [*dropped, *late.dropped()]
        raise DataError(after_drops(str(error), everything, total(dropped) + len(columns))) from error


class _Selector:
    """The steps of `select`; `alive` marks rows that are still in, `held` those that are held out."""

    def __init__(self, columns: Columns, writer: RowWriter, settings: DataSettings, seed: int) -> None:
        count = len(columns)
        self.columns, self.writer, self.settings, self.seed = columns, writer, settings, seed
        self.rows = writer.rows(columns)
        own = len(settings.mixture) if settings.own_held_out else -1
        self.own = columns.origins == own
        self.alive = np.ones(count, bool)
        self.held = self.own.copy()
        self.index = RowIndex(
            keys=columns.keys,
            signatures=writer.signatures(count, PERMUTATIONS),
            sizes=columns.sizes,
            shingles_of=lambda row: shingles(canonical_text(self.rows[row])),
            protected=self.own,
        )
        self.links: list[tuple[int, int]] = []
        nothing = np.zeros(0, np.int64)
        self.selection = SelectedRows(nothing, nothing, nothing)

    def drop(self, chosen: np.ndarray, reason: str, detail: Callable[[int], str]) -> None:
        """Drop rows; `detail` gives the detail of each."""
        self.alive[chosen] = False
        self.selection.dropped += [(int(row), reason, detail(int(row))) for row in chosen]

    def drop_duplicates(self) -> None:
        """Keep one row of each group of duplicates; link those that all stay, so that the split does not part them."""
        dedup = self.settings.dedup
        duplicates = find_duplicates(self.index, exact=dedup.exact, near=dedup.near, similarity=dedup.similarity)
        self.selection.duplicates, self.links = duplicates, list(duplicates.links)
        gone = np.flatnonzero((duplicates.representative != np.arange(len(self.alive))) & ~self.own)
        repeats_held_out = self.own[duplicates.representative[gone]]
        equal = duplicates.kind == KINDS.index("exact")
        exact = equal[gone]

        def detail(row: int) -> str:
            other = self.rows.source_of(int(duplicates.representative[row]))
            return f"{other} says the same" if equal[row] else f"{other} is {duplicates.score[row]:.0%} alike"

        self.drop(gone[repeats_held_out], "in_held_out", detail)
        self.drop(gone[~repeats_held_out & exact], "exact_duplicate", detail)
        self.drop(gone[~repeats_held_out & ~exact], "near_duplicate", detail)
        near = int((~repeats_held_out & ~exact).sum())
        if near > TEMPLATED * max(1, len(self.alive)):
            self.selection.warnings.append(
                f"{near} of {len(self.alive)} rows are near-duplicates and were dropped. If your rows share a "
                f"template, raise data.dedup.similarity (now {dedup.similarity:g}), or set data.dedup.near: false"
            )

    def drop_short(self) -> None:
        """Drop rows with hardly any tokens, unless that is what the set is about."""
        filters = self.settings.filters
        least, unasked = filters.least_tokens, filters.min_tokens == "auto"
        candidates = self.alive & ~self.own
        short = np.flatnonzero(candidates & (self.columns.content_tokens < least) & (self.columns.tokens > 0))
        many = len(short) > TOO_MANY * max(1, int(candidates.sum()))
        summary = f"{len(short)} of {int(candidates.sum())} rows have fewer than {least} tokens of prompt and answer"
        if many and unasked:
            self.selection.warnings.append(
                f"{summary}. Short rows seem to be what this set is about, so none was dropped; to say so, set "
                f"data.filters.min_tokens: 0, or {least} to drop them"
            )
            return
        if many:
            self.selection.warnings.append(f"{summary} and were dropped; data.filters.min_tokens: 0 keeps them")
        self.drop(short, "too_short", lambda row: f"{self.columns.content_tokens[row]} tokens of {least}")

    def split(self) -> None:
        """Hold out a share by groups, or take the user's own rows and drop what asks the same."""
        if not self.alive.any():
            raise DataError("no row is left to train on")
        if self.settings.own_held_out:
            if not self.own.any():
                raise DataError("no row of data.held_out_path can be used: give others, or leave it out")
            prompts = _as_bytes(self.columns.prompts)
            known = {prompts[row] for row in np.flatnonzero(self.own)}
            repeated = [row for row in np.flatnonzero(self.alive & ~self.own) if prompts[row] in known]
            self.drop(np.array(repeated, np.int64), "in_held_out", lambda row: "the same prompt is held out")
            self.selection.groups = len({prompts[row] for row in np.flatnonzero(self.alive)})
            return
        everywhere = merge_groups(_as_bytes(self.columns.prompts), self.writer.groups, self.links)
        inside = np.flatnonzero(self.alive)
        keys = [everywhere[row] for row in inside]  # rows that are gone may still tie others together
        self.selection.groups = len(set(keys))
        strata = [self.writer.strata[row] for row in inside] if self.settings.stratify else None
        self.held[inside] = hold_out(keys, self.settings.held_out, self.seed, strata=strata)
        if strata is not None:
            self._describe_strata(inside, np.array(strata))

    def _describe_strata(self, inside: np.ndarray, strata: np.ndarray) -> None:
        for value in sorted(set(strata.tolist())):
            sides = self.held[inside[strata == value]]
            self.selection.strata.append((value, int((~sides).sum()), int(sides.sum())))
        empty = [value or "(none)" for value in strata_without(self.held[inside], strata.tolist())]
        if empty and self.settings.held_out:
            self.selection.warnings.append(
                f"no row is held out of {self.settings.stratify}: {', '.join(empty[:8])} (too few rows)"
            )

    def check_contamination(self) -> None:
        """Look once more for training rows that are like a held-out row, independently of the steps before."""
        held, train = np.flatnonzero(self.alive & self.held), np.flatnonzero(self.alive & ~self.held)
        pairs = contaminated(self.index, held, train, similarity=self.settings.dedup.similarity)
        partner = {row: (other, score) for row, other, score in pairs}
        self.drop(
            np.array(sorted(partner), np.int64),
            "in_held_out",
            lambda row: f"{partner[row][1]:.0%} like {self.rows.source_of(partner[row][0])}",
        )
        self.selection.contaminated = len(partner)

    def weigh(self) -> SelectedRows:
        """Thin and repeat training rows by the first 8 bytes of their hash: always the same ones."""
        weights = np.array([source.weight for source in self.settings.mixture] + [1.0])
        weight = weights[self.columns.origins]
        chance = self.columns.hashes[:, :8].copy().view(">u8")[:, 0] / 2.0**64 if len(weight) else weight
        copies = np.floor(weight) + (chance < weight - np.floor(weight))
        train = self.alive & ~self.held
        self.drop(np.flatnonzero(train & (copies == 0)), "thinned", lambda row: f"weight {weight[row]:g}")
        chosen = self.selection
        chosen.train = np.flatnonzero(self.alive & ~self.held)
        chosen.held_out = np.flatnonzero(self.alive & self.held)
        chosen.per_epoch = np.repeat(chosen.train, copies[chosen.train].astype(np.int64))
        if not len(chosen.train):
            held = f"; {len(chosen.held_out)} are held out" if len(chosen.held_out) else ""
            raise DataError(f"no row is left to train on{held}")
        return chosen


def _as_bytes(keys: np.ndarray) -> list[bytes]:
    return [bytes(key) for key in keys]
