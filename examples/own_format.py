"""Rows in a shape of your own, through a function of your own.

    .venv/bin/python examples/own_format.py

A forum keeps threads: a title, and posts with votes. The function below makes one question and its best answer of
each, and leaves out threads that nobody answered. It lies in a file of its own, as yours would, next to the rows, and
is run because it is named twice: in the settings, and in `own_code` (`--own-code` on the command line).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import qdora_fast

FORMATTER = '''\
"""Forum threads as conversations."""


def best_answer(thread):
    question, *answers = thread["posts"]
    if not answers:
        return None  # left out, and counted
    best = max(answers, key=lambda post: post["votes"])
    return {
        "messages": [
            {"role": "user", "content": f"{thread['title']}\\n\\n{question['text']}"},
            {"role": "assistant", "content": best["text"]},
        ]
    }
'''

PLANTS = ("basil", "mint", "sage", "thyme", "dill", "chives", "parsley", "rosemary", "oregano", "tarragon", "lovage")


def write_threads(path: Path) -> None:
    """Forty-four threads; every eleventh has no answer, and one was damaged."""
    with path.open("w", encoding="utf-8") as file:
        for number, plant in enumerate(PLANTS * 4):
            room = ("kitchen", "balcony", "garden", "greenhouse")[number // len(PLANTS)]
            posts = [
                {"text": f"My {plant} in the {room} hangs its leaves since I moved it there last week.", "votes": 1},
                {"text": f"Wait, it will be fine, I never did a thing for the {plant} in my {room}.", "votes": 2},
                {"text": f"Water the {plant} in the morning, and keep it out of the {room}'s noon sun.", "votes": 9},
            ]
            thread = {"title": f"What does {plant} need?", "posts": posts if number % 11 else posts[:1]}
            file.write("posts gone\n" if number == 5 else json.dumps(thread) + "\n")


def main(folder: Path) -> list[dict]:
    """Write the two files and prepare the rows, which says what became of them; returns the first row's messages."""
    (folder / "forum.py").write_text(FORMATTER, encoding="utf-8")
    write_threads(folder / "threads.jsonl")
    with contextlib.chdir(folder):  # where relative paths start
        data = {"path": "threads.jsonl", "formatter": "forum.py:best_answer", "on_bad_row": "skip"}
        prepared = qdora_fast.prepare_data("demo", data=data, own_code=["forum.py"])
    print(f"{prepared.report.train} threads to train on, {prepared.report.held_out} held out")
    return prepared.train[0]["messages"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for message in main(Path(scratch)):
            print(f"\n{message['role']}: {message['content']}")
