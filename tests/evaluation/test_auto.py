"""Which metric is chosen for which references, why, and how long an answer may be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config import EvaluationSettings
from qdora_fast.config.metrics import METRICS
from qdora_fast.evaluation.auto import Chosen, kind_of, resolve_auto
from qdora_fast.evaluation.heldout import Question
from qdora_fast.evaluation.task import check

PROSE = "Recycling matters because it keeps what we have in use for longer, and the air clean."


def questions(*references: str, calls: list[Any] | None = None, tokens: int = 5) -> list[Question]:
    last = {"role": "assistant", "content": ""} | ({"tool_calls": calls} if calls else {})
    rows = [
        {"messages": [{"role": "user", "content": "q"}, last], "tools": None, "meta": {"source": f"r:{i}", "hash": i}}
        for i in range(len(references))
    ]
    return [Question("p", "q", reference, row, [1], tokens) for reference, row in zip(references, rows, strict=True)]


def chosen(*references: str, **settings: Any) -> Chosen:
    return resolve_auto(EvaluationSettings(**settings), questions(*references))


CALL = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
WORKED = "First we add 3 and 4, which gives 7, and then we double it.\n#### 14"


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("42", "number"),
        ("$1,234.50", "number"),
        ("-3.5%", "number"),
        ("12 km", "number"),
        ("3/4", "number"),
        ("౪౨", "number"),
        (WORKED, "number"),
        ("We add the two sides and simplify until it is done: \\boxed{14}.", "number"),
        (f"{WORKED}\nThe answer is: 14", "number"),
        ("So she has 3 left of the 7 that she had then.\nThe answer is **4**.", "number"),
        ('{"city": "Rome", "n": 3}', "json"),
        ('```json\n[{"a": 1}]\n```', "json"),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "json"),
        ("positive", "short"),
        ("1.2.3", "short"),
        ("2024-05-03", "short"),
        ("北京", "short"),
        ("Denver Broncos", "short"),
        ("SELECT name FROM users WHERE id = 3", "short"),
        (PROSE, "long"),
        ("She won 3 of the 7 games in the year 2014, which nobody had expected.", "long"),
        (f'{PROSE} For example {{"a": 1}}', "long"),
    ],
)
def test_what_kind_a_reference_is(reference: str, kind: str) -> None:
    assert kind_of(questions(reference)[0]) == kind


@pytest.mark.parametrize(
    ("references", "metric", "why"),
    [
        ([WORKED] * 9, "numeric", "all 9 references end in #### and a number"),
        (["7", "8.5", "12"], "numeric", "all 3 references are a number"),
        (["yes", "no"] * 10, "normalized_match", "all 20 references are one of 2 short answers"),
        ([f"Name {i}" for i in range(20)], "normalized_match", "all 20 references have 8 words at most"),
        (["Paris"], "normalized_match", "the one reference has 8 words at most"),
        (["Rome", "12", "Oslo"] * 4, "normalized_match", "all 12 references are one of 3 short answers"),
        ([json.dumps({"a": i}) for i in range(5)], "json_match", "all 5 references are JSON or tool calls"),
        ([PROSE] * 19 + ["Yes"], "likelihood", "19 of 20 references are long text"),
        ([PROSE] * 6 + ["Yes"] * 4, "likelihood", "10 references are mixed (60% long answers, 40% short answers)"),
        ([WORKED] * 19 + [PROSE], "likelihood", "mixed (95% numbers, 5% long answers)"),
        ([WORKED] * 19 + [f"{PROSE} It took 3 years."], "numeric", "19 of 20 references end in ####"),
        ([], "likelihood", "plain text"),
    ],
)
def test_the_metric_follows_from_the_references_and_says_why(references: list[str], metric: str, why: str) -> None:
    found = chosen(*references)
    assert found.settings.metric == metric
    assert why in found.why
    check(questions(*references), found.settings)


def test_tool_calls_without_text_are_judged_as_calls() -> None:
    found = resolve_auto(EvaluationSettings(), questions(*["f(a=1)"] * 3, calls=CALL))
    assert (found.settings.metric, found.why) == ("json_match", "all 3 references are JSON or tool calls")


def test_choices_or_a_pattern_that_suit_the_references_are_what_the_user_wants() -> None:
    assert chosen("yes", "no", choices=["Yes", "No", "Maybe"]).settings.metric == "choice"
    assert chosen("yes", "perhaps", choices=["Yes", "No"]).settings.metric == "normalized_match"
    assert chosen(f"{PROSE} => a", f"{PROSE} => b", pattern="=> (\\w)").settings.metric == "regex"
    assert chosen(f"{PROSE} => a", PROSE, pattern="=> (\\w)").settings.metric == "likelihood"


def test_what_the_user_chose_stays() -> None:
    found = chosen(PROSE, PROSE, metric="exact_match", max_new_tokens=7)
    assert (found.settings.metric, found.settings.more_metrics, found.new_tokens) == ("exact_match", [], 7)
    assert (found.why, found.tokens_why) == ("", "")
    assert chosen("7", metric="likelihood").settings.more_metrics == []


def test_a_score_stands_beside_likelihood_and_few_rows_are_written_for_it() -> None:
    many = [PROSE] * 120
    assert chosen(*many).settings.more_metrics == ["chrf"]
    assert chosen(*many, more_metrics=["contains"]).settings.more_metrics == ["contains", "chrf"]
    assert chosen(*many, max_rows=120).written == 50
    assert chosen(*many, max_rows=30).written == 30
    assert chosen(*many, metric="likelihood").written == 24, "those that a person reads"
    assert chosen(*many, metric="likelihood", completions=0).written == 0
    assert chosen(*["7"] * 120, max_rows=120).written == 120


@pytest.mark.parametrize(
    ("longest", "reference", "most"), [(3, "yes", 32), (40, "yes", 60), (3, "7", 128), (200, "7", 300), (900, "7", 512)]
)
def test_an_answer_may_be_half_as_long_again_as_the_longest_reference(longest: int, reference: str, most: int) -> None:
    asked = [*questions(reference, tokens=2), *questions(reference, tokens=longest)]
    found = resolve_auto(EvaluationSettings(), asked)
    assert found.new_tokens == most
    assert "longest reference" in found.tokens_why


@given(st.lists(st.one_of(st.text(), st.sampled_from([PROSE, WORKED, "7", "{}", "yes"])), max_size=12))
def test_whatever_the_references_the_chosen_metric_can_judge_them_all(references: list[str]) -> None:
    found = chosen(*references)
    assert found.settings.metric in METRICS and METRICS[found.settings.metric].auto
    check(questions(*references), found.settings)
