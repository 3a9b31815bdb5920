from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data import prepare
from qdora_fast.data.dataset import Prepared
from qdora_fast.system.errors import DataError

GOOD = [{"instruction": f"Name number {i}", "input": "", "output": f"It is {i}"} for i in range(40)]


def prepared(path: Path, rows: list[Any], seed: int = 42, **settings: Any) -> Prepared:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(DataSettings(path=str(path), **settings), seed=seed)


def test_rows_are_split_and_say_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data = prepared(path, GOOD)
    assert len(data.train) + len(data.held_out) == 40
    assert 4 <= len(data.held_out) <= 6
    first = data.train[0]
    assert first["meta"]["source"] == f"{path}:{first['meta']['row']}"
    assert first["messages"][1] == {"role": "assistant", "content": f"It is {first['meta']['row'] - 1}"}
    assert first["tools"] is None
    assert len(first["meta"]["hash"]) == 64


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = [{"instruction": "x", "output": ""}, {"instruction": "y", "output": " "}, {"instruction": "", "output": "z"}]
    bad += [{"instruction": "no answer at all"}]
    rows = [*GOOD, *bad, GOOD[0] | {"instruction": "q", "input": "n/a"}]
    data = prepared(path, rows, format="alpaca", on_bad_row="skip")
    report = data.report
    assert report.rows_in == 45
    assert report.kept == 41 == report.train + report.held_out == len(data.train) + len(data.held_out)
    dropped = [(each.reason, each.count) for each in report.dropped]
    assert dropped == [("empty_answer", 2), ("empty_prompt", 1), ("missing_field", 1)]
    assert report.dropped[0].examples == (f"{path}:41, output", f"{path}:42, output")
    assert report.repairs == {"placeholder_input": 1}
    plain = report.as_json()
    assert {key: plain[key] for key in ("rows_in", "kept", "dropped", "train", "held_out", "hash")} == {
        "rows_in": 45,
        "kept": 41,
        "dropped": {"empty_answer": 2, "empty_prompt": 1, "missing_field": 1},
        "train": report.train,
        "held_out": report.held_out,
        "hash": report.hash,
    }
    assert json.loads(json.dumps(plain)) == plain
    rejected = [json.loads(line) for line in (data.folder / "rejected.jsonl").read_text().splitlines()]
    assert [(each["place"], each["reason"]) for each in rejected][-1] == (f"{path}:44", "missing_field")


def test_a_row_that_cannot_be_read_stops_the_run_unless_it_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in GOOD]
    lines[2:2] = ['{"instruction": "cut', "[1, 2]", '{"instruction": "q", "output": {"a": 1}}']
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        prepare(DataSettings(path=str(path)), seed=1)
    message = str(caught.value)
    assert "3 of 43 rows cannot be read" in message
    for expected in ("bad_json", "rows.jsonl:3", "not_an_object", "rows.jsonl:4", "wrong_type", "rows.jsonl:5"):
        assert expected in message
    assert "data.on_bad_row: skip" in message
    report = prepare(DataSettings(path=str(path), on_bad_row="skip"), seed=1).report
    assert (report.rows_in, report.kept) == (43, 40)
    assert report.steps()[0] | {"dropped": {}} == {"step": "read", "rows_in": 43, "rows_out": 41, "dropped": {}}


