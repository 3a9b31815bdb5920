"""Rows for the data benchmark that say different things, as many as are asked for, in Alpaca's shape.

Real sets are too small or too alike for that: a set of 50,000 rows is made of 11,000 real ones as they are, and of
others whose sentences are drawn from all of them. Each new row has a numbered name in its question, so that no two
questions are the same, and no two rows are as much as 0.6 alike: what is not planted as a duplicate is none. That is
checked with the exact join of `near_pairs.py`, not with what is being measured. Without real rows, the sentences are
those of the demo.

Rows made this way make no sense to a reader, and a language model would not like them; nothing here reads for sense.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data.data_arm import conversations
from benchmarks.data.near_pairs import near_pairs
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.clean.similarity import canonical_text, shingles
from qdora_fast.data.read.formats import convert, from_alpaca
from qdora_fast.data.read.messages import Row
from qdora_fast.data.read.readers import is_supported
from qdora_fast.system.errors import ConfigError, DataError, first_line

ALIKE = 0.6
"""Jaccard similarity that no two rows may reach by chance."""
FEWEST_WORDS, MOST_CHARACTERS = 40, 2_500
"""Of a real row that is taken as it is: neither too short nor too long to be kept."""
NAMES = ("Zoë", "José", "Renée", "Łukasz", "Søren", "Émile", "Çelik", "Ana", "Tom", "Mira", "Ravi", "Lena")
ASKS = ("asks", "would like to know", "wrote to us", "has a question", "wants help", "is not sure")

AlpacaRow = dict[str, Any]
Said = Callable[[str], None]


class Seed(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def real_seeds(paths: Sequence[str], said: Said) -> list[Seed]:
    """Every question with its answer in the files of `paths`; files that cannot be read are named and left out.

    Raises:
        ConfigError: nothing readable there.
    """
    found: list[Seed] = []
    for path in _files(paths):
        try:
            seeds = list(_seeds_of(path))
        except DataError as error:
            said(f"  {path.name} is left out: {first_line(error)}")
            continue
        said(f"  {path.name}: {len(seeds)} questions with answers")
        found += seeds
    if not found:
        raise ConfigError(f"--from {', '.join(paths)}: no rows there that can be read")
    return list(dict.fromkeys(found))


def demo_seeds() -> list[Seed]:
    """Sentences of the demo, four to an answer."""
    from qdora_fast.data.demo import world

    lines = list(dict.fromkeys(line for edition in range(4) for line in world.sentences(edition)))
    questions = [row["instruction"] for row in world.rows()]
    answers = [" ".join(lines[start : start + 4]) for start in range(0, len(lines), 4)]
    return [Seed(questions[number % len(questions)], answer) for number, answer in enumerate(answers)]


class Writer:
    """Writes rows of which no two are alike, from seeds."""

    def __init__(self, seeds: Sequence[Seed], rng: random.Random) -> None:
        self.rng = rng
        self.sentences = _sentences(seed.answer for seed in seeds)
        self.questions = _sentences(seed.question for seed in seeds) or self.sentences
        self._as_they_are = [
            seed
            for seed in seeds
            if len(f"{seed.question} {seed.answer}".split()) >= FEWEST_WORDS
            and len(seed.question) + len(seed.answer) <= MOST_CHARACTERS
        ]
        self._lengths = [max(3, len(_sentences([seed.answer]))) for seed in self._as_they_are] or [4]
        self._number = 0
        if len(self.sentences) < 50:
            raise ConfigError(f"{len(self.sentences)} different sentences are too few to make rows of; give more text")

    def different(self, count: int, *, as_they_are: bool = True) -> list[AlpacaRow]:
        """`count` rows, no two with the same question or as much as 0.6 alike."""
        rows = [{"instruction": seed.question, "output": seed.answer} for seed in self._as_they_are]
        self.rng.shuffle(rows)
        rows = rows[:count] if as_they_are else []
        kept: list[AlpacaRow] = []
        while len(kept) < count:
            missing = count - len(kept) - len(rows)
            spare = len(rows) // 5 + 10  # real rows are often alike; each look at all rows takes a while
            kept, rows = _unlike([*kept, *rows, *(self.row() for _ in range(missing + spare))])[:count], []
        self.rng.shuffle(kept)
        return kept

    def row(self, times: int = 1) -> AlpacaRow:
        """One row of drawn sentences with an answer `times` as long as usual."""
        self._number += 1
        name, asks = self.rng.choice(NAMES), self.rng.choice(ASKS)
        question = f"{name} {asks}, case {self._number}: {self.rng.choice(self.questions)}"
        count = min(len(self.sentences), times * self.rng.choice(self._lengths))
        answer = self.rng.sample(self.sentences, count)
        while sum(len(sentence.split()) for sentence in answer) < FEWEST_WORDS:
            answer.append(self.rng.choice(self.sentences))
        return {"instruction": question, "output": " ".join(answer)}


def as_row(row: AlpacaRow) -> Row | None:
    """A row in the shape of `data.messages`; None if it cannot be read."""
    try:
        conversation = convert(row, from_alpaca)
    except RejectedRow:
        return None
    return {"messages": conversation.messages, "tools": None, "meta": {"source": "", "row": 0, "hash": ""}}


def shingles_of(row: AlpacaRow) -> frozenset[int]:
    """The shingles of a row; empty if it cannot be read."""
    read = as_row(row)
    return shingles(canonical_text(read)) if read else frozenset()


def folded(text: str) -> str:
    """Text without what does not count when two are compared: the benchmark's own idea of it."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def _unlike(rows: Sequence[AlpacaRow]) -> list[AlpacaRow]:
    """Without rows that have the question of an earlier one, or are like an earlier one."""
    by_question = list({folded(row["instruction"]): row for row in reversed(rows)}.values())[::-1]
    gone = {max(one, other) for one, other, _ in near_pairs([shingles_of(row) for row in by_question], ALIKE)}
    return [row for number, row in enumerate(by_question) if number not in gone]


def _sentences(texts: Iterator[str] | Sequence[str]) -> list[str]:
    """Different sentences of 4 to 60 words that end as sentences do and are plain text."""
    found = (piece.strip() for text in texts for piece in re.split(r"(?<=[.!?])\s+|\n+", text))
    plain = (piece for piece in found if re.search(r"\w[.!?]$", piece) and not re.search(r"[`{}|\\<\[*#]", piece))
    return list(dict.fromkeys(piece for piece in plain if 4 <= len(piece.split()) <= 60))


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f"--from {path}: nothing there")
        yield from sorted(each for each in path.iterdir() if is_supported(each)) if path.is_dir() else [path]


def _seeds_of(path: Path) -> Iterator[Seed]:
    for _, conversation in conversations(str(path)):
        for asked, answered in pairwise(conversation.messages):
            if (asked["role"], answered["role"]) == ("user", "assistant") and answered["content"].strip():
                yield Seed(asked["content"], answered["content"])
