"""Rows that say the same: which of them stays, and whether any of them lies on both sides of the split.

Of equal rows, and of nearly equal ones, the row most worth keeping stays: one of the user's own held-out rows, else
the longest. The rows are gone through in that order, so that the order of the file plays no part, and each is dropped
that is similar enough to a row *that stays*: there are no chains in which the ends have nothing in common.

Near-duplicates that stay, because they are not to be dropped, are linked, so that the split can keep them on one
side. Whether it did is checked at the end by looking again. How similar rows are found is in `groups.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from qdora_fast.data.clean.groups import Components, Neighbours, bands_for

Kind = Literal["", "exact", "near"]
KINDS: tuple[Kind, ...] = ("", "exact", "near")
"""What `Duplicates.kind` counts from 0."""

LEAST_SIMILARITY = 0.5
"""Below it, nearly every row is a candidate."""


@dataclass(frozen=True, eq=False)
class RowIndex:
    """What is compared of n rows."""

    keys: np.ndarray
    """uint8 [n, 16]: equal for equal rows."""
    signatures: np.ndarray
    """uint32 [n, 256], MinHash; the largest value throughout for rows too short to be compared. May be a memmap."""
    sizes: np.ndarray
    """int64 [n]: characters."""
    shingles_of: Callable[[int], frozenset[int]]
    """The shingles of a row, as 64-bit integers; asked for candidates only."""
    protected: np.ndarray
    """bool [n]: rows of the user's own held-out file, which stay rather than others."""


@dataclass(frozen=True)
class Member:
    """A row that was dropped, and its Jaccard similarity to the row that stays."""

    row: int
    kind: Kind
    similarity: float


