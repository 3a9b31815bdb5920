"""A model's config.json, before anything is built or counted by it, and how long a text the model was made for.

A count of 10 million layers makes a plan run for hours, one of 4,000 digits breaks every sum. So counts are looked at
once, when the file is read. So is whether it asks for code: attention may be named by a kernel's repository on the hub,
which Transformers fetches and imports where the package `kernels` is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.json_files import COPY_AGAIN, read_object
from qdora_fast.system.limits import MODEL_COUNT, MODEL_LAYERS
from qdora_fast.system.remote_code import FLAG, remote_code_allowed

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""Names that families have for the tokens of their longest text."""
STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of RoPE scaling with which a model reads `factor` times as far as its count of positions may say. With llama3
and longrope the count says it."""


def read_model_config(path: Path) -> dict[str, Any]:
    """The values of a config.json.

    Raises:
        ConfigError: the file is damaged, or a count in it is larger than any model's.
        RefusedError: it names a kernel of the hub, and code that comes with a model was not allowed.
    """
    values = read_object(path, error=ConfigError)
    inner = [each for each in values.values() if isinstance(each, dict)]  # text_config of a model that also sees
    for section in (values, *inner):
        for name, count in section.items():
            most = MODEL_LAYERS if name in LAYER_COUNTS else MODEL_COUNT
            if isinstance(count, int | float) and count > most and count != float("inf"):
                raise ConfigError(f"{path}: {name} is {count:.4g}, and no model has more than {most:,}; {COPY_AGAIN}")
    _refuse_kernels(path, values)
    return values


def _refuse_kernels(path: Path, values: Mapping[str, Any]) -> None:
    """Raise RefusedError for attention that is a repository of code: `{"": "kernels-community/flash-attn3"}`."""
    named = dict(_attention(values))
    kernel = next((text for text in named.values() if "/" in text), None)
    if kernel is not None and not remote_code_allowed():
        raise RefusedError(
            f"{path}: asks for attention by the hub's code {kernel!r}, and nothing that comes with a model is run "
            f"unasked; remove that entry, or read the code and add {FLAG} to the command"
        )


def _attention(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The ways of attention that a config.json names, for the model and its parts."""
    for name, value in values.items():
        chosen = value.values() if isinstance(value, Mapping) else (value,)
        if name.strip("_").startswith("attn_implementation"):
            yield from ((name, each) for each in chosen if isinstance(each, str))
        elif isinstance(value, Mapping):
            yield from _attention(value)


def text_section(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json says of the language model: all of it, but for a model that also sees or hears."""
    section = values.get("text_config")
    return section if isinstance(section, Mapping) else values


def position_limit(values: Mapping[str, Any]) -> int | None:
    """Tokens of the longest text that a model was made for, RoPE scaling included; None: its config does not say.

    A window of attention is no limit, nor is the tokenizer's `model_max_length`, which many tokenizers state at random.

    Args:
        values: of a config.json.
    """
    text = text_section(values)
    said = [text[name] for name in POSITIONS if isinstance(text.get(name), int) and text[name] > 0]
    if not said:
        return None
    longest = max(said)
    for scaling in _rope_scalings(text):
        factor, before = scaling.get("factor"), scaling.get("original_max_position_embeddings")
        if scaling.get("rope_type", scaling.get("type")) in STRETCHED and isinstance(factor, int | float):
            longest = max(longest, int(factor * (before if isinstance(before, int) else max(said))))
    return int(longest)


def _rope_scalings(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One, or one for each kind of layer."""
    for name in ("rope_scaling", "rope_parameters"):
        section = text.get(name)
        if isinstance(section, Mapping):
            yield section
            yield from (each for each in section.values() if isinstance(each, Mapping))
