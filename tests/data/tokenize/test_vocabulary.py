from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.system.errors import ConfigError


def test_a_slow_tokenizer_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ConfigError, match="ByT5Tokenizer is a slow one"):
        Vocabulary(ByT5Tokenizer())


def test_a_tokenizer_that_could_never_stop_is_refused(base_tokenizer: Any) -> None:
    base_tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="could never stop"):
        Vocabulary(base_tokenizer)


def test_characters_find_their_tokens(base_tokenizer: Any) -> None:
    text = "What is नई? Paris"
    encoding = Vocabulary(base_tokenizer).encode(text)
    for character in range(len(text)):
        token = encoding.token_at(character)
        assert encoding.starts[token] <= character < encoding.ends[token]
        assert all(end <= character for end in encoding.ends[:token])
    assert encoding.token_from(0) == 0
    assert encoding.text_of(0, len(encoding.ids)) == text
    assert encoding.token_at(len(text)) == encoding.token_from(len(text)) == len(encoding.ids)


def test_only_special_tokens_are_found_in_text(make_tokenizer: Callable[..., Any]) -> None:
    vocabulary = Vocabulary(make_tokenizer(["<|end|>"]), stop_ids=[5])
    assert vocabulary.special_in("a <|end|> b") == "<|end|>"
    assert vocabulary.special_in("a <|end| > b") is None
    assert vocabulary.stop_ids == {5, vocabulary.eos_id}
