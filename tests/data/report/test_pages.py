from __future__ import annotations

import json
import re
from typing import Any

import pytest
from breadth import examples
from html_pages import HOSTILE, Page
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.read.messages import Row
from qdora_fast.data.report.pages import report_page, review_page
from qdora_fast.data.report.review import KIND, VERSION

NAME = "a set"


def row(question: str, answer: str, *, place: str = "rows.jsonl:1", name: str = "abc", **changes: Any) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    whole: Any = {"messages": messages, "tools": None, "meta": {"source": place, "row": 1, "hash": name}}
    return whole | changes


def sample_of(html: str) -> dict[str, Any]:
    """The rows that the review page carries."""
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 2
    return json.loads(page.scripts[0])


wild = st.text(max_size=40) | st.sampled_from(HOSTILE)
"""Texts, many of them hostile."""


# ---------------------------------------------------------------- review


@settings(deadline=None)
@given(st.lists(st.tuples(wild, wild, wild), max_size=4), wild, wild)
def test_no_text_of_a_row_is_ever_markup_and_every_character_arrives(
    texts: list[tuple[str, str, str]], dataset: str, name: str
) -> None:
    rows = [row(question, answer, place=place, name=place) for question, answer, place in texts]
    html = review_page(rows, dataset=dataset, name=name)
    sample = sample_of(html)
    assert Page(html).tags == Page(review_page([], dataset="d", name="n")).tags
    assert sample["dataset"] == dataset
    for shown, (question, answer, place) in zip(sample["rows"], texts, strict=True):
        assert [turn["text"] for turn in shown["turns"]] == [question, answer]
        assert (shown["place"], shown["hash"]) == (place, place)


def test_half_a_surrogate_pair_does_not_stop_a_page() -> None:
    report_page(report("\ud83d"), name="\udc00").encode()
    html = review_page([row("\ud83d", "\udc00")], dataset="d", name="\udc00")
    html.encode()
    assert [turn["text"] for turn in sample_of(html)["rows"][0]["turns"]] == ["\ud83d", "\udc00"]


def test_a_reader_sees_who_speaks_and_what_is_learned() -> None:
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"id": 2**70, "share": float("nan")}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": "", "reasoning_content": "I need the tool.", "tool_calls": [call]},
        {"role": "tool", "content": '{"found": 1}', "name": "lookup"},
        {"role": "assistant", "content": "Hm.", "train": False},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Found."},
    ]
    tools = [{"type": "function", "function": {"name": "lookup"}}]
    html = review_page([row("", "", messages=messages, tools=tools)], dataset="d", name=NAME)
    turns = sample_of(html)["rows"][0]["turns"]
    assert [(turn["label"], turn["learned"]) for turn in turns] == [
        ("Tools on offer: lookup", False),
        ("System", False),
        ("User", False),
        ("Assistant: reasoning", True),
        ("Assistant calls lookup", True),
        ("Tool result (lookup)", False),
        ("Assistant, not learned", False),
        ("User", False),
        ("Assistant", True),
    ]
    # numbers that JavaScript would round, and that its JSON does not know, come as text
    assert str(2**70) in turns[4]["text"] and "NaN" in turns[4]["text"]


def test_plain_text_is_one_turn() -> None:
    plain = row("", "", messages=[], text="Once upon a time.")
    turns = sample_of(review_page([plain], dataset="d", name=NAME))["rows"][0]["turns"]
    assert turns == [{"kind": "said", "label": "Text", "text": "Once upon a time.", "learned": True}]


def test_the_script_finds_its_elements_and_writes_text_only() -> None:
    page = Page(review_page([row("q", "a")], dataset="d", name=NAME))
    script = page.scripts[1]
    used = set(re.findall(r'\$\("([\w-]+)"\)', script)) | set(re.findall(r'getElementById\("([\w-]+)"\)', script))
    buttons = re.search(r"const BUTTONS = \{(.*?)\}", script)
    assert buttons
    used |= set(re.findall(r'"?([\w-]+)"?: "\w"', buttons[1]))
    assert used and used <= page.ids
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|import", script)


def test_the_page_saves_what_the_reader_of_reviews_expects() -> None:
    script = Page(review_page([], dataset="d", name=NAME)).scripts[1]
    assert f'kind: "{KIND}", version: {VERSION}, dataset: sample.dataset' in script
    assert all(f"{key}:" in script for key in ("reviewer", "finished", "rows", "hash", "verdict", "note"))


# ---------------------------------------------------------------- report


