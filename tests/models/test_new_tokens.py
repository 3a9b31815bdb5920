"""Tokens of one's own: their ids, and every request that has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_lm
from transformers import PreTrainedTokenizerFast

from qdora_fast.config.loader import make_config
from qdora_fast.models.new_tokens import add_tokens, grow_embeddings
from qdora_fast.system.errors import ConfigError


@pytest.fixture
def tokenizer() -> Any:
    """Six tokens: letters and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    made.add_tokens(["<end>"])
    return made


@pytest.mark.parametrize(
    ("tokens", "rows", "ids"),
    [
        (["b", "<end>"], 6, (1, 5)),
        (["<|im_start|>", "a", "<|im_end|>"], 6, (6, 0, 7)),  # new rows
        (["<think>"], 64, (6,)),  # a free row of padded embeddings
        ([2, "a"], 6, (2, 0)),
        ([5], 5, (5,)),  # the tokenizer was extended before
    ],
)
def test_ids_in_their_order(tokenizer: Any, tokens: list[str | int], rows: int, ids: tuple[int, ...]) -> None:
    assert add_tokens(tokenizer, tokens, rows=rows) == ids
    for token in tokens:
        if isinstance(token, str):
            assert tokenizer(token).input_ids == [ids[tokens.index(token)]]
    assert add_tokens(tokenizer, tokens, rows=rows) == ids  # again is the same


def test_a_new_token_is_special_and_whole_within_text(tokenizer: Any) -> None:
    add_tokens(tokenizer, ["<|im_end|>"], rows=6)
    ids = tokenizer("a b<|im_end|>c").input_ids
    assert ids == [0, 1, 6, 2]
    assert "im_end" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("tokens", "rows", "said"),
    [
        (["two words", "new\n"], 6, r"'two words' is several words.*'new\\n' is several words"),
        ([17], 64, "there is no token with id 17; the ids go from 0 to 5"),
        (["a", 0], 6, r"'a' and 0 are one token \(id 0\); name it once"),
        (["<new>"], 5, r"1 more tokens than the base's embeddings have rows for \('<end>'\)"),
    ],
)
def test_what_has_no_id_is_one_clear_error(tokenizer: Any, tokens: list[str | int], rows: int, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter.trainable_tokens: .*{said}"):
        add_tokens(tokenizer, tokens, rows=rows)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"trainable_tokens": ["<a>", "<a>"]}, "names '<a>' twice"),
        ({"trainable_tokens": [""]}, "trainable_tokens"),
        ({"trainable_tokens": [-1]}, "trainable_tokens"),
        ({"trainable_tokens": ["<a>"], "modules_to_save": ["lm_head"]}, "all of lm_head: keep one of the two"),
    ],
)
def test_settings_that_cannot_be_are_refused(adapter: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config({"data": {"path": "demo"}, "adapter": adapter})


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_others(tied: bool) -> None:
    model = tiny_lm(nf4=False).unload()
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    inside, outside = (layer.weight.detach().clone() for layer in _ends(model))
    grow_embeddings(model, 90)  # has more rows
    assert torch.equal(_ends(model)[0].weight, inside)
    grow_embeddings(model, 98)
    for layer, before in zip(_ends(model), (inside, outside), strict=True):
        assert torch.equal(layer.weight[:96], before)
        torch.testing.assert_close(layer.weight[96:], before.mean(dim=0).expand(2, -1))
    assert model.config.vocab_size == 98 and (_ends(model)[0].weight is _ends(model)[1].weight) == tied


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
