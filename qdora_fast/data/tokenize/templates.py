"""Which chat template turns messages into text, chosen once and stored on the tokenizer.

A model that brings a chat template is trained with exactly that. A base model without one gets the plain
Alpaca text, whose only special token is the EOS the base already knows: new turn tokens such as <|im_start|>
would have untrained embeddings, LoRA and DoRA do not train embeddings, and the model would never learn to stop.

The template is set as `tokenizer.chat_template`, so that every export carries it and what is served
renders exactly what was trained. The bundled texts are the .jinja files in `chat_templates/`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.chat_text import check_template, render_chat, templates_of
from qdora_fast.data.tokenize.vocabulary import adds_bos
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import read_limited
from qdora_fast.system.paths import local_path

THINK = "-think"
"""Ends the names of the bundled templates that print reasoning. The others stay as they are, to the byte: what was
prepared and trained with them can be resumed."""
BUNDLED = ("alpaca", "chatml", f"alpaca{THINK}", f"chatml{THINK}")
_BOS_FIRST = "{{- bos_token -}}\n"


@dataclass(frozen=True)
class TemplateChoice:
    """The template in use: `name` is model, alpaca, chatml or a file; `text` is its Jinja source."""

    name: str
    why: str
    text: str


def choose_template(tokenizer: Any, setting: str, *, is_base: bool | None = None) -> TemplateChoice:
    """Choose the chat template and set it on the tokenizer.

    Args:
        tokenizer: a Transformers tokenizer; its `chat_template` is replaced unless its own is kept.
        setting: `data.template`: auto, model, one of BUNDLED, or the path of a .jinja file.
        is_base: whether the model was never tuned to chat, where that is known. It changes only the warning.

    Raises:
        ConfigError: no such template, one that does not compile or is never the same twice, several without a
            default, or a tokenizer without EOS.
    """
    named = templates_of(tokenizer)
    if setting == "auto" and not named:
        choice = _bundled(tokenizer, "alpaca", "the model has no chat template; plain Alpaca text ends with its EOS")
    elif setting in ("auto", "model"):
        choice = _models_own(named, is_base)
    elif setting in BUNDLED:
        choice = _bundled(tokenizer, setting, "set in data.template" + _chatml_warning(tokenizer, setting))
    else:
        choice = TemplateChoice(setting, "file set in data.template", _from_file(setting))
    if choice.name != "model":
        _set(tokenizer, choice)
    elif len(named) == 1:  # in a list of one, as some files have it, or by itself
        tokenizer.chat_template = choice.text
    return choice


def bundled_name(text: str | None) -> str | None:
    """Which of the bundled templates a chat template is, with or without BOS in front; None: another."""
    return next((name for name in BUNDLED if text and text.removeprefix(_BOS_FIRST) == _bundled_text(name)), None)


def _models_own(named: Mapping[str, str], is_base: bool | None) -> TemplateChoice:
    """The model's own template; of several, Transformers takes `tool_use` for rows with tools and else `default`."""
    if not named:
        raise ConfigError(
            "data.template: model, but this model has no chat template; "
            "use auto or alpaca (plain text that ends with the model's EOS), chatml, or a .jinja file"
        )
    if "default" not in named:
        raise ConfigError(
            f"this model's chat templates are named {', '.join(named)} and none is named default, so that no server "
            "knows which to take; write the right one into a .jinja file, and name that in data.template"
        )
    for name, text in named.items():
        which = "" if len(named) == 1 else f" `{name}`"
        check_template(text, f"the model's own chat template{which}")
    why = "the model's own chat template"
    if len(named) > 1:
        why = f"the model's own chat templates {', '.join(named)}"
        why += "; tool_use for rows with tools, default for the rest" if "tool_use" in named else "; default is used"
    if is_base:
        why += "; this is a base model, whose turn tokens may be untrained: `alpaca` is the safe choice"
    return TemplateChoice("model", why, named["default"])


def _bundled(tokenizer: Any, name: str, why: str) -> TemplateChoice:
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the {name} template ends an answer with the tokenizer's EOS, but this tokenizer has none; "
            "set eos_token in its tokenizer_config.json"
        )
    # Rendered text is tokenised without special tokens, so the BOS that this tokenizer would add is written out.
    return TemplateChoice(name, why, (_BOS_FIRST if adds_bos(tokenizer) else "") + _bundled_text(name))


def _bundled_text(name: str) -> str:
    return (resources.files("qdora_fast.data.tokenize") / "chat_templates" / f"{name}.jinja").read_text(
        encoding="utf-8"
    )


def _chatml_warning(tokenizer: Any, setting: str) -> str:
    if setting.removesuffix(THINK) != "chatml":
        return ""
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
    if missing:
        return (
            f"; {' and '.join(missing)} not in the vocabulary: spelled as plain text, answers stop at EOS. To train "
            f"them as tokens, set adapter.trainable_tokens: {json.dumps(missing)}"
        )
    if tokenizer.eos_token != "<|im_end|>":
        return f"; answers end with <|im_end|>{tokenizer.eos_token}, since EOS is the stop token"
    return ""


def _from_file(setting: str) -> str:
    path = local_path(setting)
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        near = difflib.get_close_matches(setting, ("auto", "model", *BUNDLED), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"data.template: {setting!r}: use auto, model, {', '.join(BUNDLED)}, or a .jinja file{hint}")
    if not path.exists():
        there = sorted(entry.name for entry in path.parent.glob("*.j*inja*")) if path.parent.is_dir() else []
        hint = f"; that folder holds {', '.join(there[:3])}" if there else ""
        raise ConfigError(f"data.template: {path}: no such file{hint}")
    try:
        return read_limited(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.template: {path}: cannot be read as UTF-8 text ({error})") from error


def _set(tokenizer: Any, choice: TemplateChoice) -> None:
    """Set a template that does not come with the model, which must render a question and an answer."""
    check_template(choice.text, f"data.template: {choice.name}")
    tokenizer.chat_template = choice.text
    probe = [{"role": "user", "content": "probe question"}, {"role": "assistant", "content": "probe answer"}]
    try:
        text = render_chat(tokenizer, probe)
    except RejectedRow as error:
        raise ConfigError(
            f"data.template: {choice.name} cannot render a question and an answer: {error.detail}"
        ) from error
    if "probe question" not in text or "probe answer" not in text:
        raise ConfigError(f"data.template: {choice.name} does not print the `content` of each of `messages`")