def report(text: str = "words", number: int = 12_345) -> dict[str, Any]:
    """A report with every part, `text` at each place where something from the data may stand."""
    member = {"place": text, "kind": "near", "similarity": 0.91}
    return {
        "rows_in": 50_000,
        "kept": 41_000,
        "train": 37_000,
        "held_out": 4_000,
        "per_epoch": 39_000,
        "dropped": {"near_duplicate": number, "bad_json": 3},
        "examples": {"near_duplicate": [text, text], "bad_json": [text]},
        "reasons": {"near_duplicate": text},
        "repairs": {"turns_merged": 17},
        "hash": text,
        "content_hash": text,
        "settings_hash": text,
        "warnings": [text, text],
        "steps": [
            {"step": "read", "rows_in": 50_000, "rows_out": 49_997, "dropped": {"bad_json": 3}},
            {"step": "near-duplicates", "rows_in": 49_997, "rows_out": 41_000, "dropped": {}},
        ],
        "sources": [
            {"path": text, "weight": 0.5, "rows_in": 1, "train": 1, "held_out": 1, "per_epoch": 2, "tokens": 600}
            | {"format": text, "why": text, "agreement": 0.97, "checked": 100, "skipped": [text]}
            | {"files": [[text, 5], [text, 7]]}
        ]
        * 2,
        "duplicates": {"exact": 5, "near": 6, "clusters": 1}
        | {"largest": [{"kept": text, "text": text, "size": 40, "members": [member] * 12}]},
        "contamination": {"found": 0, "similarity": 0.8},
        "split": {"groups": 900, "group": text, "stratify": text, "strata": {text: [90, 10]}},
        "tokens": {
            **{"total": 9_876_543, "trained": 1_234_567, "trained_share": 0.126, "longest": 1900, "mean": 222.2},
            **{"percentiles": {"50": 200, "90": 700, "99": 1500}, "max_length": 1024, "limit": 921},
            **{"truncated": 2, "too_short": 4, "too_long": 1, "flags": {"no_bos": 8}},
            "histogram": {"edges": [0, 512, 1024, 2048], "counts": [700, 40, 9]},
        },
        "scripts": {text: 0.98, f"Latin {text}": 0.0002},
        "languages": {text: 1.0},
        "languages_of": 1000,
        "packing": {"efficiency": 0.973, "sequences": 1234, "padded_efficiency": 0.41},
        "suggested_max_length": 1536,
        "duplicate_ids": {"column": text, "count": 2, "examples": [text]},
        "quality": {
            **{"scored": 100, "not_scored": 3, "dropped": {"high_ifd": 2}, "limited": 1, "blind": True},
            "quantiles": {"0.05": 0.3, "0.5": 0.6},
            "worst": [
                {"place": text, "prompt": text, "answer": text, "ifd": 1e9, "conditional": 4.25, "dropped": True}
            ],
        },
        "review": {"sentence": text, "bad_rows": [{"hash": text, "note": text}]},
    }


@settings(deadline=None)
@given(wild.filter(bool), wild)
def test_nothing_of_the_data_is_markup_in_the_report(text: str, name: str) -> None:
    page = Page(report_page(report(text), name=name))
    assert page.tags == Page(report_page(report("harmless"), name="n")).tags
    assert not page.scripts


@settings(max_examples=examples(60), deadline=None)
@given(st.sets(st.sampled_from(sorted(report()))), st.sampled_from(["absent", "none", "empty"]))
def test_a_report_without_some_of_its_parts_is_still_a_page(parts: set[str], how: str) -> None:
    partial = report()
    for part in parts:
        if how == "absent":
            del partial[part]
        else:
            partial[part] = None if how == "none" else type(partial[part])()
    text = Page(report_page(partial, name=NAME)).text
    assert NAME in text
    assert "None" not in text and "Undefined" not in text


by_name = {"dropped", "examples", "reasons", "repairs", "scripts", "languages"}  # their keys are not ours
inner_parts = [
    (part, key) for part, value in report().items() if isinstance(value, dict) and part not in by_name for key in value
]


@pytest.mark.parametrize(("part", "key"), inner_parts)
@pytest.mark.parametrize("absent", [True, False], ids=["absent", "none"])
def test_a_part_without_one_of_its_figures_is_still_shown(part: str, key: str, absent: bool) -> None:
    partial = report()
    if absent:
        del partial[part][key]
    else:
        partial[part][key] = None
    assert "None" not in Page(report_page(partial, name=NAME)).text


def test_an_empty_report_is_a_page() -> None:
    assert NAME in Page(report_page({}, name=NAME)).text


