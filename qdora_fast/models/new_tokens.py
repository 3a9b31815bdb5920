"""`adapter.trainable_tokens`: words of one's own. Rows of the embeddings, and of the output head, that are trained.

LoRA and DoRA leave embeddings as they are, so a token that the base never learned (a turn token of another template, a
tag of one's own) stays what it was: noise. PEFT can train single rows beside the adapter (`trainable_token_indices`),
which costs a few thousand values where `modules_to_save` costs the whole matrix. Where the head has weights of its own
its rows are trained, too: a model that reads a token and cannot say it is of little use.

A token that the tokenizer does not know is added to it as a special token. It gets a free row of the embeddings where
there is one (many are padded), else a new one, and starts at the mean of all rows, as Transformers starts new tokens.
What this does not do: grow a base by rows that nobody trains; they could not be told from a damaged file later.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qdora_fast.system.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from qdora_fast.models.loading import Base

SETTING = "adapter.trainable_tokens"


def add_tokens(tokenizer: Any, tokens: Sequence[str | int], *, rows: int) -> tuple[int, ...]:
    """The ids of tokens that are to be trained, in their order; those the tokenizer lacks are added to it.

    Args:
        rows: of the base's embeddings.

    Raises:
        ConfigError: no such id, a text that is no single token, one token named twice, or rows that nobody trains.
    """
    vocabulary = tokenizer.get_vocab()
    numbers = set(vocabulary.values())
    new = [token for token in tokens if isinstance(token, str) and token not in vocabulary]
    problems = [
        f"{token!r} is several words; a new token has no space in it"
        for token in new
        if any(letter.isspace() for letter in token)
    ]
    problems += [
        f"there is no token with id {token}; the ids go from 0 to {max(numbers)}"
        for token in tokens
        if isinstance(token, int) and token not in numbers
    ]
    if problems:
        raise ConfigError(f"{SETTING}: {'; '.join(problems)}")
    if new:
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new])
        vocabulary = tokenizer.get_vocab()
    ids = tuple(vocabulary[token] if isinstance(token, str) else token for token in tokens)
    if twice := sorted({number for number in ids if ids.count(number) > 1}):
        same = " and ".join(repr(token) for token, number in zip(tokens, ids, strict=True) if number == twice[0])
        raise ConfigError(f"{SETTING}: {same} are one token (id {twice[0]}); name it once")
    _refuse_untrained_rows(vocabulary, ids, rows)
    return ids


def with_tokens(base: Base, tokens: Sequence[str | int]) -> Base:
    """A loaded base whose tokenizer and embeddings have the tokens that are to be trained.

    Raises:
        ConfigError: see `add_tokens`.
        RefusedError: its output head adds a bias, which PEFT leaves out beside trained tokens.
    """
    if not tokens:
        return base
    head, rows = base.model.get_output_embeddings(), base.model.get_input_embeddings().weight.shape[0]
    if getattr(head, "bias", None) is not None:
        raise RefusedError(f"{SETTING}: this base's output head has a bias, which PEFT loses beside trained tokens")
    before = len(base.tokenizer)
    ids = add_tokens(base.tokenizer, tokens, rows=rows)
    grow_embeddings(base.model, max(ids) + 1)
    return replace(base, tokens=ids, new_tokens=tuple(number for number in ids if number >= before))


def grow_embeddings(model: Any, rows: int) -> None:
    """Make room for `rows` tokens; new rows of embeddings and head are the mean of the others."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            layer.weight[before:] = layer.weight[:before].mean(dim=0, dtype=torch.float32).to(layer.weight.dtype)


def token_indices(base: Base) -> dict[str, list[int]]:
    """PEFT's `trainable_token_indices`: the embeddings by name, and the head where it has weights of its own."""
    model = base.model
    names = {id(module): name for name, module in model.named_modules()}
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [inside] if outside is None or outside.weight is inside.weight else [inside, outside]
    return {names[id(layer)]: list(base.tokens) for layer in layers}


def open_wrappers(model: Any) -> None:
    """Let the layers that PEFT has wrapped for trained tokens be read like the layers within, instance by instance.

    Losses that multiply by the head's weight themselves ask for its `bias`, which PEFT's wrapper does not have.
    """
    from peft.utils.other import TrainableTokensWrapper

    for module in model.modules():
        if type(module) is TrainableTokensWrapper:
            module.__class__ = _open_wrapper()


@functools.cache
def _open_wrapper() -> type:
    from peft.utils.other import TrainableTokensWrapper

    class OpenTokensWrapper(TrainableTokensWrapper):
        """PEFT's, read like the layer within."""

        def _hasattr_wrapped(self, name: str, modules: Any) -> bool:
            return name == "weight" or hasattr(modules["token_adapter"].get_base_layer(), name)

        def _getattr_wrapped(self, name: str, modules: Any) -> Any:
            if name == "weight":
                return super()._getattr_wrapped(name, modules)
            return getattr(modules["token_adapter"].get_base_layer(), name)

    return OpenTokensWrapper


def prepare_rows(model: Any, base: Base) -> None:
    """Trained rows of a fresh PEFT model in fp32, those of new tokens at the mean of all rows."""
    import torch

    open_wrappers(model)

    new = [place for place, number in enumerate(base.tokens) if number in base.new_tokens]
    for layer, rows in token_rows(model):
        rows.data = rows.data.float()
        if new:
            rows.data[new] = layer.weight.data.mean(dim=0, dtype=torch.float32)


def token_rows(model: Any) -> Iterator[tuple[Any, Any]]:
    """(embeddings or head, their trained rows [tokens, hidden]) of a PEFT model; once where both share them."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    for module in model.modules():
        if isinstance(module, TrainableTokensLayer) and module.tied_adapter is None:
            for rows in module.trainable_tokens_delta.values():
                yield module.get_base_layer(), rows


def _refuse_untrained_rows(vocabulary: dict[str, int], ids: Sequence[int], rows: int) -> None:
    """Raise ConfigError for rows that the base would need and that nobody trains."""
    name_of = {number: token for token, number in vocabulary.items()}
    untrained = [number for number in range(rows, max(name_of) + 1) if number not in ids]
    if untrained:
        named = ", ".join(repr(name_of.get(number, number)) for number in untrained[:5])
        raise ConfigError(
            f"{SETTING}: the tokenizer has {len(untrained)} more tokens than the base's embeddings have rows for "
            f"({named}); list them here as well, or take them out of the tokenizer"
        )
