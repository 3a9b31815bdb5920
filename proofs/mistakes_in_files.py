"""Mistakes that leave the weights as they are: another tokenizer, template, end, or setting of the architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proofs.damage import change_json, stored_tensors


def swap_tokens(case: Any, folder: Path, model: Any) -> None:
    """Two tokens of the vocabulary have each other's number."""

    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        special = {token["content"] for token in content.get("added_tokens", ())}
        one, two = case.random.sample(sorted(vocabulary.keys() - special), 2)
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]

    change_json(folder / "tokenizer.json", swap)


def change_template(case: Any, folder: Path, model: Any) -> None:
    """The prompt ends with a space more."""
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8") + "{{ ' ' }}", encoding="utf-8")


def change_eos(case: Any, folder: Path, model: Any) -> None:
    """The tokenizer takes another token for the end of a text."""
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]

    def change(content: dict[str, Any]) -> None:
        content["eos_token"] = next(each["content"] for each in added if each["content"] != content["eos_token"])

    change_json(folder / "tokenizer_config.json", change)


def change_stop_tokens(case: Any, folder: Path, model: Any) -> None:
    """Answers end at another token than was taught."""
    change_json(folder / "generation_config.json", lambda content: content.update(eos_token_id=7))


def change_rope(case: Any, folder: Path, model: Any) -> None:
    """Positions turn at another speed."""

    def change(content: dict[str, Any]) -> None:
        holder = content if "rope_theta" in content else content["rope_parameters"]
        holder["rope_theta"] = 2 * holder["rope_theta"]

    change_json(folder / "config.json", change)


def change_eps(case: Any, folder: Path, model: Any) -> None:
    """The norms' epsilon is ten times as large: 1e-5 and 1e-6 are both usual."""
    change_json(folder / "config.json", lambda content: content.update(rms_norm_eps=10 * content["rms_norm_eps"]))


def change_tying(case: Any, folder: Path, model: Any) -> None:
    """A tied head is taken for one of its own, or the other way."""
    tied = not any("lm_head" in name for name in stored_tensors(folder))
    change_json(folder / "config.json", lambda content: content.update(tie_word_embeddings=not tied))
