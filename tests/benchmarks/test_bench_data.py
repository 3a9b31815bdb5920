"""The data benchmark: what is planted is what it says, the grade sees what is wrong, and the whole runs once."""

from __future__ import annotations

import copy
import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from heard import heard
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import records
from benchmarks.data import data_bench, data_grade, data_table
from benchmarks.data.data_bench import run_data_benchmark
from benchmarks.data.near_pairs import near_pairs
from benchmarks.data.planting import CHAT, DECOY_RANGE, HELD, NEAR_RANGE, TRAIN, Planted, plant
from benchmarks.data.process_tree import run_alone
from benchmarks.data.seed_text import ALIKE, Writer, demo_seeds, folded, real_seeds, shingles_of
from benchmarks.options import DataOptions
from qdora_fast.config import DataSettings
from qdora_fast.data import prepare
from qdora_fast.data.clean.rejects import REASONS
from qdora_fast.data.clean.similarity import jaccard
from qdora_fast.system.errors import ConfigError, QdoraError

ROWS = 1_000
NEEDS_TOKENS = {"short", "long", "special token"}
KNOWN_LIMIT = {"cut calculation"}
"""Lines with = or < are taken for code, and not judged by their last word."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"), ROWS, Writer(demo_seeds(), random.Random(0)))


@pytest.fixture(scope="module")
def result(planted: Planted) -> dict[str, Any]:
    """What data_arm.py writes, without a tokenizer: faults that only tokens show stay in."""
    formats = {TRAIN: "alpaca", CHAT: "chatml"}
    sources = [{"path": str(planted.folder / name), "format": kind} for name, kind in formats.items()]
    section = {"sources": sources, "held_out_path": str(planted.folder / HELD), "on_bad_row": "skip", "cache": False}
    prepared = prepare(DataSettings.model_validate(section), seed=0)
    report = prepared.report.as_json()
    sides = {"train": prepared.train, "held_out": prepared.held_out}
    return {
        "report": report,
        "duplicate_ids": report["duplicate_ids"]["count"],
        **{name: [row["meta"]["source"] for row in side] for name, side in sides.items()},
        **{
            name: [json.loads(line) for line in (prepared.folder / f"{name}.jsonl").read_text().splitlines()]
            for name in ("rejected", "duplicates")
        },
    }


sets = st.lists(st.frozensets(st.integers(0, 12), max_size=9), max_size=12)


@settings(max_examples=examples(300), deadline=None)
@given(sets, st.sampled_from([0.3, 0.5, 0.6, 0.8, 1.0]))
def test_the_exact_join_finds_the_pairs_that_brute_force_finds(given_sets: list[frozenset[int]], least: float) -> None:
    pairs = [(frozenset((one, other)), score) for one, other, score in near_pairs(given_sets, least)]
    expected = {
        frozenset((one, other)): jaccard(given_sets[one], given_sets[other])
        for one, other in combinations(range(len(given_sets)), 2)
        if jaccard(given_sets[one], given_sets[other]) >= least
    }
    assert dict(pairs) == expected and len(pairs) == len(expected)


def test_rows_in_which_nothing_is_planted_are_unlike_each_other() -> None:
    rows = Writer(demo_seeds(), random.Random(3)).different(250)
    assert len({folded(row["instruction"]) for row in rows}) == len(rows) == 250
    by_row = [shingles_of(row) for row in rows]
    assert max(jaccard(one, other) for one, other in combinations(by_row, 2)) < ALIKE


def test_pairs_are_as_similar_as_their_kind_says(planted: Planted) -> None:
    def similar(pair: Any) -> float:
        one, other = (shingles_of(planted.contents[place]) for place in pair)
        return jaccard(one, other)

    limits = {
        "exact": (1, 1),
        "held out, exact": (1, 1),
        "near": NEAR_RANGE,
        "held out, near": NEAR_RANGE,
        "decoys": DECOY_RANGE,
        "held out, prompt": (0, ALIKE),
    }
    assert planted.pairs.keys() == limits.keys()
    for kind, (low, high) in limits.items():
        assert all(low <= similar(pair) <= high for pair in planted.pairs[kind]), kind
        crossed = kind.startswith("held out")
        assert all((pair[0][0] == HELD) == crossed for pair in planted.pairs[kind] if kind != "decoys")


def test_each_row_of_the_files_is_known(planted: Planted) -> None:
    known = planted.contents.keys() | planted.faults.keys()
    lines = {
        (name, number)
        for name in (TRAIN, CHAT, HELD)
        for number, _ in enumerate((planted.folder / name).read_bytes().splitlines(), 1)
    }
    assert known == lines and len(lines) == planted.rows
    assert sum(place[0] == TRAIN for place in known) == ROWS


def test_every_fault_falls_to_its_reason(planted: Planted, result: dict[str, Any]) -> None:
    told = data_grade.grade(planted, result)["faults"]
    assert {each["reason"] for each in told.values()} <= REASONS.keys()
    missed = {name for name, each in told.items() if each["found"] < each["planted"]}
    assert missed - KNOWN_LIMIT == NEEDS_TOKENS


def test_a_sound_preparation_is_green(planted: Planted, result: dict[str, Any]) -> None:
    graded = data_grade.grade(planted, result)
    assert graded["gate"] == {"passed": True, "red": []}
    assert all(each["recall"] == 1 for each in graded["pairs"].values())
    assert graded["decoys"]["kept"] == graded["decoys"]["planted"] > 0
    assert graded["duplicate_ids"]["found"] == graded["duplicate_ids"]["planted"] > 0
    assert graded["unplanted"] == {}


def _let_back(result: dict[str, Any], planted: Planted, kind: str) -> dict[str, Any]:
    """The result as if the second rows of a kind had been kept."""
    copies = {pair[1] for pair in planted.pairs[kind]}
    changed = copy.deepcopy(result)
    back = [each for each in changed["rejected"] if planted.place(each["place"]) in copies]
    assert back
    changed["rejected"] = [each for each in changed["rejected"] if each not in back]
    changed["train"] += [each["place"] for each in back]
    return changed


@pytest.mark.parametrize("kind", ["held out, exact", "held out, near", "held out, prompt"])
def test_a_row_on_both_sides_of_the_split_is_red(planted: Planted, result: dict[str, Any], kind: str) -> None:
    graded = data_grade.grade(planted, _let_back(result, planted, kind))
    assert not graded["gate"]["passed"] and graded["left"][kind] == len(planted.pairs[kind])
    assert any("have their like in training" in why for why in graded["gate"]["red"])


def test_a_missed_duplicate_is_red(planted: Planted, result: dict[str, Any]) -> None:
    exact = planted.pairs["exact"]
    unfound = {place for pair in exact for place in pair}
    changed = copy.deepcopy(result)
    changed["rejected"] = [each for each in changed["rejected"] if planted.place(each["place"]) not in unfound]
    graded = data_grade.grade(planted, changed)
    assert graded["pairs"]["exact"]["found"] == 0
    assert "exact: 0.00% found, not all" in graded["gate"]["red"]


def test_a_row_that_is_dropped_as_near_to_a_decoy_is_no_duplicate(planted: Planted, result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    folder = planted.folder
    for one, other in ([f"{folder / name}:{line}" for name, line in pair] for pair in planted.pairs["decoys"]):
        changed["rejected"].append({"place": other, "reason": "near_duplicate", "detail": ""})
        changed["duplicates"].append({"kept": one, "members": [{"place": other, "kind": "near", "similarity": 0.9}]})
    graded = data_grade.grade(planted, changed)
    wrong = graded["near"]["dropped"] - graded["near"]["right"]
    assert wrong == len(planted.pairs["decoys"]) and graded["decoys"]["kept"] == 0
    assert any("of the dropped rows are duplicates" in why for why in graded["gate"]["red"])


def test_a_row_that_nobody_accounts_for_is_red(planted: Planted, result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["rejected"].pop()
    assert any("rows are lost" in why for why in data_grade.grade(planted, changed)["gate"]["red"])


def test_marks_of_the_baseline_are_graded_by_the_same_truth(planted: Planted) -> None:
    other = planted.pairs["near"][0][1]
    decoy = planted.pairs["decoys"][0][1]
    told = data_grade.grade_marks(planted, [f"/a/{other[0]}:{other[1]}", f"/a/{decoy[0]}:{decoy[1]}"])
    assert told["recall"]["near"] == 1 / len(planted.pairs["near"]) and told["recall"]["exact"] == 0
    assert told["precision"] == 0.5


def test_real_rows_of_any_shape_become_seeds_and_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "Why?", "completion": "Because."}\n{"prompt": "", "completion": "x"}\n'
    )
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ana."}]
    (tmp_path / "b.json").write_text(json.dumps([{"conversations": [*turns, *turns]}]))
    (tmp_path / "c.csv").write_text("one\n1\n")
    said: list[str] = []
    assert real_seeds([str(tmp_path)], said.append) == [("Why?", "Because."), ("Who?", "Ana.")]
    assert any("c.csv is left out" in line for line in said)
    with pytest.raises(ConfigError, match="nothing there"):
        real_seeds([str(tmp_path / "none")], said.append)


def test_memory_of_a_process_and_its_children_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "takes.py"
    script.write_text(
        "import json, os, sys, time\n"
        "child = os.fork()\n"
        "block = bytearray(os.urandom(64 * 2**20))\n"  # in both processes
        "time.sleep(1.5)\n"
        "if not child: os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "open(sys.argv[2], 'w').write(json.dumps({'cache': os.environ['QDORA_FAST_CACHE']}))\n"
    )
    told = run_alone(script, {}, cache=tmp_path)
    assert told["cache"] == str(tmp_path) and told["process_s"] > 1.5
    assert 128 * 2**20 <= told["own_bytes"] <= told["mapped_bytes"] < 260 * 2**20


def test_a_process_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('out of luck')\n")
    with pytest.raises(QdoraError, match="out of luck"):
        run_alone(script, {}, cache=tmp_path)


@pytest.mark.parametrize(
    ("options", "says"), [(DataOptions(baseline="rensa"), "--baseline rensa"), (DataOptions(rows=10), "--rows 10")]
)
def test_mistakes_are_named(options: DataOptions, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_data_benchmark(options)


def test_a_red_gate_tells_what_is_wrong_and_no_figure() -> None:
    red = {"kind": "data", "gate": {"passed": False, "red": ["near: 90.00% found"]}, "machine": MACHINE}
    with heard() as said:
        data_table.show(red)
    assert said.getvalue().strip() == "gate RED: near: 90.00% found"
    said = records.render({"a-set": red})
    assert "near: 90.00% found" in said.split("## Data preparation")[1] and "rows/s" not in said


def test_a_red_gate_stops_the_measuring(
    planted: Planted, result: dict[str, Any], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def lost(script: Path, spec: dict[str, Any], *, cache: Path) -> dict[str, Any]:
        asked.append(spec)
        return copy.deepcopy(result) | {"rejected": result["rejected"][1:]}

    monkeypatch.setattr(data_bench, "run_alone", lost)
    monkeypatch.setattr(data_bench, "plant", lambda folder, rows, writer: planted)
    monkeypatch.setattr("qdora_fast.data.demo.base.demo_base", lambda: tiny_base)
    record = run_data_benchmark(DataOptions(rows=ROWS), command=[])
    assert not record["gate"]["passed"] and len(asked) == 1
    assert not record.keys() & {"first", "second", "inside", "baseline", "memory"}


def test_memory_is_measured_on_longer_texts_and_on_more_rows(
    planted: Planted, result: dict[str, Any], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[int, int]] = []

    def told(script: Path, spec: dict[str, Any], *, cache: Path) -> dict[str, Any]:
        if path := spec["settings"].get("path"):
            lines = Path(path).read_bytes().splitlines()
            prepared.append((len(lines), len(lines[0])))
        steps = dict.fromkeys(STEPS, 0.1)
        took = {"seconds": 1.0, "process_s": 2.0, "own_bytes": 3, "mapped_bytes": 4, "tokens": 5, "steps": steps}
        return copy.deepcopy(result) | took

    monkeypatch.setattr(data_bench, "run_alone", told)
    monkeypatch.setattr(data_bench, "plant", lambda folder, rows, writer: planted)
    monkeypatch.setattr("qdora_fast.data.demo.base.demo_base", lambda: tiny_base)
    options = DataOptions(rows=ROWS, baseline="none", memory_rows=200, text_factors=(1, 8), row_factors=(1, 2))
    record = run_data_benchmark(options, command=[])
    assert [(each["rows"], each["length"]) for each in record["memory"]] == [(200, 1), (200, 8), (400, 1)]
    assert [rows for rows, _ in prepared] == [200, 200, 200, 400]  # the first one twice: its second start
    assert "second_s" in record["memory"][0] and "second_s" not in record["memory"][1]
    small, long = record["memory"][0]["file_bytes"], record["memory"][1]["file_bytes"]
    assert 4 < long / small < 9


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_whole_runs_and_its_record_becomes_a_part_of_the_document(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdora_fast.data.demo.base.demo_base", lambda: tiny_base)
    seeds = tmp_path / "own rows.jsonl"
    rows = ({"prompt": seed.question, "completion": seed.answer} for seed in demo_seeds())
    seeds.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = DataOptions(rows=ROWS, seeds=(str(seeds),), memory_rows=0)
    record = run_data_benchmark(options, command=["bench-data", "--from", str(seeds)])
    assert record["gate"]["passed"], record["gate"]
    missed = {name for name, each in record["found"]["faults"].items() if each["found"] < each["planted"]}
    assert missed <= KNOWN_LIMIT
    assert record["first"]["report"] == record["second"]["report"]
    assert sum(record["first"]["steps"].values()) == pytest.approx(record["first"]["seconds"])
    assert record["baseline"]["found"]["recall"]["exact"] == 1
    said = records.render({"a-set": json.loads(json.dumps(record))})
    assert "held out, near" in said and "bench-data --from 'own rows.jsonl'" in said
    assert str(tmp_path) not in json.dumps(record)


STEPS = (
    "hash the files",
    "read and process rows",
    "find duplicates",
    "check contamination",
    "all selection",
    "report",
    "all processing",
)
MACHINE = {
    "cpu": "a processor",
    "cpu_cores": 2,
    "python": "3.11.7",
    "libraries": {"datasketch": "2.0.0"},
    "date": "2026-11-25",
    "commit": "abc",
    "command": "bench-data",
}
