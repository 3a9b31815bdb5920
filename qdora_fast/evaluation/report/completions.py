"""Answers to read: what base and tuned model say to the same prompts, side by side, and what a person says to that.

A figure does not show that a model answers in the wrong tone, in the wrong language, or right for the wrong reason; a
person who reads two dozen answers sees it. The prompts come from the held-out rows, a quarter from each quarter of
their lengths, chosen by a hash so that they stay the same; four general ones are put before them that have nothing to
do with the task, because what a model forgets shows there first. `write` keeps the answers as JSON lines and makes a
page of its own to read and mark them, which saves:

    {"kind": "qdora_fast.completions_review", "version": 1, "run": name, "sha256": of completions.jsonl,
     "reviewer": name, "verdict": "pass" | "fail" | "needs-work", "note": text, "finished": ISO 8601 time,
     "rows": [{"id": id, "mark": "good" | "bad" | "same" | null, "note": text}]}

`read_review` takes such a file only for the very answers that were read. Models are not asked here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qdora_fast.data.read.messages import Message
from qdora_fast.data.report.pages import message_turns
from qdora_fast.data.report.review import finishing_time, load_saved, one_line, plain, read_marks, short
from qdora_fast.system.errors import DataError
from qdora_fast.system.pages import embedded, render

GENERAL: tuple[list[Message], ...] = (
    [{"role": "user", "content": "A shop sells pens at 3 for 4 euros. What do 12 pens cost? Show how you get there."}],
    [{"role": "user", "content": "Which planet of the solar system is the largest?"}],
    [
        {
            "role": "user",
            "content": "Rewrite this politely, in two sentences: Your report is late again and nobody can use it. "
            "Send it by noon.",
        }
    ],
    [{"role": "user", "content": "Plan a simple dinner for four people with rice and vegetables, in short steps."}],
)
"""Prompts that any assistant should master: arithmetic, a fact, a rewrite, an everyday request."""

FILE, PAGE = "completions.jsonl", "completions.html"
TEMPLATES = "evaluation/report/page_templates"
QUARTERS = 4
KIND, VERSION = "qdora_fast.completions_review", 1
MARKS = ("good", "bad", "same")
VERDICTS = ("pass", "fail", "needs-work")


def choose_prompts(questions: Sequence[Any], *, most: int, seed: int) -> list[int]:
    """Indices of up to `most` questions, as many from each quarter by length of the prompt, in the order to show.

    Which of a quarter, and the order, is decided by SHA-256(seed, row): the same rows whatever their order, and the
    first few are of all lengths. Rows with the same content count once.

    Args:
        questions: with `prompt`, the rendered text, and `row`, whose `meta` has the hash (see `heldout.Question`).
    """
    first: dict[str, int] = {}
    for index, question in enumerate(questions):
        first.setdefault(str(question.row["meta"]["hash"]), index)
    ranks = {row: hashlib.sha256(f"completions\0{seed}\0{row}".encode(errors="replace")).digest() for row in first}
    by_length = sorted(first, key=lambda row: (len(questions[first[row]].prompt), ranks[row]))
    chosen: list[str] = []
    for part in range(QUARTERS):
        start, end = (len(by_length) * edge // QUARTERS for edge in (part, part + 1))
        wanted = most * (part + 1) // QUARTERS - most * part // QUARTERS
        quarter = by_length[start:end]
        chosen += sorted(quarter, key=ranks.__getitem__)[: len(quarter) if most >= len(by_length) else wanted]
    return [first[row] for row in sorted(chosen, key=ranks.__getitem__)]


@dataclass(frozen=True)
class Completion:
    """What base and tuned model say to one prompt. The answers are texts without special tokens."""

    id: str
    """Hash of the held-out row; general-1 and so on for the general prompts."""
    prompt: Sequence[Message]
    """The conversation up to the answer."""
    shown: str
    """The last user message, for people."""
    reference: str | None
    """The answer of the row; None for a general prompt."""
    base: str
    tuned: str
    base_tokens: int
    tuned_tokens: int
    base_finished: bool
    """False where the answer ran into the limit of tokens."""
    tuned_finished: bool
    general: bool = False


def completion(
    name: str, prompt: Sequence[Message], shown: str, reference: str | None, replies: Any, index: int
) -> Completion:
    """The answers to one prompt: `replies` is a `heldout.Both` of lists of `Reply`; no reference: a general prompt."""
    base, tuned = replies.base[index], replies.tuned[index]
    return Completion(
        id=name,
        prompt=prompt,
        shown=shown,
        reference=reference,
        base=base.shown,
        tuned=tuned.shown,
        base_tokens=base.tokens,
        tuned_tokens=tuned.tokens,
        base_finished=base.finished,
        tuned_finished=tuned.finished,
        general=reference is None,
    )


class Written(NamedTuple):
    """The two files, and the SHA-256 of the first, which names these answers."""

    path: Path
    page: Path
    sha256: str


def write(completions: Sequence[Completion], folder: Path, *, name: str, about: str = "") -> Written:
    """Write completions.jsonl and completions.html to `folder`, the run's evaluation folder; it is made.

    Args:
        name: the run's name, shown, and kept in the saved review.
        about: one line about the model, such as its base and method.
    """
    text = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in completions)
    raw = text.encode(errors="replace")  # half a surrogate, as a broken row may hold, becomes "?"
    sha256 = hashlib.sha256(raw).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    written = Written(folder / FILE, folder / PAGE, sha256)
    written.path.write_bytes(raw)
    written.page.write_text(completions_page(completions, name=name, about=about, sha256=sha256), encoding="utf-8")
    return written


def completions_page(completions: Sequence[Completion], *, name: str, about: str, sha256: str) -> str:
    """The page on which a person reads the answers, marks them, gives a verdict, and saves both as JSON."""
    sample = {"run": name, "sha256": sha256, "rows": [_shown(each) for each in completions]}
    return render("completions.html.j2", TEMPLATES, name=name, about=about, sha256=sha256, sample=embedded(sample))


@dataclass(frozen=True)
class CompletionsReview:
    """What a person says about the answers. Counts are prompts."""

    file: str
    sha256: str
    """Of the file's bytes."""
    completions_sha256: str
    """Of the completions.jsonl that was read."""
    run: str
    reviewer: str
    verdict: str
    """pass, fail or needs-work."""
    note: str
    finished: str
    """When it was saved, as ISO 8601."""
    good: int
    bad: int
    same: int
    unmarked: int
    bad_rows: tuple[tuple[str, str], ...]
    """Id and note of each answer marked bad, in the order of the file."""

    def sentence(self) -> str:
        """The finding in one line."""
        marked = self.good + self.bad + self.same
        counts = f"{self.good} good, {self.bad} bad, {self.same} the same as the base's"
        verdict_text = (
            f"{self.reviewer} says {self.verdict} and marked {marked} of {marked + self.unmarked} answers: {counts}"
        )
        return verdict_text + (f"; {' '.join(self.note.split())}" if self.note.strip() else "")

    def as_json(self) -> dict[str, Any]:
        """For the evaluation log."""
        bad_rows = [{"id": row, "note": note} for row, note in self.bad_rows]
        return {**asdict(self), "bad_rows": bad_rows, "sentence": self.sentence()}


