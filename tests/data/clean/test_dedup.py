from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.clean.dedup import KINDS, Cluster, Duplicates, Member, RowIndex, contaminated, find_duplicates
from qdora_fast.data.clean.groups import Components, Neighbours, bands_for
from qdora_fast.data.clean.similarity import canonical_text, exact_key, jaccard, shingles, signatures
from qdora_fast.data.read.messages import Row

Shingles = frozenset[int]


def folded(text: str) -> str:
    row: Row = {"messages": [], "tools": None, "meta": {"source": "x:1", "row": 1, "hash": ""}, "text": text}
    return canonical_text(row)


def index_of_sets(sets: Sequence[Shingles], keys: Sequence[bytes], protected: Sequence[int] = ()) -> RowIndex:
    return RowIndex(
        keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
        signatures=signatures(sets),
        sizes=np.array([10 * len(each) for each in sets], np.int64),
        shingles_of=lambda row: sets[row],
        protected=np.isin(np.arange(len(sets)), protected),
    )


def index_of(texts: Sequence[str], protected: Sequence[int] = ()) -> RowIndex:
    sets = [shingles(folded(text)) for text in texts]
    index = index_of_sets(sets, [exact_key(folded(text)) for text in texts], protected)
    index.sizes[:] = [len(text) for text in texts]
    return index


def distinct_sets(sets: Sequence[Shingles]) -> RowIndex:
    return index_of_sets(sets, [number.to_bytes(16) for number in range(len(sets))])


def found(texts: Sequence[str], *, exact: bool = True, near: bool = True, similarity: float = 0.8) -> Duplicates:
    return find_duplicates(index_of(texts), exact=exact, near=near, similarity=similarity)


def fates(duplicates: Duplicates) -> list[tuple[int, str]]:
    return [(int(kept), KINDS[kind]) for kept, kind in zip(duplicates.representative, duplicates.kind, strict=True)]


def sharing_a_band(index: RowIndex, one: int, other: int, similarity: float) -> bool:
    bands, length = bands_for(similarity)
    same = (index.signatures[one] == index.signatures[other])[: bands * length]
    return bool(same.reshape(bands, length).all(axis=1).any())


def as_words(numbers: Sequence[int]) -> str:
    return " ".join(f"word{number}" for number in numbers)


def templated(count: int, common: int, own: int, seed: int = 0) -> list[Shingles]:
    """Sets of which each pair shares `common` of `common + own` shingles."""
    draw = random.Random(seed)
    template = [draw.getrandbits(63) for _ in range(common)]
    return [frozenset(template + [draw.getrandbits(63) for _ in range(own)]) for _ in range(count)]


STORY = as_words(range(60))  # 56 shingles; a changed word changes five of them, one at the end a single one
CHANGED = STORY.replace("word30", "other")  # similarity 51 / 61
ELSEWHERE = as_words(range(100, 160))


@st.composite
def families_of_texts(draw: st.DrawFn) -> list[str]:
    """Texts of one or two families: mostly 0.65 to 1 similar, some equal but for case, some too short to compare."""
    texts = []
    for _ in range(draw(st.integers(1, 12))):
        family = draw(st.integers(0, 1))
        words = [f"family{family}word{number}" for number in range(60)]
        for place in draw(st.lists(st.sampled_from([0, 1, 2, 30, 31, 58, 59]), max_size=2)):
            words[place] = draw(st.sampled_from(["red", "green", "longer"]))
        text = " ".join(words[: draw(st.sampled_from([60, 60, 60, 3]))])
        texts.append(text.upper() if draw(st.booleans()) else text)
    return texts


unhurried = settings(deadline=None, max_examples=examples(60))  # the first example waits for imports
similarities = st.sampled_from([0.5, 0.7, 0.75, 0.8, 0.9, 1.0])


@unhurried
@given(families_of_texts(), similarities, st.booleans(), st.data())
def test_a_dropped_row_is_close_to_the_row_that_stays_for_it(
    texts: list[str], similarity: float, exact: bool, data: st.DataObject
) -> None:
    protected = data.draw(st.lists(st.integers(0, len(texts) - 1)))
    index = index_of(texts, protected)
    duplicates = find_duplicates(index, exact=exact, near=True, similarity=similarity)
    for row, (kept, kind) in enumerate(fates(duplicates)):
        assert (kept == row) == (kind == "")
        if kept == row:
            assert duplicates.score[row] == 0
            continue
        assert duplicates.representative[kept] == kept, "no chains"
        equal = folded(texts[row]) == folded(texts[kept])
        similar = 1.0 if equal else jaccard(index.shingles_of(row), index.shingles_of(kept))
        assert duplicates.score[row] == pytest.approx(similar)
        assert similar >= similarity
        worth = [(not index.protected[each], -len(texts[each])) for each in (kept, row)]
        assert worth == sorted(worth)