def test_the_same_rows_in_any_order_and_any_file_are_the_same_data(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one.jsonl", GOOD)
    other = prepared(tmp_path / "other.jsonl", random.Random(1).sample(GOOD, len(GOOD)))
    assert one.report.hash == other.report.hash
    assert {row["meta"]["hash"] for row in one.held_out} == {row["meta"]["hash"] for row in other.held_out}


def test_one_changed_letter_or_another_split_or_setting_is_other_data(tmp_path: Path) -> None:
    reference = prepared(tmp_path / "rows.jsonl", GOOD).report.hash
    assert prepared(tmp_path / "rows.jsonl", [*GOOD[1:], GOOD[0] | {"output": "It is 0."}]).report.hash != reference
    assert prepared(tmp_path / "rows.jsonl", GOOD, seed=7).report.hash != reference
    assert prepared(tmp_path / "rows.jsonl", GOOD, filters={"refusals": True}).report.hash != reference


def test_the_version_of_the_data_is_the_same_on_every_machine() -> None:
    """A fixed value: it may change only when what is kept of the embedded rows changes, or the settings do."""
    report = prepare(DataSettings(path="demo"), seed=42).report
    assert report.content_hash == "a29104a921471dbca017fb032ac798e9e32a05a67f726579b59562589f6fef24"


def test_rows_that_say_the_same_are_kept_once_and_named(tmp_path: Path) -> None:
    story = " ".join(f"word{i}" for i in range(60))
    rows = [*GOOD, GOOD[3] | {"output": "IT  is 3"}, {"instruction": "Tell a story", "output": story}]
    rows += [{"instruction": "Tell a story", "output": f"{story} end"}]
    data = prepared(tmp_path / "rows.jsonl", rows)
    assert {each.reason: each.count for each in data.report.dropped} == {"exact_duplicate": 1, "near_duplicate": 1}
    kept = [row["messages"][1]["content"] for row in (*data.train, *data.held_out)]
    assert f"{story} end" in kept and story not in kept, "the longest stays"
    clusters = [json.loads(line) for line in (data.folder / "duplicates.jsonl").read_text().splitlines()]
    assert len(clusters) == data.report.duplicates.clusters == 2
    near = next(cluster for cluster in clusters if cluster["members"][0]["kind"] == "near")
    assert near["kept"].endswith("rows.jsonl:43")
    assert 0.8 <= near["members"][0]["similarity"] < 1
    both = prepared(tmp_path / "rows.jsonl", rows, dedup={"exact": False, "near": False})
    assert both.report.kept == 43
    stories = [side for side in (both.train, both.held_out) for row in side if "Tell" in row["messages"][0]["content"]]
    assert stories[0] is stories[1], "what stays alike stays on one side"


def test_own_held_out_rows_are_taken_whole_and_nothing_like_them_is_trained_on(tmp_path: Path) -> None:
    held = [GOOD[0], GOOD[1], GOOD[1], {"instruction": "Only here", "output": "yes"}]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    rows = [*GOOD, {"instruction": "name NUMBER 1", "output": "another answer"}]
    data = prepared(tmp_path / "rows.jsonl", rows, held_out_path=str(tmp_path / "held.jsonl"))
    assert len(data.held_out) == 4
    assert data.report.dropped_for("in_held_out") == 3
    asked = {row["messages"][0]["content"].casefold() for row in data.train}
    assert not asked & {row["messages"][0]["content"].casefold() for row in data.held_out}
    assert data.report.train == 38
    assert data.report.sources[1].held_out == 4


def test_a_mixture_is_thinned_and_repeated_by_its_weights(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("b", 400), ("c", 40)):
        rows = [{"question": f"What is {name}{i}?", "answer": f"It is {i} of {name}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(tmp_path / f"{name}.jsonl"), "weight": w} for name, w in (("a", 3), ("b", 0.5), ("c", 1))]
    data = prepare(DataSettings(sources=sources), seed=1)
    a, b, c = data.report.sources
    assert a.per_epoch == 3 * a.train and c.per_epoch == c.train
    assert 140 <= b.train <= 220 and b.held_out >= 40, "held-out rows are not thinned"
    assert data.report.per_epoch == a.per_epoch + b.per_epoch + c.per_epoch
    assert data.report.kept + data.report.dropped_for("thinned") == 480
    assert [row["meta"]["origin"] for row in data.train] == sorted(row["meta"]["origin"] for row in data.train)
    again = prepare(DataSettings(sources=sources, cache=False), seed=1)
    assert again.report == data.report


def test_a_conversation_stays_on_one_side_and_every_stratum_is_asked(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "answer": f"a{i}", "chat": i // 4, "kind": "rare" if i % 5 == 0 else "usual"}
        for i in range(400)
    ]
    grouped = prepared(tmp_path / "rows.jsonl", rows, group="chat")
    chats = [{(row["meta"]["row"] - 1) // 4 for row in side} for side in (grouped.train, grouped.held_out)]
    assert not chats[0] & chats[1]
    assert grouped.report.split.groups == 100
    layered = prepared(tmp_path / "rows.jsonl", rows, stratify="kind")
    strata = {value: (train, held) for value, train, held in layered.report.split.strata}
    assert sum(strata["rare"]) == 80 and 8 <= strata["rare"][1] <= 12
    assert sum(strata["usual"]) == 320 and 32 <= strata["usual"][1] <= 48


def test_mostly_malformed_data_is_refused_with_reasons_and_places(tmp_path: Path) -> None:
    rows = GOOD[:10] + [{"instruction": "x", "output": ""}] * 11
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "rows.jsonl", rows, on_bad_row="skip")
    message = str(caught.value)
    assert "11 of 21 rows cannot be used" in message
    assert "as `alpaca`" in message
    assert "11 x empty_answer" in message
    assert "rows.jsonl:11" in message


def test_an_answer_that_reads_na_survives_csv(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("question,answer\nCode of Namibia?,NA\n" + "".join(f"Code {i}?,{i:03}\n" for i in range(11)))
    data = prepare(DataSettings(path=str(path), held_out=0), seed=1)
    assert [row["messages"][-1]["content"] for row in data.train][:3] == ["NA", "000", "001"]
    assert len(data.held_out) == 0


def test_plain_text_rows_have_no_messages(tmp_path: Path) -> None:
    data = prepared(tmp_path / "rows.jsonl", [{"text": f"story {i}"} for i in range(20)])
    assert data.report.sources[0].format == "text"
    assert all(row["messages"] == [] and row["text"].startswith("story") for row in (*data.train, *data.held_out))


def test_the_embedded_rows_are_usable() -> None:
    data = prepare(DataSettings(path="demo"), seed=42)
    assert data.report.dropped == ()
    assert data.report.sources[0].format == "alpaca"
    assert 0.1 <= data.report.held_out / data.report.rows_in <= 0.15


def test_max_rows_limits_what_is_read(tmp_path: Path) -> None:
    assert prepared(tmp_path / "rows.jsonl", GOOD, max_rows=12).report.rows_in == 12


GREETED = {"conversations": [{"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "Hi"}]}


def greeted(number: int) -> dict[str, Any]:
    return {"conversations": [*GREETED["conversations"], {"from": "gpt", "value": f"What is {number}, dear friend?"}]}


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        ([greeted(i) for i in range(20)], {}, "20 of 20 rows were dropped:\n  - 20 x role_order: .*rows.jsonl:1, .*"),
        ([greeted(i) for i in range(20)], {"held_out": 0}, "role_order: false keeps them\nno row is left to train on"),
        ([GOOD[0] | {"input": "x"}] * 30, {}, "- 29 x exact_duplicate: .*dedup.exact: false keeps them\n1 usable rows"),
        ([{**row, "output": row["output"] + "\x85"} for row in GOOD], {}, r"40 x control_characters: .*U\+0085"),
        (
            [{**row, "output": "TODO"} for row in GOOD[:31]] + GOOD[31:],
            {},
            "31 of 40 .*\n.*placeholder.*\n9 usable",
        ),
    ],
)
def test_too_few_rows_are_explained_by_what_dropped_the_others(
    rows: list[Any], settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=expected):
        prepared(tmp_path / "rows.jsonl", rows, **settings)


def test_held_out_rows_of_which_none_can_be_used_are_an_error(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(GOOD[0] | {"output": ""}) + "\n")
    with pytest.raises(DataError, match="1 x empty_answer: .*own.jsonl:1.*\nno row of data.held_out_path can be used"):
        prepared(tmp_path / "rows.jsonl", GOOD, held_out_path=str(own), on_bad_row="skip")
