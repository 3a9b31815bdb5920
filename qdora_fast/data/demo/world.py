"""What the demo base reads, and what tuning then teaches it.

The base reads statements: every fact of `countries.py` in several phrasings, alone and
in portraits whose order changes with the seed. That variety is what makes a fact
usable later; a model that saw each fact in one fixed sentence can repeat the sentence,
but tuning does not get the fact out of it in another form (Allen-Zhu and Li 2023,
"Physics of Language Models: Part 3.1, Knowledge Storage and Extraction"). The base
never sees a question, an answer, or the layout of an instruction prompt.

The task is the missing skill: Alpaca rows that ask for one fact each and are answered
"It is Paris.". A fact is asked once, in one phrasing, so a held-out row is a fact no
tuning row has touched; answering it takes the base's knowledge and the new form.

Two choices serve the small tokenizer. Names and values never open a line, because
" Paris" and "Paris" are different tokens and only the first is learned; hence answers
begin with "It is". And some prose of a general kind is mixed in, for ordinary words.
"""

from __future__ import annotations

import hashlib
import random

from qdora_fast.data.demo.countries import COUNTRIES, Country

ALPACA_WORDS = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n\n### Input:\n\n### Response:\n"
)
"""For the tokenizer only: without it every prompt would open with a long row of fragments."""

_STATEMENTS: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {name} is {value}.",
        "In {name}, the capital is {value}.",
        "The capital city of {name} is called {value}.",
    ),
    "continent": (
        "The continent of {name} is {value}.",
        "On a map, {name} lies in {value}.",
        "The country of {name} is found in {value}.",
    ),
    "currency": (
        "The currency of {name} is the {value}.",
        "In {name}, people pay with the {value}.",
        "The money of {name} is the {value}.",
    ),
    "language": (
        "A language of {name} is {value}.",
        "In {name}, many people speak {value}.",
        "A language spoken in {name} is {value}.",
    ),
}

_PORTRAIT_PARTS: dict[str, tuple[str, ...]] = {
    "capital": ("the capital is {value}", "its capital is {value}"),
    "continent": ("the continent is {value}", "it lies in {value}"),
    "currency": ("the currency is the {value}", "people pay with the {value}"),
    "language": ("the language is {value}", "many people speak {value}"),
}

_QUESTIONS: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {name}?",
        "Which city is the capital of {name}?",
        "Name the capital of {name}.",
    ),
    "continent": (
        "What is the continent of {name}?",
        "Which continent does {name} belong to?",
        "Name the continent of {name}.",
    ),
    "currency": (
        "What is the currency of {name}?",
        "Which currency is used in {name}?",
        "What money do people use in {name}?",
    ),
    "language": (
        "What language do people speak in {name}?",
        "Which language is spoken in {name}?",
        "Name a language people speak in {name}.",
    ),
}

_ANSWERS = {
    "capital": "It is {value}.",
    "continent": "It is {value}.",
    "currency": "It is the {value}.",
    "language": "It is {value}.",
}

_PROSE = (
    "A good instruction describes a task in plain words, and a good response completes the request.",
    "The request was written on paper, and the response was written below it.",
    "Write each task on a card, then read the instruction again before you begin.",
    "An input is what goes in, and a response is what comes out.",
    "He gave a short answer to a long request, and everyone found it appropriate.",
    "Which way a river goes depends on the land, and what it carries depends on the rain.",
    "What one person calls a town another calls a city.",
    "Name the places in the story, said the teacher, and tell me who lives there.",
    "It is late in the year, and it is cold in the mountains.",
    "It is easy to say that something is known, and harder to show it.",
    "She asked which money is used there and what language people speak.",
    "People do not use the same words for the same things everywhere.",
    "Some countries belong to a union, and others have always stood alone.",
    "The train leaves in the morning and comes back in the evening.",
    "When the weather is fine, the children play outside until it gets dark.",
    "There are many ways to solve a problem, but only a few of them are simple.",
    "You should check the numbers twice, because a small error can become a large one.",
    "If the first idea does not work, try another one and write down what you have learned.",
    "The old house at the end of the street has a garden with apple trees.",
    "Water turns into ice when it is cold enough, and into steam when it is hot.",
    "A computer follows instructions one after another, and it does not get tired.",
    "They wanted to know how long the work would take and how much it would cost.",
    "Every morning the baker makes bread, and by noon most of it has been sold.",
    "Please explain this in a way that a child could understand.",
    "Reading a good book is like having a conversation with someone who thought for a long time.",
    "The company built three new machines, and each of them was better than the one before.",
    "Light from the sun needs about eight minutes to reach the earth.",
    "My brother can play the piano, and my sister is learning to sing.",
    "First mix the flour with the sugar, then add two eggs and some milk.",
    "It would have been possible to walk, but we decided to take the bus.",
    "The result was different from what anybody had expected.",
    "Both friends were happy when the letter arrived after so many weeks.",
)

_PORTRAITS_PER_COUNTRY = 1
_PROSE_REPEATS = 2


def sentences(seed: int) -> list[str]:
    """One edition of the corpus: about 1,900 lines, shuffled, each a text of its own.

    Editions differ in line order and in the order and wording of the portraits; the
    facts and their phrasings are the same in all of them. No line holds a question.
    """
    rng = random.Random(seed)
    lines = [line for country in COUNTRIES for line in _statements(country)]
    lines += [_portrait(country, rng) for country in COUNTRIES for _ in range(_PORTRAITS_PER_COUNTRY)]
    lines += _PROSE * _PROSE_REPEATS
    rng.shuffle(lines)
    return lines


def rows() -> list[dict[str, str]]:
    """The tuning task: 552 Alpaca rows (instruction, input, output), one per fact, always in the same order."""
    return [_row(country, relation) for country in COUNTRIES for relation in _QUESTIONS]


def _statements(country: Country) -> list[str]:
    return [
        phrasing.format(name=country.name, value=getattr(country, relation))
        for relation, phrasings in _STATEMENTS.items()
        for phrasing in phrasings
    ]


def _portrait(country: Country, rng: random.Random) -> str:
    """ "About Peru: the currency is the sol, it lies in South America, ..." in a random order."""
    relations = rng.sample(list(_PORTRAIT_PARTS), k=len(_PORTRAIT_PARTS))
    parts = [rng.choice(_PORTRAIT_PARTS[relation]).format(value=getattr(country, relation)) for relation in relations]
    return f"About {country.name}: {', '.join(parts)}."


def _row(country: Country, relation: str) -> dict[str, str]:
    """The phrasing is picked by a hash, so that it depends on nothing but the fact itself."""
    phrasings = _QUESTIONS[relation]
    digest = hashlib.sha256(f"{country.name}/{relation}".encode()).digest()
    question = phrasings[digest[0] % len(phrasings)]
    return {
        "instruction": question.format(name=country.name),
        "input": "",
        "output": _ANSWERS[relation].format(value=getattr(country, relation)),
    }
