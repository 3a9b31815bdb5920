"""Layouts of other tools that are recognised, but not read: what each is called, and what to do.

They hold rows from which more than one training set can be made (two answers, several answers, requests without
answers), or text whose speakers are not named. Which is wanted is the user's to say, so the error says what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]

FORMATTER = "write them as messages with a function of yours (data.formatter)"


def named_layout(row: Row) -> str | None:
    """What a row is in another tool, and the fix; None where it is no such row."""
    return _turns_without_speakers(row) or next((text for is_one, text in LAYOUTS if is_one(row)), None)


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(column in row for column in columns)


def _has_answers(row: Row) -> bool:
    answers = row.get("answers")
    return isinstance(answers, dict) and "text" in answers


def _has_prompt_messages(row: Row) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(turn, dict) for turn in prompt)


def _is_request(row: Row) -> bool:
    return isinstance(row.get("body"), dict) and "messages" in row["body"]


def _turns_without_speakers(row: Row) -> str | None:
    for column, value in row.items():
        if not isinstance(value, list) or len(value) < 2:
            continue
        if all(isinstance(turn, str) for turn in value) and column.lower() in TURNS:
            return f"{column} is a list of {len(value)} texts whose speakers are not named; {FORMATTER}"
        if all(isinstance(turn, dict) for turn in value) and column.lower() in (*TURNS, "messages", "conversations"):
            keys = ", ".join(list(map(str, value[0]))[:6])
            return f"{column} is a list of turns with {keys}, not role and content, or from and value; {FORMATTER}"
    return None


TURNS = ("dialog", "dialogue", "dialogs", "turns", "conversation", "conversations", "messages", "utterances", "chat")


def _holds_rows(row: Row) -> bool:
    return bool(row) and all(isinstance(rows, list) and rows and isinstance(rows[0], dict) for rows in row.values())


LAYOUTS: tuple[tuple[Callable[[Row], bool], str], ...] = (
    (
        _has("chosen", "rejected"),
        "It is a preference set (chosen and rejected answers), of which only one can be learned; where both are "
        "texts: data.columns: {prompt: prompt, response: chosen}; where they are messages, return the chosen ones as "
        "`messages` from a function of yours (data.formatter)",
    ),
    (
        _has("preferred_output", "non_preferred_output"),
        f"It is a preference set of OpenAI, of which only one answer can be learned; {FORMATTER}",
    ),
    (_has("segments"), f"They are input_output rows of Axolotl, whose segments are marked one by one; {FORMATTER}"),
    (
        _is_request,
        "They are requests of OpenAI's batch interface, questions without answers; join them with its output",
    ),
    (
        _has("custom_id", "response"),
        f"They are output of OpenAI's batch interface: answers without questions; {FORMATTER}",
    ),
    (
        _has_answers,
        "They are SQuAD rows, whose answers are alternatives (answers.text); choose one with a function of yours "
        "(data.formatter) that returns question, context and answer",
    ),
    (
        _has_prompt_messages,
        f"They are prompts without a known column of answers, as for reinforcement learning; {FORMATTER}",
    ),
    (
        _holds_rows,
        "It is an object of lists of rows; save the list that you mean, [{...}, ...], as a file of its own",
    ),
)
"""Test of a row, and what it is called with the fix; the first that holds counts."""