@pytest.mark.parametrize(
    "html", [report_page(report(), name=NAME), review_page([row("q", "a")], dataset="d", name="n")]
)
def test_a_page_asks_nothing_of_the_network(html: str) -> None:
    page = Page(html)
    attributes = [attrs for _, attrs in page.tags]
    assert not [attrs for attrs in attributes if {"src", "href", "srcset", "action"} & set(attrs)]
    assert not [key for attrs in attributes for key in attrs if key.startswith("on")]
    assert "url(" not in html and "@import" not in html
    policy = next(attrs["content"] for attrs in attributes if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; ")
    assert ("script-src" in policy) == bool(page.scripts)


def test_figures_are_written_for_people() -> None:
    text = Page(report_page(report(), name=NAME)).text
    assert "41,000 of 50,000 rows stay: 37,000 to train on (39,000 an epoch, by the weights), 4,000 held out." in text
    assert "1,234,567 of 9,876,543 tokens are learned (13 %)" in text
    assert "1 row longer than 921 tokens, dropped." in text
    assert "2 rows cut at 1,024 tokens" in text
    assert "Packed 97.3 % One row each, padded 41 %" in text
    assert "Suggested model.max_length : 1,536 (now 1,024)" in text
    assert "Latin words < 0.1 %" in text
    assert "IFD 1e+09 loss 4.25 dropped" in text
    assert "41 rows , kept:" in text and "and 30 more" in text
    assert "8 no BOS, although this tokenizer starts texts with one" in text


def test_steps_say_what_went_and_what_is_left() -> None:
    html = report_page(report(), name=NAME)
    assert "near-duplicates −8,997 41,000" in Page(html).text
    # of 50,000 rows 82 % are left, and 17.99 % went in this step
    assert 'width:82.00%"></i><i class="lost" style="width:17.99%"' in html


@pytest.mark.parametrize(
    ("share", "said"),
    [
        *[(0, "0 %"), (0.0004, "< 0.1 %"), (0.03, "3 %"), (0.034, "3.4 %"), (0.5, "50 %"), (0.9, "90 %")],
        *[(0.958, "95.8 %"), (0.99999, "> 99.9 %"), (1, "100 %")],
    ],
)
def test_a_share_is_rounded_but_never_to_none_or_all(share: float, said: str) -> None:
    text = Page(report_page({"languages": {"xx": share}}, name=NAME)).text
    assert f"xx {said}" in text


def rectangles(html: str) -> list[dict[str, Any]]:
    return [
        {key: float(value or 0) if key != "class" else value for key, value in attrs.items()}
        for tag, attrs in Page(html).tags
        if tag == "rect"
    ]


def lines(html: str) -> dict[str, float]:
    found = [attrs for tag, attrs in Page(html).tags if tag == "line"]
    return {str(each["class"]): float(each["x1"] or 0) for each in found}


def test_the_histogram_is_cut_at_the_limits() -> None:
    html = report_page(report(), name=NAME)
    at = lines(html)
    # three bins of equal width: 921 lies in the second, 1,024 is where the third begins
    assert at == {
        "over": pytest.approx(100 / 3 * (1 + 409 / 512), abs=0.01),
        "beyond": pytest.approx(200 / 3, abs=0.01),
    }
    zones = {each["class"]: each["x"] for each in rectangles(html)}
    assert [each["class"] for each in rectangles(html)] == ["within", "within", "over", "beyond"]
    assert zones["over"] == at["over"] and zones["beyond"] == at["beyond"]
    assert "limit (90 %) 921 max_length 1,024" in Page(html).text


edges = st.lists(st.integers(0, 100_000), min_size=2, max_size=30, unique=True).map(sorted)


@settings(deadline=None)
@given(edges, st.data())
def test_bars_and_lines_never_leave_the_chart(given_edges: list[int], data: st.DataObject) -> None:
    bins = len(given_edges) - 1
    counts = data.draw(st.lists(st.integers(0, 10**6), min_size=bins, max_size=bins))
    sequence = data.draw(st.integers(1, 200_000))
    tokens = {
        "histogram": {"edges": given_edges, "counts": counts},
        "max_length": sequence,
        "limit": sequence * 9 // 10,
    }
    html = report_page({"tokens": tokens}, name=NAME)
    bars = rectangles(html)
    assert bool(bars) == any(counts)
    for bar in bars:
        assert 0 <= bar["x"] <= bar["x"] + bar["width"] <= 100.01
        assert 0 < bar["height"] <= 100 and bar["y"] == pytest.approx(100 - bar["height"])
        if bar["class"] == "beyond":
            assert bar["x"] >= lines(html)["beyond"] - 0.01
    assert all(0 <= x <= 100 for x in lines(html).values())


@pytest.mark.parametrize("counts", [[], [1, 2], [0, 0, 0]])
def test_a_histogram_that_makes_no_sense_is_left_out(counts: list[int]) -> None:
    tokens = {"total": 5, "histogram": {"edges": [0, 1, 2, 3], "counts": counts}}
    assert "<svg" not in report_page({"tokens": tokens}, name=NAME)


def test_a_limit_far_beyond_the_rows_is_drawn_and_said_to_be_shortened() -> None:
    tokens = {"histogram": {"edges": [0, 100, 200], "counts": [5, 5]}, "max_length": 8192, "limit": 8192}
    html = report_page({"tokens": tokens}, name=NAME)
    assert 90 < lines(html)["beyond"] < 100
    assert "the empty part of the axis is shortened" in Page(html).text
