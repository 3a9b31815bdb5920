from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from html_pages import HOSTILE, Page
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import completion, general

from qdora_fast.evaluation.report.completions import (
    GENERAL,
    KIND,
    VERSION,
    Completion,
    choose_prompts,
    completions_page,
    read_review,
    write,
)
from qdora_fast.system.errors import DataError

wild = st.text(max_size=30) | st.sampled_from(HOSTILE)


@dataclass(frozen=True)
class Asked:
    prompt: str
    row: dict[str, Any]


WRONG = "not valid JSON|empty|not UTF-8|nested more|expected a JSON object|holds no review"


def asked(number: int, length: int = 10) -> Asked:
    name = hashlib.sha256(str(number).encode()).hexdigest()
    return Asked("x" * length, {"meta": {"hash": name}})


# ---------------------------------------------------------------- which prompts


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 40), st.integers(0, 9), st.randoms())
def test_the_same_prompts_are_chosen_however_the_rows_are_ordered(
    lengths: list[int], most: int, seed: int, shuffler: random.Random
) -> None:
    questions = [asked(number, length) for number, length in enumerate(lengths)]
    chosen = [questions[index] for index in choose_prompts(questions, most=most, seed=seed)]
    assert len(chosen) == min(most, len(questions))
    assert len(set(map(id, chosen))) == len(chosen)
    shuffler.shuffle(questions)
    assert [questions[index] for index in choose_prompts(questions, most=most, seed=seed)] == chosen


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(0, 9))
def test_each_quarter_of_the_lengths_gives_its_share(most: int, seed: int) -> None:
    questions = [asked(number, length=number) for number in range(200)]
    quarters = [index // 50 for index in choose_prompts(questions, most=most, seed=seed)]
    counts = [quarters.count(quarter) for quarter in range(4)]
    assert sum(counts) == most
    assert max(counts) - min(counts) <= 1


def test_another_seed_chooses_other_prompts_and_the_first_few_are_of_all_lengths() -> None:
    questions = [asked(number, length=number) for number in range(200)]
    chosen = [choose_prompts(questions, most=24, seed=seed) for seed in range(20)]
    assert len({tuple(each) for each in chosen}) == 20
    firsts = [index // 50 for each in chosen for index in each[:6]]
    assert min(firsts.count(quarter) for quarter in range(4)) >= 15  # 30 are expected of each


def test_rows_with_the_same_content_are_asked_once() -> None:
    assert len(choose_prompts([asked(1), asked(2), asked(1)], most=5, seed=0)) == 2


def test_general_prompts_are_plain_messages_that_differ() -> None:
    assert len({prompt[-1]["content"] for prompt in GENERAL}) == 4
    assert all([message["role"] for message in prompt] == ["user"] for prompt in GENERAL)


# ---------------------------------------------------------------- the files


def sample_of(html: str) -> dict[str, Any]:
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 2
    return json.loads(page.scripts[0])


def page_of(*completions: Completion, name: str = "n", about: str = "a", sha256: str = "s") -> str:
    return completions_page(completions, name=name, about=about, sha256=sha256)


def test_what_is_written_can_be_read_again_and_is_named_by_its_hash(tmp_path: Path) -> None:
    kept = [general(1), completion(2, reference="नमस्ते\u2028\n")]
    written = write(kept, tmp_path / "evaluation", name="demo", about="qdora on a base")
    lines = written.path.read_text(encoding="utf-8").split("\n")
    assert [Completion(**json.loads(line)) for line in lines if line] == kept
    assert written.sha256 == hashlib.sha256(written.path.read_bytes()).hexdigest()
    html = written.page.read_text(encoding="utf-8")
    assert (written.path.name, written.page.name) == ("completions.jsonl", "completions.html")
    assert sample_of(html)["sha256"] == written.sha256
    assert written.sha256 in Page(html).text and "qdora on a base" in Page(html).text


@settings(deadline=None)
@given(wild, wild, wild, wild, wild, wild)
def test_no_text_is_ever_markup_and_every_character_arrives(
    prompt: str, base: str, tuned: str, reference: str, name: str, about: str
) -> None:
    messages = [{"role": "user", "content": prompt}]
    one = completion(1, prompt=messages, shown=prompt, base=base, tuned=tuned, reference=reference)
    html = page_of(one, name=name, about=about or "a", sha256="s")
    html.encode()
    assert Page(html).tags == Page(page_of()).tags
    sample = sample_of(html)
    row = sample["rows"][0]
    assert (sample["run"], row["base"], row["tuned"], row["reference"]) == (name, base, tuned, reference)
    assert [turn["text"] for turn in row["turns"]] == [prompt]


@settings(deadline=None)
@given(st.lists(wild, max_size=4))
def test_any_text_is_written_one_line_for_each_answer(
    tmp_path_factory: pytest.TempPathFactory, said: list[str]
) -> None:
    kept = [completion(number, tuned=text) for number, text in enumerate(said)]
    raw = write(kept, tmp_path_factory.mktemp("written"), name="n").path.read_bytes()
    found = [json.loads(line)["tuned"] for line in raw.decode().split("\n") if line]
    assert found == [text.encode(errors="replace").decode() for text in said]


def test_the_page_shows_the_whole_conversation_and_whether_an_answer_was_cut() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    row = sample_of(page_of(completion(1, prompt=messages, shown="Three?")))["rows"][0]
    assert [turn["label"] for turn in row["turns"]] == ["System", "User", "Assistant", "User"]
    assert (row["base_finished"], row["tuned_finished"], row["base_tokens"], row["tuned_tokens"]) == (False, True, 9, 1)


def test_the_page_asks_nothing_of_the_network() -> None:
    html = page_of(completion(1))
    page = Page(html)
    names = [key for _, attrs in page.tags for key in attrs]
    assert not {"src", "href", "srcset", "action"} & set(names)
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in html and "@import" not in html
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';")


def test_the_script_finds_its_elements_and_writes_text_only() -> None:
    page = Page(page_of(completion(1)))
    script = page.scripts[1]
    used = set(re.findall(r'\$\("([\w-]+)"\)', script)) | set(re.findall(r'showAnswer\("([\w-]+)"', script))
    buttons = re.search(r"const BUTTONS = \{(.*?)\}", script)
    assert buttons
    used |= set(re.findall(r'"?([\w-]+)"?: "\w"', buttons[1]))
    assert {"base", "tuned", "reference", "why", "mark-same"} <= used <= page.ids
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|import", script)


def test_the_page_saves_what_the_reader_of_reviews_expects() -> None:
    page = Page(page_of())
    assert f'kind: "{KIND}", version: {VERSION}, run: sample.run, sha256: sample.sha256' in page.scripts[1]
    assert all(
        f"{key}:" in page.scripts[1] for key in ("reviewer", "verdict", "note", "finished", "rows", "id", "mark")
    )
    verdicts = [attrs["value"] for tag, attrs in page.tags if tag == "input" and attrs.get("type") == "radio"]
    assert sorted(map(str, verdicts)) == ["fail", "needs-work", "pass"]


# ---------------------------------------------------------------- what was said about them

SHA256 = "ab" * 32


def saved(**changes: Any) -> dict[str, Any]:
    marks = ["good"] * 5 + ["bad"] * 2 + ["same"] * 3 + [None] * 2
    rows = [{"id": f"row-{number}", "mark": mark, "note": ""} for number, mark in enumerate(marks)]
    whole = {"kind": KIND, "version": VERSION, "run": "demo", "sha256": SHA256, "reviewer": "Asha"}
    whole |= {"verdict": "needs-work", "note": "too short", "finished": "2026-01-31T12:00:00.000Z", "rows": rows}
    return whole | changes


def put(folder: Path, review: object) -> Path:
    path = folder / "review.json"
    path.write_text(json.dumps(review), encoding="utf-8")
    return path


def test_a_review_is_read_with_its_verdict_counts_and_notes(tmp_path: Path) -> None:
    content = saved()
    content["rows"][6]["note"] = "wrong capital"
    path = put(tmp_path, content)
    review = read_review(path, sha256=SHA256)
    assert (review.run, review.reviewer, review.verdict, review.note) == ("demo", "Asha", "needs-work", "too short")
    assert (review.good, review.bad, review.same, review.unmarked) == (5, 2, 3, 2)
    assert review.bad_rows == (("row-5", ""), ("row-6", "wrong capital"))
    assert review.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    said = "Asha says needs-work and marked 10 of 12 answers: 5 good, 2 bad, 3 the same as the base's; too short"
    assert review.sentence() == said
    found = json.loads(json.dumps(review.as_json()))
    assert (found["sentence"], found["completions_sha256"], found["verdict"]) == (said, SHA256, "needs-work")
    assert found["bad_rows"][1] == {"id": "row-6", "note": "wrong capital"}


ROWS = saved()["rows"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "qdora_fast.review"}, "not a review of answers"),
        ({"version": 2}, "not a review of answers"),
        (
            {"sha256": "cd" * 32},
            r"of cdcdcdcdcdcd..., the run's answers are abababababab...; open the completions.html",
        ),
        ({"sha256": None}, "no answers by name"),
        ({"reviewer": " \x1b\n"}, "name of the person"),
        ({"verdict": "fine"}, 'the verdict is "fine"; it is one of pass, fail, needs-work'),
        ({"verdict": None}, "the verdict is null"),
        ({"note": 3}, "the note is 3"),
        ({"finished": "yesterday"}, "write a time such as"),
        ({"rows": []}, "`rows` is not a list"),
        ({"rows": ["good"]}, "answer 1 has no `id`"),
        ({"rows": [{**ROWS[0], "mark": "fine"}]}, 'answer 1: the mark is "fine"; it is good, bad, same, or null'),
        ({"rows": [{**ROWS[0], "note": None}]}, "answer 1: the note is null"),
        ({"rows": [*ROWS, ROWS[7]]}, "answer 13: row-7 is marked twice"),
        ({"rows": [{**each, "mark": None} for each in ROWS]}, "no answer is marked"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = put(tmp_path, saved(**changes))
    with pytest.raises(DataError, match=message) as raised:
        read_review(path, sha256=SHA256)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"null", b"[1]"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "review.json"
    path.write_bytes(content)
    with pytest.raises(
        DataError,
        match=rf"review\.json: ({WRONG})",
    ):
        read_review(path, sha256=SHA256)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_review(path, sha256=SHA256)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | wild | st.sampled_from(["good", "pass", SHA256]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "mark", "note"]), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(saved())), values))
def test_any_json_is_either_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = put(tmp_path_factory.mktemp("review"), saved(**changes))
    try:
        review = read_review(path, sha256=SHA256)
    except DataError as error:
        message = str(error)
    else:
        message = f"{path}: {review.sentence()}"
        assert review.good + review.bad + review.same + review.unmarked == len(saved(**changes)["rows"])
    assert message.startswith(f"{path}: ")
    message.encode()
    assert "\n" not in message and "\x1b" not in message