@unhurried
@given(families_of_texts(), similarities)
def test_rows_that_stay_are_not_close_to_one_another(texts: list[str], similarity: float) -> None:
    index = index_of(texts)
    duplicates = find_duplicates(index, exact=True, near=True, similarity=similarity)
    for one, other in combinations(np.flatnonzero(duplicates.kind == 0).tolist(), 2):
        assert folded(texts[one]) != folded(texts[other])
        close = jaccard(index.shingles_of(one), index.shingles_of(other)) >= similarity
        assert not (close and sharing_a_band(index, one, other, similarity))


@unhurried
@given(families_of_texts(), similarities, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(texts: list[str], similarity: float, shuffler: random.Random) -> None:
    def kept(rows: list[str]) -> list[tuple[str, int]]:
        stays = found(rows, similarity=similarity).kind == 0
        return sorted((folded(row), len(row)) for row, stay in zip(rows, stays, strict=True) if stay)

    before = kept(texts)
    shuffler.shuffle(texts)
    assert kept(texts) == before


@unhurried
@given(families_of_texts(), similarities, st.booleans())
def test_links_connect_what_stays_and_is_close_and_nothing_else(
    texts: list[str], similarity: float, exact: bool
) -> None:
    index = index_of(texts)
    duplicates = find_duplicates(index, exact=exact, near=False, similarity=similarity)
    stays = np.flatnonzero(duplicates.kind == 0).tolist()
    linked, wanted = Components(len(texts)), Components(len(texts))
    for one, other in duplicates.links:
        assert duplicates.kind[one] == duplicates.kind[other] == 0
        linked.join(one, other)
    for one, other in combinations(stays, 2):
        close = jaccard(index.shingles_of(one), index.shingles_of(other)) >= similarity
        if folded(texts[one]) == folded(texts[other]) or (close and sharing_a_band(index, one, other, similarity)):
            wanted.join(one, other)
    for one, other in combinations(stays, 2):
        same = wanted.labels[one] == wanted.labels[other]
        assert (linked.labels[one] == linked.labels[other]) == same
    assert len(duplicates.links) == len(stays) - len(set(wanted.labels[stays]))


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95])
def test_nearly_all_close_pairs_are_found(similarity: float) -> None:
    draw = random.Random(1)
    sets = []
    for size in range(20, 120):  # pairs just above the threshold, the hardest to find
        common = 2 * size
        own = int(common * (1 - similarity) / (2 * similarity))  # common / (common + 2 * own) >= similarity
        sets += templated(2, common, own, draw.getrandbits(32))
    duplicates = find_duplicates(distinct_sets(sets), exact=True, near=True, similarity=similarity)
    assert (duplicates.kind == KINDS.index("near")).sum() >= 98
    kept = np.flatnonzero(duplicates.kind == KINDS.index("near"))
    assert (duplicates.representative[kept] // 2 == kept // 2).all()


@settings(deadline=None, max_examples=examples(20))
@given(st.integers(0, 1000))
def test_candidates_are_those_of_datasketch(seed: int) -> None:
    from datasketch import MinHash, MinHashLSH

    sets = [each for own in (3, 10, 30) for each in templated(12, 60, own, seed + own)]
    index = distinct_sets(sets)
    lsh = MinHashLSH(num_perm=256, params=(32, 8))
    neighbours = Neighbours(index.signatures, index.shingles_of, np.arange(len(sets)), 0.8)
    for row, values in enumerate(index.signatures):
        minhash = MinHash(num_perm=256, seed=1, hashvalues=values, scheme="affine32")
        assert neighbours.candidates(row).tolist() == sorted(lsh.query(minhash))
        lsh.insert(row, minhash)
        neighbours.add(row)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.75, 0.79, 0.8, 0.9, 1.0])
def test_bands_make_candidates_of_nearly_all_pairs_at_the_threshold(similarity: float) -> None:
    bands, length = bands_for(similarity)
    assert bands * length <= 256
    assert 1 - (1 - similarity**length) ** bands >= 0.995
    assert ((bands, length) == (32, 8)) == (similarity >= 0.8)