@dataclass(frozen=True)
class Cluster:
    """A row that stays, and those dropped for it, the most similar first."""

    representative: int
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What became of each row. `representative[i] == i` if row i stays."""

    representative: np.ndarray
    """int64 [n]: the row that stays for it."""
    kind: np.ndarray
    """uint8 [n], an index of `KINDS`. exact: equal to a row more worth keeping (which may be near to a third one)."""
    score: np.ndarray
    """float32 [n]: Jaccard similarity to the row that stays for it; 0 for rows that stay."""
    links: list[tuple[int, int]]
    """Pairs of equal or nearly equal rows that stay both, enough to connect all of them: one side of the split."""
    compared: int
    """Pairs of which the exact similarity was calculated."""

    def clusters(self) -> list[Cluster]:
        """All rows that stay for others, the largest cluster first."""
        dropped = np.flatnonzero(self.kind)
        dropped = dropped[np.lexsort((dropped, -self.score[dropped], self.representative[dropped]))]
        clusters = [
            Cluster(stays, tuple(Member(row, KINDS[self.kind[row]], float(self.score[row])) for row in rows))
            for stays, rows in groupby(dropped.tolist(), lambda row: int(self.representative[row]))
        ]
        return sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.representative))


def find_duplicates(index: RowIndex, *, exact: bool, near: bool, similarity: float) -> Duplicates:
    """Which rows to drop, and which of those that stay must not be parted.

    Args:
        index: the rows.
        exact: drop rows that are equal to another.
        near: drop rows that are nearly equal to another. Equal rows are that, too, unless they are too short.
        similarity: Jaccard similarity of nearly equal rows, 0.5 to 1.
    """
    count = len(index.keys)
    representative, kind, score = np.arange(count), np.zeros(count, np.uint8), np.zeros(count, np.float32)
    order = _precedence(index)
    first = _first_equal(index.keys, order)
    neighbours = Neighbours(index.signatures, index.shingles_of, order[first[order] == order], similarity)
    links: list[tuple[int, int]] = []
    if near:
        for row, other, similar in _near_a_kept_row(neighbours):
            representative[row], kind[row], score[row] = other, KINDS.index("near"), similar
    else:
        links = _connections(neighbours)
    copies = np.flatnonzero(first != np.arange(count))
    if not exact:
        near_too = near & neighbours.comparable[first[copies]]
        links += zip(first[copies[~near_too]].tolist(), copies[~near_too].tolist(), strict=True)
        copies = copies[near_too]
    originals = first[copies]
    score[copies] = np.where(representative[originals] == originals, 1, score[originals])
    representative[copies], kind[copies] = representative[originals], KINDS.index("exact" if exact else "near")
    return Duplicates(representative, kind, score, links, neighbours.compared)


def contaminated(
    index: RowIndex, held_out: np.ndarray, train: np.ndarray, *, similarity: float
) -> list[tuple[int, int, float]]:
    """Training rows that repeat a held-out row: (training row, held-out row, Jaccard similarity), one for each.

    A check of the split that relies on nothing that was found before it. It looks among more candidates, those of
    rows less similar by 0.1, and so sees the 0.3 % of pairs that `find_duplicates` can miss. Drop what it finds.

    Args:
        index: all rows.
        held_out: their row numbers, or bool [n].
        train: likewise.
        similarity: as for `find_duplicates`.
    """
    held_out, train = (np.flatnonzero(rows) if rows.dtype == bool else rows for rows in (held_out, train))
    matches: dict[int, tuple[int, float]] = {}
    texts = {index.keys[row].tobytes(): row for row in held_out.tolist()}
    for row in train.tolist():
        if (other := texts.get(index.keys[row].tobytes())) is not None:
            matches[row] = (other, 1.0)
    wider = bands_for(max(LEAST_SIMILARITY, similarity - 0.1))
    rows = np.concatenate([held_out, train])
    neighbours = Neighbours(index.signatures, index.shingles_of, rows, similarity, wider)
    for at in neighbours.crowded.tolist():
        if at < len(held_out):
            neighbours.add(at)
        elif (row := int(neighbours.rows[at])) not in matches and (near := neighbours.nearest(at)):
            matches[row] = int(neighbours.rows[near[0]]), near[1]
    return [(row, *matches[row]) for row in sorted(matches)]


def _precedence(index: RowIndex) -> np.ndarray:
    """Row numbers, the row most worth keeping first: protected, long, of small key, early."""
    high, low = _halves(index.keys)
    return np.lexsort((low, high, -index.sizes, ~index.protected))


def _first_equal(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each row the first one in `order` that has its key, int64 [n]."""
    high, low = _halves(keys[order])
    by_key = np.lexsort((low, high))  # stable: equal keys stay in order
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(high[by_key]) != 0) | (np.diff(low[by_key]) != 0)
    first = np.empty(len(order), np.int64)
    first[order[by_key]] = order[by_key[starts]][np.cumsum(starts) - 1]
    return first


def _halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    halves = np.ascontiguousarray(keys).view(">u8").astype(np.uint64)  # [n, 2], in the order of the bytes
    return halves[:, 0], halves[:, 1]


def _near_a_kept_row(neighbours: Neighbours) -> Iterator[tuple[int, int, float]]:
    """(row, row that stays, similarity) for each row that is nearly equal to one before it that stays."""
    for at in neighbours.crowded.tolist():
        if near := neighbours.nearest(at):
            yield int(neighbours.rows[at]), int(neighbours.rows[near[0]]), near[1]
        else:
            neighbours.add(at)


def _connections(neighbours: Neighbours) -> list[tuple[int, int]]:
    """Pairs of nearly equal rows, no more than it takes to connect all that are connected by such pairs."""
    groups = Components(len(neighbours.rows))
    links: list[tuple[int, int]] = []
    for at in neighbours.crowded.tolist():
        others = neighbours.promising(at)
        while len(others):
            other = int(others[0])
            if neighbours.score(at, other) >= neighbours.similarity:
                links.append((int(neighbours.rows[other]), int(neighbours.rows[at])))
                groups.join(other, at)
            others = others[1:][groups.labels[others[1:]] != groups.labels[at]]
        neighbours.add(at)
    return links
