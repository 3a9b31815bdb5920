"""What a message says of its reasoning, under any name that servers and tools have for it.

`reasoning_content` (DeepSeek, vLLM), `reasoning` and `reasoning_details` (OpenRouter), `thinking` (Ollama), `thought`;
or parts of the content of type thinking (Anthropic, Mistral) or reasoning. All become `reasoning_content`, which is
what chat templates read.
"""

from __future__ import annotations

from qdora_fast.data.read.fields import Fields
from qdora_fast.data.read.messages import REASONING, as_text, is_reasoning


def reasoning_text(turn: Fields, key: str, place: str) -> str:
    """The reasoning of a message whose content stands under `key`, "" without any. Where several keys say it, the first
    is taken, and only it counts as read.

    Raises:
        RejectedRow: see `as_text`.
    """
    for name in REASONING:
        if text := _thought(turn.peek(name), f"{place}.{name}"):
            turn.get(name)
            return text
    content = turn.peek(key)
    return _thought([part for part in content if is_reasoning(part)] if isinstance(content, list) else "", place)


def _thought(value: object, place: str) -> str:
    """The text of reasoning: a text, or the texts of parts, which may hold lists of parts themselves."""
    if isinstance(value, dict):
        said = (_thought(value.get(key), place) for key in (*REASONING, "text", "summary"))
        return next(filter(None, said), "")
    if isinstance(value, list):
        return "".join(_thought(each, place) for each in value)
    return as_text(value, place) if isinstance(value, str) and value.strip() else ""
