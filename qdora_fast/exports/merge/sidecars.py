"""The small files that make weights a model: config.json, tokenizer and chat template, licences.

The config is the base's without its quantisation, or with that of the weights that were written. So are the
files of a vision model's processor. Tokenizer and template come from where the adapter was trained, whole, or
else from the base: never a mixture of two. What this does not do: check that they are the ones trained with;
that is `verify/token_identity.py`'s business.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdora_fast.system.remote_code import remote_code_allowed

_MODEL_FILES = ("generation_config.json", "*processor_config.json", "LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "tekken.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)


def copy_sidecars(base: Path, config: Mapping[str, Any], tokenizer_from: Path | None, out: Path) -> dict[str, str]:
    """Write `config` as config.json and copy the other small files; return where each came from.

    Args:
        base: folder of the base model.
        config: from `output_config`.
        tokenizer_from: folder whose tokenizer goes along, if it has one; else the base's.
        out: the folder being built.
    """
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    own_code = ("*.py",) if "auto_map" in config else ()
    has_own = tokenizer_from is not None and bool(_matching(tokenizer_from, ("tokenizer*",)))
    tokenizer = tokenizer_from if tokenizer_from is not None and has_own else base
    sources = {str(file.relative_to(base)): base for file in _matching(base, (*_MODEL_FILES, *own_code))}
    sources |= {str(file.relative_to(tokenizer)): tokenizer for file in _matching(tokenizer, _TOKENIZER_FILES)}
    for name, folder in sources.items():
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    return {"config.json": str(base)} | {name: str(folder) for name, folder in sorted(sources.items())}


def has_tokenizer(folder: Path) -> bool:
    """True when a tokenizer lies in the folder."""
    return bool(_matching(folder, _TOKENIZER_FILES))


def output_config(config: Mapping[str, Any], dtype: str | None, quantization: Mapping[str, Any] | None) -> Any:
    """The base's config with the dtype that was written, the quantisation given, and no code that did not run."""
    unused = {"quantization_config"} if remote_code_allowed() else {"quantization_config", "auto_map"}
    written = {key: value for key, value in config.items() if key not in unused}
    if isinstance(written.get("text_config"), dict):
        written["text_config"] = output_config(written["text_config"], dtype, None)
    if dtype is not None:
        known = [key for key in ("dtype", "torch_dtype") if key in written] or ["dtype"]
        written |= dict.fromkeys(known, dtype)
    return written | ({"quantization_config": dict(quantization)} if quantization else {})


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files in `folder` that match any of the patterns."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
