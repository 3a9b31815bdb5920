"""Is a GGUF file the merged model? What can be read from it with PyPI's `gguf`, against the folder it was made from.

Checked are the form (architecture, blocks, width, number of weights, type) and what decides the tokens (chat template,
EOS, whether BOS is put in front). Not checked are the weights' values: they are the converter's work, and with them how
much a small type loses; `weights.py` has shown the folder that it read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdora_fast.data.tokenize.chat_text import templates_of
from qdora_fast.data.tokenize.vocabulary import adds_bos
from qdora_fast.models.model_class import config_in, empty_model
from qdora_fast.models.model_config import text_section
from qdora_fast.models.stored_names import open_weights
from qdora_fast.models.targets import beside, lies_in
from qdora_fast.models.weights import TensorInfo, WeightFolder
from qdora_fast.system.errors import ProofError
from qdora_fast.system.json_files import read_object

MAGIC = b"GGUF"
UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError)
"""What the reader raises on files that are damaged or something else."""


@dataclass(frozen=True)
class GgufFacts:
    """What the file must say."""

    kind: str
    """Type of the weights: q8_0, q4_k_m, ..."""
    weights: int
    """Number of parameters."""
    blocks: int
    width: int
    chat_template: str | None
    eos_id: int | None
    adds_bos: bool
    more_templates: Mapping[str, str] = field(default_factory=dict)
    """Further chat templates, by name: `tool_use`, ..."""


def expected_facts(merged: Path, tokenizer: Any, kind: str) -> GgufFacts:
    """Read off a merged model's folder and the run's tokenizer."""
    config = text_section(read_object(merged / "config.json"))
    infos = _language_part(merged)
    named = templates_of(tokenizer)
    return GgufFacts(
        kind=kind,
        weights=sum(math.prod(info.shape) for info in infos if not info.name.endswith("inv_freq")),
        blocks=int(str(config["num_hidden_layers"])),
        width=int(str(config["hidden_size"])),
        chat_template=named.pop("default", None),
        eos_id=tokenizer.eos_token_id,
        adds_bos=adds_bos(tokenizer),
        more_templates=named,
    )


def sees(merged: Path) -> bool:
    """Whether it is a vision model, of which llama.cpp converts the language part."""
    config = read_object(merged / "config.json")
    return text_section(config) is not config


def _language_part(merged: Path) -> list[TensorInfo]:
    """The tensors that the converter takes: it leaves towers and projectors for a file of their own (`--mmproj`)."""
    if not sees(merged):
        return list(WeightFolder(merged).infos.values())
    model = empty_model(config_in(merged))
    weights = open_weights(merged, (name for name, _ in model.named_parameters()))
    outside = beside(model)
    return [info for name, info in weights.infos.items() if not lies_in(name, outside)]


def check(file: Path, wanted: GgufFacts) -> list[dict[str, Any]] | None:
    """Compare a GGUF file with what it must say.

    Returns:
        Checks as in an export's proof (name, passed, words); None: the reader is not installed.

    Raises:
        ProofError: it is no GGUF file, or not a whole one.
    """
    with file.open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise ProofError(f"{file.name} is no GGUF file, although the converter reported success")
    try:
        import gguf
    except ImportError:
        return None
    try:
        reader = gguf.GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith(_BULKY)}
        tensors = [(tensor.name, int(tensor.n_elements)) for tensor in reader.tensors]
    except UNREADABLE as error:
        raise ProofError(f"{file.name} is not a whole GGUF file ({type(error).__name__}: {error})") from None
    file_types = {each.value: each.name.partition("_")[2].lower() for each in gguf.LlamaFileType}
    return _compare(metadata, tensors, file_types, wanted)


_TEMPLATE = "tokenizer.chat_template"
_BULKY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


def _compare(
    metadata: dict[str, Any], tensors: list[tuple[str, int]], file_types: dict[int, str], wanted: GgufFacts
) -> list[dict[str, Any]]:
    architecture = metadata.get("general.architecture")
    form = (metadata.get(f"{architecture}.block_count"), metadata.get(f"{architecture}.embedding_length"))
    weights = sum(count for name, count in tensors if not name.startswith("rope_"))  # tables made by the converter
    template, eos = metadata.get(_TEMPLATE), metadata.get("tokenizer.ggml.eos_token_id")
    carried = {key.rpartition(".")[2]: text for key, text in metadata.items() if key.startswith(f"{_TEMPLATE}.")}
    same = template == wanted.chat_template and carried == dict(wanted.more_templates)
    bos = metadata.get("tokenizer.ggml.add_bos_token")
    kind = file_types.get(metadata.get("general.file_type", -1))
    facts = [
        (
            "architecture",
            form == (wanted.blocks, wanted.width),
            f"{architecture}: {form[0]} blocks of width {form[1]} (trained: {wanted.blocks} of {wanted.width})",
        ),
        (
            "weights",
            weights == wanted.weights,
            f"{weights:,} weights in {len(tensors)} tensors (merged model: {wanted.weights:,} weights)",
        ),
        ("type", kind == wanted.kind, f"type {kind} (asked for: {wanted.kind})"),
        (
            "chat_template",
            same,
            "chat template: " + ("the run's" if same else "not the run's"),
        ),
        ("eos", eos == wanted.eos_id, f"EOS token {eos} (trained: {wanted.eos_id})"),
        (
            "bos",
            bos is None or bool(bos) == wanted.adds_bos,
            f"BOS in front: {'left to llama.cpp' if bos is None else bool(bos)} (trained: {wanted.adds_bos})",
        ),
    ]
    return [{"name": name, "passed": bool(passed), "words": words} for name, passed, words in facts]
