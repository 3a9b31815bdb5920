"""The demo's facts, corpus and task agree with each other and leave nothing to chance."""

from __future__ import annotations

from collections import Counter

from qdora_fast.data.demo.countries import COUNTRIES
from qdora_fast.data.demo.world import ALPACA_WORDS, rows, sentences

FACTS = {(country.name, fact) for country in COUNTRIES for fact in country[1:]}


def test_every_country_is_complete_and_listed_once() -> None:
    assert len({country.name for country in COUNTRIES}) == len(COUNTRIES) >= 130
    assert len({country.capital for country in COUNTRIES}) == len(COUNTRIES)
    assert all(field and field == field.strip() for country in COUNTRIES for field in country)
    assert {country.continent for country in COUNTRIES} == {
        "Africa",
        "Asia",
        "Europe",
        "North America",
        "South America",
        "Oceania",
    }


def test_the_base_is_told_every_fact_in_several_phrasings() -> None:
    lines = sentences(0)
    for name, fact in FACTS:
        assert len({line for line in lines if f" {name}" in line and f" {fact}" in line}) >= 4, (name, fact)


def test_the_base_sees_no_question_no_answer_and_no_prompt() -> None:
    answers = {row["output"] for row in rows()}
    instructions = {row["instruction"] for row in rows()}
    for line in sentences(0):
        assert "?" not in line
        assert "\n" not in line
        assert "###" not in line
        assert line not in answers | instructions
        assert not any(answer in line for answer in answers)
    assert "?" not in ALPACA_WORDS


def test_editions_depend_on_the_seed_alone() -> None:
    assert sentences(3) == sentences(3)
    assert sentences(3) != sentences(4)
    assert len(sentences(3)) == len(sentences(4))


def test_names_and_values_never_open_a_line() -> None:
    openings = {name for country in COUNTRIES for name in country}
    assert not [line for line in sentences(0) if any(line.startswith(opening) for opening in openings)]


def test_rows_are_alpaca_rows_each_asking_for_another_fact() -> None:
    task = rows()
    assert task == rows()
    assert len(task) == 4 * len(COUNTRIES) >= 400
    assert all(set(row) == {"instruction", "input", "output"} for row in task)
    assert max(Counter(row["instruction"] for row in task).values()) == 1


def test_each_answer_is_the_fact_that_was_asked_for() -> None:
    relations = {"capital": "capital", "continent": "continent", "curr": "currency", "money": "currency"}
    task = iter(rows())
    for country in COUNTRIES:
        asked = set()
        for row in (next(task) for _ in range(4)):
            question = row["instruction"]
            assert country.name in question
            relation = next((field for word, field in relations.items() if word in question), "language")
            fact = getattr(country, relation)
            assert row["output"] in (f"It is {fact}.", f"It is the {fact}.")
            asked.add(relation)
        assert asked == {"capital", "continent", "currency", "language"}


def test_all_phrasings_of_a_question_are_in_use() -> None:
    shapes = Counter(
        row["instruction"].replace(country.name, "X")
        for country, group in zip(COUNTRIES, zip(*[iter(rows())] * 4, strict=True), strict=True)
        for row in group
    )
    assert len(shapes) == 12
    assert min(shapes.values()) >= 20
