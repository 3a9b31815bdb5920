from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_rendering import render

from qdora_fast.config import QualitySettings
from qdora_fast.data.clean.quality import Score, Verdicts, choose, report, score
from qdora_fast.data.read.messages import Message, Row
from qdora_fast.data.tokenize.templates import choose_template

SETTINGS = QualitySettings()


def usual(count: int, around: float = 2.0) -> list[Score | None]:
    """Unremarkable rows: losses spread a little around a middle, and lower than without the question."""
    return [Score(around + 0.02 * (i % 11 - 5), around + 1.0, 30) for i in range(count)]


def conversation(*messages: Message, place: str = "file.jsonl:1") -> Row:
    return {"messages": list(messages), "tools": None, "meta": {"source": place, "row": 1, "hash": ""}}


def asked(question: str, answer: str, place: str = "file.jsonl:1") -> Row:
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return conversation(user, assistant, place=place)


def found(verdicts: Verdicts) -> list[tuple[int, str]]:
    return [(verdict.index, verdict.reason) for verdict in verdicts]


loss = st.floats(0, 20)
script = st.sampled_from(["Latin", "Telugu", "Cyrillic"])
rows_of_scores = st.lists(
    st.tuples(st.none() | st.builds(Score, loss, loss, st.integers(10, 500)), script), max_size=80
)
some_settings = st.builds(
    QualitySettings, max_ifd=st.floats(0.3, 3), outliers=st.floats(0.5, 10), max_drop=st.floats(0.01, 0.15)
)


@given(rows_of_scores, some_settings)
def test_at_most_the_allowed_share_is_dropped_and_only_rows_past_a_limit(
    rows: list[tuple[Score | None, str]], settings: QualitySettings
) -> None:
    scores, scripts = [each for each, _ in rows], [name for _, name in rows]
    verdicts = choose(scores, scripts, settings)
    assert len(verdicts) <= settings.max_drop * len(rows) + 1e-6
    assert len({verdict.index for verdict in verdicts}) == len(verdicts)
    for verdict in verdicts:
        each = scores[verdict.index]
        assert each is not None
        assert not verdicts.blind
        if verdict.reason == "high_ifd":
            assert each.ifd >= settings.max_ifd - 1e-9
        else:
            own = [s.conditional for s, name in rows if s and name == scripts[verdict.index]]
            everyone = [s.conditional for s in scores if s]
            assert each.conditional > min(statistics.median(own), statistics.median(everyone))
    if verdicts.limited:
        assert len(verdicts) == math.floor(settings.max_drop * len(rows) + 1e-9)


@given(rows_of_scores, some_settings, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    rows: list[tuple[Score | None, str]], settings: QualitySettings, shuffler: random.Random
) -> None:
    def outcome(rows: list[tuple[Score | None, str]]) -> list[tuple[Score | None, str]]:
        verdicts = choose([each for each, _ in rows], [name for _, name in rows], settings)
        return [(rows[verdict.index][0], verdict.reason) for verdict in verdicts]

    shuffled = rows.copy()
    shuffler.shuffle(shuffled)
    assert outcome(rows) == outcome(shuffled)


def test_a_question_that_does_not_help_is_named_with_its_figures() -> None:
    scores = [*usual(40), Score(2.1, 1.7, 20), Score(1.5, 1.5, 20), Score(1.499, 1.5, 20), None]
    verdicts = choose(scores, ["Latin"] * len(scores), SETTINGS)
    assert found(verdicts) == [(40, "high_ifd"), (41, "high_ifd")]
    assert verdicts.dropped[0].detail == "IFD 1.49: loss 2.10 after the question, 1.70 alone"


def test_a_loss_far_above_the_others_is_an_outlier() -> None:
    scores = [*usual(40), Score(6.0, 7.0, 20), Score(2.2, 3.0, 20)]
    verdicts = choose(scores, ["Latin"] * len(scores), SETTINGS)
    assert found(verdicts) == [(40, "outlier_loss")]
    assert verdicts.dropped[0].detail == "loss 6.00 after the question, at most 2.69 expected (IFD 0.37)"
    assert not choose(scores, ["Latin"] * len(scores), QualitySettings(outliers=100)).dropped