def read_review(path: Path, *, sha256: str) -> CompletionsReview:
    """Read what the page of the answers saved, and check that it is about these answers.

    Args:
        path: the saved JSON file.
        sha256: of the run's completions.jsonl as it is now.

    Raises:
        DataError: the file cannot be read, is no such review, is one of other answers, or says nothing.
    """
    raw, saved = load_saved(path)
    if saved.get("kind") != KIND or saved.get("version") != VERSION:
        raise DataError(f"{path}: not a review of answers of version {VERSION}; save one with the button of the page")
    read = saved.get("sha256")
    if read != sha256:
        named = short(read) if isinstance(read, str) and read else "no answers by name"
        raise DataError(
            f"{path}: this review is of {named}, the run's answers are {short(sha256)}; "
            f"open the {PAGE} of this run, read, mark, and save again"
        )
    reviewer, verdict, note = one_line(saved.get("reviewer")), saved.get("verdict"), saved.get("note", "")
    if not reviewer:
        raise DataError(f"{path}: `reviewer` is empty; a review needs the name of the person who read the answers")
    if verdict not in VERDICTS:
        raise DataError(f"{path}: the verdict is {json.dumps(verdict)}; it is one of {', '.join(VERDICTS)}")
    if not isinstance(note, str):
        raise DataError(f"{path}: the note is {json.dumps(note)}; it is a text, empty for none")
    marks, notes = read_marks(path, saved.get("rows"), noun="answer", name="id", mark="mark", marks=MARKS)
    good, bad, same = (list(marks.values()).count(mark) for mark in MARKS)
    if good + bad + same == 0:
        raise DataError(f"{path}: no answer is marked; open the page, read, mark, and save again")
    return CompletionsReview(
        file=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
        completions_sha256=sha256,
        run=one_line(saved.get("run")),
        reviewer=reviewer,
        verdict=verdict,
        note=plain(note),
        finished=finishing_time(path, saved.get("finished")),
        good=good,
        bad=bad,
        same=same,
        unmarked=len(marks) - good - bad - same,
        bad_rows=tuple((row, notes[row]) for row, mark in marks.items() if mark == "bad"),
    )


def _shown(completion: Completion) -> dict[str, Any]:
    """A completion as the page shows it."""
    about = {key: value for key, value in asdict(completion).items() if key not in ("prompt", "shown")}
    return {**about, "turns": [{**turn, "learned": False} for turn in message_turns(completion.prompt)]}