def counting(index: RowIndex) -> tuple[RowIndex, list[int]]:
    read: list[int] = []

    def shingles_of(row: int) -> Shingles:
        read.append(row)
        return index.shingles_of(row)

    return RowIndex(index.keys, index.signatures, index.sizes, shingles_of, index.protected), read


@pytest.mark.parametrize(("common", "own", "most"), [(82, 18, 0), (820, 180, 0), (880, 120, 450)])
def test_rows_of_one_template_are_told_apart_without_comparing_all_pairs(common: int, own: int, most: int) -> None:
    index, read = counting(distinct_sets(templated(300, common, own)))  # 44,850 pairs of similarity 0.69 or 0.79
    duplicates = find_duplicates(index, exact=True, near=True, similarity=0.8)
    assert not duplicates.kind.any()
    assert duplicates.compared <= most
    assert len(read) <= 300 + 2 * most


def test_only_candidates_are_read() -> None:
    sets = [templated(1, 50, 0, seed)[0] for seed in range(200)]
    index, read = counting(distinct_sets([*sets, sets[7] | {1}]))
    assert find_duplicates(index, exact=True, near=True, similarity=0.8).representative[7] == 200
    assert set(read) == {7, 200}


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_close_rows_are_found_in_long_texts(size: int) -> None:
    sets = [each for seed in range(10) for each in templated(2, size, size // 10, seed)]  # similarity 0.83
    duplicates = find_duplicates(distinct_sets(sets), exact=True, near=True, similarity=0.8)
    assert (duplicates.kind > 0).sum() == 10


def test_of_equal_and_of_close_rows_the_longest_stays() -> None:
    duplicates = found([STORY, CHANGED + " word60", "Short text", ELSEWHERE, STORY.upper(), "  short TEXT ", STORY])
    assert fates(duplicates) == [
        (1, "near"),
        (1, ""),
        (5, "exact"),
        (3, ""),
        (1, "exact"),  # equal to row 0, that is near to row 1
        (5, ""),
        (1, "exact"),
    ]
    similar = 51 / 62
    assert duplicates.score.tolist() == pytest.approx([similar, 0, 1, 0, similar, 0, similar])
    assert duplicates.links == []
    assert duplicates.compared == 1


def test_rows_of_the_users_held_out_file_stay() -> None:
    texts = [STORY, CHANGED + " and much more", CHANGED]
    duplicates = find_duplicates(index_of(texts, protected=[2]), exact=True, near=True, similarity=0.7)
    assert duplicates.representative.tolist() == [2, 2, 2]


def test_clusters_are_listed_largest_first_and_the_most_similar_first_in_them() -> None:
    clusters = found([ELSEWHERE, CHANGED, ELSEWHERE, STORY + " end", STORY, "alone"]).clusters()
    assert [cluster.representative for cluster in clusters] == [3, 0]
    assert [(each.row, each.kind) for each in clusters[0].members] == [(4, "near"), (1, "near")]
    assert [each.similarity for each in clusters[0].members] == pytest.approx([56 / 57, 51 / 62])
    assert clusters[1] == Cluster(0, (Member(2, "exact", 1.0),))


def test_what_is_not_to_be_dropped_is_linked() -> None:
    texts = [STORY, CHANGED, STORY, "short", "short", ELSEWHERE]
    assert fates(found(texts, near=False))[:5] == [(0, ""), (1, ""), (0, "exact"), (3, ""), (3, "exact")]
    assert found(texts, near=False).links == [(0, 1)]
    neither = found(texts, exact=False, near=False)
    assert not neither.kind.any()
    assert sorted(neither.links) == [(0, 1), (0, 2), (3, 4)]


def test_equal_rows_are_near_duplicates_when_only_those_are_dropped_unless_they_are_too_short() -> None:
    duplicates = found([STORY, STORY, "short", "short"], exact=False)
    assert fates(duplicates) == [(0, ""), (0, "near"), (2, ""), (3, "")]
    assert duplicates.links == [(2, 3)]


def test_short_rows_are_not_near_one_another_and_not_even_read() -> None:
    index, read = counting(index_of([f"number {number}" for number in range(20)]))
    assert not find_duplicates(index, exact=True, near=True, similarity=0.5).kind.any()
    assert read == []


def test_of_close_rows_of_one_length_the_same_stays_in_any_order() -> None:
    texts = [STORY.replace("word30", f"other{number}") for number in range(6)]  # each 0.83 similar to any other
    for seed in range(10):
        random.Random(seed).shuffle(texts)
        (stays,) = np.flatnonzero(found(texts).kind == 0).tolist()
        assert texts[stays] == min(texts, key=lambda text: exact_key(folded(text)))


def test_a_chain_of_small_changes_does_not_drop_its_far_end() -> None:
    words = STORY.split()
    steps = [
        " ".join([f"new{place}" if place in changed else word for place, word in enumerate(words)])
        for changed in ([], [10], [10, 30], [10, 30, 50])
    ]
    longest = [step + "!" * (4 - number) for number, step in enumerate(steps)]  # punctuation makes no shingles
    duplicates = found(longest)
    assert fates(duplicates) == [(0, ""), (0, "near"), (2, ""), (2, "near")]


def test_signatures_may_lie_on_disk(tmp_path: Path) -> None:
    index = index_of([STORY, ELSEWHERE, CHANGED] * 3)
    on_disk = np.memmap(tmp_path / "signatures", np.uint32, "w+", shape=index.signatures.shape)
    on_disk[:] = index.signatures
    other = RowIndex(index.keys, on_disk, index.sizes, index.shingles_of, index.protected)
    results = [find_duplicates(each, exact=True, near=True, similarity=0.8) for each in (index, other)]
    assert fates(results[0]) == fates(results[1])
    assert (results[0].kind > 0).sum() == 7


def test_no_rows_are_no_duplicates() -> None:
    index = index_of([])
    for near in (True, False):
        assert find_duplicates(index, exact=True, near=near, similarity=0.8).clusters() == []
    assert contaminated(index, np.zeros(0, int), np.zeros(0, int), similarity=0.8) == []


Sides = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize("given_as", [np.flatnonzero, np.asarray], ids=["row numbers", "marks"])
def test_training_rows_that_repeat_held_out_rows_are_found(given_as: Sides) -> None:
    index = index_of([STORY, ELSEWHERE, CHANGED, "short", STORY, "Short", "other", CHANGED])
    held_out = np.array([True, False, False, True, False, False, False, False])
    result = contaminated(index, given_as(held_out), given_as(~held_out), similarity=0.8)
    near = pytest.approx(51 / 61)
    assert result == [(2, 0, near), (4, 0, 1.0), (5, 3, 1.0), (7, 0, near)]
    assert contaminated(index, np.array([1]), np.array([0, 2, 3, 4]), similarity=0.8) == []


@unhurried
@given(families_of_texts(), similarities, st.randoms(use_true_random=False))
def test_contamination_is_what_all_pairs_say(texts: list[str], similarity: float, chance: random.Random) -> None:
    index = index_of(texts)
    held_out = np.array([chance.random() < 0.3 for _ in texts])
    result = {
        row: (other, score) for row, other, score in contaminated(index, held_out, ~held_out, similarity=similarity)
    }

    def similar(one: int, other: int) -> float:
        equal = folded(texts[one]) == folded(texts[other])
        return 1.0 if equal else jaccard(index.shingles_of(one), index.shingles_of(other))

    for row in np.flatnonzero(~held_out).tolist():
        best = max((similar(row, other) for other in np.flatnonzero(held_out).tolist()), default=0.0)
        if row in result:
            assert held_out[result[row][0]]
            assert result[row][1] == pytest.approx(similar(row, result[row][0])) and result[row][1] >= similarity
        else:
            assert best < similarity


def test_contamination_that_the_search_for_duplicates_missed_is_found() -> None:
    pairs = [templated(2, 90, 10, seed) for seed in range(3000)]  # similarity 0.82: 0.2 % of them share no band
    index = distinct_sets([each for pair in pairs for each in pair])
    stays = np.flatnonzero(find_duplicates(index, exact=True, near=True, similarity=0.8).kind == 0)
    missed = [row for row in stays.tolist() if row % 2 and row - 1 in stays]
    assert missed
    result = contaminated(index, stays[stays % 2 == 0], stays[stays % 2 == 1], similarity=0.8)
    assert [(row, other) for row, other, _ in result] == [(row, row - 1) for row in missed]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_components_are_what_walking_along_the_pairs_reaches(pairs: list[tuple[int, int]]) -> None:
    components = Components(20)
    reached = [{item} for item in range(20)]
    for one, other in pairs:
        components.join(one, other)
        together = reached[one] | reached[other]
        for item in together:
            reached[item] = together
    for one, other in combinations(range(20), 2):
        assert (components.labels[one] == components.labels[other]) == (other in reached[one])