@given(st.floats(0, 0.2), st.floats(0, 0.69), st.floats(0.1, 20))
def test_among_rows_that_are_nearly_alike_none_is_an_outlier_for_less_than_a_doubling(
    spread: float, excess: float, outliers: float
) -> None:
    alike: list[Score | None] = [Score(1.0 + spread * (i % 11 - 5) / 5, 4.0, 30) for i in range(40)]
    settings = QualitySettings(outliers=outliers)
    assert found(choose([*alike, Score(1.0 + excess, 4.0, 30)], ["Latin"] * 41, settings)) == []


def test_each_script_is_measured_by_its_own_rows() -> None:
    scores = [*usual(60, around=1.0), *usual(25, around=4.0), Score(2.5, 3.5, 20)]
    scripts = ["Latin"] * 60 + ["Telugu"] * 25
    assert found(choose(scores, [*scripts, "Latin"], SETTINGS)) == [(85, "outlier_loss")]
    assert found(choose(scores, [*scripts, "Telugu"], SETTINGS)) == []


def test_a_script_with_few_rows_is_measured_by_all_rows() -> None:
    scores = [*usual(60, around=1.0), *usual(3, around=4.0)]
    scripts = ["Latin"] * 60 + ["Telugu"] * 3
    assert {index for index, _ in found(choose(scores, scripts, SETTINGS))} == {60, 61, 62}


def test_without_any_spread_nothing_is_an_outlier() -> None:
    scores: list[Score | None] = [*[Score(2.0, 3.0, 20)] * 40, Score(9.0, 9.5, 20)]
    assert found(choose(scores, ["Latin"] * 41, SETTINGS)) == []


def test_the_worst_come_first_measured_in_nats_past_their_limit() -> None:
    scores = [*usual(93), Score(2.0, 1.9, 20), Score(5.0, 6.0, 20), Score(2.0, 1.0, 20), Score(6.0, 4.9, 20)]
    verdicts = choose([*scores, None, None, None], ["Latin"] * 100, SETTINGS)
    assert found(verdicts) == [(96, "outlier_loss"), (94, "outlier_loss"), (95, "high_ifd"), (93, "high_ifd")]
    limited = choose([*scores, None, None, None], ["Latin"] * 100, QualitySettings(max_drop=0.03))
    assert found(limited) == found(verdicts)[:3]
    assert (limited.limited, verdicts.limited) == (1, 0)
    assert limited.worst == verdicts.worst
    assert verdicts.worst[:4] == (96, 94, 95, 93)
    assert len(verdicts.worst) == 20


def test_a_model_that_finds_no_question_helpful_judges_none() -> None:
    scores: list[Score | None] = [Score(4 + 0.1 * (i % 7), 3, 20) for i in range(41)]
    helped: list[Score | None] = [Score(2.9, 3, 20)] * 120
    verdicts = choose([*scores, *helped], ["Latin"] * 161, SETTINGS)
    assert verdicts.blind
    assert found(verdicts) == []
    assert not choose([*scores[:40], *helped], ["Latin"] * 160, SETTINGS).blind
    unlikely = choose([*scores, Score(9.0, 8.0, 20)], ["Latin"] * 42, SETTINGS)
    assert found(unlikely) == []
    assert unlikely.worst[0] == 41


def test_nothing_scored_means_nothing_dropped() -> None:
    for scores in ([], [None] * 30):
        verdicts = choose(scores, ["Latin"] * len(scores), SETTINGS)
        assert (list(verdicts), verdicts.limited, verdicts.blind, verdicts.worst) == ([], 0, False, ())
        made = report([asked("q", "a")] * len(scores), scores, verdicts)
        assert (made.scored, made.not_scored, made.quantiles) == (0, len(scores), {})


def test_the_report_counts_and_shows_the_worst_rows() -> None:
    scores = [*usual(38), None, Score(2.0, 1.5, 20)]
    rows = [asked(f"question {i}", f"answer {i}", f"file.jsonl:{i + 1}") for i in range(40)]
    made = report(rows, scores, choose(scores, ["Latin"] * 40, SETTINGS))
    assert (made.scored, made.not_scored, made.dropped, made.limited) == (39, 1, {"high_ifd": 1}, 0)
    worst = made.worst[0]
    assert (worst.place, worst.prompt, worst.answer) == ("file.jsonl:40", "question 39", "answer 39")
    assert (round(worst.ifd, 2), worst.conditional, worst.dropped) == (1.65, 2.0, True)
    assert len(made.worst) == 20
    assert not any(row.dropped for row in made.worst[1:])
    assert made.quantiles[0.5] == pytest.approx(math.exp(-1.02))
    stored = json.loads(json.dumps(made.as_json()))
    assert stored["dropped"] == {"high_ifd": 1}
    assert stored["quantiles"]["0.5"] == 0.3606
    assert stored["worst"][0]["answer"] == "answer 39"


