"""All pairs of sets that are similar enough, exactly: the truth that the search for near-duplicates is held against.

MinHash finds candidates with a certain probability; this finds every pair. Two sets with Jaccard similarity of at
least t share at least one of the |x| - ceil(t |x|) + 1 rarest elements of each (prefix filtering: Chaudhuri and others
2006, Bayardo and others 2007), and rare elements have short lists. It holds all sets and an index of a third of
their elements in memory, which is why the package itself does not work this way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from qdora_fast.data.clean.similarity import jaccard


def near_pairs(sets: Sequence[frozenset[int]], least: float) -> Iterator[tuple[int, int, float]]:
    """Every pair (i, j, Jaccard similarity) of at least `least`, 0 < `least` <= 1. Empty sets have no pairs."""
    frequency = Counter(element for each in sets for element in each)
    index: dict[int, list[int]] = {}
    for number in sorted(range(len(sets)), key=lambda number: len(sets[number])):
        own = sets[number]
        rarest = sorted(own, key=lambda element: (frequency[element], element))
        prefix = rarest[: len(own) - math.ceil(round(least * len(own), 9)) + 1] if own else []
        earlier = {other for element in prefix for other in index.get(element, ())}
        for other in earlier:
            if len(sets[other]) >= least * len(own) - 1e-9 and (score := jaccard(own, sets[other])) >= least:
                yield number, other, score
        for element in prefix:
            if frequency[element] > 1:
                index.setdefault(element, []).append(number)
