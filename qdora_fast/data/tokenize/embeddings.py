"""Whether the base has an embedding for every token of the prepared rows.

Tokens that were added to a tokenizer without resizing the model end in an IndexError on the CPU, in an assert of the
device on a GPU. Tokens that no row uses do no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from qdora_fast.data.store import Examples, Rows
from qdora_fast.system.errors import ConfigError

NAMED = 3
"""Tokens that the message names."""


def require_embedded(sides: Iterable[tuple[Rows, Examples | None]], tokenizer: Any, embeddings: int, base: str) -> None:
    """Raise ConfigError if a row holds a token that the base has no embedding for.

    Args:
        sides: rows with their tokens, such as training and held-out rows.
        embeddings: of the base: its tokens are 0 to `embeddings` - 1.
        base: its name, for the message.
    """
    beyond: Counter[int] = Counter()
    rows, first = 0, ""
    for texts, examples in sides:
        if examples is None or not len(examples) or examples.highest_token() < embeddings:
            continue
        for index in range(len(examples)):
            strange = {token for token in examples[index]["input_ids"] if token >= embeddings}
            beyond.update(strange)
            rows += bool(strange)
            first = first or (texts.source_of(index) if strange else "")
    if not beyond:
        return
    named = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)})" for token in sorted(beyond)[:NAMED])
    more = f" and {len(beyond) - NAMED} more" if len(beyond) > NAMED else ""
    use = "1 row uses" if rows == 1 else f"{rows:,} rows use"
    raise ConfigError(
        f"model.name: {use} token {named}{more}, and `{base}` has embeddings for {embeddings:,} (0-{embeddings - 1}); "
        f"the first is {first}. Tokens were added to the tokenizer without resizing the model: resize it "
        "(`model.resize_token_embeddings(len(tokenizer))`, then save_pretrained), or use a tokenizer that belongs to it"
    )
