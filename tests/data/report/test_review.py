from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.read.messages import Row
from qdora_fast.data.report.review import KIND, VERSION, read_review, sample
from qdora_fast.system.errors import DataError

DATASET = hashlib.sha256(b"version").hexdigest()
HASHES = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(50)]


WRONG = "not valid JSON|empty|not UTF-8|nested more|expected a JSON object|holds no review"


def row(number: int) -> Row:
    name = hashlib.sha256(str(number).encode()).hexdigest()
    return {"messages": [], "tools": None, "meta": {"source": f"x:{number}", "row": number, "hash": name}, "text": "t"}


def saved(good: int = 47, bad: int = 1, **changes: Any) -> dict[str, Any]:
    """What the page saves: `good` rows, then `bad` ones, the others unmarked."""
    verdicts = ["good"] * good + ["bad"] * bad + [None] * (50 - good - bad)
    rows = [{"hash": name, "verdict": each, "note": ""} for name, each in zip(HASHES, verdicts, strict=True)]
    finished = "2026-01-31T12:00:00.000Z"
    whole = {"kind": KIND, "version": VERSION, "dataset": DATASET, "reviewer": "Asha", "finished": finished}
    return whole | {"rows": rows} | changes


def write(folder: Path, review: object) -> Path:
    path = folder / "review.json"
    path.write_text(json.dumps(review), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rows", "shown"), [(0, 0), (1, 1), (24, 24), (25, 25), (500, 25), (700, 35), (1000, 50), (9000, 50)]
)
def test_the_sample_is_a_twentieth_with_a_floor_and_a_ceiling(rows: int, shown: int) -> None:
    assert len(sample([row(i) for i in range(rows)], seed=1)) == shown


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_the_same_rows_are_shown_in_the_same_order_however_they_are_shuffled(
    count: int, seed: int, shuffler: random.Random
) -> None:
    rows = [row(i) for i in range(count)]
    before = [rows[index]["meta"]["hash"] for index in sample(rows, seed=seed)]
    shuffler.shuffle(rows)
    assert [rows[index]["meta"]["hash"] for index in sample(rows, seed=seed)] == before
    assert len(set(before)) == len(before)


def test_another_seed_gives_another_sample_and_no_row_is_favoured() -> None:
    rows = [row(i) for i in range(100)]
    seen = [0] * 100
    for seed in range(400):
        for index in sample(rows, seed=seed):
            seen[index] += 1
    # each of the 100 rows is expected 100 times, with a standard deviation of 8.7
    assert min(seen) > 60 and max(seen) < 140


def test_rows_with_the_same_content_are_shown_once() -> None:
    assert sorted(sample([row(1), row(2), row(1), row(1)], seed=3)) == [0, 1]


def test_a_review_is_read_with_its_counts_notes_and_sentence(tmp_path: Path) -> None:
    content = saved()
    content["rows"][47]["note"] = "the answer is about another question"
    path = write(tmp_path, content)
    review = read_review(path, dataset=DATASET, hashes=HASHES)
    assert (review.reviewer, review.good, review.bad, review.unmarked) == ("Asha", 47, 1, 2)
    assert review.bad_rows == ((HASHES[47], "the answer is about another question"),)
    assert review.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = "Asha marked 48 of 50 rows: 47 good, 1 bad; with 95 % confidence at most 9.6 % of the rows are bad"
    assert review.sentence() == expected
    assert json.loads(json.dumps(review.as_json()))["sentence"] == expected


def test_the_sample_or_all_rows_it_was_drawn_from_may_be_given(tmp_path: Path) -> None:
    everything = HASHES + [hashlib.sha256(f"other {i}".encode()).hexdigest() for i in range(2000)]
    path = write(tmp_path, saved())
    narrow, wide = (read_review(path, dataset=DATASET, hashes=each) for each in (HASHES, everything))
    assert narrow == wide


