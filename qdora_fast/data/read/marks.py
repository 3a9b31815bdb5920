"""Marks that keep an answer out of the loss, in the words of other tools, and those that are refused.

    train, weight, loss_weight                       here and OpenAI
    loss, loss_scale                                 ms-swift, LLaMA-Factory, slime
    loss_mask, trainable, training                   verl, axolotl
    label, kto_tag                                   of a row: whether its answer is a good one (KTO)

0 and false keep an answer out, 1 and true are the default. Any other value, marks for parts of an answer, and a mark
that wants a question learned mean something that is not done here: the row is refused, and never learned on a guess.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.fields import Fields, is_blank

MARKS = ("train", "weight", "loss_weight", "loss", "loss_scale", "loss_mask", "trainable", "training")
WEIGHTS = ("weight", "loss_weight")
"""Of these 1 is only a number, also on a question."""
WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")
MARK_WORDS = {"train", "trained", "training", "trainable", "untrained", "loss", "mask", "masked", "masking"}
OF_PARTS = ("mask", "train_detail", "training_detail")
LABELS = ("label", "kto_tag")
OF_ROWS = {*MARKS, *OF_PARTS, *LABELS}
CHAT_COLUMNS = ("messages", "conversations", "prompt", "completion")


def trains(turn: Fields, role: str, place: str) -> bool | None:
    """Whether a message is marked as learned; None: it is not marked.

    Raises:
        RejectedRow: a mark of another value or kind, or one that wants more learned than answers.
    """
    marked: bool | None = None
    for key in turn:
        if not is_mark(key) or is_blank(value := turn.peek(key)):
            continue
        switch = _switch(value)
        if key not in MARKS or switch is None:
            supported = "only 0 and 1 are supported" if key in MARKS else "only `train: false` keeps an answer out"
            raise RejectedRow("wrong_type", f"{place}.{key} is {_short(value)}; {supported}")
        if role != "assistant" and switch:
            if key in WEIGHTS:
                continue
            raise RejectedRow(
                "wrong_type",
                f"{place}.{key} is {_short(value)} on a turn of the {role}; only answers are learned "
                "(data.train_on: all learns every turn)",
            )
        turn.get(key)
        marked = bool(switch) and marked is not False
    return marked


def refuse_marked_row(row: Fields) -> None:
    """Raise RejectedRow if a mark of the whole row keeps it out of the loss, or cannot be followed.

    A column may have such a name for other reasons: a `loss` that was measured, a `weight` of goods. So only values
    that are marks count, and those of everyday names only beside messages.
    """
    is_chat = any(column in row for column in CHAT_COLUMNS)
    for key in row:
        if key not in OF_ROWS:
            continue
        value = row.peek(key)
        if key in LABELS and isinstance(value, bool) and (is_chat or key != "label"):
            if not row.get(key):
                raise RejectedRow("labelled_bad", f"{key} is false")
        elif key not in LABELS and not is_blank(value) and (is_chat or "_" in key):
            _check_row_mark(row, key)


def refuse_marked_part(part: Fields, place: str) -> None:
    """Raise RejectedRow if a part of a content is marked in any way but as learned."""
    for key in part:
        value = part.peek(key)
        if is_mark(key) and not is_blank(value) and not _switch(value):
            raise RejectedRow("wrong_type", f"{place}.{key} is {_short(value)}; an answer is learned as a whole or not")


@cache
def is_mark(key: str) -> bool:
    """Whether the name of a message's key speaks of the loss."""
    return key == "weight" or bool(MARK_WORDS & {word.lower() for word in WORD.findall(key)})


def _check_row_mark(row: Fields, key: str) -> None:
    value = row.peek(key)
    switch = None if key in OF_PARTS or (key == "loss" and not isinstance(value, bool)) else _switch(value)
    if switch is None:
        if isinstance(value, list) or "_" in key or (key == "weight" and isinstance(value, int | float)):
            raise RejectedRow("wrong_type", f"{key} is {_short(value)}; only `train: false` in messages is supported")
    elif not row.get(key):
        raise RejectedRow("nothing_to_train", f"{key} is {_short(value)}")


def _switch(value: Any) -> int | None:
    """0 or 1 for false, 0, true, 1; None for anything else."""
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _short(value: Any) -> str:
    """A value for a message, as JSON calls it."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return str(value).lower() if isinstance(value, bool) else repr(value)[:40]
