"""Rows that belong together: those that are near one another, and the groups that pairs of rows make.

Three steps, each far cheaper than the next, find the rows that are similar enough to a given one:

1. Candidates share a band of their MinHash signatures, as in datasketch's MinHashLSH. Bands are hashed to 64 bits and
   grouped by sorting, which takes a thirtieth of the memory and of the time of its dictionaries.
2. Two sketches of each candidate, of 2,048 and 8,192 bits, in which every shingle flips one bit. The bits that differ
   between the sketches of two rows are no more than the shingles that differ between the rows, so that a pair with too
   many is no pair, for certain; in long texts, where flips cancel out, to four standard deviations. The signatures
   are too blunt for this: templated rows with similarity 0.7 look like 0.7 ± 0.03, and ten thousand of them make 14
   million pairs that might be 0.8 as far as signatures can tell.
3. The exact Jaccard similarity of the shingles, read from disk again, the most similar first.

Memory: 256 bytes a row for the bands, up to 128 for the buckets, and 1,280 for each row that has a candidate. Time
grows with the pairs that share a band: nearly none in ordinary sets, most of them in sets that repeat one template.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from qdora_fast.data.clean.similarity import PERMUTATIONS, ROWS, jaccard

LEAST_RECALL = 0.995
SKETCH_BITS = (2048, 8192)  # powers of two
DEVIATIONS = 4
BLOCK = 4096
"""Rows of signatures in memory at a time."""
CACHED = 512
"""Sets of shingles in memory."""
_NO_SHINGLES = np.uint32(2**32 - 1)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, bits evenly set: multiplying by it spreads values over 64 bits


class Components:
    """`count` items, each alone at first. Items with the same label belong together.

    Union-find with the smaller side renamed at each join, instead of trees of parents: `labels` is then a plain array
    that is compared for thousands of rows in one step, and n joins cost n log n renamings at most.
    Memory: 8 bytes an item, and some 60 for each item that was joined.
    """

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        """int64 [count]."""
        self._members: dict[int, list[int]] = {}

    def join(self, one: int, other: int) -> None:
        """Put the components of two items together."""
        large, small = int(self.labels[one]), int(self.labels[other])
        if large == small:
            return
        if len(self._members.get(large, ())) < len(self._members.get(small, ())):
            large, small = small, large
        moved = self._members.pop(small, [small])
        self.labels[moved] = large
        self._members.setdefault(large, [large]).extend(moved)


class Neighbours:
    """Rows added so far, found again by what they share with another row. Rows are named by their place in `rows`."""

    def __init__(
        self,
        signatures: np.ndarray,
        shingles_of: Callable[[int], frozenset[int]],
        rows: np.ndarray,
        similarity: float,
        bands: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            signatures: uint32 [n, 256], of all rows; read once, in blocks, in the order they lie in.
            shingles_of: the shingles of a row, by its number.
            rows: int64 [m], numbers of the rows that may ever be asked for or added, each once.
            similarity: Jaccard similarity that is enough.
            bands: how many bands of how many values make candidates; None: `bands_for` this similarity.
        """
        self.rows, self.similarity = rows, similarity
        self.compared = 0
        """Pairs of which the exact similarity was calculated."""
        self.comparable = np.zeros(len(signatures), bool)
        """bool [n], by row number: of those in `rows`, the ones that have shingles."""
        self._buckets = self._band_hashes(signatures, *(bands or bands_for(similarity)))  # [bands, m]
        capacities = _number_buckets(self._buckets)
        self.crowded = np.flatnonzero((self._buckets >= 0).any(axis=0))
        """Places of the rows that share a band with any other; the rest need not be looked at."""
        self._starts = np.concatenate([[0], np.cumsum(capacities)])  # where the members of each bucket are
        self._members = np.empty(self._starts[-1], np.int32)
        self._filled = np.zeros(len(capacities), np.int32)
        self._seen = np.zeros(len(rows), bool)
        # Memory of zeros is taken only where it is written to.
        self._sketches = [np.zeros((len(rows), bits // 64), np.uint64) for bits in SKETCH_BITS]
        self._lengths = np.zeros(len(rows), np.int64)  # shingles; 0: not sketched yet
        self._shingles = lru_cache(CACHED)(shingles_of)

    def add(self, at: int) -> None:
        """Let a row be candidates."""
        buckets = self._buckets_of(at)
        self._members[self._starts[buckets] + self._filled[buckets]] = at
        self._filled[buckets] += 1

    def nearest(self, at: int) -> tuple[int, float] | None:
        """An added row that is similar enough to row `at`, and its similarity."""
        scores = ((other, self.score(at, other)) for other in self.promising(at).tolist())
        return next(((other, score) for other, score in scores if score >= self.similarity), None)

    def candidates(self, at: int) -> np.ndarray:
        """Added rows that share a band with row `at`, ascending."""
        buckets = self._buckets_of(at)
        starts, sizes = self._starts[buckets].tolist(), self._filled[buckets].tolist()
        parts = [self._members[start : start + size] for start, size in zip(starts, sizes, strict=True) if size]
        shared = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        if len(shared) < len(self._seen) / 64:
            return np.unique(shared)
        self._seen[shared] = True  # ten times as fast as sorting, for the thousands of candidates of a templated row
        candidates = np.flatnonzero(self._seen)
        self._seen[candidates] = False
        return candidates

    def promising(self, at: int) -> np.ndarray:
        """Candidates that the sketches do not rule out, the most similar first."""
        candidates = self.candidates(at)
        if not len(candidates):
            return candidates
        for each in (at, *candidates[self._lengths[candidates] == 0].tolist()):
            self._sketch(each)
        both = self._lengths[candidates] + self._lengths[at]
        allowed = (1 - self.similarity) / (1 + self.similarity) * both  # shingles that are in one of the two only
        for bits, sketches in zip(SKETCH_BITS, self._sketches, strict=True):
            differing = np.bitwise_count(sketches[candidates] ^ sketches[at]).sum(axis=1, dtype=np.int64)
            possible = differing <= _most_bits(allowed, bits)
            candidates, both, allowed, differing = (each[possible] for each in (candidates, both, allowed, differing))
        return candidates[np.argsort(differing / both, kind="stable")]

    def score(self, at: int, other: int) -> float:
        """The exact Jaccard similarity of two rows."""
        self.compared += 1
        return jaccard(self._shingles(int(self.rows[at])), self._shingles(int(self.rows[other])))

    def _buckets_of(self, at: int) -> np.ndarray:
        buckets = self._buckets[:, at]
        return buckets[buckets >= 0]

    def _sketch(self, at: int) -> None:
        if self._lengths[at]:
            return
        shingles = self._shingles(int(self.rows[at]))
        self._lengths[at] = len(shingles)
        mixed = np.fromiter(shingles, np.uint64, len(shingles)) * _MIX
        for bits, sketches in zip(SKETCH_BITS, self._sketches, strict=True):
            mixed, bit = np.divmod(mixed, np.uint64(bits))  # each sketch uses bits of the hashes that are its own
            flipped = np.bincount(bit.astype(np.int64), minlength=bits) % 2
            sketches[at] = np.packbits(flipped.astype(np.uint8)).view(np.uint64)

    def _band_hashes(self, signatures: np.ndarray, bands: int, length: int) -> np.ndarray:
        """int64 [bands, m]; rows without shingles get numbers of their own. Read in the order of the file."""
        hashes = np.empty((bands, len(self.rows)), np.uint64)
        places = np.full(len(signatures), -1)
        places[self.rows] = np.arange(len(self.rows))
        factors = np.cumprod(np.full(length, _MIX))
        for start in range(0, len(signatures), BLOCK):
            at = places[start : start + BLOCK]
            block = np.asarray(signatures[start : start + BLOCK])[at >= 0]
            at = at[at >= 0]
            values = block[:, : bands * length].reshape(-1, bands, length).astype(np.uint64)
            hashes[:, at] = (values * factors).sum(axis=2).T
            empty = (block == _NO_SHINGLES).all(axis=1)
            hashes[:, at[empty]] = at[empty]
            self.comparable[self.rows[at]] = ~empty
        return hashes.view(np.int64)


def bands_for(similarity: float) -> tuple[int, int]:
    """How many bands of how many signature values: the longest that make candidates of 99.5 % of such pairs.

    (32, 8) from a similarity of 0.8 on; shorter bands below, which make more candidates: (42, 6) at 0.75, (51, 5) at
    0.7, (64, 4) at 0.6 and (85, 3) at 0.5, with memory of 8 bytes a band and row.
    """
    for rows in range(ROWS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= LEAST_RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def _most_bits(shingles: np.ndarray, bits: int) -> np.ndarray:
    """How many bits of a sketch differ at most if so many shingles do: no more than those, and rarely that many."""
    odd, twice = (1 - 2 / bits) ** shingles, (1 - 4 / bits) ** shingles
    expected = bits * (1 - odd) / 2
    variance = bits * (1 - twice) / 4 + bits**2 * (twice - odd**2) / 4
    return np.minimum(shingles, expected + DEVIATIONS * np.sqrt(np.maximum(variance, 0))) + 1e-6


def _number_buckets(hashes: np.ndarray) -> np.ndarray:
    """Replace each hash by the number of its bucket, or -1 if no other row is in it; returns all buckets' sizes."""
    sizes = [np.zeros(0, np.int64)]
    count = 0
    for band in hashes:
        order = np.argsort(band)
        starts = np.concatenate([[True], np.diff(band[order]) != 0])[: len(band)]
        bucket = np.cumsum(starts) - 1
        members = np.bincount(bucket)
        shared = members > 1
        band[order] = np.where(shared, count + np.cumsum(shared) - 1, -1)[bucket]
        sizes.append(members[shared])
        count += len(sizes[-1])
    return np.concatenate(sizes)