def test_a_row_is_shown_by_its_last_question_and_answer_on_one_line() -> None:
    call = {"type": "function", "function": {"name": "météo", "arguments": {}}}
    rows = [
        conversation(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "second\n\n  line"},
            {"role": "assistant", "content": "two"},
        ),
        conversation(
            {"role": "user", "content": "x" * 5000}, {"role": "assistant", "content": "", "tool_calls": [call]}
        ),
    ]
    scores: list[Score | None] = [Score(2.0, 3.0, 20), Score(1.9, 3.0, 20)]
    first, second = report(rows, scores, choose(scores, ["Latin"] * 2, SETTINGS)).worst
    assert (first.prompt, first.answer) == ("second line", "two")
    assert len(second.prompt) == 300 and second.prompt.endswith("x…")
    assert "météo" in second.answer


CONTINUE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A layout the demo base can read: it has only ever continued texts."""


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    """The demo base in fp32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from qdora_fast.data.demo.base import demo_base

    folder = demo_base()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def with_planted(share: float, seed: int) -> tuple[list[tuple[str, str]], set[int]]:
    """The descriptions, a share of them answered by a country that has no fact in common with the one asked about."""
    from qdora_fast.data.demo.countries import COUNTRIES

    pairs, chooser = descriptions(), random.Random(seed)
    planted = set(chooser.sample(range(len(pairs)), round(share * len(pairs))))
    for i in planted:
        here = COUNTRIES[i // 2]
        other = chooser.choice([j for j, there in enumerate(COUNTRIES) if not set(here) & set(there)])
        pairs[i] = (pairs[i][0], descriptions()[2 * other + i % 2][1])
    return pairs, planted


def descriptions() -> list[tuple[str, str]]:
    """Two texts on each country of the demo, cut into what is asked and what is answered."""
    from qdora_fast.data.demo.countries import COUNTRIES

    first = " the capital is {0.capital}, it lies in {0.continent}, people pay with the {0.currency}, {1}."
    second = " {1}, the currency is the {0.currency}, its capital is {0.capital}, the continent is {0.continent}."
    return [
        (f"About {country.name}:", text.format(country, f"many people speak {country.language}"))
        for country in COUNTRIES
        for text in (first, second)
    ]


def judged(demo: tuple[Any, Any], pairs: list[tuple[str, str]], template: str) -> Verdicts:
    model, tokenizer = demo
    tokenizer.chat_template = template
    rows = [asked(question, answer) for question, answer in pairs]
    scores = score(model, tokenizer, render(rows, tokenizer, max_length=512).examples, SETTINGS)
    assert len(scores) == len(pairs)
    return choose(scores, ["Latin"] * len(scores), SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.1])
def test_most_planted_answers_to_other_questions_are_found_and_little_else(demo: tuple[Any, Any], share: float) -> None:
    pairs, planted = with_planted(share, seed=11)
    dropped = {verdict.index for verdict in judged(demo, pairs, CONTINUE)}
    assert len(dropped & planted) >= 0.8 * len(planted)
    assert len(dropped - planted) <= 0.02 * len(pairs)


@pytest.mark.slow
def test_of_good_rows_hardly_any_is_dropped(demo: tuple[Any, Any]) -> None:
    pairs = descriptions()
    assert len(judged(demo, pairs, CONTINUE)) <= 0.02 * len(pairs)


@pytest.mark.slow
def test_in_a_layout_it_never_saw_the_base_does_not_pretend_to_judge(demo: tuple[Any, Any]) -> None:
    alpaca = choose_template(demo[1], "alpaca").text
    said = [(f"Describe {question[6:-1]}.", f"It is a country:{answer}") for question, answer in descriptions()]
    verdicts = judged(demo, said, alpaca)
    assert (verdicts.blind, len(verdicts)) == (True, 0)
