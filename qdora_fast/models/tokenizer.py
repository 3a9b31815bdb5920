"""The tokenizer of a base, read without its weights, and the tokens that end its answers.

Rows are filtered, masked and tokenised before a weight is read; all that this needs of a base is here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.models.base_files import require_sound
from qdora_fast.models.model_class import read_config
from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.json_files import read_object
from qdora_fast.system.remote_code import BASE_SETTING, foreign_files, remote_code_allowed

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files of which one at least makes a tokenizer."""
_ELSEWHERE = ("vocab", "merges", "gguf_file")
"""How the entries of a tokenizer_config.json end that Transformers opens as a file where they are text, wherever that
lies. (Of `vocab_file` and its like it takes those of the folder.)"""


def load_tokenizer(name: str, revision: str | None, *, setting: str = BASE_SETTING) -> tuple[Any, frozenset[int]]:
    """The tokenizer of a base and the token ids that stop it, without reading its weights.

    Args:
        setting: that names the model, see `remote_code.unreadable`.

    Raises:
        ConfigError: none there, a slow one, or one whose special tokens the base has no embeddings for.
        IntegrityError: see `base_files.require_sound`.
    """
    from transformers import GenerationConfig

    require_sound(name, revision, weights=False, setting=setting)
    if Path(name).is_dir() and not any((Path(name) / each).exists() for each in TOKENIZERS):
        raise ConfigError(f"{setting}{name} holds no tokenizer ({TOKENIZERS[0]}); copy it there from the model's page")
    tokenizer = read_tokenizer(name, revision, setting=setting)
    require_fast(name, tokenizer)
    described = read_config(name, revision, setting=setting)
    with foreign_files("generation config", name, revision, setting=setting):
        try:
            generation = GenerationConfig.from_pretrained(name, revision=revision)
        except OSError:  # the model has no file of its own for it
            generation = GenerationConfig.from_model_config(described)
    stop_ids = _stop_ids(generation, tokenizer)
    _require_embedded(name, tokenizer, stop_ids, _embeddings(described), setting)
    return tokenizer, stop_ids


def read_tokenizer(name: str, revision: str | None = None, *, setting: str = "") -> Any:
    """The tokenizer of a base, an adapter or a merged model.

    Raises:
        ConfigError: none there, or one that needs code of its own.
        RefusedError: it names a file that is none of its own; what is in there would be saved with it.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    with foreign_files("tokenizer", name, revision, setting=setting):
        for key, value in get_tokenizer_config(name, revision=revision).items():
            if key.endswith(_ELSEWHERE) and isinstance(value, str):
                raise RefusedError(
                    f"{setting}tokenizer_config.json of `{name}`: `{key}` names a file ({value}), and a tokenizer is "
                    "read from its own files alone; remove that entry"
                )
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=remote_code_allowed())
    if not tokenizer.chat_template:
        tokenizer.chat_template = _template_of_processor(name)
    return tokenizer


def _template_of_processor(name: str) -> str | None:
    """The chat template in a folder's chat_template.json, where models for images had it once; None: none there."""
    file = Path(name) / "chat_template.json"
    template = read_object(file).get("chat_template") if file.is_file() else None
    return template if isinstance(template, str) else None


def embedding_count(name: str, revision: str | None = None, *, setting: str = BASE_SETTING) -> int | None:
    """How many tokens a base has embeddings for; None: its config does not say.

    Raises:
        ConfigError: no config that can be read.
    """
    return _embeddings(read_config(name, revision, setting=setting))


def _embeddings(described: Any) -> int | None:
    count = getattr(described.get_text_config(), "vocab_size", None)
    return count if isinstance(count, int) else None


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Token ids that end an answer: the tokenizer's EOS and the generation config's, one or several."""
    return _stop_ids(model.generation_config, tokenizer)


def require_fast(name: str, tokenizer: Any) -> None:
    """Raise ConfigError for a tokenizer that cannot say where in the text a token lies."""
    if getattr(tokenizer, "is_fast", False) is not True:
        raise ConfigError(f"`{name}` has no fast tokenizer (tokenizer.json); loss masks need its offsets")


def _require_embedded(
    name: str, tokenizer: Any, stop_ids: frozenset[int], embeddings: int | None, setting: str
) -> None:
    """Raise ConfigError for a special token that the base has no embedding for: padding looks it up in every batch, and
    a stop token beyond the output head never comes."""
    kinds = ("bos_token", "eos_token", "pad_token")
    used = {token: kind for kind in kinds if (token := getattr(tokenizer, f"{kind}_id", None)) is not None}
    used |= {token: "stop token (eos_token_id)" for token in stop_ids if token not in used}
    for token, kind in used.items():
        if embeddings is not None and not (isinstance(token, int) and 0 <= token < embeddings):
            raise ConfigError(
                f"{setting}the {kind} of `{name}` is token {token}, and the model has embeddings for {embeddings:,} "
                f"(0-{embeddings - 1}); correct it in its tokenizer_config.json or generation_config.json, or use a "
                "tokenizer that belongs to the model"
            )


def _stop_ids(generation: Any, tokenizer: Any) -> frozenset[int]:
    listed = generation.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*listed, tokenizer.eos_token_id] if i is not None)
