"""Token ids of a conversation in which a message that spells a special token stays text.

A tokenizer turns `<|im_end|>` into the turn's end wherever it stands, in what a user wrote as well, and with that a
message can end its own turn and speak as the system. Where a message spells such a token, private-use characters stand
for it while the template renders; afterwards the text between them is tokenised as ever, and the spelled tokens as
plain text. All other conversations, which is nearly all, are rendered and tokenised as rows are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.vocabulary import Vocabulary, panics_told

_STAND_IN = re.compile("\ue100(\ue101*)\ue102")


def prompt_ids(
    vocabulary: Vocabulary, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
) -> list[int]:
    """Token ids of a rendered conversation.

    Args:
        render: gives the text of a conversation.
    """
    spelled: list[str] = []
    hidden = [_hidden(message, vocabulary, spelled) for message in messages]
    if not spelled or any("\ue100" in str(message) for message in messages):
        return vocabulary.encode(render(messages)).ids
    ids: list[int] = []
    text, end = render(hidden), 0
    for match in _STAND_IN.finditer(text):
        ids += vocabulary.encode(text[end : match.start()]).ids
        ids += _as_text(vocabulary.tokenizer, spelled[len(match[1])])
        end = match.end()
    return ids + vocabulary.encode(text[end:]).ids


def _hidden(value: Any, vocabulary: Vocabulary, spelled: list[str]) -> Any:
    """The value with a stand-in for each special token in its texts; roles and names of fields stay."""
    if isinstance(value, dict):
        return {name: each if name == "role" else _hidden(each, vocabulary, spelled) for name, each in value.items()}
    if isinstance(value, list):
        return [_hidden(each, vocabulary, spelled) for each in value]
    if not isinstance(value, str):
        return value
    while (token := vocabulary.special_in(value)) is not None:
        value = value.replace(token, f"\ue100{len(spelled) * chr(0xE101)}\ue102", 1)
        spelled.append(token)
    return value


def _as_text(tokenizer: Any, text: str) -> list[int]:
    with panics_told():
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
    return ids