@settings(deadline=None)
@given(st.integers(0, 50).flatmap(lambda marked: st.tuples(st.just(marked), st.integers(0, marked))))
def test_the_bound_is_where_so_few_bad_rows_would_be_seen_once_in_twenty(
    tmp_path_factory: pytest.TempPathFactory, counts: tuple[int, int]
) -> None:
    marked, bad = counts
    path = write(tmp_path_factory.mktemp("review"), saved(marked - bad, bad))
    if marked == 0:
        with pytest.raises(DataError, match="no row is marked"):
            read_review(path, dataset=DATASET, hashes=HASHES)
        return
    bound = read_review(path, dataset=DATASET, hashes=HASHES).upper_bound
    if bad == marked:
        assert bound == 1
        return
    chance = sum(math.comb(marked, k) * bound**k * (1 - bound) ** (marked - k) for k in range(bad + 1))
    assert chance == pytest.approx(0.05)
    assert bound > bad / marked


@pytest.mark.parametrize(("good", "percent"), [(50, "5.9"), (25, "11.3")])
def test_no_bad_row_is_no_proof_that_there_is_none(tmp_path: Path, good: int, percent: str) -> None:
    review = read_review(write(tmp_path, saved(good, 0)), dataset=DATASET, hashes=HASHES)
    assert f"at most {percent} %" in review.sentence()


def test_a_review_of_other_data_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = write(tmp_path, saved(dataset="ab" * 32))
    with pytest.raises(
        DataError, match=rf"abababababab\.\.\., the data is now {DATASET[:12]}\.\.\.; make a new sample"
    ):
        read_review(path, dataset=DATASET, hashes=HASHES)


ROWS = saved()["rows"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "something"}, "not a review of version 1"),
        ({"version": 2}, "not a review of version 1"),
        ({"dataset": None}, "does not say which version"),
        ({"reviewer": " \x1b\n"}, "name of the person"),
        ({"reviewer": 5}, "name of the person"),
        ({"finished": "yesterday"}, "write a time such as"),
        ({"finished": None}, "write a time such as"),
        ({"rows": {}}, "`rows` is not a list"),
        ({"rows": []}, "`rows` is not a list"),
        ({"rows": ["good"]}, "row 1 has no `hash`"),
        ({"rows": [{"verdict": "good"}]}, "row 1 has no `hash`"),
        ({"rows": [*ROWS[:3], {**ROWS[3], "verdict": "fine"}]}, 'row 4: the verdict is "fine"'),
        ({"rows": [{**ROWS[0], "verdict": ["good"]}]}, "row 1: the verdict is"),
        ({"rows": [{**ROWS[0], "note": None}]}, "row 1: the note is null"),
        ({"rows": [*ROWS, {**ROWS[0], "hash": "f" * 64}]}, "row 51: ffffffffffff... is no row of this data"),
        ({"rows": [*ROWS, ROWS[7]]}, "row 51: .* is marked twice"),
        ({"rows": ROWS[:24]}, "24 rows of a sample of at least 25"),
        ({"rows": [{**each, "verdict": None} for each in ROWS]}, "no row is marked"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, saved(**changes))
    with pytest.raises(DataError, match=message) as raised:
        read_review(path, dataset=DATASET, hashes=HASHES)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"null", b"[1]", b'"good"'])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "review.json"
    path.write_bytes(content)
    with pytest.raises(
        DataError,
        match=rf"review\.json: ({WRONG})",
    ):
        read_review(path, dataset=DATASET, hashes=HASHES)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_review(path, dataset=DATASET, hashes=HASHES)


def test_a_name_cannot_steer_the_terminal_and_letters_of_all_scripts_stay(tmp_path: Path) -> None:
    name = "\x1b[31m  आशा\u200d क्\u200dष\n\ud800 "
    review = read_review(write(tmp_path, saved(reviewer=name)), dataset=DATASET, hashes=HASHES)
    assert review.reviewer == "[31m आशा\u200d क्\u200dष"
    review.sentence().encode()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["good", HASHES[0]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["hash", "verdict", "note"]), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(saved())), values))
def test_any_json_is_either_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = write(tmp_path_factory.mktemp("review"), saved(**changes))
    try:
        review = read_review(path, dataset=DATASET, hashes=HASHES)
    except DataError as error:
        message = str(error)
    else:
        message = f"{path}: {review.sentence()}"
        assert review.good + review.bad + review.unmarked == len(saved(**changes)["rows"])
    assert message.startswith(f"{path}: ")
    message.encode()
