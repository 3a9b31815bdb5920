"""What counts as right: each metric on answers a model gives, and on text that nobody expects."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config.metrics import METRICS
from qdora_fast.config.own_code import allow_own_code
from qdora_fast.evaluation.metrics import Metric, find_metric, normalized, number_in
from qdora_fast.system.errors import ConfigError, DataError
from qdora_fast.system.install import how_to_install

JUDGING = [name for name, info in METRICS.items() if info.kind != "loss"]
ROW: dict[str, Any] = {"messages": [], "tools": None, "meta": {"source": "rows.jsonl:7"}}
ANY_LINE = r"(?s)(.*)"
texts = st.text()
# Letters whose case, white space and punctuation can be changed without changing the word.
words = st.lists(st.text("abcxyzéñßжщπσतदपవరళ漢字かな한글0123456789", min_size=1, max_size=6), min_size=1, max_size=4)


def right(name: str, said: str, reference: str, row: dict[str, Any] = ROW, **options: Any) -> float:
    return find_metric(name, **options).score(said, reference, row)


def calls(*named: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in named]
    last = {"role": "assistant", "content": "", "tool_calls": made}
    return ROW | {"messages": [{"role": "user", "content": "Go."}, last], "tools": [{"type": "function"}]}


# All of them


@pytest.mark.parametrize("name", JUDGING)
def test_every_metric_that_judges_is_found_as_the_registry_describes_it(name: str) -> None:
    metric = find_metric(name, pattern="(x)" if name == "regex" else None)
    assert isinstance(metric, Metric)
    assert (metric.name, metric.binary) == (name, name not in ("rouge_l", "chrf"))
    assert metric.info is METRICS[name]


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean json_match"):
        find_metric("json_mach")
    with pytest.raises(ConfigError, match="choose one of exact_match"):
        find_metric("zzzz")


def attempt(name: str, pattern: str, said: str, reference: str) -> float | str:
    """The score, or the message of the one error that a metric may raise."""
    try:
        return find_metric(name, pattern=pattern).score(said, reference, ROW)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("name", JUDGING)
@given(text=texts)
def test_a_text_that_a_metric_can_use_matches_itself(name: str, text: str) -> None:
    result = attempt(name, ANY_LINE, text, text)
    refused = isinstance(result, str) and name in ("numeric", "json_match")
    assert refused or result == pytest.approx(1.0)


@pytest.mark.parametrize("name", JUDGING)
@given(said=texts, reference=texts)
def test_wild_text_gives_a_score_or_the_documented_error(name: str, said: str, reference: str) -> None:
    result = attempt(name, r"#(\w+)?", said, reference)
    if isinstance(result, str):
        assert result.startswith("rows.jsonl:7: the reference")
        assert result.endswith("correct the row or choose another evaluation.metric")
    else:
        assert 0 <= result <= 1
        assert METRICS[name].kind == "score" or result in (0, 1)


def test_a_surrogate_that_no_file_can_hold_is_still_compared() -> None:
    assert right("normalized_match", "\ud800 A", "\ud800 a") == 1


# Texts


@pytest.mark.parametrize(
    ("said", "reference", "expected"),
    [(" Paris\n", "Paris", 1), ("paris", "Paris", 0), ("Paris.", "Paris", 0), ("Cafe\u0301", "Caf\u00e9", 0)],
)
def test_exact_match_forgives_white_space_at_the_ends_alone(said: str, reference: str, expected: float) -> None:
    assert right("exact_match", said, reference) == expected


@pytest.mark.parametrize(
    ("said", "reference"),
    [
        ("«Paris.»", "paris"),
        ("**Paris**", "Paris"),
        ("`Paris`", "Paris"),
        ("“పారిస్”।", "పారిస్"),
        ("दिल्ली॥", "दिल्ली"),
        ("「東京。」", "東京"),
        ("¿Madrid?", "madrid"),
        ("NEW\n  york", "New York"),
        ("ＡＢＣ", "abc"),
        ("STRASSE", "straße"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("\u200eParis\ufeff", "Paris"),
    ],
)
def test_normalized_match_sees_the_word_through_its_dress(said: str, reference: str) -> None:
    assert right("normalized_match", said, reference) == right("choice", reference, said) == 1


@pytest.mark.parametrize(
    ("said", "reference"),
    [
        *(("-5", "5"), ("−5", "5"), (".5", "5"), ("50%", "50"), ("C#", "C"), ("C++", "C"), ("x-y", "xy")),
        *(("", "Paris"), ("!", "?"), ("…", "«»"), ("", "?"), ("résumé", "resume"), ("కి", "క")),
    ],
)
def test_normalized_match_keeps_what_carries_meaning(said: str, reference: str) -> None:
    assert right("normalized_match", said, reference) == right("normalized_match", reference, said) == 0


@given(parts=words, spaces=st.sampled_from([" ", "  ", "\n", "\t ", "\u00a0", "\u3000"]), marks=st.data())
def test_case_space_and_outer_punctuation_change_no_normalized_match(
    parts: list[str], spaces: str, marks: st.DataObject
) -> None:
    outer = "!?\"'()«»“”„।॥。、「」*_`\u00bf "  # a point before a digit is none of them
    before, after = marks.draw(st.text(outer, max_size=4)), marks.draw(st.text(f"{outer}.…", max_size=4))
    dressed = before + spaces.join(parts).upper() + after
    assert normalized(dressed) == normalized(" ".join(parts))
    assert right("normalized_match", dressed, " ".join(parts)) == 1


@pytest.mark.parametrize(
    ("said", "reference", "expected"),
    [
        ("The capital is PARIS, of course.", "Paris", 1),
        ("It is in Parisian hands.", "Paris", 0),
        ("new   york city", "New York", 1),
        ("答えは東京です", "東京", 1),
        ("เมืองหลวงคือกรุงเทพฯ", "กรุงเทพ", 1),
        ("రాజధాని పారిస్.", "పారిస్", 1),
        ("పారిస్‌లో", "పారిస్", 0),
        ("written in C++ today", "C++", 1),
        ("about 3.5", "3", 0),
        ("about 1,300", "300", 0),
        ("it is -3", "3", 0),
        ("pages 1-3", "3", 1),
        ("it is 3.", "3", 1),
        ("anything!", "!", 0),
        ("!", "!", 1),
        ("anything", "", 0),
    ],
)
def test_contains_finds_whole_words(said: str, reference: str, expected: float) -> None:
    assert right("contains", said, reference) == expected


@given(before=words, wanted=words, after=words)
def test_contains_finds_what_stands_between_other_words(before: list[str], wanted: list[str], after: list[str]) -> None:
    reference = " ".join(wanted)
    assert right("contains", f"{' '.join(before)}: “{reference}”; {' '.join(after)}", reference) == 1


# regex


def test_regex_compares_what_its_group_finds_last() -> None:
    options = {"pattern": r"answer: (\w+)"}
    assert right("regex", "answer: a, no, answer: b", "answer: b", **options) == 1
    assert right("regex", "answer: b, no, answer: a", "answer: b", **options) == 0
    assert right("regex", "b", "answer: b", **options) == 0
    with pytest.raises(DataError, match=r"rows.jsonl:7: the reference 'b' has no match for .*; correct the row"):
        right("regex", "answer: b", "b", **options)


@pytest.mark.parametrize("pattern", [None, "", "no group", "(a)(b)", "("])
def test_regex_needs_a_pattern_with_one_group(pattern: str | None) -> None:
    with pytest.raises(ConfigError, match="evaluation.pattern"):
        find_metric("regex", pattern=pattern)


# numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 and buys 4, so 7.", 7),
        ("48/2 = 24 in all\n#### 72", 72),
        ("#### 72 apples, of 90", 72),
        ("#### $1,234.50", "1234.5"),
        ("####\n**-7**", -7),
        ("#### Step 1\nThe answer is 12", 12),
        ("12,34,567 rupees", 1234567),
        ("12\u202f345", 12345),
        ("the list 1, 2, 3", 3),
        ("-$5", -5),
        ("$-5", -5),
        ("−5", -5),
        ("$3-$5", 5),
        ("20-15=5", 5),
        ("+8", 8),
        ("72%", 72),
        ("3/4 of it", "0.75"),
        ("1 1/2", "1.5"),
        ("1½ cups", "1.5"),
        (".5", "0.5"),
        ("1.5e-3", "0.0015"),
        ("about 10² m", 10),
        ("5 kg of CO2", 5),
        ("Rs500", 500),
        ("Rs.500", 500),
        ("సమాధానం ౧౨౩", 123),
        ("१,२३४.५", "1234.5"),
        ("٣٫٥", "3.5"),
        ("１２", 12),
        ("共72个", 72),
        ("no number", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_the_number_that_an_answer_states_is_read(text: str, number: int | str | None) -> None:
    assert number_in(text) == (None if number is None else Decimal(number))


@given(number=st.decimals(-(10**12), 10**12, places=2), before=words)
def test_a_number_is_read_back_however_it_is_printed(number: Decimal, before: list[str]) -> None:
    sentence = " ".join(word.strip("0123456789") for word in before)
    for printed in (f"{number}", f"{number:,}", f"{number}".translate(str.maketrans("0123456789", "౦౧౨౩౪౫౬౭౮౯"))):
        assert number_in(f"{sentence}: {printed}.") == number
        assert right("numeric", f"#### {printed}", f"7 = {number}") == 1
    assert right("numeric", str(number + abs(number) + 1), str(number)) == 0


def test_numbers_may_differ_by_the_rounding_of_their_print_alone() -> None:
    assert right("numeric", "0.33333333333", "1/3") == 1
    assert right("numeric", "0.3333", "1/3") == 0
    assert right("numeric", "1000000000", "999999999") == 0
    assert right("numeric", "1e999", "1e-999") == 0
    assert right("numeric", "I do not know", "3") == 0


def test_a_reference_without_number_names_its_row_and_the_way_out() -> None:
    with pytest.raises(DataError, match="rows.jsonl:7: the reference 'seven' has no number.*choose another"):
        right("numeric", "7", "seven")
    with pytest.raises(DataError, match="a held-out row"):
        right("numeric", "7", "seven", {})


# json_match


def test_json_is_compared_by_its_meaning() -> None:
    reference = '{"a": 1, "b": [true, null, "x"]}'
    assert right("json_match", '```json\n{"b": [true, null, "x"],\n "a": 1.0}\n```', reference) == 1
    assert right("json_match", f"Here it is: {reference} as you asked [1].", reference) == 1
    assert right("json_match", reference.replace("true", "1"), reference) == 0
    assert right("json_match", reference.replace('"x"', '"X"'), reference) == 0
    assert right("json_match", f"{reference}\n{reference}", reference) == 0
    assert right("json_match", f'{{"c": {reference}', reference) == 0, "an object that breaks off is no answer"
    assert right("json_match", '[{"a": 1}]', '{"a": 1}') == 0
    with pytest.raises(DataError, match="rows.jsonl:7: the reference 'words' holds no JSON"):
        right("json_match", "{}", "words")


CALL = {"name": "find", "arguments": {"city": "హైదరాబాద్", "days": 3}}
TEXT = json.dumps(CALL)


@pytest.mark.parametrize(
    "said",
    [
        f"### Tool call:\n{TEXT}",
        f"Let me look.\n<tool_call>\n{TEXT}\n</tool_call>",
        f"[TOOL_CALLS] [{TEXT}]",
        f"```json\n{TEXT}\n```",
        json.dumps({"name": "find", "parameters": {"days": 3.0, "city": "హైదరాబాద్"}}, ensure_ascii=False),
        json.dumps({"id": "1", "type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}),
    ],
)
def test_a_tool_call_is_read_from_the_usual_ways_to_write_it(said: str) -> None:
    row = calls(("find", {"days": 3, "city": "హైదరాబాద్"}))
    assert right("json_match", said, "### Tool call: whatever the template wrote", row) == 1
    assert right("json_match", said.replace("find", "seek"), "", row) == 0
    assert right("json_match", said.replace("3", "4"), "", row) == 0


def test_several_calls_are_wanted_in_their_order_and_none_more() -> None:
    first, second = ({"name": name, "arguments": {"x": 1}} for name in ("a", "b"))
    row = calls(("a", {"x": 1}), ("b", {"x": 1}))
    one, two = json.dumps(first), json.dumps(second)
    assert right("json_match", f"{one}\n{two}", "", row) == right("json_match", f"[{one}, {two}]", "", row) == 1
    for said in (f"{two}\n{one}", one, f"{one}\n{two}\n{two}", ""):
        assert right("json_match", said, "calls", row) == 0


def test_a_row_with_tools_that_is_answered_in_words_wants_no_call() -> None:
    row = ROW | {"tools": [{"type": "function"}]}
    assert right("json_match", "I have no tool for that.", "Sorry, I cannot.", row) == 1
    assert right("json_match", TEXT, "Sorry, I cannot.", row) == 0


def test_calls_of_a_template_without_json_are_compared_as_text() -> None:
    row = calls(("find", {"city": "Pune"}))
    assert right("json_match", "find(city='Pune')", "find(city='Pune')\n", row) == 1
    assert right("json_match", 'find(city="Pune")', "find(city='Pune')", row) == 0


# rouge_l


def test_rouge_counts_words_of_every_script_in_order() -> None:
    assert right("rouge_l", "the cat sat", "The cat sat down.") == pytest.approx(2 * 3 / (3 + 4))
    assert right("rouge_l", "నేను ఇంటికి వెళ్తాను", "నేను బడికి వెళ్తాను") == pytest.approx(2 / 3)
    assert right("rouge_l", "東京です", "東京だ") == pytest.approx(2 * 2 / (4 + 3))
    assert right("rouge_l", "", "words") == right("rouge_l", "?", "!") == 0


def test_rouge_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match=re.escape(how_to_install("eval"))):
        find_metric("rouge_l")


# The user's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that writes a file with a function `judge`, lets it in, and returns its name."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as allowed:

        def write(body: str, returns: str = "") -> str:
            Path("judge.py").write_text(f"def judge(said, reference, row){returns}:\n    {body}\n")
            allowed.enter_context(allow_own_code(["judge.py"]))
            return "judge.py:judge"

        yield write


def test_the_users_function_sees_answer_reference_and_a_copy_of_the_row(own: Any) -> None:
    row = ROW | {"tools": [1]}
    metric = find_metric(own("row['tools'].append(2); return (len(said) + len(reference) + len(row['tools'])) / 10"))
    assert not metric.binary
    assert metric.score("ab", "abc", row) == metric.score("ab", "abc", row) == 0.7
    assert row["tools"] == [1]


def test_a_function_annotated_with_bool_gives_an_accuracy(own: Any) -> None:
    metric = find_metric(own("return said == 'yes' or said == 'half' and 0.5", " -> bool"))
    assert metric.binary
    assert (metric.score("yes", "", ROW), metric.score("no", "", ROW)) == (1.0, 0.0)
    with pytest.raises(ConfigError, match="it returned 0.5; return True or False"):
        metric.score("half", "", ROW)


@pytest.mark.parametrize("value", ["2", "-0.1", "float('nan')", "None", "'1'", "[1]"])
def test_a_value_that_is_no_share_names_function_and_row(own: Any, value: str) -> None:
    name = own(f"return {value}")
    with pytest.raises(ConfigError, match=f"evaluation.metric {name} on rows.jsonl:7: it returned .*from 0 to 1"):
        find_metric(name).score("", "", ROW)


def test_a_function_that_fails_names_its_line_and_the_row(own: Any) -> None:
    name = own("return row['absent']")
    with pytest.raises(ConfigError, match=rf"{name} on rows.jsonl:7: KeyError: 'absent' \(judge\.py:2\)"):
        find_metric(name).score("", "", ROW)


def test_a_function_that_is_not_there_is_told_by_the_name_of_the_setting(own: Any) -> None:
    with pytest.raises(ConfigError, match="^evaluation.metric: .* has no function 'other'; it has judge"):
        find_metric(own("return 1").replace(":judge", ":other"))
