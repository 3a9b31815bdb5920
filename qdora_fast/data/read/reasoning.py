"""What a message says of its reasoning, under any name that servers and tools have for it.

`reasoning_content` (DeepSeek, vLLM), `reasoning` (OpenRouter, vLLM), `thinking` (Ollama), `thought`, or parts of the
content of type thinking (Anthropic, Mistral) or reasoning. All become `reasoning_content`, which chat templates read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qdora_fast.data.read.fields import Fields
from qdora_fast.data.read.messages import REASONING, as_text, is_reasoning


def reasoning_text(turn: Fields, key: str, place: str) -> str | None:
    """The reasoning of a message whose content stands under `key`; None without any. Where several keys say it, the
    first is taken.

    Raises:
        RejectedRow: see `as_text`.
    """
    named = [name for name in REASONING if isinstance(value := turn.peek(name), str | list) and value]
    content = turn.peek(key)
    found = (
        turn.get(named[0])
        if named
        else [part for part in content if is_reasoning(part)]
        if isinstance(content, list)
        else []
    )
    texts = [as_text(text, f"{place}.reasoning") for text in _texts(found)]
    return "".join(texts) if texts else None


def _texts(value: Any) -> Iterator[Any]:
    """The texts of a value: one, or those of its parts, which may hold lists of parts themselves."""
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from (text for name in (*REASONING, "text") if value.get(name) for text in _texts(value[name]))
    else:
        yield value
